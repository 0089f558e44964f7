//! The certificates of a TLS server, made afresh for each.

use std::{io, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// What a TLS [`MockServer`](super::MockServer) shows its clients.
///
/// Except for [`SelfSigned`](Self::SelfSigned), the certificate is signed by a root of its own, which
/// [`MockServer::root_certificate`](super::MockServer::root_certificate) hands out. A server whose
/// issuer nobody knows is a [`Valid`](Self::Valid) one whose root the client does not trust.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Certificate {
    /// In order, except that it ended with the year 2000.
    Expired,
    /// In order, for this host instead of the local ones.
    ForHost(String),
    /// Signed by its own key; the server's root certificate has nothing to do with it.
    SelfSigned,
    /// In order for `localhost`, `127.0.0.1` and `::1`.
    Valid,
}

impl Certificate {
    /// Makes the keys and certificates: the server's configuration, and the root as DER.
    pub(super) fn to_config(&self, alpn: &[Vec<u8>]) -> io::Result<(Arc<ServerConfig>, Vec<u8>)> {
        let (chain, key, root) = self.issue().map_err(io::Error::other)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![chain], key.into()))
            .map_err(io::Error::other)?;
        config.alpn_protocols = alpn.to_vec();
        Ok((Arc::new(config), root))
    }

    fn issue(&self) -> Result<(CertificateDer<'static>, PrivatePkcs8KeyDer<'static>, Vec<u8>), rcgen::Error> {
        let mut root = CertificateParams::new([])?;
        root.distinguished_name.push(DnType::CommonName, "mock server root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;

        let hosts = match self {
            Self::ForHost(host) => vec![host.clone()],
            Self::Expired | Self::SelfSigned | Self::Valid => LOCAL.map(String::from).to_vec(),
        };
        let mut leaf = CertificateParams::new(hosts)?;
        leaf.distinguished_name.push(DnType::CommonName, "mock server");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if *self == Self::Expired {
            leaf.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = match self {
            Self::SelfSigned => leaf.self_signed(&key)?,
            Self::Expired | Self::ForHost(_) | Self::Valid => leaf.signed_by(&key, &root)?,
        };
        Ok((certificate.into(), PrivatePkcs8KeyDer::from(key.serialize_der()), root.der().to_vec()))
    }
}

const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
