//! The store: an append-only log that is the truth, and an index over it.
//!
//! Cheap to clone handle. Blocking calls (`list_events`, `event`, …) do short disk reads; async callers
//! that may meet a big one wrap them in `spawn_blocking`.

pub mod disk;
pub mod index;
pub mod log;
pub mod record;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::clock::{Clock, Timeline, Timestamp};
use crate::config::Retention;
use crate::delivery::{Attempt, Delivery, DeliveryKey, Generation, HandlerName, Seq};
use crate::event::{DedupKey, Event, NewEvent};
pub use log::appender::Receipt;
use record::Record;

/// The generation of deliveries that nobody has replayed.
pub const FIRST_GENERATION: Generation = 1;

#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub data_dir: PathBuf,
    pub retention: Retention,
}

/// Why an append was not acknowledged. Intake turns every one into 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The disk is below its reserve, or `disk_max` is full of unsettled events.
    Full,
    /// A write or sync failed; the store is being reopened.
    Failed,
    /// Too much is waiting already.
    Busy,
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Another process holds the data directory.
    Locked { pid: Option<u32> },
    /// One line: what, why, what to do next.
    Other(String),
}

/// Published by the store; wake-up hints and fences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Raised when the log had to be reopened after a fault: records above `durable` may be gone and
    /// their numbers used again. Whoever holds state derived from them starts anew from the index.
    pub epoch: u64,
    pub durable: Seq,
    /// Everything up to here is in the index.
    pub applied: Seq,
    /// The index has caught up with what was in the log at the start; replay may begin.
    pub caught_up: bool,
}

/// What the replayer needs of an event to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventHead {
    pub seq: Seq,
    pub kind: String,
    pub source: String,
    /// Schedule time of the record.
    pub time: Timestamp,
    /// A hash of the conversation's address.
    pub conversation: Option<u64>,
    pub imported: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Glob over the type.
    pub kind: Option<String>,
    /// A delivery state (`scheduled`, `delivered`, `dead`, `discarded`); matches when any delivery of
    /// the event is in it.
    pub status: Option<String>,
    pub source: Option<String>,
    pub handler: Option<String>,
    /// Wall clock, inclusive / exclusive, over `received_at`.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Plain substring of the payload or the id.
    pub search: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    pub event: Event,
    pub duplicates: u32,
    pub conflict: bool,
    pub deliveries: Vec<StoredDelivery>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDelivery {
    pub delivery: Delivery,
    /// Oldest first; only filled where asked for.
    pub attempts: Vec<Attempt>,
}

/// A page, newest first; `next` continues it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<Seq>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ok,
    /// Intake works; the index is being rebuilt.
    Rebuilding,
    Full,
    Failed,
}

#[derive(Clone, Debug)]
pub struct Stats {
    pub health: Health,
    /// One line for people when `health` is not `Ok`, or damage was found.
    pub note: Option<String>,
    pub events: u64,
    pub log_bytes: u64,
    pub index_bytes: u64,
    pub disk_free: u64,
    pub progress: Progress,
    /// Records lost to damage, as found when opening: (first, last, segment file, offset).
    pub damage: Vec<(Seq, Seq, String, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerStats {
    /// The next event to consider; `None` where the store has never met the handler.
    pub cursor: Option<Seq>,
    pub paused: bool,
    pub scheduled: u64,
    pub dead: u64,
    /// Received time of the oldest event that is not settled for this handler.
    pub oldest: Option<Timestamp>,
}

/// Handle to the open store.
#[derive(Clone)]
pub struct Store {
    // Arc<Inner> in the real one
    _inner: Arc<()>,
}

impl Store {
    /// Opens the log (cutting a torn tail), starts the appender and the index threads. Returns as soon
    /// as the log accepts; the index follows in the background.
    ///
    /// # Errors
    /// Another instance runs on the directory, it cannot be created or written, or its format is newer.
    pub fn open(
        _disk: Arc<dyn disk::Disk>,
        _options: StoreOptions,
        _clock: Arc<dyn Clock>,
    ) -> Result<Store, OpenError> {
        todo!()
    }

    /// Stores an event, or finds that it is there already. Returns only when it is durable.
    ///
    /// # Errors
    /// See [`AppendError`]: the event may or may not become durable; the sender must try again.
    pub async fn append_event(&self, _event: NewEvent) -> Result<Receipt, AppendError> {
        todo!()
    }

    /// Logs bookkeeping: returns when written (a crash of the process keeps it), not when synced.
    ///
    /// # Errors
    /// As above.
    pub async fn append(&self, _record: Record) -> Result<Seq, AppendError> {
        todo!()
    }

    /// As `append`, but durable when it returns.
    ///
    /// # Errors
    /// As above.
    pub async fn append_durable(&self, _record: Record) -> Result<Receipt, AppendError> {
        todo!()
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        todo!()
    }

    #[must_use]
    pub fn timeline(&self) -> Timeline {
        todo!()
    }

    /// The next record's number, as far as is known now.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        todo!()
    }

    // --- what the replayer reads (all from the index; quick) ---

    /// Up to `limit` events from `from` on, and the position after the last one looked at.
    #[must_use]
    pub fn heads_from(&self, _from: Seq, _limit: usize) -> (Vec<EventHead>, Seq) {
        todo!()
    }

    /// Unsettled deliveries of `handler` due at or before `until`, earliest first.
    #[must_use]
    pub fn due(&self, _handler: &HandlerName, _until: Timestamp, _limit: usize) -> Vec<Delivery> {
        todo!()
    }

    /// The earliest due time of `handler` after `after`.
    #[must_use]
    pub fn next_due(&self, _handler: &HandlerName, _after: Timestamp) -> Option<Timestamp> {
        todo!()
    }

    #[must_use]
    pub fn handler_stats(&self, _handler: &HandlerName) -> HandlerStats {
        todo!()
    }

    /// Every handler the store has ever met, also those no longer configured.
    #[must_use]
    pub fn known_handlers(&self) -> Vec<HandlerName> {
        todo!()
    }

    // --- what people read ---

    #[must_use]
    pub fn event(&self, _seq: Seq) -> Option<Event> {
        todo!()
    }

    #[must_use]
    pub fn stored_event(&self, _seq: Seq) -> Option<StoredEvent> {
        todo!()
    }

    /// The events with this `eventId` (one per source).
    #[must_use]
    pub fn find(&self, _event_id: &str) -> Vec<Seq> {
        todo!()
    }

    #[must_use]
    pub fn delivery(&self, _key: &DeliveryKey) -> Option<Delivery> {
        todo!()
    }

    /// Newest first, before `cursor`.
    #[must_use]
    pub fn list_events(
        &self,
        _filter: &EventFilter,
        _cursor: Option<Seq>,
        _limit: usize,
    ) -> Page<StoredEvent> {
        todo!()
    }

    /// Dead deliveries, newest event first.
    #[must_use]
    pub fn list_dead(
        &self,
        _filter: &EventFilter,
        _cursor: Option<Seq>,
        _limit: usize,
    ) -> Page<(Event, StoredDelivery)> {
        todo!()
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        todo!()
    }

    /// Syncs, marks the stop as clean, closes both threads.
    pub async fn close(&self) {
        todo!()
    }

    #[must_use]
    pub fn dedup_key_of(event: &NewEvent) -> DedupKey {
        crate::event::dedup_key(&event.source, &event.id)
    }
}
