//! The TLS settings of the contenders that use rustls directly.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

use crate::harness::contender::Target;

/// A contender's settings, made when they are first needed. Its connections share them, and with them the session cache.
#[derive(Default)]
pub(crate) struct Settings {
    resuming: Option<Arc<ClientConfig>>,
    fresh: Option<Arc<ClientConfig>>,
}

impl Settings {
    /// `None` for plain TCP. With `fresh` sessions are not resumed.
    pub(crate) fn config(&mut self, target: &Target, fresh: bool) -> Option<Arc<ClientConfig>> {
        let root = target.root.as_deref()?;
        let (settings, resumption) =
            if fresh { (&mut self.fresh, Resumption::disabled()) } else { (&mut self.resuming, Resumption::default()) };
        Some(settings.get_or_insert_with(|| Arc::new(build(root, resumption))).clone())
    }
}

fn build(root: &[u8], resumption: Resumption) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root.to_vec().into()).expect("the server's root is a good certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = resumption;
    config
}
