//! Does what the planner decides: reads the index, logs, runs handlers under their deadlines.
//!
//! One task holds the planner and turns everything that happens into its inputs. Everything that may
//! wait (a disk, an appender, a handler) happens in tasks of its own, so that no handler holds up
//! another.

mod queue;
mod reads;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};

use super::planner::{Command, HandlerPlan, HandlerSnapshot, Input, OpenCircuit, Planner};
use super::tally::Tally;
use crate::clock::{Clock, Timestamp};
use crate::config::Start;
use crate::delivery::{Attempt, DeliveryKey, Generation, HandlerName, Outcome, Seq};
use crate::event::Event;
use crate::handler::{Call, Handler, Report};
use crate::message::MessageView;
use crate::store::record::Record;
use crate::store::{AppendError, Progress, Store};
use queue::Queued;
use settle::Settled;

/// How long running handlers may go on after a stop was asked for.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long, after that, the log may take to note what became of them.
const STOP_LOG_GRACE: Duration = Duration::from_secs(2);
/// A handler ends within its own deadline; this much later it is dropped.
const DEADLINE_SLACK: Duration = Duration::from_secs(2);
/// The longest sleep: wake-ups are hints, none is relied on.
const SLEEP_MAX_MS: i64 = 1_000;
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// Answers on their way to the loop; who sends more waits.
const INBOX_MAX: usize = 1_024;

pub type MatchesKind = Arc<dyn Fn(&str) -> bool + Send + Sync>;
pub type When = Arc<dyn Fn(&Event, Option<&MessageView>) -> Result<bool, String> + Send + Sync>;

/// A configured handler, ready to run.
#[derive(Clone)]
pub struct RunnerHandler {
    pub plan: HandlerPlan,
    pub start: Start,
    pub timeout: Duration,
    /// The globs of `events`.
    pub matches_kind: MatchesKind,
    pub when: Option<When>,
    /// `when` or a template looks at the view of the event's message.
    pub uses_message: bool,
    pub handler: Arc<dyn Handler>,
}

/// A handler as configured at some time, with the first event that was new to it then.
struct Configured {
    handler: RunnerHandler,
    new_from: Seq,
}

/// What every task needs.
struct Shared {
    store: Store,
    clock: Arc<dyn Clock>,
    progress: watch::Receiver<Progress>,
    stopping: AtomicBool,
    inbox: mpsc::Sender<Message>,
    tally: Arc<Tally>,
}

enum Message {
    Input(Input),
    /// The start is logged: run.
    Launch(Launch),
}

struct Launch {
    configured: Arc<Configured>,
    key: DeliveryKey,
    generation: Generation,
    number: u32,
    /// The event; or what the attempt comes to without it.
    event: Result<Subject, Outcome>,
}

/// What an attempt is made for.
struct Subject {
    event: Arc<Event>,
    message: Option<Arc<MessageView>>,
}

impl RunnerHandler {
    fn message_of(&self, store: &Store, event: Seq) -> Option<MessageView> {
        self.uses_message.then(|| store.message_of(event)).flatten().map(|message| message.view)
    }
}

enum Request {
    Configure(Vec<RunnerHandler>),
    Paused(HandlerName, bool),
    Nudge,
    Snapshot(oneshot::Sender<Vec<HandlerSnapshot>>),
    Stop(oneshot::Sender<()>),
}

/// The way to the running replayer. When it has stopped, requests go nowhere.
#[derive(Clone)]
pub struct ReplayHandle {
    store: Store,
    requests: mpsc::Sender<Request>,
    /// Held from the record to the request: the planner hears of pauses in the order of the log.
    pausing: Arc<tokio::sync::Mutex<()>>,
    tally: Arc<Tally>,
}

impl ReplayHandle {
    /// Replaces the configured handlers. Those left out are parked; what runs may end.
    pub async fn reconfigure(&self, handlers: Vec<RunnerHandler>) {
        let _ = self.requests.send(Request::Configure(handlers)).await;
    }

    /// A paused handler starts nothing; what runs may end. Survives restarts.
    ///
    /// # Errors
    /// The pause could not be logged; nothing changed.
    pub async fn set_paused(&self, handler: HandlerName, paused: bool) -> Result<(), AppendError> {
        let record = Record::HandlerPaused { handler: handler.clone(), paused };
        let _in_order = self.pausing.lock().await;
        self.store.append_durable(record).await?;
        let _ = self.requests.send(Request::Paused(handler, paused)).await;
        Ok(())
    }

    /// Something became due (a replay): look now rather than within a second.
    pub async fn nudge(&self) {
        let _ = self.requests.send(Request::Nudge).await;
    }

    /// Empty where the replayer has stopped.
    pub async fn snapshot(&self) -> Vec<HandlerSnapshot> {
        let (reply, answer) = oneshot::channel();
        let _ = self.requests.send(Request::Snapshot(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// What the attempts of this process came to.
    #[must_use]
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Starts nothing more, gives what runs [`STOP_GRACE`], drops the rest. Returns when all that has
    /// ended is in the log.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        let _ = self.requests.send(Request::Stop(reply)).await;
        let _ = stopped.await;
    }
}

/// Starts the replayer, which runs `attempts_max` attempts at once; call within a tokio runtime. It begins when the index has caught up.
#[must_use]
pub fn start(
    store: Store,
    clock: Arc<dyn Clock>,
    handlers: Vec<RunnerHandler>,
    attempts_max: usize,
) -> ReplayHandle {
    let (requests, incoming) = mpsc::channel(64);
    let (inbox_in, inbox) = mpsc::channel(INBOX_MAX);
    let tally = Arc::new(Tally::default());
    let shared = Arc::new(Shared {
        progress: store.progress(),
        store: store.clone(),
        clock,
        stopping: AtomicBool::new(false),
        inbox: inbox_in,
        tally: Arc::clone(&tally),
    });
    let (settled, settling) = mpsc::unbounded_channel();
    let settling = tokio::spawn(settle::run(Arc::clone(&shared), settling));
    let mut runner = Runner {
        shared,
        planner: Planner::new(fastrand::Rng::new(), attempts_max),
        epoch: 0,
        handlers: HashMap::new(),
        queues: HashMap::new(),
        queue_tasks: JoinSet::new(),
        attempts: JoinSet::new(),
        running: HashMap::new(),
        settled,
        settling,
    };
    runner.configure(handlers);
    tokio::spawn(runner.run(inbox, incoming));
    ReplayHandle { store, requests, pausing: Arc::default(), tally }
}

/// What is known of a running attempt besides its report.
struct Running {
    key: DeliveryKey,
    generation: Generation,
    number: u32,
    started_at: Timestamp,
    started_boot_ms: i64,
}

struct Runner {
    shared: Arc<Shared>,
    planner: Planner,
    /// As the planner knows it.
    epoch: u64,
    handlers: HashMap<HandlerName, Arc<Configured>>,
    /// One per handler. Unbounded as channels, bounded by what the planner lets start and park.
    queues: HashMap<HandlerName, mpsc::UnboundedSender<Queued>>,
    queue_tasks: JoinSet<()>,
    attempts: JoinSet<Report>,
    running: HashMap<Id, Running>,
    /// To the task that logs outcomes. Unbounded as a channel, bounded by what the planner lets run.
    settled: mpsc::UnboundedSender<Settled>,
    settling: JoinHandle<()>,
}

impl Runner {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        mut requests: mpsc::Receiver<Request>,
    ) {
        let mut progress = self.shared.progress.clone();
        let first = *progress.borrow_and_update();
        self.progress(first);
        let stopped = loop {
            let clock = Arc::clone(&self.shared.clock);
            let sleep = clock.sleep_until(self.wake_boot_ms());
            tokio::select! {
                changed = progress.changed() => {
                    if changed.is_err() {
                        break None;
                    }
                    let now = *progress.borrow_and_update();
                    self.progress(now);
                }
                Some(message) = inbox.recv() => self.message(message),
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                Some(_) = self.queue_tasks.join_next() => {}
                request = requests.recv() => match request {
                    Some(Request::Configure(handlers)) => self.configure(handlers),
                    Some(Request::Paused(handler, true)) => self.step(Input::Pause(handler)),
                    Some(Request::Paused(handler, false)) => self.step(Input::Resume(handler)),
                    Some(Request::Nudge) => self.step(Input::Nudge),
                    Some(Request::Snapshot(reply)) => {
                        let _ = reply.send(self.planner.snapshot());
                    }
                    Some(Request::Stop(reply)) => break Some(reply),
                    None => break None,
                },
                () = sleep => self.step(Input::Tick),
            }
        };
        drop(requests);
        self.wind_down(inbox).await;
        if let Some(reply) = stopped {
            let _ = reply.send(());
        }
    }

    /// Nothing starts any more; what runs gets its grace, and is logged.
    async fn wind_down(mut self, mut inbox: mpsc::Receiver<Message>) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.queues.clear();
        let grace = tokio::time::sleep(STOP_GRACE);
        let end = tokio::time::sleep(STOP_GRACE + STOP_LOG_GRACE);
        tokio::pin!(grace, end);
        let mut dropped = false;
        while !(self.attempts.is_empty() && self.queue_tasks.is_empty() && inbox.is_empty()) {
            tokio::select! {
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                Some(message) = inbox.recv() => self.message(message),
                Some(_) = self.queue_tasks.join_next() => {}
                () = &mut grace, if !dropped => {
                    dropped = true;
                    self.attempts.abort_all();
                }
                () = &mut end => return cut_off(),
            }
        }
        let Runner { settled, mut settling, .. } = self;
        drop(settled);
        loop {
            tokio::select! {
                _ = &mut settling => return,
                // Answers that nobody waits for any more; left there they would hold up the task.
                Some(_) = inbox.recv() => {}
                () = &mut end => return cut_off(),
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.shared.store.timeline().at(self.shared.clock.now())
    }

    fn wake_boot_ms(&self) -> i64 {
        let now = self.now();
        let latest = Timestamp(now.0.saturating_add(SLEEP_MAX_MS));
        let wake = self.planner.wake_at(now).map_or(latest, |wake| wake.min(latest));
        self.shared.store.timeline().boot_ms_of(wake)
    }

    fn step(&mut self, input: Input) {
        for command in self.planner.step(input, self.now()) {
            self.execute(command);
        }
    }

    fn progress(&mut self, now: Progress) {
        self.epoch = now.epoch;
        self.step(Input::Progress {
            epoch: now.epoch,
            durable: now.durable,
            applied: now.applied,
            caught_up: now.caught_up,
        });
    }

    fn configure(&mut self, handlers: Vec<RunnerHandler>) {
        let plans = handlers.iter().map(|handler| handler.plan.clone()).collect();
        let next = self.shared.store.next_seq();
        let known = std::mem::take(&mut self.handlers);
        for handler in handlers {
            let name = handler.plan.name.clone();
            let new_from = known.get(&name).map_or(next, |before| before.new_from);
            if !known.contains_key(&name) && handler.start == Start::Now {
                self.enter(name.clone(), new_from);
            }
            if !self.queues.contains_key(&name) {
                let (queue, queued) = mpsc::unbounded_channel();
                self.queue_tasks.spawn(queue::run(Arc::clone(&self.shared), queued));
                self.queues.insert(name.clone(), queue);
            }
            self.handlers.insert(name, Arc::new(Configured { handler, new_from }));
        }
        self.queues.retain(|name, _| self.handlers.contains_key(name));
        self.step(Input::Configure(plans));
    }

    /// A handler that the store has never met begins here, even if this process ends before the index can
    /// tell; for one that it has met the record means nothing.
    fn enter(&self, handler: HandlerName, from: Seq) {
        let store = self.shared.store.clone();
        tokio::spawn(async move {
            let record = Record::HandlerSeen { handler, from };
            if let Err(error) = store.append(record).await {
                tracing::warn!(
                    ?error,
                    "a new handler could not be entered yet; trying again later"
                );
            }
        });
    }

    fn execute(&mut self, command: Command) {
        if let Command::Settle { key, attempt, next } = command {
            let record = Record::AttemptFinished { key: key.clone(), attempt, next };
            let _ = self.settled.send(Settled { key, record });
            return;
        }
        if let Command::Circuit { handler, open } = command {
            return told(&handler, open);
        }
        if self.shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let name = match &command {
            Command::Load { handler, .. }
            | Command::FetchHeads { handler, .. }
            | Command::FetchDue { handler, .. }
            | Command::Circuit { handler, .. }
            | Command::Moved { handler, .. } => handler,
            Command::Start { key, .. }
            | Command::Park { key, .. }
            | Command::Settle { key, .. } => &key.handler,
        };
        let (Some(configured), Some(queue)) = (self.handlers.get(name), self.queues.get(name))
        else {
            return;
        };
        let configured = Arc::clone(configured);
        match command {
            Command::Load { .. } | Command::FetchHeads { .. } | Command::FetchDue { .. } => {
                tokio::spawn(reads::answer(Arc::clone(&self.shared), configured, command));
            }
            command => {
                let _ = queue.send(Queued { configured, epoch: self.epoch, command });
            }
        }
    }

    fn message(&mut self, message: Message) {
        // Where a record was logged in an epoch that the planner has not heard of, it hears of that first.
        let now = *self.shared.progress.borrow();
        if now.epoch != self.epoch {
            self.progress(now);
        }
        match message {
            Message::Input(input) => self.step(input),
            Message::Launch(launch) => self.launch(launch),
        }
    }

    fn launch(&mut self, launch: Launch) {
        let Launch { configured, key, generation, number, event } = launch;
        let now = self.shared.clock.now();
        let deadline = configured.handler.timeout;
        let attempt = async move {
            let Subject { event, message } = match event {
                Ok(subject) => subject,
                Err(outcome) => return bare(outcome),
            };
            let call = Call { event, message, attempt: number, now: now.wall, deadline };
            let run = configured.handler.handler.run(call);
            match tokio::time::timeout(deadline + DEADLINE_SLACK, run).await {
                Ok(report) => report,
                Err(_) => bare(Outcome::retry(format!("no end within {deadline:?}"))),
            }
        };
        let id = self.attempts.spawn(attempt).id();
        let (started_at, started_boot_ms) = (now.wall, now.boot_ms);
        let running = Running { key, generation, number, started_at, started_boot_ms };
        self.running.insert(id, running);
    }

    fn ended(&mut self, ended: Result<(Id, Report), JoinError>) {
        let (id, report) = match ended {
            Ok(ended) => ended,
            Err(e) if e.is_cancelled() => {
                (e.id(), bare(Outcome::retry("stopped: bluehook was shut down")))
            }
            Err(e) => {
                tracing::error!("a handler panicked; the attempt counts as failed");
                (e.id(), bare(Outcome::retry("the handler panicked: a bug in bluehook")))
            }
        };
        let Some(running) = self.running.remove(&id) else { return };
        let now = self.shared.clock.now();
        self.shared.tally.note(&running.key.handler, &report.outcome, now);
        let took_ms = now.boot_ms.saturating_sub(running.started_boot_ms);
        let attempt = Attempt {
            number: running.number,
            generation: running.generation,
            started_at: running.started_at,
            took_ms: u64::try_from(took_ms).unwrap_or(0),
            outcome: report.outcome,
            request: report.request,
            response: report.response,
        };
        self.step(Input::Finished { key: running.key, attempt });
    }
}

impl Shared {
    async fn send(&self, input: Input) {
        let _ = self.inbox.send(Message::Input(input)).await;
    }

    /// Appends, all or none, however long the store takes to accept, while `still` holds for the current
    /// epoch. With the last number comes the epoch it is good for, where that did not change meanwhile.
    async fn append(
        &self,
        records: &[Record],
        still: impl Fn(u64) -> bool,
    ) -> Option<(Seq, Option<u64>)> {
        let mut back_off = BACK_OFF_MIN;
        loop {
            let Progress { epoch, log_epoch, .. } = *self.progress.borrow();
            if !still(epoch) {
                return None;
            }
            // Not in another epoch of the log than the one heard of: what was logged before may be gone.
            match self.store.append_in(log_epoch, records).await {
                Ok(seq) => {
                    let now = self.progress.borrow().epoch;
                    return Some((seq, (now == epoch).then_some(epoch)));
                }
                Err(AppendError::Closed) => return None,
                Err(AppendError::Full | AppendError::Failed | AppendError::Busy) => {
                    tokio::time::sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }
}

/// What the log says of a circuit that opened or closed.
fn told(handler: &HandlerName, open: Option<OpenCircuit>) {
    match open {
        Some(OpenCircuit { failures, .. }) => tracing::warn!(
            "handler {handler} failed {failures} times in a row: its deliveries wait, and use up no \
             attempts, until a probe succeeds; see `bluehook status`"
        ),
        None => tracing::info!("handler {handler} goes on: its circuit is closed"),
    }
}

fn cut_off() {
    tracing::warn!(
        "stopped before the log took in what the handlers came to; those attempts will count as cut off"
    );
}

/// A report of which there is no more to say than its outcome.
fn bare(outcome: Outcome) -> Report {
    Report { outcome, request: None, response: None }
}
