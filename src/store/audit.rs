//! The online audit: reads the whole log while the appliance runs, slowly, verifies every checksum, and
//! compares the events with the index. What nobody reads would otherwise rot unnoticed.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::check::{self, CheckReport};
use super::index::KvError;
use super::index::query::View;
use super::log::Frame;
use super::record::Record;
use super::{Inner, Store, background};
use crate::event;

/// After a start, so that it does not compete with catching up.
const FIRST_AFTER: Duration = Duration::from_secs(3600);
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// Bytes that are read at once, and then a pause.
const CHUNK_BYTES: u64 = 256 * 1024;

/// How fast it reads, in bytes per second. An SD card reads 20 MB/s and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace(pub u64);

impl Pace {
    /// Nobody waits: 2 GiB in 17 minutes.
    pub const DAILY: Pace = Pace(2 * 1024 * 1024);
    /// Someone waits: 2 GiB in 2 minutes.
    pub const ON_DEMAND: Pace = Pace(16 * 1024 * 1024);

    fn pause(self) -> Duration {
        Duration::from_secs_f64(CHUNK_BYTES as f64 / self.0 as f64)
    }
}

/// Starts the thread. It ends when the store is closed or dropped.
pub(super) fn spawn(store: &Store) -> io::Result<std::thread::JoinHandle<()>> {
    let inner = Arc::downgrade(&store.inner);
    let mut stop = store.inner.stop.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    background::spawn("audit", move || {
        let mut wait = FIRST_AFTER;
        loop {
            let stopped = runtime.block_on(async {
                tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await.is_ok()
            });
            if stopped {
                return;
            }
            daily(&inner);
            wait = EVERY;
        }
    })
}

fn daily(inner: &Weak<Inner>) {
    let Some(inner) = inner.upgrade() else { return };
    match (Store { inner }).audit(Pace::DAILY) {
        Ok(report) => tracing::info!(
            records = report.records,
            damaged = report.damage.len() + report.unknown.len(),
            "audited the log"
        ),
        Err(why) => tracing::warn!(why, "the audit was not finished"),
    }
}

impl Store {
    /// Verifies everything that is durable by now. Damage is reported in the status from then on; an
    /// index that does not agree with the log is built anew. Blocks; one runs at a time.
    ///
    /// # Errors
    /// The store was closed first, or the disk cannot be read.
    pub fn audit(&self, pace: Pace) -> Result<CheckReport, String> {
        let _one = self.inner.auditing.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = self.inner.index.progress();
        // What is not in the index yet is compared the next time.
        let indexed = if progress.borrow().caught_up { progress.borrow().applied } else { 0 };
        let mut read_bytes = 0;
        let report = check::examine(&self.inner.reader, self.durable_seq(), |frame, record| {
            read_bytes += u64::from(frame.place.len);
            if read_bytes >= CHUNK_BYTES {
                read_bytes = 0;
                std::thread::sleep(pace.pause());
            }
            if frame.seq <= indexed
                && let Ok(Record::Event(event)) = record
            {
                let key = event::dedup_key(&event.source, &event.id);
                self.read(|view| agrees(view, frame, &key));
            }
            match *self.inner.stop.borrow() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        if *self.inner.stop.borrow() {
            return Err("bluehook is stopping; check again once it runs".to_owned());
        }
        let mut report = report.map_err(|e| format!("the log cannot be read: {e}; try again"))?;
        let segments = self.inner.appender.as_ref().map(|a| a.segments()).unwrap_or_default();
        let oldest = segments.iter().find_map(|s| s.first).unwrap_or(0);
        // Records that are missing without a trace before the oldest: retention dropped them meanwhile.
        report.damage.retain(|d| d.bytes > 0 || d.last >= oldest);
        self.inner.index.add_damage(report.damage.clone());
        if let Some(appender) = &self.inner.appender {
            report.damage.iter().for_each(|d| appender.mark_damaged(d.segment));
        }
        Ok(report)
    }
}

/// An event in the log is in the index, or was: then its key is. An error has the index built anew.
fn agrees(view: &View<'_>, frame: &Frame, key: &event::DedupKey) -> Result<(), KvError> {
    let wrong = |what: &str| Err(KvError(format!("audit: {what} event {}", frame.seq)));
    match view.entry(frame.seq)? {
        Some(entry) if entry.record == frame.seq && entry.place != frame.place.into() => {
            wrong("it has another place for")
        }
        None if view.id(key)?.is_none() => wrong("it does not know"),
        _ => Ok(()),
    }
}
