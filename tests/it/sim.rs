//! The simulator: the store, the index and the planner, single-threaded, in a world where everything that
//! can go wrong does, in an order that one number decides. The invariants of ARCHITECTURE.md are asserted
//! throughout; what they are called there (I1, …) is how a violation is reported here.
//!
//! `BLUEHOOK_SEED=n cargo test --profile checked sim` tells the story of one seed again.

mod handlers;
mod model;
mod process;
mod replayer;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use process::Sabotage;
use world::{Told, World};

fn seeds() -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("BLUEHOOK_SEED") {
        let seed = seed.parse().unwrap();
        return seed..seed + 1;
    }
    let full = std::env::var("BLUEHOOK_FULL").is_ok_and(|full| !full.is_empty());
    0..if full { 20_000 } else { 2_000 }
}

/// Tells every story, on all cores.
fn tell(seeds: std::ops::Range<u64>, sabotage: Sabotage) -> Vec<(u64, Result<Told, String>)> {
    let next = AtomicU64::new(seeds.start);
    let some = || {
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| seeds.contains(n));
        std::iter::from_fn(take).map(|seed| (seed, World::run(seed, sabotage))).collect::<Vec<_>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_promise_is_kept_whatever_happens() {
    let told = tell(seeds(), Sabotage::Nothing);
    let broken: Vec<String> = (told.iter())
        .filter_map(|(seed, told)| Some(format!("BLUEHOOK_SEED={seed}: {}", told.as_ref().err()?)))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let mut all = Told::default();
    for told in told.iter().filter_map(|(_, told)| told.as_ref().ok()) {
        all.acknowledged += told.acknowledged;
        all.runs += told.runs;
        all.power_cuts += told.power_cuts;
    }
    eprintln!("{} stories: {all:?}", told.len());
}

/// The test of the test: of so many stories of a build with such a fault, at least so many must tell of a
/// breach of one of these promises.
fn is_noticed(sabotage: Sabotage, stories: u64, least: usize, promises: &[&str]) {
    let noticed: Vec<String> =
        tell(0..stories, sabotage).into_iter().filter_map(|(_, told)| told.err()).collect();
    let named = |why: &&String| promises.iter().any(|i| why.contains(&format!("{i}: ")));
    let right = noticed.iter().filter(named).count();
    eprintln!("{sabotage:?}: {right} of {stories}, {} otherwise", noticed.len() - right);
    assert!(right >= least, "{sabotage:?}: only {right} of {stories}: {noticed:#?}");
}

#[test]
fn a_build_without_the_sync_is_noticed() {
    is_noticed(Sabotage::SyncLies, 50, 40, &["I1", "I10"]);
}

#[test]
fn a_receipt_handed_out_early_is_noticed() {
    is_noticed(Sabotage::EarlyReceipts, 100, 5, &["I1"]);
}

#[test]
fn a_planner_that_does_not_wait_for_the_index_is_noticed() {
    is_noticed(Sabotage::NoFences, 200, 5, &["I3", "I4", "I6", "I7"]);
}

#[test]
fn records_that_rest_on_lost_ones_are_noticed() {
    is_noticed(Sabotage::AnyEpoch, 400, 2, &["I3", "I7"]);
}
