//! The records that begin something, of one handler, one after the other: the index takes the highest
//! event started as the handler's cursor, so a later start must never be in the log without the
//! earlier ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::{Configured, Launch, Message, Shared};
use crate::delivery::{Delivery, DeliveryKey, Generation, Outcome, State};
use crate::event::Event;
use crate::replay::planner::{Command, Input};
use crate::store::record::Record;

pub(super) struct Queued {
    pub configured: Arc<Configured>,
    /// What the command was decided on: void when the store has been reopened since.
    pub epoch: u64,
    pub command: Command,
}

pub(super) async fn run(shared: Arc<Shared>, mut queue: mpsc::UnboundedReceiver<Queued>) {
    while let Some(Queued { configured, epoch, command }) = queue.recv().await {
        let still = |now| now == epoch && !shared.stopping.load(Ordering::Relaxed);
        match command {
            Command::Start { key, generation, number, first } => {
                let start = Start { key, generation, number, first };
                let message = match start.begin(&shared, &configured, &still).await {
                    Some(event) => {
                        let Start { key, generation, number, .. } = start;
                        Message::Launch(Launch { configured, key, generation, number, event })
                    }
                    None => Message::Input(Input::Dropped { key: start.key }),
                };
                let _ = shared.inbox.send(message).await;
            }
            Command::Park { key, due } => {
                let state = State::Scheduled { due };
                let as_of = key.event;
                let delivery =
                    Delivery { key, generation: 0, attempts: 0, open_attempt: None, state };
                shared.append(Record::Snapshot { delivery, attempts: vec![], as_of }, still).await;
            }
            Command::Moved { handler, to } => {
                shared.append(Record::HandlerMoved { handler, to }, still).await;
            }
            // Never queued.
            Command::Load { .. }
            | Command::FetchHeads { .. }
            | Command::FetchDue { .. }
            | Command::Settle { .. } => {}
        }
    }
}

struct Start {
    key: DeliveryKey,
    generation: Generation,
    number: u32,
    first: bool,
}

impl Start {
    /// Logs the start. `None`: it must not run after all.
    async fn begin(
        &self,
        shared: &Arc<Shared>,
        configured: &Arc<Configured>,
        still: &impl Fn(u64) -> bool,
    ) -> Option<Result<Arc<Event>, Outcome>> {
        let (store, key) = (shared.store.clone(), self.key.clone());
        let when = configured.handler.when.clone();
        let read = tokio::task::spawn_blocking(move || {
            let event = match store.event(key.event) {
                // The disk may answer another time, and the index may be on its way.
                None => Err(Outcome::retry("the event could not be read from the log")),
                Some(event) => match when.map_or(Ok(true), |when| when(&event)) {
                    Ok(_) => Ok(Arc::new(event)),
                    Err(e) => Err(Outcome::reject(format!("`when` failed: {e}"))),
                },
            };
            (store.delivery(&key), event)
        });
        let (delivery, event) = read.await.ok()?;
        if !self.is_wanted(delivery.as_ref()) {
            return None;
        }
        let (key, generation, number) = (self.key.clone(), self.generation, self.number);
        shared.append(Record::AttemptStarted { key, generation, number }, still).await?;
        Some(event)
    }

    /// Whether the delivery is still as the planner knew it.
    fn is_wanted(&self, delivery: Option<&Delivery>) -> bool {
        match delivery {
            // Parked a moment ago, or from the cursor.
            None => self.generation == 0 && self.number == 1,
            Some(delivery) => {
                !self.first
                    && delivery.generation == self.generation
                    && delivery.attempts.saturating_add(1) == self.number
                    && delivery.open_attempt.is_none()
                    && !delivery.state.is_settled()
            }
        }
    }
}
