//! What is read from the index and, through it, from the log.

use wildmatch::WildMatch;

use super::keys::{
    self, BucketEntry, DeliveryEntry, EventEntry, HandlerEntry, IdEntry, PlaceValue, Position,
    RepeatEntry,
};
use super::{Kv, KvError, ids};
use crate::clock::Timestamp;
use crate::delivery::{Attempt, Delivery, DeliveryKey, HandlerName, Seq, State};
use crate::event::{DedupKey, Event, dedup_key};
use crate::store::log::{LogReader, ScanItem};
use crate::store::record::{self, ConflictBody, Record};
use crate::store::{
    EventFilter, EventHead, FIRST_GENERATION, HandlerStats, Page, StoredDelivery, StoredEvent,
};

/// How many candidates one page may look at; `next` goes on behind them.
const LOOKED_AT_MAX: usize = 20_000;
/// Records read at most to find attempts that succeeded at once.
const SCANNED_MAX: usize = 200_000;
const CHUNK: usize = 256;

/// The index and the log together, as of one moment.
pub struct View<'a> {
    pub kv: &'a dyn Kv,
    pub reader: &'a LogReader,
}

type Result<T> = std::result::Result<T, KvError>;

impl View<'_> {
    fn get<T: bincode::Decode<()>>(&self, key: &[u8]) -> Result<Option<T>> {
        self.kv.get(key)?.as_deref().map(keys::from_value).transpose()
    }

    /// The decoded record at a place; `None` where the log is damaged or has been dropped meanwhile.
    fn record(&self, seq: Seq, place: PlaceValue) -> Option<Record> {
        let frame = self.reader.read(seq, place.into()).ok()?;
        record::decode(frame.kind, &frame.payload).ok()
    }

    pub fn applied(&self) -> Result<Seq> {
        let position: Option<Position> = self.get(keys::META_POSITION)?;
        Ok(position.map_or(0, |p| p.applied))
    }

    pub fn event_count(&self) -> Result<u64> {
        Ok(self.get(keys::META_EVENTS)?.unwrap_or(0))
    }

    pub fn id(&self, key: &DedupKey) -> Result<Option<IdEntry>> {
        ids::find(self.kv, key)
    }

    pub fn entry(&self, seq: Seq) -> Result<Option<EventEntry>> {
        self.get(&keys::event(seq))
    }

    pub fn repeats(&self, seq: Seq) -> Result<RepeatEntry> {
        Ok(self.get(&keys::repeats(seq))?.unwrap_or_default())
    }

    // --- the replayer ---

    pub fn heads_from(&self, from: Seq, limit: usize) -> Result<(Vec<EventHead>, Seq)> {
        let end = self.applied()?.saturating_add(1);
        let pairs = self.kv.range(&keys::event(from), &keys::event(end), limit)?;
        let full = pairs.len() == limit;
        let mut heads = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let entry: EventEntry = keys::from_value(&value)?;
            heads.extend(keys::last_number(&key).map(|seq| head(seq, entry)));
        }
        let next = match heads.last() {
            Some(last) if full => last.seq + 1,
            _ => end.max(from),
        };
        Ok((heads, next))
    }

    /// The events whose own records are among these.
    pub fn events_between(&self, first: Seq, last: Seq) -> Result<Vec<Seq>> {
        let end = keys::event(last.saturating_add(1));
        let pairs = self.kv.range(&keys::event(first), &end, usize::MAX)?;
        let mut found = Vec::new();
        for (key, value) in pairs {
            let entry: EventEntry = keys::from_value(&value)?;
            found.extend(keys::last_number(&key).filter(|seq| *seq == entry.record));
        }
        Ok(found)
    }

    /// The events that were carried into a segment, with the record that holds each.
    pub fn carried_in(&self, segment: u32) -> Result<Vec<(Seq, Seq)>> {
        let (from, to) = keys::of_segment(keys::CARRIED, segment);
        let mut found = Vec::new();
        for (key, _) in self.kv.range(&from, &to, usize::MAX)? {
            if let Some(seq) = keys::last_number(&key)
                && let Some(entry) = self.entry(seq)?
            {
                found.push((seq, entry.record));
            }
        }
        Ok(found)
    }

    /// Where a scan has to begin to meet record `from`, and the record before that place.
    pub fn place_before(&self, from: Seq) -> Result<Option<(Seq, PlaceValue)>> {
        let (start, _) = keys::family(keys::EVENTS);
        let mut end = keys::event(from.saturating_add(1));
        loop {
            let pairs = self.kv.range_back(&start, &end, CHUNK)?;
            for (key, value) in &pairs {
                let entry: EventEntry = keys::from_value(value)?;
                // A carried event lies far behind its number.
                if let Some(seq) = keys::last_number(key).filter(|seq| *seq == entry.record) {
                    return Ok(Some((seq.saturating_sub(1), entry.place)));
                }
            }
            match pairs.last() {
                Some((key, _)) => end = key.clone(),
                None => return Ok(None),
            }
        }
    }

    pub fn due(
        &self,
        handler: &HandlerName,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Delivery>> {
        let (mut from, _) = keys::of_handler(keys::DUE, handler);
        let to = keys::successor(keys::due(handler, until, Seq::MAX));
        let mut found = Vec::new();
        while found.len() < limit {
            let pairs = self.kv.range(&from, &to, limit - found.len())?;
            let Some((last, _)) = pairs.last() else { break };
            from = keys::successor(last.clone());
            for (key, _) in pairs {
                let Some(event) = keys::last_number(&key) else { continue };
                let delivery = DeliveryKey { event, handler: handler.clone() };
                let entry: Option<DeliveryEntry> = self.get(&keys::delivery(&delivery))?;
                // Between two reads it may have been settled.
                found.extend(entry.map(|e| e.delivery).filter(|d| !d.state.is_settled()));
            }
        }
        Ok(found)
    }

    pub fn next_due(&self, handler: &HandlerName, after: Timestamp) -> Result<Option<Timestamp>> {
        let from = keys::successor(keys::due(handler, after, Seq::MAX));
        let (_, to) = keys::of_handler(keys::DUE, handler);
        let first = self.kv.range(&from, &to, 1)?;
        Ok(first.first().and_then(|(key, _)| keys::due_of(key)))
    }

    pub fn handler_stats(&self, handler: &HandlerName) -> Result<HandlerStats> {
        let entry: HandlerEntry = self.get(&keys::handler(handler))?.unwrap_or_default();
        let (from, to) = keys::of_handler(keys::WAITING, handler);
        let waiting = self.kv.range(&from, &to, 1)?;
        let mut oldest = waiting.first().and_then(|(key, _)| keys::last_number(key));
        let (from, to) = keys::of_handler(keys::DUE, handler);
        // Running first attempts are not among the waiting; they are few.
        for (key, _) in self.kv.range(&from, &to, CHUNK)? {
            oldest = [oldest, keys::last_number(&key)].into_iter().flatten().min();
        }
        if let Some(cursor) = entry.cursor {
            let (_, end) = keys::family(keys::EVENTS);
            let next = self.kv.range(&keys::event(cursor), &end, 1)?;
            let next = next.first().and_then(|(key, _)| keys::last_number(key));
            oldest = [oldest, next].into_iter().flatten().min();
        }
        let oldest = match oldest {
            Some(seq) => self.entry(seq)?.map(|e| e.received_at),
            None => None,
        };
        Ok(HandlerStats {
            cursor: entry.cursor,
            paused: entry.paused,
            scheduled: entry.scheduled,
            dead: entry.dead,
            oldest,
        })
    }

    pub fn handlers(&self) -> Result<Vec<(HandlerName, HandlerEntry)>> {
        let (from, to) = keys::family(keys::HANDLERS);
        let mut found = Vec::new();
        for (key, value) in self.kv.range(&from, &to, usize::MAX)? {
            if let Some(name) = keys::handler_after_family(&key) {
                found.push((name, keys::from_value(&value)?));
            }
        }
        Ok(found)
    }

    // --- people ---

    pub fn event(&self, seq: Seq) -> Result<Option<Event>> {
        Ok(self.entry(seq)?.and_then(|entry| self.read_event(seq, &entry)))
    }

    fn read_event(&self, seq: Seq, entry: &EventEntry) -> Option<Event> {
        match self.record(entry.record, entry.place)? {
            Record::Event(event) | Record::Carried { event, .. } => {
                Some(Event { seq, new: event.into() })
            }
            _ => None,
        }
    }

    pub fn stored_event(&self, seq: Seq) -> Result<Option<StoredEvent>> {
        let Some(mut stored) = self.outline(seq)? else { return Ok(None) };
        for d in &mut stored.deliveries {
            d.attempts = self.attempts(&d.delivery.key)?;
        }
        Ok(Some(stored))
    }

    /// The event and the state of its deliveries, without their attempts.
    fn outline(&self, seq: Seq) -> Result<Option<StoredEvent>> {
        let Some(event) = self.event(seq)? else { return Ok(None) };
        let repeats = self.repeats(seq)?;
        let deliveries = self.deliveries(seq)?.into_iter();
        Ok(Some(StoredEvent {
            event,
            duplicates: repeats.count,
            conflict: !repeats.conflicts.is_empty(),
            deliveries: deliveries
                .map(|delivery| StoredDelivery { delivery, attempts: vec![] })
                .collect(),
        }))
    }

    /// With when each was received.
    pub fn conflicts(&self, seq: Seq) -> Result<Vec<(Timestamp, ConflictBody)>> {
        let repeats = self.repeats(seq)?;
        let bodies = repeats.conflicts.into_iter().filter_map(|(record, place)| {
            match self.record(record, place)? {
                Record::Repeat(r) => Some((r.received_at, r.conflict?)),
                // A second record of the event, from while the index was being rebuilt.
                Record::Event(e) => {
                    Some((e.received_at, ConflictBody { headers: e.headers, body: e.body }))
                }
                _ => None,
            }
        });
        Ok(bodies.collect())
    }

    /// Those with a key of their own: all that did not simply succeed at once.
    pub fn tracked_deliveries(&self, event: Seq) -> Result<Vec<Delivery>> {
        let (from, to) = keys::of_number(keys::DELIVERIES, event);
        let mut found = Vec::new();
        for (_, value) in self.kv.range(&from, &to, usize::MAX)? {
            found.push(keys::from_value::<DeliveryEntry>(&value)?.delivery);
        }
        Ok(found)
    }

    /// The deliveries of one event, by handler.
    pub fn deliveries(&self, event: Seq) -> Result<Vec<Delivery>> {
        let mut found = self.tracked_deliveries(event)?;
        for (handler, _) in self.handlers()? {
            let key = DeliveryKey { event, handler };
            let known = found.iter().any(|d| d.key == key);
            if !known && self.bucket(&key)?.is_some_and(|b| b.has(event)) {
                found.push(delivered_at_once(key));
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    pub fn delivery(&self, key: &DeliveryKey) -> Result<Option<Delivery>> {
        if let Some(entry) = self.get::<DeliveryEntry>(&keys::delivery(key))? {
            return Ok(Some(entry.delivery));
        }
        let at_once = self.bucket(key)?.is_some_and(|b| b.has(key.event));
        Ok(at_once.then(|| delivered_at_once(key.clone())))
    }

    fn bucket(&self, key: &DeliveryKey) -> Result<Option<BucketEntry>> {
        self.get(&keys::bucket(&key.handler, keys::bucket_of(key.event)))
    }

    /// Every attempt of a delivery that is still in the log, oldest first.
    pub fn attempts(&self, key: &DeliveryKey) -> Result<Vec<Attempt>> {
        let mut found = self.attempt_at_once(key)?;
        let (from, to) = keys::of_delivery(key);
        for (attempt, value) in self.kv.range(&from, &to, usize::MAX)? {
            let Some(seq) = keys::last_number(&attempt) else { continue };
            match self.record(seq, keys::from_value(&value)?) {
                Some(Record::AttemptFinished { attempt, .. }) => found.push(attempt),
                Some(Record::Snapshot { attempts, .. }) => found.extend(attempts),
                _ => {}
            }
        }
        found.sort_by_key(|a| (a.generation, a.number));
        found.dedup();
        Ok(found)
    }

    /// A first attempt that succeeded has no key of its own: the bucket says between which records it is.
    fn attempt_at_once(&self, key: &DeliveryKey) -> Result<Vec<Attempt>> {
        let Some(bucket) = self.bucket(key)?.filter(|b| b.has(key.event)) else {
            return Ok(Vec::new());
        };
        let mut scan = self.reader.scan((bucket.segment, bucket.offset), bucket.last);
        for _ in 0..SCANNED_MAX {
            let Ok(Some(item)) = scan.next() else { break };
            let ScanItem::Frame(frame) = item else { continue };
            if frame.kind != record::kind::ATTEMPT_FINISHED {
                continue;
            }
            match record::decode(frame.kind, &frame.payload) {
                Ok(Record::AttemptFinished { key: of, attempt, .. })
                    if of == *key && attempt.generation == FIRST_GENERATION =>
                {
                    return Ok(vec![attempt]);
                }
                _ => {}
            }
        }
        Ok(Vec::new())
    }

    /// Every source that an event ever came from.
    pub fn sources(&self) -> Result<Vec<String>> {
        let (from, to) = keys::family(keys::SOURCES);
        let pairs = self.kv.range(&from, &to, usize::MAX)?;
        Ok(pairs.iter().map(|(key, _)| String::from_utf8_lossy(&key[1..]).into_owned()).collect())
    }

    pub fn find(&self, event_id: &str) -> Result<Vec<Seq>> {
        let mut found = Vec::new();
        for source in self.sources()? {
            if let Some(id) = self.id(&dedup_key(&source, event_id))?
                && self.entry(id.seq)?.is_some()
            {
                found.push(id.seq);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    pub fn list_events(
        &self,
        filter: &EventFilter,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Result<Page<StoredEvent>> {
        let filter = Filter::new(filter);
        let (from, _) = keys::family(keys::EVENTS);
        let mut before = cursor.unwrap_or(Seq::MAX);
        let mut items = Vec::new();
        let mut looked_at = 0;
        while items.len() < limit && looked_at < LOOKED_AT_MAX {
            let pairs = self.kv.range_back(&from, &keys::event(before), CHUNK)?;
            if pairs.is_empty() {
                return Ok(Page { items, next: None });
            }
            for (key, value) in pairs {
                let Some(seq) = keys::last_number(&key) else { continue };
                before = seq;
                looked_at += 1;
                let entry: EventEntry = keys::from_value(&value)?;
                if filter.fits_entry(&entry) && self.fits_deliveries(&filter, seq)? {
                    items.extend(self.outline(seq)?.filter(|s| filter.fits_text(&s.event)));
                    if items.len() == limit {
                        break;
                    }
                }
            }
        }
        Ok(Page { items, next: Some(before) })
    }

    /// The event with everything, if it fits the filter.
    pub fn fitting(&self, filter: &EventFilter, seq: Seq) -> Result<Option<StoredEvent>> {
        let filter = Filter::new(filter);
        let fits = match self.entry(seq)? {
            Some(entry) => filter.fits_entry(&entry) && self.fits_deliveries(&filter, seq)?,
            None => false,
        };
        let stored = if fits { self.stored_event(seq)? } else { None };
        Ok(stored.filter(|s| filter.fits_text(&s.event)))
    }

    fn fits_deliveries(&self, filter: &Filter<'_>, seq: Seq) -> Result<bool> {
        if filter.raw.status.is_none() && filter.raw.handler.is_none() {
            return Ok(true);
        }
        Ok(self.deliveries(seq)?.iter().any(|d| filter.fits_delivery(d)))
    }

    /// Dead deliveries, newest event first. A page never ends within an event.
    pub fn list_dead(
        &self,
        filter: &EventFilter,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Result<Page<(Event, StoredDelivery)>> {
        self.page_of_marks(keys::DEAD, &Filter::new(filter), cursor, limit)
    }

    /// Deliveries that have an entry of their own: all but those that succeeded at once.
    pub fn list_deliveries(
        &self,
        filter: &EventFilter,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Result<Page<(Event, StoredDelivery)>> {
        self.page_of_marks(keys::DELIVERIES, &Filter::new(filter), cursor, limit)
    }

    fn page_of_marks(
        &self,
        family: u8,
        filter: &Filter<'_>,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Result<Page<(Event, StoredDelivery)>> {
        let (from, end) = keys::family(family);
        let mut to = cursor.map_or(end, |seq| keys::of_number(family, seq).0);
        let mut items = Vec::new();
        let mut before = None;
        for looked_at in 0.. {
            let Some((key, _)) = self.kv.range_back(&from, &to, 1)?.pop() else {
                return Ok(Page { items, next: None });
            };
            let seq = keys::first_number(&key);
            if (items.len() >= limit || looked_at >= LOOKED_AT_MAX) && seq != before {
                return Ok(Page { items, next: before });
            }
            to = key.clone();
            before = seq;
            let (Some(event), Some(handler)) = (seq, keys::handler_after_event(&key)) else {
                continue;
            };
            let key = DeliveryKey { event, handler };
            let Some(entry) = self.entry(event)?.filter(|e| filter.fits_entry(e)) else { continue };
            let Some(delivery) = self.delivery(&key)? else { continue };
            if !filter.fits_delivery(&delivery) {
                continue;
            }
            let event = self.read_event(event, &entry).filter(|e| filter.fits_text(e));
            if let Some(event) = event {
                let attempts = self.attempts(&key)?;
                items.push((event, StoredDelivery { delivery, attempts }));
            }
        }
        Ok(Page { items, next: before })
    }
}

pub(super) fn head(seq: Seq, entry: EventEntry) -> EventHead {
    EventHead {
        seq,
        kind: entry.kind,
        source: entry.source,
        time: entry.time,
        conversation: entry.conversation,
        message: entry.message,
        imported: entry.imported,
    }
}

fn delivered_at_once(key: DeliveryKey) -> Delivery {
    Delivery {
        key,
        generation: FIRST_GENERATION,
        attempts: 1,
        open_attempt: None,
        state: State::Delivered,
    }
}

struct Filter<'a> {
    raw: &'a EventFilter,
    kind: Option<WildMatch>,
}

impl<'a> Filter<'a> {
    fn new(raw: &'a EventFilter) -> Filter<'a> {
        Filter { raw, kind: raw.kind.as_deref().map(WildMatch::new) }
    }

    fn fits_entry(&self, entry: &EventEntry) -> bool {
        self.kind.as_ref().is_none_or(|glob| glob.matches(&entry.kind))
            && self.raw.source.as_ref().is_none_or(|source| *source == entry.source)
            && self.raw.since.is_none_or(|since| entry.received_at >= since)
            && self.raw.until.is_none_or(|until| entry.received_at < until)
    }

    fn fits_delivery(&self, d: &Delivery) -> bool {
        self.raw.status.as_ref().is_none_or(|status| status == d.state.name())
            && self.raw.handler.as_ref().is_none_or(|h| h == d.key.handler.as_str())
    }

    fn fits_text(&self, event: &Event) -> bool {
        let Some(text) = self.raw.search.as_deref().filter(|t| !t.is_empty()) else { return true };
        event.new.id.contains(text)
            || event.new.body.windows(text.len()).any(|w| w == text.as_bytes())
    }
}
