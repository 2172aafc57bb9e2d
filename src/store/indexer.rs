//! Brings the index up to the log, and keeps it there: one code path for rebuilding, for catching up
//! after a start, and for following live.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Progress;
use super::dedup::Dedup;
use super::index::apply::{Applier, At};
use super::index::compact::{self, Copy};
use super::index::keys::Session;
use super::index::rebuild::{self, Home, LogState, OpenIndex};
use super::index::{Kv, KvError};
use super::log::{Appender, Damage, LogError, LogProgress, LogReader, ScanItem};
use super::record;
use crate::clock::BootId;
use crate::delivery::Seq;
use crate::event::DedupKey;

/// Records per step: what is held back from readers at most.
const STEP_RECORDS: usize = 2_000;
/// A step of fewer records is followed by a pause, in which more can gather: the index then writes fewer,
/// fuller batches.
const SMALL_STEP_RECORDS: u64 = 256;
const GATHER: Duration = Duration::from_millis(10);
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// After so long without a record the index gives back what it holds in memory.
const QUIET: Duration = Duration::from_secs(60);
/// How often the size of the index is looked at.
const HOLES_CHECK: Duration = Duration::from_secs(5);
/// After a copy that came to nothing.
const COMPACT_AGAIN: Duration = Duration::from_secs(600);
/// How long queries may keep an index that is to be replaced.
const LET_GO_WITHIN: Duration = Duration::from_secs(2);
const LET_GO_CHECK: Duration = Duration::from_millis(1);
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// After so many failures in a row what can't be read is damage.
const READ_TRIES: u32 = 10;
/// How long a stop may wait for the index; the rest is done at the next start.
const STOP_STEPS_MAX: usize = 100;

pub enum Fault {
    Index(KvError),
    Log(LogError),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Index(e) => e.fmt(f),
            Fault::Log(e) => e.fmt(f),
        }
    }
}

impl From<KvError> for Fault {
    fn from(e: KvError) -> Fault {
        Fault::Index(e)
    }
}

/// The work without the thread: the simulator drives it step by step.
pub struct IndexerCore {
    applier: Applier,
    kv: Arc<dyn Kv>,
    reader: LogReader,
    boot_id: BootId,
    damage: Vec<Damage>,
    /// How often in a row the log couldn't be read.
    failed_reads: u32,
}

impl IndexerCore {
    #[must_use]
    pub fn new(index: &OpenIndex, reader: LogReader, boot_id: BootId) -> IndexerCore {
        let applier = Applier::new(index.kv.clone(), index.position);
        IndexerCore {
            applier,
            kv: index.kv.clone(),
            reader,
            boot_id,
            damage: Vec::new(),
            failed_reads: 0,
        }
    }

    #[must_use]
    pub fn kv(&self) -> &Arc<dyn Kv> {
        &self.kv
    }

    /// What can't be read is damage at once: for a reader who can't wait.
    pub fn step_over(&mut self) {
        self.failed_reads = READ_TRIES;
    }

    #[must_use]
    pub fn applied(&self) -> Seq {
        self.applier.applied()
    }

    /// Applies up to `records` further ones, none above `upto`, which must be durable.
    ///
    /// # Errors
    /// The index is broken (build it anew) or the log cannot be read (try again).
    pub fn advance(&mut self, upto: Seq, records: usize) -> Result<(), Fault> {
        let from = self.applier.position();
        if from.applied >= upto {
            return Ok(());
        }
        let offset = u32::try_from(from.offset).unwrap_or(u32::MAX);
        let mut scan = self.reader.scan((from.segment, offset), upto).after(from.applied);
        scan = scan.stepping_over(self.failed_reads >= READ_TRIES);
        for _ in 0..records {
            let item = scan.next().map_err(|error| {
                self.failed_reads = self.failed_reads.saturating_add(1);
                Fault::Log(error)
            })?;
            match item {
                Some(ScanItem::Damage(damage)) => self.lost(damage),
                Some(ScanItem::Frame(frame)) => match record::decode(frame.kind, &frame.payload) {
                    Ok(record) => {
                        let at = At { seq: frame.seq, time: frame.time, place: frame.place };
                        self.applier.apply(at, record)?;
                    }
                    Err(why) => {
                        tracing::error!(seq = frame.seq, %why, "a record cannot be understood");
                        self.lost(Damage {
                            segment: frame.place.segment,
                            offset: frame.place.offset.into(),
                            bytes: frame.place.len.into(),
                            first: frame.seq,
                            last: frame.seq,
                        });
                    }
                },
                None => break,
            }
        }
        self.applier.commit()?;
        if self.applier.applied() >= upto {
            self.failed_reads = 0;
        }
        Ok(())
    }

    fn lost(&mut self, damage: Damage) {
        let behind = damage.offset.saturating_add(damage.bytes);
        self.applier.skip(damage.last, damage.segment, behind);
        self.damage.push(damage);
    }

    /// The damage met since the last call.
    pub fn take_damage(&mut self) -> Vec<Damage> {
        std::mem::take(&mut self.damage)
    }

    /// The duplicate keys of the events indexed since the last call.
    pub fn take_written_keys(&mut self) -> Vec<DedupKey> {
        self.applier.take_written_keys()
    }

    /// # Errors
    /// The index is broken.
    pub fn flush(&self) -> Result<(), KvError> {
        self.kv.flush()
    }

    /// Everything is synced and the index may be trusted at the next start.
    ///
    /// # Errors
    /// The index is broken; it will be rebuilt.
    pub fn close(self) -> Result<(), KvError> {
        self.kv.settle()?;
        self.kv.sync()?;
        rebuild::write_session(&*self.kv, Session { boot_id: self.boot_id, clean: true })?;
        self.kv.sync()
    }
}

/// What the thread and the store's readers share.
pub struct Shared {
    kv: RwLock<Option<Arc<dyn Kv>>>,
    /// A reader met an error: the index has to be built anew.
    broken: watch::Sender<Option<String>>,
    progress: watch::Sender<Progress>,
    found: Mutex<Found>,
}

#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Why there is no index just now, or why it is being rebuilt.
    pub note: Option<String>,
    pub damage: Vec<Damage>,
}

impl Shared {
    #[must_use]
    pub fn new(progress: Progress, damage: Vec<Damage>) -> Shared {
        let shared = Shared {
            kv: RwLock::new(None),
            broken: watch::Sender::new(None),
            progress: watch::Sender::new(progress),
            found: Mutex::default(),
        };
        shared.add_damage(damage);
        shared
    }

    #[must_use]
    pub fn kv(&self) -> Option<Arc<dyn Kv>> {
        self.kv.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_kv(&self, kv: Option<Arc<dyn Kv>>) {
        *self.kv.write().unwrap_or_else(PoisonError::into_inner) = kv;
    }

    /// Readers wait for the moment that it takes. An index that a query does not let go stays.
    fn replace_kv(&self, copy: Copy) -> Result<Arc<dyn Kv>, KvError> {
        let mut place = self.kv.write().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        while let Some(old) = &*place
            && Arc::strong_count(old) > 1
        {
            if begun.elapsed() > LET_GO_WITHIN {
                tracing::warn!("the index was not compacted: it is being read; trying again later");
                copy.discard();
                return Ok(old.clone());
            }
            std::thread::sleep(LET_GO_CHECK);
        }
        *place = None;
        let fresh = copy.put_in_place();
        match &fresh {
            Ok(fresh) => *place = Some(fresh.clone()),
            // Before anyone reads that there is nothing.
            Err(_) => self.progress.send_modify(|p| (p.applied, p.caught_up) = (0, false)),
        }
        drop(place);
        copy.discard();
        fresh
    }

    pub fn report_broken(&self, error: &KvError) {
        self.broken.send_replace(Some(error.0.clone()));
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    #[must_use]
    pub fn found(&self) -> Found {
        self.found_mut().clone()
    }

    pub fn found_mut(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_damage(&self, new: Vec<Damage>) {
        let mut found = self.found_mut();
        for damage in new {
            let same = |d: &Damage| (d.segment, d.offset) == (damage.segment, damage.offset);
            if !found.damage.iter().any(same) {
                tracing::error!(
                    segment = damage.segment,
                    offset = damage.offset,
                    first = damage.first,
                    last = damage.last,
                    "records in the log are damaged"
                );
                found.damage.push(damage);
            }
        }
    }
}

pub struct Indexer {
    pub shared: Arc<Shared>,
    pub dedup: Arc<Dedup>,
    pub reader: LogReader,
    pub home: Home,
    pub boot_id: BootId,
    pub appender: Appender,
    /// The oldest record as found on opening the log.
    pub first: Seq,
    /// Why the index can't be trusted, if that is known before it is opened.
    pub doubt: Option<String>,
    /// Holes in the index that are not worth compacting it.
    pub holes_max: u64,
    pub stop: watch::Receiver<bool>,
}

impl Indexer {
    /// The thread's body: returns once told to stop.
    pub fn run(mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(e) => {
                self.shared.found_mut().note = Some(format!("index: no thread runtime: {e}"));
                return;
            }
        };
        let mut log = self.appender.progress();
        let mut doubt = self.doubt.take();
        let mut rebuilds = 0;
        while !*self.stop.borrow() {
            match guarded(|| self.open(doubt.take(), &log)) {
                Ok(index) => {
                    let followed = || runtime.block_on(self.follow(index, &mut log, rebuilds));
                    let outcome = guarded(followed);
                    doubt = outcome.err().map(|e| e.0);
                    if let Some(why) = &doubt {
                        rebuilds += 1;
                        self.announce_rebuild(why);
                    }
                    // Its last holder closes it.
                    _ = guarded(|| {
                        self.shared.set_kv(None);
                        Ok(())
                    });
                }
                Err(e) => {
                    tracing::error!(error = %e, "the index cannot be opened; trying again");
                    self.shared.found_mut().note = Some(e.0);
                    runtime.block_on(async {
                        // Either way: on to the next try, or out.
                        drop(tokio::time::timeout(RETRY_WAIT, self.stop.changed()).await);
                    });
                }
            }
        }
    }

    fn open(
        &self,
        doubt: Option<String>,
        log: &watch::Receiver<LogProgress>,
    ) -> Result<OpenIndex, KvError> {
        let oldest = self.appender.segments().iter().find_map(|s| s.first);
        let durable = log.borrow().durable;
        let state = LogState { first: oldest.unwrap_or(self.first), next: durable + 1 };
        let index = match doubt {
            None => self.home.open_or_begin(&self.reader, state, self.boot_id)?,
            Some(doubt) => self.home.begin(&self.reader, state, self.boot_id, doubt)?,
        };
        let behind = durable.saturating_sub(index.position.applied);
        let rebuilding = index.doubt.is_some() && behind > 0;
        if let Some(why) = index.doubt.as_ref().filter(|_| rebuilding) {
            tracing::warn!(records = behind, why, "rebuilding the index from the log");
        }
        let mut found = self.shared.found_mut();
        found.note = index.doubt.as_deref().filter(|_| rebuilding).map(rebuilding_note);
        Ok(index)
    }

    /// Before readers find nothing: what they read from now on may lack something.
    fn announce_rebuild(&self, why: &str) {
        self.shared.found_mut().note = Some(rebuilding_note(why));
        self.shared.progress.send_modify(|p| {
            p.epoch += 1;
            (p.applied, p.caught_up) = (0, false);
        });
    }

    /// Until told to stop (then the index is closed cleanly) or the index breaks.
    async fn follow(
        &mut self,
        index: OpenIndex,
        log: &mut watch::Receiver<LogProgress>,
        rebuilds: u64,
    ) -> Result<(), KvError> {
        let mut broken = self.shared.broken.subscribe();
        broken.borrow_and_update();
        let mut core = IndexerCore::new(&index, self.reader.clone(), self.boot_id);
        self.shared.set_kv(Some(index.kv.clone()));
        drop(index);
        let target = log.borrow().durable;
        let (mut unflushed, mut unsettled, mut quiet_since) = (false, true, Instant::now());
        let mut look_at = Instant::now() + HOLES_CHECK;
        loop {
            let now = log.borrow_and_update().clone();
            let before = core.applied();
            let mut wait = IDLE_WAIT;
            let mut fault = None;
            match core.advance(now.durable, STEP_RECORDS) {
                Ok(()) => {}
                Err(Fault::Index(e)) => return Err(e),
                Err(Fault::Log(e)) => {
                    tracing::error!(error = %e, "the index cannot read the log; trying again");
                    fault = Some(format!("the index cannot read the log: {e}; check the disk"));
                    wait = RETRY_WAIT;
                }
            }
            self.after_step(&mut core, &now, target, rebuilds, fault);
            let records = core.applied() - before;
            if records > 0 {
                (unflushed, unsettled, quiet_since) = (true, true, Instant::now());
            }
            let idle = core.applied() >= now.durable;
            if *self.stop.borrow() {
                break;
            }
            // Not after a fault: then there is more in the core than in the index.
            let sound = wait == IDLE_WAIT && core.applied() >= target;
            if sound && Instant::now() >= look_at {
                look_at = Instant::now() + HOLES_CHECK;
                if compact::is_worthwhile(&*core.kv, self.holes_max)? {
                    let before = core.kv.bytes();
                    core = self.compact(core)?;
                    if core.kv.bytes() >= before {
                        look_at = Instant::now() + COMPACT_AGAIN;
                    }
                }
            }
            let warming = core.kv.warm()?;
            if wait == IDLE_WAIT && (warming || !idle) {
                continue;
            }
            if (1..SMALL_STEP_RECORDS).contains(&records) {
                tokio::time::sleep(GATHER).await;
            }
            tokio::select! {
                changed = log.changed() => if changed.is_err() { break },
                changed = self.stop.changed() => if changed.is_err() { break },
                _ = broken.changed() => {
                    let why = broken.borrow().clone().unwrap_or_default();
                    return Err(KvError(why));
                }
                () = tokio::time::sleep(wait) => {
                    if unsettled && quiet_since.elapsed() >= QUIET {
                        core.kv.settle()?;
                        (unflushed, unsettled) = (true, false);
                    }
                    if std::mem::take(&mut unflushed) {
                        core.flush()?;
                    }
                }
            }
        }
        let now = log.borrow_and_update().clone();
        for _ in 0..STOP_STEPS_MAX {
            if core.applied() >= now.durable || core.advance(now.durable, STEP_RECORDS).is_err() {
                break;
            }
        }
        self.after_step(&mut core, &now, target, rebuilds, None);
        self.shared.set_kv(None);
        if let Err(e) = core.close() {
            tracing::warn!(error = %e, "the index was not closed cleanly; it will be rebuilt");
        }
        Ok(())
    }

    fn compact(&self, core: IndexerCore) -> Result<IndexerCore, KvError> {
        let (begun, before) = (Instant::now(), core.kv.bytes());
        let Some(copy) = self.home.copy(&*core.kv, || *self.stop.borrow())? else {
            return Ok(core);
        };
        let position = core.applier.position();
        // Whoever replaces the index has to be the last one that holds it.
        drop(core);
        let kv = self.shared.replace_kv(copy)?;
        let (bytes, took_ms) = (kv.bytes(), begun.elapsed().as_millis());
        if bytes < before {
            tracing::info!(before, bytes, took_ms, "compacted the index");
        }
        let index = OpenIndex { kv, position, doubt: None };
        Ok(IndexerCore::new(&index, self.reader.clone(), self.boot_id))
    }

    /// `fault`: why the index lags behind the log, if the log cannot be read.
    fn after_step(
        &self,
        core: &mut IndexerCore,
        log: &LogProgress,
        target: Seq,
        rebuilds: u64,
        fault: Option<String>,
    ) {
        let damage = core.take_damage();
        for d in &damage {
            self.appender.mark_damaged(d.segment);
        }
        self.shared.add_damage(damage);
        self.dedup.applied(core.take_written_keys());
        let caught_up = core.applied() >= target && fault.is_none();
        if caught_up || fault.is_some() {
            self.shared.found_mut().note = fault;
        }
        let now = Progress {
            epoch: log.epoch + rebuilds,
            log_epoch: log.epoch,
            durable: log.durable,
            applied: core.applied(),
            caught_up,
        };
        self.shared.progress.send_if_modified(|p| std::mem::replace(p, now) != now);
    }
}

/// sled panics where others return an error, also when it is closed.
fn guarded<T>(work: impl FnOnce() -> Result<T, KvError>) -> Result<T, KvError> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err(KvError("index: a panic; the service log has it".to_owned())))
}

fn rebuilding_note(why: &str) -> String {
    format!("the index is being rebuilt from the log ({why}); nothing to do, intake works")
}
