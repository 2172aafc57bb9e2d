//! 300,000 events with three handlers running: memory and disk stay bounded, the list stays quick.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::load::{THREE_HANDLERS, kind_of};
use crate::support::{Receiver, Server, event_body, eventually};

const EVENTS: usize = 300_000;
/// Reached well before the second half, so that there the amount of stored events is steady too.
const DISK_MAX_MIB: u64 = 192;

/// All resident memory in MiB, the program's own pages included.
fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn folder_bytes(folder: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => folder_bytes(&entry.path()),
            Ok(m) => std::os::unix::fs::MetadataExt::blocks(&m) * 512,
            Err(_) => 0, // a segment that retention has just removed
        })
        .sum()
}

#[test]
fn memory_and_disk_stay_bounded_over_300_000_events() {
    let receiver = Receiver::start_counting();
    let config = format!(
        "[retention]\ndelivered = \"1h\"\ndisk_max = \"{DISK_MAX_MIB} MiB\"\n{}",
        THREE_HANDLERS
            .replace("{url}", &receiver.url("/crm"))
            .replace("message.failed", "message.rare")
    );
    let server = Server::start(&config);
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = server.client();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= EVENTS {
                            return;
                        }
                        let rare = n.is_multiple_of(1_000);
                        let kind = if rare { "message.rare" } else { kind_of(n) };
                        let body = event_body(&format!("evt_{n}"), kind, n as u64);
                        // A full or busy store says 503; the sender tries again, as the vendor does.
                        while client.post_signed(&body).unwrap().status != 200 {
                            std::thread::sleep(Duration::from_millis(50));
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            for sender in senders {
                sender.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            samples.push((next.load(Ordering::Relaxed), resident_mib(server.pid())));
        }
    });
    // While there is a backlog there are events for sure.
    let begun = Instant::now();
    let listed = server.cli_json(&["events", "list", "--limit", "20"]).len();
    let list_took = begun.elapsed();
    // The backlog may take longer than patience lasts, as long as it gets smaller.
    let wanted = EVENTS - EVENTS / 1_000;
    let mut delivered = receiver.count();
    while delivered < wanted {
        delivered = eventually("the handlers go on", || {
            let now = receiver.count();
            (now >= wanted || now >= delivered + 10_000).then_some(now)
        });
        samples.push((EVENTS, resident_mib(server.pid())));
    }
    samples.push((EVENTS, resident_mib(server.pid())));

    let peak = samples.iter().map(|s| s.1).max().unwrap();
    let quarter = |n: usize| {
        let range = EVENTS / 4 * n..EVENTS / 4 * (n + 1);
        let quarter = samples.iter().filter(|s| range.contains(&s.0));
        let mut quarter: Vec<u64> = quarter.map(|s| s.1).collect();
        quarter.sort_unstable();
        quarter
    };
    // It rises and falls with the holes in the index. What a leak raises is what it falls back to.
    let before = *quarter(2).last().unwrap();
    let last = quarter(3);
    let last = last[last.len() / 10];
    let disk = eventually("retention makes room", || {
        let mib = folder_bytes(&server.data()) / (1024 * 1024);
        (mib <= DISK_MAX_MIB * 5 / 4).then_some(mib)
    });
    // The index may just be being built anew.
    eventually("the index is whole", || server.cli(&["status"]).status.success().then_some(()));
    let course: Vec<u64> = samples.iter().step_by(samples.len() / 40).map(|s| s.1).collect();
    println!("memory over time, MiB: {course:?}");
    println!(
        "peak {peak} MiB; third quarter {before} at most, last {last} at least; disk {disk} MiB; list in {list_took:?}"
    );
    assert!(peak < 96, "peak memory {peak} MiB: {samples:?}");
    assert!(last <= before + before / 8, "memory grows: {before} MiB, then {last} MiB");
    assert_eq!(listed, 20);
    // Retention makes no more room than it needs.
    let log_mib = server.cli_json(&["status"])[0]["logBytes"].as_u64().unwrap() / (1024 * 1024);
    assert!(log_mib >= DISK_MAX_MIB / 4, "the log is down to {log_mib} MiB");
    let log = server.log();
    println!("{}", log.lines().filter(|l| l.contains("compacted")).collect::<Vec<_>>().join("\n"));
    assert!(!log.contains("ERROR"), "{log}");
}
