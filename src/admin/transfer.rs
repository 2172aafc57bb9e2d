//! Export and import: whole events with their deliveries, one JSON object a line.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::sync::mpsc;

use super::AdminContext;
use super::body::{Answer, stream};
use super::change::{patiently, wait_applied};
use super::lists::blocking;
use super::problem::Problem;
use super::query;
use super::wire::{EventJson, Imported};
use crate::clock::Timestamp;
use crate::delivery::Seq;
use crate::store::Store;
use crate::store::record::{RECORD_BYTES_MAX, Record};

const STEP: usize = 64;
/// A payload of the largest size in base64 or escaped, with its attempts.
const LINE_BYTES_MAX: usize = 4 * RECORD_BYTES_MAX;

/// Oldest first, up to what is stored when the request comes.
pub fn export(cx: &Arc<AdminContext>, query: &str) -> Result<Answer, Problem> {
    let asked = query::list(query)?;
    let plain = query::ListQuery {
        filter: crate::store::EventFilter {
            since: asked.filter.since,
            until: asked.filter.until,
            ..crate::store::EventFilter::default()
        },
        ..query::list("")?
    };
    if asked != plain {
        return Err(Problem::bad("an export takes no parameter but since and until"));
    }
    let (since, until) = (asked.filter.since, asked.filter.until);
    let (tx, answer) = stream("application/x-ndjson");
    let store = cx.store.clone();
    tokio::task::spawn_blocking(move || write_all(&store, since, until, &tx));
    Ok(answer)
}

fn write_all(
    store: &Store,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tx: &mpsc::Sender<std::io::Result<Bytes>>,
) {
    let end = store.next_seq();
    let mut from: Seq = 1;
    while from < end {
        let (heads, next) = store.heads_from(from, STEP);
        for head in heads.iter().filter(|head| head.seq < end) {
            // Gone since: retention dropped it.
            let Some(stored) = store.stored_event(head.seq) else { continue };
            let at = stored.event.new.received_at;
            if since.is_some_and(|since| at < since) || until.is_some_and(|until| at >= until) {
                continue;
            }
            let mut line = serde_json::to_vec(&EventJson::of(&stored)).unwrap_or_default();
            line.push(b'\n');
            if tx.blocking_send(Ok(line.into())).is_err() {
                return;
            }
        }
        if next <= from {
            return;
        }
        from = next;
    }
}

/// Reads lines as they come; each event is durable before the answer. Lines before a bad one stay
/// imported: importing again is harmless.
pub async fn import<B>(cx: &Arc<AdminContext>, mut body: B) -> Result<Imported, Problem>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: std::error::Error,
{
    let mut import = Import { cx, done: Imported::default(), line: 0, last: 0 };
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Problem::bad(format!("the import was cut off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        // Only the new part can hold the end of the line.
        let mut looked = rest.len();
        rest.extend_from_slice(&data);
        while let Some(at) = rest[looked..].iter().position(|&b| b == b'\n') {
            let line = rest.split_to(looked + at + 1);
            import.line(&line).await?;
            looked = 0;
        }
        if rest.len() > LINE_BYTES_MAX {
            return Err(import.bad("it is too long"));
        }
    }
    import.line(&rest).await?;
    if import.last > 0 {
        wait_applied(&cx.store, import.last).await;
        cx.replay.nudge().await;
    }
    Ok(import.done)
}

struct Import<'a> {
    cx: &'a Arc<AdminContext>,
    done: Imported,
    line: u64,
    last: Seq,
}

impl Import<'_> {
    fn bad(&self, why: impl std::fmt::Display) -> Problem {
        Problem::bad(format!(
            "cannot import line {}: {why}; the {} events before it are in",
            self.line,
            self.done.events + self.done.known
        ))
    }

    async fn line(&mut self, line: &[u8]) -> Result<(), Problem> {
        self.line += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let json: EventJson = serde_json::from_slice(line).map_err(|e| self.bad(e))?;
        let new = json.to_new().map_err(|e| self.bad(e))?;
        let deliveries = json.deliveries.iter().map(|d| d.to_stored(0));
        let deliveries = deliveries.collect::<Result<Vec<_>, _>>().map_err(|e| self.bad(e))?;

        let store = &self.cx.store;
        let receipt = patiently(|| store.append_event(new.clone())).await?;
        let event = receipt.seq();
        let mut have = Vec::new();
        if receipt.is_duplicate() {
            self.done.known += 1;
            // An import that was cut off between an event and its deliveries is completed.
            wait_applied(store, event).await;
            have = blocking(self.cx, move |store| {
                store.stored_event(event).map(|stored| stored.deliveries).unwrap_or_default()
            })
            .await?;
        } else {
            self.done.events += 1;
        }
        self.last = self.last.max(event);
        for (mut delivery, attempts) in deliveries {
            delivery.key.event = event;
            if have.iter().any(|d| d.delivery.key == delivery.key) {
                continue;
            }
            let record = Record::Snapshot { delivery, attempts, as_of: event };
            let receipt = patiently(|| store.append_durable(record.clone())).await?;
            self.last = self.last.max(receipt.seq());
            self.done.deliveries += 1;
        }
        Ok(())
    }
}
