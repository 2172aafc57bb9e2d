//! Tells a person that something is wrong: dead letters, a service that is down, an old backlog, a disk that fills
//! up, a store that takes nothing. Notices do not go through the store, which may be what is wrong.

mod kept;
mod notice;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::task::JoinHandle;

use crate::clock::{Clock, Timestamp};
use crate::config::Notify;
use crate::delivery::{HandlerName, Outcome};
use crate::event::Event;
use crate::handler::{Built, Call};
use crate::replay::planner::HandlerSnapshot;
use crate::replay::runner::ReplayHandle;
use crate::schedule::Schedule;
use crate::store::{EventFilter, Health, Store};
use notice::{Details, Figures, Latest};
use watch::{Level, Owed, Subject, Watch};

/// How often things are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What it looks at, and what it runs.
pub struct Setup {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub replay: ReplayHandle,
    pub data_dir: PathBuf,
    pub notify: Notify,
    pub built: Built,
    /// Those whose dead letters, circuits and backlogs are watched.
    pub handlers: Vec<HandlerName>,
    /// A configured source, by whose secret a notice can be signed.
    pub source: String,
}

/// The running watch.
pub struct Notifier {
    stop: channel::Sender<bool>,
    tests: mpsc::Sender<Test>,
    task: JoinHandle<()>,
}

impl Notifier {
    #[must_use]
    pub fn start(setup: Setup) -> Notifier {
        let (stop, stopping) = channel::channel(false);
        let told = kept::read(&setup.data_dir);
        let mut watch = Watch::new(setup.notify.interval, told);
        watch.forget(|name| !setup.handlers.contains(name));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let run =
            Run { host: host.trim().to_owned(), setup, watch, pending: Vec::new(), unkept: false };
        let (tests, asked) = mpsc::channel(1);
        Notifier { stop, tests, task: tokio::spawn(run.until(stopping, asked)) }
    }

    /// Sends one notice of type `notice.test`, whatever `events` says.
    ///
    /// # Errors
    /// Why it was not delivered.
    pub async fn test(&self) -> Result<(), String> {
        let (told, hears) = oneshot::channel();
        let stopping = || "bluehook is stopping".to_owned();
        self.tests.send(told).await.map_err(|_| stopping())?;
        hears.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// What was not delivered is owed at the next start.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.task.await;
    }
}

/// Where to say what became of a test notice.
type Test = oneshot::Sender<Result<(), String>>;

/// A notice until it is delivered or given up.
struct Pending {
    subject: Subject,
    owed: Owed,
    event: Arc<Event>,
    made: u32,
    due: Timestamp,
}

struct Run {
    host: String,
    setup: Setup,
    watch: Watch,
    pending: Vec<Pending>,
    /// The last write of the state failed.
    unkept: bool,
}

impl Run {
    async fn until(mut self, mut stop: channel::Receiver<bool>, mut tests: mpsc::Receiver<Test>) {
        while !*stop.borrow() {
            tokio::select! {
                _ = stop.changed() => return,
                () = self.turn() => {}
            }
            tokio::select! {
                _ = stop.changed() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                Some(told) = tests.recv() => {
                    let outcome = tokio::select! {
                        _ = stop.changed() => return,
                        outcome = self.test() => outcome,
                    };
                    // Who asked may have gone.
                    let _ = told.send(outcome);
                }
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.setup.store.timeline().at(self.setup.clock.now())
    }

    async fn turn(&mut self) {
        let circuits = self.setup.replay.snapshot().await;
        let levels = self.levels(&circuits);
        self.watch.observe(&levels);
        let now = self.now();
        while let Some((subject, owed)) = self.watch.take(now) {
            let details = self.details(&subject, owed, &circuits);
            // In the log, too: for those who set up no handler for this type, and where it fails.
            tracing::warn!("{}", details.text);
            let wall = |time| self.setup.store.wall_of(time);
            let event =
                notice::event(Some((&subject, owed)), now, wall, &self.setup.source, details);
            if self.setup.built.filter.matches_kind(&event.new.kind) {
                let event = Arc::new(event);
                let due = now.plus(self.schedule().first_delay());
                self.pending.push(Pending { subject, owed, event, made: 0, due });
            } else {
                self.watch.ended(&subject, owed, true, now);
            }
        }
        self.keep();
        for i in (0..self.pending.len()).rev() {
            if self.pending[i].due <= self.now() {
                self.attempt(i).await;
            }
        }
        self.keep();
    }

    async fn test(&self) -> Result<(), String> {
        let text = "this is a test: notices arrive".to_owned();
        let details = Details { host: self.host.clone(), text, latest: None };
        let wall = |time| self.setup.store.wall_of(time);
        let now = self.now();
        let event = notice::event(None, now, wall, &self.setup.source, details);
        let call = Call {
            event: Arc::new(event),
            message: None,
            attempt: 1,
            now: wall(now),
            deadline: self.setup.notify.handler.timeout,
        };
        match self.setup.built.handler.run(call).await.outcome {
            Outcome::Delivered => Ok(()),
            failed => Err(failed.reason().unwrap_or_default().to_owned()),
        }
    }

    fn schedule(&self) -> &Schedule {
        &self.setup.notify.handler.schedule
    }

    async fn attempt(&mut self, i: usize) {
        let Some(pending) = self.pending.get_mut(i) else { return };
        pending.made += 1;
        let call = Call {
            event: Arc::clone(&pending.event),
            message: None,
            attempt: pending.made,
            now: self.setup.store.wall_of(self.setup.store.timeline().at(self.setup.clock.now())),
            deadline: self.setup.notify.handler.timeout,
        };
        let report = self.setup.built.handler.run(call).await;
        let now = self.now();
        let Some(pending) = self.pending.get_mut(i) else { return };
        let id = &pending.event.new.id;
        let (why, next) = match report.outcome {
            Outcome::Delivered => {
                let Pending { subject, owed, .. } = self.pending.swap_remove(i);
                return self.watch.ended(&subject, owed, true, now);
            }
            Outcome::Retry { reason, after_ms } => {
                let after = after_ms.map(Duration::from_millis);
                let schedule = &self.setup.notify.handler.schedule;
                (reason, schedule.next_due(pending.made, now, after, 0.0))
            }
            Outcome::Reject { reason } | Outcome::Uncounted { reason } => (reason, None),
        };
        match next {
            Some(due) => {
                tracing::warn!("a notice was not delivered, another attempt follows: {id}: {why}");
                pending.due = due;
            }
            None => {
                tracing::error!("a notice could not be delivered: {id}: {why}; check [notify]");
                let Pending { subject, owed, .. } = self.pending.swap_remove(i);
                self.watch.ended(&subject, owed, false, now);
            }
        }
    }

    /// How everything stands. Counts that can't be told now, while the index is being built say, are left out.
    fn levels(&self, circuits: &[HandlerSnapshot]) -> Vec<(Subject, Level)> {
        let (store, limits) = (&self.setup.store, &self.setup.notify);
        let now = self.now();
        let wall = store.wall_of(now);
        let bad = |is: bool| Level::Bad(is.then_some(now));
        let stats = store.stats();
        let mut levels = vec![
            (Subject::Store, bad(matches!(stats.health, Health::Full | Health::Failed))),
            (Subject::Disk, bad(stats.disk_free < limits.disk_free)),
            (Subject::Damage, Level::Count(stats.damage.len() as u64)),
        ];
        for name in &self.setup.handlers {
            let open = circuits.iter().find(|h| h.name == *name).and_then(|h| h.circuit);
            levels.push((Subject::Circuit(name.clone()), Level::Bad(open.map(|open| open.since))));
        }
        if store.catching_up().is_some() {
            return levels;
        }
        for name in &self.setup.handlers {
            let Some(stats) = store.known_stats(name) else { continue };
            levels.push((Subject::Dead(name.clone()), Level::Count(stats.dead)));
            let old = stats.oldest.is_some_and(|oldest| wall.since(oldest) > limits.backlog_age);
            levels.push((Subject::Backlog(name.clone()), bad(old)));
        }
        levels
    }

    fn details(&self, subject: &Subject, owed: Owed, circuits: &[HandlerSnapshot]) -> Details {
        let stats = self.setup.store.stats();
        let open = subject.handler().and_then(|name| {
            circuits
                .iter()
                .find(|handler| handler.name == *name)
                .and_then(|handler| handler.circuit)
        });
        let latest = match subject {
            Subject::Dead(handler) => self.latest_dead(handler),
            _ => None,
        };
        let figures = Figures {
            failures: open.map_or(0, |open| open.failures),
            backlog_age: self.setup.notify.backlog_age,
            free: stats.disk_free,
            free_limit: self.setup.notify.disk_free,
            note: stats.note,
            latest,
        };
        Details {
            host: self.host.clone(),
            text: notice::text(subject, owed, &figures),
            latest: figures.latest,
        }
    }

    fn latest_dead(&self, handler: &HandlerName) -> Option<Latest> {
        let filter = EventFilter { handler: Some(handler.to_string()), ..EventFilter::default() };
        let (event, stored) = self.setup.store.list_dead(&filter, None, 1).items.pop()?;
        let error = stored.attempts.last().and_then(|attempt| attempt.outcome.reason());
        let error = error.map(str::to_owned);
        Some(Latest { id: event.new.id, kind: event.new.kind, error })
    }

    /// Writes what was told, where that changed.
    fn keep(&mut self) {
        let Some(told) = self.watch.take_changes() else { return };
        match kept::write(&self.setup.data_dir, &told) {
            Ok(()) => self.unkept = false,
            Err(error) => {
                self.watch.not_kept();
                if !std::mem::replace(&mut self.unkept, true) {
                    tracing::warn!(%error, "cannot keep what notices told; a restart may tell it again");
                }
            }
        }
    }
}
