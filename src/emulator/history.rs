//! The log of requests: pings and attempts in one order, newest first.

use std::collections::HashMap;

use serde::Serialize;

use super::endpoint::{Ping, status_of};
use crate::admin::Problem;
use crate::delivery::Seq;
use crate::store::Store;
use crate::store::record::Record;

const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 500;
/// Records of the store looked at in one step back.
const STEP: usize = 256;

/// One request and what came back.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exchange {
    /// `ping` or `attempt`.
    kind: &'static str,
    at: String,
    endpoint: String,
    #[serde(flatten)]
    attempt: Option<OfEvent>,
    status: Option<u16>,
    took_ms: u64,
    error: Option<String>,
    /// First line and headers.
    request: Option<String>,
    body: Option<String>,
    response: Option<String>,
    #[serde(skip)]
    place: Seq,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfEvent {
    seq: Seq,
    event_id: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    /// From 1, anew after each replay.
    attempt: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    limit: usize,
    /// Only what is older.
    cursor: Option<Seq>,
}

impl Wanted {
    /// # Errors
    /// An unknown parameter, or a value that is none.
    pub fn of(query: &str) -> Result<Wanted, Problem> {
        let mut wanted = Wanted { limit: LIMIT_DEFAULT, cursor: None };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "limit" => {
                    let limit = value.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
                    wanted.limit = limit.ok_or_else(|| {
                        Problem::bad(format!(
                            "limit {value:?} is not a number from 1 to {LIMIT_MAX}"
                        ))
                    })?;
                }
                "cursor" => {
                    let cursor = value.parse().ok();
                    wanted.cursor = Some(cursor.ok_or_else(|| {
                        Problem::bad(format!("cursor {value:?} is none; take nextCursor of a page"))
                    })?);
                }
                other => {
                    let detail = format!("unknown parameter {other:?}; known are limit, cursor");
                    return Err(Problem::bad(detail));
                }
            }
        }
        Ok(wanted)
    }
}

/// A page, and where the next one begins. Reads the disk.
#[must_use]
pub fn page(store: &Store, pings: Vec<Ping>, wanted: Wanted) -> (Vec<Exchange>, Option<Seq>) {
    let end = wanted.cursor.unwrap_or(Seq::MAX);
    let mut found = attempts_before(store, end, wanted.limit + 1);
    // What happened before the oldest of these belongs to a later page.
    let oldest = if found.len() > wanted.limit { found.last().map_or(0, |e| e.place) } else { 0 };
    let pings = pings.into_iter().map(of_ping);
    found.extend(pings.filter(|e| e.place < end && e.place >= oldest));
    // A ping came before the record that it stands before; the newest of several pings goes first.
    found.sort_by(|a, b| {
        (b.place, b.kind == "attempt").cmp(&(a.place, a.kind == "attempt")).then(b.at.cmp(&a.at))
    });
    let Some(last) = found.get(wanted.limit.saturating_sub(1)).map(|e| e.place) else {
        return (found, None);
    };
    // All of one place go on one page: the cursor cannot tell them apart.
    let more = found.iter().any(|e| e.place < last);
    found.retain(|e| e.place >= last);
    (found, more.then_some(last))
}

fn of_ping(ping: Ping) -> Exchange {
    Exchange {
        kind: "ping",
        at: ping.result.at,
        endpoint: ping.endpoint,
        attempt: None,
        status: ping.result.status,
        took_ms: ping.result.took_ms,
        error: ping.result.error,
        request: ping.request,
        body: Some(ping.body),
        response: ping.response,
        place: ping.before,
    }
}

/// Up to `limit`, newest first.
fn attempts_before(store: &Store, end: Seq, limit: usize) -> Vec<Exchange> {
    let mut end = end.min(store.next_seq());
    let mut found = Vec::new();
    let mut events = HashMap::new();
    while end > 1 && found.len() < limit {
        let start = end.saturating_sub(STEP as Seq).max(1);
        let (records, _) = store.records_from(start, STEP);
        let records = records.into_iter().rev().filter(|(seq, _)| *seq < end);
        found.extend(records.filter_map(|(seq, record)| {
            let Record::AttemptFinished { key, attempt, .. } = record else { return None };
            let event = events.entry(key.event).or_insert_with(|| store.event(key.event));
            let new = event.as_ref().map(|event| &event.new);
            Some(Exchange {
                kind: "attempt",
                at: attempt.started_at.to_rfc3339(),
                endpoint: key.handler.to_string(),
                attempt: Some(OfEvent {
                    seq: key.event,
                    event_id: new.map(|new| new.id.clone()),
                    event_type: new.map(|new| new.kind.clone()),
                    attempt: attempt.number,
                    generation: attempt.generation,
                }),
                status: status_of(attempt.response.as_deref()),
                took_ms: attempt.took_ms,
                error: attempt.outcome.reason().map(str::to_owned),
                request: attempt.request,
                body: new.map(|new| String::from_utf8_lossy(&new.body).into_owned()),
                response: attempt.response,
                place: seq,
            })
        }));
        end = start;
    }
    found.truncate(limit);
    found
}
