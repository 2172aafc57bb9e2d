//! HTTPS on the TCP listeners: the handshake, and certificate files that are read again when they change.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::acme::{self, Served};
use crate::{config, files, trust};

/// How often the files are looked at. No watch on them: tools put links, folders and new files in their place.
const LOOK_EVERY: Duration = Duration::from_secs(10);

pub struct Tls {
    acceptor: TlsAcceptor,
    certificate: Certificate,
}

enum Certificate {
    Files(Arc<Files>),
    Acme { served: Arc<Served>, config: config::Acme, dir: PathBuf },
}

impl Tls {
    /// # Errors
    /// One line: a file that cannot be used, why, what to do.
    pub fn open(configured: &config::Tls, data_dir: &Path) -> Result<Tls, String> {
        let (certificate, resolver): (_, Arc<dyn ResolvesServerCert>) = match configured {
            config::Tls::Files { cert, key } => {
                let files = Arc::new(Files::open(cert, key)?);
                (Certificate::Files(Arc::clone(&files)), files)
            }
            config::Tls::Acme(config) => {
                let served = Arc::new(Served::default());
                let dir = data_dir.join(acme::DIR);
                let config = config.clone();
                (Certificate::Acme { served: Arc::clone(&served), config, dir }, served)
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("intake.tls: cannot be set up: {e}"))?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        server.alpn_protocols = vec![b"http/1.1".to_vec(), acme::CHALLENGE.to_vec()];
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(server)), certificate })
    }

    /// `None`: it was the authority's check of a domain, which ends with the handshake.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<Option<TlsStream<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut stream = self.acceptor.accept(stream).await?;
        if stream.get_ref().1.alpn_protocol() == Some(acme::CHALLENGE) {
            stream.shutdown().await?;
            return Ok(None);
        }
        Ok(Some(stream))
    }

    /// Follows the files, or gets and renews the certificate. Never returns.
    pub async fn keep(&self) {
        match &self.certificate {
            Certificate::Files(files) => loop {
                tokio::time::sleep(LOOK_EVERY).await;
                files.look();
            },
            Certificate::Acme { served, config, dir } => acme::keep(served, config, dir).await,
        }
    }

    /// Looks at the files now.
    pub fn look(&self) {
        if let Certificate::Files(files) = &self.certificate {
            files.look();
        }
    }
}

/// A certificate and its key, as they were last found to belong together.
#[derive(Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
    /// The files that were last looked at, good or bad.
    seen: Mutex<Option<Stamp>>,
}

/// Tells a file from the one that was in its place before.
type Stamp = [(u64, u64, Option<SystemTime>); 2];

impl Files {
    fn open(cert: &Path, key: &Path) -> Result<Files, String> {
        let seen = Mutex::new(stamp(cert, key));
        let current = RwLock::new(Arc::new(load(cert, key)?));
        Ok(Files { cert: cert.to_owned(), key: key.to_owned(), current, seen })
    }

    /// Takes what the files hold now, if they changed and are good; else what was good stays.
    fn look(&self) {
        let now = stamp(&self.cert, &self.key);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return;
        }
        *seen = now;
        match load(&self.cert, &self.key) {
            Ok(found) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
                tracing::info!("took the new certificate from {}", self.cert.display());
            }
            // The key may be about to follow: then this runs again.
            Err(problem) => {
                tracing::warn!("the certificate stays the one that was read before: {problem}")
            }
        }
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn stamp(cert: &Path, key: &Path) -> Option<Stamp> {
    let one = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.modified().ok()))
    };
    Some([one(cert)?, one(key)?])
}

fn load(cert: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let chain = trust::certificates(cert).map_err(|e| format!("intake.tls.cert: {e}"))?;
    if files::is_open_to_all(key) {
        return Err(format!(
            "intake.tls.key: every user can read or write {0}; run: chmod o-rwx {0}",
            key.display()
        ));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| {
        format!("intake.tls.key: cannot read {} as a private key in PEM form: {e}", key.display())
    })?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map_err(|e| {
        format!(
            "intake.tls: {} and {} do not make a pair: {e}; name the whole chain and the key it was issued for",
            cert.display(),
            key.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path, name: &str) {
        let at = |ending: &str| dir.join(format!("{name}.{ending}"));
        let made = std::process::Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ])
            .args(["-days", "1", "-subj", &format!("/CN={name}"), "-keyout"])
            .arg(at("key"))
            .arg("-out")
            .arg(at("pem"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }

    fn first(files: &Files) -> Vec<u8> {
        files.current.read().unwrap().cert[0].to_vec()
    }

    #[test]
    fn a_certificate_is_taken_once_its_key_is_there_too() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        make(dir.path(), "old");
        make(dir.path(), "new");
        std::fs::copy(at("old.pem"), at("cert")).unwrap();
        std::fs::copy(at("old.key"), at("key")).unwrap();
        let files = Files::open(&at("cert"), &at("key")).unwrap();
        let old = first(&files);
        std::fs::rename(at("new.pem"), at("cert")).unwrap();
        files.look();
        assert_eq!(first(&files), old, "half of a pair");
        std::fs::rename(at("new.key"), at("key")).unwrap();
        files.look();
        assert_ne!(first(&files), old);
        let new = first(&files);
        std::fs::remove_file(at("cert")).unwrap();
        files.look();
        assert_eq!(first(&files), new, "what was good stays");
    }

    #[test]
    fn files_that_cannot_be_used_are_named_with_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        make(dir.path(), "a");
        make(dir.path(), "b");
        std::fs::write(at("empty"), "").unwrap();
        let refused = |cert: &str, key: &str| Files::open(&at(cert), &at(key)).err().unwrap();
        assert!(refused("empty", "a.key").starts_with("intake.tls.cert: "));
        assert!(refused("a.pem", "empty").starts_with("intake.tls.key: "));
        let both = refused("a.pem", "b.key");
        assert!(both.starts_with("intake.tls: ") && both.contains("pair"), "{both}");
    }
}
