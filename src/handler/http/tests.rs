//! Against real servers on loopback.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::{Action, HttpBody};
use crate::handler::testing::{BODY, call, event, http, ready, run};

/// One request as it arrived.
#[derive(Clone, Debug)]
struct Seen {
    peer: SocketAddr,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Answers every request with `status`, `headers` and `body`.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(
        status: u16,
        headers: &'static [(&'static str, &'static str)],
        body: String,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (log, body) = (Arc::clone(&log), body.clone());
                let answer = move |request: Request<Incoming>| {
                    let (log, body) = (Arc::clone(&log), body.clone());
                    async move {
                        let (head, incoming) = request.into_parts();
                        let bytes = incoming.collect().await.unwrap().to_bytes();
                        let text = |v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into();
                        log.lock().unwrap().push(Seen {
                            peer,
                            method: head.method.to_string(),
                            path: head.uri.to_string(),
                            headers: head
                                .headers
                                .iter()
                                .map(|(n, v)| (n.to_string(), text(v)))
                                .collect(),
                            body: String::from_utf8_lossy(&bytes).into(),
                        });
                        let mut response = Response::builder().status(status);
                        for (name, value) in headers {
                            response = response.header(*name, *value);
                        }
                        Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap())
                    }
                };
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        });
        Server { url, seen }
    }

    async fn ok() -> Server {
        Server::start(200, &[], "OK".into()).await
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// Writes `answer` to everybody, then again and again `more`, until the other side goes away.
async fn raw_server(answer: &'static str, more: Option<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                while let Some(more) = more {
                    if stream.write_all(more.as_bytes()).await.is_err() {
                        return;
                    }
                }
                // Holds the connection open.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    url
}

fn reason(report: &Report) -> &str {
    report.outcome.reason().unwrap_or_default()
}

const KEPT: usize = 16 << 10;

#[tokio::test]
async fn the_raw_event_is_posted_with_what_makes_it_idempotent() {
    let server = Server::start(200, &[("x-a", "b")], "fine".into()).await;
    let report = run(Action::Http(http(&format!("{}/in?x=1", server.url))), call(BODY)).await;
    assert_eq!(report.outcome, Outcome::Delivered);
    let seen = &server.seen()[0];
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str(), seen.body.as_str()),
        ("POST", "/in?x=1", BODY)
    );
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("idempotency-key"), Some("e1"));
    assert_eq!(seen.header("x-bluehook-attempt"), Some("1"));
    assert!(seen.header("user-agent").unwrap().starts_with("bluehook/"));
    let response = report.response.unwrap();
    assert!(
        response.starts_with("HTTP/1.1 200 OK\nx-a: b\n") && response.ends_with("\n\nfine"),
        "{response}"
    );
    let request = report.request.unwrap();
    assert!(request.starts_with(&format!("POST {}/in?x=1\n", server.url)), "{request}");
    assert!(request.ends_with(&format!("body: {} bytes", BODY.len())), "{request}");
}

#[tokio::test]
async fn the_status_decides() {
    for (status, outcome) in [
        (204, "delivered"),
        (400, "retry"),
        (404, "retry"),
        (422, "reject"),
        (410, "reject"),
        (429, "retry"),
        (500, "retry"),
        (503, "retry"),
        (302, "retry"),
    ] {
        let server = Server::start(status, &[], String::new()).await;
        let mut config = http(&server.url);
        config.permanent = vec![422];
        let report = run(Action::Http(config), call(BODY)).await;
        assert_eq!(report.outcome.name(), outcome, "{status}");
        if status != 204 {
            assert!(reason(&report).starts_with(&status.to_string()), "{report:?}");
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::ok().await;
    let server = Server::start(307, &[("location", "http://127.0.0.1:1/x")], String::new()).await;
    let report = run(Action::Http(http(&server.url)), call(BODY)).await;
    assert!(reason(&report).contains("to http://127.0.0.1:1/x: redirects are not followed"));
    assert!(other.seen().is_empty());
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn retry_after_is_passed_on() {
    let server = Server::start(503, &[("retry-after", "120")], String::new()).await;
    let report = run(Action::Http(http(&server.url)), call(BODY)).await;
    let Outcome::Retry { after_ms, .. } = report.outcome else { panic!("{report:?}") };
    assert_eq!(after_ms, Some(120_000));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_at_the_deadline() {
    let mut call = call(BODY);
    call.deadline = Duration::from_millis(200);
    let report = run(Action::Http(http(&raw_server("", None).await)), call).await;
    assert_eq!(report.outcome, Outcome::retry("timed out after 0.2 s"));
}

#[tokio::test]
async fn a_closed_port_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let report = run(Action::Http(http(&format!("http://{address}/"))), call(BODY)).await;
    let reason = reason(&report);
    assert!(
        reason.starts_with(&format!("cannot connect to {address}: Connection refused")),
        "{reason}"
    );
}

#[tokio::test]
async fn a_connection_cut_in_the_middle_is_retried() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let report = run(Action::Http(http(&url)), call(BODY)).await;
    assert!(reason(&report).starts_with("connection to 127.0.0.1:"), "{report:?}");
}

#[tokio::test]
async fn only_the_first_of_a_long_body_is_kept() {
    let server = Server::start(200, &[], "é".repeat(100_000)).await;
    let report = run(Action::Http(http(&server.url)), call(BODY)).await;
    assert_eq!(report.outcome, Outcome::Delivered);
    let length = report.response.unwrap().len();
    assert!((KEPT..KEPT + 300).contains(&length), "{length}");
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let url = raw_server(head, Some("10\r\n0123456789abcdef\r\n")).await;
    let report = run(Action::Http(http(&url)), call(BODY)).await;
    assert_eq!(report.outcome, Outcome::Delivered);
    assert!(report.response.unwrap().len() < KEPT + 300);
}

#[tokio::test]
async fn a_body_that_stalls_does_not_change_what_the_status_said() {
    let url = raw_server("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", None).await;
    let mut call = call(BODY);
    call.deadline = Duration::from_millis(300);
    let report = run(Action::Http(http(&url)), call).await;
    assert_eq!(report.outcome, Outcome::Delivered);
    assert!(report.response.unwrap().ends_with("abc\n[the body did not end in time]"));
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::ok().await;
    let handler = ready(Action::Http(http(&server.url)));
    for _ in 0..5 {
        assert_eq!(handler.run(call(BODY)).await.outcome, Outcome::Delivered);
    }
    let seen = server.seen();
    assert!(seen.len() == 5 && seen.iter().all(|s| s.peer == seen[0].peer));
}

#[tokio::test]
async fn bodies_are_rendered_so_that_data_cannot_break_them() {
    let event = r#"{"eventId":"e","type":"t","data":{"q":"a\"},{\"x&y=z","n":7}}"#;
    let server = Server::ok().await;
    let sent = async |body| {
        let mut config = http(&server.url);
        config.body = body;
        let report = run(Action::Http(config), call(event)).await;
        assert_eq!(report.outcome, Outcome::Delivered);
        let seen = server.seen().pop().unwrap();
        (seen.header("content-type").unwrap().to_owned(), seen.body)
    };
    let json = serde_json::json!({"q": "say {{ data.q }}", "n": "{{ data.n }}", "k": [true, null]});
    let (kind, body) = sent(HttpBody::Json(json)).await;
    assert_eq!(kind, "application/json");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body, serde_json::json!({"q": "say a\"},{\"x&y=z", "n": 7, "k": [true, null]}));
    let (kind, body) = sent(HttpBody::Form(vec![("q".into(), "{{ data.q }}".into())])).await;
    assert_eq!(
        (kind.as_str(), body.as_str()),
        ("application/x-www-form-urlencoded", "q=a%22%7D%2C%7B%22x%26y%3Dz")
    );
    let (kind, body) = sent(HttpBody::Text("n={{ data.n }}".into())).await;
    assert_eq!((kind.as_str(), body.as_str()), ("text/plain; charset=utf-8", "n=7"));
}

#[tokio::test]
async fn own_headers_replace_ours_and_cannot_be_injected() {
    let event = r#"{"eventId":"e","type":"t","data":{"x":"a\r\nX-Evil: 1"}}"#;
    let server = Server::ok().await;
    let mut config = http(&server.url);
    config.headers =
        vec![("Content-Type".into(), "text/x".into()), ("X-Text".into(), "{{ data.x }}".into())];
    run(Action::Http(config), call(event)).await;
    let seen = &server.seen()[0];
    assert_eq!(seen.header("content-type"), Some("text/x"));
    assert_eq!(seen.header("x-text"), Some("a  X-Evil: 1"));
    assert_eq!(seen.header("x-evil"), None);
}

#[tokio::test]
async fn secrets_are_sent_but_not_kept() {
    let server = Server::start(
        500,
        &[("set-cookie", "sid=1")],
        "you sent s3cret-token, pa%ss!, Basic dXNlcjpwYSVzcyE=".into(),
    )
    .await;
    let url = server.url.replace("http://", "http://user:pa%25ss%21@");
    let mut config = http(&format!("{url}/{{{{ secret('crm') }}}}"));
    config.headers = vec![("X-Key".into(), "k {{ env('SET') }}".into())];
    let report = run(Action::Http(config), call(BODY)).await;
    let seen = &server.seen()[0];
    assert_eq!(seen.path, "/s3cret-token");
    assert_eq!(seen.header("x-key"), Some("k value"));
    assert_eq!(seen.header("authorization"), Some("Basic dXNlcjpwYSVzcyE="));
    let kept = format!("{report:?}");
    for secret in ["s3cret", "value", "dXNlcj", "pa%", "sid=1"] {
        assert!(!kept.contains(secret), "{secret}: {kept}");
    }
    assert!(
        kept.contains("you sent ***, ***, Basic ***") && kept.contains("authorization: ***"),
        "{kept}"
    );
}

#[tokio::test]
async fn what_is_sent_on_is_signed_with_the_secret_of_its_source() {
    let server = Server::ok().await;
    let mut config = http(&server.url);
    config.sign = Some(ForwardSign::BlueReplies);
    run(Action::Http(config.clone()), call(BODY)).await;
    let secret = crate::signature::Secret::new(b"source-secret".to_vec());
    let expected = crate::signature::sign_hex(&secret, BODY.as_bytes());
    assert_eq!(server.seen()[0].header("x-bluereplies-signature"), Some(expected.as_str()));

    config.sign = Some(ForwardSign::StandardWebhooks);
    run(Action::Http(config.clone()), call(BODY)).await;
    assert_eq!(server.seen()[1].header("webhook-id"), Some("e1"));

    let mut other = event(BODY);
    other.new.source = "elsewhere".into();
    let report = run(Action::Http(config), Call { event: Arc::new(other), ..call(BODY) }).await;
    assert!(reason(&report).contains("source \"elsewhere\" has no secret"), "{report:?}");
}

#[tokio::test]
async fn private_addresses_are_refused_unless_written_out_or_allowed() {
    let server = Server::ok().await;
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let by_name = http(&format!("http://localhost:{port}/"));
    let report = run(Action::Http(by_name.clone()), call(BODY)).await;
    assert!(reason(&report).starts_with("address not allowed: localhost is "), "{report:?}");
    // An address that comes out of the event is not one that the owner wrote.
    let event = r#"{"type":"t","data":{"h":"127.0.0.1"}}"#;
    let by_data = http(&format!("http://{{{{ data.h }}}}:{port}/"));
    let report = run(Action::Http(by_data.clone()), call(event)).await;
    assert!(reason(&report).starts_with("address not allowed: 127.0.0.1 is private"), "{report:?}");
    assert!(server.seen().is_empty());

    for mut config in [by_name, by_data] {
        config.allow_private = true;
        let report = run(Action::Http(config), call(event)).await;
        assert_eq!(report.outcome, Outcome::Delivered);
    }
}

#[tokio::test]
async fn an_unknown_name_says_dns() {
    let report = run(Action::Http(http("http://no-such-host.invalid/")), call(BODY)).await;
    assert!(reason(&report).starts_with("dns: cannot resolve no-such-host.invalid"), "{report:?}");
}

#[tokio::test]
async fn a_url_that_cannot_be_rendered_is_dead_at_once() {
    let report = run(Action::Http(http("http://127.0.0.1/{{ data.none }}")), call(BODY)).await;
    assert_eq!(report.outcome.name(), "reject");
    assert!(reason(&report).contains("http.url: line 1"), "{report:?}");
}

/// Serves one TLS connection with the certificate in `tests/data/tls`, which names `localhost` and `127.0.0.1`.
fn tls_server(host: &str) -> SocketAddr {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use std::io::{Read, Write};
    let chain = vec![
        CertificateDer::from_pem_slice(include_bytes!("../../../tests/data/tls/leaf.pem")).unwrap(),
    ];
    let key =
        PrivateKeyDer::from_pem_slice(include_bytes!("../../../tests/data/tls/leaf.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind((host, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let connection = rustls::ServerConnection::new(config).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, stream);
        if tls.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
            tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK").unwrap();
        }
    });
    address
}

#[tokio::test]
async fn tls_trusts_the_named_authority_and_no_stranger() {
    let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tls/ca.pem");
    let mut config = http(&format!("https://{}/", tls_server("127.0.0.1")));
    config.ca = Some(ca.into());
    let report = run(Action::Http(config), call(BODY)).await;
    assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");

    let stranger = http(&format!("https://{}/", tls_server("127.0.0.1")));
    let report = run(Action::Http(stranger), call(BODY)).await;
    let text = reason(&report);
    assert!(text.starts_with("tls with 127.0.0.1:") && text.contains("UnknownIssuer"), "{text}");

    let mut wrong_name = http(&format!("https://{}/", tls_server("127.0.0.2")));
    wrong_name.ca = Some(ca.into());
    let report = run(Action::Http(wrong_name), call(BODY)).await;
    let text = reason(&report);
    assert!(text.starts_with("tls with 127.0.0.2:") && text.contains("not valid for"), "{text}");
}

#[tokio::test]
async fn no_failure_repeats_the_credentials_of_the_url() {
    let plain = raw_server("HTTP/1.1 400 Bad Request\r\n\r\n", None).await;
    let no_tls = plain.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    for host in [&*tls_server("127.0.0.1").to_string(), &no_tls, "127.0.0.1:1", "nowhere.invalid"] {
        let url = format!("https://me:pa55-w0rd@{host}/path?key=qu3ry-k3y");
        let report = run(Action::Http(http(&url)), call(BODY)).await;
        let all = format!("{report:?}");
        assert!(!all.contains("pa55-w0rd"), "{all}");
        // In words that name the other side, and no more of the URL than that.
        let text = reason(&report);
        let name = host.split(':').next().unwrap();
        assert!(text.contains(name) && !text.contains("qu3ry-k3y"), "{text}");
    }
}

#[tokio::test]
async fn a_server_without_tls_says_tls() {
    let url = raw_server("HTTP/1.1 400 Bad Request\r\n\r\n", None).await;
    let report = run(Action::Http(http(&url.replace("http", "https"))), call(BODY)).await;
    assert!(reason(&report).starts_with("tls with "), "{report:?}");
}
