//! Export and import: whole events with their deliveries, one JSON object a line.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;

use super::AdminContext;
use super::body::{Answer, stream};
use super::change::{BUSY_TRIES, BUSY_WAIT, wait_applied};
use super::problem::Problem;
use super::query;
use super::wire::{EventJson, Imported};
use crate::store::AppendError;
use crate::store::record::RECORD_BYTES_MAX;
use crate::store::transfer::ImportError;

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
    let mut import = Import { cx, done: Imported::default(), line: 0 };
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
            import.line += 1;
            return Err(import.bad("it is too long"));
        }
    }
    import.line(&rest).await?;
    wait_applied(&cx.store, cx.store.durable_seq()).await;
    cx.replay.nudge().await;
    Ok(import.done)
}

struct Import<'a> {
    cx: &'a Arc<AdminContext>,
    done: Imported,
    line: u64,
}

impl Import<'_> {
    fn bad(&self, why: impl std::fmt::Display) -> Problem {
        Problem::bad(self.where_it_stopped(why))
    }

    fn where_it_stopped(&self, why: impl std::fmt::Display) -> String {
        let before = self.done.events + self.done.known;
        format!("cannot import line {}: {why}; the {before} events before it are in", self.line)
    }

    async fn line(&mut self, line: &[u8]) -> Result<(), Problem> {
        self.line += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let json: EventJson = serde_json::from_slice(line).map_err(|e| self.bad(e))?;
        let store = &self.cx.store;
        for _ in 0..BUSY_TRIES {
            match store.import(&json).await {
                Ok(true) => {
                    self.done.events += 1;
                    self.done.deliveries += json.deliveries.len() as u64;
                }
                Ok(false) => self.done.known += 1,
                Err(ImportError::Append(AppendError::Busy)) => {
                    tokio::time::sleep(BUSY_WAIT).await;
                    continue;
                }
                Err(ImportError::Append(e)) => {
                    let problem = Problem::append(e);
                    return Err(Problem {
                        detail: self.where_it_stopped(&problem.detail),
                        ..problem
                    });
                }
                Err(ImportError::Line(why)) => return Err(self.bad(why)),
            }
            return Ok(());
        }
        let problem = Problem::append(AppendError::Busy);
        Err(Problem { detail: self.where_it_stopped(&problem.detail), ..problem })
    }
}
