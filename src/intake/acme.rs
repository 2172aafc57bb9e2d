//! A certificate from an authority that checks the domain by TLS-ALPN-01 (RFC 8737), and its renewal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_acme::{
    AccountCache, AcmeConfig, CertCache, EventError, EventOk, OrderError, ResolvesServerCertAcme,
};
use sha2::{Digest as _, Sha256};

use crate::{config, files, trust};

/// Under the data directory.
pub(super) const DIR: &str = "acme";
/// The protocol that the authority asks for in its check.
pub(super) const CHALLENGE: &[u8] = b"acme-tls/1";
/// The renewal is set by the wall clock, which on a small machine is wrong until NTP has answered.
const THINK_AGAIN: Duration = Duration::from_secs(12 * 3600);

/// Answers handshakes with the certificate at hand, and the authority's check.
#[derive(Debug, Default)]
pub(super) struct Served(RwLock<Option<Arc<ResolvesServerCertAcme>>>);

impl Served {
    fn set(&self, resolver: Arc<ResolvesServerCertAcme>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(resolver);
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        current?.resolve(hello)
    }
}

/// Gets a certificate, keeps it and its account in `dir`, renews it after two thirds of its life. Never returns.
pub(super) async fn keep(served: &Served, config: &config::Acme, dir: &Path) {
    let client = loop {
        match trust::client_config(config.ca.as_deref()) {
            Ok(client) => break Arc::new(client),
            Err(problem) => {
                tracing::error!("no certificate can be asked for: intake.tls.acme: {problem}")
            }
        }
        tokio::time::sleep(THINK_AGAIN).await;
    };
    if let Err(error) = make_dir(dir) {
        tracing::error!("the certificate cannot be kept in {}: {error}", dir.display());
    }
    let names = config.domains.join(", ");
    loop {
        let kept = Kept { dir: dir.to_owned() };
        let there = kept.certificate(&config.domains, &config.directory).exists();
        let mut state = AcmeConfig::new_with_client_config(&config.domains, Arc::clone(&client))
            .contact(&config.contact)
            .directory(&config.directory)
            .cache(kept)
            .state();
        // The certificate of before is served until the same one has been read again.
        let mut waits = there;
        if !waits {
            served.set(state.resolver());
        }
        while let Ok(Some(event)) = tokio::time::timeout(THINK_AGAIN, state.next()).await {
            match event {
                Ok(EventOk::DeployedNewCert) => {
                    tracing::info!("a certificate for {names} was issued")
                }
                Ok(EventOk::DeployedCachedCert) => {
                    tracing::debug!("the certificate for {names} was read")
                }
                Ok(EventOk::CertCacheStore | EventOk::AccountCacheStore) => {}
                Err(error) => tracing::warn!("{}", told(&error, &names)),
            }
            if std::mem::take(&mut waits) {
                served.set(state.resolver());
            }
        }
    }
}

fn told(error: &EventError<io::Error, io::Error>, names: &str) -> String {
    match error {
        EventError::Order(error) => format!(
            "no certificate for {names} yet: {}; the name must lead to this machine and its port 443 to bluehook; \
             it is tried again by itself",
            why(error)
        ),
        EventError::CertCacheStore(_) | EventError::AccountCacheStore(_) => {
            format!(
                "{error}; without it the next start asks for another certificate: check the disk"
            )
        }
        _ => format!("{error}; another certificate is asked for"),
    }
}

/// What the authority says, where it says something.
fn why(error: &OrderError) -> String {
    let told = match error {
        OrderError::BadAuth(auth) => {
            auth.challenges.iter().find_map(|challenge| challenge.error.clone())
        }
        OrderError::BadOrder(order) => order.error.clone(),
        _ => None,
    };
    told.and_then(|problem| problem.detail).unwrap_or_else(|| error.to_string())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Files named by what they are for, so that a changed configuration asks for its own.
struct Kept {
    dir: PathBuf,
}

impl Kept {
    fn certificate(&self, domains: &[String], directory: &str) -> PathBuf {
        self.dir.join(format!("certificate-{}.pem", named(domains, directory)))
    }

    fn account(&self, contact: &[String], directory: &str) -> PathBuf {
        self.dir.join(format!("account-{}.key", named(contact, directory)))
    }
}

fn named(parts: &[String], directory: &str) -> String {
    let mut hash = Sha256::new();
    for part in parts.iter().map(String::as_str).chain([directory]) {
        hash.update(part);
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..8])
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[async_trait]
impl CertCache for Kept {
    type EC = io::Error;

    async fn load_cert(&self, domains: &[String], directory: &str) -> io::Result<Option<Vec<u8>>> {
        read(&self.certificate(domains, directory))
    }

    async fn store_cert(&self, domains: &[String], directory: &str, cert: &[u8]) -> io::Result<()> {
        files::replace(&self.certificate(domains, directory), cert)
    }
}

#[async_trait]
impl AccountCache for Kept {
    type EA = io::Error;

    async fn load_account(
        &self,
        contact: &[String],
        directory: &str,
    ) -> io::Result<Option<Vec<u8>>> {
        read(&self.account(contact, directory))
    }

    async fn store_account(
        &self,
        contact: &[String],
        directory: &str,
        key: &[u8],
    ) -> io::Result<()> {
        files::replace(&self.account(contact, directory), key)
    }
}
