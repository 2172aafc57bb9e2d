use std::sync::Arc;

use super::Kv;
use super::apply::{Applier, At, refill_with};
use super::keys::{self, DeliveryEntry, HandlerEntry, Position, RepeatEntry};
use super::memory::MemoryKv;
use super::packed::Packed;
use crate::clock::Timestamp;
use crate::delivery::{Attempt, Delivery, DeliveryKey, HandlerName, Outcome, State};
use crate::event::{VerifiedBy, dedup_key};
use crate::store::log::Place;
use crate::store::record::{ConflictBody, EventRecord, Record, RepeatRecord};

pub fn start() -> Position {
    Position { format: keys::FORMAT, applied: 0, segment: 1, offset: 0, last: None }
}

fn place(seq: u64) -> Place {
    Place { segment: segment_of(seq), offset: u32::try_from(seq).unwrap() * 10, len: 10 }
}

/// A new segment every 50 records.
fn segment_of(seq: u64) -> u32 {
    u32::try_from(seq / 50).unwrap() + 1
}

fn at(seq: u64) -> At {
    At { seq, time: Timestamp(i64::try_from(seq).unwrap() * 100), place: place(seq) }
}

fn handler(name: &str) -> HandlerName {
    HandlerName::new(name).unwrap()
}

fn key(event: u64) -> DeliveryKey {
    DeliveryKey { event, handler: handler("crm") }
}

fn event_record(id: &str, body: &str) -> EventRecord {
    EventRecord {
        source: "s".into(),
        id: id.into(),
        kind: "message.read".into(),
        received_at: Timestamp(1),
        headers: vec![],
        verified_by: VerifiedBy::Raw,
        body: body.into(),
        conversation: None,
        imported: false,
    }
}

fn event(id: &str) -> Record {
    Record::Event(event_record(id, id))
}

fn started(key: DeliveryKey, generation: u32, number: u32) -> Record {
    Record::AttemptStarted { key, generation, number }
}

fn finished(key: DeliveryKey, generation: u32, number: u32, next: State) -> Record {
    let outcome = match &next {
        State::Delivered => Outcome::Delivered,
        _ => Outcome::retry("500"),
    };
    let attempt = Attempt {
        number,
        generation,
        started_at: Timestamp(1),
        took_ms: 2,
        outcome,
        request: None,
        response: None,
    };
    Record::AttemptFinished { key, attempt, next }
}

fn due(t: i64) -> State {
    State::Scheduled { due: Timestamp(t) }
}

fn dead() -> State {
    State::Dead { reason: "500".into() }
}

/// Applies the records as numbers 1, 2, ….
fn index(records: Vec<Record>) -> MemoryKv {
    let kv = MemoryKv::new();
    let mut applier = Applier::new(Arc::new(kv.clone()), start());
    for (seq, record) in (1..).zip(records) {
        applier.apply(at(seq), record).unwrap();
    }
    applier.commit().unwrap();
    kv
}

fn delivery(kv: &MemoryKv, key: &DeliveryKey) -> Option<Delivery> {
    let value = kv.get(&keys::delivery(key)).unwrap()?;
    Some(keys::from_value::<DeliveryEntry>(&value).unwrap().delivery)
}

fn handler_entry(kv: &MemoryKv) -> HandlerEntry {
    keys::from_value(&kv.get(&keys::handler(&handler("crm"))).unwrap().unwrap()).unwrap()
}

fn count(kv: &MemoryKv, family: u8) -> usize {
    kv.dump().iter().filter(|(k, _)| k[0] == family).count()
}

#[test]
fn a_first_attempt_that_succeeds_leaves_a_bit_and_the_cursor() {
    let kv =
        index(vec![event("a"), started(key(1), 0, 1), finished(key(1), 0, 1, State::Delivered)]);
    for family in [keys::DELIVERIES, keys::ATTEMPTS, keys::DUE, keys::WAITING, keys::DEAD] {
        assert_eq!(count(&kv, family), 0, "{}", char::from(family));
    }
    assert_eq!(count(&kv, keys::BUCKETS), 1);
    assert_eq!(handler_entry(&kv).cursor, Some(2));
    assert_eq!(handler_entry(&kv).scheduled, 0);
}

#[test]
fn an_open_attempt_is_due_at_its_start() {
    let kv = index(vec![event("a"), started(key(1), 0, 1)]);
    let d = delivery(&kv, &key(1)).unwrap();
    assert_eq!((d.open_attempt, d.state), (Some(1), due(200)));
    assert!(kv.get(&keys::due(&handler("crm"), Timestamp(200), 1)).unwrap().is_some());
}

#[test]
fn a_failed_attempt_moves_the_due_key_and_a_dead_one_leaves_it() {
    let mut records = vec![event("a"), started(key(1), 0, 1), finished(key(1), 0, 1, due(9_000))];
    let kv = index(records.clone());
    assert_eq!(count(&kv, keys::DUE), 1);
    assert!(kv.get(&keys::due(&handler("crm"), Timestamp(9_000), 1)).unwrap().is_some());
    assert_eq!((handler_entry(&kv).scheduled, handler_entry(&kv).dead), (1, 0));

    records.extend([started(key(1), 0, 2), finished(key(1), 0, 2, dead())]);
    let kv = index(records);
    assert_eq!((count(&kv, keys::DUE), count(&kv, keys::DEAD)), (0, 1));
    assert_eq!((handler_entry(&kv).scheduled, handler_entry(&kv).dead), (0, 1));
    assert_eq!(count(&kv, keys::ATTEMPTS), 2);
}

#[test]
fn what_an_older_generation_reports_changes_no_state_and_stays_in_history() {
    let kv = index(vec![
        event("a"),
        started(key(1), 0, 1),
        Record::Replayed { key: key(1), due: Timestamp(5) },
        finished(key(1), 0, 1, State::Delivered),
    ]);
    let d = delivery(&kv, &key(1)).unwrap();
    assert_eq!((d.generation, d.attempts, d.state), (1, 0, due(5)));
    assert_eq!(count(&kv, keys::ATTEMPTS), 1);
}

#[test]
fn a_delivery_that_succeeded_at_once_can_be_replayed() {
    let kv = index(vec![
        event("a"),
        started(key(1), 0, 1),
        finished(key(1), 0, 1, State::Delivered),
        Record::Replayed { key: key(1), due: Timestamp(5) },
    ]);
    assert_eq!(delivery(&kv, &key(1)).unwrap().generation, 1);
}

#[test]
fn an_outcome_after_a_discard_changes_nothing() {
    let kv = index(vec![
        event("a"),
        started(key(1), 0, 1),
        Record::Discarded { key: key(1) },
        finished(key(1), 0, 1, State::Delivered),
    ]);
    assert_eq!(delivery(&kv, &key(1)).unwrap().state, State::Discarded);
}

#[test]
fn a_second_event_record_of_one_id_is_a_repeat_of_the_first() {
    let kv = index(vec![event("a"), event("a"), Record::Event(event_record("a", "other"))]);
    assert_eq!(count(&kv, keys::EVENTS), 1);
    let r: RepeatEntry = keys::from_value(&kv.get(&keys::repeats(1)).unwrap().unwrap()).unwrap();
    assert_eq!((r.count, r.conflicts.len(), r.conflicts[0].0), (2, 1, 3));
}

#[test]
fn a_cursor_only_moves_on() {
    let kv = index(vec![
        Record::HandlerSeen { handler: handler("crm"), from: 5 },
        Record::HandlerMoved { handler: handler("crm"), to: 9 },
        Record::HandlerMoved { handler: handler("crm"), to: 7 },
        Record::HandlerSeen { handler: handler("crm"), from: 20 },
    ]);
    assert_eq!(handler_entry(&kv).cursor, Some(9));
}

#[test]
fn a_dropped_segment_takes_its_events_and_leaves_what_was_carried() {
    let mut records: Vec<Record> = (1..60).map(|n| event(&format!("e{n}"))).collect();
    records[1] = event("two");
    records.push(started(key(2), 0, 1));
    records.push(finished(key(2), 0, 1, dead()));
    records.push(started(key(3), 0, 1));
    records.push(finished(key(3), 0, 1, dead()));
    let as_of = records.len() as u64;
    records.push(Record::Carried {
        seq: 2,
        time: Timestamp(200),
        event: event_record("two", "two"),
        repeats: 0,
    });
    let state =
        Delivery { key: key(2), generation: 0, attempts: 1, open_attempt: None, state: dead() };
    records.push(Record::Snapshot {
        delivery: state.clone(),
        attempts: vec![],
        as_of,
        conversation: None,
    });
    let kept = (dedup_key("s", "e3"), [0; 8], 3);
    records.push(Record::Keys { dropped_at: Timestamp(0), keys: vec![kept] });
    records.push(Record::Dropped { segment: 1, first: 1, last: 49, events: 48 });
    let kv = index(records.clone());
    assert_eq!(count(&kv, keys::EVENTS), 11, "50..=59 and the carried one");
    assert_eq!(keys::from_value::<u64>(&kv.get(keys::META_EVENTS).unwrap().unwrap()), Ok(11));
    assert_eq!(delivery(&kv, &key(2)), Some(state.clone()));
    assert_eq!(delivery(&kv, &key(3)), None);
    assert_eq!(handler_entry(&kv).dead, 1);
    assert!(
        kv.get(&keys::id(kept.2, &kept.0)).unwrap().is_some(),
        "the duplicate key outlives the event"
    );

    // The same from a log whose first segment is gone.
    let rebuilt = MemoryKv::new();
    let mut applier = Applier::new(Arc::new(rebuilt.clone()), start());
    for (seq, record) in (1..).zip(records).filter(|(seq, _)| *seq >= 50) {
        applier.apply(at(seq), record).unwrap();
    }
    applier.commit().unwrap();
    assert_eq!(count(&rebuilt, keys::EVENTS), 11);
    assert_eq!(delivery(&rebuilt, &key(2)), Some(state));
    assert_eq!(handler_entry(&rebuilt).dead, 1);
    assert!(rebuilt.get(&keys::id(kept.2, &kept.0)).unwrap().is_some());
}

/// A shortened schedule ends a delivery with an attempt that is not run.
#[test]
fn an_outcome_counts_though_its_start_is_not_in_the_log() {
    let mut records = vec![event("a"), started(key(1), 0, 1), finished(key(1), 0, 1, due(200))];
    records.push(finished(key(1), 0, 2, dead()));
    assert_eq!(delivery(&index(records.clone()), &key(1)).unwrap().state, dead());
    records[3] = finished(key(1), 0, 3, dead());
    assert_eq!(delivery(&index(records), &key(1)).unwrap().state, due(200));
}

/// What a handler's open circuit probes with costs the delivery nothing, and stays in its history.
#[test]
fn an_attempt_that_does_not_count_leaves_its_number_to_the_next() {
    let uncounted = |took_ms| {
        let mut record = finished(key(1), 0, 2, due(7));
        if let Record::AttemptFinished { attempt, .. } = &mut record {
            attempt.outcome = Outcome::Uncounted { reason: "503".to_owned() };
            attempt.started_at = Timestamp(took_ms);
        }
        record
    };
    let mut records = vec![event("a"), started(key(1), 0, 1), finished(key(1), 0, 1, due(5))];
    for at in [10, 20] {
        records.extend([started(key(1), 0, 2), uncounted(at)]);
        let d = delivery(&index(records.clone()), &key(1)).unwrap();
        assert_eq!((d.attempts, d.open_attempt, d.state), (1, None, due(7)));
    }
    records.extend([started(key(1), 0, 2), finished(key(1), 0, 2, dead())]);
    let kv = index(records);
    let d = delivery(&kv, &key(1)).unwrap();
    assert_eq!((d.attempts, d.state), (2, dead()));
    assert_eq!(count(&kv, keys::ATTEMPTS), 4);
}

#[test]
fn what_happened_while_a_snapshot_was_taken_wins() {
    let snapshot = Delivery {
        key: key(1),
        generation: 0,
        attempts: 1,
        open_attempt: Some(1),
        state: due(200),
    };
    let kv = index(vec![
        event("a"),
        started(key(1), 0, 1),
        finished(key(1), 0, 1, State::Delivered),
        Record::Snapshot {
            delivery: snapshot.clone(),
            attempts: vec![],
            as_of: 2,
            conversation: None,
        },
    ]);
    assert_eq!(delivery(&kv, &key(1)).unwrap().state, State::Delivered);
    let kv = index(vec![
        event("a"),
        started(key(1), 0, 1),
        finished(key(1), 0, 1, dead()),
        Record::Snapshot { delivery: snapshot, attempts: vec![], as_of: 2, conversation: None },
    ]);
    assert_eq!(delivery(&kv, &key(1)).unwrap().state, dead());
}

/// Of one of few messages, in one of few conversations.
fn of_a_message(rng: &mut fastrand::Rng, id: &str) -> EventRecord {
    let message = rng.u32(0..5);
    let body = format!(r#"{{"type":"message.read","data":{{"messageId":"m{message}"}}}}"#);
    let conversation = rng.bool().then(|| format!("+4930{}", rng.u32(0..3)));
    EventRecord { conversation, ..event_record(id, &body) }
}

/// Any mix of records, sensible or not.
fn random_record(rng: &mut fastrand::Rng, seq: u64) -> Record {
    let event_seq = rng.u64(1..=seq);
    let name = ["crm", "b", "followup:r", "followup:s"][rng.usize(0..4)];
    let key = DeliveryKey { event: event_seq, handler: handler(name) };
    let state = match rng.u32(0..3) {
        0 => State::Delivered,
        1 => dead(),
        _ => due(rng.i64(0..1_000)),
    };
    let generation = rng.u32(0..=2);
    let number = rng.u32(1..=2);
    match rng.u32(0..23) {
        0..6 => event(&format!("e{}", rng.u64(0..seq * 2))),
        21 => Record::Answered { key },
        22 => {
            let id = format!("e{}", rng.u64(0..seq * 2));
            Record::Event(of_a_message(rng, &id))
        }
        6 => Record::Repeat(RepeatRecord {
            of: event_seq,
            received_at: Timestamp(1),
            conflict: rng.bool().then(|| ConflictBody { headers: vec![], body: vec![] }),
            carried_from: None,
        }),
        7..10 => started(key, generation, number),
        10..13 => finished(key, generation, number, state),
        13 => Record::Discarded { key },
        14 => Record::Replayed { key, due: Timestamp(rng.i64(0..1_000)) },
        15 => Record::HandlerMoved { handler: key.handler, to: event_seq },
        16 => Record::Carried {
            seq: event_seq,
            time: Timestamp(1),
            event: of_a_message(rng, &format!("e{event_seq}")),
            repeats: 3,
        },
        17 => {
            let open_attempt = rng.bool().then_some(number);
            let delivery = Delivery { key, generation, attempts: number, open_attempt, state };
            Record::Snapshot {
                delivery,
                attempts: vec![],
                as_of: rng.u64(0..seq),
                conversation: rng.bool().then(|| rng.u64(1..4)),
            }
        }
        18 => Record::Keys {
            dropped_at: Timestamp(1),
            keys: (0..rng.u64(0..100))
                .map(|n| (dedup_key("s", &format!("k{n}")), [0; 8], n))
                .collect(),
        },
        19 => Record::Forgotten {
            keys: (0..rng.u64(0..100)).map(|n| dedup_key("s", &format!("k{n}"))).collect(),
        },
        _ => {
            let segment = rng.u32(1..=segment_of(seq));
            let first = u64::from(segment - 1) * 50;
            Record::Dropped { segment, first, last: first + 49, events: 0 }
        }
    }
}

fn position(kv: &MemoryKv) -> Position {
    kv.get(keys::META_POSITION).unwrap().map_or(start(), |v| keys::from_value(&v).unwrap())
}

#[test]
fn a_crash_at_any_batch_boundary_changes_nothing_once_the_rest_is_applied() {
    // 44 found that removing an event for a carried one wrote out what came before without its position.
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let records: Vec<Record> = (1..=300).map(|seq| random_record(&mut rng, seq)).collect();
        let expected = index(records.clone()).dump();

        let kv = MemoryKv::crashable();
        loop {
            let mut applier = Applier::new(Arc::new(kv.clone()), position(&kv));
            let from = position(&kv).applied + 1;
            let stop = rng.u64(from..=320);
            for seq in from..=300.min(stop) {
                applier.apply(at(seq), records[usize::try_from(seq).unwrap() - 1].clone()).unwrap();
                if rng.u32(0..10) == 0 {
                    applier.commit().unwrap();
                }
            }
            if stop > 300 {
                applier.commit().unwrap();
                break;
            }
            kv.crash(rng.usize(0..=kv.unflushed()));
            kv.flush().unwrap();
        }
        assert!(kv.dump() == expected, "seed {seed}");
    }
}

/// The same with pages, of which only the newest part is in the log alone.
#[test]
fn a_crash_changes_nothing_once_the_log_has_brought_back_what_was_in_no_page() {
    let mut refills = 0;
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let records: Vec<Record> = (1..=300).map(|seq| random_record(&mut rng, seq)).collect();
        let record = |seq: u64| records[usize::try_from(seq).unwrap() - 1].clone();
        let expected = index(records.clone()).dump();

        let below = MemoryKv::crashable();
        let kv = loop {
            let kv = Arc::new(Packed::over(below.clone()).unwrap());
            if let Some(missing) = kv.missing() {
                let after = missing.after.map_or(0, |position| position.applied);
                let again =
                    (after + 1..=missing.upto.applied).map(|n| Ok((at(n), Some(record(n)))));
                refill_with(kv.clone(), missing.after.unwrap_or(start()), again).unwrap();
                refills += 1;
            }
            let mut applier = Applier::new(kv.clone(), position(&below));
            let from = position(&below).applied + 1;
            let stop = rng.u64(from..=320);
            for seq in from..=300.min(stop) {
                applier.apply(at(seq), record(seq)).unwrap();
                match rng.u32(0..40) {
                    0..4 => applier.commit().unwrap(),
                    4 => {
                        applier.commit().unwrap();
                        kv.settle().unwrap();
                    }
                    _ => {}
                }
            }
            if stop > 300 {
                applier.commit().unwrap();
                break kv;
            }
            below.crash(rng.usize(0..=below.unflushed()));
            below.flush().unwrap();
        };
        let mut found = Vec::new();
        for family in (0..u8::MAX).filter(|family| *family != keys::JOURNAL) {
            found.extend(kv.range(&[family], &[family + 1], usize::MAX).unwrap());
        }
        found.retain(|(key, _)| key != keys::META_PACKED);
        assert!(found == expected, "seed {seed}");
    }
    assert!(refills > 200, "{refills} refills");
}

#[test]
fn counters_agree_with_the_keys_they_count() {
    for seed in 100..130 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let kv = index((1..=400).map(|seq| random_record(&mut rng, seq)).collect());
        let events: u64 =
            kv.get(keys::META_EVENTS).unwrap().map_or(0, |v| keys::from_value(&v).unwrap());
        assert_eq!(events, count(&kv, keys::EVENTS) as u64, "seed {seed}");
        let ids: u64 = kv.get(keys::META_IDS).unwrap().map_or(0, |v| keys::from_value(&v).unwrap());
        assert_eq!(ids, count(&kv, keys::IDS) as u64, "seed {seed}");
        let (mut scheduled, mut dead) = (0, 0);
        for (_, value) in kv.dump().iter().filter(|(k, _)| k[0] == keys::HANDLERS) {
            let entry: HandlerEntry = keys::from_value(value).unwrap();
            scheduled += entry.scheduled;
            dead += entry.dead;
        }
        assert_eq!(scheduled, count(&kv, keys::DUE) as u64, "seed {seed}");
        assert_eq!(dead, count(&kv, keys::DEAD) as u64, "seed {seed}");
    }
}
