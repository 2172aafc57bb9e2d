//! Wiring: the order of start, reload and stop.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{self, AdminContext, Door, Guard};
use crate::automation::Automations;
use crate::clock::{BoxFuture, Clock, FileClock, SystemClock, Timestamp};
use crate::config::{self, Config, Listen, LoadOptions, Loaded, LogFormat};
use crate::delivery::{HandlerName, Seq};
use crate::event::Event;
use crate::handler::{self, BuildContext, Trust};
use crate::intake::{self, Intake};
use crate::message::MessageView;
use crate::notify::{self, Notifier};
use crate::process;
use crate::replay::planner::{HandlerPlan, HandlerSnapshot};
use crate::replay::runner::{self, ReplayHandle, RunnerHandler};
use crate::replay::tally::Tally;
use crate::store::disk::RealDisk;
use crate::store::{AppendError, OpenError, Store, StoreOptions};
use crate::systemd;

/// How long a stop waits for requests under way.
const DRAIN: Duration = Duration::from_secs(10);

pub(crate) const EXIT_OK: u8 = 0;
pub(crate) const EXIT_FAILED: u8 = 1;
pub(crate) const EXIT_CONFIGURATION: u8 = 2;

#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    pub load: LoadOptions,
    /// Tests move time through this file (see [`FileClock`]).
    pub virtual_clock: Option<PathBuf>,
}

/// Loads the configuration and compiles every handler's templates and filters.
///
/// # Errors
/// Everything that is wrong, one line each.
pub fn load(options: &LoadOptions) -> Result<Loaded, Vec<String>> {
    let loaded = Config::load(options)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let problems: Vec<String> = with_context(&loaded.config, |context| {
        let fault_of = |handler: &config::Handler| {
            let fault = handler::check(handler, context).err()?;
            let origin = loaded.handler_origins.get(&handler.name).map_or("", String::as_str);
            Some(format!("{origin}: {fault}"))
        };
        loaded.config.handlers.iter().filter_map(fault_of).collect()
    });
    let tls = loaded.config.intake.tls.as_ref();
    let tls = tls.and_then(|tls| intake::Tls::open(tls, &loaded.config.data_dir).err());
    let notify = loaded.config.notify.as_ref().and_then(|notify| {
        with_context(&loaded.config, |context| handler::check(&notify.handler, context)).err()
    });
    let problems: Vec<String> = problems
        .into_iter()
        .chain(notify.map(|fault| format!("[notify]: {fault}")))
        .chain(tls)
        .collect();
    if problems.is_empty() { Ok(loaded) } else { Err(problems) }
}

fn with_context<T>(config: &Config, f: impl FnOnce(&BuildContext<'_>) -> T) -> T {
    let env = |name: &str| std::env::var(name).ok();
    let trust = Trust::default();
    f(&BuildContext {
        secrets: &config.secrets,
        sources: &config.sources,
        env: &env,
        trust,
        limits: config.limits,
    })
}

pub(crate) fn runner_handlers(config: &Config) -> Result<Vec<RunnerHandler>, String> {
    with_context(config, |context| {
        config.handlers.iter().map(|handler| runner_handler(handler, context)).collect()
    })
}

fn runner_handler(
    configured: &config::Handler,
    context: &BuildContext<'_>,
) -> Result<RunnerHandler, String> {
    let built = handler::build(configured, context)?;
    let filter = Arc::new(built.filter);
    let by_kind = Arc::clone(&filter);
    let when = move |event: &Event, message: Option<&MessageView>| filter.when(event, message);
    let when: Option<runner::When> = by_kind.has_when().then(|| Arc::new(when) as runner::When);
    Ok(RunnerHandler {
        plan: HandlerPlan {
            name: configured.name.clone(),
            order: configured.order,
            concurrency: configured.concurrency,
            rate: configured.rate,
            schedule: configured.schedule.clone(),
            circuit: configured.circuit,
        },
        start: configured.start,
        timeout: configured.timeout,
        matches_kind: Arc::new(move |kind| by_kind.matches_kind(kind)),
        when,
        uses_message: built.uses_message,
        handler: built.handler,
    })
}

/// Runs the appliance until a signal stops it. Returns the exit code.
#[must_use]
pub fn serve(options: &ServeOptions) -> u8 {
    let created = match config::secrets::create_missing(&options.load) {
        Ok(created) => created,
        Err(problem) => return refuse(EXIT_CONFIGURATION, &[problem.to_string()]),
    };
    let loaded = match load(&options.load) {
        Ok(loaded) => loaded,
        Err(problems) => return refuse(EXIT_CONFIGURATION, &problems),
    };
    start_logging(&loaded.config.log);
    for path in &created {
        tracing::info!("created a signing secret in {}", path.display());
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    process::keep_memory_private();
    // Templates and bodies make short-lived garbage: few worker threads keep the arenas few.
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let line =
                format!("cannot start: {error}; raise the limits of processes and open files");
            return refuse(EXIT_FAILED, &[line]);
        }
    };
    match runtime.block_on(run(options, loaded, !created.is_empty())) {
        Ok(()) => EXIT_OK,
        Err(line) => refuse(EXIT_FAILED, &[line]),
    }
}

#[expect(clippy::print_stderr, reason = "a refusal to start is for whoever started it")]
pub(crate) fn refuse(code: u8, lines: &[String]) -> u8 {
    for line in lines {
        eprintln!("bluehook: {line}");
    }
    code
}

pub(crate) fn start_logging(log: &config::Log) {
    use std::io::IsTerminal;
    let terminal = std::io::stderr().is_terminal();
    // journald adds the time itself.
    let journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = tracing_subscriber::fmt()
        .with_max_level(log.level)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none());
    // A second call in one process (tests) keeps the first subscriber.
    match log.format {
        LogFormat::Json => drop(lines.json().try_init()),
        LogFormat::Text | LogFormat::Auto if journald && !terminal => {
            drop(lines.without_time().try_init());
        }
        LogFormat::Text | LogFormat::Auto => drop(lines.try_init()),
    }
}

fn open_store(config: &Config, clock: &Arc<dyn Clock>) -> Result<Store, String> {
    let options =
        StoreOptions { data_dir: config.data_dir.clone(), retention: config.retention.clone() };
    Store::open(Arc::new(RealDisk), options, Arc::clone(clock)).map_err(|error| match error {
        OpenError::Locked { pid } => format!(
            "cannot open {}: another bluehook{} runs on it; stop that one or set data_dir to another folder",
            config.data_dir.display(),
            pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        ),
        OpenError::Other(line) => line,
    })
}

/// What the admin API may do to the replayer.
pub(crate) struct Steering(pub(crate) ReplayHandle);

impl admin::ReplayControl for Steering {
    fn set_paused(
        &self,
        handler: HandlerName,
        paused: bool,
    ) -> BoxFuture<'_, Result<(), AppendError>> {
        Box::pin(self.0.set_paused(handler, paused))
    }

    fn nudge(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.nudge())
    }

    fn handlers(&self) -> BoxFuture<'_, Vec<HandlerSnapshot>> {
        Box::pin(self.0.snapshot())
    }

    fn tally(&self) -> Arc<Tally> {
        self.0.tally()
    }
}

struct Notifying(Arc<Appliance>);

impl admin::Notices for Notifying {
    fn test(&self) -> BoxFuture<'_, Result<(), admin::NotTold>> {
        Box::pin(async {
            let notifier = self.0.notifier.lock().await;
            let notifier = notifier.as_ref().ok_or(admin::NotTold::NobodyIsTold)?;
            notifier.test().await.map_err(admin::NotTold::Failed)
        })
    }
}

struct Arrived(Arc<Intake>);

impl admin::Arrivals for Arrived {
    fn rejections(&self) -> Vec<intake::Note> {
        self.0.rejections.snapshot()
    }

    fn counters(&self) -> intake::CounterView {
        self.0.counters.snapshot()
    }

    fn load(&self) -> intake::Load {
        self.0.load()
    }

    fn answered_in_ms(&self, seq: Seq) -> Option<u64> {
        self.0.counters.answered_in_ms(seq)
    }

    fn last_hour(&self) -> Vec<(Timestamp, intake::Minute)> {
        self.0.last_hour()
    }
}

struct Appliance {
    store: Store,
    intake: Arc<Intake>,
    tls: Option<Arc<intake::Tls>>,
    replay: ReplayHandle,
    automations: Automations,
    notifier: tokio::sync::Mutex<Option<Notifier>>,
    clock: Arc<dyn Clock>,
    config: Mutex<Arc<Config>>,
}

impl Appliance {
    /// Tells people as `config` says from now on.
    async fn notify(&self, config: &Config) {
        let mut notifier = self.notifier.lock().await;
        if let Some(running) = notifier.take() {
            running.stop().await;
        }
        let Some(notify) = &config.notify else { return };
        let built = match with_context(config, |context| handler::build(&notify.handler, context)) {
            Ok(built) => built,
            // Loading built it, too.
            Err(problem) => return tracing::error!("nobody is told of problems: {problem}"),
        };
        *notifier = Some(Notifier::start(notify::Setup {
            store: self.store.clone(),
            clock: Arc::clone(&self.clock),
            replay: self.replay.clone(),
            data_dir: config.data_dir.clone(),
            notify: notify.clone(),
            built,
            handlers: config.handlers.iter().map(|handler| handler.name.clone()).collect(),
            source: config.sources.first().map(|source| source.name.clone()).unwrap_or_default(),
        }));
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A bad new configuration is refused, and the running one stays.
    async fn reload(&self, options: &LoadOptions) {
        let refused = |problems: &[String]| {
            for problem in problems {
                tracing::error!("not reloaded, the running configuration stays: {problem}");
            }
        };
        let mut loaded = match load(options) {
            Ok(loaded) => loaded,
            Err(problems) => return refused(&problems),
        };
        fit_to_open_files(&mut loaded.config);
        let handlers = match runner_handlers(&loaded.config) {
            Ok(handlers) => handlers,
            Err(problem) => return refused(&[problem]),
        };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        for key in Config::changes_needing_restart(&self.config(), &loaded.config) {
            tracing::warn!("{key} changed; it takes effect at the next restart");
        }
        self.store.set_active_handlers(names(&loaded.config));
        self.intake.reload(&loaded.config);
        if let Some(tls) = &self.tls {
            tls.look();
        }
        self.replay.reconfigure(handlers).await;
        self.automations.reconfigure(&loaded.config.followups).await;
        self.notify(&loaded.config).await;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded.config);
        tracing::info!("configuration reloaded");
    }
}

pub(crate) fn names(config: &Config) -> Vec<HandlerName> {
    let handlers = config.handlers.iter().map(|handler| &handler.name);
    handlers.chain(config.followups.iter().map(|rule| &rule.name)).cloned().collect()
}

/// So that no number of connections and attempts keeps the log from its files.
fn fit_to_open_files(config: &mut Config) {
    let allowed = process::allow_open_files(config.open_files_wanted());
    if let Some(line) = config.fit_to_open_files(allowed) {
        tracing::warn!("{line}");
    }
}

async fn run(options: &ServeOptions, mut loaded: Loaded, first_start: bool) -> Result<(), String> {
    fit_to_open_files(&mut loaded.config);
    let mut signals = Signals::new().map_err(|e| format!("cannot watch for signals: {e}"))?;
    let clock: Arc<dyn Clock> = match &options.virtual_clock {
        Some(file) => Arc::new(FileClock::new(file.clone())),
        None => Arc::new(SystemClock::new()),
    };
    let config = Arc::new(loaded.config);
    let handlers = runner_handlers(&config)?;
    let tls = match &config.intake.tls {
        Some(tls) => Some(Arc::new(intake::Tls::open(tls, &config.data_dir)?)),
        None => None,
    };
    let store = open_store(&config, &clock)?;
    store.set_active_handlers(names(&config));
    let listening = async {
        let mut passed = listenfd::ListenFd::from_env();
        let bound = intake::bind(&config.intake.listen, &mut passed).await?;
        let faces = Faces::bind(&config, &clock).await?;
        Ok::<_, String>((bound, faces))
    };
    let (bound, faces) = match listening.await {
        Ok(bound) => bound,
        Err(line) => {
            store.close().await;
            return Err(line);
        }
    };
    let addresses = bound.addresses().to_vec();
    let (stop, stopping) = watch::channel(false);
    let intake = Intake::new(&config, store.clone(), Arc::clone(&clock));
    let replay = runner::start(store.clone(), Arc::clone(&clock), handlers, config.limits.attempts);
    let automations =
        Automations::start(store.clone(), Arc::clone(&clock), &config.followups).await;
    let appliance = Arc::new(Appliance {
        store,
        intake,
        tls: tls.clone(),
        replay,
        automations,
        notifier: tokio::sync::Mutex::default(),
        clock: Arc::clone(&clock),
        config: Mutex::new(config),
    });
    appliance.notify(&appliance.config()).await;
    let accepting =
        intake::serve(bound, tls.clone(), Arc::clone(&appliance.intake), stopping.clone(), DRAIN);
    let accepting = tokio::spawn(accepting);
    if let Some(tls) = tls {
        tokio::spawn(async move { tls.keep().await });
    }
    let watchdog = tokio::spawn(systemd::feed_watchdog(appliance.store.clone()));
    let page = faces.page.as_ref().map(|(_, door)| door.address);
    let administering =
        tokio::spawn(administer(faces, Arc::clone(&appliance), clock, addresses.clone(), stopping));
    let accepts = format!("accepting events on {}", Listen::list(&addresses));
    announce(&appliance.config(), &addresses, options, first_start);
    if let Some(address) = page {
        let verb = verb("debugger", options);
        tracing::info!("debugger page on http://{address}/: sign in with `{verb}`");
    }

    systemd::ready(&accepts);
    while signals.next().await == Wanted::Reload {
        systemd::reloading();
        appliance.reload(&options.load).await;
        systemd::ready(&accepts);
    }
    tracing::info!("stopping; a second signal stops at once");
    // Not watched over any more: the log ends on purpose.
    watchdog.abort();
    systemd::stopping();
    let ending = async {
        if let Some(notifier) = appliance.notifier.lock().await.take() {
            notifier.stop().await;
        }
        appliance.automations.stop().await;
        // Handlers may take seconds to end. Events are taken in until then: their sender waits 5 s for an answer.
        appliance.replay.stop().await;
        let _ = stop.send(true);
        let _ = accepting.await;
        let _ = administering.await;
        appliance.store.close().await;
    };
    tokio::select! {
        () = ending => tracing::info!("stopped"),
        () = signals.next_stop() => tracing::warn!("stopped at once; what was running runs again at the next start"),
    }
    Ok(())
}

/// Where the admin API listens.
struct Faces {
    socket: admin::socket::Socket,
    page: Option<(tokio::net::TcpListener, Arc<Door>)>,
}

impl Faces {
    async fn bind(config: &Config, clock: &Arc<dyn Clock>) -> Result<Faces, String> {
        let socket = admin::socket::bind(&config.admin.socket).await?;
        let Some(address) = config.admin.listen else { return Ok(Faces { socket, page: None }) };
        let page = async {
            let listener = admin::tcp::bind(address).await?;
            // Port 0 asks for any.
            let address = listener.local_addr().unwrap_or(address);
            let door = Door::open(&config.data_dir, address, Arc::clone(clock))?;
            Ok::<_, String>((listener, Arc::new(door)))
        };
        // Events are taken in all the same: nobody is to lose one for want of a page.
        let page = page.await.inspect_err(|line| tracing::error!("no debugger page: {line}")).ok();
        Ok(Faces { socket, page })
    }
}

async fn administer(
    faces: Faces,
    appliance: Arc<Appliance>,
    clock: Arc<dyn Clock>,
    addresses: Vec<Listen>,
    stopping: watch::Receiver<bool>,
) {
    let started_at = clock.now().wall;
    let context = AdminContext {
        store: appliance.store.clone(),
        replay: Arc::new(Steering(appliance.replay.clone())),
        arrivals: Arc::new(Arrived(Arc::clone(&appliance.intake))),
        notices: Some(Arc::new(Notifying(Arc::clone(&appliance)))),
        door: faces.page.as_ref().map(|(_, door)| Arc::clone(door)),
        tls: appliance.tls.is_some(),
        config: Arc::new(move || appliance.config()),
        clock,
        intake: addresses,
        started_at,
        stopped: false,
    };
    let stop = |mut stopping: watch::Receiver<bool>| async move {
        // An error means that the sender is gone: that is a stop, too.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let api = admin::routes::responder(Arc::new(context));
    let page = async {
        if let Some((listener, door)) = faces.page {
            let guard = Guard::new(door);
            admin::tcp::serve(listener, guard, Arc::clone(&api), stop(stopping.clone())).await;
        }
    };
    tokio::join!(
        admin::socket::serve(faces.socket, Arc::clone(&api), stop(stopping.clone())),
        page
    );
}

/// Says where events come in and, on the very first start, how to send one.
fn announce(config: &Config, addresses: &[Listen], options: &ServeOptions, first_start: bool) {
    for source in &config.sources {
        for address in addresses {
            match address {
                Listen::Tcp(address) => {
                    let scheme = if config.intake.tls.is_some() { "https" } else { "http" };
                    tracing::info!("listening on {scheme}://{address}{}", source.path);
                }
                Listen::Unix(path) => {
                    tracing::info!("listening on unix:{} for {}", path.display(), source.path);
                }
            }
        }
        if source.signature.secrets.is_empty() {
            tracing::warn!(
                "source {} has no signing secret: pings are answered, events get 503; set \
                 WEBHOOK_SECRET or its `secrets`, then reload or restart",
                source.name
            );
        }
    }
    if first_start {
        tracing::info!("send a first test event: {}", verb("trigger message.received", options));
    }
}

/// How this very program is called for that verb, from where it was started.
fn verb(verb: &str, options: &ServeOptions) -> String {
    let program = std::env::args_os().next().unwrap_or_else(|| "bluehook".into());
    let config = options.load.file.as_deref().map(|file| format!(" --config {}", file.display()));
    format!("{} {verb}{}", Path::new(&program).display(), config.unwrap_or_default())
}

#[derive(PartialEq, Eq)]
pub(crate) enum Wanted {
    Reload,
    Stop,
}

pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Wanted {
        tokio::select! {
            _ = self.terminate.recv() => Wanted::Stop,
            _ = self.interrupt.recv() => Wanted::Stop,
            _ = self.hang_up.recv() => Wanted::Reload,
        }
    }

    pub(crate) async fn next_stop(&mut self) {
        while self.next().await == Wanted::Reload {}
    }
}
