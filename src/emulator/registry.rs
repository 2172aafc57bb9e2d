//! The registered endpoints, and the running parts that follow from them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::endpoint::{self, Endpoint, Ping, Registration, Strict};
use crate::admin::Problem;
use crate::clock::Clock;
use crate::config::Config;
use crate::replay::runner::{self, ReplayHandle, RunnerHandler};
use crate::server;
use crate::store::Store;

const FILE: &str = "endpoints.json";
const ENDPOINTS_MAX: usize = 100;
/// Pings that the log shows; attempts are in the store.
const PINGS_KEPT: usize = 200;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Kept {
    endpoints: Vec<Endpoint>,
    /// Oldest first.
    pings: Vec<Ping>,
}

pub struct Parts {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    /// With no handler yet.
    pub config: Config,
}

pub struct Emulator {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub replay: ReplayHandle,
    file: PathBuf,
    /// Held through a change: file, replayer and configuration follow in one order.
    kept: tokio::sync::Mutex<Kept>,
    config: RwLock<Arc<Config>>,
}

impl Emulator {
    /// Goes on with what an earlier run left. Call within a tokio runtime.
    ///
    /// # Errors
    /// One line: what, why, what to do next.
    pub fn start(parts: Parts) -> Result<Emulator, String> {
        let Parts { store, clock, config } = parts;
        let file = config.data_dir.join(FILE);
        let kept = read(&file)?;
        let (config, handlers) = plan(&config, &kept)?;
        store.set_active_handlers(server::names(&config));
        let replay =
            runner::start(store.clone(), Arc::clone(&clock), handlers, config.limits.attempts);
        let config = RwLock::new(Arc::new(config));
        Ok(Emulator { store, clock, replay, file, kept: tokio::sync::Mutex::new(kept), config })
    }

    /// With the active endpoints as handlers.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub async fn endpoints(&self) -> Vec<Endpoint> {
        self.kept.lock().await.endpoints.clone()
    }

    /// Oldest first.
    pub async fn pings(&self) -> Vec<Ping> {
        self.kept.lock().await.pings.clone()
    }

    /// Pings the URL, and keeps the endpoint whatever came of it.
    pub async fn register(&self, registration: Registration) -> Result<Endpoint, Problem> {
        registration.check().map_err(Problem::bad)?;
        let Registration { url, events, name } = registration;
        let created_at = self.clock.now().wall.to_rfc3339();
        let id = format!("ep_{}", random_hex().map_err(Problem::internal)?);
        let ping = self.ping(&id, &url, &events).await?;
        let active = ping.result.error.is_none();
        let endpoint =
            Endpoint { id, name, url, events, active, created_at, ping: ping.result.clone() };
        let added = endpoint.clone();
        self.change(move |kept| {
            if kept.endpoints.len() >= ENDPOINTS_MAX {
                return Err(Problem::bad(format!(
                    "not registered: there are {ENDPOINTS_MAX} endpoints already; delete one"
                )));
            }
            kept.endpoints.push(added);
            kept.note(ping);
            Ok(())
        })
        .await?;
        Ok(endpoint)
    }

    /// Pings again. An answer of 200 makes it active; an endpoint that is active stays so.
    pub async fn verify(&self, id: &str) -> Result<Endpoint, Problem> {
        let found = self.endpoints().await.into_iter().find(|e| e.id == id);
        let Endpoint { url, events, .. } = found.ok_or_else(|| no_such_endpoint(id))?;
        let ping = self.ping(id, &url, &events).await?;
        self.change(|kept| {
            // It may have been deleted meanwhile.
            let endpoint = kept.endpoints.iter_mut().find(|e| e.id == id);
            let endpoint = endpoint.ok_or_else(|| no_such_endpoint(id))?;
            endpoint.active |= ping.result.error.is_none();
            endpoint.ping = ping.result.clone();
            let endpoint = endpoint.clone();
            kept.note(ping);
            Ok(endpoint)
        })
        .await
    }

    /// Nothing more is sent to it. Its deliveries stay in the log as they are.
    pub async fn delete(&self, id: &str) -> Result<Endpoint, Problem> {
        self.change(|kept| {
            let at = kept.endpoints.iter().position(|e| e.id == id);
            Ok(kept.endpoints.remove(at.ok_or_else(|| no_such_endpoint(id))?))
        })
        .await
    }

    async fn ping(&self, id: &str, url: &str, events: &[String]) -> Result<Ping, Problem> {
        let config = self.config();
        let handler = endpoint::configured(id, url, events, &config.schedule);
        let handler = handler.map_err(Problem::internal)?;
        let (now, before) = (self.clock.now().wall, self.store.next_seq());
        endpoint::ping(&handler, &config.sources, now, before)
            .await
            .map_err(|e| Problem::bad(format!("cannot send to {url:?}: {e}")))
    }

    /// The file first: what was answered is there after a crash.
    async fn change<T>(
        &self,
        change: impl FnOnce(&mut Kept) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let mut kept = self.kept.lock().await;
        let mut next = kept.clone();
        let changed = change(&mut next)?;
        let (config, handlers) = plan(&self.config(), &next).map_err(Problem::internal)?;
        let (file, written) = (self.file.clone(), next.clone());
        let written = tokio::task::spawn_blocking(move || write(&file, &written)).await;
        if let Err(e) = written.unwrap_or_else(|e| Err(io::Error::other(e.to_string()))) {
            let file = self.file.display();
            return Err(Problem::unavailable(format!(
                "nothing changed: {file} cannot be written: {e}; check the disk, then try again"
            )));
        }
        *kept = next;
        self.store.set_active_handlers(server::names(&config));
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        self.replay.reconfigure(handlers).await;
        // Answered after the new handlers are in force: an event sent from now on is theirs.
        self.replay.snapshot().await;
        Ok(changed)
    }
}

impl Kept {
    fn note(&mut self, ping: Ping) {
        self.pings.push(ping);
        let over = self.pings.len().saturating_sub(PINGS_KEPT);
        self.pings.drain(..over);
    }
}

/// The configuration with the active endpoints as its handlers, and these ready to run.
fn plan(config: &Config, kept: &Kept) -> Result<(Config, Vec<RunnerHandler>), String> {
    let mut config = config.clone();
    let active = kept.endpoints.iter().filter(|e| e.active);
    config.handlers = active
        .map(|e| endpoint::configured(&e.id, &e.url, &e.events, &config.schedule))
        .collect::<Result<_, _>>()?;
    let handlers = server::runner_handlers(&config)?;
    let strict = |h: RunnerHandler| RunnerHandler { handler: Arc::new(Strict(h.handler)), ..h };
    Ok((config, handlers.into_iter().map(strict).collect()))
}

fn no_such_endpoint(id: &str) -> Problem {
    Problem::not_found(format!(
        "no endpoint {id:?}: never registered, or deleted; see GET /endpoints"
    ))
}

fn random_hex() -> Result<String, String> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(|e| format!("the system gives no random bytes: {e}"))?;
    Ok(hex::encode(bytes))
}

fn read(file: &Path) -> Result<Kept, String> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(e) => return Err(format!("cannot read {}: {e}; check the disk", file.display())),
    };
    serde_json::from_str(&text).map_err(|e| {
        format!(
            "cannot read {}: {e}; mend it, or delete it and register the endpoints again",
            file.display()
        )
    })
}

fn write(file: &Path, kept: &Kept) -> io::Result<()> {
    crate::files::replace(file, &serde_json::to_vec_pretty(kept)?)
}
