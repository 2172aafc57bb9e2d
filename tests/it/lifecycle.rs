//! Listening, stopping, and a store that is full.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use crate::support::{
    Client, PATH, Receiver, SECRET, Server, binary, connect, event_body, eventually, hmac_hex,
    read_answer,
};

fn signed_request(body: &str) -> String {
    let signature = hmac_hex(SECRET, body.as_bytes());
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: it\r\nx-bluereplies-signature: {signature}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn exported(server: &Server) -> usize {
    server.cli_ok(&["export"]).lines().count()
}

#[test]
fn a_request_that_is_under_way_when_the_stop_comes_is_still_answered() {
    let mut server = Server::start("");
    let request = signed_request(&event_body("evt_1", "message.read", 1));
    let (begin, rest) = request.split_at(request.len() - 5);
    let mut stream = connect(server.addr);
    stream.write_all(begin.as_bytes()).unwrap();
    let mut idle = BufReader::new(connect(server.addr));
    let ping = format!("GET {PATH} HTTP/1.1\r\nhost: it\r\n\r\n");
    idle.get_mut().write_all(ping.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut idle, false).unwrap().status, 200);
    server.signal("-TERM");
    eventually("it stops accepting", || server.log().contains("stopping").then_some(()));
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "an idle connection is closed");
    stream.write_all(rest.as_bytes()).unwrap();
    let answer = read_answer(&mut BufReader::new(stream), false).unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "OK"));
    server.wait_for_the_end();
    assert_eq!(exported(&server), 1);
}

#[test]
fn while_handlers_are_given_time_to_end_events_are_still_taken_in() {
    let mut server = Server::stopped(
        "[[handler]]\nname = \"slow\"\nevents = [\"message.read\"]\nexec = { command = [\"sh\", \"-c\", \"cat {dir}/pipe\"] }\n",
    );
    let pipe = server.dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    server.spawn();
    let mut client = server.client();
    assert_eq!(client.post_signed(&event_body("evt_1", "message.read", 1)).unwrap().status, 200);
    // Opened once the handler has: it runs now.
    let mut pipe = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    server.signal("-TERM");
    eventually("it stops", || server.log().contains("stopping").then_some(()));
    let answer = client.post_signed(&event_body("evt_2", "message.sent", 2)).unwrap();
    assert_eq!(answer.status, 200);
    pipe.write_all(b"done").unwrap();
    drop(pipe);
    server.wait_for_the_end();
    assert_eq!(exported(&server), 2);
    let delivered = server.cli_json(&["events", "list", "--status", "delivered"]);
    assert_eq!(delivered.len(), 1, "{delivered:?}");
}

#[test]
fn a_unix_socket_is_served_like_a_port() {
    let server = Server::start("[intake]\nlisten = [\"127.0.0.1:0\", \"unix:{dir}/in.sock\"]\n");
    let mut stream = UnixStream::connect(server.dir.path().join("in.sock")).unwrap();
    let request = signed_request(&event_body("evt_1", "message.read", 1));
    stream
        .write_all(request.replacen("host: it", "host: it\r\nconnection: close", 1).as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(exported(&server), 1);
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As systemd does it: the socket is descriptor 3, and it stays open when the process ends.
#[test]
fn a_passed_socket_is_served_instead_of_the_configured_ones() {
    let mut server = Server::start("");
    server.stop();
    let script = r#"
        use Socket; use POSIX (); $^F = 9;
        socket(my $s, PF_INET, SOCK_STREAM, 0) or die;
        bind($s, sockaddr_in(0, INADDR_LOOPBACK)) or die;
        listen($s, 16) or die;
        my ($port) = sockaddr_in(getsockname($s));
        $| = 1; print "$port\n";
        POSIX::dup2(fileno($s), 3);
        $ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDS} = 1;
        exec @ARGV or die;
    "#;
    let mut child = Command::new("perl")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .args(["-e", script])
        .arg(binary().get_program())
        .args(["serve", "--config"])
        .arg(server.config())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(server.dir.path().join("log")).unwrap())
        .spawn()
        .map(Killed)
        .unwrap();
    let mut port = [0; 8];
    let n = child.0.stdout.take().unwrap().read(&mut port).unwrap();
    let port: u16 = std::str::from_utf8(&port[..n]).unwrap().trim().parse().unwrap();
    // The socket listens already: what comes early waits in the kernel and is not refused.
    let mut client = Client::new(([127, 0, 0, 1], port).into());
    let answer = client.post_signed(&event_body("evt_1", "message.read", 1));
    let log = std::fs::read_to_string(server.dir.path().join("log")).unwrap();
    assert_eq!(answer.map_err(|e| format!("{e}: {log}")).unwrap().status, 200);
    assert_eq!(exported(&server), 1);
}

#[test]
fn a_store_full_of_unsettled_events_refuses_until_there_is_room_and_loses_nothing() {
    const EVENTS: usize = 40;
    let receiver = Receiver::start(|_| (500, ""));
    let config = |disk_max: &str| {
        let url = receiver.url("/down");
        format!(
            "[retention]\ndisk_max = \"{disk_max}\"\n[[handler]]\nname = \"down\"\nevents = [\"*\"]\nhttp = {{ url = \"{url}\" }}\n"
        )
    };
    let mut server = Server::start(&config("32 MiB"));
    let large = |n: usize| {
        event_body(&format!("evt_{n}"), "message.read", 1).replacen(
            '{',
            &format!("{{\"pad\":\"{}\",", "x".repeat(900_000)),
            1,
        )
    };
    let mut client = server.client();
    let taken = (0..EVENTS).take_while(|n| client.post_signed(&large(*n)).unwrap().status == 200);
    let taken = taken.count();
    assert!((30..EVENTS).contains(&taken), "{taken} events of 0.9 MB went into 32 MiB");
    eventually("it is full", || (server.cli(&["status"]).status.code() == Some(1)).then_some(()));
    let answer = client.post_signed(&large(EVENTS)).unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    let status = String::from_utf8(server.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("disk_max is full of events that are not settled"), "{status}");
    // Blue Replies sends a known event again when an answer got lost: that needs no room.
    assert_eq!(client.post_signed(&large(0)).unwrap().status, 200);

    server.stop();
    server.write_config(&config("128 MiB"));
    server.spawn();
    assert_eq!(server.client().post_signed(&large(EVENTS)).unwrap().status, 200);
    assert_eq!(exported(&server), taken + 1);
}
