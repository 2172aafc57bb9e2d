//! What a request is, decided without IO.

use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderName};

use super::answer::Reason;
use crate::event::Envelope;
use crate::signature::{Policy, Scheme, json};

/// Stored with an event.
pub(super) const HEADERS_STORED_BYTES: usize = 32 << 10;

/// Headers that speak about one connection, not about the event (RFC 9110 §7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Names whose values are secrets of the sender or of a proxy.
const SECRET: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Ping,
    ReadBody,
}

/// What the head alone decides for a request to a source.
pub(super) fn judge_head(
    method: &Method,
    headers: &HeaderMap,
    length: Option<u64>,
    body_max: u64,
) -> Result<Head, Reason> {
    match *method {
        Method::GET | Method::HEAD => return Ok(Head::Ping),
        Method::POST => {}
        _ => return Err(Reason::Method),
    }
    let has_other = |name, plain: &[u8]| {
        let mut values = headers.get_all(name).iter();
        values.any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(plain))
    };
    if has_other(header::CONTENT_ENCODING, b"identity")
        || has_other(header::TRANSFER_ENCODING, b"chunked")
    {
        return Err(Reason::ContentEncoding);
    }
    if length.is_some_and(|n| n > body_max) {
        return Err(Reason::BodyTooLarge);
    }
    Ok(Head::ReadBody)
}

fn is_signed(policy: &Policy, headers: &HeaderMap) -> bool {
    match policy.scheme {
        Scheme::Hex | Scheme::Timestamped { .. } => headers.contains_key(policy.header.as_str()),
        Scheme::StandardWebhooks { .. } => headers.contains_key("webhook-signature"),
    }
}

/// Is this POST a verification ping: unsigned, and empty or an object of a ping type without
/// `data.messageId`?
pub(super) fn is_ping(
    policy: &Policy,
    ping_types: &[String],
    headers: &HeaderMap,
    body: &[u8],
) -> bool {
    if is_signed(policy, headers) {
        return false;
    }
    if body.is_empty() {
        return true;
    }
    let Ok(value) = json::parse(body) else { return false };
    value.is_object()
        && ping_types.contains(&Envelope::of(&value).kind)
        && value.get("data").and_then(|data| data.get("messageId")).is_none()
}

/// The headers worth keeping, up to `max_bytes` of names and values, secrets masked.
pub(super) fn kept_headers(headers: &HeaderMap, max_bytes: usize) -> Vec<(String, Vec<u8>)> {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    let ends_here = |name: &HeaderName| {
        HOP_BY_HOP.contains(&name.as_str()) || named.iter().any(|n| n == name.as_str())
    };
    let mut left = max_bytes;
    let mut kept = Vec::new();
    for (name, value) in headers.iter().filter(|(name, _)| !ends_here(name)) {
        let secret = SECRET.contains(&name.as_str());
        let value = if secret { b"***".as_slice() } else { value.as_bytes() };
        let Some(rest) = left.checked_sub(name.as_str().len() + value.len()) else { continue };
        left = rest;
        kept.push((name.as_str().to_owned(), value.to_vec()));
    }
    kept
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;
    use crate::signature::Secret;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn policy() -> Policy {
        Policy {
            header: "x-bluereplies-signature".to_owned(),
            scheme: Scheme::Hex,
            secrets: vec![Secret::new(b"s".to_vec())],
            canonical_json: true,
        }
    }

    #[test]
    fn the_head_alone_decides_what_it_can() {
        let none = headers(&[]);
        let gzip = headers(&[("content-encoding", "gzip")]);
        let identity = headers(&[("content-encoding", "Identity")]);
        let coded = headers(&[("transfer-encoding", "gzip, chunked")]);
        assert_eq!(judge_head(&Method::POST, &coded, None, 9), Err(Reason::ContentEncoding));
        let chunked = headers(&[("transfer-encoding", "chunked")]);
        assert_eq!(judge_head(&Method::POST, &chunked, None, 9), Ok(Head::ReadBody));
        for (method, headers, length, expected) in [
            (Method::GET, &none, None, Ok(Head::Ping)),
            (Method::HEAD, &gzip, None, Ok(Head::Ping)),
            (Method::PUT, &none, None, Err(Reason::Method)),
            (Method::OPTIONS, &none, None, Err(Reason::Method)),
            (Method::POST, &gzip, Some(11), Err(Reason::ContentEncoding)),
            (Method::POST, &identity, Some(10), Ok(Head::ReadBody)),
            (Method::POST, &none, Some(11), Err(Reason::BodyTooLarge)),
            (Method::POST, &none, None, Ok(Head::ReadBody)),
        ] {
            assert_eq!(judge_head(&method, headers, length, 10), expected, "{method} {length:?}");
        }
    }

    #[test]
    fn an_unsigned_empty_post_is_a_ping_and_a_signed_one_is_not() {
        assert!(is_ping(&policy(), &[], &headers(&[]), b""));
        let signed = headers(&[("x-bluereplies-signature", "00")]);
        assert!(!is_ping(&policy(), &[], &signed, b""));
    }

    #[test]
    fn a_ping_is_an_object_of_a_ping_type_about_no_message() {
        let types = ["ping".to_owned()];
        for (body, expected) in [
            (r#"{"type":"ping"}"#, true),
            (r#"{"event":"ping","data":{}}"#, true),
            (r#"{"type":"ping","data":{"messageId":"m"}}"#, false),
            (r#"{"type":"message.read"}"#, false),
            (r#"["ping"]"#, false),
            ("ping", false),
        ] {
            let got = is_ping(&policy(), &types, &headers(&[]), body.as_bytes());
            assert_eq!(got, expected, "{body}");
        }
    }

    #[test]
    fn kept_headers_leave_out_the_hop_and_mask_secrets() {
        let all = headers(&[
            ("host", "h"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer secret"),
            ("cookie", "secret"),
            ("x-many", "1"),
            ("x-many", "2"),
        ]);
        let kept = kept_headers(&all, 1_000);
        let mut text: Vec<String> =
            kept.iter().map(|(n, v)| format!("{n}={}", String::from_utf8_lossy(v))).collect();
        text.sort();
        assert_eq!(text, ["authorization=***", "cookie=***", "host=h", "x-many=1", "x-many=2"]);
        assert_eq!(kept_headers(&all, 5), [("host".to_owned(), b"h".to_vec())]);
    }
}
