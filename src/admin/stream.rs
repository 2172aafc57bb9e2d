//! The live stream: server-sent events, one for each new event and each attempt's result.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::AdminContext;
use super::body::{Answer, stream};
use super::lists::{blocking, event_item};
use super::problem::Problem;
use super::query;
use super::wire::{AttemptJson, StreamItem, due_of};
use crate::delivery::Seq;
use crate::store::record::Record;
use crate::store::{Store, StoredEvent};

const STEP: usize = 100;
/// Where the log cannot be read just now: how often and how long to wait before the stream is cut off.
/// The reader then comes again and names the last record it has seen.
const STUCK_TRIES: u32 = 20;
const STUCK_WAIT: Duration = Duration::from_millis(250);
/// A comment goes out this often, so that a reader that has gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// From the record after `last_id` on; without one, from now on.
pub fn events(
    cx: &Arc<AdminContext>,
    query: &str,
    last_id: Option<&str>,
) -> Result<Answer, Problem> {
    let brief = query::brief(query)?;
    let from = match last_id {
        None => cx.store.progress().borrow().applied + 1,
        Some(text) => match text.trim().parse::<Seq>() {
            Ok(seq) => seq.saturating_add(1),
            Err(_) => return Err(Problem::bad(format!("Last-Event-ID {text:?} is none of ours"))),
        },
    };
    let (tx, answer) = stream("text/event-stream");
    tokio::spawn(feed(cx.clone(), from, brief, tx));
    Ok(answer)
}

async fn feed(
    cx: Arc<AdminContext>,
    mut from: Seq,
    brief: bool,
    tx: mpsc::Sender<std::io::Result<Bytes>>,
) {
    let mut progress = cx.store.progress();
    let mut stuck = 0;
    // Who is cut off before anything comes goes on from here, too.
    let mut chunk = Bytes::from(format!(": bluehook\nid: {}\n\n", from.saturating_sub(1)));
    loop {
        // Ends when the reader has gone; waits while it is slow.
        if tx.send(Ok(chunk)).await.is_err() {
            return;
        }
        chunk = loop {
            let applied = progress.borrow_and_update().applied;
            if from <= applied {
                match read(&cx, from, applied, brief).await {
                    Ok((text, next)) => {
                        stuck = if next > from { 0 } else { stuck + 1 };
                        if stuck > STUCK_TRIES {
                            let why = std::io::Error::other("the log cannot be read");
                            let _ = tx.send(Err(why)).await;
                            return;
                        }
                        if stuck > 0 {
                            tokio::time::sleep(STUCK_WAIT).await;
                        }
                        from = next;
                        if !text.is_empty() {
                            break text.into();
                        }
                        continue;
                    }
                    Err(problem) => {
                        let _ = tx.send(Err(std::io::Error::other(problem.detail))).await;
                        return;
                    }
                }
            }
            tokio::select! {
                changed = progress.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(KEEP_ALIVE) => break Bytes::from_static(b": still here\n\n"),
                () = tx.closed() => return,
            }
        };
    }
}

async fn read(
    cx: &Arc<AdminContext>,
    from: Seq,
    applied: Seq,
    brief: bool,
) -> Result<(String, Seq), Problem> {
    let context = cx.clone();
    blocking(cx, move |store| {
        let (records, next) = store.records_from(from, STEP);
        let items = records.into_iter().filter(|(seq, _)| *seq <= applied);
        let mut text = String::new();
        for (seq, record) in items {
            if let Some(item) = item(&context, store, seq, record, brief) {
                let json = serde_json::to_string(&item).unwrap_or_default();
                text.push_str(&format!("id: {seq}\ndata: {json}\n\n"));
            }
        }
        (text, next.min(applied + 1))
    })
    .await
}

fn item(
    cx: &AdminContext,
    store: &Store,
    seq: Seq,
    record: Record,
    brief: bool,
) -> Option<StreamItem> {
    match record {
        Record::Event(_) => {
            let event = store.event(seq)?;
            let deliveries = Vec::new();
            let stored = StoredEvent { event, duplicates: 0, conflict: false, deliveries };
            Some(StreamItem::Event(event_item(cx, &stored, brief)))
        }
        Record::AttemptFinished { key, attempt, next } => {
            let event = store.event(key.event)?;
            Some(StreamItem::Attempt {
                seq: key.event,
                event_id: event.new.id,
                event_type: event.new.kind,
                handler: key.handler.to_string(),
                state: next.name().to_owned(),
                due_at: due_of(store, &next),
                attempt: match brief {
                    true => AttemptJson { request: None, response: None, ..(&attempt).into() },
                    false => (&attempt).into(),
                },
            })
        }
        _ => None,
    }
}
