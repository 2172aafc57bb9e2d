//! What the planner asks of the index.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Configured, RunnerHandler, Shared};
use crate::clock::Timestamp;
use crate::config::{Order, Start};
use crate::delivery::{Delivery, HandlerName, Seq};
use crate::replay::planner::{Command, Found, Head, Input};
use crate::store::record::Record;
use crate::store::{EventHead, Store};

/// The most unsettled deliveries read when a handler with an order starts.
const UNSETTLED_MAX: usize = 200_000;

/// Answers `Load`, `FetchHeads` or `FetchDue`.
pub(super) async fn answer(shared: Arc<Shared>, configured: Arc<Configured>, question: Command) {
    if let Command::Load { handler, .. } = &question
        && !introduce(&shared, &configured, handler).await
    {
        return;
    }
    let store = shared.store.clone();
    let read = tokio::task::spawn_blocking(move || read(&store, &configured, question));
    match read.await {
        Ok(Some(input)) => shared.send(input).await,
        Ok(None) => {}
        Err(e) => tracing::error!("reading the index for the replayer failed: {e}"),
    }
}

/// A handler that the store has never met is entered in the log. False when that cannot be done.
async fn introduce(
    shared: &Arc<Shared>,
    configured: &Arc<Configured>,
    handler: &HandlerName,
) -> bool {
    // An index that cannot be read is built anew, and then the question comes again.
    let Some(stats) = shared.store.known_stats(handler) else { return false };
    if stats.cursor.is_some() {
        return true;
    }
    let from = first_event(configured, &shared.store);
    let record = Record::HandlerSeen { handler: handler.clone(), from };
    shared.append(&[record], |_| !shared.stopping.load(Ordering::Relaxed)).await.is_some()
}

fn first_event(configured: &Configured, store: &Store) -> Seq {
    match configured.handler.start {
        Start::Now => configured.new_from.min(store.next_seq()),
        Start::Beginning => 1,
    }
}

fn read(store: &Store, configured: &Configured, question: Command) -> Option<Input> {
    match question {
        Command::Load { handler, ticket, unsettled } => {
            let stats = store.known_stats(&handler)?;
            let cursor = stats.cursor.unwrap_or_else(|| first_event(configured, store));
            let conversations = configured.handler.plan.order == Order::Conversation;
            let unsettled = if unsettled {
                let all = store.due(&handler, Timestamp::MAX, UNSETTLED_MAX);
                with_conversations(store, all, conversations)
            } else {
                Vec::new()
            };
            Some(Input::Loaded { handler, ticket, cursor, paused: stats.paused, unsettled })
        }
        Command::FetchHeads { handler, ticket, from, limit } => {
            let (found, next) = store.heads_from(from, limit);
            let looked_at = found.len();
            let heads: Vec<Head> = found
                .into_iter()
                .filter(|head| wants(store, &configured.handler, head))
                .map(|h| Head { seq: h.seq, time: h.time, conversation: h.conversation })
                .collect();
            let skipped = u64::try_from(looked_at - heads.len()).unwrap_or(0);
            Some(Input::Heads { handler, ticket, heads, next, skipped })
        }
        Command::FetchDue { handler, ticket, until, limit, conversations } => {
            let due = store.due(&handler, until, limit);
            let next = store.next_due(&handler, until);
            let found = with_conversations(store, due, conversations);
            Some(Input::Due { handler, ticket, found, next })
        }
        _ => None,
    }
}

/// An event whose `when` fails is wanted: the attempt then says why.
fn wants(store: &Store, handler: &RunnerHandler, head: &EventHead) -> bool {
    if head.imported || !(handler.matches_kind)(&head.kind) {
        return false;
    }
    let Some(when) = &handler.when else { return true };
    let Some(event) = store.event(head.seq) else { return true };
    let message = handler.message_of(store, head.seq);
    when(&event, message.as_ref()).unwrap_or(true)
}

fn with_conversations(store: &Store, deliveries: Vec<Delivery>, wanted: bool) -> Vec<Found> {
    let conversation = |delivery: &Delivery| {
        let event = delivery.key.event;
        let head = store.heads_from(event, 1).0.into_iter().next()?;
        if head.seq == event { head.conversation } else { None }
    };
    deliveries
        .into_iter()
        .map(|delivery| Found {
            conversation: if wanted { conversation(&delivery) } else { None },
            delivery,
        })
        .collect()
}
