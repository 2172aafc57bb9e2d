//! What strangers' bytes are given to, and what must hold then. `tests/it/fuzzed.rs` runs the seeds through the same.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bluehook::clock::Timestamp;
use bluehook::config::LoadOptions;
use bluehook::event::{Envelope, Event, NewEvent, VerifiedBy};
use bluehook::handler::template::{self, Engine, Place, Values};
use bluehook::signature::{Policy, Scheme, Secret, json, sign, sign_hex, verify};
use bluehook::store::disk::{Disk, RealDisk};
use bluehook::store::log::frame;
use bluehook::store::{check, files, record, repair};

const NOW: Timestamp = Timestamp(1_790_000_000_000);
const SECRET: &str = "s3cret-t0ken";
const TOLERANCE: Duration = Duration::from_secs(300);
const HEADERS: [&str; 4] =
    ["x-bluereplies-signature", "webhook-id", "webhook-timestamp", "webhook-signature"];

/// Headers, a line each (`value`, or `name: value`), an empty line, the body.
pub fn signature(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let scheme = match kind % 3 {
        0 => Scheme::Hex,
        1 => Scheme::Timestamped { tolerance: TOLERANCE },
        _ => Scheme::StandardWebhooks { tolerance: TOLERANCE },
    };
    let policy = Policy {
        header: HEADERS[0].to_owned(),
        scheme,
        secrets: vec![Secret::new(b"one".to_vec()), Secret::new(b"whsec_b25l".to_vec())],
        canonical_json: kind & 0x80 == 0,
    };
    let (head, body) = match rest.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&rest[..at], &rest[at + 2..]),
        None => (rest, &b"{\"eventId\":\"e\"}"[..]),
    };
    let headers: Vec<(&str, &[u8])> = head
        .split(|&b| b == b'\n')
        .map(|line| {
            let named = HEADERS.iter().find_map(|name| {
                let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b": ")?;
                Some((*name, value))
            });
            named.unwrap_or((HEADERS[0], line))
        })
        .collect();
    if let Ok(verified) = verify(&policy, headers.iter().copied(), body, NOW)
        && scheme == Scheme::Hex
    {
        let covered = verified.canonical.as_deref().unwrap_or(body);
        let digits = String::from_utf8(headers[0].1.trim_ascii().to_ascii_lowercase()).unwrap();
        let right = |secret: &Secret| digits.ends_with(&sign_hex(secret, covered));
        assert!(policy.secrets.iter().any(right), "accepted what nobody signed");
    }
    // Whatever the body is: who signs it rightly is believed.
    let signed = sign(&policy, "id", body, NOW).expect("there is a secret");
    let pairs = signed.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    assert!(verify(&policy, pairs, body, NOW).is_ok(), "refused what we signed");
}

/// The canonical form is what Node makes of it, and is its own.
pub fn canonical(data: &[u8]) {
    static NODE: Mutex<Option<Node>> = Mutex::new(None);
    let ours = json::canonical(data);
    if ours.as_ref().is_err_and(|e| e.what.starts_with("nested")) {
        return;
    }
    let ours = ours.ok();
    if let Some(text) = &ours {
        assert_eq!(json::canonical(text).as_ref(), Ok(text), "not its own canonical form");
        let _envelope = Envelope::parse(data);
    }
    let mut node = NODE.lock().unwrap();
    let theirs = node.get_or_insert_with(Node::start).canonical(data);
    assert_eq!(ours, theirs, "Node makes another thing of b\"{}\"", data.escape_ascii());
}

const ORACLE: &str = r"
const fs = require('fs');
const exactly = (n) => {
  const bytes = Buffer.alloc(n);
  for (let at = 0; at < n;) {
    const got = fs.readSync(0, bytes, at, n - at, null);
    if (got === 0) process.exit(0);
    at += got;
  }
  return bytes;
};
for (;;) {
  const text = exactly(exactly(4).readUInt32LE()).toString('utf8'), length = Buffer.alloc(4);
  let result = Buffer.alloc(0);
  try {
    result = Buffer.from(JSON.stringify(JSON.parse(text)));
    length.writeUInt32LE(result.length);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    length.writeUInt32LE(0xffffffff);
  }
  fs.writeSync(1, Buffer.concat([length, result]));
}
";

struct Node {
    _child: Child,
    ask: ChildStdin,
    answer: ChildStdout,
}

impl Node {
    fn start() -> Node {
        let mut child = Command::new("node")
            .args(["-e", ORACLE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is installed");
        let (ask, answer) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Node { _child: child, ask, answer }
    }

    fn canonical(&mut self, text: &[u8]) -> Option<Vec<u8>> {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        self.ask.write_all(&[&length, text].concat()).unwrap();
        let mut length = [0; 4];
        self.answer.read_exact(&mut length).unwrap();
        let length = u32::from_le_bytes(length);
        if length == u32::MAX {
            return None;
        }
        let mut result = vec![0; length as usize];
        self.answer.read_exact(&mut result).unwrap();
        Some(result)
    }
}

/// A record's kind and payload. What is understood is written again as it was understood; and a frame around it holds.
pub fn record(data: &[u8]) {
    let _header = frame::Header::decode(data);
    let Some((&kind, payload)) = data.split_first() else { return };
    if let Ok(understood) = record::decode(kind, payload) {
        let (kind, bytes) = record::encode(&understood);
        assert_eq!(record::decode(kind, &bytes).as_ref(), Ok(&understood));
    }
    let mut framed = Vec::new();
    let stamp = frame::Stamp { kind, seq: 7, time: NOW, durable: 3, log_id: 9 };
    frame::encode(&mut framed, stamp, payload);
    let header = frame::Header::decode(&framed).expect("it is ours");
    assert!(header.matches(payload) && header.seq == 7 && header.durable() == 3);
}

/// A segment's file with this in it: what is there is counted, and repaired into what is sound.
pub fn log(data: &[u8]) {
    let dir = folder();
    let log = files::log_dir(dir.path());
    std::fs::create_dir_all(&log).unwrap();
    std::fs::write(dir.path().join("lock"), "").unwrap();
    std::fs::write(log.join(check::segment_file(1)), data).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let _report = check::check(&disk, dir.path());
    if repair::repair(dir.path()).is_ok() {
        let report = check::check(&disk, dir.path()).expect("it was repaired");
        assert!(report.is_sound(), "{report:?}");
    }
}

/// A configuration: accepted or refused with lines that a person can read.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    // Files elsewhere are not this test's matter.
    if text.contains("/dev/") || text.contains("/proc/") {
        return;
    }
    let dir = folder();
    let file = dir.path().join("bluehook.toml");
    std::fs::write(&file, text).unwrap();
    let options =
        LoadOptions { file: Some(file), cwd: dir.path().to_owned(), ..LoadOptions::default() };
    match bluehook::server::load(&options) {
        Ok(loaded) => {
            let shown = bluehook::config::render(&loaded);
            assert!(!shown.contains('\u{1b}'), "{shown:?}");
        }
        Err(problems) => {
            assert!(!problems.is_empty() && problems.iter().all(|line| !line.is_empty()));
        }
    }
}

/// A template, a NUL, an event's payload. Rendered or refused in bounded time, as text or as a value; and what is in the
/// payload is never a template itself.
pub fn template(data: &[u8]) {
    let at = data.iter().position(|&b| b == 0).unwrap_or(data.len());
    let Ok(source) = str::from_utf8(&data[..at]) else { return };
    let body = data.get(at + 1..).unwrap_or_default();
    let body = if body.is_empty() { br#"{"data":{"from":"{{ secret('crm') }}"}}"# } else { body };
    let secrets = [("crm".to_owned(), SECRET.to_owned())].into_iter().collect();
    let values = Values { secrets, ..Values::default() };
    let new = NewEvent {
        source: "bluereplies".to_owned(),
        id: "id".to_owned(),
        kind: "message.read".to_owned(),
        conversation: None,
        received_at: NOW,
        headers: vec![],
        verified_by: VerifiedBy::Raw,
        body: body.to_vec().into(),
        imported: false,
    };
    let context = template::context(&Event { seq: 1, new }, None, "crm", 1);
    let mut engine = Engine::new(&values);
    for place in [Place::Text, Place::Argument, Place::Url] {
        let Ok(compiled) = engine.compile("body", source, place) else { continue };
        if let Ok(text) = engine.render(&compiled, &context) {
            // Who wrote it there already tells nothing.
            let told = source.contains(SECRET)
                || body.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
            assert!(compiled.private || told || !text.contains(SECRET), "{text}");
        }
    }
    if let Ok(compiled) = engine.compile_value("json", source) {
        let _value = engine.render_value(&compiled, &context);
    }
    if engine.compile_condition("when", source).is_ok() {
        let _holds = engine.is_true("when", source, &context);
    }
}

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// All that a server answers to these bytes until it closes. Every answer is a whole one, and none is a 500.
pub fn converse(mut stream: impl Read + Write, shut: impl FnOnce(), data: &[u8]) -> Vec<u16> {
    // It may have heard enough before all is written.
    let _ = stream.write_all(data);
    shut();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let text = String::from_utf8_lossy(&all);
    let status = |answer: &str| answer.get(..3).and_then(|status| status.parse().ok());
    let statuses: Vec<u16> = text.split("HTTP/1.1 ").skip(1).filter_map(status).collect();
    assert!(!statuses.contains(&500), "{text}");
    statuses
}
