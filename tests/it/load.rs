//! Many events over many connections: each is stored once, and each handler runs once for it.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Receiver, Server, event_body, eventually, full_run, lines_of, rng};

pub const THREE_HANDLERS: &str = r#"
[[handler]]
name = "http"
events = ["message.*"]
concurrency = 16
http = { url = "{url}" }

[[handler]]
name = "exec"
events = ["message.failed"]
concurrency = 4
exec = { command = ["/bin/sh", "-c", 'cat > /dev/null; echo "$BLUEHOOK_EVENT_ID" >> {dir}/exec.log'] }

[[handler]]
name = "file"
events = ["*"]
concurrency = 64
file = { path = "{dir}/events.jsonl" }
"#;

const CONNECTIONS: usize = 64;

/// One event in fifty is `message.failed`: a process for each of them is what the machine bears.
pub fn kind_of(n: usize) -> &'static str {
    const KINDS: [&str; 4] =
        ["message.sent", "message.delivered", "message.read", "message.received"];
    if n.is_multiple_of(50) { "message.failed" } else { KINDS[n % 4] }
}

/// Posts `order` (numbers of events) over 64 connections; every one must be answered 200.
fn post_all(server: &Server, order: &[usize]) {
    let next = AtomicUsize::new(0);
    let refused = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = server.client();
                while let Some(&n) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let body = event_body(&format!("evt_{n}"), kind_of(n), n as u64);
                    let status = client.post_signed(&body).unwrap().status;
                    if status != 200 {
                        refused.lock().unwrap().push((n, status));
                    }
                }
            });
        }
    });
    let refused = refused.into_inner().unwrap();
    assert!(refused.is_empty(), "not acknowledged: {refused:?}\n{}", server.log());
}

fn counted<T: std::hash::Hash + Eq>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for item in items {
        *counts.entry(item).or_insert(0) += 1;
    }
    counts
}

fn id_in(line: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    value["eventId"].as_str().unwrap().to_owned()
}

#[test]
fn fifty_thousand_events_are_stored_once_and_handled_once() {
    let receiver = Receiver::start(|_| (200, ""));
    let mut server = Server::start(&THREE_HANDLERS.replace("{url}", &receiver.url("/crm")));
    let events = if full_run() { 200_000 } else { 50_000 };
    let mut rng = rng("fifty_thousand_events");

    // First all of them once, then new ones with 30 % of all requests being duplicates in flight.
    let first: Vec<usize> = (0..events / 2).collect();
    post_all(&server, &first);
    let mut second: Vec<usize> = (events / 2..events).collect();
    for _ in 0..events / 2 * 3 / 7 {
        let n = rng.usize(events / 2..events);
        let near = (n - events / 2 + rng.usize(0..8)).min(second.len());
        second.insert(near, n);
    }
    post_all(&server, &second);

    let failed = (0..events).filter(|&n| kind_of(n) == "message.failed").count();
    let exec_log = server.dir.path().join("exec.log");
    let file_log = server.dir.path().join("events.jsonl");
    eventually("every handler has run for every event", || {
        let done = receiver.count() >= events
            && lines_of(&exec_log).len() >= failed
            && lines_of(&file_log).len() >= events;
        done.then_some(())
    });

    let exported = server.cli_ok(&["export"]);
    let ids = counted(exported.lines().map(id_in));
    assert_eq!(ids.len(), events, "distinct events in the export");
    assert!(ids.values().all(|&n| n == 1), "an event is in the export twice");

    let by_http = counted(receiver.requests().iter().map(|r| r.headers["idempotency-key"].clone()));
    assert_eq!((by_http.len(), by_http.values().max()), (events, Some(&1)), "http");
    let by_exec = counted(lines_of(&exec_log).into_iter());
    assert_eq!((by_exec.len(), by_exec.values().max()), (failed, Some(&1)), "exec");
    let by_file = counted(lines_of(&file_log).iter().map(|l| id_in(l)));
    assert_eq!((by_file.len(), by_file.values().max()), (events, Some(&1)), "file");

    // After a restart nothing runs again.
    server.stop();
    server.spawn();
    eventually("the store has caught up", || {
        server.cli(&["status"]).status.success().then_some(())
    });
    assert_eq!(receiver.count(), events);
    let states: HashSet<String> = server
        .cli_json(&["events", "list", "--limit", "200"])
        .iter()
        .flat_map(|e| e["deliveries"].as_array().unwrap().clone())
        .map(|d| d["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, HashSet::from(["delivered".to_owned()]));
}
