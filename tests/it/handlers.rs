//! Handlers that misbehave, and the order they run in, with the real binary.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::soak::{descriptors, resident_mib};
use crate::support::{Receiver, Server, event_body, eventually, lines_of, rng};

/// What each of the programs below has in its environment, and whatever they start.
const MARK: &str = "BLUEHOOK_TEST_MARK";

/// Processes with `mark` in their environment.
fn marked(mark: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            let wanted = format!("{MARK}={mark}");
            environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
        })
        .map(|process| process.file_name().into_string().unwrap())
        .collect()
}

fn children(pid: u32) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let all = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut found: Vec<String> =
        children.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    for task in all {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().map(str::to_owned));
    }
    found
}

#[test]
fn programs_that_misbehave_leave_nothing_behind_and_hold_up_no_acknowledgement() {
    let mark = format!("{:x}", rng("mark").u64(..));
    // One event is larger than a pipe, so that a program that does not read leaves the rest of it unread.
    let programs = [
        ("hangs", r#"["/bin/sleep", "1000"]"#, "500ms"),
        (
            "deaf",
            r#"["/bin/sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"]"#,
            "500ms",
        ),
        ("orphan", r#"["/bin/sh", "-c", "(trap '' TERM; sleep 1000) & exit 0"]"#, "30s"),
        ("floods", r#"["/usr/bin/head", "-c", "1000000000", "/dev/zero"]"#, "60s"),
        ("ignores", r#"["/bin/true"]"#, "30s"),
    ];
    let mut config = String::new();
    for (name, command, timeout) in programs {
        config += &format!(
            "[[handler]]\nname = \"{name}\"\nevents = [\"*\"]\ntimeout = \"{timeout}\"\n\
             exec = {{ command = {command}, env = {{ {MARK} = \"{mark}\" }} }}\n\
             schedule = {{ delays = [\"0s\"] }}\ncircuit = {{ failures = 0 }}\nconcurrency = 2\n"
        );
    }
    let mut server = Server::start(&config);
    let before = descriptors(server.pid());
    let mut client = server.client();
    let filler = "x".repeat(500_000);
    for n in 0..8 {
        let small = event_body(&format!("evt_{n}"), "message.read", n);
        assert_eq!(client.post_signed(&small).unwrap().status, 200);
        let large = json!({ "eventId": format!("large_{n}"), "type": "message.read", "data": { "body": filler } });
        assert_eq!(client.post_signed(&large.to_string()).unwrap().status, 200);
    }
    drop(client);
    assert!(!marked(&mark).is_empty(), "the programs run by now");
    let handler = |name: &str| -> Value {
        let status = server.status();
        let handlers = status["handlers"].as_array().unwrap();
        handlers.iter().find(|h| h["name"] == name).unwrap().clone()
    };
    for (name, ..) in programs {
        eventually(&format!("{name} has had them all"), || {
            let h = handler(name);
            let left = ["running", "scheduled", "behind"].map(|kind| h[kind].as_u64().unwrap());
            (left == [0, 0, 0]).then_some(())
        });
        let dead = if matches!(name, "hangs" | "deaf") { 16 } else { 0 };
        assert_eq!(handler(name)["dead"], dead, "{name}");
    }
    eventually("no process is left", || marked(&mark).is_empty().then_some(()));
    assert_eq!(children(server.pid()), Vec::<String>::new(), "zombies");
    eventually("no descriptor is left", || (descriptors(server.pid()) <= before + 2).then_some(()));
    let resident = resident_mib(server.pid());
    assert!(resident <= 96, "{resident} MiB after 16 GB of output");
    server.stop();
}

/// Conversation, number, whether it was taken.
type Seen = Arc<Mutex<Vec<(u64, u64, bool)>>>;

/// A receiver that fails at random, and what it saw, in order.
fn moody(seed: fastrand::Rng) -> (Receiver, Seen) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (noted, random) = (Arc::clone(&seen), Mutex::new(seed));
    let receiver = Receiver::start(move |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let (conversation, number) =
            (body["data"]["c"].as_u64().unwrap(), body["data"]["n"].as_u64().unwrap());
        let mut noted = noted.lock().unwrap();
        // Those of conversation 0 never fail; half of the others' attempts do, three in a row at most.
        let of_it = |(c, n, _): &&(u64, u64, bool)| (*c, *n) == (conversation, number);
        let failed = noted.iter().filter(of_it).count();
        let takes = conversation == 0 || failed >= 3 || random.lock().unwrap().bool();
        noted.push((conversation, number, takes));
        if takes { (200, "") } else { (500, "") }
    });
    (receiver, seen)
}

#[test]
fn in_a_conversation_no_event_overtakes_another_and_other_conversations_do_not_wait() {
    const CONVERSATIONS: u64 = 8;
    const EACH: u64 = 10;
    let (receiver, seen) = moody(rng("moods"));
    let server = Server::start_with_clock(&format!(
        "[[handler]]\nname = \"crm\"\nevents = [\"*\"]\norder = \"conversation\"\ncircuit = {{ failures = 0 }}\n\
         schedule = {{ delays = [\"0s\", \"30s\", \"30s\", \"30s\", \"30s\", \"30s\", \"30s\", \"30s\", \"30s\", \"30s\"] }}\n\
         http = {{ url = \"{}\" }}\n",
        receiver.url("/")
    ));
    let mut client = server.client();
    for n in 0..EACH {
        for c in 0..CONVERSATIONS {
            let body = json!({ "eventId": format!("e{c}-{n}"), "type": "message.received",
                "data": { "from": format!("+1555000{c}"), "to": "+15551111", "c": c, "n": n } });
            assert_eq!(client.post_signed(&body.to_string()).unwrap().status, 200);
        }
    }
    // The clock stands: whoever failed once waits, and those that never fail do not wait for them.
    eventually("the conversation that never fails is through", || {
        let through = seen.lock().unwrap().iter().filter(|(c, ..)| *c == 0).count() as u64;
        (through == EACH).then_some(())
    });
    let mut ahead = 0;
    eventually("all are through", || {
        ahead += 31;
        server.set_clock_ahead(ahead);
        let handler = server.status()["handlers"][0].clone();
        let left = ["running", "scheduled", "behind"].map(|kind| handler[kind].as_u64().unwrap());
        (left == [0, 0, 0]).then_some(())
    });
    let mut next: HashMap<u64, u64> = HashMap::new();
    for (conversation, number, takes) in seen.lock().unwrap().iter().copied() {
        let expected = next.entry(conversation).or_default();
        assert_eq!(number, *expected, "of conversation {conversation}");
        *expected += u64::from(takes);
    }
    assert!(next.len() as u64 == CONVERSATIONS && next.values().all(|n| *n == EACH), "{next:?}");
    let failures = seen.lock().unwrap().iter().filter(|(.., takes)| !takes).count();
    assert!(failures > 20, "only {failures} failures: the test shows nothing");
}

#[test]
fn a_template_that_fails_on_one_event_ends_that_delivery_and_stops_no_other() {
    let server = Server::start(
        "[[handler]]\nname = \"greet\"\nevents = [\"*\"]\n\
         exec = { command = [\"/bin/sh\", \"-c\", 'echo \"$1\" >> {dir}/greeted', \"greet\", '''\n{{ event.id }}:\n{{ data.name | upper }} of {{ data.town.name }}'''] }\n",
    );
    let mut client = server.client();
    for (id, data) in [
        ("e1", json!({ "name": "ann", "town": { "name": "Ulm" } })),
        ("e2", json!({ "name": "bob" })),
        ("e3", json!({ "name": "cem", "town": { "name": "Bonn" } })),
    ] {
        let body = json!({ "eventId": id, "type": "message.read", "data": data }).to_string();
        assert_eq!(client.post_signed(&body).unwrap().status, 200);
    }
    let dead = eventually("the dead letter", || server.cli_json(&["dead", "list"]).pop());
    assert_eq!(dead["eventId"], "e2", "{dead}");
    assert_eq!(dead["attempts"].as_array().unwrap().len(), 1, "another cannot help: {dead}");
    let error = dead["reason"].as_str().unwrap();
    assert!(error.starts_with("template exec.command[4]: line 2, column "), "{error}");
    assert!(error.contains("undefined") && error.contains("town.name"), "{error}");
    let greeted = server.dir.path().join("greeted");
    eventually("the others are greeted", || {
        let mut lines = lines_of(&greeted);
        lines.sort();
        (lines == ["ANN of Ulm", "CEM of Bonn", "e1:", "e3:"]).then_some(())
    });
}
