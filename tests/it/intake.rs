//! Every row of the table in interface.md §2, and what odd clients do.

use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

use crate::support::{Answer, PATH, SECRET, Server, connect, hmac_hex as sign, read_answer};

const SIGNATURE: &str = "x-bluereplies-signature";

fn config(more_intake: &str) -> String {
    format!(
        "[intake]\nlisten = [\"127.0.0.1:0\"]\nbody_max = \"64 KiB\"\nread_timeout = \"1s\"\n{more_intake}\n[[source]]\nname = \"bluereplies\"\npath = \"{PATH}\"\nsecrets = [{{ file = \"{{dir}}/secret\" }}]\nevents = [\"message.*\", \"malformed\", \"unknown\"]\n"
    )
}

fn exchange(server: &Server, bytes: &[u8]) -> Answer {
    server.client().raw(bytes, bytes.starts_with(b"HEAD ")).unwrap()
}

fn post(server: &Server, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    server.client().request("POST", PATH, headers, body).unwrap()
}

fn post_signed(server: &Server, body: &[u8]) -> Answer {
    post(server, &[(SIGNATURE, &sign(SECRET, body))], body)
}

fn raw(head: &str, body: &[u8]) -> Vec<u8> {
    [head.replace('\n', "\r\n").as_bytes(), b"\r\n\r\n", body].concat()
}

#[test]
fn every_row_of_the_table_has_its_answer() {
    let server = Server::start(&config(""));
    let event = br#"{"eventId":"row-1","type":"message.read","data":{"messageId":"m"}}"#;
    let good = sign(SECRET, event);
    let prefixed = format!("sha256={}", good.to_uppercase());
    let wrong = sign("other", event);
    let big = vec![b'x'; 65 << 10];
    for (name, headers, body, status, text) in [
        ("new", &[(SIGNATURE, good.as_str())][..], &event[..], 200, "OK"),
        ("duplicate", &[(SIGNATURE, &good)], event, 200, "OK"),
        ("prefix and case", &[("X-BlueReplies-Signature", &prefixed)], event, 200, "OK"),
        ("wrong", &[(SIGNATURE, &wrong)], event, 401, "Invalid signature"),
        ("no hex", &[(SIGNATURE, "zz")], event, 401, "Invalid signature"),
        ("missing", &[], event, 401, "Invalid signature"),
        ("repeated", &[(SIGNATURE, &good), (SIGNATURE, &good)], event, 401, "Invalid signature"),
        ("empty ping", &[], b"", 200, "OK"),
        ("ping", &[], br#"{"type":"webhook.verification"}"#, 200, "OK"),
        (
            "ping about a message",
            &[],
            br#"{"type":"ping","data":{"messageId":"m"}}"#,
            401,
            "Invalid signature",
        ),
        ("too large", &[(SIGNATURE, &good)], &big, 413, "Payload Too Large"),
        ("encoded", &[("content-encoding", "gzip")], event, 415, "Unsupported Media Type"),
        ("identity", &[(SIGNATURE, &good), ("content-encoding", "identity")], event, 200, "OK"),
    ] {
        let response = post(&server, headers, body);
        assert_eq!((response.status, response.body.as_str()), (status, text), "{name}");
        assert_eq!(response.header("content-type"), Some("text/plain"), "{name}");
    }
    for body in [
        &br#"{"type":"message.read"}"#[..],
        b"not json",
        b"[1]",
        b"\xff\xfe",
        br#"{"type":"other.kind"}"#,
    ] {
        assert_eq!(post_signed(&server, body).status, 200, "{body:?}");
    }
}

#[test]
fn a_signature_over_the_canonical_form_is_accepted() {
    let server = Server::start(&config(""));
    let canonical = br#"{"eventId":"c-1","type":"message.read"}"#;
    let pretty = b"{\n  \"eventId\": \"c-1\",\n  \"type\": \"message.read\"\n}";
    let response = post(&server, &[(SIGNATURE, &sign(SECRET, canonical))], pretty);
    assert_eq!(response.status, 200);
}

#[test]
fn methods_and_paths_have_their_answers() {
    let server = Server::start(&config(""));
    for (head, status) in [
        (format!("GET {PATH} HTTP/1.1\nhost: it"), 200),
        (format!("GET {PATH}?x=1 HTTP/1.1\nhost: it"), 200),
        (format!("HEAD {PATH} HTTP/1.1\nhost: it"), 200),
        (format!("GET {PATH} HTTP/1.0"), 200),
        (format!("PUT {PATH} HTTP/1.1\nhost: it"), 405),
        (format!("DELETE {PATH} HTTP/1.1\nhost: it"), 405),
        ("GET / HTTP/1.1\nhost: it".to_owned(), 404),
        (format!("POST {PATH}/ HTTP/1.1\nhost: it\ncontent-length: 0"), 404),
    ] {
        let response = exchange(&server, &raw(&head, b""));
        assert_eq!(response.status, status, "{head}");
        let allow = (status == 405).then_some("GET, HEAD, POST");
        assert_eq!(response.header("allow"), allow, "{head}");
    }
}

#[test]
fn without_a_secret_only_pings_get_200() {
    let server = Server::start(&format!("[[source]]\nname = \"bluereplies\"\npath = \"{PATH}\"\n"));
    assert_eq!(post(&server, &[], b"").status, 200);
    let response = post_signed(&server, br#"{"type":"message.read"}"#);
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some());
}

#[test]
fn a_slow_body_gets_408_and_the_connection_closes() {
    let server = Server::start(&config(""));
    let mut stream = connect(server.addr);
    let head = format!("POST {PATH} HTTP/1.1\nhost: it\ncontent-length: 10");
    stream.write_all(&raw(&head, b"abc")).unwrap();
    let mut reader = BufReader::new(stream);
    let response = read_answer(&mut reader, false).unwrap();
    assert_eq!((response.status, response.header("connection")), (408, Some("close")));
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_chunked_body_over_the_limit_gets_413() {
    let server = Server::start(&config(""));
    let head = format!("POST {PATH} HTTP/1.1\nhost: it\ntransfer-encoding: chunked");
    let chunk = [b"8000\r\n".as_slice(), &[b'x'; 0x8000], b"\r\n"].concat();
    let response = exchange(&server, &raw(&head, &chunk.repeat(3)));
    assert_eq!((response.status, response.header("connection")), (413, Some("close")));
}

#[test]
fn a_large_content_length_is_refused_before_the_body_is_sent() {
    let server = Server::start(&config(""));
    let head =
        format!("POST {PATH} HTTP/1.1\nhost: it\ncontent-length: 99999999\nexpect: 100-continue");
    assert_eq!(exchange(&server, &raw(&head, b"")).status, 413);
}

#[test]
fn expect_continue_is_answered_before_the_body() {
    let server = Server::start(&config(""));
    let body = br#"{"eventId":"x-1","type":"message.read"}"#;
    let head = format!(
        "POST {PATH} HTTP/1.1\nhost: it\nexpect: 100-continue\ncontent-length: {}\n{SIGNATURE}: {}",
        body.len(),
        sign(SECRET, body)
    );
    let mut stream = connect(server.addr);
    stream.write_all(&raw(&head, b"")).unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(read_answer(&mut reader, false).unwrap().status, 100);
    reader.get_mut().write_all(body).unwrap();
    assert_eq!(read_answer(&mut reader, false).unwrap().status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(&config(""));
    let ping = raw(&format!("GET {PATH} HTTP/1.1\nhost: it"), b"");
    let lost = raw("GET /lost HTTP/1.1\nhost: it", b"");
    let mut stream = connect(server.addr);
    stream.write_all(&[&ping[..], &lost, &ping].concat()).unwrap();
    let mut reader = BufReader::new(stream);
    let statuses: Vec<u16> =
        (0..3).map(|_| read_answer(&mut reader, false).unwrap().status).collect();
    assert_eq!(statuses, [200, 404, 200]);
}

#[test]
fn a_connection_over_the_limit_is_told_so_at_once() {
    let server = Server::start(&config("connections_max = 2"));
    // An answered request proves that the connection holds its place.
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = connect(server.addr);
            stream.write_all(&raw(&format!("GET {PATH} HTTP/1.1\nhost: it"), b"")).unwrap();
            let mut reader = BufReader::new(stream);
            assert_eq!(read_answer(&mut reader, false).unwrap().status, 200);
            reader
        })
        .collect();
    let asked = Instant::now();
    let response = post(&server, &[], b"");
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some());
    assert!(asked.elapsed() < Duration::from_secs(1));
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(5);
    while post(&server, &[], b"").status != 200 {
        assert!(Instant::now() < deadline, "no place came free");
    }
}
