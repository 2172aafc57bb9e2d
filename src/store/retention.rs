//! Makes room: drops the oldest segment once nothing in it matters any more, or carries the little that
//! does to the tail first. Never an event that is not settled.

mod walk;

use std::sync::atomic::Ordering;
use std::time::Duration;

pub use walk::spawn;

use super::Store;
use super::index::KvError;
use super::index::compact;
use super::index::query::View;
use super::log::{Appender, Frame, ScanItem, SegmentInfo};
use super::record::{self, EventRecord, Record, RepeatRecord};
use crate::clock::Timestamp;
use crate::defect::{self, Defect};
use crate::delivery::{HandlerName, Seq, State};
use crate::event::{self, DedupKey};

/// After so many failures in a row, five seconds apart, what can't be read is damage.
const READ_TRIES: u32 = 60;
/// Events of a segment may be settled at any time. Reading it takes a Pi seconds.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Keys in one record.
const KEYS_MAX: usize = 1_000;
/// What one of them takes there, at most.
const KEY_BYTES: u64 = 48;

#[derive(Default)]
pub(super) struct Dropping {
    /// The last segment that was dropped.
    last: u32,
    /// How often in a row the next one could not be read.
    unreadable: u32,
    /// The segment that the index has been doubted for already.
    doubted: Option<u32>,
    /// Up to this one segments are carried however little that wins: behind them there is more to win.
    carry_upto: u32,
    /// Before that the oldest segment need not be read again, unless room is short.
    look_at: Option<Timestamp>,
}

impl Dropping {
    /// Segment `last` is gone.
    fn after(&self, last: u32) -> Dropping {
        Dropping { last, carry_upto: self.carry_upto, ..Dropping::default() }
    }
}

/// What came of looking at the oldest segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pass {
    NotDue,
    /// Room is needed, and nothing may go.
    Futile,
    /// It is gone; so many bytes were won.
    Dropped(u64),
}

/// A duplicate key with the hash of its body and the event's number.
type KeptKey = (DedupKey, [u8; 8], Seq);

/// What the oldest segment holds.
#[derive(Default)]
struct Plan {
    /// Go on to the tail.
    kept: Vec<Seq>,
    kept_bytes: u64,
    dropped: Vec<KeptKey>,
    /// Duplicate keys of events dropped earlier: when, and which.
    keys: Vec<(Timestamp, Vec<KeptKey>)>,
    /// What these take, of `kept_bytes`.
    keys_bytes: u64,
    /// Duplicate keys that have been kept long enough.
    expired: Vec<DedupKey>,
    /// Conflicting bodies of events that stay.
    conflicts: Vec<(Seq, RepeatRecord)>,
    /// When the newest of the settled events came in.
    newest: Option<Timestamp>,
    /// Something in it is damaged: the file is kept aside.
    damaged: bool,
    /// The disk failed to read it: perhaps only just now.
    unreadable: bool,
}

impl Plan {
    /// What dropping the segment writes to the tail.
    fn carried_bytes(&self) -> u64 {
        self.kept_bytes + KEY_BYTES * self.dropped.len() as u64
    }

    /// Without need a segment goes once all that is settled in it is `keep` old, and most of it is settled.
    /// `None`: now. Without `keep` what is settled goes only for need.
    fn due_at(&self, bytes: u64, now: Timestamp, keep: Option<Duration>) -> Option<Timestamp> {
        let old_at = match (self.newest, keep) {
            (None, _) => now,
            (Some(newest), Some(keep)) => newest.plus(keep),
            (Some(_), None) => now.plus(LOOK_AGAIN),
        };
        let settled = self.kept_bytes <= bytes / 2;
        let settled_at = if settled { now } else { now.plus(LOOK_AGAIN) };
        Some(old_at.max(settled_at)).filter(|at| now < *at)
    }

    /// Where room is needed, what is known of duplicates may take half of a segment. Rather is the oldest of it
    /// forgotten than an event refused. Tells how many, and when the newest of them was dropped.
    fn forget_keys(&mut self, segment_bytes: u64) -> Option<(usize, Timestamp)> {
        if self.keys_bytes <= segment_bytes / 2 {
            return None;
        }
        let newest = self.keys.iter().map(|(dropped_at, _)| *dropped_at).max()?;
        let forgotten = std::mem::take(&mut self.keys).into_iter().flat_map(|(_, keys)| keys);
        let before = self.expired.len();
        self.expired.extend(forgotten.map(|(key, ..)| key));
        self.kept_bytes -= std::mem::take(&mut self.keys_bytes);
        Some((self.expired.len() - before, newest))
    }

    /// These records cannot be read. What is lost with them is said.
    fn damage(
        &mut self,
        view: &View<'_>,
        needs: &Needs,
        segment: u32,
        records: std::ops::RangeInclusive<Seq>,
    ) -> Result<(), KvError> {
        self.damaged = true;
        let own = view.events_between(*records.start(), *records.end())?;
        let carried = view.carried_in(segment)?.into_iter();
        let carried = carried.filter(|(_, record)| records.contains(record)).map(|(seq, _)| seq);
        for seq in own.into_iter().chain(carried) {
            if needs.hold(view, seq)? {
                tracing::error!(
                    seq,
                    "an event that is not settled is lost: its record is damaged; the segment is kept aside"
                );
            }
        }
        Ok(())
    }

    /// `frame` holds event `seq`, or a repeat of another, or what has been carried on since. Nothing else is
    /// looked up by id: that would draw the whole index through memory. One that the index knows nothing of
    /// would be lost with its segment.
    fn event(
        &mut self,
        view: &View<'_>,
        needs: &Needs,
        seq: Seq,
        frame: &Frame,
        event: &EventRecord,
    ) -> Result<(), KvError> {
        let entry = view.entry(seq)?;
        let key = || event::dedup_key(&event.source, &event.id);
        if needs.doubts && entry.is_none() && view.id(&key())?.is_none() {
            return Err(KvError(format!("index: it does not know event {seq}")));
        }
        let Some(entry) = entry.filter(|e| e.record == frame.seq) else { return Ok(()) };
        if needs.hold(view, seq)? {
            self.kept.push(seq);
            self.kept_bytes += u64::from(frame.place.len);
            return Ok(());
        }
        self.newest = self.newest.max(Some(entry.time));
        self.dropped.push((key(), event::body_hash(&event.body), seq));
        Ok(())
    }
}

/// Drops the oldest segment if that is due. `looks_ahead`: where it has to be carried nearly whole, what
/// lies behind it is looked at too.
pub(super) async fn pass(store: &Store, looks_ahead: bool) -> Result<Pass, String> {
    let Some(appender) = &store.inner.appender else { return Ok(Pass::NotDue) };
    let mut dropping = store.inner.dropping.lock().await;
    let retention = &store.inner.options.retention;
    let mut segments = appender.segments();
    // The appender's list may lag behind its answer by a moment.
    segments.retain(|s| s.number > dropping.last);
    let log_bytes: u64 = segments.iter().map(|s| s.bytes).sum();
    // The index gets what it needs, with the holes that it is let have, and at least a quarter.
    let quarter = retention.disk_max / 4;
    let expected = store.read(|view| compact::expected_bytes(view.kv)).unwrap_or(0);
    let index_bytes = expected.saturating_add(compact::holes_max(retention.disk_max));
    let budget = retention.disk_max - index_bytes.clamp(quarter, 3 * quarter);
    let pressed = log_bytes > budget;
    if !pressed {
        store.inner.full.store(false, Ordering::Relaxed);
    }
    let oldest = segments.first().filter(|s| s.sealed).copied();
    let Some(oldest) = oldest.filter(|_| pressed || retention.delivered.is_some()) else {
        return Ok(Pass::NotDue);
    };
    let (Some(first), Some(last)) = (oldest.first, oldest.last) else {
        // Nothing in it can be read; it is kept aside.
        appender.mark_damaged(oldest.number);
        remove(store, appender, oldest.number).await?;
        *dropping = dropping.after(oldest.number);
        return Ok(Pass::Dropped(oldest.bytes));
    };
    let progress = *store.inner.index.progress().borrow();
    if !progress.caught_up || progress.applied < last {
        return Ok(Pass::NotDue);
    }
    let now = store.inner.timeline.at(store.inner.clock.now());
    if !pressed && dropping.look_at.is_some_and(|at| now < at) {
        return Ok(Pass::NotDue);
    }
    let insists = dropping.unreadable >= READ_TRIES;
    // Once: an index that was built anew for it is believed.
    let doubts = dropping.doubted != Some(oldest.number);
    let looked = store.read(|view| look(store, view, oldest, last, insists, doubts));
    let Some(mut plan) = looked else {
        dropping.doubted = Some(oldest.number);
        return Ok(Pass::NotDue);
    };
    if plan.unreadable {
        dropping.unreadable = dropping.unreadable.saturating_add(1);
        return Ok(Pass::NotDue);
    }
    if !pressed && let Some(at) = plan.due_at(oldest.bytes, now, retention.delivered) {
        dropping.look_at = Some(at);
        return Ok(Pass::NotDue);
    }
    let forgotten = if pressed { plan.forget_keys(oldest.bytes) } else { None };
    if !is_worthwhile(plan.kept_bytes, oldest.bytes) && oldest.number > dropping.carry_upto {
        let behind = segments.get(1..).filter(|_| looks_ahead).unwrap_or_default();
        let Some(upto) = worthwhile_upto(store, &plan, oldest, behind) else {
            store.note_full();
            return Ok(Pass::Futile);
        };
        dropping.carry_upto = upto;
    }
    if plan.damaged {
        appender.mark_damaged(oldest.number);
    }
    // Nobody replays or discards between the look at what is settled and its end.
    let _still = store.inner.changing.write().await;
    let tail = Tail { store, epoch: appender.progress().borrow().epoch };
    if defect::has(Defect::EarlyDrop) {
        // The reader has the file open still.
        _ = appender.remove_segment(oldest.number).await;
    }
    carry(&tail, &plan).await?;
    let still_settled = store.read(|view| {
        let needs = Needs::of(store, view)?;
        let mut settled = true;
        for (_, _, seq) in &plan.dropped {
            settled &= !needs.hold(view, *seq)?;
        }
        Ok(settled)
    });
    if still_settled != Some(true) {
        // Someone replayed one of them meanwhile.
        return Ok(Pass::NotDue);
    }
    snapshots(&tail, &plan).await?;
    let events = plan.dropped.len() as u64;
    tail.append(Record::Dropped { segment: oldest.number, first, last, events }).await?;
    tail.fence().await?;
    if !defect::has(Defect::EarlyDrop) {
        remove(store, appender, oldest.number).await?;
    }
    *dropping = dropping.after(oldest.number);
    if let Some((keys, dropped_at)) = forgotten {
        let dropped_at = store.wall_of(dropped_at).to_rfc3339();
        tracing::warn!(
            keys,
            "disk_max is short: duplicates of events dropped before {dropped_at} are taken for new ones; raise it"
        );
    }
    tracing::info!(segment = oldest.number, events, kept = plan.kept.len(), "dropped a segment");
    Ok(Pass::Dropped(oldest.bytes.saturating_sub(plan.carried_bytes())))
}

fn is_worthwhile(carried: u64, bytes: u64) -> bool {
    carried <= bytes / 10 * 9
}

/// The first segment with which dropping all of them from the oldest on wins enough for what it writes.
fn worthwhile_upto(
    store: &Store,
    plan: &Plan,
    oldest: SegmentInfo,
    behind: &[SegmentInfo],
) -> Option<u32> {
    let (mut carried, mut bytes) = (plan.kept_bytes, oldest.bytes);
    for segment in behind.iter().filter(|s| s.sealed) {
        bytes += segment.bytes;
        if let Some(last) = segment.last {
            let applied = store.inner.index.progress().borrow().applied;
            if applied < last || *store.inner.stop.borrow() {
                return None;
            }
            let mut plan = store.read(|view| look(store, view, *segment, last, false, false))?;
            if plan.unreadable {
                return None;
            }
            plan.forget_keys(segment.bytes);
            carried += plan.carried_bytes();
        }
        if is_worthwhile(carried, bytes) {
            return Some(segment.number);
        }
    }
    None
}

async fn remove(store: &Store, appender: &Appender, segment: u32) -> Result<(), String> {
    let removed = appender.remove_segment(segment).await;
    store.inner.reader.forget(segment);
    removed.map_err(|e| format!("segment {segment} cannot be removed: {e:?}"))
}

/// `insists`: what still can't be read is damage.
fn look(
    store: &Store,
    view: &View<'_>,
    oldest: SegmentInfo,
    last: Seq,
    insists: bool,
    doubts: bool,
) -> Result<Plan, KvError> {
    let retention = &store.inner.options.retention;
    let needs = Needs { doubts, ..Needs::of(store, view)? };
    let mut plan = Plan::default();
    let mut scan = view.reader.scan((oldest.number, 0), last).stepping_over(insists);
    loop {
        let frame = match scan.next() {
            Ok(Some(ScanItem::Frame(frame))) => frame,
            Ok(Some(ScanItem::Damage(damage))) => {
                plan.damage(view, &needs, oldest.number, damage.first..=damage.last.min(last))?;
                continue;
            }
            Ok(None) => return Ok(plan),
            Err(e) => {
                tracing::warn!(error = %e, "retention cannot read the log");
                plan.unreadable = true;
                return Ok(plan);
            }
        };
        if frame.place.segment != oldest.number {
            return Ok(plan);
        }
        let Ok(record) = record::decode(frame.kind, &frame.payload) else {
            plan.damage(view, &needs, oldest.number, frame.seq..=frame.seq)?;
            continue;
        };
        match record {
            Record::Event(event) => {
                plan.event(view, &needs, frame.seq, &frame, &event)?;
            }
            Record::Carried { seq, event, .. } => {
                plan.event(view, &needs, seq, &frame, &event)?;
            }
            Record::Keys { dropped_at, keys } if needs.now.since(dropped_at) < retention.dedup => {
                plan.kept_bytes += u64::from(frame.place.len);
                plan.keys_bytes += u64::from(frame.place.len);
                plan.keys.push((dropped_at, keys));
            }
            Record::Snapshot { delivery, .. } if needs.hold(view, delivery.key.event)? => {
                plan.kept_bytes += u64::from(frame.place.len);
            }
            Record::Keys { keys, .. } => plan.expired.extend(keys.iter().map(|(key, ..)| *key)),
            Record::Repeat(repeat) if repeat.conflict.is_some() => {
                let known = view.repeats(repeat.of)?.conflicts;
                if known.iter().any(|(seq, _)| *seq == frame.seq) && needs.hold(view, repeat.of)? {
                    plan.kept_bytes += u64::from(frame.place.len);
                    plan.conflicts.push((frame.seq, repeat));
                }
            }
            _ => {}
        }
    }
}

/// What makes an event stay, as of one moment.
struct Needs {
    now: Timestamp,
    dead: Option<Duration>,
    /// From here on some configured handler has yet to consider what came in.
    unconsidered: Seq,
    /// An event that the index does not know has it built anew.
    doubts: bool,
}

impl Needs {
    fn of(store: &Store, view: &View<'_>) -> Result<Needs, KvError> {
        let active: Option<Vec<HandlerName>> = store.active().clone();
        let handlers = view.handlers()?.into_iter();
        let waits = |name: &HandlerName| active.as_ref().is_none_or(|a| a.contains(name));
        let cursors = handlers.filter(|(name, _)| waits(name)).filter_map(|(_, h)| h.cursor);
        Ok(Needs {
            now: store.inner.timeline.at(store.inner.clock.now()),
            dead: store.inner.options.retention.dead,
            unconsidered: cursors.min().unwrap_or(Seq::MAX),
            doubts: false,
        })
    }

    /// Not settled for every handler, or dead and not yet to be forgotten.
    fn hold(&self, view: &View<'_>, seq: Seq) -> Result<bool, KvError> {
        let Some(entry) = view.entry(seq)? else { return Ok(false) };
        for delivery in view.tracked_deliveries(seq)? {
            match delivery.state {
                State::Scheduled { .. } => return Ok(true),
                State::Dead { .. }
                    if self.dead.is_none_or(|keep| self.now.since(entry.time) < keep) =>
                {
                    return Ok(true);
                }
                _ => {}
            }
        }
        Ok(!entry.imported && seq >= self.unconsidered)
    }
}

/// The end of the log as long as it is not reopened: after a fault what was carried may be gone.
struct Tail<'a> {
    store: &'a Store,
    epoch: u64,
}

impl Tail<'_> {
    async fn append(&self, record: Record) -> Result<(), String> {
        let appended = self.store.append_in(self.epoch, &[record]).await;
        appended.map(drop).map_err(|e| format!("the log takes nothing: {e:?}"))
    }

    /// Everything appended is durable and in the index on return.
    async fn fence(&self) -> Result<(), String> {
        let record = Record::Boot { timeline: self.store.inner.timeline };
        let receipt = self.store.append_durable(record).await;
        let seq = receipt.map_err(|e| format!("the log takes nothing: {e:?}"))?.seq();
        self.store.wait_applied(seq).await;
        match self.store.log_epoch() == self.epoch {
            true => Ok(()),
            false => Err("the log was reopened meanwhile".to_owned()),
        }
    }
}

const NO_INDEX: &str = "the index is not there";

/// Writes to the tail what must outlive the segment, but for the states of deliveries.
async fn carry(tail: &Tail<'_>, plan: &Plan) -> Result<(), String> {
    let store = tail.store;
    let now = store.inner.timeline.at(store.inner.clock.now());
    tail.append(Record::Boot { timeline: store.inner.timeline }).await?;
    let as_of = store.read(|view| view.applied()).ok_or(NO_INDEX)?;
    for (handler, h) in store.read(|view| view.handlers()).ok_or(NO_INDEX)? {
        let (cursor, paused) = (h.cursor, h.paused);
        tail.append(Record::HandlerCarried { handler, cursor, paused, as_of }).await?;
    }
    for seq in &plan.kept {
        let found = store.read(|view| Ok((view.entry(*seq)?, view.stored_event(*seq)?)));
        let (Some(entry), Some(stored)) = found.ok_or(NO_INDEX)? else {
            return Err(format!("event {seq} cannot be read"));
        };
        let event = stored.event.new.into();
        let repeats = stored.duplicates;
        tail.append(Record::Carried { seq: *seq, time: entry.time, event, repeats }).await?;
    }
    for (seq, repeat) in &plan.conflicts {
        let repeat = RepeatRecord { carried_from: Some(*seq), ..repeat.clone() };
        tail.append(Record::Repeat(repeat)).await?;
    }
    for (dropped_at, keys) in &plan.keys {
        let (dropped_at, keys) = (*dropped_at, keys.clone());
        tail.append(Record::Keys { dropped_at, keys }).await?;
    }
    for keys in plan.dropped.chunks(KEYS_MAX) {
        tail.append(Record::Keys { dropped_at: now, keys: keys.to_vec() }).await?;
    }
    for keys in plan.expired.chunks(KEYS_MAX) {
        tail.append(Record::Forgotten { keys: keys.to_vec() }).await?;
    }
    tail.fence().await
}

/// The states of the deliveries of the events that were carried. Read only now: what a handler reported
/// before its event was carried means nothing to an index that is built without the segment.
async fn snapshots(tail: &Tail<'_>, plan: &Plan) -> Result<(), String> {
    let store = tail.store;
    for seq in &plan.kept {
        let as_of = store.read(|view| view.applied()).ok_or(NO_INDEX)?;
        let stored = store.read(|view| view.stored_event(*seq)).ok_or(NO_INDEX)?;
        let stored = stored.ok_or_else(|| format!("event {seq} cannot be read"))?;
        for d in stored.deliveries {
            let (delivery, attempts) = (d.delivery, d.attempts);
            let followed = store.read(|view| view.followed(&delivery.key)).ok_or(NO_INDEX)?;
            let record = Record::Snapshot { delivery, attempts, as_of, conversation: followed };
            tail.append(record).await?;
        }
    }
    tail.fence().await
}

#[cfg(test)]
mod tests;
