//! Signed requests, written out before the clock starts.

use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, Mac};
use sha2::Sha256;

pub const SECRET: &str = "whs-bench-secret";
pub const PATH: &str = "/webhooks/bluereplies";

/// No event is sent twice, by whichever part.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The body of one event, of `bytes` bytes at least, in the form that JavaScript writes.
pub fn body(n: u64, bytes: usize) -> String {
    const KINDS: [&str; 4] =
        ["message.sent", "message.delivered", "message.read", "message.received"];
    // One in fifty fails: a process for each of them is what a machine of two cores bears.
    let kind = if n.is_multiple_of(50) { "message.failed" } else { KINDS[(n % 4) as usize] };
    let head = format!(
        r#"{{"eventId":"evt_{n:012}","type":"{kind}","createdAt":"2026-11-25T09:00:00.000Z","data":{{"messageId":"msg_{:012}","from":"+15550001111","to":"+1555{:07}","body":""#,
        n / 4,
        n % 1000
    );
    let tail = r#""}}"#;
    let text = "Hello, this is one of very many messages. See you at half past nine. ";
    let room = bytes.saturating_sub(head.len() + tail.len());
    let text: String = text.chars().cycle().take(room).collect();
    format!("{head}{text}{tail}")
}

pub fn sign(body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// `count` requests with unique events. Each carries its signature under the two names that contestants look for.
pub fn requests(count: usize, bytes: usize) -> Vec<Box<[u8]>> {
    let first = NEXT.fetch_add(count as u64, Ordering::Relaxed);
    (first..first + count as u64).map(|n| request(&body(n, bytes))).collect()
}

fn request(body: &str) -> Box<[u8]> {
    let signature = sign(body.as_bytes());
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nx-bluereplies-signature: {signature}\r\nx-webhook-signature: {signature}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
    .into_boxed_slice()
}
