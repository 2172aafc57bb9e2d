//! Deliveries and handlers: what attempts, replays and snapshots make of them.

use super::{Applier, At, shortened};
use crate::clock::Timestamp;
use crate::delivery::{
    Attempt, Delivery, DeliveryKey, Generation, HandlerName, Outcome, Seq, State,
};
use crate::store::FIRST_GENERATION;
use crate::store::index::KvError;
use crate::store::index::keys::{self, BucketEntry, DeliveryEntry, HandlerEntry, PlaceValue};

impl Applier {
    pub(super) fn change_handler(
        &mut self,
        name: &HandlerName,
        change: impl FnOnce(&mut HandlerEntry),
    ) -> Result<(), KvError> {
        let key = keys::handler(name);
        let before: Option<HandlerEntry> = self.overlay.get(&key)?;
        let mut entry = before.clone().unwrap_or_default();
        change(&mut entry);
        if before.as_ref() == Some(&entry) { Ok(()) } else { self.overlay.put(key, &entry) }
    }

    pub(super) fn attempt_started(
        &mut self,
        at: At,
        key: DeliveryKey,
        generation: Generation,
        number: u32,
    ) -> Result<(), KvError> {
        if number == 1 && generation == FIRST_GENERATION {
            let after = key.event.saturating_add(1);
            self.change_handler(&key.handler, |h| h.cursor = h.cursor.max(Some(after)))?;
        }
        let old = self.delivery(&key)?;
        let stale = match &old {
            Some(old) => old.delivery.generation > generation || old.delivery.state.is_settled(),
            None => self.was_delivered_at_once(&key)? && generation == FIRST_GENERATION,
        };
        if stale || !self.overlay.has(&keys::event(key.event))? {
            return Ok(());
        }
        let new = DeliveryEntry {
            has_history: old.as_ref().is_some_and(|o| o.has_history),
            changed: at.seq,
            conversation: old.as_ref().and_then(|o| o.conversation),
            delivery: Delivery {
                key,
                generation,
                attempts: number,
                open_attempt: Some(number),
                state: State::Scheduled { due: at.time },
            },
        };
        self.set_delivery(old.as_ref(), Some(new))
    }

    pub(super) fn attempt_finished(
        &mut self,
        at: At,
        key: DeliveryKey,
        attempt: &Attempt,
        next: State,
    ) -> Result<(), KvError> {
        if !self.overlay.has(&keys::event(key.event))? {
            return Ok(());
        }
        let old = self.delivery(&key)?;
        let has_history = old.as_ref().is_some_and(|o| o.has_history);
        let Some((delivery, current)) = self.outcome_counts(&key, attempt, old.as_ref())? else {
            return Ok(());
        };
        if current && !has_history && is_first_success(attempt, &next) {
            self.set_delivered_at_once(at, &key)?;
            return self.set_delivery(old.as_ref(), None);
        }
        let place: PlaceValue = at.place.into();
        self.overlay.put_new(keys::attempt(&key, at.seq), &place)?;
        let state = if current { short_reason(next) } else { delivery.state.clone() };
        let delivery = if current {
            Delivery { attempts: attempt.used_up(), open_attempt: None, state, ..delivery }
        } else {
            delivery
        };
        let changed =
            if current { at.seq } else { old.as_ref().map_or(at.seq, |entry| entry.changed) };
        let conversation = old.as_ref().and_then(|o| o.conversation);
        let new = DeliveryEntry { delivery, changed, has_history: true, conversation };
        self.set_delivery(old.as_ref(), Some(new))
    }

    /// The delivery that an attempt belongs to, and whether its outcome still decides: not one of an
    /// older generation, nor after a person settled the delivery. History keeps the attempt anyway.
    pub(super) fn outcome_counts(
        &self,
        key: &DeliveryKey,
        attempt: &Attempt,
        old: Option<&DeliveryEntry>,
    ) -> Result<Option<(Delivery, bool)>, KvError> {
        if let Some(old) = old {
            // The start may be missing: lost with a fault of the log, or the attempt was never run.
            let due_now = match old.delivery.open_attempt {
                Some(open) => open == attempt.number,
                None => old.delivery.attempts.saturating_add(1) == attempt.number,
            };
            let current = old.delivery.generation == attempt.generation
                && due_now
                && !old.delivery.state.is_settled();
            return Ok(Some((old.delivery.clone(), current)));
        }
        if self.was_delivered_at_once(key)? {
            return Ok(None);
        }
        // Its start lay in a segment that is gone.
        let state = State::Scheduled { due: Timestamp::ZERO };
        let delivery = Delivery {
            key: key.clone(),
            generation: attempt.generation,
            attempts: attempt.number,
            open_attempt: Some(attempt.number),
            state,
        };
        Ok(Some((delivery, true)))
    }

    pub(super) fn discarded(&mut self, at: At, key: &DeliveryKey) -> Result<(), KvError> {
        let Some(old) = self.delivery(key)? else { return Ok(()) };
        if old.delivery.state == State::Delivered {
            return Ok(());
        }
        let mut new = old.clone();
        new.changed = at.seq;
        new.delivery.open_attempt = None;
        new.delivery.state = State::Discarded;
        self.set_delivery(Some(&old), Some(new))
    }

    pub(super) fn replayed(
        &mut self,
        at: At,
        key: DeliveryKey,
        due: Timestamp,
    ) -> Result<(), KvError> {
        if !self.overlay.has(&keys::event(key.event))? {
            return Ok(());
        }
        let old = self.delivery(&key)?;
        let generation = old.as_ref().map_or(FIRST_GENERATION, |o| o.delivery.generation);
        let new = DeliveryEntry {
            has_history: old.as_ref().is_some_and(|o| o.has_history),
            changed: at.seq,
            conversation: old.as_ref().and_then(|o| o.conversation),
            delivery: Delivery {
                key,
                generation: generation.saturating_add(1),
                attempts: 0,
                open_attempt: None,
                state: State::Scheduled { due },
            },
        };
        self.set_delivery(old.as_ref(), Some(new))
    }

    /// Somebody answered in the follow-up's conversation: a timer that runs ends, and the next may begin.
    pub(super) fn answered(&mut self, at: At, key: &DeliveryKey) -> Result<(), KvError> {
        let Some(old) = self.delivery(key)? else { return Ok(()) };
        let mut new = DeliveryEntry { conversation: None, changed: at.seq, ..old.clone() };
        if !old.delivery.state.is_settled() {
            new.delivery.open_attempt = None;
            new.delivery.state = State::Discarded;
        }
        self.set_delivery(Some(&old), Some(new))
    }

    /// What happened after `as_of` wins over the snapshot; its history is taken either way.
    pub(super) fn snapshot(
        &mut self,
        at: At,
        delivery: Delivery,
        attempts: &[Attempt],
        as_of: Seq,
        conversation: Option<u64>,
    ) -> Result<(), KvError> {
        let key = delivery.key.clone();
        if !self.overlay.has(&keys::event(key.event))? {
            return Ok(());
        }
        self.commit()?;
        self.forget_attempts(&key, as_of)?;
        self.overlay.write_out(None)?;
        let old = self.delivery(&key)?;
        let delivery = match &old {
            Some(old) if old.changed > as_of => old.delivery.clone(),
            None if !delivery.state.is_settled()
                && delivery.generation == FIRST_GENERATION
                && self.was_delivered_at_once(&key)? =>
            {
                Delivery { open_attempt: None, state: State::Delivered, ..delivery }
            }
            _ => Delivery { state: short_reason(delivery.state), ..delivery },
        };
        if !attempts.is_empty() {
            let place: PlaceValue = at.place.into();
            self.overlay.put(keys::attempt(&key, at.seq), &place)?;
        }
        let as_of = as_of.min(at.seq);
        let changed = old.as_ref().map_or(as_of, |o| o.changed.max(as_of));
        let conversation = match &old {
            Some(old) if old.changed > as_of => old.conversation,
            _ => conversation,
        };
        let new = DeliveryEntry { delivery, changed, has_history: true, conversation };
        self.set_delivery(old.as_ref(), Some(new))
    }

    pub(super) fn delivery(&self, key: &DeliveryKey) -> Result<Option<DeliveryEntry>, KvError> {
        self.overlay.get(&keys::delivery(key))
    }

    pub(super) fn was_delivered_at_once(&self, key: &DeliveryKey) -> Result<bool, KvError> {
        let bucket = keys::bucket(&key.handler, keys::bucket_of(key.event));
        let entry: Option<BucketEntry> = self.overlay.get(&bucket)?;
        Ok(entry.is_some_and(|e| e.has(key.event)))
    }

    pub(super) fn set_delivered_at_once(
        &mut self,
        at: At,
        key: &DeliveryKey,
    ) -> Result<(), KvError> {
        let bucket = keys::bucket(&key.handler, keys::bucket_of(key.event));
        let entry: Option<BucketEntry> = self.overlay.get(&bucket)?;
        let mut entry = entry.unwrap_or_else(|| BucketEntry::new(at.seq, at.place));
        entry.set(key.event);
        entry.last = at.seq;
        self.overlay.put(bucket, &entry)
    }

    /// Writes the delivery and every key that is derived from it.
    pub(super) fn set_delivery(
        &mut self,
        old: Option<&DeliveryEntry>,
        new: Option<DeliveryEntry>,
    ) -> Result<(), KvError> {
        let Some(key) = new.as_ref().or(old).map(|e| e.delivery.key.clone()) else {
            return Ok(());
        };
        let (was, is) = (Derived::of(old), Derived::of(new.as_ref()));
        if was.due != is.due {
            if let Some(due) = was.due {
                self.overlay.delete(keys::due(&key.handler, due, key.event));
            }
            if let Some(due) = is.due {
                self.overlay.put_new(keys::due(&key.handler, due, key.event), &())?;
            }
        }
        self.set_mark(keys::waiting(&key.handler, key.event), was.waiting, is.waiting)?;
        self.set_mark(keys::dead(&key), was.dead, is.dead)?;
        if was.follows != is.follows {
            self.set_followed(&key, was.follows, is.follows)?;
        }
        self.change_handler(&key.handler, |h| {
            h.scheduled = moved(h.scheduled, was.due.is_some(), is.due.is_some());
            h.dead = moved(h.dead, was.dead, is.dead);
        })?;
        match (old, new) {
            (None, Some(new)) => self.overlay.put_new(keys::delivery(&key), &new),
            (_, Some(new)) => self.overlay.put(keys::delivery(&key), &new),
            (_, None) => {
                if old.is_some() {
                    self.overlay.delete(keys::delivery(&key));
                }
                Ok(())
            }
        }
    }

    fn set_followed(
        &mut self,
        key: &DeliveryKey,
        was: Option<u64>,
        is: Option<u64>,
    ) -> Result<(), KvError> {
        if let Some(was) = was {
            let place = keys::follow_up(&key.handler, was);
            // Another event's timer may have taken its place.
            if self.overlay.get(&place)? == Some(key.event) {
                self.overlay.delete(place);
            }
        }
        match is {
            Some(is) => self.overlay.put(keys::follow_up(&key.handler, is), &key.event),
            None => Ok(()),
        }
    }

    pub(super) fn set_mark(&mut self, key: Vec<u8>, was: bool, is: bool) -> Result<(), KvError> {
        match (was, is) {
            (false, true) => self.overlay.put_new(key, &())?,
            (true, false) => self.overlay.delete(key),
            _ => {}
        }
        Ok(())
    }
}

/// The keys that follow from a delivery.
#[derive(Default)]
struct Derived {
    due: Option<Timestamp>,
    waiting: bool,
    dead: bool,
    follows: Option<u64>,
}

impl Derived {
    fn of(entry: Option<&DeliveryEntry>) -> Derived {
        let Some(entry) = entry else { return Derived::default() };
        let due = match entry.delivery.state {
            State::Scheduled { due } => Some(due),
            _ => None,
        };
        // A running first attempt gets by without: most end well within the moment.
        let first = entry.delivery.open_attempt.is_some() && !entry.has_history;
        let dead = matches!(entry.delivery.state, State::Dead { .. });
        let discarded = entry.delivery.state == State::Discarded;
        let follows = entry.conversation.filter(|_| !discarded);
        Derived { due, waiting: due.is_some() && !first, dead, follows }
    }
}

fn moved(count: u64, was: bool, is: bool) -> u64 {
    match (was, is) {
        (false, true) => count.saturating_add(1),
        (true, false) => count.saturating_sub(1),
        _ => count,
    }
}

fn is_first_success(attempt: &Attempt, next: &State) -> bool {
    attempt.number == 1
        && attempt.generation == FIRST_GENERATION
        && attempt.outcome == Outcome::Delivered
        && *next == State::Delivered
}

fn short_reason(state: State) -> State {
    match state {
        State::Dead { reason } => State::Dead { reason: shortened(&reason) },
        other => other,
    }
}
