//! Every row of the table in interface.md §2, and what odd clients do.

use std::io::{BufReader, Read, Write};

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

/// A server whose disk takes `seconds` for each sync.
fn with_slow_disk(config: &str, seconds: u32) -> Server {
    let mut server = Server::stopped(config);
    let delay = format!("inject=fdatasync:delay_enter={seconds}000000");
    let strace = ["strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null"];
    server.through = strace
        .into_iter()
        .chain(["-e", "trace=fdatasync", "-e", &delay])
        .map(str::to_owned)
        .collect();
    server.spawn();
    server
}

/// So many events are on their way to the disk.
fn wait_until_taken(server: &Server, events: usize, body: &[u8]) {
    let bytes = (events * body.len()) as f64;
    crate::support::eventually("all are being stored", || {
        (server.metric("bluehook_bodies_bytes") >= bytes).then_some(())
    });
}

#[test]
fn a_connection_over_the_limit_is_told_so_at_once_where_none_is_idle() {
    for (limits, metric) in [
        ("connections_max = 2", "too busy"),
        (
            "connections_per_address = 2\ntrusted_proxies = []",
            "too many connections from one address",
        ),
    ] {
        let server = with_slow_disk(&config(limits), 2);
        let event = |n: usize| format!(r#"{{"eventId":"busy-{n}","type":"message.read"}}"#);
        std::thread::scope(|scope| {
            let busy = [1, 2].map(|n| {
                let server = &server;
                scope.spawn(move || post_signed(server, event(n).as_bytes()).status)
            });
            wait_until_taken(&server, 2, event(1).as_bytes());
            let response = post_signed(&server, event(3).as_bytes());
            assert_eq!(response.status, 503, "{limits}");
            assert!(response.header("retry-after").is_some());
            assert_eq!(busy.map(|posted| posted.join().unwrap()), [200, 200]);
        });
        assert_eq!(post_signed(&server, event(3).as_bytes()).status, 200);
        let refused = format!("bluehook_requests_refused_total{{reason=\"{metric}\"}}");
        assert_eq!(server.metric(&refused), 1.0);
    }
}

#[test]
fn a_connection_on_which_nothing_comes_gives_way_to_one_that_brings_something() {
    for limits in ["connections_max = 3", "connections_per_address = 3\ntrusted_proxies = []"] {
        // Long enough for none of them to end by itself.
        let text = config(limits).replace("read_timeout = \"1s\"", "read_timeout = \"1m\"");
        let server = Server::start(&text);
        let mut half_a_head = connect(server.addr);
        half_a_head.write_all(b"POST / HTTP/1.1\r\nhost: ").unwrap();
        let mut half_a_body = connect(server.addr);
        let head = format!("POST {PATH} HTTP/1.1\nhost: it\ncontent-length: 10");
        half_a_body.write_all(&raw(&head, b"12345")).unwrap();
        // This one was of use a moment ago.
        let mut used = server.client();
        assert_eq!(used.request("GET", PATH, &[], b"").unwrap().status, 200);
        let newcomers: Vec<_> = (1..=2)
            .map(|n| {
                let mut client = server.client();
                let event = format!(r#"{{"eventId":"new-{n}","type":"message.read"}}"#);
                assert_eq!(client.post_signed(&event).unwrap().status, 200, "{limits}");
                client
            })
            .collect();
        for mut stream in [half_a_head, half_a_body] {
            assert_ne!(stream.read(&mut [0; 1]).ok(), Some(1));
        }
        assert_eq!(used.request("GET", PATH, &[], b"").unwrap().status, 200);
        drop(newcomers);
        crate::support::eventually("they are counted", || {
            (server.metric("bluehook_connections_gave_way_total") >= 2.0).then_some(())
        });
    }
}

/// One that was told to go just as its request became whole was closed while the event was being stored.
#[test]
fn what_is_stored_is_answered_however_many_want_the_place() {
    let server = Server::start(&config("connections_max = 2"));
    let event = |id: &str| format!(r#"{{"eventId":"{id}","type":"message.read"}}"#);
    let unanswered: Vec<String> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..8)
            .map(|sender| {
                let server = &server;
                scope.spawn(move || {
                    let sent = (0..500).map(|n| format!("{sender}-{n}"));
                    sent.filter(|id| server.client().post_signed(&event(id)).is_err()).collect()
                })
            })
            .collect();
        senders.into_iter().flat_map(|sender| -> Vec<_> { sender.join().unwrap() }).collect()
    });
    assert!(!unanswered.is_empty(), "nobody gave way");
    for id in &unanswered {
        assert_eq!(server.client().post_signed(&event(id)).unwrap().status, 200);
    }
    assert_eq!(server.metric("bluehook_duplicates_total"), 0.0, "of {}", unanswered.len());
}

#[test]
fn after_so_many_requests_a_connection_is_closed() {
    let server = Server::start(&config("requests_per_connection = 3"));
    let mut client = server.client();
    let said: Vec<_> = (0..4)
        .map(|_| {
            let answer = client.request("GET", PATH, &[], b"").unwrap();
            (answer.status, answer.header("connection").map(str::to_owned))
        })
        .collect();
    let open = (200, None);
    assert_eq!(said, [open.clone(), open.clone(), (200, Some("close".to_owned())), open]);
    assert_eq!(server.metric("bluehook_connections_used_up_total"), 1.0);
}

#[test]
fn bodies_in_memory_have_their_limit() {
    let config = config("bodies_max = \"1 MiB\"").replace("64 KiB", "1 MiB");
    let server = with_slow_disk(&config, 2);
    let large = |n: u8| vec![n; 700 << 10];
    std::thread::scope(|scope| {
        let first = scope.spawn(|| post_signed(&server, &large(1)).status);
        wait_until_taken(&server, 1, &large(1));
        let response = post_signed(&server, &large(2));
        assert_eq!((response.status, response.header("retry-after")), (503, Some("5")));
        assert_eq!(server.metric("bluehook_requests_refused_total{reason=\"too busy\"}"), 1.0);
        assert_eq!(first.join().unwrap(), 200);
    });
    assert_eq!(server.metric("bluehook_bodies_bytes"), 0.0);
    assert_eq!(post_signed(&server, &large(2)).status, 200);
}

#[test]
fn bodies_that_never_end_fill_the_memory_for_nobody() {
    let server = Server::start(&config("bodies_max = \"2 MiB\"").replace("\"1s\"", "\"1m\""));
    let part = vec![b'x'; 60_000];
    let head = format!("POST {PATH} HTTP/1.1\nhost: it\ncontent-length: {}", part.len() + 1);
    let held: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = connect(server.addr);
            stream.write_all(&raw(&head, &part)).unwrap();
            stream
        })
        .collect();
    // No more than 34 of them fit.
    crate::support::eventually("the others gave way to each other", || {
        (server.metric("bluehook_connections_gave_way_total") >= 60.0).then_some(())
    });
    for n in 0..20 {
        let body = "x".repeat(60_000);
        let event =
            format!(r#"{{"eventId":"e-{n}","type":"message.read","data":{{"body":"{body}"}}}}"#);
        assert_eq!(post_signed(&server, event.as_bytes()).status, 200, "{n}");
    }
    assert!(server.metric("bluehook_bodies_bytes") <= (2 << 20) as f64);
    assert_eq!(server.metric("bluehook_requests_refused_total{reason=\"too busy\"}"), 0.0);
    drop(held);
}

#[test]
fn wrong_signatures_have_their_limit_and_right_ones_pass_all_the_while() {
    let limits = "failed_signatures = \"3/h\"\ntrusted_proxies = [\"127.0.0.1\"]";
    let server = Server::start(&config(limits));
    let event = br#"{"eventId":"x-1","type":"message.read"}"#;
    let from = |address: &str, signature: &str| {
        post(&server, &[("x-forwarded-for", address), (SIGNATURE, signature)], event)
    };
    let (good, wrong) = (sign(SECRET, event), sign("other", event));
    for signature in [&wrong, "nonsense", &wrong] {
        assert_eq!(from("192.0.2.1", signature).status, 401);
    }
    let refused = from("192.0.2.1", &wrong);
    assert_eq!((refused.status, &*refused.body), (429, "Too Many Requests"));
    let seconds: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((3_500..=3_601).contains(&seconds), "{seconds}");
    assert_eq!(from("192.0.2.1", &good).status, 200);
    assert_eq!(from("192.0.2.1", &wrong).status, 429);
    assert_eq!(from("192.0.2.2", &wrong).status, 401);
    // What could be no signature costs no canonical form.
    assert_eq!(server.metric("bluehook_canonical_forms_total"), 5.0);
    let name = "too many wrong signatures from one address";
    let counted = server.metric(&format!("bluehook_requests_refused_total{{reason=\"{name}\"}}"));
    assert_eq!(counted, 2.0);
}
