//! Requests that a proxy before us could read otherwise than we do.

use std::io::{Read, Write};

use crate::support::{PATH, SECRET, Server, connect, event_body, hmac_hex};

fn post(id: &str, more: &str, body_of: impl Fn(&str) -> String) -> String {
    let event = event_body(id, "message.sent", 1);
    let signature = hmac_hex(SECRET, event.as_bytes());
    let length = event.len();
    let more = more.replace("{length}", &length.to_string());
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: h\r\nx-bluereplies-signature: {signature}\r\n{more}\r\n\r\n{}",
        body_of(&event)
    )
}

fn chunked(event: &str) -> String {
    format!("{:x}\r\n{event}\r\n0\r\n\r\n", event.len())
}

/// What goes on as if the first request had ended where another reader would see its end.
fn hidden() -> String {
    post("evt_hidden", "content-length: {length}", str::to_owned)
}

/// Statuses of all answers until the server closes.
fn statuses(server: &Server, request: &[u8]) -> Vec<u16> {
    let mut stream = connect(server.addr);
    // It may have closed before all is written.
    let _ = stream.write_all(request);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let text = String::from_utf8_lossy(&all);
    text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect()
}

#[test]
fn of_one_request_two_are_never_made() {
    let server = Server::start("");
    let plain = str::to_owned;
    let length = "content-length: {length}";
    let te = "transfer-encoding: chunked";
    let body = event_body("evt_first", "message.sent", 1);
    let whole = |more: &str| post("evt_first", more, plain);
    let mut corpus = vec![
        ("length, then chunked", post("evt_first", &format!("{length}\r\n{te}"), chunked)),
        ("chunked, then length", post("evt_first", &format!("{te}\r\n{length}"), chunked)),
        ("chunked, length 0", post("evt_first", &format!("content-length: 0\r\n{te}"), chunked)),
        ("the same length twice", whole(&format!("{length}\r\n{length}"))),
        ("two lengths", whole(&format!("{length}\r\ncontent-length: 0"))),
        ("two lengths, the other first", whole(&format!("content-length: 0\r\n{length}"))),
        ("lengths in a list", whole("content-length: {length}, {length}")),
        ("a length with a sign", whole("content-length: +{length}")),
        ("a negative length", whole("content-length: -1")),
        ("a hexadecimal length", whole("content-length: 0x10")),
        ("no length", whole("content-length:")),
        ("a length with a space in it", whole("content-length: 1 0")),
        ("a length too large to count", whole("content-length: 99999999999999999999")),
        ("a space before the colon", whole("content-length : {length}")),
        ("a tab before the colon", whole("content-length\t: {length}")),
        (
            "chunked with a space before the colon",
            post("evt_first", "transfer-encoding : chunked", chunked),
        ),
        ("chunked twice", post("evt_first", &format!("{te}\r\n{te}"), chunked)),
        ("chunked, identity", post("evt_first", "transfer-encoding: chunked, identity", chunked)),
        ("identity, chunked", post("evt_first", "transfer-encoding: identity, chunked", chunked)),
        ("identity", whole(&format!("{length}\r\ntransfer-encoding: identity"))),
        ("an encoding nobody knows", post("evt_first", "transfer-encoding: cow", chunked)),
        (
            "a vertical tab before chunked",
            post("evt_first", "transfer-encoding: \u{b}chunked", chunked),
        ),
        ("chunked in quotes", post("evt_first", "transfer-encoding: \"chunked\"", chunked)),
        ("chunked, folded", post("evt_first", "transfer-encoding:\r\n chunked", chunked)),
        ("a folded header", whole(&format!("x-folded: a\r\n b\r\n{length}"))),
        ("a folded length", whole("content-length:\r\n {length}")),
        ("a header that begins with a space", whole(&format!(" x: y\r\n{length}"))),
        ("a NUL in a value", whole(&format!("x: a\0b\r\n{length}"))),
        ("a NUL in a name", whole(&format!("x\0y: z\r\n{length}"))),
        ("a bare CR in a value", whole(&format!("x: a\rb: c\r\n{length}"))),
        ("a bare LF after a header", whole(&format!("x: y\n{length}"))),
        ("a bare LF hides a length", whole(&format!("x: y\ncontent-length: 0\r\n{length}"))),
        ("a line without colon", whole(&format!("nonsense\r\n{length}"))),
        ("an empty name", whole(&format!(": value\r\n{length}"))),
        ("two hosts", whole(&format!("host: other\r\n{length}"))),
        ("no host", whole(length).replace("host: h\r\n", "")),
        ("a bare LF after the request line", whole(length).replacen("\r\n", "\n", 1)),
        ("only bare LFs", whole(length).replace("\r\n", "\n")),
        ("an LF in place of the empty line", whole(length).replace("\r\n\r\n", "\r\n\n")),
        ("a version nobody knows", whole(length).replace("HTTP/1.1", "HTTP/1.7")),
        ("HTTP/2 without TLS", whole(length).replace("HTTP/1.1", "HTTP/2.0")),
        ("chunked in HTTP/1.0", post("evt_first", te, chunked).replace("HTTP/1.1", "HTTP/1.0")),
        ("no version", whole(length).replace(" HTTP/1.1", "")),
        ("two spaces", whole(length).replace(" HTTP/1.1", "  HTTP/1.1 x")),
        ("a NUL in the path", whole(length).replace("/webhooks", "/\0webhooks")),
        ("a method of brackets", whole(length).replace("POST", "PO(ST)")),
    ];
    let n = body.len();
    for (name, chunks) in [
        ("chunks with bare LFs", format!("{n:x}\n{body}\n0\n\n")),
        ("a bare LF after the size", format!("{n:x}\n{body}\r\n0\r\n\r\n")),
        ("a bare LF in an extension", format!("{n:x};a\nb\r\n{body}\r\n0\r\n\r\n")),
        ("a chunk longer than it says", format!("{:x}\r\n{body}\r\n0\r\n\r\n", n - 1)),
        ("a size with a sign", format!("+{n:x}\r\n{body}\r\n0\r\n\r\n")),
        ("a negative size", format!("-{n:x}\r\n{body}\r\n0\r\n\r\n")),
        ("a size with 0x", format!("0x{n:x}\r\n{body}\r\n0\r\n\r\n")),
        ("no size", format!("\r\n{body}\r\n0\r\n\r\n")),
        ("a size that overflows", format!("10000000000000000{n:x}\r\n{body}\r\n0\r\n\r\n")),
        ("a size that is no number", format!("g\r\n{body}\r\n0\r\n\r\n")),
    ] {
        corpus.push((name, post("evt_first", te, |_| chunks.clone())));
    }
    for (name, request) in &corpus {
        let answers = statuses(&server, format!("{request}{}", hidden()).as_bytes());
        assert_eq!(answers, [400], "{name}: {request:?}");
    }
    assert_eq!(server.cli_ok(&["events", "list"]), "", "something was stored");

    // What is hidden behind a request that is well framed belongs to its body, or is a request of its own.
    let after = |more: &str, body_of: fn(&str) -> String| {
        let request = post("evt_first", more, body_of);
        statuses(
            &server,
            format!("{request}{}GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", hidden())
                .as_bytes(),
        )
    };
    assert_eq!(after(te, chunked), [200], "after a chunked body nothing is read");
    assert_eq!(server.cli_json(&["events", "list"]).len(), 1);
    assert_eq!(after(length, str::to_owned), [200, 200, 404]);
    assert_eq!(server.cli_json(&["events", "list"]).len(), 2);

    let refused = server.metric("bluehook_requests_refused_total{reason=\"request malformed\"}");
    assert!(refused >= corpus.len() as f64 - 10.0, "{refused} of {}", corpus.len());
}

#[test]
fn a_head_has_its_limits_and_hyper_keeps_them() {
    let server = Server::start(
        "[intake]\nlisten = [\"127.0.0.1:0\"]\nhead_max = \"16 KiB\"\nheaders_max = 20\nread_timeout = \"500ms\"\n",
    );
    let get = |more: &str| {
        statuses(
            &server,
            format!("GET {PATH} HTTP/1.1\r\nhost: h\r\n{more}connection: close\r\n\r\n").as_bytes(),
        )
    };
    assert_eq!(get(&"x: y\r\n".repeat(18)), [200]);
    assert_eq!(get(&"x: y\r\n".repeat(19)), [431]);
    assert_eq!(get(&format!("x: {}\r\n", "y".repeat(15 << 10))), [200]);
    assert_eq!(get(&format!("x: {}\r\n", "y".repeat(40 << 10))), [431]);
    // A head that does not end is told so; a connection on which nothing comes just closes.
    assert_eq!(statuses(&server, b"GET / HTTP/1.1\r\nhost: h\r\n"), [408]);
    assert_eq!(statuses(&server, b""), Vec::<u16>::new());
    let metric = |reason: &str| {
        server.metric(&format!("bluehook_requests_refused_total{{reason=\"{reason}\"}}"))
    };
    assert_eq!([metric("head too large"), metric("head not complete in time")], [2.0, 1.0]);
    // Next, somebody who does it right.
    assert_eq!(
        server.client().post_signed(&event_body("evt_1", "message.sent", 1)).unwrap().status,
        200
    );
}
