//! The message view and follow-up rules with the real binary.

use serde_json::{Value, json};

use crate::support::{Receiver, Server, eventually};

const DAY: i64 = 24 * 3600;

fn rule(crm: &Receiver) -> String {
    format!(
        r#"
[[followup]]
name = "no-reply"
start = "message.read"
after = "24h"

[[handler]]
name = "remind"
events = ["followup.due"]
http = {{ url = "{}", json = {{ to = "{{{{ data.to }}}}", said = "{{{{ data.body }}}}", status = "{{{{ message.status }}}}" }} }}
"#,
        crm.url("/remind")
    )
}

fn post(server: &Server, id: &str, kind: &str, data: Value) {
    let body = json!({ "eventId": id, "type": kind, "data": data }).to_string();
    assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
}

/// A message to `party`, sent and read.
fn read(server: &Server, n: &str, party: &str) {
    let sent =
        json!({ "messageId": n, "from": "+1 555 0100", "to": party, "body": "Do you come?" });
    post(server, &format!("{n}-sent"), "message.sent", sent);
    post(server, &format!("{n}-read"), "message.read", json!({ "messageId": n }));
}

fn timers(server: &Server) -> Value {
    // It fails while the index is being built, and says all the same what there is.
    let status = server.cli(&["status", "--json"]).stdout;
    serde_json::from_slice::<Value>(&status).unwrap_or_default()["followups"][0]["waiting"].clone()
}

#[test]
fn read_but_not_answered_in_a_day_is_followed_up_also_across_restarts() {
    let crm = Receiver::start(|_| (200, ""));
    let mut server = Server::start_with_clock(&rule(&crm));
    read(&server, "m1", "+49 30 1");
    read(&server, "m2", "+49 30 2");
    eventually("two timers", || (timers(&server) == 2).then_some(()));
    server.kill();
    server.spawn();
    let reply = json!({ "messageId": "r", "from": "+49301", "to": "+15550100", "body": "Yes" });
    post(&server, "r", "message.received", reply);
    eventually("one timer", || (timers(&server) == 1).then_some(()));
    server.set_clock_ahead(DAY - 60);
    for _ in 0..20 {
        server.cli_ok(&["events", "list"]);
    }
    assert_eq!(crm.count(), 0);
    server.stop();
    server.spawn();
    server.set_clock_ahead(DAY + 60);
    eventually("the reminder", || (crm.count() == 1).then_some(()));
    let asked: Value = serde_json::from_slice(&crm.requests()[0].body).unwrap();
    assert_eq!(asked, json!({ "to": "+49 30 2", "said": "Do you come?", "status": "read" }));
    let due = server.cli_json(&["events", "show", "followup:no-reply:m2-read"]);
    assert_eq!(due[0]["type"], "followup.due");
    server.set_clock_ahead(DAY * 3);
    read(&server, "m3", "+49 30 2");
    server.set_clock_ahead(DAY * 9);
    for _ in 0..20 {
        server.cli_ok(&["events", "list"]);
    }
    assert_eq!(crm.count(), 1, "nobody answered since the last reminder");
}

#[test]
fn a_message_shows_what_all_its_events_say_and_no_late_one_moves_it_back() {
    let mut server = Server::start("");
    let parties = json!({ "messageId": "m1", "from": "+15550100", "to": "Ann@Example.com" });
    post(
        &server,
        "e1",
        "message.read",
        json!({ "messageId": "m1", "readAt": "2026-09-01T10:00:02Z" }),
    );
    post(&server, "e2", "message.delivered", parties);
    post(&server, "e3", "message.failed", json!({ "messageId": "m1", "error": "no route" }));
    post(&server, "e4", "message.sent", json!({ "messageId": "m1", "body": "Hello\u{1b}[2J" }));
    let shown = eventually("all four", || {
        let shown = server.cli_json(&["messages", "show", "m1"]).pop()?;
        (shown["events"] == 4).then_some(shown)
    });
    for (field, wanted) in [
        ("status", "read"),
        ("conversation", "ann@example.com"),
        ("to", "Ann@Example.com"),
        ("body", "Hello\u{1b}[2J"),
        ("error", "no route"),
        ("readAt", "2026-09-01T10:00:02.000Z"),
        ("direction", "outbound"),
    ] {
        assert_eq!(shown[field], wanted, "{field}");
    }
    assert_eq!(shown["timeline"].as_array().unwrap().len(), 4);
    let text = server.cli_ok(&["messages"]);
    assert!(text.contains("ann@example.com") && !text.contains('\u{1b}'), "{text}");
    assert_eq!(server.cli_json(&["messages", "list", "--with", "ANN@example.com"]).len(), 1);
    assert_eq!(server.cli_json(&["messages", "list", "--status", "sent"]).len(), 0);
    for (arguments, code, why) in [
        (&["messages", "show", "m2"][..], 3, "no message"),
        (&["messages", "list", "--status", "lost"], 2, "none of"),
    ] {
        let refused = server.cli(arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(why), "{said}");
        assert_eq!(refused.status.code(), Some(code), "{said}");
    }
    // The index is built from the log: it says the same.
    server.kill();
    std::fs::remove_dir_all(server.data().join("index")).unwrap();
    server.spawn();
    let again = eventually("rebuilt", || {
        let again = server.cli(&["--json", "messages", "show", "m1"]);
        serde_json::from_slice::<Value>(&again.stdout).ok().filter(|m| m["events"] == 4)
    });
    assert_eq!(again, shown);
}
