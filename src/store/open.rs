//! Opening and closing.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::background;
use super::dedup::Dedup;
use super::disk::Disk;
use super::index::compact;
use super::index::memory::MemoryKv;
use super::index::rebuild::{self, LogState, OpenIndex};
use super::indexer::{Indexer, IndexerCore, Shared};
use super::log::{
    Appender, AppenderCore, Limits, LogOptions, LogReader, LogWriter, Priority, Pulse,
};
use super::record::{Record, encode};
use super::{Home, Inner, OpenError, Progress, Store, StoreOptions, audit, files, retention};
use crate::clock::{Clock, KeptTimeline, Timeline, Timestamp};
use crate::config::Retention;
use crate::delivery::Seq;
use crate::tally::DurationsView;

const SEGMENT_BYTES_MIN: u64 = 1024 * 1024;
const SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// So many segments make up the disk budget: what retention drops at once is a small part of it.
const SEGMENTS: u64 = 32;
const READ_STEP: usize = 10_000;
/// A clock that was set, not one that drifts.
const CLOCK_STEP_MS: u64 = 60_000;

/// What is known of the wall clock.
pub(super) struct ClockWatch {
    /// At the start of this process.
    begun: KeptTimeline,
    written: Mutex<KeptTimeline>,
}

impl ClockWatch {
    fn new(begun: KeptTimeline) -> ClockWatch {
        ClockWatch { begun, written: Mutex::new(begun) }
    }
}

impl Store {
    /// Opens the log (cutting a torn tail), starts the appender and the index threads. Returns as soon
    /// as the log accepts; the index follows in the background.
    ///
    /// # Errors
    /// Another instance runs on the directory, it cannot be created or written, or its format is newer.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Store, OpenError> {
        // Before anything is written: a store of a later release stays as it is.
        files::read_version(&*disk, &options.data_dir)?;
        let lock = files::lock(&options.data_dir)?;
        let home = Home::Sled(files::index_dir(&options.data_dir));
        Store::start(disk, options, clock, home, Some(lock))
    }

    /// As `open`, without the lock file and with the index where the caller says: everything but an index
    /// in sled goes through `disk`.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        clock: Arc<dyn Clock>,
        home: Home,
    ) -> Result<Store, OpenError> {
        Store::start(disk, options, clock, home, None)
    }

    fn start(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        clock: Arc<dyn Clock>,
        home: Home,
        lock: Option<std::fs::File>,
    ) -> Result<Store, OpenError> {
        let dir = options.data_dir.clone();
        let other = |e: &dyn std::fmt::Display| {
            OpenError::Other(format!("cannot open the store in {}: {e}", dir.display()))
        };
        disk.create_dir_all(&dir).map_err(|e| other(&e))?;
        files::check_version(&*disk, &dir)?;
        let log_dir = files::log_dir(&dir);
        let budget = options.retention.disk_max / SEGMENTS;
        let segment_bytes = budget.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let segment_bytes = u32::try_from(segment_bytes).unwrap_or(u32::MAX);
        let (writer, report) =
            LogWriter::open(disk.clone(), &log_dir, LogOptions { segment_bytes })
                .map_err(|e| other(&e))?;

        let before = files::read_timeline(&*disk, &dir)?;
        let kept = KeptTimeline::resume(before, report.high_water, clock.now());
        if before != Some(kept) {
            files::write_timeline(&*disk, &dir, kept)?;
        }
        let timeline = kept.timeline;
        let core = AppenderCore::new(writer);
        let appender = Appender::spawn(core, clock.clone(), timeline, Limits::default())
            .map_err(|e| other(&e))?;
        let (kind, payload) = encode(&Record::Boot { timeline });
        // Nobody waits for it: it is a note for whoever reads the log.
        drop(appender.submit_written(kind, payload, Priority::Bookkeeping));

        let durable = report.next - 1;
        let progress = Progress { durable, ..Progress::default() };
        let reader = LogReader::new(disk.clone(), &log_dir);
        let index = Arc::new(Shared::new(progress, report.damage));
        let dedup = Arc::new(Dedup::default());
        let stop = watch::Sender::new(false);
        let indexer = Indexer {
            shared: index.clone(),
            dedup: dedup.clone(),
            reader: reader.clone(),
            home,
            boot_id: timeline.boot_id,
            appender: appender.clone(),
            first: report.first,
            doubt: report.reordered.then(|| "segments had changed places".to_owned()),
            holes_max: compact::holes_max(options.retention.disk_max),
            stop: stop.subscribe(),
        };
        let indexing = background::spawn("index", move || indexer.run()).map_err(|e| other(&e))?;
        let store = Store {
            inner: Arc::new(Inner {
                options,
                disk,
                clock,
                timeline,
                clock_watch: ClockWatch::new(kept),
                appender: Some(appender),
                reader,
                dedup,
                index,
                full: AtomicBool::new(false),
                active: Mutex::new(None),
                dropping: tokio::sync::Mutex::default(),
                auditing: Mutex::default(),
                changing: tokio::sync::RwLock::default(),
                stop,
                threads: Mutex::new(vec![indexing]),
                _lock: lock,
            }),
        };
        let keeper = retention::spawn(&store).map_err(|e| other(&e))?;
        store.threads().push(keeper);
        let auditor = audit::spawn(&store).map_err(|e| other(&e))?;
        store.threads().push(auditor);
        Ok(store)
    }

    /// Opens a store that nobody runs on for reading: nothing is changed, appends answer `Closed`.
    ///
    /// # Errors
    /// An instance runs on the directory, there is no store, or it cannot be read.
    pub fn open_read_only(
        disk: Arc<dyn Disk>,
        data_dir: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Store, OpenError> {
        let other = |what: String| {
            OpenError::Other(format!("cannot read the store in {}: {what}", data_dir.display()))
        };
        let lock = files::lock_shared(data_dir)?;
        files::read_version(&*disk, data_dir)?;
        let log_dir = files::log_dir(data_dir);
        if disk.list(&log_dir).is_err() {
            return Err(other("there is none; check data_dir".to_owned()));
        }
        let reader = LogReader::new(disk.clone(), &log_dir);
        let state = LogState { first: 1, next: 1 };
        let position = rebuild::beginning(&reader, state).map_err(|e| other(e.0))?;
        let kv = Arc::new(MemoryKv::new());
        let index = OpenIndex { kv: kv.clone(), position, doubt: None };
        let before = files::read_timeline(&*disk, data_dir)?;
        let kept = KeptTimeline::resume(before, Timestamp::ZERO, clock.now());
        let mut core = IndexerCore::new(&index, reader.clone(), kept.timeline.boot_id);
        core.step_over();
        let (last, unread) = super::check::end(&reader).map_err(|e| other(e.to_string()))?;
        while core.applied() < last {
            core.advance(last, READ_STEP).map_err(|e| other(e.to_string()))?;
        }
        let progress =
            Progress { durable: last, applied: last, caught_up: true, ..Progress::default() };
        let shared = Shared::new(progress, core.take_damage());
        shared.add_damage(unread.into_iter().collect());
        shared.set_kv(Some(kv));
        Ok(Store {
            inner: Arc::new(Inner {
                options: StoreOptions {
                    data_dir: data_dir.to_owned(),
                    retention: Retention {
                        delivered: None,
                        dead: None,
                        dedup: std::time::Duration::MAX,
                        disk_max: u64::MAX,
                    },
                },
                disk,
                clock,
                timeline: kept.timeline,
                clock_watch: ClockWatch::new(kept),
                appender: None,
                reader,
                dedup: Arc::new(Dedup::default()),
                index: Arc::new(shared),
                full: AtomicBool::new(false),
                active: Mutex::new(None),
                dropping: tokio::sync::Mutex::default(),
                auditing: Mutex::default(),
                changing: tokio::sync::RwLock::default(),
                stop: watch::Sender::new(false),
                threads: Mutex::default(),
                _lock: lock,
            }),
        })
    }

    pub(super) fn threads(&self) -> std::sync::MutexGuard<'_, Vec<std::thread::JoinHandle<()>>> {
        self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs, marks the stop as clean, ends the threads. Appends answer `Closed` from then on.
    pub async fn close(&self) {
        let Some(appender) = &self.inner.appender else { return };
        self.keep_timeline();
        // Twice: a record says what was durable before it. With one alone, a bit that rots near the end
        // would pass for a torn tail, and all behind it be cut.
        for _ in 0..2 {
            let (kind, payload) = encode(&Record::Stopped);
            // If it cannot be written, the stop is not a clean one; the next start copes.
            drop(appender.submit_durable(kind, payload, Priority::Bookkeeping).await);
        }
        appender.close().await;
        self.inner.stop.send_replace(true);
        let threads = std::mem::take(&mut *self.threads());
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the store panicked");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("the store's threads could not be waited for");
        }
    }

    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.inner.timeline
    }

    /// What a clock on the wall will show at schedule time `due`.
    #[must_use]
    pub fn wall_of(&self, due: Timestamp) -> Timestamp {
        self.inner.timeline.wall_of(due, self.inner.clock.now())
    }

    /// Keeps how the wall clock goes for the next start, if it was set meanwhile.
    pub(super) fn keep_timeline(&self) {
        let ClockWatch { begun, written } = &self.inner.clock_watch;
        let now = begun.noting(self.inner.clock.now());
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        if now.wall_ahead_ms.abs_diff(written.wall_ahead_ms) < CLOCK_STEP_MS {
            return;
        }
        match files::write_timeline(&*self.inner.disk, &self.inner.options.data_dir, now) {
            Ok(()) => *written = now,
            Err(error) => tracing::debug!(?error, "could not note that the clock was set"),
        }
    }

    /// Whether the log's thread gets on; `None`: nothing is written here.
    #[must_use]
    pub fn pulse(&self) -> Option<Pulse> {
        self.inner.appender.as_ref().map(Appender::pulse)
    }

    /// How long the log's syncs took since the start.
    #[must_use]
    pub fn sync_durations(&self) -> DurationsView {
        self.inner.appender.as_ref().map(Appender::sync_durations).unwrap_or_default()
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.inner.index.progress()
    }

    /// The next record's number, as far as is known now.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        let written = match &self.inner.appender {
            Some(appender) => appender.progress().borrow().written,
            None => self.inner.index.progress().borrow().durable,
        };
        written + 1
    }

    /// Raised when the log was reopened after a fault: see [`Store::append_in`].
    #[must_use]
    pub fn log_epoch(&self) -> u64 {
        self.inner.appender.as_ref().map_or(0, |a| a.progress().borrow().epoch)
    }

    /// The newest record that is safe on disk now; the index may be a moment behind it.
    #[must_use]
    pub fn durable_seq(&self) -> Seq {
        match &self.inner.appender {
            Some(appender) => appender.progress().borrow().durable,
            None => self.inner.index.progress().borrow().durable,
        }
    }
}
