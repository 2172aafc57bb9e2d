//! One run of the appliance, from its start to its end: the product's own synchronous cores, and between
//! them what its threads and tasks do, one step of one of them at a time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bluehook::clock::{Clock, KeptTimeline, TestClock, Timeline, Timestamp};
use bluehook::delivery::Seq;
use bluehook::event::{DedupKey, NewEvent, body_hash};
use bluehook::store::dedup::{Dedup, Seen, Settled};
use bluehook::store::disk::{Disk, MemDisk};
use bluehook::store::index::Kv;
use bluehook::store::index::keys::{CONFLICTS_MAX, JOURNAL, META_PACKED, META_SESSION};
use bluehook::store::index::memory::MemoryKv;
use bluehook::store::index::query::View;
use bluehook::store::index::rebuild::LogState;
use bluehook::store::indexer::{Fault, IndexerCore};
use bluehook::store::log::request::{Done, Request};
use bluehook::store::log::{
    AppenderCore, Limits, LogOptions, LogProgress, LogReader, LogWriter, Priority, Receipt,
};
use bluehook::store::record::{ConflictBody, EventRecord, Record, RepeatRecord, encode};
use bluehook::store::{AppendError, Home, Progress, Store, files};
use tokio::sync::{oneshot, watch};

use super::handlers::SimHandler;
use super::model::{Acked, Check, Model};
use super::replayer::Replayer;

/// Small, so that a history of a few hundred records goes over several segments.
const SEGMENT_BYTES: u32 = 12 * 1024;
pub const RESERVE_BYTES: u64 = 4 * 1024;

/// What a broken build would do. The simulator must notice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    Nothing,
    /// `fdatasync` returns and has done nothing.
    SyncLies,
    /// 200 as soon as the event is written.
    EarlyReceipts,
    /// What the replayer decided is logged even after records that it rests on are gone.
    AnyEpoch,
    /// The planner believes the index to be up to date always, and starts are not checked against it.
    NoFences,
}

/// All that is not the process.
pub struct Outside {
    pub rng: fastrand::Rng,
    pub clock: Arc<TestClock>,
    pub memory: MemDisk,
    pub model: Model,
    pub handlers: Vec<SimHandler>,
    pub sabotage: Sabotage,
    /// The end of the story: nothing fails any more.
    pub calm: bool,
    /// Tell what happens, on standard error.
    pub tells: bool,
}

impl Outside {
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            eprintln!("{} {}", self.clock.now().boot_ms, what());
        }
    }

    /// Reads past the faults that are in force.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::new(self.memory.clone()), &files::log_dir(&data_dir()))
    }
}

/// An answer that the appender owes. `ran_in`: the log's epoch when it was worked on.
pub struct Ticket<T> {
    answer: oneshot::Receiver<T>,
    ran_in: Rc<Cell<u64>>,
}

impl<T> Ticket<T> {
    pub fn is_ready(&self) -> bool {
        !self.answer.is_empty() || self.answer.is_terminated()
    }

    pub fn take(&mut self) -> Option<T> {
        self.answer.try_recv().ok()
    }

    pub fn ran_in(&self) -> u64 {
        self.ran_in.get()
    }
}

struct Waiting {
    request: Request,
    ran_in: Rc<Cell<u64>>,
}

/// What an append is answered with, early or not.
enum First {
    Durable(Ticket<Result<Receipt, AppendError>>),
    Early(Ticket<Result<Seq, AppendError>>),
}

/// A request on its way through intake.
struct Arrival {
    event: NewEvent,
    key: DedupKey,
    at: Stage,
}

enum Stage {
    First(First),
    /// Its first copy is being written.
    Behind {
        hash: [u8; 8],
        settled: oneshot::Receiver<Settled>,
    },
    /// A body that differs is being kept.
    Keeping {
        of: Seq,
        kept: Ticket<Result<Receipt, AppendError>>,
    },
}

pub struct Process {
    core: AppenderCore,
    log: watch::Receiver<LogProgress>,
    pub reader: LogReader,
    pub timeline: Timeline,
    kv: MemoryKv,
    index: Option<IndexerCore>,
    /// The index has caught up when it has come this far.
    target: Seq,
    first: Seq,
    dedup: Dedup,
    queue: VecDeque<Waiting>,
    arrivals: Vec<Arrival>,
    /// As the indexer published it.
    pub progress: Progress,
    pub replayer: Replayer,
}

/// Something that one of the threads or tasks could do now.
#[derive(Clone, Debug)]
enum Work {
    Batch,
    Wake,
    Index,
    Arrival(usize),
    Replay(super::replayer::Work),
}

pub enum Opened {
    Running(Box<Process>),
    /// The disk did not let it.
    Refused(String),
}

pub fn data_dir() -> PathBuf {
    PathBuf::from("/data")
}

impl Process {
    /// As `Store::open` and the replayer's start do it.
    pub fn open(disk: &Arc<dyn Disk>, kv: &MemoryKv, out: &mut Outside) -> Result<Opened, String> {
        let dir = data_dir();
        let log_dir = files::log_dir(&dir);
        let opened =
            LogWriter::open(disk.clone(), &log_dir, LogOptions { segment_bytes: SEGMENT_BYTES });
        let (writer, report) = match opened {
            Ok(opened) => opened,
            Err(e) => return Ok(Opened::Refused(e.to_string())),
        };
        if !report.damage.is_empty() || report.first != 1 {
            return Err(format!("I10: the start reports {report:?}"));
        }
        let reader = LogReader::new(disk.clone(), &log_dir);
        let now = out.clock.now();
        let before = match files::read_timeline(&**disk, &dir) {
            Ok(before) => before,
            Err(e) => return Ok(Opened::Refused(format!("{e:?}"))),
        };
        let kept = KeptTimeline::resume(before, report.high_water, now);
        out.tell(|| {
            format!("  resumes {before:?} at {now:?} behind {:?}: {kept:?}", report.high_water)
        });
        if before != Some(kept)
            && let Err(e) = files::write_timeline(&**disk, &dir, kept)
        {
            return Ok(Opened::Refused(format!("{e:?}")));
        }
        let timeline = kept.timeline;
        let limits = Limits { reserve_bytes: Some(RESERVE_BYTES), ..Limits::default() };
        let core = AppenderCore::new(writer).with_limits(limits);
        let durable = report.next - 1;
        let mut process = Process {
            log: core.progress(),
            core,
            reader,
            timeline,
            kv: kv.clone(),
            index: None,
            target: durable,
            first: report.first,
            dedup: Dedup::default(),
            queue: VecDeque::new(),
            arrivals: Vec::new(),
            progress: Progress { durable, ..Progress::default() },
            replayer: Replayer::new(out.rng.fork()),
        };
        let _nobody_waits = process.submit(&Record::Boot { timeline }, Priority::Bookkeeping);
        process.configure(out);
        Ok(Opened::Running(Box::new(process)))
    }

    pub fn now(&self, out: &Outside) -> Timestamp {
        self.timeline.at(out.clock.now())
    }

    pub fn durable(&self) -> Seq {
        self.core.writer().durable()
    }

    pub fn next_seq(&self) -> Seq {
        self.log.borrow().written + 1
    }

    pub fn is_healthy(&self) -> bool {
        self.log.borrow().fault.is_none()
    }

    pub fn applied(&self) -> Seq {
        self.index.as_ref().map_or(0, IndexerCore::applied)
    }

    /// Empty-handed while the index is not open, as the store's readers are.
    pub fn read<T>(&self, query: impl FnOnce(&View<'_>) -> T) -> Option<T> {
        let index = self.index.as_ref()?;
        Some(query(&View { kv: &**index.kv(), reader: &self.reader }))
    }

    // --- the appender ---

    fn append(&mut self, record: &Record, priority: Priority, done: Done) -> Rc<Cell<u64>> {
        let (kind, payload) = encode(record);
        self.push(Request::Append { kind, payload, priority, done })
    }

    fn push(&mut self, request: Request) -> Rc<Cell<u64>> {
        let ran_in = Rc::new(Cell::new(0));
        self.queue.push_back(Waiting { request, ran_in: ran_in.clone() });
        ran_in
    }

    fn submit(&mut self, record: &Record, priority: Priority) -> Ticket<Result<Seq, AppendError>> {
        let (tell, answer) = oneshot::channel();
        let ran_in = self.append(record, priority, Done::Written(tell));
        Ticket { answer, ran_in }
    }

    /// As `Store::append_in`: for the replayer.
    pub fn submit_in(
        &mut self,
        record: &Record,
        out: &Outside,
    ) -> Ticket<Result<Seq, AppendError>> {
        if out.sabotage == Sabotage::AnyEpoch {
            return self.submit(record, Priority::Bookkeeping);
        }
        let (tell, answer) = oneshot::channel();
        let records = vec![encode(record)];
        let epoch = self.progress.log_epoch;
        let ran_in = self.push(Request::Series { epoch, records, done: Done::Written(tell) });
        Ticket { answer, ran_in }
    }

    pub fn submit_durable(
        &mut self,
        record: &Record,
        priority: Priority,
    ) -> Ticket<Result<Receipt, AppendError>> {
        let (tell, answer) = oneshot::channel();
        let ran_in = self.append(record, priority, Done::Durable(Box::new(tell)));
        Ticket { answer, ran_in }
    }

    fn batch(&mut self, out: &mut Outside) -> Check {
        let epoch = self.log.borrow().epoch;
        let count = out.rng.usize(1..=self.queue.len());
        let mut requests = Vec::new();
        for waiting in self.queue.drain(..count) {
            waiting.ran_in.set(epoch);
            if let Request::Append { kind, payload, .. } = &waiting.request {
                out.tell(|| {
                    format!("  append {:?}", bluehook::store::record::decode(*kind, payload))
                });
            }
            requests.push(waiting.request);
        }
        self.core.run_batch(self.timeline.at(out.clock.now()), requests);
        if self.queue.is_empty() || out.rng.bool() {
            self.core.prepare();
        }
        self.note_reopening(epoch, out)
    }

    fn wake(&mut self, out: &mut Outside) -> Check {
        let epoch = self.log.borrow().epoch;
        self.core.wake();
        self.note_reopening(epoch, out)
    }

    fn note_reopening(&mut self, epoch: u64, out: &mut Outside) -> Check {
        let log = self.log.borrow().clone();
        out.tell(|| format!("    {log:?}"));
        if log.epoch != epoch {
            self.replayer.reopened(epoch, log.durable);
            out.model.mark_lost(&Model::read_log(&out.reader(), log.durable)?);
        }
        Ok(())
    }

    // --- intake ---

    /// A verified event, as `Store::append_event` takes it.
    pub fn arrive(&mut self, event: NewEvent, out: &mut Outside) {
        let key = Store::dedup_key_of(&event);
        let hash = body_hash(&event.body);
        let seen = self.dedup.enter(key, hash, || {
            let known = self.read(|view| view.id(&key).ok().flatten()).flatten();
            known.map(|known| (known.seq, known.body_hash))
        });
        match seen {
            Seen::First => {
                if !self.progress.caught_up {
                    out.model.taken_blindly.insert(key);
                }
                let record = Record::Event(EventRecord::from(event.clone()));
                let first = if out.sabotage == Sabotage::EarlyReceipts {
                    First::Early(self.submit(&record, Priority::Event))
                } else {
                    First::Durable(self.submit_durable(&record, Priority::Event))
                };
                self.arrivals.push(Arrival { event, key, at: Stage::First(first) });
            }
            Seen::Writing(settled) => {
                let at = Stage::Behind { hash, settled };
                self.arrivals.push(Arrival { event, key, at });
            }
            Seen::Durable { body_hash, seq } => {
                self.repeat(seq, event, key, body_hash != hash, out);
            }
            Seen::Busy => {}
        }
    }

    fn repeat(
        &mut self,
        of: Seq,
        event: NewEvent,
        key: DedupKey,
        differs: bool,
        out: &mut Outside,
    ) {
        let kept = self.read(|view| view.repeats(of).map_or(0, |r| r.conflicts.len()));
        let keep = differs && kept.unwrap_or(0) < CONFLICTS_MAX;
        let conflict = keep.then(|| ConflictBody {
            headers: event.headers.clone(),
            body: event.body.clone().into(),
        });
        let repeat =
            RepeatRecord { of, received_at: event.received_at, conflict, carried_from: None };
        let record = Record::Repeat(repeat);
        if keep {
            let kept = self.submit_durable(&record, Priority::Event);
            self.arrivals.push(Arrival { event, key, at: Stage::Keeping { of, kept } });
        } else {
            let _nobody_waits = self.submit(&record, Priority::Event);
            self.acknowledge_repeat(of, event, key, None, out);
        }
    }

    /// As `Appender::duplicate_of`.
    fn acknowledge_repeat(
        &mut self,
        of: Seq,
        event: NewEvent,
        key: DedupKey,
        kept_in: Option<Seq>,
        out: &mut Outside,
    ) {
        let early = out.sabotage == Sabotage::EarlyReceipts;
        if early || of <= self.log.borrow().durable {
            let body = event.body.into();
            out.model.acked.push(Acked { key, seq: of, body, kept_in, duplicate: true });
        }
    }

    fn is_arrival_ready(arrival: &Arrival) -> bool {
        match &arrival.at {
            Stage::First(First::Durable(ticket)) => ticket.is_ready(),
            Stage::First(First::Early(ticket)) => ticket.is_ready(),
            Stage::Behind { settled, .. } => !settled.is_empty() || settled.is_terminated(),
            Stage::Keeping { kept, .. } => kept.is_ready(),
        }
    }

    fn answer_arrival(&mut self, n: usize, out: &mut Outside) -> Check {
        let Arrival { event, key, at } = self.arrivals.swap_remove(n);
        match at {
            Stage::First(first) => {
                let result = match first {
                    First::Durable(mut ticket) => {
                        ticket.take().unwrap_or(Err(AppendError::Closed)).map(|r| r.seq())
                    }
                    First::Early(mut ticket) => ticket.take().unwrap_or(Err(AppendError::Closed)),
                };
                self.dedup.settle(&key, result);
                let Ok(seq) = result else { return Ok(()) };
                let durable = self.log.borrow().durable;
                if seq > durable && out.sabotage == Sabotage::Nothing {
                    return Err(format!("I9: receipt for {seq}, and {durable} is durable"));
                }
                let body = event.body.into();
                let duplicate = false;
                out.model.acked.push(Acked { key, seq, body, kept_in: None, duplicate });
            }
            Stage::Behind { hash, mut settled } => {
                if let Ok(Ok((first, body_hash))) = settled.try_recv() {
                    self.repeat(first, event, key, body_hash != hash, out);
                }
            }
            Stage::Keeping { of, mut kept } => {
                if let Some(Ok(receipt)) = kept.take() {
                    self.acknowledge_repeat(of, event, key, Some(receipt.seq()), out);
                }
            }
        }
        Ok(())
    }

    // --- the index ---

    fn index(&mut self, out: &mut Outside) -> Check {
        let log = self.log.borrow().clone();
        let Some(index) = &mut self.index else {
            let home = Home::Pages(self.kv.clone());
            let state = LogState { first: self.first, next: log.durable + 1 };
            let boot_id = self.timeline.boot_id;
            // An error is the disk's: the thread tries again.
            if let Ok(index) = home.open_or_begin(&self.reader, state, boot_id) {
                self.target = log.durable;
                self.index = Some(IndexerCore::new(&index, self.reader.clone(), boot_id));
            }
            return Ok(());
        };
        match index.advance(log.durable, out.rng.usize(1..40)) {
            Ok(()) | Err(Fault::Log(_)) => {}
            Err(Fault::Index(e)) => return Err(format!("the index broke: {e}")),
        }
        if let Some(damage) = index.take_damage().first() {
            return Err(format!("I10: the index met {damage:?}"));
        }
        self.dedup.applied(index.take_written_keys());
        if out.rng.u8(..) < 40 {
            index.flush().map_err(|e| e.to_string())?;
        }
        if out.rng.u8(..) < 10 {
            index.kv().settle().map_err(|e| e.to_string())?;
        }
        if out.rng.u8(..) < 60 {
            index.kv().warm().map_err(|e| e.to_string())?;
        }
        let applied = index.applied();
        let caught_up = applied >= self.target;
        let epoch = log.epoch;
        self.progress =
            Progress { epoch, log_epoch: epoch, durable: log.durable, applied, caught_up };
        Ok(())
    }

    fn index_has_work(&self) -> bool {
        let log = self.log.borrow();
        self.applied() < log.durable
            || !self.progress.caught_up
            || (self.progress.epoch, self.progress.durable) != (log.epoch, log.durable)
    }

    /// The index as it would be, had it been built from the log just now, is the index that is there.
    pub fn compare_with_rebuilt(&self, reader: &LogReader) -> Check {
        let home = Home::Pages(MemoryKv::new());
        let state = LogState { first: self.first, next: self.durable() + 1 };
        let index =
            home.open_or_begin(reader, state, self.timeline.boot_id).map_err(|e| e.to_string())?;
        let mut core = IndexerCore::new(&index, reader.clone(), self.timeline.boot_id);
        while core.applied() < self.durable() {
            core.advance(self.durable(), 500).map_err(|e| e.to_string())?;
        }
        let content = |kv: &dyn Kv| {
            let mut pairs = Vec::new();
            for family in (0..u8::MAX).filter(|family| *family != JOURNAL) {
                let found = kv.range(&[family], &[family + 1], usize::MAX);
                pairs.extend(found.map_err(|e| e.to_string())?);
            }
            pairs.retain(|(key, _)| key != META_SESSION && key != META_PACKED);
            Ok::<_, String>(pairs)
        };
        let (live, built) = match &self.index {
            Some(live) => (content(&**live.kv())?, content(&*index.kv)?),
            None => return Err("there is no index".to_owned()),
        };
        match live.iter().zip(&built).find(|(a, b)| a != b) {
            None if live.len() == built.len() => Ok(()),
            None => Err(format!("I8: {} keys in the index, rebuilt {}", live.len(), built.len())),
            Some((a, b)) => Err(format!(
                "I8: the index differs from one built anew: {} and {}",
                String::from_utf8_lossy(&a.0).escape_debug(),
                String::from_utf8_lossy(&b.0).escape_debug(),
            )),
        }
    }

    // --- steps ---

    fn work(&self, out: &Outside) -> Vec<Work> {
        let mut work = Vec::new();
        if !self.queue.is_empty() {
            work.push(Work::Batch);
        }
        let is_broken = self.core.writer().is_broken();
        if is_broken || self.core.writer().durable() < self.core.writer().written() {
            work.push(Work::Wake);
        }
        if self.index_has_work() {
            work.push(Work::Index);
        }
        let ready = self.arrivals.iter().enumerate().filter(|(_, a)| Process::is_arrival_ready(a));
        work.extend(ready.map(|(n, _)| Work::Arrival(n)));
        work.extend(
            self.replayer.work(self.now(out), self.progress, out).into_iter().map(Work::Replay),
        );
        work
    }

    /// One step of one thread or task. False: all of them wait.
    pub fn step(&mut self, out: &mut Outside) -> Result<bool, String> {
        let work = self.work(out);
        if work.is_empty() {
            return Ok(false);
        }
        match work[out.rng.usize(..work.len())].clone() {
            Work::Batch => self.batch(out)?,
            Work::Wake => self.wake(out)?,
            Work::Index => self.index(out)?,
            Work::Arrival(n) => self.answer_arrival(n, out)?,
            Work::Replay(work) => self.replay(work, out)?,
        }
        Ok(true)
    }

    /// A clean stop, as `Store::close` makes it.
    pub fn stop(mut self: Box<Process>, out: &mut Outside) -> Check {
        drop(self.submit_durable(&Record::Stopped, Priority::Bookkeeping));
        while !self.queue.is_empty() {
            self.batch(out)?;
        }
        self.core.sync();
        if let Some(mut index) = self.index.take() {
            index.advance(self.durable(), usize::MAX).map_err(|e| e.to_string())?;
            index.close().map_err(|e| e.to_string())?;
        }
        self.die(out);
        Ok(())
    }

    /// The process dies; `out` hears what of it ran.
    pub fn die(self: Box<Process>, out: &mut Outside) {
        out.model.cut_off(out.clock.now().boot_ms);
        drop(self);
    }
}
