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

use process::Sabotage;
use world::World;

fn seeds() -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("BLUEHOOK_SEED") {
        let seed = seed.parse().unwrap();
        return seed..seed + 1;
    }
    let full = std::env::var("BLUEHOOK_FULL").is_ok_and(|full| !full.is_empty());
    0..if full { 20_000 } else { 2_000 }
}

#[test]
fn every_promise_is_kept_whatever_happens() {
    let (mut acked, mut runs, mut cuts) = (0, 0, 0);
    for seed in seeds() {
        match World::run(seed, Sabotage::Nothing) {
            Ok(world) => {
                acked += world.acked();
                runs += world.runs();
                cuts += world.power_cuts;
            }
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    eprintln!("{acked} acknowledgements, {runs} runs of handlers, {cuts} power cuts");
}

/// The test of the test: of so many stories of a build with such a fault, at least so many must tell of a
/// breach of one of these promises.
fn is_noticed(sabotage: Sabotage, stories: u64, least: usize, promises: &[&str]) {
    let noticed: Vec<String> =
        (0..stories).filter_map(|seed| World::run(seed, sabotage).err()).collect();
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
    is_noticed(Sabotage::NoFences, 200, 5, &["I3", "I4", "I6"]);
}

#[test]
fn records_that_rest_on_lost_ones_are_noticed() {
    is_noticed(Sabotage::AnyEpoch, 400, 2, &["I3", "I7"]);
}
