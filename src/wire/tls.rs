//! TLS by rustls: one client config per trust setting, so that redials resume their sessions.

use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_platform_verifier::Verifier;

use crate::config::Trust;
use crate::error::{Error, Result};

/// The configs in use, by what they trust.
static CONFIGS: Mutex<Vec<(Arc<Trust>, Weak<ClientConfig>)>> = Mutex::new(Vec::new());

/// The config for a trust setting: made once, on the caller's thread, and shared by all connections with the same setting.
///
/// # Errors
///
/// [`Error::Config`] if a certificate or key cannot be read.
pub(crate) fn client_config(trust: &Arc<Trust>) -> Result<Arc<ClientConfig>> {
    let known = |configs: &mut Vec<(Arc<Trust>, Weak<ClientConfig>)>| {
        configs.retain(|(_, config)| config.strong_count() > 0);
        configs.iter().filter(|(have, _)| have == trust).find_map(|(_, config)| config.upgrade())
    };
    if let Some(config) = known(&mut CONFIGS.lock()) {
        return Ok(config);
    }
    // Reading the system's roots takes long; nobody else has to wait for it.
    let config = Arc::new(build(trust)?);
    let mut configs = CONFIGS.lock();
    if let Some(config) = known(&mut configs) {
        return Ok(config);
    }
    configs.push((trust.clone(), Arc::downgrade(&config)));
    Ok(config)
}

fn build(trust: &Trust) -> Result<ClientConfig> {
    let refuse = |reason: String| Error::config("root_certificate", reason);
    let provider = Arc::new(ring::default_provider());
    let mut roots = Vec::new();
    for root in &trust.roots {
        roots.extend(certificates(root).map_err(|reason| Error::config("root_certificate", reason))?);
    }
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse(error.to_string()))?;
    let builder = if trust.without_system_roots {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(|error| refuse(error.to_string()))?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build();
        builder.with_webpki_verifier(verifier.map_err(|error| refuse(error.to_string()))?)
    } else {
        let verifier = Verifier::new_with_extra_roots(roots, provider).map_err(|error| refuse(error.to_string()))?;
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    };
    let mut config = match &trust.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let refuse = |reason: String| Error::config("client_certificate", reason);
            let chain = certificates(chain).map_err(refuse)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| refuse(format!("the key: {error}")))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| refuse(error.to_string()))?
        }
    };
    // Front ends that offer HTTP/2 would otherwise choose it, and an upgrade exists in HTTP/1.1 only.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates in a PEM text, or the one that is DER. Bundles have comments before the first certificate (RFC 7468 §5.2).
fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if !bytes.windows(10).any(|window| window == b"-----BEGIN") {
        return Ok(vec![CertificateDer::from(bytes.to_vec())]);
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err("contains no certificate".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// A connection to this host, before its handshake.
pub(crate) fn connection(config: Arc<ClientConfig>, host: &str) -> Result<Box<ClientConnection>> {
    let name =
        ServerName::try_from(host.to_owned()).map_err(|_| Error::config("url", "the host is not a name TLS can verify"))?;
    let mut connection = ClientConnection::new(config, name).map_err(error)?;
    // The sending half has a bound of its own, checked before a frame is encrypted, so that none is encrypted by half.
    connection.set_buffer_limit(None);
    Ok(Box::new(connection))
}

/// What a TLS failure means to the caller.
pub(crate) fn error(source: rustls::Error) -> Error {
    let certificate = matches!(source, rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented);
    Error::Tls { certificate, source: Arc::new(source) }
}

/// The peer sent a record longer than TLS allows.
pub(crate) fn stuck() -> Error {
    Error::Tls { certificate: false, source: Arc::new(io::Error::other("a record does not fit")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_trust_shares_one_config() {
        let trust = |root: &[u8]| Arc::new(Trust { without_system_roots: true, roots: vec![root.to_vec()], client: None });
        let (one, other) = (own_root(), own_root());
        let [first, second, third] = [&one, &one, &other].map(|root| client_config(&trust(root)).unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &third));
    }

    #[test]
    fn what_is_not_a_certificate_is_refused_by_name() {
        let refusal = |trust: Trust| client_config(&Arc::new(trust)).unwrap_err().to_string();
        let pem = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----".to_vec();
        for roots in [vec![b"junk".to_vec()], vec![pem], vec![]] {
            let reason = refusal(Trust { without_system_roots: true, roots, client: None });
            assert!(reason.starts_with("invalid root_certificate: "), "{reason}");
        }
        let client = Some((own_root(), b"junk".to_vec()));
        let reason = refusal(Trust { without_system_roots: true, roots: vec![own_root()], client });
        assert!(reason.starts_with("invalid client_certificate: "), "{reason}");
    }

    fn own_root() -> Vec<u8> {
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.der().to_vec()
    }
}
