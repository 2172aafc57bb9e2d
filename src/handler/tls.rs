//! The client's side of TLS: the system's authorities and a handler's own.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// # Errors
/// The file with further authorities cannot be read or holds none. A system without authorities is
/// no error here: plain HTTP needs none, and connecting says what is missing.
pub(super) fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        let unreadable = |e: &dyn std::fmt::Display| {
            format!("http.ca: cannot read {} as PEM certificates: {e}", path.display())
        };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| unreadable(&e))?;
        let mut found = false;
        for certificate in certificates {
            roots.add(certificate.map_err(|e| unreadable(&e))?).map_err(|e| unreadable(&e))?;
            found = true;
        }
        if !found {
            return Err(format!("http.ca: {} holds no certificate in PEM form", path.display()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("http: tls cannot be set up: {e}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
