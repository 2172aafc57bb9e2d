//! Whom we trust when we connect by TLS: the system's authorities and those the user adds.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// # Errors
/// The file with further authorities cannot be read or holds none. A system without authorities is
/// no error here: plain HTTP needs none, and connecting says what is missing.
pub fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|e| unreadable(path, &e))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("tls cannot be set up: {e}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// What several connections trust, read once.
#[derive(Default)]
pub struct Trust(RefCell<HashMap<Option<PathBuf>, ClientConfig>>);

impl Trust {
    /// # Errors
    /// As [`client_config`].
    pub fn client_config(&self, ca: Option<&Path>) -> Result<ClientConfig, String> {
        let key = ca.map(Path::to_owned);
        if let Some(known) = self.0.borrow().get(&key) {
            return Ok(known.clone());
        }
        let config = client_config(ca)?;
        self.0.borrow_mut().insert(key, config.clone());
        Ok(config)
    }
}

/// # Errors
/// The file cannot be read, or holds none in PEM form.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|e| unreadable(path, &e))?.collect();
    let found = found.map_err(|e| unreadable(path, &e))?;
    if found.is_empty() {
        return Err(format!("{} holds no certificate in PEM form", path.display()));
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot read {} as PEM certificates: {error}", path.display())
}
