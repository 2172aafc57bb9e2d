//! SIGKILL under load, and an index that is missing or damaged.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::{Load, stored};
use crate::support::{Receiver, Server, event_body, eventually, full_run, lines_of, rng};

const FILE_AND_FAILING: &str = r#"
[[handler]]
name = "file"
events = ["*"]
concurrency = 16
file = { path = "{dir}/events.jsonl" }

[[handler]]
name = "failing"
events = ["message.failed"]
exec = { command = ["/bin/false"] }
circuit = { failures = 0 }
"#;

#[test]
fn sigkill_at_random_moments_loses_nothing_that_was_acknowledged() {
    let kills = if full_run() { 500 } else { 50 };
    let mut rng = rng("sigkill");
    let mut server = Server::start(FILE_AND_FAILING);
    let acknowledged = Mutex::new(BTreeSet::new());
    let next = AtomicU64::new(0);
    let mut slowest = Duration::ZERO;

    for _ in 0..kills {
        let addr = server.addr;
        let load = Load { next: &next, acknowledged: &acknowledged, stop: AtomicBool::new(false) };
        let moment = Duration::from_millis(rng.u64(5..150));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| load.send(addr));
            }
            // The random instant is the point of this test, not a wait for something to happen.
            std::thread::sleep(moment);
            server.kill();
            load.stop.store(true, Ordering::Relaxed);
        });
        slowest = slowest.max(server.spawn());
    }

    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.len() > kills * 10, "too little load: {}", acknowledged.len());
    println!("{kills} kills, {} acknowledged, slowest start {slowest:?}", acknowledged.len());

    let handled = server.dir.path().join("events.jsonl");
    // The backlog may take longer than patience lasts, as long as it gets smaller.
    let mut left = usize::MAX;
    while left > 0 {
        left = eventually("the handlers go on", || {
            let now = not_in(&acknowledged, &handled);
            (now < left).then_some(now)
        });
    }
    let stored = stored(&server);
    let missing: Vec<_> = acknowledged.iter().filter(|id| !stored.contains_key(*id)).collect();
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    assert!(stored.values().all(|&n| n == 1), "an event is stored twice");
}

fn not_in(ids: &BTreeSet<String>, file: &std::path::Path) -> usize {
    let handled: std::collections::HashSet<String> = lines_of(file)
        .iter()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .filter_map(|v| v["eventId"].as_str().map(str::to_owned))
        .collect();
    ids.iter().filter(|id| !handled.contains(*id)).count()
}

/// (event, handler) → (state, attempts).
fn states(server: &Server) -> HashMap<(String, String), (String, usize)> {
    let mut states = HashMap::new();
    for line in server.cli_ok(&["export"]).lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        for delivery in event["deliveries"].as_array().unwrap() {
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            states.insert(
                (text(&event["eventId"]), text(&delivery["handler"])),
                (text(&delivery["state"]), delivery["attempts"].as_array().unwrap().len()),
            );
        }
    }
    states
}

fn index_files(server: &Server) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![server.data().join("index")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

#[test]
fn a_missing_damaged_or_cut_index_is_rebuilt_with_every_state_as_before() {
    let receiver = Receiver::start(|r| match r.path.as_str() {
        "/gone" => (410, ""),
        _ => (500, ""),
    });
    let mut server = Server::start(&format!(
        "{FILE_AND_FAILING}
[[handler]]
name = \"gone\"
events = [\"message.read\"]
http = {{ url = \"{}\" }}
",
        receiver.url("/gone")
    ));
    let mut client = server.client();
    for n in 0..3_000u64 {
        let kind = ["message.sent", "message.read", "message.failed"]
            [usize::from(n % 30 == 0) * 2 + usize::from(n % 30 == 1)];
        let body = event_body(&format!("evt_{n}"), kind, n);
        assert_eq!(client.post_signed(&body).unwrap().status, 200);
    }
    let want = 3_000 + 100 + 100;
    let settled = |server: &Server| {
        let now = states(server);
        let tried = now.values().all(|(_, attempts)| *attempts == 1);
        (now.len() == want && tried).then_some(now)
    };
    let before = eventually("every delivery was tried once", || settled(&server));
    assert_eq!(before.values().filter(|s| s.0 == "dead").count(), 100);
    assert_eq!(before.values().filter(|s| s.0 == "scheduled").count(), 100);

    type Damage = fn(&Server);
    let damages: [(&str, Damage); 4] = [
        ("deleted", |server| std::fs::remove_dir_all(server.data().join("index")).unwrap()),
        ("bytes overwritten", |server| {
            for path in index_files(server) {
                let mut bytes = std::fs::read(&path).unwrap();
                for at in (0..bytes.len()).step_by(97) {
                    bytes[at] ^= 0x5a;
                }
                std::fs::write(&path, bytes).unwrap();
            }
        }),
        ("cut in half", |server| {
            for path in index_files(server) {
                let half = std::fs::metadata(&path).unwrap().len() / 2;
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(half).unwrap();
            }
        }),
        ("emptied", |server| {
            for path in index_files(server) {
                std::fs::write(&path, b"").unwrap();
            }
        }),
    ];
    for (what, damage) in damages {
        server.stop();
        damage(&server);
        server.spawn();
        // Accepts at once, whatever the index does meanwhile.
        let body = event_body(&format!("evt_after_{}", what.replace(' ', "_")), "message.ping", 9);
        assert_eq!(server.client().post_signed(&body).unwrap().status, 200, "{what}");
        let after = eventually(&format!("index {what}: states are back"), || {
            let mut now = states(&server);
            now.retain(|(id, _), _| !id.starts_with("evt_after"));
            (now.len() == want).then_some(now)
        });
        assert_eq!(after, before, "index {what}");
    }
}
