//! From records to batches: the one place where the index changes.
//!
//! A step is one atomic batch of a limited size that ends with the position, so a crash leaves
//! a step applied or not. The few records that need more (a dropped segment, kept keys) first write
//! batches without the position; each of those may be applied again to the same end.

mod deliveries;
mod refill;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use refill::refill;
#[cfg(test)]
pub(super) use refill::refill_with;

use super::keys::{self, CONFLICTS_MAX, DeliveryEntry, EventEntry, IdEntry, Position, RepeatEntry};
use super::overlay::Overlay;
use super::{Kv, KvError};
use crate::clock::Timestamp;
use crate::delivery::{DeliveryKey, Seq};
use crate::event::{self, DedupKey};
use crate::store::log::Place;
use crate::store::record::{EventRecord, Record};

/// More than any single record writes, apart from those that take several batches.
const RECORD_OPS_MAX: usize = 14;
/// Pairs read at once where many have to go.
const CHUNK: usize = 48;
/// Types and reasons come from outside and may be as long as a body; the index keeps values small.
const TEXT_CHARS_MAX: usize = 256;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub seq: Seq,
    /// Schedule time.
    pub time: Timestamp,
    pub place: Place,
}

pub struct Applier {
    overlay: Overlay,
    position: Position,
    written: Seq,
    /// Of events that wait for their batch.
    seen_keys: Vec<DedupKey>,
    /// Of events written out since last asked.
    written_keys: Vec<DedupKey>,
    /// Met before: they are in the index.
    sources: BTreeSet<String>,
}

impl Applier {
    #[must_use]
    pub fn new(kv: Arc<dyn Kv>, position: Position) -> Applier {
        let overlay = Overlay::new(kv);
        Applier {
            overlay,
            written: position.applied,
            position,
            seen_keys: vec![],
            written_keys: vec![],
            sources: BTreeSet::new(),
        }
    }

    /// Up to here records are in the index.
    #[must_use]
    pub fn applied(&self) -> Seq {
        self.written
    }

    /// The position after the last record given, written out or not.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The duplicate keys of the events that were written out since the last call.
    pub fn take_written_keys(&mut self) -> Vec<DedupKey> {
        std::mem::take(&mut self.written_keys)
    }

    /// # Errors
    /// The index is broken.
    pub fn apply(&mut self, at: At, record: Record) -> Result<(), KvError> {
        if !self.overlay.has_room(RECORD_OPS_MAX) {
            self.commit()?;
        }
        let of_events = match &record {
            Record::Event(_) => Some(true),
            Record::Carried { .. }
            | Record::Keys { .. }
            | Record::Forgotten { .. }
            | Record::Dropped { .. } => Some(false),
            // The others leave the packed families alone.
            _ => None,
        };
        if let Some(of_events) = of_events
            && !self.overlay.takes(of_events)
        {
            self.commit()?;
            self.overlay.takes(of_events);
        }
        self.record(at, record)?;
        self.position.applied = at.seq;
        self.position.segment = at.place.segment;
        self.position.offset = u64::from(at.place.offset) + u64::from(at.place.len);
        self.position.last = Some((at.place.into(), at.time));
        Ok(())
    }

    /// Records up to `last` cannot be read; the log goes on at this place.
    pub fn skip(&mut self, last: Seq, segment: u32, offset: u64) {
        self.position = Position {
            applied: last.max(self.position.applied),
            segment,
            offset,
            last: None,
            ..self.position
        };
    }

    /// Writes out what waits, and the position.
    ///
    /// # Errors
    /// The index is broken.
    pub fn commit(&mut self) -> Result<(), KvError> {
        let position = keys::to_value(&self.position)?;
        self.overlay.write_out(Some((keys::META_POSITION.to_vec(), position)))?;
        self.written = self.position.applied;
        self.written_keys.append(&mut self.seen_keys);
        Ok(())
    }

    /// Before something that takes several batches: the position must not run ahead of it.
    fn make_room(&mut self) -> Result<(), KvError> {
        if self.overlay.has_room(RECORD_OPS_MAX) { Ok(()) } else { self.overlay.write_out(None) }
    }

    fn record(&mut self, at: At, record: Record) -> Result<(), KvError> {
        match record {
            Record::Event(event) => self.event(at, &event),
            Record::Repeat(r) => self.repeat(at, r.of, r.conflict.is_some(), r.carried_from),
            Record::AttemptStarted { key, generation, number } => {
                self.attempt_started(at, key, generation, number)
            }
            Record::AttemptFinished { key, attempt, next } => {
                self.attempt_finished(at, key, &attempt, next)
            }
            Record::Discarded { key } => self.discarded(at, &key),
            Record::Replayed { key, due } => self.replayed(at, key, due),
            Record::HandlerSeen { handler, from } => self.change_handler(&handler, |h| {
                h.cursor.get_or_insert(from);
            }),
            Record::HandlerMoved { handler, to } => {
                self.change_handler(&handler, |h| h.cursor = h.cursor.max(Some(to)))
            }
            Record::HandlerPaused { handler, paused } => self.change_handler(&handler, |h| {
                h.paused = paused;
                h.paused_by = at.seq;
            }),
            Record::HandlerCarried { handler, cursor, paused, as_of } => {
                self.change_handler(&handler, |h| {
                    h.cursor = h.cursor.max(cursor);
                    if h.paused_by <= as_of {
                        h.paused = paused;
                    }
                })
            }
            Record::Boot { .. } | Record::Stopped => Ok(()),
            Record::Carried { seq, time, event, repeats } => {
                self.carried(at, seq, time, &event, repeats)
            }
            Record::Snapshot { delivery, attempts, as_of, conversation } => {
                self.snapshot(at, delivery, &attempts, as_of, conversation)
            }
            Record::Answered { key } => self.answered(at, &key),
            Record::Keys { keys, .. } => self.keys(&keys),
            Record::Forgotten { keys } => self.forgotten(&keys),
            Record::Dropped { segment, first, last, .. } => self.dropped(segment, first, last),
        }
    }

    // --- events ---

    /// The first record of a key is the event; a later one is the same event come again, which intake
    /// could not know while the index was being rebuilt.
    fn event(&mut self, at: At, event: &EventRecord) -> Result<(), KvError> {
        let key = event::dedup_key(&event.source, &event.id);
        let body_hash = event::body_hash(&event.body);
        let known = self.overlay.id(&key)?;
        self.seen_keys.push(key);
        match known {
            Some(known) if known.seq != at.seq => {
                self.repeat(at, known.seq, known.body_hash != body_hash, None)
            }
            _ => {
                let entry = event_entry(at, at.time, event);
                let id = IdEntry { seq: at.seq, body_hash };
                self.new_event(&entry, &key, &id, known.is_none())
            }
        }
    }

    fn new_event(
        &mut self,
        entry: &EventEntry,
        key: &DedupKey,
        id: &IdEntry,
        is_new_key: bool,
    ) -> Result<(), KvError> {
        if !self.sources.contains(&entry.source) {
            self.overlay.put(keys::source(&entry.source), &())?;
            self.sources.insert(entry.source.clone());
        }
        self.pack(entry, key, id)?;
        if is_new_key {
            self.count(keys::META_IDS, |n| n + 1)?;
        }
        self.count(keys::META_EVENTS, |n| n + 1)
    }

    /// An event's part of the packed families.
    fn pack(&mut self, entry: &EventEntry, key: &DedupKey, id: &IdEntry) -> Result<(), KvError> {
        let seq = id.seq;
        self.overlay.put(keys::event(seq), entry)?;
        if let Some(message) = entry.message {
            self.overlay.put(keys::link(keys::MESSAGES, message, seq), &())?;
        }
        if let Some(conversation) = entry.voice() {
            self.overlay.put(keys::link(keys::VOICES, conversation, seq), &())?;
        }
        self.overlay.put_id(seq, key, id)
    }

    fn count(&mut self, key: &[u8], change: impl FnOnce(u64) -> u64) -> Result<(), KvError> {
        let n: Option<u64> = self.overlay.get(key)?;
        self.overlay.put(key.to_vec(), &change(n.unwrap_or(0)))
    }

    fn repeat(
        &mut self,
        at: At,
        of: Seq,
        conflict: bool,
        carried_from: Option<Seq>,
    ) -> Result<(), KvError> {
        if !self.overlay.has(&keys::event(of))? {
            return Ok(());
        }
        let mut entry: RepeatEntry = self.overlay.get(&keys::repeats(of))?.unwrap_or_default();
        if carried_from.is_none() {
            entry.count = entry.count.saturating_add(1);
        }
        entry.conflicts.retain(|(record, _)| Some(*record) != carried_from);
        if conflict && entry.conflicts.len() < CONFLICTS_MAX {
            entry.conflicts.push((at.seq, at.place.into()));
        }
        self.overlay.put(keys::repeats(of), &entry)
    }

    fn carried(
        &mut self,
        at: At,
        seq: Seq,
        time: Timestamp,
        event: &EventRecord,
        repeats: u32,
    ) -> Result<(), KvError> {
        let key = event::dedup_key(&event.source, &event.id);
        let known = self.overlay.id(&key)?;
        let is_new_key = known.is_none();
        let id = IdEntry { seq, body_hash: event::body_hash(&event.body) };
        if let Some(known) = known.filter(|k| k.seq != seq) {
            // Rebuilding from a log whose first segments are gone, a repeat was taken for the event.
            self.commit()?;
            self.remove_event(known.seq)?;
            self.make_room()?;
            self.overlay.delete(keys::id(known.seq, &key));
            self.overlay.put_id(seq, &key, &id)?;
        }
        self.overlay.put(keys::carried(at.place.segment, seq), &())?;
        let entry = EventEntry { record: at.seq, ..event_entry(at, time, event) };
        if self.overlay.has(&keys::event(seq))? {
            return self.overlay.put(keys::event(seq), &entry);
        }
        if repeats > 0 {
            let entry = RepeatEntry { count: repeats, conflicts: Vec::new() };
            self.overlay.put(keys::repeats(seq), &entry)?;
        }
        self.new_event(&entry, &key, &id, is_new_key)
    }

    /// Of events that are about to go. As long as they are there, so are their keys; when the index is
    /// built from a log that has lost them, the keys come from here.
    fn keys(&mut self, kept: &[(DedupKey, [u8; 8], Seq)]) -> Result<(), KvError> {
        self.commit()?;
        for (key, body_hash, seq) in kept {
            self.make_room()?;
            if !self.overlay.has(&keys::event(*seq))? && self.overlay.id(key)?.is_none() {
                let entry = IdEntry { seq: *seq, body_hash: *body_hash };
                self.overlay.put_id(*seq, key, &entry)?;
                self.count(keys::META_IDS, |n| n + 1)?;
            }
        }
        self.make_room()
    }

    /// Unless the event is there after all: it was about to go when someone replayed it.
    fn forgotten(&mut self, old: &[DedupKey]) -> Result<(), KvError> {
        self.commit()?;
        for key in old {
            self.make_room()?;
            if let Some(entry) = self.overlay.id(key)?
                && !self.overlay.has(&keys::event(entry.seq))?
            {
                self.overlay.delete(keys::id(entry.seq, key));
                self.count(keys::META_IDS, |n| n.saturating_sub(1))?;
            }
        }
        self.make_room()
    }

    /// Forgets what lay in a segment and was not carried on.
    fn dropped(&mut self, segment: u32, first: Seq, last: Seq) -> Result<(), KvError> {
        self.commit()?;
        self.each(keys::of_segment(keys::CARRIED, segment), |this, key, _| {
            if let Some(seq) = keys::last_number(&key) {
                this.remove_event_in(segment, seq)?;
            }
            this.make_room()?;
            this.overlay.delete(key);
            Ok(())
        })?;
        // Few events have keys besides their own: those go one by one, the rest together.
        let end = last.saturating_add(1);
        let mut more = BTreeSet::new();
        for family in [keys::DELIVERIES, keys::REPEATS] {
            let (from, _) = keys::of_number(family, first);
            let (to, _) = keys::of_number(family, end);
            self.each((from, to), |_, key, _| {
                more.extend(keys::first_number(&key));
                Ok(())
            })?;
        }
        for seq in &more {
            self.remove_event_in(segment, *seq)?;
        }
        self.each((keys::event(first), keys::event(end)), |this, key, value| {
            let entry: EventEntry = keys::from_value(&value)?;
            if entry.place.segment == segment {
                this.make_room()?;
                let seq = keys::last_number(&key);
                this.overlay.delete(key);
                if let Some(seq) = seq {
                    this.forget_links(seq, &entry);
                }
                this.count(keys::META_EVENTS, |n| n.saturating_sub(1))?;
            }
            Ok(())
        })?;
        let handlers: Vec<_> = self.list(keys::family(keys::HANDLERS))?;
        for handler in handlers.iter().filter_map(|k| keys::handler_after_family(k)) {
            let end = keys::bucket(&handler, keys::bucket_of(last.saturating_add(1)));
            let (start, _) = keys::of_handler(keys::BUCKETS, &handler);
            self.each((start, end), |this, key, _| {
                this.make_room()?;
                this.overlay.delete(key);
                Ok(())
            })?;
        }
        self.make_room()
    }

    fn remove_event_in(&mut self, segment: u32, seq: Seq) -> Result<(), KvError> {
        let entry: Option<EventEntry> = self.overlay.get(&keys::event(seq))?;
        match entry {
            Some(entry) if entry.place.segment == segment => self.remove_event(seq),
            _ => Ok(()),
        }
    }

    /// The event with all its deliveries; its duplicate key stays.
    fn remove_event(&mut self, seq: Seq) -> Result<(), KvError> {
        self.make_room()?;
        let Some(event) = self.overlay.get::<EventEntry>(&keys::event(seq))? else {
            return Ok(());
        };
        self.each(keys::of_number(keys::DELIVERIES, seq), |this, _, value| {
            let entry: DeliveryEntry = keys::from_value(&value)?;
            this.forget_attempts(&entry.delivery.key, Seq::MAX)?;
            this.make_room()?;
            this.set_delivery(Some(&entry), None)
        })?;
        self.make_room()?;
        self.overlay.delete(keys::event(seq));
        self.overlay.delete(keys::repeats(seq));
        self.forget_links(seq, &event);
        self.count(keys::META_EVENTS, |n| n.saturating_sub(1))
    }

    /// The keys by which an event is found from its message and its conversation.
    fn forget_links(&mut self, seq: Seq, entry: &EventEntry) {
        if let Some(message) = entry.message {
            self.overlay.delete(keys::link(keys::MESSAGES, message, seq));
        }
        if let Some(conversation) = entry.voice() {
            self.overlay.delete(keys::link(keys::VOICES, conversation, seq));
        }
    }

    /// The `a` keys of records up to `as_of`.
    fn forget_attempts(&mut self, key: &DeliveryKey, as_of: Seq) -> Result<(), KvError> {
        let (from, _) = keys::of_delivery(key);
        let to = keys::successor(keys::attempt(key, as_of));
        self.each((from, to), |this, key, _| {
            this.make_room()?;
            this.overlay.delete(key);
            Ok(())
        })
    }

    /// Calls `f` with every pair of the range, as it stands once what waits is written out.
    fn each(
        &mut self,
        (mut from, to): (Vec<u8>, Vec<u8>),
        mut f: impl FnMut(&mut Applier, Vec<u8>, Vec<u8>) -> Result<(), KvError>,
    ) -> Result<(), KvError> {
        loop {
            self.overlay.write_out(None)?;
            let pairs = self.overlay.kv().range(&from, &to, CHUNK)?;
            let Some((last, _)) = pairs.last() else { return Ok(()) };
            from = keys::successor(last.clone());
            for (key, value) in pairs {
                f(self, key, value)?;
            }
        }
    }

    fn list(&mut self, range: (Vec<u8>, Vec<u8>)) -> Result<Vec<Vec<u8>>, KvError> {
        let mut found = Vec::new();
        self.each(range, |_, key, _| {
            found.push(key);
            Ok(())
        })?;
        Ok(found)
    }
}

fn event_entry(at: At, time: Timestamp, event: &EventRecord) -> EventEntry {
    EventEntry {
        place: at.place.into(),
        record: at.seq,
        time,
        received_at: event.received_at,
        kind: shortened(&event.kind),
        source: event.source.clone(),
        conversation: event.conversation.as_deref().map(keys::conversation_hash),
        message: event::message_id(&event.body).map(|id| keys::message_hash(&event.source, &id)),
        imported: event.imported,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}
