//! Errors under the real binary: disks that fill up, wear out or fail in one call, and limits of the system.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::disk::{Mounted, VolatileDisk, can_mount, make_ext4};
use super::{Load, stored};
use crate::support::{Server, event_body, eventually, full_run, rng};

/// After so long at most it takes events again, without a person.
const RESUMES_WITHIN: Duration = Duration::from_secs(10);

/// Posts until it is acknowledged; gives how long that took. The process may end: then it is started anew.
fn post(server: &mut Server, id: &str) -> Duration {
    let begun = Instant::now();
    let body = event_body(id, "message.read", 1);
    eventually(&format!("{id} is acknowledged"), || {
        if server.ended().is_some() {
            server.through.clear();
            server.spawn();
        }
        let answer = server.client().post_signed(&body);
        answer.is_ok_and(|a| a.status == 200).then(|| begun.elapsed())
    })
}

fn assert_stored(server: &Server, acknowledged: &BTreeSet<String>) {
    let stored = stored(server);
    let missing: Vec<_> = acknowledged.iter().filter(|id| !stored.contains_key(*id)).collect();
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", server.log());
    assert!(stored.values().all(|n| *n == 1), "stored more than once");
}

/// All that is left of the file system, but for what nobody but root may use.
fn fill(file: &Path) {
    let mut file = std::fs::File::create(file).unwrap();
    let mut block = vec![1; 1 << 20];
    while !block.is_empty() {
        if file.write_all(&block).is_err() {
            block.truncate(block.len() / 2);
        }
    }
}

#[test]
fn a_disk_that_fills_up_under_load_refuses_and_goes_on_once_there_is_room() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, at) = (folder.path().join("disk.img"), folder.path().join("disk"));
    make_ext4(&image, 64 << 20);
    let mounted = Mounted::new(&image, &at);
    let mut server = Server::stopped_at(&at.join("data"), "");
    server.spawn();
    let (next, acknowledged) = (AtomicU64::new(0), Mutex::new(BTreeSet::new()));
    for round in 0..if full_run() { 20 } else { 3 } {
        let load = Load { next: &next, acknowledged: &acknowledged, stop: AtomicBool::new(false) };
        let addr = server.addr;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| load.send(addr));
            }
            let before = acknowledged.lock().unwrap().len();
            eventually("there is load", || {
                (acknowledged.lock().unwrap().len() > before + 200).then_some(())
            });
            let ballast = at.join("ballast");
            fill(&ballast);
            let body = event_body(&format!("evt_while_full_{round}"), "message.read", 1);
            eventually("it refuses", || {
                let answer = server.client().post_signed(&body).unwrap();
                (answer.status == 503).then_some(())
            });
            let status = server.cli(&["status"]);
            let text = String::from_utf8_lossy(&status.stdout).into_owned();
            assert_eq!(status.status.code(), Some(1), "{text}");
            assert!(text.contains("full") && text.contains("free some space"), "{text}");
            std::fs::remove_file(&ballast).unwrap();
            load.stop.store(true, Ordering::Relaxed);
        });
        let id = format!("evt_room_{round}");
        let took = post(&mut server, &id);
        assert!(took < RESUMES_WITHIN, "round {round}: it took {took:?}");
        acknowledged.lock().unwrap().insert(id);
        assert_stored(&server, &acknowledged.lock().unwrap());
    }
    server.kill();
    server.spawn();
    assert_stored(&server, &acknowledged.lock().unwrap());
    println!("{} acknowledged", acknowledged.lock().unwrap().len());
    drop(server);
    drop(mounted);
}

/// ext4 makes itself read-only once its device fails: after that nothing helps but another mount.
#[test]
fn a_device_that_wears_out_and_a_file_system_gone_read_only_acknowledge_nothing() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = VolatileDisk::with_ext4(folder.path(), 64 << 20);
    let at = folder.path().join("disk");
    let mut mounted = Some(Mounted::new(&disk.image(), &at));
    let mut server = Server::stopped_at(&at.join("data"), "");
    server.spawn();
    let (next, acknowledged) = (AtomicU64::new(0), Mutex::new(BTreeSet::new()));
    let load = Load { next: &next, acknowledged: &acknowledged, stop: AtomicBool::new(false) };
    let addr = server.addr;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load.send(addr));
        }
        eventually("some are acknowledged", || {
            (acknowledged.lock().unwrap().len() > 100).then_some(())
        });
        disk.wear_out(true);
        let body = event_body("evt_worn", "message.read", 1);
        eventually("it refuses", || {
            (server.client().post_signed(&body).unwrap().status == 503).then_some(())
        });
        load.stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(server.cli(&["status"]).status.code(), Some(1));
    assert!(server.ended().is_none(), "it says what is wrong, and goes on trying");
    server.kill();
    drop(mounted.take());
    disk.wear_out(false);
    disk.cut_power(0.0, &mut rng("worn out"));
    disk.restore_power();
    let _mounted = Mounted::new(&disk.image(), &at);
    server.spawn();
    assert_stored(&server, &acknowledged.lock().unwrap());
    post(&mut server, "evt_worn");
}

/// Sixty events, one after the other; in each thread the `nth` such call of the process fails, or kills it.
fn sixty_steps_with(call: &str, injected: &str, nth: usize) {
    let mut server = Server::stopped("[retention]\ndisk_max = \"32 MiB\"\n");
    let inject = format!("inject={call}:{injected}:when={nth}");
    let strace = ["strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e"];
    let mut through: Vec<String> = strace.map(str::to_owned).to_vec();
    through.extend([format!("trace={call}"), "-e".to_owned(), inject, "--".to_owned()]);
    server.through = through;
    let what = format!("{call} {injected}, call {nth}");
    if server.try_spawn().is_err() {
        let log = server.log();
        let said = log.lines().last().is_some_and(|line| line.starts_with("bluehook: "));
        assert!(injected.contains("KILL") || said, "{what}: {log}");
        server.through.clear();
        server.spawn();
    }
    let mut acknowledged = BTreeSet::new();
    for n in 0..60 {
        let id = format!("evt_{n}");
        let took = post(&mut server, &id);
        assert!(took < RESUMES_WITHIN, "{what}: {id} took {took:?}\n{}", server.log());
        acknowledged.insert(id);
    }
    server.kill();
    server.through.clear();
    server.spawn();
    assert_stored(&server, &acknowledged);
}

#[test]
fn a_failed_call_in_sixty_steps_is_never_acknowledged_and_passes_by_itself() {
    let mut rng = rng("failing calls");
    // So many calls a thread makes in that time; later ones don't come to pass.
    let calls =
        [("pwrite64", 80), ("fdatasync", 70), ("fsync", 12), ("fallocate", 2), ("rename", 3)];
    let faults = ["error=EIO", "error=ENOSPC", "signal=KILL"];
    let all = calls.iter().flat_map(|(call, times)| {
        (1..=*times).flat_map(move |nth| faults.map(|fault| (*call, fault, nth)))
    });
    let mut all: Vec<_> = all.collect();
    if !full_run() {
        rng.shuffle(&mut all);
        all.truncate(15);
    }
    for (call, fault, nth) in all {
        sixty_steps_with(call, fault, nth);
    }
}

#[test]
fn out_of_descriptors_it_goes_on_once_there_are_some() {
    let mut server = Server::stopped("");
    server.through = ["prlimit", "--nofile=64:64"].map(str::to_owned).to_vec();
    server.spawn();
    let mut acknowledged = BTreeSet::new();
    for round in 0..5 {
        let held: Vec<TcpStream> =
            (0..100).map_while(|_| TcpStream::connect(server.addr).ok()).collect();
        assert!(held.len() > 64, "the kernel takes more than the process");
        drop(held);
        let id = format!("evt_{round}");
        let took = post(&mut server, &id);
        assert!(took < RESUMES_WITHIN, "{took:?}\n{}", server.log());
        acknowledged.insert(id);
    }
    assert_stored(&server, &acknowledged);
}

/// An allocation that fails ends the process, as a kill would.
#[test]
fn out_of_memory_loses_nothing_that_was_acknowledged() {
    let mut server = Server::stopped("");
    let acknowledged = Mutex::new(BTreeSet::new());
    let mut ended = 0;
    for (round, mib) in [96, 128, 160, 200, 240].into_iter().enumerate() {
        let limit = format!("--as={}", mib << 20);
        server.through = ["prlimit", &limit].map(str::to_owned).to_vec();
        if server.try_spawn().is_err() {
            ended += 1;
            continue;
        }
        std::thread::scope(|scope| {
            for sender in 0..16 {
                let (server, acknowledged) = (&server, &acknowledged);
                scope.spawn(move || {
                    let mut client = server.client();
                    for n in 0..20 {
                        let id = format!("evt_{round}_{sender}_{n}");
                        let plain = event_body(&id, "message.read", n);
                        let pad = "x".repeat(900_000);
                        let body = plain.replacen('{', &format!("{{\"pad\":\"{pad}\","), 1);
                        match client.post_signed(&body) {
                            Ok(a) if a.status == 200 => _ = acknowledged.lock().unwrap().insert(id),
                            Ok(_) => {}
                            Err(_) => return,
                        }
                    }
                });
            }
        });
        ended += usize::from(server.ended().is_some());
        server.kill();
    }
    server.through.clear();
    server.spawn();
    let acknowledged = acknowledged.lock().unwrap();
    println!("{} acknowledged; in {ended} of 5 rounds memory ran out", acknowledged.len());
    assert!(!acknowledged.is_empty());
    assert_stored(&server, &acknowledged);
}
