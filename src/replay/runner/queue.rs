//! The records that begin something, of one handler, one after the other: the index takes the highest
//! event started as the handler's cursor, so a later start must never be in the log without the
//! earlier ones. What waits goes into the log together.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::{Configured, Launch, Message, Shared, Subject};
use crate::delivery::{Delivery, DeliveryKey, Generation, Outcome, State};
use crate::replay::planner::{Command, Input};
use crate::store::Store;
use crate::store::record::Record;

/// Commands carried out together.
const BATCH_MAX: usize = 64;

pub(super) struct Queued {
    pub configured: Arc<Configured>,
    /// What the command was decided on: void when the store has been reopened since.
    pub epoch: u64,
    pub command: Command,
}

pub(super) async fn run(shared: Arc<Shared>, mut queue: mpsc::UnboundedReceiver<Queued>) {
    let mut next = queue.recv().await;
    while let Some(first) = next.take() {
        let mut batch = vec![first];
        // Only what was decided on the same state, for the handler as it was configured then.
        while batch.len() < BATCH_MAX
            && let Ok(queued) = queue.try_recv()
        {
            if queued.epoch == batch[0].epoch
                && Arc::ptr_eq(&queued.configured, &batch[0].configured)
            {
                batch.push(queued);
            } else {
                next = Some(queued);
                break;
            }
        }
        carry_out(&shared, batch).await;
        if next.is_none() {
            next = queue.recv().await;
        }
    }
}

async fn carry_out(shared: &Arc<Shared>, batch: Vec<Queued>) {
    let Some(Queued { configured, epoch, .. }) = batch.first() else { return };
    let (configured, epoch) = (Arc::clone(configured), *epoch);
    let (store, handler) = (shared.store.clone(), Arc::clone(&configured));
    let read = tokio::task::spawn_blocking(move || {
        let commands = batch.into_iter().map(|queued| queued.command);
        commands.map(|command| Step::prepare(&store, &handler, command)).collect::<Vec<_>>()
    });
    let Ok(steps) = read.await else { return };
    let records: Vec<Record> = steps.iter().filter_map(Step::record).collect();
    let still = |now| now == epoch && !shared.stopping.load(Ordering::Relaxed);
    let logged = records.is_empty() || shared.append(&records, still).await.is_some();
    for step in steps {
        if let Step::Start { start, event } = step {
            let Start { key, generation, number, .. } = start;
            let message = match event {
                Some(event) if logged => Message::Launch(Launch {
                    configured: Arc::clone(&configured),
                    key,
                    generation,
                    number,
                    event,
                }),
                _ => Message::Input(Input::Dropped { key }),
            };
            let _ = shared.inbox.send(message).await;
        }
    }
}

/// A command with all that is read for it.
enum Step {
    Start {
        start: Start,
        /// `None`: it must not run after all.
        event: Option<Result<Subject, Outcome>>,
    },
    Log(Record),
    /// Never queued.
    Nothing,
}

impl Step {
    fn prepare(store: &Store, configured: &Configured, command: Command) -> Step {
        match command {
            Command::Start { key, generation, number, first } => {
                let start = Start { key, generation, number, first };
                let wanted = start.is_wanted(store.delivery(&start.key).as_ref());
                let event = wanted.then(|| start.event(store, configured));
                Step::Start { start, event }
            }
            Command::Park { key, due } => {
                let state = State::Scheduled { due };
                let as_of = key.event;
                let delivery =
                    Delivery { key, generation: 0, attempts: 0, open_attempt: None, state };
                Step::Log(Record::Snapshot {
                    delivery,
                    attempts: vec![],
                    as_of,
                    conversation: None,
                })
            }
            Command::Moved { handler, to } => Step::Log(Record::HandlerMoved { handler, to }),
            Command::Load { .. }
            | Command::FetchHeads { .. }
            | Command::FetchDue { .. }
            | Command::Circuit { .. }
            | Command::Settle { .. } => Step::Nothing,
        }
    }

    fn record(&self) -> Option<Record> {
        match self {
            Step::Start { start, event: Some(_) } => Some(Record::AttemptStarted {
                key: start.key.clone(),
                generation: start.generation,
                number: start.number,
            }),
            Step::Log(record) => Some(record.clone()),
            Step::Start { event: None, .. } | Step::Nothing => None,
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
    /// The event; or why the handler cannot be run on it.
    fn event(&self, store: &Store, configured: &Configured) -> Result<Subject, Outcome> {
        // The disk may answer another time, and the index may be on its way.
        let event = store
            .event(self.key.event)
            .ok_or_else(|| Outcome::retry("the event could not be read from the log"))?;
        let handler = &configured.handler;
        let message = handler.message_of(store, self.key.event);
        let when = handler.when.as_ref();
        match when.map_or(Ok(true), |when| when(&event, message.as_ref())) {
            Ok(_) => Ok(Subject { event: Arc::new(event), message: message.map(Arc::new) }),
            Err(e) => Err(Outcome::reject(format!("`when` failed: {e}"))),
        }
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
