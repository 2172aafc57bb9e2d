//! The big list of naughty strings, in every field of an event, through every kind of handler: each comes out as it
//! went in, or the delivery is dead with a reason. What is in a message is never a template, an argument more, a header
//! more, another path.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use naughty_strings::BLNS;
use serde_json::{Value, json};

use crate::support::{Received, Receiver, Server, eventually, lines_of};

/// What the list lacks.
const MORE: [&str; 12] = [
    "",
    "-",
    "--help",
    "-rf /",
    "a\0b",
    "a\r\nx-injected: yes\r\n\r\nGET /evil HTTP/1.1",
    "../../../../etc/passwd",
    "$(touch pwned) `touch pwned` ; touch pwned | touch pwned",
    "{{ secret('crm') }}{{ env('PATH') }}{% for a in range(9) %}x{% endfor %}",
    "&a=b#c?d=e/f%2e%2e",
    "\u{202e}\u{2066}\u{feff}\u{fffd}\u{10ffff}",
    "evil.example/@127.0.0.1:1",
];

fn texts() -> Vec<String> {
    BLNS.iter().chain(&MORE).map(|text| (*text).to_owned()).collect()
}

/// An event with `text` wherever a text can be, but for the id, which also tells which it is.
fn event(n: usize, text: &str) -> String {
    json!({
        "eventId": format!("{n} {text}"), "type": format!("naughty {text}"),
        "data": { "messageId": text, "from": text, "to": text, "body": text, "n": n, text: text },
    })
    .to_string()
}

const HANDLERS: &str = r#"
[schedule]
delays = ["0s"]
[secrets]
crm = { file = "{dir}/secret" }
[[handler]]
name = "json"
events = ["*"]
circuit = { failures = 0 }
http = { url = "{url}/json", json = { "n" = "{{ data.n }}", from = "{{ data.from }}", deep = [{ text = "<{{ data.body }}>" }] } }
[[handler]]
name = "form"
events = ["*"]
circuit = { failures = 0 }
http = { url = "{url}/form", form = { n = "{{ data.n }}", from = "{{ data.from }}", body = "<{{ data.body }}>" } }
[[handler]]
name = "header"
events = ["*"]
circuit = { failures = 0 }
http = { url = "{url}/header", headers = { X-From = "<{{ data.from }}>", X-N = "{{ data.n }}" } }
[[handler]]
name = "url"
events = ["*"]
circuit = { failures = 0 }
http = { url = "{url}/url/{{ data.n }}/{{ data.from }}/end?q={{ data.body }}&last=1" }
[[handler]]
name = "argv"
events = ["*"]
circuit = { failures = 0 }
exec = { command = ["{dir}/argv", "{{ data.n }}", "{{ data.from }}", "--text={{ data.body }}"], env = { TEXT = "<{{ data.body }}>" }, cwd = "{dir}" }
[[handler]]
name = "file"
events = ["*"]
circuit = { failures = 0 }
file = { path = "{dir}/events.jsonl" }
"#;

/// Notes its arguments, its environment and its input as they are.
const ARGV: &str = r#"#!/usr/bin/python3
import base64, json, os, sys
b = lambda raw: base64.b64encode(raw).decode()
said = {"args": [b(os.fsencode(a)) for a in sys.argv[1:]], "stdin": b(sys.stdin.buffer.read()),
        "env": {os.fsdecode(k): b(v) for k, v in os.environb.items()}}
with open(os.path.join(os.path.dirname(sys.argv[0]), "argv.jsonl"), "a") as out:
    out.write(json.dumps(said) + "\n")
"#;

fn decoded(value: &Value) -> String {
    String::from_utf8(BASE64.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

/// What a program that decodes it finds, percent-encoding and `+` undone.
fn form(text: &str) -> BTreeMap<String, String> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

struct Came {
    json: BTreeMap<usize, Received>,
    form: BTreeMap<usize, Received>,
    header: BTreeMap<usize, Received>,
    url: BTreeMap<usize, Received>,
}

impl Came {
    fn of(requests: Vec<Received>) -> Came {
        let mut came = Came {
            json: BTreeMap::new(),
            form: BTreeMap::new(),
            header: BTreeMap::new(),
            url: BTreeMap::new(),
        };
        for request in requests {
            let body = str::from_utf8(&request.body).unwrap();
            let (kind, n) = match request.path.as_str() {
                "/json" => {
                    let body: Value = serde_json::from_str(body).unwrap();
                    (&mut came.json, body["n"].to_string())
                }
                "/form" => (&mut came.form, form(body)["n"].clone()),
                "/header" => (&mut came.header, request.headers["x-n"].clone()),
                path => {
                    let rest = path.strip_prefix("/url/").unwrap_or(path);
                    (&mut came.url, rest.split('/').next().unwrap().to_owned())
                }
            };
            assert!(kind.insert(n.parse().unwrap(), request).is_none(), "{n} came twice");
        }
        came
    }
}

#[test]
fn what_strangers_write_comes_out_of_every_handler_as_it_went_in() {
    let remote = Receiver::start(|_| (200, ""));
    let mut server = Server::stopped(&HANDLERS.replace("{url}", &remote.url("")));
    let script = server.dir.path().join("argv");
    std::fs::write(&script, ARGV).unwrap();
    let runnable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, runnable).unwrap();
    server.spawn();
    let texts = texts();
    let mut client = server.client();
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(client.post_signed(&event(n, text)).unwrap().status, 200, "{text:?}");
    }
    eventually("all is settled", || {
        let status = server.status();
        let handlers = status["handlers"].as_array().unwrap();
        let left = |h: &Value| {
            ["running", "scheduled", "behind"].iter().any(|kind| h[*kind].as_u64() != Some(0))
        };
        (!handlers.iter().any(left)).then_some(())
    });
    let dead: Vec<(String, String, String)> = server
        .cli_json(&["dead", "list", "--limit", "10000"])
        .iter()
        .map(|d| ["eventId", "handler", "reason"].map(|k| d[k].as_str().unwrap().to_owned()))
        .map(|[event, handler, reason]| (event, handler, reason))
        .collect();
    // What nothing can carry is refused, not changed.
    let refused = |n: usize, handler: &str| {
        let id = format!("{n} {}", texts[n]);
        dead.iter().find(|(event, by, _)| *event == id && by == handler).map(|d| d.2.clone())
    };

    let came = Came::of(remote.requests());
    let arguments: BTreeMap<usize, Value> = lines_of(&server.dir.path().join("argv.jsonl"))
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|said| (decoded(&said["args"][0]).parse().unwrap(), said))
        .collect();
    let mut counts = BTreeMap::new();
    for (n, text) in texts.iter().enumerate() {
        let name = format!("{n}: {text:?}");
        let mut count = |handler| *counts.entry(handler).or_insert(0) += 1;
        if let Some(request) = came.json.get(&n) {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(body["from"], *text, "{name}");
            assert_eq!(body["deep"][0]["text"], format!("<{text}>"), "{name} {body}");
            count("json");
        }
        if let Some(request) = came.form.get(&n) {
            let fields = form(str::from_utf8(&request.body).unwrap());
            let expected =
                [("n", n.to_string()), ("from", text.clone()), ("body", format!("<{text}>"))];
            let expected = expected.map(|(k, v)| (k.to_owned(), v)).into_iter().collect();
            assert_eq!(fields, expected, "{name}");
            count("form");
        }
        if let Some(request) = came.header.get(&n) {
            // No header carries control characters; they are spaces there.
            let plain = format!("<{text}>").replace(|c: char| c.is_ascii_control(), " ");
            assert_eq!(request.headers["x-from"], plain, "{name}");
            assert!(!request.headers.contains_key("x-injected"), "{name}");
            count("header");
        }
        if let Some(request) = came.url.get(&n) {
            let (path, query) = request.path.split_once('?').unwrap();
            let segments: Vec<&str> = path.split('/').collect();
            assert_eq!((segments.len(), segments[4]), (5, "end"), "{name}: {path}");
            let segment = format!("x={}", segments[3].replace('+', "%2B"));
            assert_eq!(form(&segment)["x"], *text, "{name}: {path}");
            let expected = [("q", text.as_str()), ("last", "1")];
            let expected =
                expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
            assert_eq!(form(query), expected, "{name}: {query}");
            count("url");
        }
        if let Some(said) = arguments.get(&n) {
            // No argument and no variable carries a NUL.
            let plain = text.replace('\0', "");
            let args: Vec<String> = said["args"].as_array().unwrap().iter().map(decoded).collect();
            assert_eq!(args, [n.to_string(), plain.clone(), format!("--text={plain}")], "{name}");
            assert_eq!(decoded(&said["env"]["TEXT"]), format!("<{plain}>"), "{name}");
            assert_eq!(
                decoded(&said["env"]["BLUEHOOK_EVENT_ID"]),
                format!("{n} {plain}"),
                "{name}"
            );
            assert_eq!(decoded(&said["stdin"]), event(n, text), "{name}");
            count("argv");
        }
        for handler in ["json", "form", "header", "url", "argv"] {
            let delivered = match handler {
                "json" => came.json.contains_key(&n),
                "form" => came.form.contains_key(&n),
                "header" => came.header.contains_key(&n),
                "url" => came.url.contains_key(&n),
                _ => arguments.contains_key(&n),
            };
            let reason = refused(n, handler);
            assert_ne!(delivered, reason.is_some(), "{handler}, {name}: {reason:?}");
        }
    }
    let kept: Vec<Value> = lines_of(&server.dir.path().join("events.jsonl"))
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(kept.len(), texts.len());
    for (n, text) in texts.iter().enumerate() {
        let line = kept.iter().find(|line| line["eventId"] == format!("{n} {text}")).unwrap();
        assert_eq!(line["payload"], event(n, text));
    }
    println!("{} texts, delivered {counts:?}, refused:", texts.len());
    for (event, handler, reason) in &dead {
        println!("  {handler} {event:?}: {reason}");
    }
    // Most of them are ordinary text to each handler.
    assert!(counts.values().all(|count| count * 10 >= texts.len() * 9), "{counts:?}");
    // Nothing was run, and nothing was written outside.
    assert!(!server.dir.path().join("pwned").exists());
    let files = std::fs::read_dir(server.dir.path()).unwrap().count();
    assert!(files < 12, "{files} files");
    server.stop();
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
