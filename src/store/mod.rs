//! The store: an append-only log that is the truth, and an index over it.
//!
//! Cheap to clone handle. Blocking calls (`list_events`, `event`, …) do short disk reads; async callers
//! that may meet a big one wrap them in `spawn_blocking`.

mod append;
pub mod audit;
mod background;
pub mod check;
pub mod dedup;
pub mod disk;
pub mod files;
pub mod index;
pub mod indexer;
pub mod log;
pub mod messages;
mod open;
mod read;
pub mod record;
pub mod repair;
mod retention;
#[cfg(test)]
mod tests;
pub mod transfer;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::clock::{Clock, Timeline, Timestamp};
use crate::config::Retention;
use crate::delivery::{Attempt, Delivery, Generation, HandlerName, Seq};
use crate::event::Event;
use dedup::Dedup;
use disk::Disk;
pub use index::rebuild::Home;
pub use log::Receipt;
use log::{Appender, LogReader};

/// The generation of deliveries that nobody has replayed.
pub const FIRST_GENERATION: Generation = 0;

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
    /// The log's own part of it: see [`Store::append_in`].
    pub log_epoch: u64,
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
    /// A hash of the message's id.
    pub message: Option<u64>,
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

impl<T> Default for Page<T> {
    fn default() -> Page<T> {
        Page { items: Vec::new(), next: None }
    }
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
    /// Records lost to damage, as far as it was met.
    pub damage: Vec<log::Damage>,
    /// Where the segments lie.
    pub log_dir: std::path::PathBuf,
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

/// Handle to the open store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    options: StoreOptions,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    timeline: Timeline,
    clock_watch: open::ClockWatch,
    /// `None`: opened for reading only.
    appender: Option<Appender>,
    reader: LogReader,
    dedup: Arc<Dedup>,
    index: Arc<indexer::Shared>,
    /// At `disk_max`, and nothing may go.
    full: AtomicBool,
    /// Whose cursors hold events back; `None`: those of every handler ever met.
    active: Mutex<Option<Vec<HandlerName>>>,
    /// Held while a segment is being dropped.
    dropping: tokio::sync::Mutex<retention::Dropping>,
    auditing: Mutex<()>,
    /// Held for writing while a segment is being dropped, for reading while people change what is settled.
    changing: tokio::sync::RwLock<()>,
    stop: watch::Sender<bool>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    /// Held as long as the store is open.
    _lock: Option<File>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The threads hold no handle of the store, so they are told.
        self.stop.send_replace(true);
    }
}
