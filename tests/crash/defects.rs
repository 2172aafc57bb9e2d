//! The test of the tests: with a deliberate defect in the real binary its campaign finds losses.

use super::disk::can_mount;
use super::images::{Crashes, campaign, record};
use super::power::pull_the_plug;
use super::rot::flips_unnoticed;
use crate::support::{Program, rng};

#[test]
fn a_receipt_before_the_sync_is_noticed_by_power_cuts() {
    if !can_mount() {
        return;
    }
    let program = Program::with_defect("early_receipt");
    let told = pull_the_plug(&program, 0.0, 10, &mut rng("early receipts"));
    println!("{told:?}");
    assert!(told.lost > 0, "{told:?}");
}

fn is_noticed_by_images(defect: &'static str, crashes: Crashes) {
    let recording = record(&Program::with_defect(defect));
    let wrong = campaign(&recording, 200, crashes, &mut rng(defect));
    println!("{defect}: {} of 200, such as {:.300}", wrong.len(), wrong.join("; "));
    assert!(wrong.iter().any(|w| w.contains("lost")), "{wrong:?}");
}

#[test]
fn folders_that_are_not_synced_are_noticed_by_crash_images() {
    is_noticed_by_images("no_folder_sync", Crashes::Anywhere);
}

#[test]
fn a_segment_dropped_too_early_is_noticed_by_crash_images() {
    is_noticed_by_images("early_drop", Crashes::AtDrops);
}

#[test]
fn checksums_that_are_not_compared_are_noticed_by_flipped_bits() {
    let mut rng = rng("no checksums");
    assert_eq!(flips_unnoticed(&Program::plain(), 20, &mut rng), 0);
    let missed = flips_unnoticed(&Program::with_defect("no_checksum"), 20, &mut rng);
    assert!(missed > 10, "only {missed} of 20");
}
