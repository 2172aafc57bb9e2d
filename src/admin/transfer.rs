//! Export and import: whole events with their deliveries, one JSON object a line.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use http_body_util::BodyExt as _;
use hyper::body::Body;

use super::AdminContext;
use super::body::{Answer, stream};
use super::change::{BUSY_TRIES, BUSY_WAIT, wait_applied};
use super::problem::Problem;
use super::query;
use super::wire::{EventJson, Imported};
use crate::clock::BoxFuture;
use crate::store::record::RECORD_BYTES_MAX;
use crate::store::transfer::ImportError;
use crate::store::{AppendError, Store};

/// A payload of the largest size in base64 or escaped, with its attempts.
const LINE_BYTES_MAX: usize = 4 * RECORD_BYTES_MAX;

/// Oldest first, up to what is stored when the request comes.
pub async fn export(cx: &Arc<AdminContext>, query: &str) -> Result<Answer, Problem> {
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
    let (tx, answer) = stream("application/x-ndjson");
    let lines = cx.store.export(asked.filter);
    tokio::task::spawn_blocking(move || {
        for event in lines {
            let line = event.map_err(std::io::Error::other).and_then(|event| {
                let mut line = serde_json::to_vec(&event)?;
                line.push(b'\n');
                Ok(line.into())
            });
            // An error cuts the answer off, so that nobody takes it for all.
            if tx.blocking_send(line).is_err() {
                return;
            }
        }
    });
    Ok(answer)
}

/// Events on their way to the disk, which one sync takes together, and the length of their lines.
const UNDER_WAY_MAX: usize = 256;
const UNDER_WAY_BYTES_MAX: usize = 4 << 20;

/// Reads lines as they come; each event is durable before the answer. Lines before a bad one stay
/// imported: importing again is harmless.
pub async fn import<B>(cx: &Arc<AdminContext>, mut body: B) -> Result<Imported, Problem>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: std::error::Error,
{
    let done = import_lines(cx, &mut body).await;
    if done.is_err() {
        // Who is still sending would not see the answer.
        while let Some(Ok(_)) = body.frame().await {}
    }
    done
}

async fn import_lines<B>(cx: &Arc<AdminContext>, body: &mut B) -> Result<Imported, Problem>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: std::error::Error,
{
    let mut import = Import::new(cx);
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
            import.settle_all().await?;
            import.line += 1;
            return Err(bad(import.line, &import.done, "it is too long"));
        }
    }
    import.line(&rest).await?;
    import.settle_all().await?;
    wait_applied(&cx.store, cx.store.durable_seq()).await;
    cx.replay.nudge().await;
    Ok(import.done)
}

/// What became of a line: its number and length, its deliveries, and whether its event was new.
type Settled = (u64, usize, u64, Result<bool, ImportError>);

struct Import<'a> {
    cx: &'a Arc<AdminContext>,
    /// Of the lines before those under way.
    done: Imported,
    /// The last one read.
    line: u64,
    /// In the order of the lines.
    under_way: FuturesOrdered<BoxFuture<'a, Settled>>,
    bytes_under_way: usize,
}

fn bad(line: u64, done: &Imported, why: impl std::fmt::Display) -> Problem {
    Problem::bad(where_it_stopped(line, done, why))
}

fn where_it_stopped(line: u64, done: &Imported, why: impl std::fmt::Display) -> String {
    let before = done.events + done.known;
    format!("cannot import line {line}: {why}; the {before} events before it are in")
}

impl<'a> Import<'a> {
    fn new(cx: &'a Arc<AdminContext>) -> Import<'a> {
        let (done, under_way) = (Imported::default(), FuturesOrdered::new());
        Import { cx, done, line: 0, under_way, bytes_under_way: 0 }
    }

    async fn line(&mut self, line: &[u8]) -> Result<(), Problem> {
        if line.iter().all(u8::is_ascii_whitespace) {
            self.line += 1;
            return Ok(());
        }
        let json: EventJson = match serde_json::from_slice(line) {
            Ok(json) => json,
            Err(error) => {
                self.settle_all().await?;
                return Err(bad(self.line + 1, &self.done, error));
            }
        };
        self.line += 1;
        let (number, length, store) = (self.line, line.len(), &self.cx.store);
        self.bytes_under_way += length;
        self.under_way.push_back(Box::pin(async move {
            (number, length, json.deliveries.len() as u64, store_event(store, &json).await)
        }));
        while self.under_way.len() >= UNDER_WAY_MAX || self.bytes_under_way > UNDER_WAY_BYTES_MAX {
            self.settle_one().await?;
        }
        Ok(())
    }

    async fn settle_all(&mut self) -> Result<(), Problem> {
        while !self.under_way.is_empty() {
            self.settle_one().await?;
        }
        Ok(())
    }

    async fn settle_one(&mut self) -> Result<(), Problem> {
        let Some((line, length, deliveries, result)) = self.under_way.next().await else {
            return Ok(());
        };
        self.bytes_under_way -= length;
        match result {
            Ok(true) => {
                self.done.events += 1;
                self.done.deliveries += deliveries;
            }
            Ok(false) => self.done.known += 1,
            Err(ImportError::Append(e)) => {
                let problem = Problem::append(e);
                let detail = where_it_stopped(line, &self.done, &problem.detail);
                return Err(Problem { detail, ..problem });
            }
            Err(ImportError::Line(why)) => return Err(bad(line, &self.done, why)),
        }
        Ok(())
    }
}

/// Waits where others keep the log busy, for a while.
async fn store_event(store: &Store, json: &EventJson) -> Result<bool, ImportError> {
    for _ in 0..BUSY_TRIES {
        match store.import(json).await {
            Err(ImportError::Append(AppendError::Busy)) => tokio::time::sleep(BUSY_WAIT).await,
            settled => return settled,
        }
    }
    Err(ImportError::Append(AppendError::Busy))
}
