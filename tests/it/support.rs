//! Starts the real binary and speaks to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hmac::{Hmac, Mac};

pub const SECRET: &str = "it-secret";
pub const PATH: &str = "/webhooks/bluereplies";

/// A running `bluehook serve` in a directory of its own; killed when dropped.
pub struct Server {
    pub addr: SocketAddr,
    pub data_dir: PathBuf,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Server {
    /// `config_toml` may set anything but `data_dir` and `intake.listen`, which come from the
    /// environment. `[{ env = "IT_SECRET" }]` is [`SECRET`].
    pub fn start(config_toml: &str) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let config = dir.path().join("bluehook.toml");
        std::fs::write(&config, config_toml).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_bluehook"))
            .env_clear()
            .env("IT_SECRET", SECRET)
            .env("BLUEHOOK_DATA_DIR", &data_dir)
            .env("BLUEHOOK_INTAKE__LISTEN", r#"["127.0.0.1:0"]"#)
            .env("BLUEHOOK_ADMIN__LISTEN", "")
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (found, address) = mpsc::channel();
        std::thread::spawn(move || {
            // Read to the end, or the server would block on a full pipe.
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("serve: {line}");
                if let Some((_, rest)) = line.split_once("listening on http://") {
                    let address = rest.split('/').next().unwrap_or("").parse::<SocketAddr>();
                    let _ = address.map(|a| found.send(a));
                }
            }
        });
        let Ok(addr) = address.recv_timeout(Duration::from_secs(20)) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not say where it listens");
        };
        Server { addr, data_dir, child, _dir: dir }
    }

    pub fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> Response {
        post(self.addr, PATH, headers, body)
    }

    pub fn post_signed(&self, body: &[u8]) -> Response {
        self.post(&[("x-bluereplies-signature", &sign(SECRET, body))], body)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lower-case hex of HMAC-SHA256, as the vendor signs.
pub fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

pub fn post(addr: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut head =
        format!("POST {path} HTTP/1.1\r\nhost: it\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    exchange(addr, &[head.as_bytes(), body].concat())
}

/// Sends `bytes` as they are and reads one response.
pub fn exchange(addr: SocketAddr, bytes: &[u8]) -> Response {
    let mut stream = connect(addr);
    stream.write_all(bytes).unwrap();
    read_response(&mut BufReader::new(stream), bytes.starts_with(b"HEAD "))
}

/// One response off a connection; `head`: it has no body, whatever `content-length` says.
pub fn read_response(stream: &mut impl BufRead, head: bool) -> Response {
    let mut line = String::new();
    let mut next = || {
        line.clear();
        stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let first = next();
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status line: {first:?}"));
    let mut headers = Vec::new();
    loop {
        let line = next();
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut response = Response { status, headers, body: Vec::new() };
    let len = response.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    if !head && status != 100 {
        response.body = vec![0; len];
        stream.read_exact(&mut response.body).unwrap();
    }
    response
}
