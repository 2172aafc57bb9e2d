//! The verbs against a running appliance and a stopped store.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Receiver, Server, binary, event_body, eventually, lines_of};

const ARCHIVE: &str = r#"
[[handler]]
name = "archive"
events = ["message.*"]
file = { path = "{dir}/events.jsonl" }
"#;

fn post(server: &Server, id: &str, kind: &str) {
    let answer = server.client().post_signed(&event_body(id, kind, 7)).unwrap();
    assert_eq!(answer.status, 200);
}

fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["eventId"].as_str().unwrap()).collect()
}

#[test]
fn events_are_listed_filtered_and_shown_with_stable_names() {
    let server = Server::start(ARCHIVE);
    post(&server, "evt_1", "message.sent");
    post(&server, "evt_2", "message.received");
    post(&server, "evt_2", "message.received");
    let shown = eventually("the duplicate is counted and the event delivered", || {
        let event = server.cli_json(&["events", "show", "evt_2"]).pop()?;
        let delivered = event["deliveries"][0]["state"] == "delivered";
        (event["duplicates"] == 1 && delivered).then_some(event)
    });
    assert_eq!(shown["type"], "message.received");
    assert_eq!(shown["source"], "bluereplies");
    assert_eq!(shown["verifiedBy"], "raw");
    assert_eq!(shown["conflict"], false);
    assert_eq!(shown["payload"], event_body("evt_2", "message.received", 7));
    let received = shown["receivedAt"].as_str().unwrap();
    assert!(received.ends_with('Z') && received.len() == 24, "{received}");
    let attempt = &shown["deliveries"][0]["attempts"][0];
    assert_eq!((&attempt["number"], &attempt["outcome"]), (&1.into(), &"delivered".into()));

    assert_eq!(ids(&server.cli_json(&["events", "list"])), ["evt_2", "evt_1"]);
    assert_eq!(ids(&server.cli_json(&["events", "list", "--type", "*.sent"])), ["evt_1"]);
    assert_eq!(ids(&server.cli_json(&["events", "list", "--limit", "1"])), ["evt_2"]);
    assert_eq!(ids(&server.cli_json(&["events", "list", "--search", "evt_1"])), ["evt_1"]);
    assert_eq!(server.cli_json(&["events", "list", "--since", "1h"]).len(), 2);
    assert!(server.cli_json(&["events", "list", "--until", "1h"]).is_empty());
    assert!(server.cli_json(&["events", "list", "--status", "dead"]).is_empty());
    let table = server.cli_ok(&["events", "list"]);
    assert!(table.contains("evt_1") && table.contains("message.sent"), "{table}");
}

#[test]
fn a_second_body_under_one_id_is_kept_and_flagged() {
    let server = Server::start(ARCHIVE);
    post(&server, "evt_1", "message.sent");
    post(&server, "evt_1", "message.read");
    let event = eventually("the conflict is seen", || {
        let event = server.cli_json(&["events", "show", "evt_1"]).pop()?;
        (event["conflict"] == true).then_some(event)
    });
    assert_eq!(event["type"], "message.sent", "the first body stays the event");
    assert_eq!(event["duplicates"], 1);
}

#[test]
fn control_characters_never_reach_the_terminal() {
    let server = Server::start(ARCHIVE);
    let body = r#"{"eventId":"evt_\u001b[2J\u202e","type":"message.\u0007","data":{"body":"\u001b]0;x\u0007"}}"#;
    assert_eq!(server.client().post_signed(body).unwrap().status, 200);
    eventually("it is listed", || (server.cli_json(&["events", "list"]).len() == 1).then_some(()));
    for verb in [&["events", "list"][..], &["events", "show", "1"], &["status"]] {
        let output = server.cli(verb).stdout;
        let text = String::from_utf8(output).unwrap();
        let raw = text
            .chars()
            .find(|c| (c.is_control() && *c != '\n') || ('\u{202a}'..='\u{202e}').contains(c));
        assert_eq!(raw, None, "{verb:?}: {text:?}");
    }
}

#[test]
fn dead_letters_are_listed_replayed_and_discarded() {
    let receiver = Receiver::start(|_| (410, ""));
    let server = Server::start(&format!(
        "[[handler]]\nname = \"gone\"\nevents = [\"*\"]\nhttp = {{ url = \"{}\" }}\n",
        receiver.url("/")
    ));
    for id in ["evt_1", "evt_2", "evt_3"] {
        post(&server, id, "message.sent");
    }
    let dead = |count| {
        eventually(&format!("{count} dead letters"), || {
            (server.cli_json(&["dead", "list"]).len() == count).then_some(())
        });
    };
    dead(3);
    let dry = server.cli_ok(&["dead", "replay", "--all", "--dry-run"]);
    assert!(dry.contains('3'), "{dry}");
    assert_eq!(receiver.count(), 3);
    server.cli_ok(&["dead", "replay", "evt_1"]);
    eventually("it ran again", || (receiver.count() == 4).then_some(()));
    dead(3);
    assert_eq!(server.cli(&["dead", "replay"]).status.code(), Some(2), "no filter, no --all");
    server.cli_ok(&["dead", "discard", "evt_2"]);
    dead(2);
    // Not on a terminal, a bulk discard needs --yes.
    assert_eq!(server.cli(&["dead", "discard", "--all"]).status.code(), Some(2));
    server.cli_ok(&["dead", "discard", "--all", "--yes"]);
    dead(0);
    let states: Vec<Value> = server
        .cli_json(&["events", "list"])
        .iter()
        .map(|e| e["deliveries"][0]["state"].clone())
        .collect();
    assert_eq!(states, ["discarded", "discarded", "discarded"]);
}

#[test]
fn replay_runs_handlers_again_whatever_their_state() {
    let server = Server::start(ARCHIVE);
    let file = server.dir.path().join("events.jsonl");
    post(&server, "evt_1", "message.sent");
    post(&server, "evt_2", "message.read");
    eventually("both were written", || (lines_of(&file).len() == 2).then_some(()));
    server.cli_ok(&["replay", "evt_1"]);
    eventually("one again", || (lines_of(&file).len() == 3).then_some(()));
    server.cli_ok(&["replay", "--since", "1h", "--type", "message.read", "--dry-run"]);
    server.cli_ok(&["replay", "--since", "1h", "--type", "message.read", "--handler", "archive"]);
    eventually("the other again", || (lines_of(&file).len() == 4).then_some(()));
    assert_eq!(server.cli(&["replay", "evt_none"]).status.code(), Some(3));
    assert_eq!(server.cli(&["replay", "evt_1", "--handler", "nobody"]).status.code(), Some(3));
}

#[test]
fn trigger_sends_a_signed_event_through_the_appliance() {
    let server = Server::start(ARCHIVE);
    server.cli_ok(&["trigger", "message.received", "--set", "data.body=Hi there", "--count", "3"]);
    let events = eventually("three events", || {
        let events = server.cli_json(&["events", "list"]);
        (events.len() == 3).then_some(events)
    });
    for event in &events {
        let payload: Value = serde_json::from_str(event["payload"].as_str().unwrap()).unwrap();
        assert_eq!(payload["type"], "message.received");
        assert_eq!(payload["data"]["body"], "Hi there");
    }
}

#[test]
fn trigger_shows_what_becomes_of_a_copy_a_forgery_and_a_type_to_come() {
    let server = Server::start(ARCHIVE);
    let twice = server.cli_ok(&["trigger", "message.read", "--duplicate"]);
    assert_eq!(twice.lines().count(), 2, "{twice}");
    assert!(twice.contains("200") && twice.contains("(again)"), "{twice}");
    let forged = server.cli_ok(&["trigger", "message.read", "--bad-signature"]);
    assert!(forged.contains(": 401 in "), "{forged}");
    let odd = server.cli(&["trigger", "message.pinned", "--json"]);
    assert!(odd.status.success());
    assert!(String::from_utf8_lossy(&odd.stderr).contains("message.pinned"), "{odd:?}");
    let sent: Value = serde_json::from_slice(&odd.stdout).unwrap();
    assert_eq!((&sent["type"], &sent["status"]), (&"message.pinned".into(), &200.into()));
    let events = eventually("both", || {
        let events = server.cli_json(&["events", "list"]);
        (events.len() == 2).then_some(events)
    });
    assert_eq!(events[1]["duplicates"], 1);
    // Whoever takes a forgery should hear of it.
    let careless = Receiver::start(|_| (200, ""));
    let url = careless.url("/");
    let accepted = server.cli(&["trigger", "message.read", "--bad-signature", "--to", &url]);
    assert_eq!(accepted.status.code(), Some(1));
    for nonsense in ["nonsense", "ftp://localhost/", "http://"] {
        let wrong = server.cli(&["trigger", "message.read", "--to", nonsense]);
        assert_eq!(wrong.status.code(), Some(2), "{nonsense}");
    }
}

#[test]
fn export_and_import_move_everything_and_import_twice_changes_nothing() {
    let receiver = Receiver::start(|_| (410, ""));
    let handlers = format!(
        "{ARCHIVE}[[handler]]\nname = \"gone\"\nevents = [\"message.read\"]\nhttp = {{ url = \"{}\" }}\n",
        receiver.url("/")
    );
    let mut first = Server::start(&handlers);
    for n in 0..20 {
        post(&first, &format!("evt_{n}"), ["message.sent", "message.read"][n % 2]);
    }
    eventually("all is settled", || {
        let settled = |e: &Value| {
            let states = e["deliveries"].as_array().unwrap();
            !states.is_empty() && states.iter().all(|d| d["state"] != "scheduled")
        };
        let events = first.cli_json(&["events", "list"]);
        let dead = first.cli_json(&["dead", "list"]).len();
        (events.len() == 20 && events.iter().all(settled) && dead == 10).then_some(())
    });
    let running = first.cli_ok(&["export"]);
    first.stop();
    let stopped = first.cli_ok(&["export"]);
    assert_eq!(running, stopped, "a stopped store exports the same");
    assert_eq!(first.cli_json(&["events", "list"]).len(), 20, "a stopped store can be listed");
    assert_eq!(first.cli_json(&["dead", "list"]).len(), 10);

    let second = Server::start(&handlers);
    let file = second.dir.path().join("export.jsonl");
    std::fs::write(&file, &running).unwrap();
    for _ in 0..2 {
        second.cli_ok(&["import", file.to_str().unwrap()]);
        let without_seq = |text: &str| -> Vec<Value> {
            let parse = |line| {
                let mut event: Value = serde_json::from_str(line).unwrap();
                event.as_object_mut().unwrap().remove("seq");
                event
            };
            text.lines().map(parse).collect()
        };
        assert_eq!(without_seq(&second.cli_ok(&["export"])), without_seq(&running));
    }
    assert!(lines_of(&second.dir.path().join("events.jsonl")).is_empty(), "handlers did not run");
}

#[test]
fn an_import_keeps_the_order_of_its_lines_and_says_which_line_it_stopped_at() {
    const GOOD: usize = 700;
    let server = Server::start("");
    post(&server, "evt", "message.sent");
    let line = server.cli_ok(&["export"]);
    let mut lines: Vec<String> =
        (0..GOOD).map(|n| line.trim().replace("\"evt\"", &format!("\"evt_{n}\""))).collect();
    lines.push("{\"eventId\":".to_owned());
    lines.extend((0..20).map(|n| line.trim().replace("\"evt\"", &format!("\"late_{n}\""))));
    let file = server.dir.path().join("broken.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let import = server.cli(&["import", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&import.stderr).into_owned();
    assert_eq!(import.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot import line 701: ")
            && said.contains("the 700 events before it are in"),
        "{said}"
    );
    let exported = server.cli_ok(&["export"]);
    let ids: Vec<String> = exported
        .lines()
        .skip(1)
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["eventId"].as_str().unwrap().to_owned()
        })
        .collect();
    let wanted: Vec<String> = (0..GOOD).map(|n| format!("evt_{n}")).collect();
    assert_eq!(ids, wanted);
}

#[test]
fn store_check_finds_a_flipped_bit_and_repair_salvages_the_rest() {
    let mut server = Server::start(ARCHIVE);
    for n in 0..50 {
        post(&server, &format!("evt_{n}"), "message.sent");
    }
    eventually("all is delivered", || {
        (lines_of(&server.dir.path().join("events.jsonl")).len() == 50).then_some(())
    });
    server.stop();
    let data = server.data();
    let check = || binary().args(["store", "check", "--data-dir"]).arg(&data).output().unwrap();
    assert_eq!(check().status.code(), Some(0));

    let segment = data.join("log/00000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(6).position(|w| w == b"evt_20").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let found = check();
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1), "{text}");
    assert!(text.contains("00000001.seg"), "{text}");

    let repair = binary().args(["store", "repair", "--data-dir"]).arg(&data).output().unwrap();
    assert!(repair.status.success(), "{}", String::from_utf8_lossy(&repair.stderr));
    assert_eq!(check().status.code(), Some(0));
    server.spawn();
    let left = eventually("the rest is there", || {
        let events = server.cli_json(&["events", "list", "--limit", "100"]);
        (events.len() == 49).then_some(events)
    });
    assert!(!ids(&left).contains(&"evt_20"));
}

#[test]
fn tail_follows_live_and_goes_on_after_a_restart_without_a_gap() {
    let mut server = Server::start(ARCHIVE);
    let mut child = binary()
        .args(["events", "tail", "--json", "--config"])
        .arg(server.config())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, seen) = std::sync::mpsc::channel();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in std::io::BufRead::lines(output).map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut n = 0;
    eventually("a new event shows up in the tail", || {
        n += 1;
        post(&server, &format!("evt_{n}"), "message.sent");
        seen.try_iter().any(|line| line.contains("evt_")).then_some(())
    });
    server.kill();
    server.spawn();
    for k in 0..20 {
        post(&server, &format!("after_{k}"), "message.sent");
    }
    let mut after = Vec::new();
    eventually("all that came after the restart", || {
        let items = seen.try_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
        let events = items.filter(|item| item["kind"] == "event");
        after.extend(events.map(|e| e["eventId"].as_str().unwrap().to_owned()));
        after.contains(&"after_19".to_owned()).then_some(())
    });
    let wanted: Vec<_> = (0..20).map(|k| format!("after_{k}")).collect();
    let tail: Vec<_> = after.into_iter().filter(|id| id.starts_with("after_")).collect();
    assert_eq!(tail, wanted);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn check_prints_every_value_with_its_source_and_no_secret() {
    let server = Server::start(ARCHIVE);
    let text = server.cli_ok(&["check"]);
    assert!(text.contains("intake.body_max") && text.contains("default"), "{text}");
    assert!(text.contains("bluehook.toml"), "{text}");
    assert!(!text.contains(crate::support::SECRET), "{text}");
}

#[test]
fn status_says_how_each_handler_stands() {
    let receiver = Receiver::start(|_| (500, ""));
    let server = Server::start(&format!(
        "[[handler]]\nname = \"failing\"\nevents = [\"*\"]\nhttp = {{ url = \"{}\" }}\n",
        receiver.url("/")
    ));
    post(&server, "evt_1", "message.sent");
    let status = eventually("the failed delivery is in the backlog", || {
        let status = server.status();
        (status["backlog"] == 1).then_some(status)
    });
    let handler = &status["handlers"].as_array().unwrap()[0];
    assert_eq!(handler["name"], "failing");
}

#[test]
fn secrets_completions_and_manual_pages_need_no_appliance() {
    let run = |arguments: &[&str]| {
        let output = binary().args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (one, two) = (run(&["secret", "generate"]), run(&["secret", "generate"]));
    assert!(one.trim().len() >= 32 && one != two);
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).contains("bluehook"));
    }
    assert!(run(&["man"]).contains(".TH"));
}

#[test]
fn what_was_typed_wrongly_is_said_in_one_line_with_what_to_do() {
    for (arguments, says) in [
        (&["evnts"][..], &["'evnts'", "'events'"][..]),
        (&["events", "show"], &["not provided: <ID>", "Usage: bluehook events show <ID>"]),
        (&["events", "list", "--limit", "x"], &["'x'", "a number from 1 on"]),
        (&["status", "--jsn"], &["'--jsn'", "'--json'"]),
    ] {
        let output = binary().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        assert!(
            error.starts_with("bluehook: ") && error.ends_with("; --help says more\n"),
            "{error}"
        );
        assert!(says.iter().all(|word| error.contains(word)), "{error}");
    }
    let help = binary().args(["events", "--help"]).output().unwrap();
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().lines().count() > 10);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let server = Server::start(ARCHIVE);
    for n in 0..50 {
        post(&server, &format!("evt_{n}"), "message.sent");
    }
    let mut child = binary()
        .args(["export", "--config"])
        .arg(server.config())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("panicked"), "{error}");
    std::io::stdout().flush().unwrap();
}
