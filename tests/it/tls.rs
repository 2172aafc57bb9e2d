//! HTTPS on the intake, from certificate files.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::{PATH, PATIENCE, SECRET, Server, event_body, eventually, hmac_hex};

const FILES: &str = "[intake]\nlisten = [\"127.0.0.1:0\", \"unix:{dir}/in.sock\"]\n[intake.tls]\ncert = \"{dir}/cert.pem\"\nkey = \"{dir}/key.pem\"\n";

fn make(dir: &Path, serial: &str) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=localhost", "-set_serial", serial])
        .args([
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ])
        .arg("-keyout")
        .arg(dir.join("key.pem"))
        .arg("-out")
        .arg(dir.join("cert.pem"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

fn certificate(dir: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap()
}

/// By a client that trusts this certificate alone.
fn post(
    addr: SocketAddr,
    trusted: &CertificateDer<'static>,
    body: &str,
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(addr)?);
    let signature = hmac_hex(SECRET, body.as_bytes());
    write!(
        stream,
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-bluereplies-signature: {signature}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn events_come_in_by_https_and_a_test_event_finds_its_way_too() {
    let mut server = Server::stopped(FILES);
    make(server.dir.path(), "1");
    server.spawn();
    assert!(server.log().contains("listening on https://127.0.0.1:"), "{}", server.log());
    let answer =
        post(server.addr, &certificate(server.dir.path()), &event_body("evt_1", "message.read", 1));
    assert!(answer.unwrap().starts_with("HTTP/1.1 200 OK"));
    let mut plain = TcpStream::connect(server.addr).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).unwrap();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let said = server.cli_ok(&["trigger", "message.received"]);
    assert!(said.contains("https://127.0.0.1:") && said.contains("200"), "{said}");
    assert_eq!(server.cli_json(&["events", "list"]).len(), 2);
}

#[test]
fn a_handshake_that_does_not_end_gives_its_place_back() {
    let mut server = Server::stopped(
        &FILES.replace("[intake]\n", "[intake]\nread_timeout = \"100ms\"\nconnections_max = 2\n"),
    );
    make(server.dir.path(), "1");
    server.spawn();
    let mut held: Vec<_> = (0..2).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    // The first bytes of a greeting that never goes on.
    held[0].write_all(b"\x16\x03\x01\x02\x00").unwrap();
    for stream in &mut held {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Closed or reset, but ended.
        let ended = stream.read(&mut [0; 64]);
        assert!(!matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "held");
    }
    let trusted = certificate(server.dir.path());
    eventually("there is room again", || {
        post(server.addr, &trusted, &event_body("evt_1", "message.read", 1)).ok()
    });
    assert_eq!(server.cli_json(&["events", "list"]).len(), 1);
}

#[test]
fn a_new_certificate_is_taken_without_a_restart() {
    let mut server = Server::stopped(FILES);
    make(server.dir.path(), "1");
    server.spawn();
    let old = certificate(server.dir.path());
    make(server.dir.path(), "2");
    let new = certificate(server.dir.path());
    server.signal("-HUP");
    let mut number = 0;
    eventually("the new certificate is served", || {
        number += 1;
        post(server.addr, &new, &event_body(&format!("evt_{number}"), "message.read", number)).ok()
    });
    assert!(post(server.addr, &old, &event_body("evt_0", "message.read", 0)).is_err());
    assert_eq!(server.cli_json(&["events", "list"]).len(), 1);
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_at_start() {
    let mut server = Server::stopped(FILES);
    make(server.dir.path(), "1");
    std::fs::write(server.dir.path().join("key.pem"), "nothing").unwrap();
    let check = server.cli(&["check"]);
    assert_eq!(check.status.code(), Some(2));
    let said = String::from_utf8(check.stderr).unwrap();
    assert!(said.contains("intake.tls.key: ") && said.contains("key.pem"), "{said}");
    assert_eq!(server.try_spawn().unwrap_err().code(), Some(2));
}
