//! The last requests that left no event: refused ones and pings, for the debugger.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

const ENTRIES_MAX: usize = 512;
const BYTES_MAX: usize = 2 << 20;
pub(super) const BODY_KEPT_BYTES: usize = 4 << 10;
pub(super) const HEADERS_KEPT_BYTES: usize = 4 << 10;
pub(super) const PATH_KEPT_CHARS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// RFC 3339.
    pub time: String,
    pub peer: String,
    pub method: String,
    pub path: String,
    pub status: u16,
    /// `ping`, or why the request was refused.
    pub reason: &'static str,
    pub headers: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    pub took_ms: u64,
}

impl Note {
    /// Keeps the first bytes of `body`; as text where they are text.
    pub(super) fn set_body(&mut self, body: &[u8]) {
        let kept = &body[..body.len().min(BODY_KEPT_BYTES)];
        match std::str::from_utf8(kept) {
            Ok(text) => self.body = Some(text.to_owned()),
            // Only the cut went through a character.
            Err(e) if e.error_len().is_none() && kept.len() < body.len() => {
                self.body = Some(String::from_utf8_lossy(&kept[..e.valid_up_to()]).into_owned());
            }
            Err(_) => self.body_base64 = Some(BASE64.encode(kept)),
        }
    }

    fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        let body = self.body.as_ref().or(self.body_base64.as_ref()).map_or(0, String::len);
        size_of::<Note>() + self.peer.len() + self.method.len() + self.path.len() + headers + body
    }
}

/// Of requests to no path or with no method of ours less is kept: scanners make thousands of them, which must not push
/// out the one that a sender's wrong secret caused.
const STRANGERS_SHARE: usize = 4;

#[derive(Default)]
struct Ring {
    /// Newest last, each with its place among all notes.
    notes: VecDeque<(u64, Note)>,
    bytes: usize,
}

impl Ring {
    fn add(&mut self, place: u64, note: Note, share: usize) {
        self.bytes += note.bytes();
        self.notes.push_back((place, note));
        while self.notes.len() > ENTRIES_MAX / share || self.bytes > BYTES_MAX / share {
            let Some((_, oldest)) = self.notes.pop_front() else { break };
            self.bytes -= oldest.bytes();
        }
    }
}

#[derive(Default)]
struct Rings {
    count: u64,
    senders: Ring,
    strangers: Ring,
}

#[derive(Default)]
pub struct Rejections {
    rings: Mutex<Rings>,
}

impl Rejections {
    pub(super) fn add(&self, note: Note) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.count += 1;
        let place = rings.count;
        match note.status {
            404 | 405 => rings.strangers.add(place, note, STRANGERS_SHARE),
            // No request that could be read.
            _ if note.method.is_empty() => rings.strangers.add(place, note, STRANGERS_SHARE),
            _ => rings.senders.add(place, note, 1),
        }
    }

    /// Newest first.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Note> {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notes: Vec<_> =
            rings.senders.notes.iter().chain(&rings.strangers.notes).cloned().collect();
        drop(rings);
        notes.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
        notes.into_iter().map(|(_, note)| note).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(path: &str, body: &[u8]) -> Note {
        let mut note = Note {
            time: String::new(),
            peer: "192.0.2.1".to_owned(),
            method: "POST".to_owned(),
            path: path.to_owned(),
            status: 401,
            reason: "signature wrong",
            headers: Vec::new(),
            body: None,
            body_base64: None,
            took_ms: 0,
        };
        note.set_body(body);
        note
    }

    #[test]
    fn the_ring_keeps_the_newest_and_gives_them_newest_first() {
        let ring = Rejections::default();
        for n in 0..ENTRIES_MAX + 3 {
            ring.add(note(&n.to_string(), b""));
        }
        let notes = ring.snapshot();
        assert_eq!(notes.len(), ENTRIES_MAX);
        assert_eq!(notes[0].path, (ENTRIES_MAX + 2).to_string());
        assert_eq!(notes[ENTRIES_MAX - 1].path, "3");
    }

    #[test]
    fn scanners_push_out_no_refused_event_and_the_order_is_that_of_arrival() {
        let ring = Rejections::default();
        ring.add(note("wrong secret", b""));
        for n in 0..5_000 {
            ring.add(Note { status: 404, ..note(&format!("/wp-admin/{n}"), b"") });
        }
        ring.add(note("wrong again", b""));
        ring.add(Note { status: 405, ..note("last", b"") });
        let paths: Vec<_> = ring.snapshot().into_iter().map(|note| note.path).collect();
        assert_eq!(paths[..3], ["last", "wrong again", "/wp-admin/4999"]);
        assert_eq!(paths.last().unwrap(), "wrong secret");
        assert_eq!(paths.len(), 2 + ENTRIES_MAX / STRANGERS_SHARE);
    }

    #[test]
    fn the_ring_is_bounded_in_bytes_too() {
        let ring = Rejections::default();
        for _ in 0..ENTRIES_MAX {
            ring.add(note("/", &[0xff; BODY_KEPT_BYTES]));
        }
        let kept: usize = ring.snapshot().iter().map(Note::bytes).sum();
        assert!(kept <= BYTES_MAX && kept > BYTES_MAX / 2, "{kept}");
    }

    #[test]
    fn a_body_is_cut_and_is_text_where_it_can_be() {
        let long = "é".repeat(BODY_KEPT_BYTES);
        assert_eq!(note("/", long.as_bytes()).body.map(|b| b.len()), Some(BODY_KEPT_BYTES));
        let odd = format!("a{long}");
        assert_eq!(note("/", odd.as_bytes()).body.map(|b| b.len()), Some(BODY_KEPT_BYTES - 1));
        assert_eq!(note("/", &[0xff, 0]).body_base64.as_deref(), Some("/wA="));
    }
}
