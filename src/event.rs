//! What arrives: the event, its identity, and the tolerant look-up of the fields that matter.

use bincode::{Decode, Encode};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::delivery::Seq;
use crate::signature::json::{self, Value};

/// The type given to a signed body that is not a JSON object.
pub const MALFORMED: &str = "malformed";
/// The type given to a signed object that names none.
pub const UNTYPED: &str = "unknown";

/// How the signature was found to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum VerifiedBy {
    /// Over the bytes that arrived.
    Raw,
    /// Over `JSON.stringify(JSON.parse(body))`; then those bytes are what is stored.
    Canonical,
    /// Made here (follow-ups, imports): nobody signed it.
    None,
}

impl VerifiedBy {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            VerifiedBy::Raw => "raw",
            VerifiedBy::Canonical => "canonical",
            VerifiedBy::None => "none",
        }
    }
}

/// An event before it has a place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    pub source: String,
    pub id: String,
    pub kind: String,
    /// Wall clock.
    pub received_at: Timestamp,
    pub headers: Vec<(String, Vec<u8>)>,
    pub verified_by: VerifiedBy,
    pub body: Bytes,
    /// The other party's address, where the event has one: what `order = "conversation"` goes by.
    pub conversation: Option<String>,
    /// Brought in by `bluehook import`: stored, but handlers do not start on it by themselves.
    pub imported: bool,
}

/// A stored event. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub seq: Seq,
    pub new: NewEvent,
}

/// What the body says about itself. Field names are looked up as interface.md §2 lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    pub id: Option<String>,
    pub kind: String,
    pub message_id: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub text: Option<String>,
}

impl Envelope {
    /// Never fails: a body that is not a JSON object gives type `malformed`.
    #[must_use]
    pub fn parse(body: &[u8]) -> Envelope {
        match json::parse(body) {
            Ok(value) if value.is_object() => Envelope::of(&value),
            _ => Envelope { kind: MALFORMED.to_owned(), ..Envelope::default() },
        }
    }

    #[must_use]
    pub fn of(value: &Value) -> Envelope {
        let data = value.get("data");
        let field = |names: &[&str]| data.and_then(|d| first_text(d, names));
        Envelope {
            // Two events must never share an id that the sender gave to but one of them.
            id: first(value, &["eventId", "event_id", "id"], Value::to_exact_text),
            kind: first_text(value, &["type", "event", "event_type"])
                .unwrap_or_else(|| UNTYPED.to_owned()),
            message_id: field(&["messageId", "message_id", "id"]),
            from: field(&["from", "from_number"]),
            to: field(&["to", "to_number", "recipient"]),
            text: field(&["body", "text", "content"]),
        }
    }

    /// The other party's address: the sender of what we received, else the recipient. Digits alone
    /// for telephone numbers, lower case for mail addresses.
    #[must_use]
    pub fn conversation(&self) -> Option<String> {
        let received = self.kind == "message.received";
        let address =
            if received { self.from.as_ref().or(self.to.as_ref()) } else { self.to.as_ref() }?;
        Some(normalise_address(address))
    }
}

/// The messageId that a body names.
#[must_use]
pub fn message_id(body: &[u8]) -> Option<String> {
    Envelope::parse(body).message_id
}

/// The first of these fields that has a value. Strings as they are; numbers as JavaScript prints them; an empty
/// string is no value.
#[must_use]
pub fn first_text(value: &Value, names: &[&str]) -> Option<String> {
    first(value, names, Value::to_text)
}

fn first(value: &Value, names: &[&str], text: fn(&Value) -> Option<String>) -> Option<String> {
    let value = names.iter().find_map(|name| value.get(name).filter(|v| v.to_text().is_some()))?;
    text(value).filter(|t| !t.is_empty())
}

#[must_use]
pub fn normalise_address(address: &str) -> String {
    let trimmed = address.trim();
    if trimmed.contains('@') {
        return trimmed.to_lowercase();
    }
    let digits: String = trimmed.chars().filter(char::is_ascii_digit).collect();
    if digits.is_empty() { trimmed.to_lowercase() } else { digits }
}

/// The id of an event that brings none: `sha256:<hex of body>`.
#[must_use]
pub fn id_of_body(body: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(body)))
}

/// What the duplicate check goes by: 16 bytes of SHA-256 over source and id.
pub type DedupKey = [u8; 16];

#[must_use]
pub fn dedup_key(source: &str, id: &str) -> DedupKey {
    let mut hash = Sha256::new();
    hash.update((source.len() as u64).to_be_bytes());
    hash.update(source.as_bytes());
    hash.update(id.as_bytes());
    first_bytes(&hash.finalize())
}

/// Tells whether a second body under one id is the same.
#[must_use]
pub fn body_hash(body: &[u8]) -> [u8; 8] {
    first_bytes(&Sha256::digest(body))
}

fn first_bytes<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&digest[..N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_under_every_name_the_interface_lists() {
        for (id, kind, message, from, to, text) in [
            ("eventId", "type", "messageId", "from", "to", "body"),
            ("event_id", "event", "message_id", "from_number", "to_number", "text"),
            ("id", "event_type", "id", "from", "recipient", "content"),
        ] {
            let body = format!(
                r#"{{"{id}":"e1","{kind}":"message.read","data":{{"{message}":"m1","{from}":"+1 555","{to}":"A@B.c","{text}":"hi"}}}}"#
            );
            let e = Envelope::parse(body.as_bytes());
            assert_eq!(e.id.as_deref(), Some("e1"), "{body}");
            assert_eq!(e.kind, "message.read");
            assert_eq!(e.message_id.as_deref(), Some("m1"));
            assert_eq!(e.from.as_deref(), Some("+1 555"));
            assert_eq!(e.conversation().as_deref(), Some("a@b.c"));
            assert_eq!(e.text.as_deref(), Some("hi"));
        }
    }

    /// Found by attack: both became 9007199254740992, so the second was taken for the first come again.
    #[test]
    fn ids_that_a_double_cannot_tell_apart_are_none() {
        let id = |text: &str| Envelope::parse(format!(r#"{{"eventId":{text}}}"#).as_bytes()).id;
        assert_eq!(id("9007199254740991").as_deref(), Some("9007199254740991"));
        assert_eq!(id("7.0").as_deref(), Some("7"));
        for text in ["9007199254740992", "9007199254740993", "1e400", "0.1", r#""\ud800""#] {
            assert_eq!(id(text), None, "{text}: then the id is the hash of the body");
        }
    }

    #[test]
    fn the_conversation_of_an_incoming_message_is_its_sender() {
        let e = Envelope::parse(
            br#"{"type":"message.received","data":{"from":"+1 (555) 01","to":"+49"}}"#,
        );
        assert_eq!(e.conversation().as_deref(), Some("155501"));
    }

    #[test]
    fn what_is_no_object_is_malformed() {
        for body in ["", "[]", "3", "{", "nul", "\u{feff}{}"] {
            assert_eq!(Envelope::parse(body.as_bytes()).kind, MALFORMED, "{body:?}");
        }
        assert_eq!(Envelope::parse(b"{}").kind, UNTYPED);
    }
}
