//! The real binary as a child process, a plain HTTP client and receiver, and signed events.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use sha2::Sha256;

pub const SECRET: &str = "whs-test-secret";
pub const PATH: &str = "/webhooks/bluereplies";

/// How long a test waits for something that should happen soon. Generous: machines are noisy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `done` gives a value; panics with `what` when patience runs out.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn full_run() -> bool {
    std::env::var("BLUEHOOK_FULL").is_ok_and(|v| !v.is_empty())
}

/// A seeded generator; the seed is printed, so a failed run can be repeated with BLUEHOOK_SEED.
pub fn rng(name: &str) -> fastrand::Rng {
    let seed = std::env::var("BLUEHOOK_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("{name}: BLUEHOOK_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

pub fn hmac_hex(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A realistic event of about 300 bytes.
pub fn event_body(id: &str, kind: &str, n: u64) -> String {
    format!(
        r#"{{"eventId":"{id}","type":"{kind}","createdAt":"2026-11-25T09:00:00.000Z","data":{{"messageId":"msg_{n}","from":"+15550001111","to":"+1555{:07}","body":"Hello, this is message {n}. See you at half past nine."}}}}"#,
        n % 1000
    )
}

pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// One keep-alive connection.
pub struct Client {
    addr: SocketAddr,
    host: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    pub fn new(addr: SocketAddr) -> Client {
        Client { addr, host: "hooks.example".to_owned(), stream: None }
    }

    /// As a browser on this machine would call it.
    pub fn on_loopback(addr: SocketAddr) -> Client {
        Client { host: addr.to_string(), ..Client::new(addr) }
    }

    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.host);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers.iter().any(|(n, _)| {
            n.eq_ignore_ascii_case("transfer-encoding") || n.eq_ignore_ascii_case("content-length")
        }) {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.raw(&bytes, method == "HEAD")
    }

    /// Sends bytes as they are and reads one answer.
    pub fn raw(&mut self, bytes: &[u8], no_body: bool) -> std::io::Result<Answer> {
        let result = self.try_raw(bytes, no_body);
        if result.is_err() {
            self.stream = None;
        }
        result
    }

    fn try_raw(&mut self, bytes: &[u8], no_body: bool) -> std::io::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            empty => {
                let stream = TcpStream::connect(self.addr)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                empty.insert(BufReader::new(stream))
            }
        };
        // The answer to an oversized request may arrive before all of it is written.
        let sent = stream.get_mut().write_all(bytes);
        let answer = read_answer(stream, no_body);
        if answer.is_err() {
            sent?;
        }
        let answer = answer?;
        if answer.headers.get("connection").is_some_and(|c| c == "close") {
            self.stream = None;
        }
        Ok(answer)
    }

    /// Posts a body signed with [`SECRET`].
    pub fn post_signed(&mut self, body: &str) -> std::io::Result<Answer> {
        let signature = hmac_hex(SECRET, body.as_bytes());
        let headers =
            [("content-type", "application/json"), ("x-bluereplies-signature", &signature)];
        self.request("POST", PATH, &headers, body.as_bytes())
    }
}

/// One answer off a connection; `no_body`: to HEAD, whatever `content-length` says.
pub fn read_answer(stream: &mut BufReader<TcpStream>, no_body: bool) -> std::io::Result<Answer> {
    let (first, headers) = read_head(stream)?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = if no_body { Vec::new() } else { read_body(stream, &headers)? };
    Ok(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

fn read_head(stream: &mut impl BufRead) -> std::io::Result<(String, HashMap<String, String>)> {
    let mut first = String::new();
    if stream.read_line(&mut first)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            None => return Ok((first, headers)),
        }
    }
}

fn read_body(
    stream: &mut impl BufRead,
    headers: &HashMap<String, String>,
) -> std::io::Result<Vec<u8>> {
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// A request as a [`Receiver`] saw it.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

type Answering = dyn Fn(Received) -> (u16, &'static str) + Send + Sync;

/// An HTTP server on loopback that notes every request and answers as told: (status, extra headers).
pub struct Receiver {
    pub addr: SocketAddr,
    requests: Arc<Mutex<Vec<Received>>>,
    count: Arc<AtomicUsize>,
}

impl Receiver {
    pub fn start(
        answer: impl Fn(&Received) -> (u16, &'static str) + Send + Sync + 'static,
    ) -> Receiver {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&requests);
        let counting = Receiver::start_with(move |request| {
            let answered = answer(&request);
            noted.lock().unwrap().push(request);
            answered
        });
        Receiver { requests, ..counting }
    }

    /// Answers 200 and keeps nothing but the count.
    pub fn start_counting() -> Receiver {
        Receiver::start_with(|_| (200, ""))
    }

    fn start_with(
        answer: impl Fn(Received) -> (u16, &'static str) + Send + Sync + 'static,
    ) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let (counter, answer): (_, Arc<Answering>) = (Arc::clone(&count), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counter, answer) = (Arc::clone(&counter), Arc::clone(&answer));
                std::thread::spawn(move || serve_connection(stream, &counter, &*answer));
            }
        });
        Receiver { addr, requests: Arc::default(), count }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn requests(&self) -> Vec<Received> {
        self.requests.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

fn serve_connection(stream: TcpStream, count: &AtomicUsize, answer: &Answering) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Ok((first, headers)) = read_head(&mut reader) {
        let Ok(body) = read_body(&mut reader, &headers) else { return };
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (status, extra) = answer(Received { method, path, headers, body });
        count.fetch_add(1, Ordering::Relaxed);
        let text = format!("HTTP/1.1 {status} Status\r\n{extra}content-length: 2\r\n\r\nok");
        if writer.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

/// `bluehook serve` on a data directory and configuration of its own.
pub struct Server {
    pub dir: tempfile::TempDir,
    pub addr: SocketAddr,
    child: Option<Child>,
    lines: Arc<Mutex<Vec<String>>>,
    /// Runs by a clock that the test moves.
    virtual_clock: bool,
    data: PathBuf,
    /// What the process is started through, its arguments included: a tracer, a limit.
    pub through: Vec<String>,
    pub program: Program,
}

/// A build of bluehook.
#[derive(Clone)]
pub struct Program {
    path: PathBuf,
    defect: Option<&'static str>,
}

impl Program {
    /// The one that the tests are about.
    pub fn plain() -> Program {
        Program { path: PathBuf::from(env!("CARGO_BIN_EXE_bluehook")), defect: None }
    }

    pub fn at(path: PathBuf) -> Program {
        Program { path, defect: None }
    }

    /// One with a deliberate defect (`src/defect.rs`), for the tests of the tests.
    pub fn with_defect(defect: &'static str) -> Program {
        let path = Program::plain().path.with_file_name("bluehook-defects");
        assert!(path.exists(), "{} is missing; tests/run builds it", path.display());
        Program { path, defect: Some(defect) }
    }

    pub fn command(&self, through: &[String]) -> Command {
        let program = self.path.clone().into_os_string();
        let mut words = through.iter().map(Into::into).chain([program]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if let Some(defect) = self.defect {
            command.env("WITH_DEFECT", defect);
        }
        command
    }
}

pub fn binary() -> Command {
    Program::plain().command(&[])
}

impl Server {
    /// `extra` is TOML after the basic settings: handlers, limits. `{dir}` stands for the test's folder.
    pub fn start(extra: &str) -> Server {
        Server::start_by(extra, false)
    }

    /// As `start`, with a clock that the test moves.
    pub fn start_with_clock(extra: &str) -> Server {
        Server::start_by(extra, true)
    }

    /// A configuration whose data directory does not exist yet; `spawn` starts it.
    pub fn stopped(extra: &str) -> Server {
        Server::prepared(extra, false)
    }

    /// As `stopped`, with a clock that the test moves.
    pub fn stopped_with_clock(extra: &str) -> Server {
        Server::prepared(extra, true)
    }

    /// As `stopped`, with the data directory elsewhere, on another disk say.
    pub fn stopped_at(data: &Path, extra: &str) -> Server {
        let mut server = Server::prepared("", false);
        server.data = data.to_owned();
        server.write_config(extra);
        server
    }

    fn start_by(extra: &str, virtual_clock: bool) -> Server {
        let mut server = Server::prepared(extra, virtual_clock);
        server.spawn();
        server
    }

    fn prepared(extra: &str, virtual_clock: bool) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let server = Server {
            data: dir.path().join("data"),
            through: Vec::new(),
            program: Program::plain(),
            dir,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            child: None,
            lines: Arc::default(),
            virtual_clock,
        };
        server.write_config(extra);
        std::fs::write(server.clock_file(), "0 0 0").unwrap();
        server
    }

    pub fn write_config(&self, extra: &str) {
        let dir = self.dir.path().display();
        let extra = extra.replace("{dir}", &dir.to_string());
        // Top-level keys of `extra` come first, then the tables.
        let text = format!(
            "data_dir = \"{}\"\n{extra}\n[admin]\nsocket = \"{dir}/admin.sock\"\nlisten = \"127.0.0.1:0\"\n",
            self.data.display()
        );
        let intake =
            if text.contains("[intake]") { "" } else { "[intake]\nlisten = [\"127.0.0.1:0\"]\n" };
        let source = if text.contains("[[source]]") {
            String::new()
        } else {
            format!(
                "[[source]]\nname = \"bluereplies\"\npath = \"{PATH}\"\nsecrets = [{{ file = \"{dir}/secret\" }}]\n"
            )
        };
        let secret = self.dir.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&secret, private).unwrap();
        std::fs::write(self.config(), format!("{text}{intake}{source}")).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("bluehook.toml")
    }

    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    fn clock_file(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    /// Both clocks of the server stand `seconds` ahead of the machine's.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.set_clocks(seconds, seconds, 0);
    }

    /// The wall clock and the time since boot stand so many seconds ahead of the machine's; `boot` counts reboots.
    pub fn set_clocks(&self, wall: i64, since_boot: i64, boot: u32) {
        let next = self.dir.path().join("clock.next");
        let text = format!("{} {} {boot}", wall * 1000, since_boot * 1000);
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, self.clock_file()).unwrap();
    }

    /// Starts the process (again); returns once it accepts. Gives the time that took.
    pub fn spawn(&mut self) -> Duration {
        let begun = Instant::now();
        let started = self.try_spawn();
        assert!(started.is_ok(), "serve ended: {started:?}\n{}", self.log());
        begun.elapsed()
    }

    /// As `spawn`; gives how the process ended where it did not come to accept.
    pub fn try_spawn(&mut self) -> Result<(), ExitStatus> {
        self.lines.lock().unwrap().clear();
        let mut command = self.program.command(&self.through);
        command.args(["serve", "--config"]).arg(self.config());
        if self.virtual_clock {
            command.arg("--virtual-clock").arg(self.clock_file());
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::clone(&self.lines);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        self.child = Some(child);
        let address = eventually("the server listens or ends", || {
            if let Some(status) = self.ended() {
                return Some(Err(status));
            }
            self.log().lines().find_map(|l| {
                let rest = l.split("listening on http").nth(1)?.split("://").nth(1)?;
                rest.split('/').next()?.parse().ok().map(Ok)
            })
        });
        if address.is_err() {
            // Its last words come after its end.
            reader.join().unwrap();
        }
        self.addr = address?;
        Ok(())
    }

    /// How the process ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn client(&self) -> Client {
        Client::new(self.addr)
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        self.wait_for_the_end();
    }

    /// It was told to stop and ends without an error.
    pub fn wait_for_the_end(&mut self) {
        let mut child = self.child.take().unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "stopped with {status}\n{}", self.log());
                return;
            }
            assert!(Instant::now() < end, "does not stop\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a verb of the CLI against this server.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        binary().args(arguments).arg("--config").arg(self.config()).output().unwrap()
    }

    /// Standard output of a verb that must succeed.
    pub fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {} {error}\n{}",
            output.status,
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// One JSON value a line.
    pub fn cli_json(&self, arguments: &[&str]) -> Vec<serde_json::Value> {
        let text = self.cli_ok(&[arguments, &["--json"]].concat());
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

impl Server {
    /// What `status` says, also of a server that is degraded: after its start it is for a moment.
    pub fn status(&self) -> serde_json::Value {
        let output = self.cli(&["status", "--json"]);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}\n{}", self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The lines of a file that a handler writes; none while it does not exist.
pub fn lines_of(path: &Path) -> Vec<String> {
    let mut text = String::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        file.read_to_string(&mut text).unwrap();
    }
    text.lines().map(str::to_owned).collect()
}

/// A folder with these packages in it; npm is asked once.
pub fn npm_folder(name: &str, packages: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let complete = folder.join("complete");
    if !complete.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("package.json"), r#"{"private":true}"#).unwrap();
        let installed = Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--no-save"])
            .args(packages)
            .current_dir(&folder)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&installed.stderr);
        assert!(installed.status.success(), "npm install {packages:?}: {error}");
        std::fs::write(complete, "").unwrap();
    }
    folder
}
