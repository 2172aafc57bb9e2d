//! A local stand-in for what Blue Replies' dashboard and sender do: endpoints, verification pings, test events,
//! five attempts, dead letters, replay, and a log of every request.
//!
//! It is the appliance turned round. Events made here go into a store of its own, and each active endpoint is
//! an `http` handler of the same replayer; so retries, restarts and replays are those of the appliance.
//! Blue Replies documents no more than an article; where that is silent, the strict reading is taken.

mod api;
mod endpoint;
mod events;
mod history;
mod registry;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::admin::{self, AdminContext};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, LogFormat};
use crate::schedule::{Schedule, VENDOR_DELAYS};
use crate::server::{self, EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, Signals};
use crate::signature::{Policy, Scheme, Secret};
use crate::store::disk::RealDisk;
use crate::store::{OpenError, Store, StoreOptions};
use registry::{Emulator, Parts};

const SOURCE: &str = "bluereplies";
const SECRET_FILE: &str = "secret";
const DISK_MAX: u64 = 512 << 20;
const DEDUP: Duration = Duration::from_secs(180 * 86_400);
const EVENTS_KEPT: Duration = Duration::from_secs(30 * 86_400);

#[derive(Clone, Debug)]
pub struct EmulateOptions {
    pub listen: SocketAddr,
    /// Divides the delays between attempts; from 1.
    pub time_scale: u32,
    pub data_dir: PathBuf,
    /// `None`: one is made at the first start, and kept in the data directory.
    pub secret: Option<String>,
    pub quiet: bool,
}

/// Runs the emulator until a signal stops it. Returns the exit code.
#[must_use]
pub fn emulate(options: &EmulateOptions) -> u8 {
    if !options.listen.ip().is_loopback() {
        let line = format!(
            "--listen {}: whoever reaches the emulator can make it send requests, so it listens on loopback \
             only; use 127.0.0.1:{}",
            options.listen,
            options.listen.port()
        );
        return server::refuse(EXIT_CONFIGURATION, &[line]);
    }
    let secret = match secret(options) {
        Ok(secret) => secret,
        Err(line) => return server::refuse(EXIT_CONFIGURATION, &[line]),
    };
    let schedule = match schedule(options.time_scale) {
        Ok(schedule) => schedule,
        Err(line) => return server::refuse(EXIT_CONFIGURATION, &[line]),
    };
    let config = config(options, Secret::new(secret.clone().into_bytes()), schedule);
    server::start_logging(&config.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let line =
                format!("cannot start: {error}; raise the limits of processes and open files");
            return server::refuse(EXIT_FAILED, &[line]);
        }
    };
    match runtime.block_on(run(options, config, &secret)) {
        Ok(()) => EXIT_OK,
        Err(line) => server::refuse(EXIT_FAILED, &[line]),
    }
}

/// The one given, else the one that an earlier start made, else a fresh one.
fn secret(options: &EmulateOptions) -> Result<String, String> {
    match options.secret.as_deref() {
        Some("") => {
            Err("the secret is empty; set WEBHOOK_SECRET to one, or unset it to have one made"
                .to_owned())
        }
        Some(secret) => Ok(secret.to_owned()),
        None => {
            let path = options.data_dir.join(SECRET_FILE);
            let kept =
                config::secrets::create_one(&path).and_then(|_| std::fs::read_to_string(&path));
            let kept = kept.map_err(|e| {
                format!(
                    "cannot keep a secret in {}: {e}; check the folder, or choose another with --data-dir",
                    path.display()
                )
            })?;
            match kept.trim() {
                "" => Err(format!("{} is empty; delete it to have a secret made", path.display())),
                secret => Ok(secret.to_owned()),
            }
        }
    }
}

/// Blue Replies' own, each delay divided and rounded up to a whole millisecond: never shorter than asked for.
fn schedule(time_scale: u32) -> Result<Schedule, String> {
    let scale = u64::from(time_scale);
    let divided = |delay: Duration| {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(ms.div_ceil(scale.max(1)))
    };
    Schedule::new(VENDOR_DELAYS.map(divided).to_vec(), 0.0)
}

/// What the appliance would have been configured with; the endpoints come as its handlers.
fn config(options: &EmulateOptions, secret: Secret, schedule: Schedule) -> Config {
    let signature = Policy {
        header: "x-bluereplies-signature".to_owned(),
        scheme: Scheme::Hex,
        secrets: vec![secret],
        canonical_json: true,
    };
    Config {
        followups: vec![],
        notify: None,
        data_dir: options.data_dir.clone(),
        // Nothing comes in: events are made here.
        intake: config::Intake {
            listen: vec![],
            body_max: 0,
            read_timeout: Duration::ZERO,
            ack_deadline: Duration::ZERO,
            connections_max: 0,
            connections_per_address: 0,
            requests_per_connection: 0,
            head_max: 0,
            headers_max: 0,
            bodies_max: 0,
            failed_signatures: config::Rate { count: 0, per: Duration::ZERO },
            trusted_proxies: vec![],
            tls: None,
        },
        sources: vec![config::Source {
            name: SOURCE.to_owned(),
            path: String::new(),
            signature,
            events: vec!["*".to_owned()],
            ping_types: vec![],
        }],
        schedule,
        limits: config::Limits::default(),
        retention: config::Retention {
            delivered: Some(EVENTS_KEPT),
            dead: None,
            dedup: DEDUP,
            disk_max: DISK_MAX,
        },
        admin: config::Admin { socket: PathBuf::new(), listen: Some(options.listen) },
        log: config::Log { level: tracing::Level::INFO, format: LogFormat::Auto },
        handlers: vec![],
        secrets: std::collections::BTreeMap::new(),
    }
}

async fn run(options: &EmulateOptions, config: Config, secret: &str) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|e| format!("cannot watch for signals: {e}"))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let listener = tokio::net::TcpListener::bind(options.listen).await.map_err(|e| {
        format!("cannot listen on {}: {e}; choose another address with --listen", options.listen)
    })?;
    let address = listener.local_addr().unwrap_or(options.listen);
    let store = open_store(&config, &clock)?;
    let parts = Parts { store: store.clone(), clock: Arc::clone(&clock), config };
    let emulator = match Emulator::start(parts) {
        Ok(emulator) => Arc::new(emulator),
        Err(line) => {
            store.close().await;
            return Err(line);
        }
    };
    let (stop, mut stopping) = watch::channel(false);
    let respond = api::responder(Arc::clone(&emulator), admin_context(&emulator, clock));
    let serving = tokio::spawn(async move {
        let stop = async move {
            // An error means that the sender is gone: that is a stop, too.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        admin::serve::serve("emulator", listener, respond, stop).await;
    });
    if !options.quiet {
        announce(options, address, secret);
    }
    // There is nothing to reload.
    signals.next_stop().await;
    tracing::info!("stopping; a second signal stops at once");
    let ending = async {
        let _ = stop.send(true);
        let _ = serving.await;
        emulator.replay.stop().await;
        store.close().await;
    };
    tokio::select! {
        () = ending => tracing::info!("stopped"),
        () = signals.next_stop() => tracing::warn!("stopped at once; what was running runs again at the next start"),
    }
    Ok(())
}

fn open_store(config: &Config, clock: &Arc<dyn Clock>) -> Result<Store, String> {
    let options =
        StoreOptions { data_dir: config.data_dir.clone(), retention: config.retention.clone() };
    Store::open(Arc::new(RealDisk), options, Arc::clone(clock)).map_err(|error| match error {
        OpenError::Locked { pid } => format!(
            "cannot open {}: another bluehook{} runs on it; stop that one, or choose another folder with --data-dir",
            config.data_dir.display(),
            pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        ),
        OpenError::Other(line) => line,
    })
}

/// Intake, of which there is none.
struct NothingArrives;

impl admin::Arrivals for NothingArrives {}

/// For the routes that the emulator has in common with the appliance.
fn admin_context(emulator: &Arc<Emulator>, clock: Arc<dyn Clock>) -> Arc<AdminContext> {
    let started_at = clock.now().wall;
    let configured = Arc::clone(emulator);
    Arc::new(AdminContext {
        store: emulator.store.clone(),
        config: Arc::new(move || configured.config()),
        clock,
        replay: Arc::new(server::Steering(emulator.replay.clone())),
        arrivals: Arc::new(NothingArrives),
        notices: None,
        door: None,
        intake: Vec::new(),
        tls: false,
        started_at,
        stopped: false,
    })
}

/// Where it listens, the secret or where it comes from, and what to type next.
fn announce(options: &EmulateOptions, address: SocketAddr, secret: &str) {
    let kept: &Path = &options.data_dir.join(SECRET_FILE);
    let secret = match options.secret {
        Some(_) => "signing secret: the one given (WEBHOOK_SECRET or --secret)".to_owned(),
        None => format!("signing secret: {secret} (kept in {})", kept.display()),
    };
    let scaled = match options.time_scale {
        1 => String::new(),
        n => format!("delays between attempts: divided by {n}\n"),
    };
    let text = format!(
        "listening on http://{address}\n\
         {secret}\n{scaled}\
         give your server that secret as WEBHOOK_SECRET, then register it:\n  \
         curl -sS http://{address}/endpoints -d '{{\"url\":\"http://127.0.0.1:3000/webhooks/bluereplies\"}}'\n\
         send it a test event, and see what became of it:\n  \
         curl -sS http://{address}/events -d '{{\"type\":\"message.received\"}}'\n  \
         curl -sS http://{address}/log\n"
    );
    // Nobody to tell where that is closed.
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn the_time_scale_divides_the_delays_and_never_rounds_down() {
        let due = |scale, made| {
            schedule(scale).unwrap().next_due(made, Timestamp(0), None, 0.0).map(|due| due.0)
        };
        let delays = |scale| [1, 2, 3, 4].map(|made| due(scale, made).unwrap());
        assert_eq!(delays(1), [30_000, 120_000, 600_000, 3_600_000]);
        assert_eq!(delays(600), [50, 200, 1_000, 6_000]);
        assert_eq!(delays(7), [4_286, 17_143, 85_715, 514_286]);
        assert_eq!(delays(u32::MAX), [1, 1, 1, 1]);
        assert_eq!(due(600, 5), None, "five attempts");
    }
}
