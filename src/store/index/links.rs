//! From an event to the others of its message and of its conversation.

use std::ops::Range;

use super::keys::{self, DeliveryEntry, EventEntry};
use super::query::{View, head};
use super::{Kv, KvError};
use crate::clock::Timestamp;
use crate::delivery::{DeliveryKey, HandlerName, Seq};
use crate::message::{self, MessageView, Report};
use crate::signature::json;
use crate::store::messages::{Message, MessageFilter};
use crate::store::{EventHead, Page};

/// Events of one message that are looked at: the oldest and the newest half of these.
const EVENTS_MAX: usize = 1_000;
/// Incoming messages of a conversation among which the newest is looked for, as they may have come out of order.
const INBOUND_LOOKED_AT: usize = 4;
/// What may have been said in a conversation, looked at to find them.
const VOICES_MAX: usize = 256;
const LOOKED_AT_MAX: usize = 20_000;
const CHUNK: usize = 256;

type Result<T> = std::result::Result<T, KvError>;

/// Up to `limit` of these events that lie under a hash, oldest first.
fn linked(
    kv: &dyn Kv,
    family: u8,
    hash: u64,
    events: Range<Seq>,
    limit: usize,
) -> Result<Vec<Seq>> {
    let mut found = Vec::new();
    let mut start = events.start;
    while start < events.end && found.len() < limit {
        let end = keys::era_end(start).min(events.end);
        // The key of `end` itself would be in the next era.
        let (from, to) = (keys::link(family, hash, start), keys::link(family, hash, end - 1));
        let to = keys::successor(to);
        for (key, _) in kv.range(&from, &to, limit - found.len())? {
            found.extend(keys::last_number(&key));
        }
        let (_, family_end) = keys::family(family);
        let next = kv.range(&keys::link(family, 0, end), &family_end, 1)?;
        let Some(next) = next.first().and_then(|(key, _)| keys::last_number(key)) else {
            break;
        };
        start = end.max(keys::era_start(next));
    }
    Ok(found)
}

/// The same, newest first.
fn linked_back(
    kv: &dyn Kv,
    family: u8,
    hash: u64,
    events: Range<Seq>,
    limit: usize,
) -> Result<Vec<Seq>> {
    let mut found = Vec::new();
    let mut end = events.end;
    while events.start < end && found.len() < limit {
        let (family_start, _) = keys::family(family);
        let before = keys::link(family, u64::MAX, end - 1);
        let last = kv.range_back(&family_start, &keys::successor(before), 1)?;
        let Some(last) = last.first().and_then(|(key, _)| keys::last_number(key)) else {
            break;
        };
        end = end.min(keys::era_end(last));
        let start = keys::era_start(end - 1).max(events.start);
        let (from, to) = (keys::link(family, hash, start), keys::link(family, hash, end - 1));
        for (key, _) in kv.range_back(&from, &keys::successor(to), limit - found.len())? {
            found.extend(keys::last_number(&key));
        }
        end = start;
    }
    Ok(found)
}

impl View<'_> {
    /// The events whose message has this hash, oldest first.
    pub fn events_of_message(&self, message: u64) -> Result<Vec<Seq>> {
        let half = EVENTS_MAX / 2;
        let mut seqs = linked(self.kv, keys::MESSAGES, message, 0..Seq::MAX, half)?;
        if seqs.len() == half {
            seqs.extend(linked_back(self.kv, keys::MESSAGES, message, 0..Seq::MAX, half)?);
            seqs.sort_unstable();
            seqs.dedup();
        }
        Ok(seqs)
    }

    /// What all events of a message say together, and what each says.
    pub fn message(&self, source: &str, id: &str) -> Result<Option<Message>> {
        let mut reports = Vec::new();
        for seq in self.events_of_message(keys::message_hash(source, id))? {
            let report = self.event(seq)?.as_ref().and_then(Report::of);
            // Another message may have the same hash.
            let report = report.filter(|r| r.source == source && r.message_id == id);
            reports.extend(report.map(|report| (seq, report)));
        }
        let plain = reports.iter().map(|(_, report)| report.clone()).collect();
        let Some(mut view) = MessageView::of(plain) else { return Ok(None) };
        if let Some(conversation) = view.conversation.as_deref() {
            view.last_inbound_at = self.last_inbound(keys::conversation_hash(conversation))?;
        }
        Ok(Some(Message { view, reports }))
    }

    /// The message that an event belongs to.
    pub fn message_of(&self, event: Seq) -> Result<Option<Message>> {
        match self.event(event)?.as_ref().and_then(Report::of) {
            Some(report) => self.message(&report.source, &report.message_id),
            None => Ok(None),
        }
    }

    /// When the other party wrote last.
    fn last_inbound(&self, conversation: u64) -> Result<Option<Timestamp>> {
        let mut found: Vec<Timestamp> = Vec::new();
        for seq in linked_back(self.kv, keys::VOICES, conversation, 0..Seq::MAX, VOICES_MAX)? {
            let Some(entry) = self.entry(seq)? else { continue };
            if entry.kind != message::RECEIVED {
                continue;
            }
            let event = self.event(seq)?;
            let value = event.and_then(|event| json::parse(&event.new.body).ok());
            let own = value.and_then(|value| message::own_time(&value, &entry.kind));
            found.push(own.unwrap_or(entry.received_at));
            if found.len() == INBOUND_LOOKED_AT {
                break;
            }
        }
        Ok(found.into_iter().max())
    }

    /// The events whose message has this hash, oldest first.
    pub fn heads_of_message(&self, message: u64) -> Result<Vec<EventHead>> {
        let mut found = Vec::new();
        for seq in self.events_of_message(message)? {
            found.extend(self.entry(seq)?.map(|entry| head(seq, entry)));
        }
        Ok(found)
    }

    /// What may have been said in a conversation among these events, oldest first; the newest, where there are
    /// many.
    pub fn voices(&self, conversation: u64, events: Range<Seq>) -> Result<Vec<EventHead>> {
        let mut found = Vec::new();
        for seq in linked_back(self.kv, keys::VOICES, conversation, events, VOICES_MAX)? {
            found.extend(self.entry(seq)?.map(|entry| head(seq, entry)));
        }
        found.reverse();
        Ok(found)
    }

    /// The event whose timer of this rule runs in the conversation, or fired there and was not answered.
    pub fn follow_up(&self, rule: &HandlerName, conversation: u64) -> Result<Option<Seq>> {
        let value = self.kv.get(&keys::follow_up(rule, conversation))?;
        value.as_deref().map(keys::from_value).transpose()
    }

    /// The conversation in which this delivery is the only timer of its rule.
    pub fn followed(&self, key: &DeliveryKey) -> Result<Option<u64>> {
        let value = self.kv.get(&keys::delivery(key))?;
        let entry: Option<DeliveryEntry> = value.as_deref().map(keys::from_value).transpose()?;
        Ok(entry.and_then(|entry| entry.conversation))
    }

    /// Messages, those with the newest event first; the cursor is the number of that event.
    pub fn list_messages(
        &self,
        filter: &MessageFilter,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Result<Page<Message>> {
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
                if !filter.fits_entry(&entry.source, entry.received_at) {
                    continue;
                }
                let Some(message) = entry.message else { continue };
                if !linked(self.kv, keys::MESSAGES, message, seq + 1..Seq::MAX, 1)?.is_empty() {
                    continue;
                }
                items.extend(self.message_of(seq)?.filter(|m| filter.fits(&m.view)));
                if items.len() == limit {
                    break;
                }
            }
        }
        Ok(Page { items, next: Some(before) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::memory::MemoryKv;

    /// Events of four hashes over eras that are full, sparse and empty, next to another family.
    #[test]
    fn what_lies_under_a_hash_is_found_across_eras_in_order_and_within_bounds() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let kv = MemoryKv::new();
            let mut all = Vec::new();
            for _ in 0..random.usize(0..60) {
                let era = [0, 1, 2, 3, 900, 901, 1 << 40][random.usize(0..7)];
                let within = [0, 1, random.u64(0..65_536), 65_534, 65_535][random.usize(0..5)];
                let (seq, hash) = ((era << 16) + within, [0, 1, 7, u64::MAX][random.usize(0..4)]);
                all.push((hash, seq));
                for family in [keys::MESSAGES, keys::VOICES] {
                    kv.apply(vec![(keys::link(family, hash, seq), Some(vec![]))]).unwrap();
                }
            }
            all.sort_unstable();
            all.dedup();
            for _ in 0..20 {
                let (hash, limit) = ([0, 1, 7, u64::MAX][random.usize(0..4)], random.usize(1..9));
                let mut bound = || match random.usize(0..4) {
                    0 => 0,
                    1 => Seq::MAX,
                    _ => all.get(random.usize(0..60)).map_or(5, |(_, seq)| seq + random.u64(0..2)),
                };
                let events = bound()..bound();
                let mut wanted: Vec<Seq> = all
                    .iter()
                    .filter(|(h, seq)| *h == hash && events.contains(seq))
                    .map(|(_, seq)| *seq)
                    .collect();
                let found = linked(&kv, keys::MESSAGES, hash, events.clone(), limit).unwrap();
                assert_eq!(found, wanted[..limit.min(wanted.len())], "{events:?} {all:?}");
                wanted.reverse();
                let found = linked_back(&kv, keys::MESSAGES, hash, events.clone(), limit).unwrap();
                assert_eq!(found, wanted[..limit.min(wanted.len())], "{events:?} {all:?}");
            }
        }
    }
}
