//! `bluehook emulate` against receivers that behave and misbehave, against `bluehook serve`, and against an
//! Express server such as the vendor's article builds.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Client, PATH, PATIENCE, Received, Receiver, SECRET, Server, binary, eventually, hmac_hex,
    npm_folder,
};

/// Delays before attempts 2 to 5 with `--time-scale 600`.
const SCALED_MS: [u64; 4] = [50, 200, 1_000, 6_000];

struct Emulator {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    child: Option<Child>,
    /// What it printed.
    printed: Arc<Mutex<Vec<String>>>,
    time_scale: u32,
}

impl Emulator {
    fn start() -> Emulator {
        Emulator::with_time_scale(600)
    }

    fn with_time_scale(time_scale: u32) -> Emulator {
        let mut emulator = Emulator {
            dir: tempfile::tempdir().unwrap(),
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            child: None,
            printed: Arc::default(),
            time_scale,
        };
        emulator.spawn(Some(SECRET));
        emulator
    }

    fn spawn(&mut self, secret: Option<&str>) {
        self.printed.lock().unwrap().clear();
        let mut command = binary();
        command.args(["emulate", "--listen", "127.0.0.1:0", "--time-scale"]);
        command.arg(self.time_scale.to_string());
        command.arg("--data-dir").arg(self.dir.path().join("data"));
        if let Some(secret) = secret {
            command.env("WEBHOOK_SECRET", secret);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let printed = Arc::clone(&self.printed);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                printed.lock().unwrap().push(line);
            }
        });
        self.child = Some(child);
        self.addr = eventually("the emulator listens", || {
            let line = self.printed().into_iter().find(|l| l.contains("listening on"))?;
            line.split("http://").nth(1)?.parse().ok()
        });
    }

    fn printed(&self) -> Vec<String> {
        self.printed.lock().unwrap().clone()
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits for a clean end.
    fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "does not stop");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}");
    }

    fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{body}",
            self.addr,
            body.len()
        );
        let answer = Client::new(self.addr).raw(request.as_bytes(), false).unwrap();
        (answer.status, serde_json::from_str(&answer.body).unwrap())
    }

    fn get(&self, path: &str) -> Value {
        let (status, json) = self.call("GET", path, None);
        assert_eq!(status, 200, "{path}: {json}");
        json
    }

    fn items(&self, path: &str) -> Vec<Value> {
        self.get(path)["items"].as_array().unwrap().clone()
    }

    fn post(&self, path: &str, body: Value) -> Value {
        let (status, json) = self.call("POST", path, Some(body));
        assert!((200..300).contains(&status), "{path}: {status} {json}");
        json
    }

    fn register(&self, url: &str) -> Value {
        self.post("/endpoints", json!({ "url": url }))
    }

    /// The id of an event of that type, sent.
    fn send(&self, kind: &str) -> String {
        let sent = self.post("/events", json!({ "type": kind }));
        sent["eventId"].as_str().unwrap().to_owned()
    }

    /// The one delivery of an event, once it is as wanted.
    fn delivery(&self, id: &str, state: &str) -> Value {
        eventually(&format!("{id} is {state}"), || {
            let event = self.get(&format!("/events/{id}"));
            let delivery = event["deliveries"].as_array()?.first()?.clone();
            (delivery["state"] == state).then_some(delivery)
        })
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn is_ping(request: &Received) -> bool {
    serde_json::from_slice::<Value>(&request.body).unwrap()["type"] == "ping"
}

/// A receiver that takes pings, answers events with what the test sets, and notes when each came.
struct Endpoint {
    receiver: Receiver,
    status: Arc<AtomicUsize>,
    came: Arc<Mutex<Vec<Instant>>>,
}

impl Endpoint {
    fn start(status: u16) -> Endpoint {
        let status = Arc::new(AtomicUsize::new(usize::from(status)));
        let came = Arc::new(Mutex::new(Vec::new()));
        let (answer, note) = (Arc::clone(&status), Arc::clone(&came));
        let receiver = Receiver::start(move |request| {
            if is_ping(request) {
                return (200, "");
            }
            note.lock().unwrap().push(Instant::now());
            (u16::try_from(answer.load(Ordering::Relaxed)).unwrap(), "")
        });
        Endpoint { receiver, status, came }
    }

    fn url(&self) -> String {
        self.receiver.url("/hook")
    }

    fn answer_with(&self, status: usize) {
        self.status.store(status, Ordering::Relaxed);
    }

    fn came(&self) -> Vec<Instant> {
        self.came.lock().unwrap().clone()
    }

    /// Between one attempt and the next no less time lies than the schedule says. A millisecond is
    /// what the clocks round.
    fn assert_spacing(&self, first: usize) {
        let came = self.came();
        for (pair, delay) in came[first..].windows(2).zip(SCALED_MS) {
            let gap = pair[1] - pair[0] + Duration::from_millis(1);
            assert!(gap >= Duration::from_millis(delay), "{gap:?} instead of {delay} ms: {came:?}");
        }
    }
}

#[test]
fn an_endpoint_gets_a_signed_ping_and_then_signed_events_of_all_types() {
    let endpoint = Endpoint::start(200);
    let emulator = Emulator::start();
    let registered = emulator.register(&endpoint.url());
    assert_eq!(registered["active"], true, "{registered}");
    assert_eq!(registered["ping"]["status"], 200);
    let mut sent: Vec<String> = ["sent", "delivered", "read", "failed", "received"]
        .iter()
        .map(|kind| emulator.send(&format!("message.{kind}")))
        .collect();
    let own =
        json!({ "type": "call.missed", "data": { "from": "+1555" }, "set": ["data.n=héllo"] });
    sent.push(emulator.post("/events", own)["eventId"].as_str().unwrap().to_owned());
    for id in &sent {
        assert_eq!(emulator.delivery(id, "delivered")["attempts"].as_array().unwrap().len(), 1);
    }
    let requests = endpoint.receiver.requests();
    assert_eq!(requests.len(), 7, "a ping and six events");
    for request in &requests {
        assert_eq!(request.headers["x-bluereplies-signature"], hmac_hex(SECRET, &request.body));
        assert_eq!(request.headers["content-type"], "application/json");
        let ours = ["idempotency-key", "x-bluehook-attempt"];
        assert!(ours.iter().all(|h| !request.headers.contains_key(*h)), "the vendor has no such");
    }
    let last: Value = serde_json::from_slice(
        &requests.iter().find(|r| String::from_utf8_lossy(&r.body).contains("call.")).unwrap().body,
    )
    .unwrap();
    assert_eq!(last["data"], json!({ "from": "+1555", "n": "héllo" }));

    let log = emulator.items("/log");
    assert_eq!(log.len(), 7);
    assert_eq!(log.iter().filter(|e| e["kind"] == "attempt").count(), 6);
    assert_eq!(log[6]["kind"], "ping", "newest first: {log:#?}");
    for entry in &log {
        assert_eq!(entry["status"], 200, "{entry}");
        assert!(entry["request"].as_str().unwrap().contains(&endpoint.url()), "{entry}");
        assert!(entry["response"].as_str().unwrap().contains("200"), "{entry}");
        assert!(entry["body"].as_str().unwrap().contains("\"type\""), "{entry}");
    }
    // Page by page it is the same.
    let (mut paged, mut path) = (Vec::new(), "/log?limit=2".to_owned());
    loop {
        let page = emulator.get(&path);
        paged.extend(page["items"].as_array().unwrap().clone());
        match page["nextCursor"].as_str() {
            Some(cursor) => path = format!("/log?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(paged, log);
}

#[test]
fn an_endpoint_that_fails_is_tried_five_times_then_dead_and_can_be_replayed() {
    let endpoint = Endpoint::start(500);
    let emulator = Emulator::start();
    emulator.register(&endpoint.url());
    let id = emulator.send("message.read");
    let dead = emulator.delivery(&id, "dead");
    assert_eq!(dead["attempts"].as_array().unwrap().len(), 5, "{dead:#}");
    assert_eq!(endpoint.came().len(), 5);
    endpoint.assert_spacing(0);
    let queue = emulator.items("/dead");
    assert_eq!(queue.len(), 1);
    assert_eq!(queue[0]["eventId"], id.as_str());
    assert!(emulator.items("/log").iter().take(5).all(|e| e["status"] == 500));

    endpoint.answer_with(200);
    let replayed = emulator.post("/dead/replay", json!({ "all": true }));
    assert_eq!(replayed["deliveries"], 1);
    emulator.delivery(&id, "delivered");
    assert_eq!(endpoint.came().len(), 6);
    assert!(emulator.items("/dead").is_empty());

    // What was delivered can be sent again, too.
    emulator.post("/replay", json!({ "ids": [id] }));
    eventually("it comes a seventh time", || (endpoint.came().len() == 7).then_some(()));
}

/// The vendor documents 200 and a fixed schedule: no other success, nothing that ends or puts off retries.
#[test]
fn no_answer_but_200_changes_the_schedule() {
    for status in [204, 410] {
        let endpoint = Endpoint::start(status);
        let emulator = Emulator::start();
        emulator.register(&endpoint.url());
        let id = emulator.send("message.read");
        let dead = emulator.delivery(&id, "dead");
        assert_eq!(dead["attempts"].as_array().unwrap().len(), 5, "{status}: {dead:#}");
    }
    let busy = Receiver::start(|request| match is_ping(request) {
        true => (200, ""),
        false => (503, "retry-after: 3000\r\n"),
    });
    let emulator = Emulator::start();
    emulator.register(&busy.url("/"));
    emulator.send("message.read");
    eventually("the second attempt doesn't wait for 50 minutes", || {
        (busy.count() >= 3).then_some(())
    });
}

#[test]
fn a_kill_between_attempts_ends_no_retries_and_a_restart_keeps_endpoints_and_log() {
    let endpoint = Endpoint::start(500);
    let mut emulator = Emulator::start();
    let registered = emulator.register(&endpoint.url());
    let id = emulator.send("message.received");
    eventually("four attempts", || {
        let event = emulator.get(&format!("/events/{id}"));
        let attempts = event["deliveries"][0]["attempts"].as_array()?.len();
        (attempts == 4).then_some(())
    });
    emulator.kill();
    assert_eq!(endpoint.came().len(), 4);
    emulator.spawn(Some(SECRET));
    assert_eq!(emulator.items("/endpoints"), [registered]);
    let dead = emulator.delivery(&id, "dead");
    assert_eq!(dead["attempts"].as_array().unwrap().len(), 5, "{dead:#}");
    assert_eq!(endpoint.came().len(), 5);
    endpoint.assert_spacing(0);
    let log = emulator.items("/log");
    assert_eq!(log.iter().map(|e| e["kind"].as_str().unwrap()).collect::<Vec<_>>(), {
        let mut kinds = vec!["attempt"; 5];
        kinds.push("ping");
        kinds
    });

    // And what a stop interrupts goes on as well.
    endpoint.answer_with(200);
    emulator.stop();
    emulator.spawn(Some(SECRET));
    let id = emulator.send("message.received");
    emulator.delivery(&id, "delivered");
}

#[test]
fn an_endpoint_that_does_not_answer_the_ping_with_200_gets_nothing_until_it_does() {
    let up = Arc::new(AtomicUsize::new(0));
    let answer = Arc::clone(&up);
    let receiver = Receiver::start(move |_| match answer.load(Ordering::Relaxed) {
        0 => (404, ""),
        1 => (202, ""),
        _ => (200, ""),
    });
    let emulator = Emulator::start();
    let refused = emulator.register(&receiver.url("/hook"));
    assert_eq!((&refused["active"], &refused["ping"]["status"]), (&json!(false), &json!(404)));
    assert!(refused["ping"]["error"].as_str().unwrap().contains("404"), "{refused}");
    let early = emulator.post("/events", json!({ "type": "message.read" }));
    assert_eq!(early["endpoints"], json!([]));
    let verify = format!("/endpoints/{}/verify", refused["id"].as_str().unwrap());
    up.store(1, Ordering::Relaxed);
    assert_eq!(emulator.post(&verify, json!(null))["active"], false, "202 is no 200");
    up.store(2, Ordering::Relaxed);
    assert_eq!(emulator.post(&verify, json!(null))["active"], true);
    let late = emulator.send("message.read");
    emulator.delivery(&late, "delivered");
    let bodies: Vec<String> = receiver
        .requests()
        .iter()
        .filter(|r| !is_ping(r))
        .map(|r| String::from_utf8_lossy(&r.body).into_owned())
        .collect();
    assert_eq!(bodies.len(), 1, "only what was sent after it became active: {bodies:?}");
    assert!(bodies[0].contains(&late));

    // Nobody there at all, and somebody who thinks too long.
    let nobody = emulator.register("http://127.0.0.1:1/");
    assert_eq!((&nobody["active"], &nobody["ping"]["status"]), (&json!(false), &json!(null)));
    let slow = Receiver::start(|_| {
        std::thread::sleep(Duration::from_millis(5_500));
        (200, "")
    });
    let slow = emulator.register(&slow.url("/"));
    assert_eq!(slow["active"], false);
    assert!(slow["ping"]["error"].as_str().unwrap().contains("timed out after 5 s"), "{slow}");
    assert!(slow["ping"]["tookMs"].as_u64().unwrap() >= 5_000);
}

#[test]
fn only_the_chosen_types_are_sent_and_a_deleted_endpoint_gets_nothing() {
    let endpoint = Endpoint::start(200);
    let all = Endpoint::start(200);
    let emulator = Emulator::start();
    let chosen = json!({ "url": endpoint.url(), "events": ["message.read"], "name": "reads" });
    let chosen = emulator.post("/endpoints", chosen);
    assert_eq!(chosen["name"], "reads");
    emulator.register(&all.url());
    emulator.send("message.sent");
    let read = emulator.post("/events", json!({ "type": "message.read" }));
    assert_eq!(read["endpoints"].as_array().unwrap().len(), 2);
    eventually("one got both", || (all.came().len() == 2).then_some(()));
    eventually("the other one", || (endpoint.came().len() == 1).then_some(()));
    let (status, _) =
        emulator.call("DELETE", &format!("/endpoints/{}", chosen["id"].as_str().unwrap()), None);
    assert_eq!(status, 200);
    assert_eq!(emulator.items("/endpoints").len(), 1);
    emulator.send("message.read");
    eventually("only one is left", || (all.came().len() == 3).then_some(()));
    assert_eq!(endpoint.came().len(), 1);
}

#[test]
fn serve_is_registered_and_stores_what_is_sent() {
    let server = Server::start("");
    let emulator = Emulator::start();
    let registered = emulator.register(&format!("http://{}{PATH}", server.addr));
    assert_eq!(registered["active"], true, "{registered}");
    let id = emulator.send("message.received");
    emulator.delivery(&id, "delivered");
    let stored = server.cli_json(&["events", "show", &id]).pop().unwrap();
    assert_eq!(stored["type"], "message.received");
    assert_eq!(stored["verifiedBy"], "raw");
    assert_eq!(stored["payload"], emulator.get(&format!("/events/{id}"))["payload"]);
    // Sent again, it is a duplicate there.
    emulator.post("/replay", json!({ "ids": [id] }));
    eventually("the duplicate is counted", || {
        let stored = server.cli_json(&["events", "show", &id]).pop()?;
        (stored["duplicates"] == 1).then_some(())
    });
}

#[test]
fn a_secret_is_made_once_printed_and_kept() {
    let endpoint = Endpoint::start(200);
    let mut emulator = Emulator::start();
    emulator.stop();
    assert!(!emulator.printed().join("\n").contains(SECRET), "one that was given is not printed");
    emulator.spawn(None);
    let secret = |e: &Emulator| {
        let line = eventually("the secret is printed", || {
            e.printed().into_iter().find(|l| l.starts_with("signing secret: "))
        });
        line.split(' ').nth(2).unwrap().to_owned()
    };
    let first = secret(&emulator);
    assert_eq!(first.len(), 64);
    emulator.register(&endpoint.url());
    let ping = endpoint.receiver.requests().pop().unwrap();
    assert_eq!(ping.headers["x-bluereplies-signature"], hmac_hex(&first, &ping.body));
    let line = emulator.printed().join("\n");
    assert!(line.contains(&format!("curl -sS http://{}/endpoints -d '", emulator.addr)), "{line}");
    emulator.stop();
    emulator.spawn(None);
    assert_eq!(secret(&emulator), first);
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let emulator = Emulator::start();
    let url = "http://127.0.0.1:1/";
    for (method, path, body, expected, says) in [
        ("GET", "/nothing", None, 404, "/endpoints"),
        ("PUT", "/endpoints", None, 405, "GET, POST"),
        ("DELETE", "/log", None, 405, "use GET"),
        ("POST", "/endpoints", Some(json!({})), 400, "url"),
        ("POST", "/endpoints", Some(json!({ "url": "ftp://x/" })), 400, "http"),
        ("POST", "/endpoints", Some(json!({ "url": "http://x/{{ env('HOME') }}" })), 400, "brace"),
        ("POST", "/endpoints", Some(json!({ "url": url, "events": [] })), 400, "events"),
        ("POST", "/endpoints", Some(json!({ "url": url, "event": "*" })), 400, "event"),
        ("POST", "/endpoints/ep_none/verify", None, 404, "GET /endpoints"),
        ("DELETE", "/endpoints/ep_none", None, 404, "GET /endpoints"),
        (
            "POST",
            "/events",
            Some(json!({ "type": "message.read", "duplicate": true })),
            400,
            "trigger --to URL",
        ),
        ("POST", "/events", Some(json!({ "type": "" , "data": {} })), 400, "type"),
        ("GET", "/events/evt_none", None, 404, "evt_none"),
        ("POST", "/dead/replay", Some(json!({})), 400, "all"),
        ("GET", "/log?limit=0", None, 400, "limit"),
        ("GET", "/log?page=2", None, 400, "cursor"),
    ] {
        let (status, problem) = emulator.call(method, path, body);
        assert_eq!(status, expected, "{method} {path}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(says) && !detail.contains('\n'), "{method} {path}: {detail}");
    }
    let twice = json!({ "type": "message.read", "set": ["eventId=evt_1"] });
    emulator.post("/events", twice.clone());
    let (status, problem) = emulator.call("POST", "/events", Some(twice));
    assert_eq!(status, 409);
    assert!(problem["detail"].as_str().unwrap().contains("/replay"), "{problem}");

    // A page of another site, whose name was made to resolve to loopback.
    let foreign = Client::new(emulator.addr).request("GET", "/endpoints", &[], b"").unwrap();
    assert_eq!(foreign.status, 403, "{}", foreign.body);

    for arguments in [["--listen", "0.0.0.0:0"], ["--time-scale", "0"]] {
        let refused = binary().arg("emulate").args(arguments).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
    }
    let data = emulator.dir.path().join("data");
    let second = binary()
        .args(["emulate", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(error.contains("another folder with --data-dir"), "{error}");
}

/// Answers as the vendor's article says a server should: the signature over the body parsed and written again.
const EXPRESS: &str = r"
const express = require('express');
const { createHmac } = require('node:crypto');
const inbox = express();
inbox.use(express.json());
inbox.post('/webhooks/bluereplies', ({ headers, body }, answer) => {
  const mac = createHmac('sha256', process.env.WEBHOOK_SECRET).update(JSON.stringify(body)).digest('hex');
  const genuine = mac === headers['x-bluereplies-signature'];
  console.log((genuine ? 'took ' : 'refused ') + JSON.stringify(body));
  answer.status(genuine ? 200 : 401).send(genuine ? 'OK' : 'Invalid signature');
});
const listening = inbox.listen(0, '127.0.0.1', () => console.log(`port ${listening.address().port}`));
";

pub struct Express {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Express {
    pub fn start(secret: &str) -> (Express, String) {
        let mut child = Command::new("node")
            .args(["-e", EXPRESS])
            .current_dir(npm_folder("express", &["express@5"]))
            .env("WEBHOOK_SECRET", secret)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                noted.lock().unwrap().push(line);
            }
        });
        let express = Express { child, lines };
        let port = eventually("Express listens", || {
            express.lines().iter().find_map(|l| l.strip_prefix("port ").map(str::to_owned))
        });
        (express, format!("http://127.0.0.1:{port}/webhooks/bluereplies"))
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl Drop for Express {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_express_server_as_in_the_article_is_registered_and_takes_every_event() {
    let (express, url) = Express::start(SECRET);
    let emulator = Emulator::start();
    let registered = emulator.register(&url);
    assert_eq!(registered["active"], true, "{registered}");
    let mut sent = vec![emulator.send("message.received"), emulator.send("message.failed")];
    // What JavaScript writes in another order, or in another form, than most.
    let odd = json!({ "10": "ten", "2": 1.0, "big": 1e21, "text": "h\u{e9}llo \u{1f600} \u{2028} \u{7f}" });
    let odd = emulator.post("/events", json!({ "type": "message.odd", "data": odd }));
    sent.push(odd["eventId"].as_str().unwrap().to_owned());
    for id in &sent {
        let delivery = emulator.delivery(id, "delivered");
        let response = delivery["attempts"][0]["response"].as_str().unwrap();
        assert!(response.ends_with("\n\nOK"), "{response}");
    }
    let took = express.lines().iter().filter(|l| l.starts_with("took ")).count();
    assert_eq!(took, 1 + sent.len(), "{:?}", express.lines());
}

#[test]
fn an_express_server_with_another_secret_refuses_the_ping_and_stays_inactive() {
    let (express, url) = Express::start("another");
    let emulator = Emulator::start();
    let registered = emulator.register(&url);
    assert_eq!(registered["active"], false);
    assert_eq!(registered["ping"]["status"], 401, "{registered}");
    let log = emulator.items("/log");
    assert!(log[0]["response"].as_str().unwrap().ends_with("Invalid signature"), "{log:#?}");
    assert!(express.lines().iter().any(|l| l.starts_with("refused ")));
}
