//! Follow-up rules: a start event ("the customer read it") sets a timer in its conversation; if nobody answers
//! there before it is due, an event of type `followup.due` goes to the log, and is handled like any other.
//!
//! A timer is a delivery of the start event to the rule, scheduled for when it is due: so it survives restarts,
//! clocks, retention and rebuilds as deliveries do. In a conversation a rule has one timer; one that fired bars
//! further ones until somebody answers, or every message that is read would bring the next reminder, the
//! reminder's own included.
//!
//! The rule walks the log in order, with a cursor as a handler has. It fires nothing before it has seen all that
//! was in the log at that moment, so an answer that was acknowledged is never overlooked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use wildmatch::WildMatch;

use crate::clock::{Clock, Timestamp};
use crate::config::FollowUp;
use crate::delivery::{Attempt, Delivery, DeliveryKey, HandlerName, Outcome, Seq, State};
use crate::event::{Event, NewEvent, VerifiedBy};
use crate::message;
use crate::store::record::Record;
use crate::store::{AppendError, EventHead, Store};

pub const DUE: &str = "followup.due";
/// Events looked at together.
const STEP: usize = 256;
/// Timers fired together.
const FIRED_TOGETHER: usize = 64;
/// Wake-ups are hints; this is how long one may be missed, and how long a store that takes nothing is left alone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often, and how long after one another, a start event is read that can't be read.
const READS_MAX: u32 = 5;
const READ_AGAIN: Duration = Duration::from_secs(600);
/// Events passed over that are worth a record of the cursor of their own.
const PASSED_MIN: u64 = 1_024;
/// Blue Replies' last attempt comes 1 h 12 min 30 s after the first (its article, step 4): by so much an event
/// may be late.
const LATE_MAX: Duration = Duration::from_secs(75 * 60);
/// And an answer by so much earlier in the log than what it answers: one failed delivery of the start event, or
/// clocks that differ.
const SWAPPED_MAX: Duration = Duration::from_secs(150);

struct Rule {
    name: HandlerName,
    start: Vec<WildMatch>,
    cancel: Vec<WildMatch>,
    after: Duration,
    repeat: bool,
}

fn any(globs: &[WildMatch], kind: &str) -> bool {
    globs.iter().any(|glob| glob.matches(kind))
}

/// The store takes or gives nothing just now; nothing is lost, and it is asked again.
#[derive(Debug, PartialEq, Eq)]
pub struct Stalled;

impl From<AppendError> for Stalled {
    fn from(_: AppendError) -> Stalled {
        Stalled
    }
}

/// One rule at work.
pub struct FollowUps {
    store: Store,
    clock: Arc<dyn Clock>,
    rule: Rule,
    /// Where the log was when the rule first came up: there it begins, if the store has never met it.
    new_from: Seq,
    /// The next event to look at, and where the log says so; void in another epoch.
    cursor: Option<Cursor>,
}

#[derive(Clone, Copy)]
struct Cursor {
    epoch: u64,
    next: Seq,
    logged: Seq,
}

impl FollowUps {
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>, rule: &FollowUp, new_from: Seq) -> FollowUps {
        let globs = |globs: &[String]| globs.iter().map(|glob| WildMatch::new(glob)).collect();
        let rule = Rule {
            name: rule.name.clone(),
            start: globs(&rule.start),
            cancel: globs(&rule.cancel),
            after: rule.after,
            repeat: rule.repeat,
        };
        FollowUps { store, clock, rule, new_from, cursor: None }
    }

    /// Until told to stop.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        // Events come in before the index can tell whether the rule is new, and the process may end before that
        // too. For a rule that the store has met the record means nothing.
        if let Err(error) = self.store.append(self.seen()).await {
            tracing::warn!(?error, "a follow-up rule could not be entered yet; trying again later");
        }
        let mut progress = self.store.progress();
        while !*stop.borrow() {
            progress.borrow_and_update();
            if self.turn().await.is_ok() {
                tokio::select! {
                    _ = stop.changed() => {}
                    changed = progress.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            } else {
                tokio::select! {
                    _ = stop.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        }
    }

    /// Looks at what is new, then fires what is due.
    ///
    /// # Errors
    /// The store is not ready, or takes nothing: call again later.
    pub async fn turn(&mut self) -> Result<(), Stalled> {
        let now = self.store.timeline().at(self.clock.now());
        let known = *self.store.progress().borrow();
        if !known.caught_up {
            return Err(Stalled);
        }
        // Everything that was acknowledged by now is looked at before anything fires. The log itself says what that
        // is: what the index publishes is a moment behind.
        let durable = self.store.durable_seq();
        self.store.wait_applied(durable).await;
        let mut cursor = self.position(known.epoch).await?;
        while cursor.next <= durable {
            cursor = self.walk(cursor, known.log_epoch).await?;
            self.cursor = Some(cursor);
        }
        let stats = self.store.known_stats(&self.rule.name).ok_or(Stalled)?;
        if stats.paused {
            return Ok(());
        }
        loop {
            let due = self.store.due(&self.rule.name, now, FIRED_TOGETHER);
            if due.is_empty() {
                return Ok(());
            }
            let mut records = Vec::with_capacity(due.len());
            let mut stalled = None;
            for delivery in &due {
                match self.fire(delivery, now).await {
                    Ok(record) => records.push(record),
                    Err(error) => {
                        stalled = Some(error);
                        break;
                    }
                }
            }
            if !records.is_empty() {
                let seq = self.store.append_durable_in(known.log_epoch, &records).await?;
                self.store.wait_applied(seq).await;
            }
            if let Some(stalled) = stalled {
                return Err(stalled);
            }
        }
    }

    fn seen(&self) -> Record {
        Record::HandlerSeen { handler: self.rule.name.clone(), from: self.new_from }
    }

    /// Where the rule stands.
    async fn position(&self, epoch: u64) -> Result<Cursor, Stalled> {
        if let Some(cursor) = self.cursor.filter(|cursor| cursor.epoch == epoch) {
            return Ok(cursor);
        }
        let stats = self.store.known_stats(&self.rule.name).ok_or(Stalled)?;
        if let Some(next) = stats.cursor {
            return Ok(Cursor { epoch, next, logged: next });
        }
        let seq = self.store.append_durable(self.seen()).await?.seq();
        self.store.wait_applied(seq).await;
        Ok(Cursor { epoch, next: self.new_from, logged: self.new_from })
    }

    /// One step along the log.
    async fn walk(&self, cursor: Cursor, log_epoch: u64) -> Result<Cursor, Stalled> {
        let (heads, next) = self.store.heads_from(cursor.next, STEP);
        if next == cursor.next {
            return Err(Stalled);
        }
        let mut step =
            Step { rule: &self.rule, store: &self.store, timers: HashMap::new(), records: vec![] };
        for head in heads.iter().filter(|head| !head.imported) {
            step.take(head).ok_or(Stalled)?;
        }
        let mut records = step.records;
        if records.is_empty() && next - cursor.logged < PASSED_MIN {
            return Ok(Cursor { next, ..cursor });
        }
        // With them, or what was decided would be decided again after a crash, on what it led to.
        records.push(Record::HandlerMoved { handler: self.rule.name.clone(), to: next });
        let seq = self.store.append_durable_in(log_epoch, &records).await?;
        self.store.wait_applied(seq).await;
        Ok(Cursor { next, logged: next, ..cursor })
    }

    /// Appends the event and gives what notes that it is done: in between a crash leaves it to be appended again,
    /// under the same id, so the log has it once.
    async fn fire(&self, delivery: &Delivery, now: Timestamp) -> Result<Record, Stalled> {
        let key = &delivery.key;
        let started = self.clock.now();
        let outcome = match self.store.event(key.event) {
            None => Outcome::retry("the event that started it cannot be read from the log"),
            Some(event) if self.is_answered(key)? => {
                tracing::debug!(event = event.seq, rule = %key.handler, "answered after all");
                return Ok(Record::Answered { key: key.clone() });
            }
            Some(event) => {
                let due = self.due_event(&event, started.wall);
                self.store.append_event(due).await?;
                Outcome::Delivered
            }
        };
        let number = delivery.attempts.saturating_add(1);
        let next = match outcome.reason() {
            None => State::Delivered,
            Some(_) if number < READS_MAX => State::Scheduled { due: now.plus(READ_AGAIN) },
            Some(reason) => State::Dead { reason: reason.to_owned() },
        };
        let took_ms = self.clock.now().boot_ms.saturating_sub(started.boot_ms);
        let attempt = Attempt {
            number,
            generation: delivery.generation,
            started_at: started.wall,
            took_ms: u64::try_from(took_ms).unwrap_or(0),
            outcome,
            request: None,
            response: None,
        };
        Ok(Record::AttemptFinished { key: key.clone(), attempt, next })
    }

    /// An imported answer ends no timer by itself.
    fn is_answered(&self, key: &DeliveryKey) -> Result<bool, Stalled> {
        let Some(conversation) = self.store.followed(key).ok_or(Stalled)? else { return Ok(false) };
        let voices = self.store.voices(conversation, key.event + 1..Seq::MAX).ok_or(Stalled)?;
        Ok(voices.iter().any(|voice| any(&self.rule.cancel, &voice.kind)))
    }

    fn due_event(&self, start: &Event, now: Timestamp) -> NewEvent {
        let rule = self.rule.name.follow_up_rule().unwrap_or_default();
        let id = format!("followup:{rule}:{}", start.new.id);
        let view = self.store.message_of(start.seq).map(|message| message.view);
        let conversation = view.as_ref().and_then(|view| view.conversation.clone());
        let conversation = conversation.or_else(|| start.new.conversation.clone());
        let field =
            |of: fn(&message::MessageView) -> Option<&String>| view.as_ref().and_then(of).cloned();
        let payload = json!({
            "eventId": id,
            "type": DUE,
            "timestamp": now.to_rfc3339(),
            "data": {
                "rule": rule,
                "messageId": field(|view| Some(&view.id)),
                "conversation": conversation,
                "from": field(|view| view.from.as_ref()),
                "to": field(|view| view.to.as_ref()).or_else(|| conversation.clone()),
                "body": field(|view| view.body.as_ref()),
                "startedBy": start.new.id,
                "startedAt": start.new.received_at.to_rfc3339(),
                "message": view,
            },
        });
        NewEvent {
            source: start.new.source.clone(),
            id,
            kind: DUE.to_owned(),
            received_at: now,
            headers: vec![],
            verified_by: VerifiedBy::None,
            body: payload.to_string().into(),
            conversation,
            imported: false,
        }
    }
}

/// Events decided on one after the other; what is decided is seen by the next, before it is in the index.
struct Step<'a> {
    rule: &'a Rule,
    store: &'a Store,
    /// By conversation: the event whose timer bars another, as it stands after the records below.
    timers: HashMap<u64, Option<Seq>>,
    records: Vec<Record>,
}

impl Step<'_> {
    /// `None`: the index cannot be read just now, so nothing may be decided.
    fn take(&mut self, head: &EventHead) -> Option<()> {
        let (starts, cancels) =
            (any(&self.rule.start, &head.kind), any(&self.rule.cancel, &head.kind));
        // A receipt may name no more than its message; then the message's other events say who is meant.
        let conversation = match (head.conversation, head.message) {
            (None, Some(message)) if starts || cancels => {
                self.conversation_of(message, head.seq)?
            }
            (known, _) => known,
        };
        let Some(conversation) = conversation else { return Some(()) };
        if cancels && let Some(start) = self.timer(conversation)? {
            self.records.push(Record::Answered { key: self.key(start) });
            self.timers.insert(conversation, None);
        }
        if let Some(message) = head.message.filter(|_| head.conversation.is_some()) {
            for start in self.left_open(message, head.seq)? {
                self.start(&start, conversation, head.seq)?;
            }
        }
        if starts {
            self.start(head, conversation, head.seq)?;
        }
        Some(())
    }

    fn key(&self, event: Seq) -> DeliveryKey {
        DeliveryKey { event, handler: self.rule.name.clone() }
    }

    fn timer(&self, conversation: u64) -> Option<Option<Seq>> {
        match self.timers.get(&conversation) {
            Some(known) => Some(*known),
            None => self.store.follow_up(&self.rule.name, conversation),
        }
    }

    /// As far as the events before `seq` tell.
    fn conversation_of(&self, message: u64, seq: Seq) -> Option<Option<u64>> {
        let events = self.store.heads_of_message(message)?;
        let mut before = events.iter().filter(|event| event.seq < seq);
        Some(before.find_map(|event| event.conversation))
    }

    /// Start events of a message that came before any that tells the conversation.
    fn left_open(&self, message: u64, seq: Seq) -> Option<Vec<EventHead>> {
        let mut events = self.store.heads_of_message(message)?;
        events.retain(|event| event.seq < seq && !event.imported);
        if events.iter().any(|event| event.conversation.is_some()) {
            return Some(vec![]);
        }
        events.retain(|event| any(&self.rule.start, &event.kind));
        Some(events)
    }

    /// Sets the timer of a start event, as of event `seen`.
    fn start(&mut self, start: &EventHead, conversation: u64, seen: Seq) -> Option<()> {
        let key = self.key(start.seq);
        if let Some(other) = self.timer(conversation)? {
            let other = self.store.known_delivery(&self.key(other))?;
            let fired = other.is_some_and(|delivery| delivery.state == State::Delivered);
            if !(self.rule.repeat && fired) {
                return Some(());
            }
        }
        let known = self.store.known_delivery(&key)?.is_some();
        if known || self.is_answered(start, conversation, seen)? {
            return Some(());
        }
        let state = State::Scheduled { due: start.time.plus(self.rule.after) };
        let delivery = Delivery { key, generation: 0, attempts: 0, open_attempt: None, state };
        self.records.push(Record::Snapshot {
            delivery,
            attempts: vec![],
            as_of: start.seq,
            conversation: Some(conversation),
        });
        self.timers.insert(conversation, Some(start.seq));
        Some(())
    }

    /// Whether an answer is in the log already: after the message was sent, where that is known, else from about
    /// the time on at which the start event happened.
    fn is_answered(&self, start: &EventHead, conversation: u64, seen: Seq) -> Option<bool> {
        let events = match start.message {
            Some(message) => self.store.heads_of_message(message)?,
            None => vec![],
        };
        let sent = events.iter().find(|e| e.kind == "message.sent" && e.seq < start.seq);
        let from = sent.map_or(0, |sent| sent.seq);
        let voices = self.store.voices(conversation, from..seen.saturating_add(1))?;
        let since = start.time.minus(self.slack(start));
        Some(voices.iter().any(|voice| {
            let after = sent.is_some() || voice.seq > start.seq || voice.time >= since;
            let other = voice.seq != start.seq && !voice.imported;
            after && other && any(&self.rule.cancel, &voice.kind)
        }))
    }

    /// By how much the start event came late, as it says itself, and by how much events may change places.
    fn slack(&self, start: &EventHead) -> Duration {
        let event = self.store.event(start.seq);
        let late = event.and_then(|event| {
            let own = message::Report::of(&event)?.at;
            Some(event.new.received_at.since(own).min(LATE_MAX))
        });
        late.unwrap_or_default() + SWAPPED_MAX
    }
}

#[cfg(test)]
mod tests;
