//! What the replayer does next: a state machine without IO, clock or randomness of its own.
//!
//! The index is where unsettled deliveries live; the planner keeps only what is about to run, what
//! runs, and what it must not look at again before the index has caught up (a *fence*). So its memory
//! does not grow with the backlog. Per handler it walks two streams: the *cursor*, over events that no
//! attempt has been made for, in the order of the log; and the *due* deliveries, earliest first.
//!
//! Handlers share nothing here: each has its own [`track`], and no step of one waits for another.

mod breaker;
mod lanes;
mod spacing;
#[cfg(test)]
mod tests;
mod track;

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Timestamp;
use crate::config::{Circuit, Order, Rate};
use crate::delivery::{Attempt, Delivery, DeliveryKey, Generation, HandlerName, Seq, State};
use crate::schedule::Schedule;
pub use breaker::OpenCircuit;
use track::{Step, Track};

/// Events and due deliveries held ready per handler.
pub const READY_MAX: usize = 256;
/// Events that wait behind an earlier one of their conversation, per handler. Beyond it the cursor
/// stops until one of them can go.
pub const WAITING_MAX: usize = 1_000;
/// Conversations with an unsettled delivery, per handler. Beyond it the cursor stops.
pub const LANES_MAX: usize = 50_000;
/// Finished attempts that the index has not taken in yet, per handler. Beyond it nothing starts.
pub const FENCES_MAX: usize = 8_192;
/// How often, at the latest, the index is asked for due deliveries: what others put there (a replay)
/// is found without a hint.
pub const DUE_POLL_MS: i64 = 1_000;
/// Events passed over that are worth a record of their own while others are being delivered.
pub const SKIPPED_MIN: u64 = 256;
/// The least time between two such records of a handler.
pub const MOVED_GAP_MS: i64 = 1_000;

/// How one handler is to be driven.
#[derive(Clone, Debug)]
pub struct HandlerPlan {
    pub name: HandlerName,
    pub order: Order,
    pub concurrency: usize,
    pub rate: Option<Rate>,
    pub schedule: Schedule,
    pub circuit: Circuit,
}

/// An event that the handler wants, from the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub seq: Seq,
    /// Schedule time of its record.
    pub time: Timestamp,
    pub conversation: Option<u64>,
}

/// An unsettled delivery, from the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub delivery: Delivery,
    /// Filled where the handler's order goes by it.
    pub conversation: Option<u64>,
}

/// Answers to `Load`, `FetchHeads` and `FetchDue` carry the `ticket` of the question: what was asked
/// before the planner started anew is void.
#[derive(Clone, Debug)]
pub enum Input {
    /// The handlers that are configured now. Others are parked: nothing of theirs runs.
    Configure(Vec<HandlerPlan>),
    Progress {
        epoch: u64,
        durable: Seq,
        applied: Seq,
        caught_up: bool,
    },
    Loaded {
        handler: HandlerName,
        ticket: u64,
        cursor: Seq,
        paused: bool,
        /// Every unsettled delivery, where `Load` asked for them.
        unsettled: Vec<Found>,
    },
    Heads {
        handler: HandlerName,
        ticket: u64,
        heads: Vec<Head>,
        /// The position after the last event looked at.
        next: Seq,
        /// Events looked at that the handler does not want.
        skipped: u64,
    },
    Due {
        handler: HandlerName,
        ticket: u64,
        /// Earliest first; as many as the limit when there may be more.
        found: Vec<Found>,
        /// The earliest due time after the `until` that was asked for.
        next: Option<Timestamp>,
    },
    /// An attempt ended.
    Finished {
        key: DeliveryKey,
        attempt: Attempt,
    },
    /// An attempt was not started after all: the delivery is no longer as the planner knew it.
    Dropped {
        key: DeliveryKey,
    },
    /// The record of `Settle` is written, in this epoch (`None`: it changed meanwhile).
    Logged {
        key: DeliveryKey,
        seq: Seq,
        epoch: Option<u64>,
    },
    Pause(HandlerName),
    Resume(HandlerName),
    /// Somebody changed due times: look now.
    Nudge,
    /// Time went on.
    Tick,
}

/// `Start`, `Park` and `Moved` of one handler must reach the log in the order given, each only when
/// the one before it is written: the index takes the highest event started as the handler's cursor.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Read where the handler stands; with `unsettled`, all its unsettled deliveries too.
    Load {
        handler: HandlerName,
        ticket: u64,
        unsettled: bool,
    },
    FetchHeads {
        handler: HandlerName,
        ticket: u64,
        from: Seq,
        limit: usize,
    },
    FetchDue {
        handler: HandlerName,
        ticket: u64,
        until: Timestamp,
        limit: usize,
        /// Whether the conversations are needed.
        conversations: bool,
    },
    /// Log the start and run. The answer is exactly one `Finished` or `Dropped`.
    Start {
        key: DeliveryKey,
        generation: Generation,
        number: u32,
        /// From the cursor: the index must not know a delivery of it.
        first: bool,
    },
    /// Log a delivery that waits behind an earlier event of its conversation, so that it is not lost
    /// when later events move the cursor past it.
    Park {
        key: DeliveryKey,
        due: Timestamp,
    },
    /// Every event below `to` has been considered.
    Moved {
        handler: HandlerName,
        to: Seq,
    },
    /// Log what the attempt came to. The answer is `Logged`.
    Settle {
        key: DeliveryKey,
        attempt: Attempt,
        next: State,
    },
    /// The handler's circuit opened, or closed (`None`): worth telling a person.
    Circuit {
        handler: HandlerName,
        open: Option<OpenCircuit>,
    },
}

/// What `status` shows of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerSnapshot {
    pub name: HandlerName,
    /// The index is still being read for it.
    pub loading: bool,
    pub paused: bool,
    pub running: usize,
    pub ready: usize,
    /// Behind an earlier event of their conversation.
    pub waiting: usize,
    /// When the planner looks for due deliveries next.
    pub next_look: Option<Timestamp>,
    /// `None`: closed.
    pub circuit: Option<OpenCircuit>,
}

pub struct Planner {
    /// Attempts at once, over all handlers.
    attempts_max: usize,
    running: usize,
    /// Whose next attempt waits for another's end, in the order of their turns.
    crowded: VecDeque<HandlerName>,
    tracks: BTreeMap<HandlerName, Track>,
    rng: fastrand::Rng,
    epoch: u64,
    /// The highest record of an attempt's end in this epoch: who reads the index anew waits for it.
    logged: Seq,
    applied: Seq,
    caught_up: bool,
}

impl Planner {
    /// `rng` feeds the jitter of schedules; `attempts_max` may run at once, of all handlers together.
    #[must_use]
    pub fn new(rng: fastrand::Rng, attempts_max: usize) -> Planner {
        Planner {
            attempts_max: attempts_max.max(1),
            running: 0,
            crowded: VecDeque::new(),
            tracks: BTreeMap::new(),
            rng,
            epoch: 0,
            logged: 0,
            applied: 0,
            caught_up: false,
        }
    }

    /// `now` is schedule time.
    pub fn step(&mut self, input: Input, now: Timestamp) -> Vec<Command> {
        let mut out = Vec::new();
        match input {
            Input::Configure(plans) => self.configure(plans),
            Input::Progress { epoch, durable, applied, caught_up } => {
                if epoch != self.epoch {
                    (self.epoch, self.logged) = (epoch, durable);
                    for track in self.tracks.values_mut() {
                        track.start_anew(durable);
                    }
                }
                (self.applied, self.caught_up) = (applied, caught_up);
            }
            Input::Nudge => self.tracks.values_mut().for_each(|t| t.look_for_due(now)),
            Input::Tick => {}
            Input::Loaded { handler, ticket, cursor, paused, unsettled } => {
                return self.on(&handler, now, |track, step| {
                    track.loaded(ticket, cursor, paused, unsettled, step);
                });
            }
            Input::Heads { handler, ticket, heads, next, skipped } => {
                return self
                    .on(&handler, now, |track, _| track.heads(ticket, heads, next, skipped));
            }
            Input::Due { handler, ticket, found, next } => {
                return self.on(&handler, now, |track, step| track.due(ticket, found, next, step));
            }
            Input::Finished { key, attempt } => {
                return self
                    .on(&key.handler, now, |track, step| track.finished(key.event, attempt, step));
            }
            Input::Dropped { key } => {
                return self.on(&key.handler, now, |track, step| track.dropped(key.event, step));
            }
            Input::Logged { key, seq, epoch } => {
                let seq = if epoch == Some(self.epoch) { seq } else { 0 };
                self.logged = self.logged.max(seq);
                return self
                    .on(&key.handler, now, |track, step| track.logged(key.event, seq, step));
            }
            Input::Pause(handler) => {
                return self.on(&handler, now, |track, _| track.set_paused(true));
            }
            Input::Resume(handler) => {
                return self.on(&handler, now, |track, _| track.set_paused(false));
            }
        }
        self.serve_the_crowded(now, &mut out);
        let room = self.room();
        let mut step = Step {
            now,
            applied: self.applied,
            caught_up: self.caught_up,
            room,
            rng: &mut self.rng,
            out: &mut out,
        };
        for (name, track) in &mut self.tracks {
            if track.advance(&mut step) {
                self.crowded.push_back(name.clone());
            }
        }
        self.running += room - step.room;
        self.tracks.retain(|_, track| !track.is_gone());
        out
    }

    fn room(&self) -> usize {
        self.attempts_max.saturating_sub(self.running)
    }

    /// One attempt each, in turn, as long as there is room: none of them gets all that comes free.
    fn serve_the_crowded(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        while self.room() > 0
            && let Some(handler) = self.crowded.pop_front()
        {
            self.advance(&handler, now, 1, out, |track, _| track.has_its_turn());
        }
    }

    /// When something will be due that no input announces.
    #[must_use]
    pub fn wake_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.tracks.values().filter_map(|track| track.wake_at(now)).min()
    }

    #[must_use]
    pub fn snapshot(&self) -> Vec<HandlerSnapshot> {
        self.tracks.values().filter(|t| !t.is_retired()).map(Track::snapshot).collect()
    }

    /// Attempts that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    fn configure(&mut self, plans: Vec<HandlerPlan>) {
        for (name, track) in &mut self.tracks {
            if !plans.iter().any(|plan| plan.name == *name) {
                track.retire(self.logged);
            }
        }
        for plan in plans {
            match self.tracks.get_mut(&plan.name) {
                Some(track) => track.configure(plan, self.logged),
                None => {
                    self.tracks.insert(plan.name.clone(), Track::new(plan, self.logged));
                }
            }
        }
    }

    /// Lets one handler's track take an input in, and go on.
    fn on(
        &mut self,
        handler: &HandlerName,
        now: Timestamp,
        take: impl FnOnce(&mut Track, &mut Step),
    ) -> Vec<Command> {
        let mut out = Vec::new();
        // Those whose turn it is come first.
        let starts_max = if self.crowded.is_empty() { usize::MAX } else { 0 };
        self.advance(handler, now, starts_max, &mut out, take);
        self.serve_the_crowded(now, &mut out);
        out
    }

    fn advance(
        &mut self,
        handler: &HandlerName,
        now: Timestamp,
        starts_max: usize,
        out: &mut Vec<Command>,
        take: impl FnOnce(&mut Track, &mut Step),
    ) {
        let Some(track) = self.tracks.get_mut(handler) else { return };
        let (applied, caught_up, rng) = (self.applied, self.caught_up, &mut self.rng);
        let mut step = Step { now, applied, caught_up, room: 0, rng, out };
        let before = track.running();
        take(track, &mut step);
        self.running = self.running + track.running() - before;
        let room = self.attempts_max.saturating_sub(self.running).min(starts_max);
        step.room = room;
        if track.advance(&mut step) {
            self.crowded.push_back(handler.clone());
        }
        self.running += room - step.room;
        if track.is_gone() {
            self.tracks.remove(handler);
        }
    }
}
