//! What is read. All of it comes from the index and, for bodies and attempts, from the log. While there
//! is no index (it is being opened) everything reads as empty; `Progress::caught_up` tells.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::index::KvError;
use super::index::query::View;
use super::log::LogHealth;
use super::log::{Place, ScanItem};
use super::record::{self, ConflictBody, Record};
use super::{EventFilter, EventHead, HandlerStats, Health, Page, Stats, Store};
use super::{StoredDelivery, StoredEvent, files};
use crate::clock::Timestamp;
use crate::delivery::{Delivery, DeliveryKey, HandlerName, Seq};
use crate::event::Event;

const WHOLE_CHECK: Duration = Duration::from_millis(50);

impl Store {
    /// `None` where there is no index, or it turns out to be broken (then it will be rebuilt).
    pub(super) fn read<T>(&self, query: impl FnOnce(&View<'_>) -> Result<T, KvError>) -> Option<T> {
        let kv = self.inner.index.kv()?;
        match query(&View { kv: &*kv, reader: &self.inner.reader }) {
            Ok(found) => Some(found),
            Err(e) => {
                tracing::error!(error = %e, "the index is broken and will be rebuilt");
                self.inner.index.report_broken(&e);
                None
            }
        }
    }

    /// As [`Store::read`], but waits while the index lacks anything below `end`: it may be built anew at
    /// any time. Blocks.
    ///
    /// # Errors
    /// The store was closed first.
    pub(super) fn read_whole<T>(
        &self,
        end: Seq,
        query: impl Fn(&View<'_>) -> Result<T, KvError>,
    ) -> Result<T, String> {
        let progress = self.inner.index.progress();
        while !*self.inner.stop.borrow() {
            let before = *progress.borrow();
            if before.caught_up && before.applied + 1 >= end {
                let found = self.read(&query);
                // A rebuild is announced before its index can be read.
                if let Some(found) = found.filter(|_| progress.borrow().epoch == before.epoch) {
                    return Ok(found);
                }
            }
            std::thread::sleep(WHOLE_CHECK);
        }
        Err("bluehook is stopping; start it, then try again".to_owned())
    }

    pub(super) fn active(&self) -> MutexGuard<'_, Option<Vec<HandlerName>>> {
        self.inner.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- what the replayer reads (all from the index; quick) ---

    /// Up to `limit` events from `from` on, and the position after the last one looked at.
    #[must_use]
    pub fn heads_from(&self, from: Seq, limit: usize) -> (Vec<EventHead>, Seq) {
        self.read(|view| view.heads_from(from, limit)).unwrap_or((Vec::new(), from))
    }

    /// Unsettled deliveries of `handler` due at or before `until`, earliest first.
    #[must_use]
    pub fn due(&self, handler: &HandlerName, until: Timestamp, limit: usize) -> Vec<Delivery> {
        self.read(|view| view.due(handler, until, limit)).unwrap_or_default()
    }

    /// The earliest due time of `handler` after `after`.
    #[must_use]
    pub fn next_due(&self, handler: &HandlerName, after: Timestamp) -> Option<Timestamp> {
        self.read(|view| view.next_due(handler, after)).flatten()
    }

    /// `None`: it cannot be told, which is not the same as that the handler is new.
    #[must_use]
    pub fn known_stats(&self, handler: &HandlerName) -> Option<HandlerStats> {
        self.read(|view| view.handler_stats(handler))
    }

    #[must_use]
    pub fn handler_stats(&self, handler: &HandlerName) -> HandlerStats {
        self.known_stats(handler).unwrap_or(HandlerStats {
            cursor: None,
            paused: false,
            scheduled: 0,
            dead: 0,
            oldest: None,
        })
    }

    /// Every handler the store has ever met, also those no longer configured.
    #[must_use]
    pub fn known_handlers(&self) -> Vec<HandlerName> {
        let handlers = self.read(|view| view.handlers()).unwrap_or_default();
        handlers.into_iter().map(|(name, _)| name).collect()
    }

    /// Up to `limit` indexed records from `from` on, whatever their kind, and the position after the last
    /// one looked at. Reads the log.
    #[must_use]
    pub fn records_from(&self, from: Seq, limit: usize) -> (Vec<(Seq, Record)>, Seq) {
        let applied = self.progress().borrow().applied;
        let mut found = Vec::new();
        let mut next = from;
        if from > applied {
            return (found, next);
        }
        let reader = &self.inner.reader;
        let start = match self.read(|view| view.place_before(from)).flatten() {
            Some((before, place)) => {
                let place: Place = place.into();
                Some(((place.segment, place.offset), Some(before)))
            }
            None => reader.first_position().ok().flatten().map(|position| (position, None)),
        };
        let Some((position, before)) = start else { return (found, next) };
        let mut scan = reader.scan(position, applied);
        if let Some(before) = before {
            scan = scan.after(before);
        }
        while found.len() < limit {
            match scan.next() {
                Ok(Some(ScanItem::Frame(frame))) if frame.seq >= from => {
                    next = frame.seq + 1;
                    let record = record::decode(frame.kind, &frame.payload).ok();
                    found.extend(record.map(|record| (frame.seq, record)));
                }
                Ok(Some(_)) => {}
                Ok(None) => return (found, applied + 1),
                Err(error) => {
                    tracing::warn!(%error, "could not read the log for the live stream");
                    return (found, next);
                }
            }
        }
        (found, next)
    }

    // --- what people read ---

    #[must_use]
    pub fn event(&self, seq: Seq) -> Option<Event> {
        self.read(|view| view.event(seq)).flatten()
    }

    #[must_use]
    pub fn stored_event(&self, seq: Seq) -> Option<StoredEvent> {
        self.read(|view| view.stored_event(seq)).flatten()
    }

    /// The differing bodies that came under the same id.
    #[must_use]
    pub fn conflicts(&self, seq: Seq) -> Vec<(Timestamp, ConflictBody)> {
        self.read(|view| view.conflicts(seq)).unwrap_or_default()
    }

    /// The events with this `eventId` (one per source).
    #[must_use]
    pub fn find(&self, event_id: &str) -> Vec<Seq> {
        self.read(|view| view.find(event_id)).unwrap_or_default()
    }

    #[must_use]
    pub fn delivery(&self, key: &DeliveryKey) -> Option<Delivery> {
        self.read(|view| view.delivery(key)).flatten()
    }

    /// Newest first, before `cursor`. A page may be short and still have a `next`: each call looks at a
    /// bounded number of events.
    #[must_use]
    pub fn list_events(
        &self,
        filter: &EventFilter,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Page<StoredEvent> {
        self.read(|view| view.list_events(filter, cursor, limit)).unwrap_or_default()
    }

    /// Dead deliveries, newest event first.
    #[must_use]
    pub fn list_dead(
        &self,
        filter: &EventFilter,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Page<(Event, StoredDelivery)> {
        self.read(|view| view.list_dead(filter, cursor, limit)).unwrap_or_default()
    }

    /// Deliveries that did not simply succeed at once, newest event first.
    #[must_use]
    pub fn list_deliveries(
        &self,
        filter: &EventFilter,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Page<(Event, StoredDelivery)> {
        self.read(|view| view.list_deliveries(filter, cursor, limit)).unwrap_or_default()
    }

    /// Why what is read just now may lack something; `None` where it does not.
    #[must_use]
    pub fn catching_up(&self) -> Option<String> {
        if self.inner.index.progress().borrow().caught_up {
            return None;
        }
        let note = self.inner.index.found().note;
        Some(
            note.unwrap_or_else(|| {
                "the index is catching up with the log; nothing to do".to_owned()
            }),
        )
    }

    /// Remembers whether `disk_max` is used up, by what may not go.
    pub(super) fn note_full(&self) {
        let log_bytes = self.inner.appender.as_ref().map_or(0, |a| a.log_bytes());
        let full = log_bytes > self.inner.options.retention.disk_max;
        self.inner.full.store(full, Ordering::Relaxed);
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let inner = &*self.inner;
        let found = inner.index.found();
        let log = inner.appender.as_ref().map(|a| a.progress().borrow().clone());
        let (log_health, fault) = log.map_or((LogHealth::Ok, None), |l| (l.health, l.fault));
        let full = inner.full.load(Ordering::Relaxed);
        let (health, note) = match log_health {
            LogHealth::Failed => (Health::Failed, fault),
            LogHealth::Full => (Health::Full, fault),
            LogHealth::Ok if full => (
                Health::Full,
                Some("disk_max is full of events that are not settled; raise it, or let the handlers \
                      settle them"
                    .to_owned()),
            ),
            LogHealth::Ok if self.catching_up().is_some() => {
                (Health::Rebuilding, self.catching_up())
            }
            LogHealth::Ok => (Health::Ok, found.note.clone()),
        };
        let note = note.or_else(|| {
            (!found.damage.is_empty()).then(|| {
                "records in the log are damaged; stop and run `bluehook store check`".to_owned()
            })
        });
        let kv = inner.index.kv();
        Stats {
            health,
            note,
            events: self.read(|view| view.event_count()).unwrap_or(0),
            log_bytes: inner.appender.as_ref().map_or(0, |a| a.log_bytes()),
            index_bytes: kv.map_or(0, |kv| kv.bytes()),
            disk_free: inner.disk.space(&inner.options.data_dir).map_or(0, |s| s.free),
            progress: *inner.index.progress().borrow(),
            damage: found.damage,
            log_dir: files::log_dir(&inner.options.data_dir),
        }
    }
}
