mod world;

use std::time::Duration;

use super::*;
use crate::delivery::Outcome;
use world::{Script, T0, World, plan, retry};

const HOUR: i64 = 3_600_000;

fn always(took: i64, outcome: Outcome) -> Script {
    Box::new(move |_, _| (took, outcome.clone()))
}

#[test]
fn a_failing_delivery_follows_the_schedule_and_ends_dead() {
    let mut w = World::new(vec![plan("a")], always(100, retry()));
    let e = w.event();
    w.run_for(3 * HOUR);
    // Each gap is measured from the end of the attempt before.
    let starts = [0, 30_100, 150_200, 750_300, 4_350_400];
    let want: Vec<_> = (1..).zip(starts).collect();
    assert_eq!(w.attempts("a", e), want);
    assert_eq!(w.state("a", e), "dead");
}

#[test]
fn a_slow_handler_delays_no_other() {
    let script: Script = Box::new(|key, _| match key.handler.as_str() {
        "slow" => (20_000, retry()),
        _ => (1, Outcome::Delivered),
    });
    let mut w = World::new(vec![plan("quick"), plan("slow")], script);
    let events: Vec<_> = (0..1_000).map(|_| w.event()).collect();
    w.run_for(1_000);
    for e in events {
        assert_eq!(w.state("quick", e), "delivered");
    }
}

#[test]
fn however_far_the_index_lags_no_attempt_runs_twice() {
    let mut n = 0;
    let script: Script = Box::new(move |_, number| {
        n += 1;
        (n % 7, if number < 3 { retry() } else { Outcome::Delivered })
    });
    let mut w = World::new(vec![plan("a")], script);
    w.lag = Some(fastrand::Rng::with_seed(3));
    let events: Vec<_> = (0..300).map(|_| w.event()).collect();
    w.run_for(HOUR);
    for e in events {
        let numbers: Vec<_> = w.attempts("a", e).into_iter().map(|(n, _)| n).collect();
        assert_eq!(numbers, [1, 2, 3], "event {e}");
    }
}

#[test]
fn an_answer_read_before_the_fence_fell_starts_nothing() {
    let mut w = World::new(vec![plan("a")], always(1, retry()));
    let e = w.event();
    w.run_for(30_000);
    let stale = w.deliveries.values().next().expect("scheduled").clone();
    // Drive the second attempt by hand, keeping the answer of one look at the index back.
    let name = HandlerName::new("a").unwrap();
    w.planner.step(Input::Nudge, w.now);
    let later = Timestamp(w.now.0 + 10);
    let ticket = 0;
    let due = |found| Input::Due { handler: name.clone(), ticket, found, next: None };
    let found = Found { delivery: stale, conversation: None };
    let started = w.planner.step(due(vec![found.clone()]), later);
    assert!(matches!(started[0], Command::Start { number: 2, .. }), "{started:?}");
    let attempt = Attempt {
        number: 2,
        generation: 0,
        started_at: later,
        took_ms: 0,
        outcome: retry(),
        request: None,
        response: None,
    };
    let key = DeliveryKey { event: e, handler: name.clone() };
    w.planner.step(Input::Finished { key: key.clone(), attempt }, later);
    let asked = w.planner.step(Input::Nudge, later);
    assert!(matches!(asked[..], [Command::FetchDue { .. }]), "{asked:?}");
    w.planner.step(Input::Logged { key, seq: 50, epoch: Some(0) }, later);
    w.planner.step(Input::Progress { epoch: 0, durable: 50, applied: 50, caught_up: true }, later);
    let commands = w.planner.step(due(vec![found]), later);
    assert!(!commands.iter().any(|c| matches!(c, Command::Start { .. })), "{commands:?}");
}

#[test]
fn concurrency_is_used_and_not_exceeded() {
    let mut w = World::new(vec![plan("a")], always(1_000, Outcome::Delivered));
    for _ in 0..20 {
        w.event();
    }
    w.run_for(10_000);
    // `World` asserts the limit; four at a time take five rounds.
    assert_eq!(w.ran.iter().map(|r| r.start).max(), Some(T0 + 4_000));
}

#[test]
fn all_handlers_together_keep_to_what_may_run_at_once_and_take_turns() {
    let plans = ["a", "b", "c", "d", "e"].map(plan).to_vec();
    let mut w = World::with_room(plans, always(1_000, Outcome::Delivered), 3);
    for _ in 0..12 {
        w.event();
    }
    w.run_for(10_000);
    let running_at =
        |ms: i64| w.ran.iter().filter(|r| (r.start..r.end).contains(&(T0 + ms))).count();
    assert_eq!((0..9).map(|s| running_at(s * 1_000 + 500)).max(), Some(3));
    for upto in 1..w.ran.len() {
        let count = |name: &str| w.ran[..upto].iter().filter(|r| r.handler == name).count();
        let counts = ["a", "b", "c", "d", "e"].map(count);
        // Whoever is first to know of the events begins with more.
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 4, "{counts:?}");
    }
    w.run_for(20_000);
    assert_eq!(w.ran.len(), 60);
    assert_eq!(w.planner.running(), 0);
}

#[test]
fn a_handler_that_fills_all_the_room_holds_up_no_other_for_longer_than_one_attempt() {
    let greedy = HandlerPlan { concurrency: 100, ..plan("a") };
    let mut w = World::with_room(vec![greedy, plan("b")], always(1_000, Outcome::Delivered), 4);
    for _ in 0..40 {
        w.event();
    }
    w.run_for(30_000);
    let starts: Vec<_> = w.ran.iter().filter(|r| r.handler == "b").map(|r| r.start - T0).collect();
    assert_eq!((starts.len(), w.ran.len()), (40, 80));
    assert!(starts[0] <= 1_000, "{starts:?}");
}

#[test]
fn a_burst_is_spaced_by_the_rate() {
    let rated = HandlerPlan { rate: Some(World::rate(5, 1)), ..plan("a") };
    let mut w = World::new(vec![rated], always(1, Outcome::Delivered));
    for _ in 0..500 {
        w.event();
    }
    w.run_for(120_000);
    let starts: Vec<_> = w.ran.iter().map(|r| r.start - T0).collect();
    let want: Vec<_> = (0..500).map(|n| n * 200).collect();
    assert_eq!(starts, want);
}

#[test]
fn no_window_holds_more_than_the_rate_where_it_does_not_divide() {
    let rated = HandlerPlan { rate: Some(World::rate(7, 1)), ..plan("a") };
    let mut w = World::new(vec![rated], always(3, Outcome::Delivered));
    for _ in 0..100 {
        w.event();
    }
    w.run_for(60_000);
    let starts: Vec<_> = w.ran.iter().map(|r| r.start).collect();
    assert_eq!(starts.len(), 100);
    for window in starts.windows(8) {
        assert!(window[7] - window[0] >= 1_000, "{window:?}");
    }
}

#[test]
fn the_first_delay_counts_from_the_receipt() {
    let delays = vec![Duration::from_secs(5), Duration::from_secs(10)];
    let late = HandlerPlan { schedule: Schedule::new(delays, 0.0).unwrap(), ..plan("a") };
    let mut w = World::new(vec![late], always(0, retry()));
    let first = w.event();
    w.run_for(2_000);
    let second = w.event();
    w.run_for(60_000);
    assert_eq!(w.attempts("a", first), [(1, 5_000), (2, 15_000)]);
    assert_eq!(w.attempts("a", second), [(1, 7_000), (2, 17_000)]);
}

#[test]
fn a_paused_handler_starts_nothing_until_it_is_resumed() {
    let mut w = World::new(vec![plan("a"), plan("b")], always(10, Outcome::Delivered));
    w.run_for(10);
    w.pause("a");
    let e = w.event();
    w.run_for(HOUR);
    assert_eq!(w.state("a", e), "none");
    assert_eq!(w.state("b", e), "delivered");
    w.resume("a");
    w.run_for(100);
    assert_eq!(w.attempts("a", e), [(1, HOUR + 10)]);
}

#[test]
fn an_attempt_cut_off_by_a_crash_counts_and_the_gap_holds() {
    let mut w = World::new(vec![plan("a")], always(1_000, Outcome::Delivered));
    let e = w.event();
    w.run_for(500);
    w.crash();
    w.run_for(HOUR);
    assert_eq!(w.attempts("a", e), [(2, 30_500)]);
    assert_eq!(w.state("a", e), "delivered");
}

#[test]
fn an_event_that_kills_the_process_each_time_ends_dead() {
    let mut w = World::new(vec![plan("a")], always(10, Outcome::Delivered));
    let e = w.event();
    for (started, wait) in [(1, 5), (2, 30_005), (3, 120_005), (4, 600_005), (5, 3_600_005)] {
        w.run_for(wait);
        assert_eq!(w.deliveries.values().next().unwrap().attempts, started);
        w.crash();
    }
    w.run_for(HOUR);
    assert_eq!(w.state("a", e), "dead");
    assert!(w.ran.is_empty());
}

#[test]
fn a_replay_during_an_attempt_waits_for_its_end_and_starts_over() {
    let mut w = World::new(vec![plan("a")], always(5_000, Outcome::Delivered));
    let e = w.event();
    w.run_for(1_000);
    w.replay("a", e);
    w.run_for(3_000);
    assert_eq!(w.attempts("a", e), []);
    w.run_for(20_000);
    assert_eq!(w.attempts("a", e), [(1, 0), (1, 5_000)]);
    assert_eq!(w.deliveries.values().next().unwrap().generation, 1);
}

#[test]
fn a_dead_delivery_that_is_replayed_has_its_whole_schedule_again() {
    let mut w = World::new(vec![plan("a")], always(0, retry()));
    let e = w.event();
    w.run_for(2 * HOUR);
    w.replay("a", e);
    w.run_for(2 * HOUR);
    assert_eq!(w.attempts("a", e).len(), 10);
    assert_eq!(w.state("a", e), "dead");
}

#[test]
fn an_event_replayed_before_the_cursor_reaches_it_runs_once() {
    let one = HandlerPlan { concurrency: 1, ..plan("a") };
    let mut w = World::new(vec![one], always(100, Outcome::Delivered));
    let events: Vec<_> = (0..1_000).map(|_| w.event()).collect();
    w.run_for(150);
    w.replay("a", events[900]);
    w.replay("a", events[20]);
    w.run_for(200_000);
    assert_eq!(w.ran.len(), 1_000);
    assert!(events.iter().all(|e| w.attempts("a", *e).len() == 1));
}

#[test]
fn after_a_fault_running_attempts_end_and_everything_goes_on() {
    let mut w = World::new(vec![plan("a")], always(1_000, Outcome::Delivered));
    let events: Vec<_> = (0..8).map(|_| w.event()).collect();
    w.run_for(500);
    w.fault();
    w.run_for(400);
    assert_eq!(w.planner.running(), 4, "nothing new while the old ones run");
    w.run_for(5_000);
    for e in events {
        assert_eq!(w.attempts("a", e).len(), 1);
        assert_eq!(w.state("a", e), "delivered");
    }
}

#[test]
fn a_removed_handler_is_parked_and_goes_on_when_it_is_back() {
    let mut w = World::new(vec![plan("a")], always(10, retry()));
    let e = w.event();
    w.run_for(1_000);
    w.configure(vec![]);
    w.run_for(HOUR);
    assert_eq!(w.attempts("a", e).len(), 1);
    assert_eq!(w.state("a", e), "scheduled");
    w.configure(vec![plan("a")]);
    w.run_for(1_000);
    assert_eq!(w.attempts("a", e), [(1, 0), (2, HOUR + 1_000)]);
}

#[test]
fn a_shorter_schedule_ends_what_has_used_it_up() {
    let mut w = World::new(vec![plan("a")], always(0, retry()));
    let e = w.event();
    w.run_for(200_000);
    assert_eq!(w.attempts("a", e).len(), 3);
    let delays = vec![Duration::ZERO, Duration::from_secs(30)];
    let short = HandlerPlan { schedule: Schedule::new(delays, 0.0).unwrap(), ..plan("a") };
    w.configure(vec![short]);
    w.run_for(HOUR);
    assert_eq!(w.attempts("a", e).len(), 3);
    assert_eq!(w.state("a", e), "dead");
}

#[test]
fn a_large_backlog_is_held_in_bounded_memory() {
    for order in [Order::None, Order::Conversation, Order::Log] {
        let mut n = 0;
        let script: Script = Box::new(move |_, _| {
            n += 1;
            (1, if n % 3 == 0 { retry() } else { Outcome::Delivered })
        });
        let mut w = World::new(vec![HandlerPlan { order, ..plan("a") }], script);
        for n in 0..20_000 {
            w.event_of(n % 100);
        }
        for _ in 0..200 {
            w.run_for(5);
            let held = w.planner.tracks.values().map(Track::held).sum::<usize>();
            assert!(held <= 4 * READY_MAX + 2 * WAITING_MAX + 1_000, "{order:?}: {held}");
        }
    }
}

#[test]
fn events_passed_over_move_the_cursor_at_most_once_a_second_and_never_without_events() {
    let mut w = World::new(vec![plan("a"), plan("b")], always(1, Outcome::Delivered));
    for _ in 0..100 {
        for _ in 0..50 {
            w.unwanted();
        }
        w.run_for(100);
    }
    w.run_for(HOUR);
    // The last event is below everything that the two wrote themselves.
    let last = w.log.len() as Seq;
    for handler in ["a", "b"] {
        let moved: Vec<_> =
            w.moved.iter().filter(|(h, _)| h.as_str() == handler).map(|(_, to)| *to).collect();
        assert!((9..=12).contains(&moved.len()), "{moved:?}");
        assert!(*moved.last().unwrap() > 5_000, "{moved:?} of {last}");
    }
    let log = w.log.len();
    w.run_for(HOUR);
    assert_eq!(w.log.len(), log, "an idle handler writes nothing");
}

#[test]
fn strict_order_holds_over_retries_and_restarts() {
    let strict = HandlerPlan { order: Order::Log, ..plan("a") };
    let script: Script =
        Box::new(|key, n| (10, if key.event == 2 && n < 3 { retry() } else { Outcome::Delivered }));
    let mut w = World::new(vec![strict], script);
    for _ in 0..5 {
        w.event();
    }
    w.run_for(1_000);
    w.crash();
    w.run_for(40_000);
    w.crash();
    w.run_for(HOUR);
    let order: Vec<_> = w.ran.iter().map(|r| (r.event, r.number)).collect();
    assert_eq!(order, [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (4, 1), (5, 1)]);
}

#[test]
fn a_failing_conversation_waits_and_the_others_do_not() {
    let by_conversation = HandlerPlan { order: Order::Conversation, ..plan("a") };
    let script: Script =
        Box::new(|key, n| (10, if key.event == 1 && n < 3 { retry() } else { Outcome::Delivered }));
    let mut w = World::new(vec![by_conversation], script);
    let blocked: Vec<_> = (0..3).map(|_| w.event_of(1)).collect();
    let free: Vec<_> = (2..300).map(|n| w.event_of(n)).collect();
    w.run_for(2_000);
    assert!(free.iter().all(|e| w.state("a", *e) == "delivered"));
    assert_eq!(w.ran.iter().filter(|r| blocked.contains(&r.event)).count(), 1);
    // Those that wait are not lost although the cursor has passed them.
    w.crash();
    w.run_for(HOUR);
    let order: Vec<_> =
        w.ran.iter().filter(|r| blocked.contains(&r.event)).map(|r| (r.event, r.number)).collect();
    assert_eq!(order, [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]);
}

/// No event of a lane starts before the earlier ones of it are settled, whatever happens.
#[test]
fn no_event_overtakes_another_of_its_conversation() {
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let order = if rng.bool() { Order::Conversation } else { Order::Log };
        let plans = vec![HandlerPlan { order, ..plan("a") }];
        let mut dice = rng.fork();
        let script: Script = Box::new(move |_, _| {
            let outcome = match dice.u32(0..10) {
                0..4 => retry(),
                4 => Outcome::reject("410"),
                _ => Outcome::Delivered,
            };
            (dice.i64(0..2_000), outcome)
        });
        let mut w = World::new(plans, script);
        if rng.bool() {
            w.lag = Some(rng.fork());
        }
        let mut lanes = BTreeMap::new();
        for _ in 0..40 {
            let lane = rng.u64(0..4);
            lanes.insert(w.event_of(lane), if order == Order::Log { 0 } else { lane });
            if rng.u32(0..3) == 0 {
                w.run_for(rng.i64(0..60_000));
            }
            match rng.u32(0..12) {
                0 => w.crash(),
                1 => w.fault(),
                _ => {}
            }
        }
        let settled = |w: &World, event: &Seq| matches!(w.state("a", *event), "delivered" | "dead");
        for _ in 0..400 {
            if lanes.keys().all(|event| settled(&w, event)) {
                break;
            }
            w.run_for(HOUR / 10);
        }
        for (event, lane) in &lanes {
            assert!(settled(&w, event), "seed {seed}: {event} is {}", w.state("a", *event));
            let begun = w.ran.iter().position(|r| r.event == *event);
            let overtaken =
                w.ran.iter().enumerate().find(|(at, r)| {
                    Some(*at) > begun && r.event < *event && lanes[&r.event] == *lane
                });
            // An event may have no attempt that ended: crashes cut off each of them.
            if begun.is_some() {
                assert!(overtaken.is_none(), "seed {seed}: {event} overtook {overtaken:?}");
            }
        }
    }
}

fn guarded(name: &str) -> HandlerPlan {
    let secs = Duration::from_secs;
    let circuit = Circuit { failures: 10, first: secs(30), longest: secs(600) };
    HandlerPlan { circuit, ..plan(name) }
}

/// What `event` used up: attempts of the same number that were made again did not count.
fn used_up(w: &World, event: Seq) -> u32 {
    w.attempts("a", event).iter().map(|(number, _)| *number).max().unwrap_or(0)
}

#[test]
fn a_handler_that_is_down_for_a_night_costs_no_delivery_its_attempts() {
    for order in [Order::None, Order::Conversation, Order::Log] {
        let back = T0 + 8 * HOUR;
        let now = std::rc::Rc::new(std::cell::Cell::new(T0));
        let clock = std::rc::Rc::clone(&now);
        let script: Script = Box::new(move |_, _| {
            (10, if clock.get() < back { retry() } else { Outcome::Delivered })
        });
        let mut w = World::new(vec![HandlerPlan { order, ..guarded("a") }], script);
        let mut events: Vec<_> = (0..100).map(|n| w.event_of(n % 7)).collect();
        for _ in 0..(10 * 60) {
            w.run_for(60_000);
            now.set(w.now.0);
            if w.now.0 < back {
                events.push(w.event_of(3));
            }
        }
        assert_eq!(w.circuit, [true, false], "{order:?}");
        let probes = w.ran.iter().filter(|r| r.start > back - 4 * HOUR && r.end < back).count();
        assert!((20..=26).contains(&probes), "{order:?}: {probes} probes in four hours");
        // One after the other, two use up their five attempts before ten have failed in a row.
        let lost = if order == Order::Log { 2 } else { 0 };
        for e in events {
            let state = if e <= lost { "dead" } else { "delivered" };
            assert_eq!(w.state("a", e), state, "{order:?}: event {e}");
            assert!(used_up(&w, e) <= 5, "{order:?}: event {e} used up {}", used_up(&w, e));
        }
    }
}

#[test]
fn events_that_always_fail_do_not_keep_the_circuit_open_for_the_others() {
    let script: Script =
        Box::new(|key, _| (10, if key.event <= 15 { retry() } else { Outcome::Delivered }));
    let one = HandlerPlan { concurrency: 1, ..guarded("a") };
    let mut w = World::new(vec![one], script);
    for _ in 0..40 {
        w.event();
    }
    w.run_for(12 * HOUR);
    for e in 16..=40 {
        assert_eq!(w.state("a", e), "delivered", "event {e}");
    }
    // Nothing succeeds any more, so they would be tried for ever; somebody who has looked ends that.
    for _ in 0..8 {
        w.resume("a");
        w.run_for(2 * HOUR);
    }
    for e in 1..=15 {
        assert_eq!(w.state("a", e), "dead", "event {e}");
        assert_eq!(used_up(&w, e), 5);
    }
}

#[test]
fn resuming_a_handler_closes_its_circuit_at_once() {
    let works = std::rc::Rc::new(std::cell::Cell::new(false));
    let now = std::rc::Rc::clone(&works);
    let script: Script =
        Box::new(move |_, _| (1, if now.get() { Outcome::Delivered } else { retry() }));
    let mut w = World::new(vec![guarded("a")], script);
    let events: Vec<_> = (0..50).map(|_| w.event()).collect();
    w.run_for(2 * HOUR);
    let open = w.planner.snapshot()[0].circuit.expect("open");
    assert!(open.next_probe > w.now && open.failures > 10);
    works.set(true);
    w.resume("a");
    w.run_for(2_000);
    let first_wave: Vec<_> = events.iter().filter(|e| w.state("a", **e) != "delivered").collect();
    // Those whose failures counted wait for the time that their schedule gives them.
    assert!(first_wave.len() <= 10, "{first_wave:?}");
    w.run_for(HOUR);
    for e in events {
        assert_eq!(w.state("a", e), "delivered", "event {e}");
    }
}

#[test]
fn no_event_overtakes_another_of_its_conversation_while_a_circuit_opens_and_closes() {
    for seed in 0..8 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut down = 0;
        let script: Script = Box::new(move |_, _| {
            if down == 0 && rng.u8(..) < 20 {
                down = rng.u32(5..40);
            }
            down = u32::saturating_sub(down, 1);
            (rng.i64(1..500), if down > 0 { retry() } else { Outcome::Delivered })
        });
        let by_conversation = HandlerPlan { order: Order::Conversation, ..guarded("a") };
        let mut w = World::new(vec![by_conversation], script);
        w.lag = Some(fastrand::Rng::with_seed(seed));
        let events: Vec<_> = (0..200u64).map(|n| (n % 9, w.event_of(n % 9))).collect();
        let settled = |w: &World, e| ["delivered", "dead"].contains(&w.state("a", e));
        for _ in 0..500 {
            if !events.iter().all(|(_, e)| settled(&w, *e)) {
                w.run_for(HOUR);
            }
        }
        let mut last = std::collections::BTreeMap::new();
        for ran in &w.ran {
            let (conversation, _) = events[usize::try_from(ran.event).unwrap() - 1];
            let before = last.insert(conversation, ran.event).unwrap_or(0);
            assert!(ran.event >= before, "seed {seed}: {} ran after {before}", ran.event);
        }
        for (_, e) in events {
            assert!(settled(&w, e), "seed {seed}: event {e}");
        }
    }
}
