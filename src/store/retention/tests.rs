use std::sync::Arc;
use std::time::Duration;

use super::walk::{self, Pauses};
use super::{LOOK_AGAIN, Pass, Plan, pass};
use crate::clock::{Clock as _, TestClock, Timestamp};
use crate::config::Retention;
use crate::delivery::{Delivery, DeliveryKey, HandlerName, Outcome, State};
use crate::event::NewEvent;
use crate::store::disk::{Call, Disk, Fault, FaultDisk, MemDisk};
use crate::store::index::memory::MemoryKv;
use crate::store::index::{Kv as _, keys};
use crate::store::record::Record;
use crate::store::tests::{attempt, clock, event, key, settled, visible};
use crate::store::{AppendError, Health, Home, Store, StoreOptions};

const HOUR: Duration = Duration::from_secs(3600);
const KEEP_ALL: Retention =
    Retention { delivered: None, dead: None, dedup: Duration::MAX, disk_max: 32 * 1024 * 1024 };

/// A store whose log fills several small segments.
fn open(disk: Arc<dyn Disk>, clock: Arc<TestClock>, retention: Retention) -> Store {
    let options = StoreOptions { data_dir: "/data".into(), retention };
    Store::open_with(disk, options, clock, Home::Memory(MemoryKv::new())).unwrap()
}

fn small(retention: Retention) -> Store {
    open(Arc::new(MemDisk::new()), clock(), retention)
}

fn large(id: &str) -> NewEvent {
    NewEvent { body: vec![b'x'; 64 * 1024].into(), ..event(id) }
}

#[tokio::test]
async fn settled_events_go_when_the_disk_budget_is_used_up_and_unsettled_ones_stay() {
    let store = small(Retention { disk_max: 4 * 1024 * 1024, ..KEEP_ALL });
    store.append(Record::HandlerSeen { handler: key(1).handler, from: 1 }).await.unwrap();
    let mut waiting = 0;
    for n in 0..58 {
        let seq = store.append_event(large(&format!("e{n}"))).await.unwrap().seq();
        if n == 3 {
            waiting = seq;
            let due = State::Scheduled { due: Timestamp::MAX };
            attempt(&store, &key(seq), 1, Outcome::retry("500"), due).await;
        } else {
            attempt(&store, &key(seq), 1, Outcome::Delivered, State::Delivered).await;
        }
    }
    settled(&store).await;
    let before = store.stats();
    make_room(&store).await;
    let after = store.stats();
    assert!(after.log_bytes < before.log_bytes && after.log_bytes <= 3 * 1024 * 1024);
    assert!(after.events < before.events);
    let kept = store.stored_event(waiting).unwrap();
    assert_eq!(kept.event.new.id, "e3");
    assert_eq!(kept.deliveries[0].attempts.len(), 1, "with its history");
    assert!(store.find("e0").is_empty());
    assert!(store.append_event(large("e0")).await.unwrap().is_duplicate(), "still known");
    store.close().await;
}

#[tokio::test]
async fn at_the_disk_budget_with_nothing_settled_events_are_refused() {
    let store = small(Retention { disk_max: 2 * 1024 * 1024, ..KEEP_ALL });
    store.append(Record::HandlerSeen { handler: key(1).handler, from: 1 }).await.unwrap();
    let mut taken = 0;
    while store.append_event(large(&format!("e{taken}"))).await.is_ok() {
        taken += 1;
    }
    assert!((30..=33).contains(&taken), "{taken} of 64 KiB went into 2 MiB");
    settled(&store).await;
    assert_eq!(pass(&store, true).await, Ok(Pass::Futile));
    assert_eq!(store.append_event(event("x")).await, Err(AppendError::Full));
    assert_eq!(store.stats().health, Health::Full);
    assert_eq!(store.stats().events, taken);
    store.close().await;
}

/// Found by reading: retention looked no further than the oldest segment.
#[tokio::test]
async fn what_is_settled_behind_segments_of_unsettled_events_makes_room() {
    let store = small(Retention { disk_max: 4 * 1024 * 1024, ..KEEP_ALL });
    store.append(Record::HandlerSeen { handler: key(1).handler, from: 1 }).await.unwrap();
    let mut taken = 0;
    loop {
        let Ok(first) = store.append_event(large(&format!("e{taken}"))).await else { break };
        let (outcome, next) = match taken < 20 {
            true => (Outcome::retry("500"), State::Scheduled { due: Timestamp::MAX }),
            false => (Outcome::Delivered, State::Delivered),
        };
        attempt(&store, &key(first.seq()), 1, outcome, next).await;
        taken += 1;
    }
    settled(&store).await;
    assert_eq!(pass(&store, false).await, Ok(Pass::Futile), "the oldest alone");
    let before = store.stats();
    make_room(&store).await;
    let after = store.stats();
    assert!(after.log_bytes <= before.log_bytes / 3 * 2, "{before:?} {after:?}");
    assert_eq!(after.health, Health::Ok);
    store.append_event(event("x")).await.unwrap();
    for n in 0..20 {
        assert_eq!(store.find(&format!("e{n}")).len(), 1, "e{n} waits still");
    }
    store.close().await;
}

/// Found by reading: room was made again only once there was a new segment, which a full log does not get.
#[tokio::test]
async fn a_full_log_takes_events_again_once_its_events_are_settled() {
    let store = small(Retention { disk_max: 2 * 1024 * 1024, ..KEEP_ALL });
    let handler = key(1).handler;
    store.append(Record::HandlerSeen { handler: handler.clone(), from: 1 }).await.unwrap();
    let mut taken = 0;
    while store.append_event(large(&format!("e{taken}"))).await.is_ok() {
        taken += 1;
    }
    settled(&store).await;
    let (inner, mut pauses) = (Arc::downgrade(&store.inner), Pauses::default());
    for _ in 0..3 {
        walk::make_room(&inner, &mut pauses).await;
    }
    assert_eq!(store.append_event(event("x")).await, Err(AppendError::Full));
    let to = store.next_seq();
    store.append_durable(Record::HandlerMoved { handler, to }).await.unwrap();
    settled(&store).await;
    walk::make_room(&inner, &mut pauses).await;
    store.append_event(event("x")).await.unwrap();
    assert_eq!(store.stats().health, Health::Ok);
    store.close().await;
}

/// Found by the soak of two hours: keys of duplicates had filled the log, and everything was refused for good.
#[tokio::test]
async fn what_is_known_of_duplicates_gives_way_before_events_are_refused() {
    const EVENTS: usize = 150_000;
    let store = small(Retention { disk_max: 4 * 1024 * 1024, ..KEEP_ALL });
    let handler = key(1).handler;
    store.append(Record::HandlerSeen { handler: handler.clone(), from: 1 }).await.unwrap();
    for n in 0..EVENTS {
        let taken = store.append_event(event(&format!("e{n}"))).await;
        assert!(taken.is_ok(), "event {n}: {taken:?}");
        if n % 250 == 0 {
            let to = taken.unwrap().seq() + 1;
            store.append(Record::HandlerMoved { handler: handler.clone(), to }).await.unwrap();
            settled(&store).await;
            make_room(&store).await;
        }
    }
    settled(&store).await;
    make_room(&store).await;
    let stats = store.stats();
    assert_eq!(stats.health, Health::Ok);
    assert!(stats.log_bytes <= 4 * 1024 * 1024, "{}", stats.log_bytes);
    // The newest are known long after their events are gone; the oldest are not.
    let first = stats.events;
    let gone = EVENTS - usize::try_from(first).unwrap() - 1;
    assert!(store.find(&format!("e{gone}")).is_empty(), "e{gone} is there");
    let again = store.append_event(event(&format!("e{}", gone - 500))).await.unwrap();
    assert!(again.is_duplicate(), "of {first} events");
    assert!(!store.append_event(event("e0")).await.unwrap().is_duplicate());
    store.close().await;
}

/// Events `name`0, `name`1, … that fill two segments and more.
async fn fill(store: &Store, name: &str, outcome: impl Fn(usize) -> (Outcome, State)) {
    store.append(Record::HandlerSeen { handler: key(1).handler, from: 1 }).await.unwrap();
    for n in 0..40 {
        let seq = store.append_event(large(&format!("{name}{n}"))).await.unwrap().seq();
        let (outcome, next) = outcome(n);
        attempt(store, &key(seq), 1, outcome, next).await;
    }
    settled(store).await;
}

fn delivered(_: usize) -> (Outcome, State) {
    (Outcome::Delivered, State::Delivered)
}

async fn make_room(store: &Store) -> usize {
    let mut dropped = 0;
    while matches!(pass(store, true).await.unwrap(), Pass::Dropped(_)) {
        dropped += 1;
    }
    dropped
}

#[tokio::test]
async fn what_is_old_enough_goes_events_then_dead_letters_then_their_keys() {
    let clock = clock();
    let retention =
        Retention { delivered: Some(HOUR), dead: Some(3 * HOUR), dedup: 10 * HOUR, ..KEEP_ALL };
    let store = open(Arc::new(MemDisk::new()), clock.clone(), retention);
    let one_dead = |n| match n {
        5 => (Outcome::retry("500"), State::Dead { reason: "500".into() }),
        _ => delivered(n),
    };
    fill(&store, "a", one_dead).await;
    assert_eq!(make_room(&store).await, 0, "too young");

    clock.advance(2 * HOUR);
    assert!(make_room(&store).await >= 2);
    assert!(store.find("a0").is_empty(), "gone");
    assert_eq!(store.find("a5").len(), 1, "a dead letter stays longer");
    assert!(store.append_event(large("a0")).await.unwrap().is_duplicate(), "still known");

    // What was carried lies in the newest segment; it is looked at once that is the oldest.
    fill(&store, "b", delivered).await;
    clock.advance(2 * HOUR);
    make_room(&store).await;
    assert!(store.find("a5").is_empty(), "the dead letter is old enough too");
    assert!(store.append_event(large("a5")).await.unwrap().is_duplicate());

    clock.advance(10 * HOUR);
    fill(&store, "c", delivered).await;
    clock.advance(2 * HOUR);
    make_room(&store).await;
    fill(&store, "d", delivered).await;
    clock.advance(2 * HOUR);
    make_room(&store).await;
    assert!(!store.append_event(large("a0")).await.unwrap().is_duplicate(), "known no more");
    store.close().await;
}

/// From every call that changes the disk on all of them fail, then the machine loses power.
#[tokio::test]
async fn a_fault_and_a_crash_at_any_point_of_retention_lose_nothing_that_matters() {
    retention_survives(true).await;
}

/// Found by reading: after a fault that passes the log goes on without what was carried, and the segment
/// was dropped all the same.
#[tokio::test]
async fn a_passing_fault_at_any_point_of_retention_loses_nothing_that_matters() {
    retention_survives(false).await;
}

async fn retention_survives(sticky: bool) {
    let retention = Retention { disk_max: 6 * 1024 * 1024, ..KEEP_ALL };
    let waits = |n| match n {
        3 => (Outcome::retry("500"), State::Scheduled { due: Timestamp::MAX }),
        5 => (Outcome::retry("500"), State::Dead { reason: "500".into() }),
        _ => delivered(n),
    };
    for call in [Call::Write, Call::SyncData, Call::SyncDir, Call::Remove] {
        for nth in 1..40 {
            let memory = MemDisk::new();
            let faults = FaultDisk::new(Arc::new(memory.clone()));
            let disk: Arc<dyn Disk> = Arc::new(faults.clone());
            let store = open(disk, clock(), retention.clone());
            fill(&store, "a", waits).await;
            fill(&store, "b", delivered).await;
            let before = visible(&store);
            let error = std::io::ErrorKind::Other;
            let done = faults.count(Some(call));
            faults.fail(Fault { call: Some(call), nth, error, sticky });
            // Intake goes on meanwhile: its syncs come in between.
            let others = tokio::spawn({
                let store = store.clone();
                async move {
                    loop {
                        let handler = key(1).handler;
                        _ = store.append_durable(Record::HandlerMoved { handler, to: 1 }).await;
                    }
                }
            });
            while matches!(pass(&store, true).await, Ok(Pass::Dropped(_))) {}
            others.abort();
            let calls = faults.count(Some(call)) - done;
            store.close().await;
            memory.crash(&mut fastrand::Rng::with_seed(nth));

            let store = open(Arc::new(memory), clock(), retention.clone());
            settled(&store).await;
            let after = visible(&store);
            for kept in ["a3", "a5"] {
                let found = after.iter().find(|e| e.event_id == kept);
                assert!(found.is_some_and(|e| before.contains(e)), "{call:?} {nth}");
            }
            assert!(after.iter().all(|e| before.contains(e)), "{call:?} {nth}");
            for n in 0..40 {
                let again = store.append_event(large(&format!("a{n}"))).await.unwrap();
                assert!(again.is_duplicate(), "{call:?} {nth}: a{n}");
            }
            store.close().await;
            if calls < nth {
                break;
            }
        }
    }
}

/// Found by reading: it went with its segment, where a disk that failed for a while had kept it from the index.
#[tokio::test]
async fn an_event_that_the_index_does_not_know_has_it_built_anew_and_stays() {
    let kv = MemoryKv::new();
    let retention = Retention { disk_max: 6 * 1024 * 1024, ..KEEP_ALL };
    let options = StoreOptions { data_dir: "/data".into(), retention };
    let home = Home::Memory(kv.clone());
    let store = Store::open_with(Arc::new(MemDisk::new()), options, clock(), home).unwrap();
    let waits = |n| match n {
        3 => (Outcome::retry("500"), State::Scheduled { due: Timestamp::MAX }),
        _ => delivered(n),
    };
    fill(&store, "a", waits).await;
    fill(&store, "b", delivered).await;
    let waiting = store.find("a3")[0];
    let id = crate::event::dedup_key("bluereplies", "a3");
    kv.apply(vec![(keys::event(waiting), None), (keys::id(waiting, &id), None)]).unwrap();
    assert!(store.find("a3").is_empty());

    let epoch = store.progress().borrow().epoch;
    assert_eq!(pass(&store, true).await, Ok(Pass::NotDue));
    let mut progress = store.progress();
    progress.wait_for(|p| p.epoch > epoch && p.caught_up).await.unwrap();
    assert!(make_room(&store).await > 0);
    assert_eq!(store.find("a3"), [waiting]);
    assert_eq!(store.stored_event(waiting).unwrap().deliveries[0].attempts.len(), 1);
    assert!(store.append_event(large("a3")).await.unwrap().is_duplicate());
    store.close().await;
}

/// Found by reading: a replay that was logged while its event was being dropped went with it.
#[tokio::test]
async fn while_people_change_what_is_settled_nothing_is_dropped() {
    let store = small(Retention { disk_max: 4 * 1024 * 1024, ..KEEP_ALL });
    fill(&store, "a", delivered).await;
    for n in 0..16 {
        store.append_event(large(&format!("b{n}"))).await.unwrap();
    }
    settled(&store).await;
    let held = store.hold_retention().await;
    let before = store.next_seq();
    tokio::select! {
        biased;
        done = pass(&store, true) => panic!("{done:?}"),
        () = async { for _ in 0..3 { settled(&store).await; } } => {}
    }
    assert_eq!(store.next_seq(), before + 3, "nothing was even carried");
    drop(held);
    assert!(make_room(&store).await > 0);
    store.close().await;
}

/// A timer of a year outlives its segment, with the conversation that it bars.
#[tokio::test]
async fn a_follow_ups_timer_is_carried_with_its_conversation_and_found_by_a_rebuild() {
    let (disk, clock) = (Arc::new(MemDisk::new()), clock());
    let retention = Retention { delivered: Some(HOUR), ..KEEP_ALL };
    let store = open(disk.clone(), clock.clone(), retention.clone());
    let rule = HandlerName::of_follow_up("no-reply").unwrap();
    let start = store.append_event(event("start")).await.unwrap().seq();
    let timer = DeliveryKey { event: start, handler: rule.clone() };
    let state = State::Scheduled { due: store.timeline().at(clock.now()).plus(365 * 24 * HOUR) };
    let delivery = Delivery {
        key: timer.clone(),
        generation: 0,
        attempts: 0,
        open_attempt: None,
        state: state.clone(),
    };
    let set = Record::Snapshot { delivery, attempts: vec![], as_of: start, conversation: Some(7) };
    store.append(set).await.unwrap();
    fill(&store, "a", delivered).await;
    clock.advance(2 * HOUR);
    assert!(make_room(&store).await >= 2, "its segment is gone");
    let timer_is_there = |store: &Store| {
        assert_eq!(store.follow_up(&rule, 7), Some(Some(start)));
        assert_eq!(store.followed(&timer), Some(Some(7)));
        assert_eq!(store.delivery(&timer).map(|delivery| delivery.state), Some(state.clone()));
    };
    timer_is_there(&store);
    store.close().await;

    let rebuilt = open(disk, clock, retention);
    settled(&rebuilt).await;
    timer_is_there(&rebuilt);
    rebuilt.append_durable(Record::Answered { key: timer.clone() }).await.unwrap();
    settled(&rebuilt).await;
    assert_eq!(rebuilt.follow_up(&rule, 7), Some(None));
    rebuilt.close().await;
}

/// Found with a profile: every five seconds the oldest segment was read whole, and nothing in it could go.
#[test]
fn a_segment_that_may_not_go_yet_is_left_alone_until_it_may() {
    let keep = Some(Duration::from_secs(10));
    let young = Plan { newest: Some(Timestamp(1_000)), ..Plan::default() };
    assert_eq!(young.due_at(100, Timestamp(5_000), keep), Some(Timestamp(11_000)));
    assert_eq!(young.due_at(100, Timestamp(11_000), keep), None);
    let kept = young.due_at(100, Timestamp(11_000), None);
    assert_eq!(kept, Some(Timestamp(11_000).plus(LOOK_AGAIN)), "kept while there is room");
    let unsettled = Plan { kept_bytes: 60, ..Plan::default() };
    assert_eq!(
        unsettled.due_at(100, Timestamp(5_000), keep),
        Some(Timestamp(5_000).plus(LOOK_AGAIN))
    );
}
