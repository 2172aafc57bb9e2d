//! Each file of `config/recipes`, run as it stands but for the host, the secret and what its header says to fill in,
//! against a server that looks at the request as the real one documents it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::emulator::Express;
use crate::support::{
    Received, Receiver, SECRET, Server, binary, eventually, hmac_hex, lines_of, npm_folder,
};

const TOKEN: &str = "t0ken-0123456789abcdef";
/// What must come out as it went in, whatever it looks like.
const HOSTILE: &str =
    "He said \"}, {{ 7 * 7 }} {% raw %} <b>&amp;</b> \\ \n@everyone <!channel> ä \u{1f600}\u{202e}";
const PARTY: &str = "+49 30 1234567";
/// A conversation's key: of a number its digits.
const PARTY_NORMALISED: &str = "49301234567";

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/recipes")
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A server with the recipe in its `handlers.d`; `fill` is what a person replaces in it.
fn with_recipe(name: &str, fill: &[(&str, &str)], secret: Option<(&str, &str)>) -> Server {
    let mut server = Server::stopped_with_clock("");
    let dir = server.dir.path().to_owned();
    let mut text = std::fs::read_to_string(recipes().join(format!("{name}.toml"))).unwrap();
    if let Some((file, value)) = secret {
        assert!(text.contains(&format!("\"/etc/bluehook/{file}\"")), "{name}: no secret {file}");
        write(&dir.join(file), &format!("{value}\n"));
        text = text.replace("/etc/bluehook/", &format!("{}/", dir.display()));
    }
    for (from, to) in fill {
        assert!(text.contains(from), "{name} holds no {from}");
        text = text.replace(from, to);
    }
    write(&dir.join("handlers.d").join(format!("{name}.toml")), &text);
    server.spawn();
    server
}

/// Fails the first attempt, as after a restart of its own, then answers `status`.
fn second_time(status: u16) -> Receiver {
    let count = AtomicUsize::new(0);
    Receiver::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => (500, ""),
        _ => (status, ""),
    })
}

fn post(server: &Server, kind: &str, data: Value) -> String {
    let id = format!("evt_{kind}");
    let body = json!({ "eventId": id, "type": kind, "data": data }).to_string();
    assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
    id
}

/// The request, after a retry that was the same but for the attempt's number.
fn after_a_retry(server: &Server, remote: &Receiver) -> Received {
    eventually("the first attempt", || (remote.count() == 1).then_some(()));
    server.set_clock_ahead(31);
    eventually("the second attempt", || (remote.requests().len() == 2).then_some(()));
    let mut requests = remote.requests();
    let (second, first) = (requests.pop().unwrap(), requests.pop().unwrap());
    assert_eq!((&first.method, &first.path), (&second.method, &second.path));
    assert_eq!(first.body, second.body, "a retry sends the same");
    assert_eq!(first.headers["idempotency-key"], second.headers["idempotency-key"]);
    eventually("it is delivered", || {
        let handler = server.status()["handlers"][0].clone();
        let left = ["running", "scheduled", "behind"].map(|kind| handler[kind].as_u64().unwrap());
        (left == [0, 0, 0] && handler["dead"] == 0).then_some(())
    });
    // Nothing that was recorded holds the token, in any form.
    let stored = server.cli_ok(&["export"]) + &server.log();
    assert!(!stored.contains(TOKEN) && !stored.contains(&BASE64.encode(TOKEN)), "{stored}");
    second
}

fn json_of(request: &Received) -> Value {
    assert_eq!(request.headers["content-type"], "application/json");
    serde_json::from_slice(&request.body).unwrap()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
}

fn received() -> Value {
    json!({ "messageId": "m1", "from": PARTY, "to": "+15550100", "body": HOSTILE })
}

#[test]
fn hubspot_updates_the_contact_that_read_the_message() {
    let remote = second_time(200);
    let url = remote.url("");
    let fill = [("https://api.hubapi.com", url.as_str())];
    let server = with_recipe("hubspot", &fill, Some(("hubspot-token", TOKEN)));
    post(
        &server,
        "message.read",
        json!({ "messageId": "m1", "from": "+15550100", "to": PARTY,
        "readAt": "2026-11-27T10:00:00.000Z" }),
    );
    let request = after_a_retry(&server, &remote);
    assert_eq!(request.method, "POST");
    assert_eq!(request.path, "/crm/v3/objects/contacts/batch/upsert");
    assert_eq!(request.headers["authorization"], format!("Bearer {TOKEN}"));
    let wanted = json!({ "inputs": [{ "idProperty": "imessage_address", "id": PARTY_NORMALISED,
        "properties": { "imessage_address": PARTY_NORMALISED,
            "imessage_last_read_at": "2026-11-27T10:00:00.000Z" } }] });
    assert_eq!(json_of(&request), wanted);
}

#[test]
fn zendesk_gets_one_ticket_with_the_conversation_as_requester() {
    for (party, email) in
        [(PARTY, "49301234567@imessage.example.com"), ("Ann@Example.com", "ann@example.com")]
    {
        let remote = second_time(201);
        let host = remote.addr.to_string();
        let fill = [
            ("https://", "http://"),
            ("your-subdomain.zendesk.com", host.as_str()),
            ("agent%40example.com", "me%40shop.example"),
        ];
        let server = with_recipe("zendesk", &fill, Some(("zendesk-token", TOKEN)));
        let data = json!({ "messageId": "m1", "from": party, "to": "+15550100", "body": HOSTILE });
        let id = post(&server, "message.received", data);
        let request = after_a_retry(&server, &remote);
        assert_eq!((&*request.method, &*request.path), ("POST", "/api/v2/tickets.json"));
        assert_eq!(request.headers["authorization"], basic("me@shop.example/token", TOKEN));
        assert_eq!(request.headers["idempotency-key"], id);
        let ticket = &json_of(&request)["ticket"];
        assert_eq!(ticket["comment"]["body"], HOSTILE);
        assert_eq!(ticket["external_id"], id);
        assert_eq!(ticket["requester"]["email"], email);
        assert_eq!(ticket["requester"]["name"], party);
        assert_eq!(ticket["subject"], format!("iMessage from {party}"));
    }
}

#[test]
fn freshdesk_gets_a_ticket_with_the_events_id_and_escaped_text() {
    let remote = second_time(201);
    let host = remote.addr.to_string();
    let fill = [("https://", "http://"), ("your-subdomain.freshdesk.com", host.as_str())];
    let server = with_recipe("freshdesk", &fill, Some(("freshdesk-key", TOKEN)));
    let id = post(&server, "message.received", received());
    let request = after_a_retry(&server, &remote);
    assert_eq!((&*request.method, &*request.path), ("POST", "/api/v2/tickets"));
    assert_eq!(request.headers["authorization"], basic(TOKEN, "X"));
    let ticket = json_of(&request);
    let description = ticket["description"].as_str().unwrap();
    assert!(description.contains("&lt;b&gt;&amp;amp;&lt;"), "{description}");
    assert!(description.contains("<br>@everyone") && !description.contains('\n'), "{description}");
    for (field, wanted) in [
        ("status", json!(2)),
        ("priority", json!(1)),
        ("source", json!(7)),
        ("unique_external_id", json!(PARTY_NORMALISED)),
        ("name", json!(PARTY)),
        ("custom_fields", json!({ "cf_event_id": id })),
    ] {
        assert_eq!(ticket[field], wanted, "{field}");
    }
}

#[test]
fn twilio_sends_what_was_not_delivered_as_sms_and_nothing_to_a_mail_address() {
    let remote = second_time(201);
    let host = remote.addr.to_string();
    let sid = format!("AC{}", "0".repeat(32));
    let fill = [
        ("https://", "http://"),
        ("api.twilio.com", host.as_str()),
        ("ACxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", sid.as_str()),
    ];
    let server = with_recipe("twilio-sms", &fill, Some(("twilio-token", TOKEN)));
    let by_mail = json!({ "messageId": "m0", "to": "ann@example.com", "body": "x" });
    let other = json!({ "eventId": "mail", "type": "message.failed", "data": by_mail }).to_string();
    assert_eq!(server.client().post_signed(&other).unwrap().status, 200);
    // The text is in the first event, the failure in the second.
    post(
        &server,
        "message.sent",
        json!({ "messageId": "m1", "from": "+15550100", "to": "+49301234567", "body": HOSTILE }),
    );
    post(&server, "message.failed", json!({ "messageId": "m1", "error": "not on iMessage" }));
    let request = after_a_retry(&server, &remote);
    assert_eq!(request.method, "POST");
    assert_eq!(request.path, format!("/2010-04-01/Accounts/{sid}/Messages.json"));
    assert_eq!(request.headers["authorization"], basic(&sid, TOKEN));
    assert_eq!(request.headers["content-type"], "application/x-www-form-urlencoded");
    let form: BTreeMap<_, _> = form_urlencoded::parse(&request.body).into_owned().collect();
    let wanted = [("Body", HOSTILE), ("From", "+15550100"), ("To", "+49301234567")];
    assert_eq!(form, wanted.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}

#[test]
fn a_follow_up_goes_through_blue_replies_after_a_day_without_an_answer() {
    let remote = second_time(200);
    let url = remote.url("");
    let fill = [("https://blueapi-api-production.up.railway.app", url.as_str())];
    let server = with_recipe("follow-up", &fill, Some(("bluereplies-api-key", TOKEN)));
    post(
        &server,
        "message.sent",
        json!({ "messageId": "m1", "from": "+15550100", "to": PARTY, "body": "Hello" }),
    );
    post(&server, "message.read", json!({ "messageId": "m1" }));
    eventually("the timer is set", || {
        let status = server.cli(&["status", "--json"]).stdout;
        let status: Value = serde_json::from_slice(&status).unwrap_or_default();
        (status["followups"][0]["waiting"] == 1).then_some(())
    });
    server.set_clock_ahead(24 * 3600 + 1);
    eventually("the first attempt", || (remote.count() == 1).then_some(()));
    server.set_clock_ahead(24 * 3600 + 60);
    eventually("the second attempt", || (remote.requests().len() == 2).then_some(()));
    for request in remote.requests() {
        assert_eq!((&*request.method, &*request.path), ("POST", "/v1/messages"));
        assert_eq!(request.headers["x-api-key"], TOKEN);
        assert_eq!(request.headers["idempotency-key"], "followup:no-reply:evt_message.read");
        let body = json_of(&request);
        assert_eq!(body["to"], PARTY);
        assert!(!body["body"].as_str().unwrap().is_empty());
    }
}

#[test]
fn slack_gets_a_line_in_which_nobody_can_mention_the_channel() {
    let remote = second_time(200);
    let hook = remote.url(&format!("/services/T0/B0/{TOKEN}"));
    let fill = [("url = \"{{", "allow_private = true\nurl = \"{{")];
    let server = with_recipe("slack", &fill, Some(("slack-url", &hook)));
    post(&server, "message.received", received());
    let request = after_a_retry(&server, &remote);
    assert_eq!((&*request.method, &*request.path), ("POST", &*format!("/services/T0/B0/{TOKEN}")));
    let escaped = HOSTILE.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    assert_eq!(json_of(&request), json!({ "text": format!("{PARTY}: {escaped}") }));
}

#[test]
fn discord_gets_a_line_of_bounded_length_that_pings_nobody() {
    let remote = second_time(204);
    let hook = remote.url(&format!("/api/webhooks/1/{TOKEN}"));
    let fill = [("url = \"{{", "allow_private = true\nurl = \"{{")];
    let server = with_recipe("discord", &fill, Some(("discord-url", &hook)));
    let long = format!("{HOSTILE}{}", "\u{1f600}".repeat(3000));
    post(&server, "message.failed", json!({ "messageId": "m1", "to": PARTY, "body": long }));
    let request = after_a_retry(&server, &remote);
    assert_eq!(request.method, "POST");
    assert_eq!(request.path, format!("/api/webhooks/1/{TOKEN}"));
    let body = json_of(&request);
    let content = body["content"].as_str().unwrap();
    assert!(content.starts_with(&format!("Not delivered to {PARTY}: {HOSTILE}")), "{content}");
    assert!(content.chars().count() <= 2000);
    assert_eq!(body["allowed_mentions"], json!({ "parse": [] }));
}

#[test]
fn an_express_app_that_verifies_as_the_article_does_works_unchanged_behind_bluehook() {
    let (express, url) = Express::start(SECRET);
    let fill = [("http://127.0.0.1:3002/webhooks/bluereplies", url.as_str())];
    let server = with_recipe("express", &fill, None);
    post(&server, "message.received", received());
    // Not as JavaScript writes it, and signed over the form in which it does.
    let odd =
        r#"{ "eventId" : "odd", "type": "message.sent", "data": { "n": 1.0, "s": "\u00e9" } }"#;
    let canonical = r#"{"eventId":"odd","type":"message.sent","data":{"n":1,"s":"é"}}"#;
    let signature = hmac_hex(SECRET, canonical.as_bytes());
    let headers =
        [("x-bluereplies-signature", signature.as_str()), ("content-type", "application/json")];
    let answer = server.client().request("POST", crate::support::PATH, &headers, odd.as_bytes());
    assert_eq!(answer.unwrap().status, 200);
    let took = eventually("the app took both", || {
        let lines = express.lines();
        let took: Vec<_> = lines.iter().filter_map(|l| l.strip_prefix("took ")).collect();
        (took.len() == 2).then(|| took.join("\n"))
    });
    assert!(took.contains(canonical), "{took}");
    let parsed = |line| serde_json::from_str::<Value>(line).unwrap();
    assert!(took.lines().any(|line| parsed(line)["data"]["body"] == HOSTILE), "{took}");
    assert!(!express.lines().iter().any(|line| line.starts_with("refused")));
}

/// Verifies with the package that the specification's authors publish, and with one byte changed.
const VERIFY: &str = r"
const { Webhook } = require('standardwebhooks');
const { body, headers } = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const hook = new Webhook(process.env.KEY);
const verdict = text => { try { hook.verify(text, headers); return 'genuine'; } catch { return 'refused'; } };
console.log(verdict(body), verdict(body.replace('m1', 'm2')));
";

#[test]
fn a_forward_in_standard_webhooks_form_is_genuine_to_its_npm_package_and_a_forged_one_is_not() {
    let remote = second_time(204);
    let url = remote.url("/webhooks");
    let fill = [("https://app.example.com/webhooks", url.as_str())];
    let server = with_recipe("standard-webhooks", &fill, None);
    let id = post(&server, "message.received", received());
    let request = after_a_retry(&server, &remote);
    assert_eq!((&*request.method, &*request.path), ("POST", "/webhooks"));
    assert_eq!(request.headers["webhook-id"], id);
    let body = String::from_utf8(request.body.clone()).unwrap();
    // The virtual clock is ahead by less than what the package allows.
    let mut child = Command::new("node")
        .args(["-e", VERIFY])
        .current_dir(npm_folder("standardwebhooks", &["standardwebhooks@1"]))
        .env("KEY", BASE64.encode(SECRET))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = json!({ "body": body, "headers": request.headers }).to_string();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "genuine refused");
}

#[test]
fn the_file_gets_a_line_for_each_event() {
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("events.jsonl");
    let fill = [("/var/lib/bluehook/events.jsonl", path.to_str().unwrap())];
    let server = with_recipe("file", &fill, None);
    let id = post(&server, "message.received", received());
    let line = eventually("the line", || lines_of(&path).pop());
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["eventId"], &line["type"]), (&json!(id), &json!("message.received")));
    let payload: Value = serde_json::from_str(line["payload"].as_str().unwrap()).unwrap();
    assert_eq!(payload["data"]["body"], HOSTILE);
}

#[test]
fn the_script_gets_the_sender_and_the_event() {
    let dir = tempfile::tempdir().unwrap();
    let (script, out) = (dir.path().join("on-message"), dir.path().join("out"));
    let text = format!(
        "#!/bin/sh\n[ -e {0} ] || {{ : > {0}; exit 1; }}\n{{ echo \"$1\"; echo \"$BLUEHOOK_EVENT_ID\"; cat; echo; }} >> {0}\n",
        out.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let fill = [("/usr/local/bin/on-message", script.to_str().unwrap())];
    let server = with_recipe("script", &fill, None);
    let id = post(&server, "message.received", received());
    eventually("the first attempt", || out.exists().then_some(()));
    server.set_clock_ahead(31);
    let lines = eventually("the second attempt", || {
        let lines = lines_of(&out);
        (lines.len() == 3).then_some(lines)
    });
    assert_eq!((&*lines[0], &*lines[1]), (PARTY, &*id));
    let event: Value = serde_json::from_str(&lines[2]).unwrap();
    assert_eq!(event["data"]["body"], HOSTILE);
}

/// As a person finds them: `check` accepts each once its secret is there, and all of them together.
#[test]
fn every_recipe_is_accepted_and_says_what_it_needs_and_does() {
    let mut names: Vec<String> = std::fs::read_dir(recipes())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let this = include_str!("recipes.rs");
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("bluehook.toml"), "data_dir = \"data\"\n");
    for name in &names {
        let text = std::fs::read_to_string(recipes().join(name)).unwrap();
        for part in ["# Needs: ", "# A retry "] {
            assert!(text.contains(part), "{name} lacks {part:?}");
        }
        assert!(readme.contains(&format!("config/recipes/{name}")), "README lacks {name}");
        let stem = name.strip_suffix(".toml").unwrap();
        assert!(this.contains(&format!("with_recipe(\"{stem}\"")), "no test runs {name}");
        for file in
            text.split("\"/etc/bluehook/").skip(1).map(|rest| rest.split('"').next().unwrap())
        {
            let value = if file.ends_with("-url") { "https://hooks.example.com/x" } else { TOKEN };
            write(&dir.path().join(file), value);
        }
        let text = text.replace("/etc/bluehook/", &format!("{}/", dir.path().display()));
        write(&dir.path().join("handlers.d").join(name), &text);
    }
    let checked = binary()
        .args(["check", "--config", "bluehook.toml"])
        .current_dir(dir.path())
        .env("WEBHOOK_SECRET", SECRET)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
