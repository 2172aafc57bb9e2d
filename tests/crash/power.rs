//! Power cuts: ext4 on a disk with a volatile write cache, the server under load, and the plug pulled.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::disk::{Mounted, VolatileDisk, can_mount};
use super::{Load, stored};
use crate::support::{Program, Server, full_run, rng};

const DISK_BYTES: u64 = 96 * 1024 * 1024;
/// So often in a row on one disk, each time with what the cuts before have left.
const CUTS_ON_ONE_DISK: usize = 10;
/// How long every second cut waits for a write that waits for its flush.
const CATCH_WITHIN: Duration = Duration::from_millis(200);
/// Small segments, so that cuts meet their change; enough room that nothing is dropped.
const CONFIG: &str = r#"
[retention]
disk_max = "48 MiB"

[[handler]]
name = "failing"
events = ["message.failed"]
exec = { command = ["/bin/false"] }
circuit = { failures = 0 }
"#;

/// What of a number of cuts is to be told.
#[derive(Default, Debug)]
pub struct Told {
    cuts: usize,
    unflushed: usize,
    kept: usize,
    acknowledged: usize,
    pub lost: usize,
    stored_twice: usize,
}

/// Pulls the plug so many times; `program` runs in between.
pub fn pull_the_plug(program: &Program, keep: f64, cuts: usize, rng: &mut fastrand::Rng) -> Told {
    let mut told = Told::default();
    while told.cuts < cuts {
        let folder = tempfile::tempdir().unwrap();
        let disk = VolatileDisk::with_ext4(folder.path(), DISK_BYTES);
        let at = folder.path().join("disk");
        let mut mounted = Some(Mounted::new(&disk.image(), &at));
        let mut server = Server::stopped_at(&at.join("data"), CONFIG);
        server.program = program.clone();
        let (next, acknowledged) = (AtomicU64::new(0), Mutex::new(BTreeSet::new()));
        server.spawn();
        for _ in 0..CUTS_ON_ONE_DISK.min(cuts - told.cuts) {
            let load =
                Load { next: &next, acknowledged: &acknowledged, stop: AtomicBool::new(false) };
            let moment = Duration::from_millis(rng.u64(5..300));
            let addr = server.addr;
            std::thread::scope(|scope| {
                for _ in 0..6 {
                    scope.spawn(|| load.send(addr));
                }
                // The random instant is the point of this test, not a wait for something to happen.
                std::thread::sleep(moment);
                // Writes wait for their flush but for a moment each: ten random instants may miss them all.
                let until = Instant::now() + CATCH_WITHIN;
                while told.cuts % 2 == 1 && !disk.holds_unflushed() && Instant::now() < until {
                    std::thread::yield_now();
                }
                let cut = disk.cut_power(keep, rng);
                server.kill();
                load.stop.store(true, Ordering::Relaxed);
                told.unflushed += cut.unflushed;
                told.kept += cut.kept;
            });
            told.cuts += 1;
            drop(mounted.take());
            disk.restore_power();
            mounted = Some(Mounted::new(&disk.image(), &at));
            server.spawn();
            let stored = stored(&server);
            let acknowledged = acknowledged.lock().unwrap();
            told.lost += acknowledged.iter().filter(|id| !stored.contains_key(*id)).count();
            told.stored_twice += stored.values().filter(|n| **n > 1).count();
        }
        told.acknowledged += acknowledged.lock().unwrap().len();
    }
    told
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged() {
    if !can_mount() {
        return;
    }
    let mut rng = rng("power cuts");
    let cuts = if full_run() { 300 } else { 10 };
    for keep in [0.0, 0.5, 0.9] {
        let told = pull_the_plug(&Program::plain(), keep, cuts, &mut rng);
        println!("keep {keep}: {told:?}");
        assert!(told.acknowledged > 10 * cuts && told.unflushed > 0, "too little load: {told:?}");
        assert_eq!((told.lost, told.stored_twice), (0, 0), "{told:?}");
    }
}
