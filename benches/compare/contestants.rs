//! Who takes part, and how each is started: on a folder of its own, fresh for every round.

use std::fs::{File, write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::events::{SECRET, requests};
use crate::peers;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Contestant {
    /// hyper and the HMAC, nothing stored
    CeilingA,
    /// the same, with a plain append and one fdatasync for all that wait
    CeilingB,
    /// without handlers
    Bluehook,
    /// with one handler, which succeeds
    Bluehook1,
    /// with an HTTP, an exec (one event in fifty) and a file handler
    Bluehook3,
    /// as in the vendor's article: nothing stored
    Express,
    /// Express, BullMQ and Redis with appendfsync always
    BullAlways,
    /// the same with appendfsync everysec
    BullEverysec,
    /// qhook from crates.io on SQLite, with a handler that matches
    Qhook,
    /// Debian's webhook, which runs a command and stores nothing
    Webhook,
}

impl Contestant {
    pub const ALL: [Contestant; 10] = [
        Contestant::CeilingA,
        Contestant::CeilingB,
        Contestant::Bluehook,
        Contestant::Bluehook1,
        Contestant::Bluehook3,
        Contestant::Express,
        Contestant::BullAlways,
        Contestant::BullEverysec,
        Contestant::Qhook,
        Contestant::Webhook,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Contestant::CeilingA => "ceiling A: hyper + HMAC",
            Contestant::CeilingB => "ceiling B: + append, fdatasync",
            Contestant::Bluehook => "bluehook",
            Contestant::Bluehook1 => "bluehook, 1 handler",
            Contestant::Bluehook3 => "bluehook, 3 handlers",
            Contestant::Express => "Express (in memory)",
            Contestant::BullAlways => "Express + BullMQ + Redis, always",
            Contestant::BullEverysec => "Express + BullMQ + Redis, everysec",
            Contestant::Qhook => "qhook (SQLite)",
            Contestant::Webhook => "webhook (Debian)",
        }
    }
}

pub const HTTP: &str = r#"
[[handler]]
name = "http"
concurrency = 16
http = { url = "{url}" }
"#;

const EXEC_AND_FILE: &str = r#"
[[handler]]
name = "exec"
events = ["message.failed"]
exec = { command = ["/bin/sh", "-c", "cat > /dev/null"] }
[[handler]]
name = "file"
file = { path = "{dir}/events.jsonl" }
"#;

/// How a contestant's processes are started.
#[derive(Debug, Clone, Default)]
pub struct How {
    /// What comes before the program, its arguments included: a tracer.
    pub through: Vec<String>,
    /// Where its files lie, instead of a temporary folder.
    pub folder: Option<PathBuf>,
}

pub struct Running {
    pub address: SocketAddr,
    pub dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    /// The contestant's own.
    children: Vec<Child>,
    /// What its handlers post to: no part of it.
    receiver: Option<Receiver>,
}

/// Ends with its owner.
pub struct Receiver {
    child: Child,
    pub url: String,
}

impl Receiver {
    pub fn start() -> Receiver {
        let address = free_address();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["receiver", &address.port().to_string()]);
        let child = command.spawn().unwrap();
        await_port(address);
        Receiver { child, url: format!("http://{address}/") }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Running {
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// Asks them to end, and waits.
    pub fn stop(&mut self) {
        for child in &mut self.children {
            _ = Command::new("kill").arg(child.id().to_string()).status();
        }
        for child in &mut self.children {
            child.wait().unwrap();
        }
        self.children.clear();
    }

    /// What its handlers have posted.
    pub fn received(&self) -> usize {
        use std::io::{Read as _, Write as _};
        let url = &self.receiver.as_ref().unwrap().url;
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(address).unwrap();
        let request = "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.rsplit("\r\n").next().unwrap().parse().unwrap()
    }

    pub fn kill(&mut self) {
        for child in &mut self.children {
            _ = child.kill();
            _ = child.wait();
        }
        self.children.clear();
    }

    /// `bluehook serve` once more on the same folder; tells how long until it acknowledged an event.
    pub fn start_bluehook(&mut self, how: &How) -> Duration {
        let begun = Instant::now();
        let child = bluehook_on(&self.dir, how);
        self.children.push(child);
        let event = requests(1, 700).remove(0);
        while !answers_200(self.address, &event) {
            assert!(begun.elapsed() < Duration::from_secs(60), "bluehook does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        begun.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn answers_200(address: SocketAddr, request: &[u8]) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut start = [0; 12];
    stream.write_all(request).is_ok()
        && stream.read_exact(&mut start).is_ok()
        && start.ends_with(b"200")
}

/// A bluehook with handlers of one's own; `{url}` and `{dir}` in them are filled in.
pub fn bluehook(handlers: &str, retention: &str, how: &How) -> Running {
    let address = free_address();
    let (dir, temporary) = folder(how);
    let receiver = handlers.contains("{url}").then(Receiver::start);
    let url = receiver.as_ref().map_or("", |r| r.url.as_str());
    let handlers = handlers.replace("{url}", url).replace("{dir}", dir.to_str().unwrap());
    let config = format!(
        "data_dir = \"{dir}/data\"\n[intake]\nlisten = \"{address}\"\n[admin]\nlisten = \"\"\n{retention}\n{handlers}",
        dir = dir.display(),
    );
    write(dir.join("bluehook.toml"), config).unwrap();
    let mut running = Running { address, dir, _temporary: temporary, children: vec![], receiver };
    running.start_bluehook(how);
    running
}

fn bluehook_on(dir: &Path, how: &How) -> Child {
    let mut command = through(how, env!("CARGO_BIN_EXE_bluehook").as_ref());
    command.arg("--config").arg(dir.join("bluehook.toml")).arg("serve");
    command.env("WEBHOOK_SECRET", SECRET).stdin(Stdio::null());
    let log = File::options().create(true).append(true).open(dir.join("out.log")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn folder(how: &How) -> (PathBuf, Option<tempfile::TempDir>) {
    match &how.folder {
        Some(folder) => (folder.clone(), None),
        None => {
            let temporary = tempfile::tempdir_in(peers::target()).unwrap();
            (temporary.path().to_owned(), Some(temporary))
        }
    }
}

fn through(how: &How, program: &Path) -> Command {
    let program = program.to_str().unwrap().to_owned();
    let mut words = how.through.iter().cloned().chain([program]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
}

pub fn start(contestant: Contestant, how: &How) -> Running {
    match contestant {
        Contestant::Bluehook => return bluehook("", "", how),
        Contestant::Bluehook1 => return bluehook(HTTP, "", how),
        Contestant::Bluehook3 => return bluehook(&format!("{HTTP}{EXEC_AND_FILE}"), "", how),
        _ => {}
    }
    let address = free_address();
    let port = address.port().to_string();
    let (dir, temporary) = folder(how);
    let log = File::create(dir.join("out.log")).unwrap();
    let spawn = |mut command: Command| {
        command.current_dir(&dir).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap());
        command.spawn().unwrap()
    };
    let mut receiver = None;
    let mut children = vec![];
    let own = std::env::current_exe().unwrap();
    match contestant {
        Contestant::CeilingA => {
            let mut command = through(how, &own);
            command.args(["ceiling", &port]);
            children.push(spawn(command));
        }
        Contestant::CeilingB => {
            let mut command = through(how, &own);
            command.args(["ceiling", &port, "--file"]).arg(dir.join("log"));
            children.push(spawn(command));
        }
        Contestant::Express => children.push(spawn(node(how, "express.mjs", &port))),
        Contestant::BullAlways | Contestant::BullEverysec => {
            let redis = free_address();
            let when = if contestant == Contestant::BullAlways { "always" } else { "everysec" };
            let mut command = through(how, "redis-server".as_ref());
            let redis_port = redis.port().to_string();
            command.args(["--port", &redis_port, "--bind", "127.0.0.1", "--save", ""]);
            command.args(["--appendonly", "yes", "--appendfsync", when]);
            children.push(spawn(command));
            await_port(redis);
            let mut command = node(how, "bullmq.mjs", &port);
            command.env("REDIS_PORT", redis_port);
            children.push(spawn(command));
        }
        Contestant::Qhook => {
            let sink = Receiver::start();
            let config = format!(
                "database:\n  driver: sqlite\nserver:\n  port: {port}\n  max_inbound: 1000\n  allow_private_urls: true\nsources:\n  bluereplies:\n    type: webhook\n    verify: hmac\n    secret: {SECRET}\nhandlers:\n  crm:\n    source: bluereplies\n    events: [\"*\"]\n    url: {}\n",
                sink.url
            );
            write(dir.join("qhook.yaml"), config).unwrap();
            let mut command = through(how, &peers::qhook());
            command.args(["start", "--config", "qhook.yaml"]).env("RUST_LOG", "error");
            children.push(spawn(command));
            receiver = Some(sink);
        }
        Contestant::Webhook => {
            let rule = serde_json::json!([{
                "id": "bluereplies",
                "execute-command": "/bin/true",
                "trigger-rule": {"match": {
                    "type": "payload-hmac-sha256",
                    "secret": SECRET,
                    "parameter": {"source": "header", "name": "X-Bluereplies-Signature"},
                }},
                "trigger-rule-mismatch-http-response-code": 401,
            }]);
            write(dir.join("hooks.json"), rule.to_string()).unwrap();
            let mut command = through(how, "webhook".as_ref());
            command.args(["-hooks", "hooks.json", "-ip", "127.0.0.1", "-port", &port]);
            command.args(["-urlprefix", "webhooks"]);
            children.push(spawn(command));
        }
        Contestant::Bluehook | Contestant::Bluehook1 | Contestant::Bluehook3 => unreachable!(),
    }
    await_port(address);
    Running { address, dir, _temporary: temporary, children, receiver }
}

fn node(how: &How, script: &str, port: &str) -> Command {
    let mut command = through(how, "node".as_ref());
    command.arg(peers::node_modules().with_file_name(script));
    command.env("PORT", port).env("WEBHOOK_SECRET", SECRET).env("NODE_ENV", "production");
    command
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn await_port(address: SocketAddr) {
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
}
