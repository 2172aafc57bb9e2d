//! The debugger page in Debian's Chromium, and hostile content on the page and in the terminal.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use naughty_strings::BLNS;
use serde_json::json;

use crate::support::{PATH, Receiver, SECRET, Server, event_body, eventually, npm_folder};

/// An event with `text` wherever a text can be.
fn hostile(n: usize, text: &str) -> String {
    let data = json!({ "messageId": text, "from": text, "to": text, "body": text, text: text });
    let event = json!({ "eventId": format!("naughty {n} {text}"), "type": text, "data": data });
    event.to_string()
}

/// What the list of naughty strings lacks.
fn more() -> Vec<String> {
    vec![
        "<img src=x onerror=window.pwned=1><script>window.pwned=1</script>".into(),
        "\"><svg onload=window.pwned=1>".into(),
        "javascript:window.pwned=1".into(),
        "\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}desrever\u{2066}\u{0}\u{8}\r\n--> forged"
            .into(),
        // In seven places: nearly the largest body.
        "x".repeat(100_000),
    ]
}

fn send_hostile(server: &Server) -> usize {
    let texts: Vec<String> = BLNS.iter().map(|s| (*s).to_owned()).chain(more()).collect();
    let mut client = server.client();
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(client.post_signed(&hostile(n, text)).unwrap().status, 200, "{text:?}");
    }
    let long =
        json!({ "eventId": "naughty", "type": "long", "data": { "body": "é".repeat(500_000) } });
    assert_eq!(client.post_signed(&long.to_string()).unwrap().status, 200);
    texts.len() + 1
}

#[test]
fn no_event_writes_to_the_terminal_but_printable_text() {
    let server = Server::start("");
    let sent = send_hostile(&server);
    let listed = eventually("all are listed", || {
        let text = server.cli_ok(&["events", "list", "--limit", "10000"]);
        let rows = text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit())).count();
        (rows == sent).then_some(text)
    });
    let mut shown = listed;
    for seq in server.cli_json(&["events", "list", "--limit", "10000"]).iter().map(|e| &e["seq"]) {
        // Each takes a process; the last ones are the worst.
        let seq = seq.as_u64().unwrap();
        if seq % 10 == 0 || seq as usize > sent - 5 {
            shown.push_str(&server.cli_ok(&["events", "show", &format!("seq:{seq}")]));
        }
    }
    let steers = |c: &char| c.is_control() && *c != '\n' || "\u{202a}\u{202e}\u{2066}".contains(*c);
    assert_eq!(shown.chars().find(steers), None);
}

/// More events than one answer looks at, the oldest of which holds "the oldest one".
fn import_old(server: &Server) {
    let first =
        json!({ "eventId": "old", "type": "old.first", "data": { "body": "the oldest one" } });
    assert_eq!(server.client().post_signed(&first.to_string()).unwrap().status, 200);
    let line =
        eventually("it is stored", || server.cli_ok(&["export"]).lines().next().map(str::to_owned));
    let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
    line["type"] = json!("old.other");
    line["payload"] = json!("{}");
    let mut text = String::new();
    for n in 0..21_000 {
        line["eventId"] = json!(format!("old_{n}"));
        text += &format!("{line}\n");
    }
    let file = server.dir.path().join("old.jsonl");
    std::fs::write(&file, text).unwrap();
    server.cli_ok(&["import", file.to_str().unwrap()]);
}

#[test]
fn a_person_sees_an_event_arrive_opens_it_and_acts_on_it() {
    let status = Arc::new(AtomicU16::new(500));
    let answers = Arc::clone(&status);
    let receiver = Receiver::start(move |_| (answers.load(Ordering::Relaxed), "x-told: yes\r\n"));
    let server = Server::start(&format!(
        "[schedule]\ndelays = [\"0s\"]\n[[handler]]\nname = \"crm\"\nevents = [\"message.*\"]\nhttp = {{ url = \"{}\" }}\n",
        receiver.url("/crm")
    ));
    import_old(&server);
    for (n, kind) in ["message.sent", "message.read", "message.failed"].iter().enumerate() {
        let body = event_body(&format!("evt_{n}"), kind, 1);
        assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
    }
    // Two of another body, one that is refused.
    server.client().post_signed(&event_body("evt_0", "message.sent", 2)).unwrap();
    server.client().request("POST", PATH, &[], b"{}").unwrap();
    send_hostile(&server);
    eventually("all three are dead", || {
        (server.cli_json(&["dead", "list"]).len() == 3).then_some(())
    });
    status.store(200, Ordering::Relaxed);

    let mut node = Command::new("node");
    node.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page/page.mjs"))
        .env("MODULES", npm_folder("browser", &["playwright-core@1", "axe-core@4"]))
        .env("CHROMIUM", chromium())
        .env("LINK", server.cli_ok(&["--quiet", "debugger"]).trim())
        .env("INTAKE", format!("http://{}{PATH}", server.addr))
        .env("SECRET", SECRET);
    let done = node.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}{error}\n{}", server.log());
    assert!(said.contains("all right"), "{said}");
}

/// Debian's, or where `CHROMIUM` says.
fn chromium() -> PathBuf {
    std::env::var_os("CHROMIUM").map_or_else(|| "/usr/bin/chromium".into(), PathBuf::from)
}
