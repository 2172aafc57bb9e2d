//! The crash campaign: the real binary on media that fail. Each class of failure has a file; the defects that
//! each must notice are in `defects.rs`.
//!
//! Short by default, longer with `tests/run --full`. What needs root (mounting) is left out for others, and
//! says so; with `CI` set it fails instead.

mod clocks;
mod defects;
mod disk;
mod faults;
mod images;
mod kill;
mod model;
mod power;
mod rot;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::support::{Client, Server, event_body};

/// Events and how often each is stored.
pub fn stored(server: &Server) -> BTreeMap<String, usize> {
    let mut ids = BTreeMap::new();
    for line in server.cli_ok(&["export"]).lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        *ids.entry(event["eventId"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    ids
}

/// Sends from several connections until `stop`; notes what was acknowledged.
pub struct Load<'a> {
    pub next: &'a AtomicU64,
    pub acknowledged: &'a Mutex<BTreeSet<String>>,
    pub stop: AtomicBool,
}

impl Load<'_> {
    pub fn send(&self, server: std::net::SocketAddr) {
        let mut client = Client::new(server);
        while !self.stop.load(Ordering::Relaxed) {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let id = format!("evt_{n}");
            let kind = if n.is_multiple_of(50) { "message.failed" } else { "message.sent" };
            match client.post_signed(&event_body(&id, kind, n)) {
                Ok(answer) if answer.status == 200 => {
                    self.acknowledged.lock().unwrap().insert(id);
                }
                // A refusal promises nothing.
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}
