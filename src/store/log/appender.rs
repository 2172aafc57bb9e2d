//! Group commit: the only maker of receipts.
//!
//! [`AppenderCore`] is synchronous and decides nothing by itself: a batch in, each request completed.
//! [`Appender`] is the handle to a thread that feeds one; the simulator feeds one without a thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::queue::{Batch, CloseOnDrop, Queue};
use super::request::{Done, Priority, Request, Told};
use super::writer::{LogWriter, is_full};
use super::{Limits, SegmentInfo};
use crate::clock::{Clock, Timeline, Timestamp};
use crate::defect::{self, Defect};
use crate::delivery::Seq;
use crate::store::AppendError;
use crate::tally::{Durations, DurationsView};

/// Records that nobody waits for are durable this much later. Real time, whatever clock the store runs
/// by: it bounds what a power cut may take.
const SYNC_WITHIN: Duration = Duration::from_secs(1);
/// How often a full disk is looked at again.
const SPACE_CHECK: Duration = Duration::from_millis(200);
const REOPEN_AFTER: Duration = Duration::from_secs(1);
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(30);
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// Proof that a record is durable. Only this file makes one, and only after the sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    seq: Seq,
    duplicate: bool,
}

impl Receipt {
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        self.duplicate
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogHealth {
    #[default]
    Ok,
    Full,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LogProgress {
    /// Raised by every reopening after a fault: records above `durable` are gone and their numbers
    /// used again.
    pub epoch: u64,
    pub written: Seq,
    pub durable: Seq,
    pub health: LogHealth,
    /// Why `health` is not `Ok`.
    pub fault: Option<String>,
}

pub struct AppenderCore {
    writer: LogWriter,
    limits: Limits,
    broken: Option<Broken>,
    reopen_after: Duration,
    shared: Arc<Shared>,
}

struct Broken {
    error: AppendError,
    why: String,
}

/// What handles see without asking the thread.
struct Shared {
    progress: watch::Sender<LogProgress>,
    segments: Mutex<Vec<SegmentInfo>>,
    log_bytes: AtomicU64,
    /// How long each sync took.
    syncs: Durations,
    /// Rises when the thread begins something and when it is done with it: odd while it works.
    turns: AtomicU64,
}

/// What the thread was doing at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    turns: u64,
    /// There is nothing to do.
    idle: bool,
}

impl Pulse {
    /// Whether the thread has got on since `before`, or had no reason to.
    #[must_use]
    pub fn goes_on(self, before: Option<Pulse>) -> bool {
        self.idle || before.is_none_or(|before| before.turns != self.turns)
    }
}

/// How far down the disk's free space is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Room {
    None,
    Bookkeeping,
    Events,
}

impl AppenderCore {
    #[must_use]
    pub fn new(writer: LogWriter) -> AppenderCore {
        let (progress, _) = watch::channel(LogProgress::default());
        let shared = Arc::new(Shared {
            progress,
            segments: Mutex::default(),
            log_bytes: AtomicU64::new(0),
            syncs: Durations::default(),
            turns: AtomicU64::new(0),
        });
        let limits = Limits::default();
        let core =
            AppenderCore { writer, limits, broken: None, reopen_after: Duration::ZERO, shared };
        core.publish(core.room(), 0);
        core
    }

    #[must_use]
    pub fn with_limits(self, limits: Limits) -> AppenderCore {
        AppenderCore { limits, ..self }
    }

    #[must_use]
    pub fn writer(&self) -> &LogWriter {
        &self.writer
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<LogProgress> {
        self.shared.progress.subscribe()
    }

    /// Completes every request: appends, one write, one sync if anyone waits for it. `time` is the
    /// schedule time that the records carry.
    pub fn run_batch(&mut self, time: Timestamp, requests: Vec<Request>) {
        if let Some(broken) = &self.broken {
            let error = broken.error;
            requests.into_iter().for_each(|r| r.refuse(error));
            return;
        }
        let room = self.room();
        let epoch = self.shared.progress.borrow().epoch;
        let mut waiting = Vec::new();
        let mut removals = Vec::new();
        for request in requests {
            match request {
                Request::Append { kind, payload, priority, done } => {
                    let needed = match priority {
                        Priority::Event => Room::Events,
                        Priority::Bookkeeping => Room::Bookkeeping,
                    };
                    if room < needed {
                        done.refuse(AppendError::Full);
                    } else {
                        let (seq, _) = self.writer.append(time, kind, &payload);
                        waiting.push((seq, done));
                    }
                }
                Request::Series { epoch: wanted, records, done } => {
                    if wanted != epoch {
                        done.refuse(AppendError::Failed);
                    } else if room < Room::Bookkeeping {
                        done.refuse(AppendError::Full);
                    } else {
                        let mut last = self.writer.written();
                        for (kind, payload) in &records {
                            (last, _) = self.writer.append(time, *kind, payload);
                        }
                        waiting.push((last, done));
                    }
                }
                Request::Remove { segment, done } => removals.push((segment, done)),
                Request::Damaged { segment } => self.writer.mark_damaged(segment),
            }
        }
        self.commit(waiting, room);
        if removals.is_empty() {
            return self.reopen_at_once();
        }
        let mut removed = Vec::new();
        for (segment, done) in removals {
            let result = self.writer.remove_segment(segment).map_err(|error| {
                tracing::warn!(segment, %error, "could not remove a log segment");
                AppendError::Failed
            });
            removed.push((done, result));
        }
        // First: who hears that a segment is gone no longer finds it listed.
        self.publish(room, 0);
        for (done, result) in removed {
            _ = done.send(result);
        }
        self.reopen_at_once();
    }

    /// The first try after a fault does not wait.
    fn reopen_at_once(&mut self) {
        if self.broken.is_some() && self.reopen_after.is_zero() {
            self.reopen();
        }
    }

    fn commit(&mut self, waiting: Vec<(Seq, Done)>, room: Room) {
        if let Err(error) = self.writer.write() {
            self.fail(&error, waiting.into_iter().map(|(_, done)| done));
            return;
        }
        let mut for_sync = Vec::with_capacity(waiting.len());
        let mut heard = Vec::new();
        for (seq, done) in waiting {
            match done {
                Done::Written(done) => heard.push((seq, done)),
                Done::Durable(done) => for_sync.push((seq, done)),
            }
        }
        // Every change wakes those who follow: not for what the sync changes in a moment anyway.
        if for_sync.is_empty() || !heard.is_empty() {
            self.publish(room, 0);
        }
        for (seq, done) in heard {
            _ = done.send(Ok(seq));
        }
        if for_sync.is_empty() {
            return;
        }
        if defect::has(Defect::EarlyReceipt) {
            for (seq, done) in std::mem::take(&mut for_sync) {
                done.hear(Ok(Receipt { seq, duplicate: false }));
            }
        }
        if let Err(error) = self.timed_sync() {
            self.fail(&error, for_sync.into_iter().map(|(_, done)| Done::Durable(done)));
            return;
        }
        self.reopen_after = Duration::ZERO;
        // First: who holds a receipt finds the record durable.
        self.publish(room, 0);
        for (seq, done) in for_sync {
            done.hear(Ok(Receipt { seq, duplicate: false }));
        }
    }

    fn timed_sync(&mut self) -> std::io::Result<()> {
        let begun = Instant::now();
        let synced = self.writer.sync();
        self.shared.syncs.note(begun.elapsed());
        synced
    }

    fn fail(&mut self, error: &std::io::Error, waiting: impl Iterator<Item = Done>) {
        tracing::error!(%error, "the log could not be written; nothing is acknowledged until it is reopened");
        let refusal = if is_full(error) { AppendError::Full } else { AppendError::Failed };
        self.broken = Some(Broken { error: refusal, why: error.to_string() });
        self.publish(Room::Events, 0);
        waiting.for_each(|done| done.refuse(refusal));
    }

    /// Makes written records durable though nobody waits for them.
    pub fn sync(&mut self) {
        if self.broken.is_some() {
            return;
        }
        match self.timed_sync() {
            Ok(()) => self.reopen_after = Duration::ZERO,
            Err(error) => self.fail(&error, std::iter::empty()),
        }
        self.publish(self.room(), 0);
        self.reopen_at_once();
    }

    /// Tries to go on after a fault. Does nothing where there was none.
    pub fn reopen(&mut self) {
        let room = self.room();
        let Some(broken) = &mut self.broken else { return };
        if broken.error == AppendError::Full {
            self.reopen_after = REOPEN_AFTER;
            if room == Room::None {
                return;
            }
        } else {
            self.reopen_after = (self.reopen_after * 2).clamp(REOPEN_AFTER, REOPEN_AFTER_MAX);
        }
        match self.writer.reopen() {
            Ok(()) => {
                tracing::info!(durable = self.writer.durable(), "the log was reopened");
                self.broken = None;
                self.publish(room, 1);
            }
            Err(error) => {
                broken.why = error.to_string();
                self.publish(room, 0);
            }
        }
    }

    /// After how long, at most, something wants to be done though no request comes: see [`Self::wake`].
    #[must_use]
    pub fn wake_after(&self) -> Option<Duration> {
        if self.broken.is_some() {
            Some(self.reopen_after)
        } else if self.writer.durable() < self.writer.written() {
            Some(SYNC_WITHIN)
        } else if self.shared.progress.borrow().health != LogHealth::Ok {
            Some(SPACE_CHECK)
        } else {
            None
        }
    }

    /// Does what [`Self::wake_after`] announced.
    pub fn wake(&mut self) {
        if self.broken.is_some() {
            self.reopen();
        } else {
            self.sync();
        }
    }

    /// To be called when nobody waits: makes the next segment ready where it will soon be needed.
    pub fn prepare(&mut self) {
        if self.broken.is_none()
            && let Err(error) = self.writer.prepare()
        {
            tracing::debug!(%error, "could not prepare the next log segment");
        }
    }

    /// A look costs microseconds, a batch costs a sync: no need to remember.
    fn room(&self) -> Room {
        let Ok(space) = self.writer.free_space() else {
            // Then the write will tell.
            return Room::Events;
        };
        let reserve =
            self.limits.reserve_bytes.unwrap_or_else(|| RESERVE_BYTES.min(space.total / 20));
        if space.free >= reserve {
            Room::Events
        } else if space.free >= reserve / 4 {
            Room::Bookkeeping
        } else {
            Room::None
        }
    }

    fn publish(&self, room: Room, epochs: u64) {
        let (health, fault) = match &self.broken {
            Some(Broken { error: AppendError::Full, why }) => (LogHealth::Full, Some(why.clone())),
            Some(Broken { why, .. }) => (LogHealth::Failed, Some(why.clone())),
            None if room < Room::Events => {
                (LogHealth::Full, Some("the disk is nearly full; free some space".to_owned()))
            }
            None => (LogHealth::Ok, None),
        };
        let (written, durable) = (self.writer.written(), self.writer.durable());
        self.shared.publish_segments(&self.writer);
        self.shared.progress.send_if_modified(|p| {
            let epoch = p.epoch + epochs;
            let new = LogProgress { epoch, written, durable, health, fault };
            let changed = *p != new;
            *p = new;
            changed
        });
    }
}

impl Shared {
    fn publish_segments(&self, writer: &LogWriter) {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.clear();
        segments.extend(writer.segments());
        self.log_bytes.store(segments.iter().map(|s| s.bytes).sum(), Ordering::Relaxed);
    }
}

/// Handle to the appender's thread. Cheap to clone; the thread ends when the last one is dropped.
#[derive(Clone)]
pub struct Appender {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    ended: watch::Receiver<bool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Appender {
    /// # Errors
    /// No thread could be started.
    pub fn spawn(
        core: AppenderCore,
        clock: Arc<dyn Clock>,
        timeline: Timeline,
        limits: Limits,
    ) -> std::io::Result<Appender> {
        let mut core = core.with_limits(limits);
        let shared = core.shared.clone();
        let queue = Arc::new(Queue::new(limits));
        let (end, ended) = watch::channel(false);
        let feed = queue.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            let _closed_however_it_ends = CloseOnDrop(feed.clone());
            while let Some(batch) = feed.next(core.wake_after()) {
                core.shared.turns.fetch_add(1, Ordering::Relaxed);
                match batch {
                    Batch::Requests(requests) => {
                        core.run_batch(timeline.at(clock.now()), requests);
                    }
                    Batch::Wake => core.wake(),
                }
                if feed.is_idle() || core.writer.is_nearly_full() {
                    core.prepare();
                }
                core.shared.turns.fetch_add(1, Ordering::Relaxed);
            }
            core.sync();
            // The files are closed before anyone hears of it.
            drop(core);
            end.send_replace(true);
        })?;
        Ok(Appender { handle: Arc::new(Handle { shared, queue, ended }) })
    }

    /// Stores an event: returns when it is durable.
    ///
    /// # Errors
    /// See [`AppendError`]; the record may be durable or not.
    pub async fn durable(&self, kind: u8, payload: Vec<u8>) -> Result<Receipt, AppendError> {
        let done = self.submit_durable(kind, payload, Priority::Event);
        done.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Logs bookkeeping, one record after the other, all or none: returns the number of the last when
    /// they are written. Refused with `Failed` unless the log is in `epoch`.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn written_in(
        &self,
        epoch: u64,
        records: Vec<(u8, Vec<u8>)>,
    ) -> Result<Seq, AppendError> {
        let (done, result) = oneshot::channel();
        self.handle.queue.push(Request::Series { epoch, records, done: Done::Written(done) });
        result.await.unwrap_or(Err(AppendError::Closed))
    }

    /// As [`Appender::written_in`], but durable when it returns: for whoever goes on once it is in the index.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn durable_in(
        &self,
        epoch: u64,
        records: Vec<(u8, Vec<u8>)>,
    ) -> Result<Seq, AppendError> {
        let (done, result) = oneshot::channel();
        let done = Done::Durable(Box::new(done));
        self.handle.queue.push(Request::Series { epoch, records, done });
        result.await.unwrap_or(Err(AppendError::Closed)).map(|receipt| receipt.seq())
    }

    /// Logs bookkeeping: returns when it is written. It is durable within a second.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn written(&self, kind: u8, payload: Vec<u8>) -> Result<Seq, AppendError> {
        let done = self.submit_written(kind, payload, Priority::Bookkeeping);
        done.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Puts an append in the queue and returns at once; requests keep their order.
    #[must_use]
    pub fn submit_durable(
        &self,
        kind: u8,
        payload: Vec<u8>,
        priority: Priority,
    ) -> oneshot::Receiver<Result<Receipt, AppendError>> {
        let (done, result) = oneshot::channel();
        self.submit_telling(kind, payload, priority, Box::new(done));
        result
    }

    /// As [`Appender::submit_durable`].
    pub fn submit_telling(
        &self,
        kind: u8,
        payload: Vec<u8>,
        priority: Priority,
        told: Box<dyn Told>,
    ) {
        let done = Done::Durable(told);
        self.handle.queue.push(Request::Append { kind, payload, priority, done });
    }

    /// As [`Appender::submit_durable`], for a record that nobody waits to be durable.
    #[must_use]
    pub fn submit_written(
        &self,
        kind: u8,
        payload: Vec<u8>,
        priority: Priority,
    ) -> oneshot::Receiver<Result<Seq, AppendError>> {
        let (done, result) = oneshot::channel();
        let done = Done::Written(done);
        self.handle.queue.push(Request::Append { kind, payload, priority, done });
        result
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<LogProgress> {
        self.handle.shared.progress.subscribe()
    }

    /// A receipt for a record whose first copy is durable already; `None` while it is not. `seq` must
    /// be known from a record that was read or acknowledged in this epoch; 0 is an event that is gone.
    #[must_use]
    pub fn duplicate_of(&self, seq: Seq) -> Option<Receipt> {
        let durable = self.handle.shared.progress.borrow().durable;
        (seq <= durable).then_some(Receipt { seq, duplicate: true })
    }

    /// Drops the oldest segment; one marked damaged is kept aside.
    ///
    /// # Errors
    /// It is not the oldest sealed one, or the disk failed (the reason is in the service log).
    pub async fn remove_segment(&self, segment: u32) -> Result<(), AppendError> {
        let (done, result) = oneshot::channel();
        self.handle.queue.push(Request::Remove { segment, done });
        result.await.unwrap_or(Err(AppendError::Closed))
    }

    /// A reader found damage in the segment: it will be kept aside when it is dropped.
    pub fn mark_damaged(&self, segment: u32) {
        self.handle.queue.push(Request::Damaged { segment });
    }

    /// Oldest first, as of the last batch.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.handle.shared.segments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All segments together, as of the last batch.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.handle.shared.log_bytes.load(Ordering::Relaxed)
    }

    /// For whoever watches over the thread.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        let turns = self.handle.shared.turns.load(Ordering::Relaxed);
        let waits = turns.is_multiple_of(2) && self.handle.queue.is_idle();
        Pulse { turns, idle: waits && !self.handle.queue.is_closed() }
    }

    /// How long the syncs of this process took.
    #[must_use]
    pub fn sync_durations(&self) -> DurationsView {
        self.handle.shared.syncs.view()
    }

    /// Takes nothing more, completes what waits, syncs, ends the thread.
    pub async fn close(&self) {
        self.handle.queue.close();
        // An error says that the thread is gone: closed as well.
        drop(self.handle.ended.clone().wait_for(|ended| *ended).await);
    }
}
