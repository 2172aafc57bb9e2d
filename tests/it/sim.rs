//! The simulator: the store, the index and the planner, single-threaded, in a world where everything that
//! can go wrong does, in an order that one number decides. The invariants of ARCHITECTURE.md are asserted
//! throughout; what they are called there (I1, …) is how a violation is reported here.
//!
//! `BLUEHOOK_SEED=n cargo test --profile checked sim` tells the story of one seed again.

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
            Err(why) => eprintln!("seed {seed}: {why}"),
        }
    }
    eprintln!("{acked} acknowledgements, {runs} runs of handlers, {cuts} power cuts");
}

/// The test of the test: how many of the first seeds notice.
fn noticed(sabotage: Sabotage) -> Vec<String> {
    (0..100).filter_map(|seed| World::run(seed, sabotage).err()).collect()
}

fn is_noticed(sabotage: Sabotage, as_breach_of: &[&str]) {
    let noticed = noticed(sabotage);
    assert!(noticed.len() >= 20, "{sabotage:?}: only {} of 100", noticed.len());
    let named = |why: &&String| as_breach_of.iter().any(|i| why.contains(&format!(": {i}: ")));
    let right = noticed.iter().filter(named).count();
    assert!(right * 2 > noticed.len(), "{sabotage:?}: {noticed:#?}");
}

#[test]
fn a_build_without_the_sync_is_noticed() {
    is_noticed(Sabotage::SyncLies, &["I1", "I10"]);
}

#[test]
fn a_receipt_handed_out_early_is_noticed() {
    is_noticed(Sabotage::EarlyReceipts, &["I1"]);
}

#[test]
fn an_index_of_what_is_not_durable_is_noticed() {
    is_noticed(Sabotage::EagerIndex, &["I1", "I5", "I7", "I8", "I9"]);
}

#[test]
fn a_planner_that_does_not_wait_for_the_index_is_noticed() {
    is_noticed(Sabotage::NoFences, &["I3", "I4", "I6"]);
}
