//! One handler's part of the planner.

mod settling;
mod view;

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::breaker::Breaker;
use super::lanes::Lanes;
use super::spacing::Spacing;
use super::{
    Command, DUE_POLL_MS, FENCES_MAX, Found, HandlerPlan, Head, LANES_MAX, MOVED_GAP_MS, READY_MAX,
    SKIPPED_MIN, WAITING_MAX,
};
use crate::clock::Timestamp;
use crate::config::Order;
use crate::delivery::{Attempt, DeliveryKey, Generation, Outcome, Seq, State};

/// What a step may use.
pub(super) struct Step<'a> {
    pub now: Timestamp,
    pub applied: Seq,
    pub caught_up: bool,
    /// So many attempts may start.
    pub room: usize,
    pub rng: &'a mut fastrand::Rng,
    pub out: &'a mut Vec<Command>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// What runs ends and is logged; the index takes everything in up to `gate`.
    Draining {
        gate: Seq,
    },
    Loading,
    Active,
}

/// A delivery, as far as the planner needs it.
#[derive(Clone, Copy, Debug)]
struct Job {
    event: Seq,
    lane: Option<u64>,
    generation: Generation,
    /// Made so far in this generation.
    attempts: u32,
    due: Timestamp,
    /// From the cursor.
    first: bool,
    /// A replay raised the generation while this one was busy.
    superseded: bool,
}

/// Every delivery that the planner holds, except events still at the cursor. What the index says of
/// these is not news.
#[derive(Clone, Copy, Debug)]
enum Slot {
    /// In `ready`.
    Ready(Job),
    /// In `lanes`, behind another.
    Waiting(Job),
    /// In `timers`: holds its lane until it is due.
    Timer(Job),
    /// Given to the runner.
    Running(Job),
    /// Ended; the record is being written. Scheduled again, or settled.
    Logging { job: Job, retry: bool },
    /// The record is written; the index has not taken it in.
    Fenced { job: Job, retry: bool },
}

pub(super) struct Track {
    plan: HandlerPlan,
    spacing: Spacing,
    breaker: Breaker,
    /// As last told.
    circuit_open: bool,
    phase: Phase,
    retired: bool,
    /// `None`: not known yet.
    paused: Option<bool>,
    ticket: u64,

    cursor: Seq,
    heads: VecDeque<Head>,
    fetching_heads: bool,
    /// What the index had taken in when the cursor last found its end.
    heads_end: Seq,
    heads_asked_at: Seq,

    ready: VecDeque<Seq>,
    fetching_due: bool,
    due_limit: usize,
    look_at: Timestamp,
    slots: HashMap<Seq, Slot>,
    fences: BTreeSet<(Seq, Seq)>,
    timers: BTreeSet<(Timestamp, Seq)>,
    lanes: Lanes,
    running: usize,
    /// It has told the planner that it waits for room.
    in_line: bool,
    logging: usize,
    /// Whose turn it is when both the cursor and the due deliveries have something.
    heads_turn: bool,

    /// Events passed over since the position was last logged.
    skipped: u64,
    logged_position: Seq,
    moved_at: Timestamp,
}

impl Track {
    /// `gate`: what the index must have taken in before it is read.
    pub(super) fn new(plan: HandlerPlan, gate: Seq) -> Track {
        Track {
            spacing: Spacing::new(plan.rate),
            breaker: Breaker::new(plan.circuit),
            circuit_open: false,
            plan,
            phase: Phase::Draining { gate },
            retired: false,
            paused: None,
            ticket: 0,
            cursor: 0,
            heads: VecDeque::new(),
            fetching_heads: false,
            heads_end: 0,
            heads_asked_at: 0,
            ready: VecDeque::new(),
            fetching_due: false,
            due_limit: 0,
            look_at: Timestamp::ZERO,
            slots: HashMap::new(),
            fences: BTreeSet::new(),
            timers: BTreeSet::new(),
            lanes: Lanes::default(),
            running: 0,
            in_line: false,
            logging: 0,
            heads_turn: false,
            skipped: 0,
            logged_position: 0,
            moved_at: Timestamp::ZERO,
        }
    }

    // --- configuration and starting anew ---

    pub(super) fn configure(&mut self, plan: HandlerPlan, gate: Seq) {
        self.spacing.change(plan.rate);
        // Its target may be another one now.
        self.breaker = Breaker::new(plan.circuit);
        let anew = self.retired || plan.order != self.plan.order;
        self.retired = false;
        self.plan = plan;
        if anew {
            self.start_anew(gate);
        } else if self.phase == Phase::Active {
            // Which events match may have changed: those not begun are read again.
            self.ticket += 1;
            self.fetching_heads = false;
            self.fetching_due = false;
            self.heads_end = 0;
            if let Some(head) = self.heads.front() {
                self.cursor = head.seq;
                self.heads.clear();
            }
        }
    }

    /// No longer configured: what runs may end.
    pub(super) fn retire(&mut self, gate: Seq) {
        if !self.retired {
            self.retired = true;
            self.start_anew(gate);
        }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired
    }

    pub(super) fn is_gone(&self) -> bool {
        self.retired && self.slots.is_empty()
    }

    /// Forgets all but what runs; the index is read again when that has ended and `gate` is applied.
    pub(super) fn start_anew(&mut self, gate: Seq) {
        self.phase = Phase::Draining { gate };
        self.ticket += 1;
        self.fetching_heads = false;
        self.fetching_due = false;
        self.heads.clear();
        self.ready.clear();
        self.timers.clear();
        self.fences.clear();
        self.lanes.clear();
        self.skipped = 0;
        self.slots.retain(|_, slot| matches!(slot, Slot::Running(_) | Slot::Logging { .. }));
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = Some(paused);
        if !paused {
            self.breaker.close();
        }
    }

    pub(super) fn look_for_due(&mut self, now: Timestamp) {
        self.look_at = self.look_at.min(now);
    }

    // --- answers from the index ---

    pub(super) fn loaded(
        &mut self,
        ticket: u64,
        cursor: Seq,
        paused: bool,
        mut unsettled: Vec<Found>,
        step: &mut Step,
    ) {
        if ticket != self.ticket || self.phase != Phase::Loading {
            return;
        }
        self.phase = Phase::Active;
        self.cursor = cursor;
        self.logged_position = cursor;
        self.heads_end = 0;
        self.look_at = step.now;
        self.paused.get_or_insert(paused);
        // What was begun holds its lane before what was not.
        unsettled.sort_by_key(|f| (f.delivery.attempts == 0, f.delivery.key.event));
        for found in unsettled {
            if self.lane_of(found.conversation).is_some() {
                self.take_in(&found, true, step);
            }
        }
    }

    pub(super) fn heads(&mut self, ticket: u64, heads: Vec<Head>, next: Seq, skipped: u64) {
        if ticket != self.ticket || !self.fetching_heads {
            return;
        }
        self.fetching_heads = false;
        if next <= self.cursor {
            self.heads_end = self.heads_asked_at;
        }
        self.cursor = self.cursor.max(next);
        self.skipped += skipped;
        // A delivery that is known already came by way of a replay: that one counts.
        self.heads.extend(heads.into_iter().filter(|head| !self.slots.contains_key(&head.seq)));
    }

    pub(super) fn due(
        &mut self,
        ticket: u64,
        found: Vec<Found>,
        next: Option<Timestamp>,
        step: &mut Step,
    ) {
        if ticket != self.ticket || !self.fetching_due {
            return;
        }
        self.fetching_due = false;
        let poll = Timestamp(step.now.0.saturating_add(DUE_POLL_MS));
        self.look_at = next.map_or(poll, |next| next.min(poll));
        let full = found.len() >= self.due_limit;
        let mut news = false;
        for found in found {
            if self.ready.len() >= READY_MAX {
                self.look_at = step.now;
                return;
            }
            news |= self.take_in(&found, false, step);
        }
        if full && news {
            self.look_at = step.now;
        }
    }

    /// True when the delivery was not held before.
    fn take_in(&mut self, found: &Found, everything: bool, step: &mut Step) -> bool {
        let delivery = &found.delivery;
        let event = delivery.key.event;
        let State::Scheduled { due } = delivery.state else { return false };
        let mut job = Job {
            event,
            lane: self.lane_of(found.conversation),
            generation: delivery.generation,
            attempts: delivery.attempts,
            due,
            first: false,
            superseded: false,
        };
        if let Some(slot) = self.slots.get_mut(&event) {
            match slot {
                Slot::Ready(held) | Slot::Waiting(held) => {
                    if held.generation < job.generation {
                        *held = job;
                    }
                }
                Slot::Timer(held) => {
                    if held.generation < job.generation {
                        self.timers.remove(&(held.due, event));
                        *slot = Slot::Ready(job);
                        self.ready.push_back(event);
                    }
                }
                Slot::Running(held)
                | Slot::Logging { job: held, .. }
                | Slot::Fenced { job: held, .. } => {
                    held.superseded |= held.generation < job.generation;
                }
            }
            return false;
        }
        if self.heads.front().is_some_and(|head| head.seq <= event) {
            self.heads.retain(|head| head.seq != event);
        }
        let attempts_max = self.plan.schedule.attempts_max();
        if let Some(number) = delivery.open_attempt {
            // Claimed even though it does not run: until it is settled, it holds its lane.
            if let Some(lane) = job.lane {
                self.lanes.claim(lane, event);
            }
            job.attempts = job.attempts.max(number);
            let outcome = Outcome::retry("cut off by a crash or restart");
            self.settle(job, not_run(&job, number, outcome), step);
        } else if delivery.attempts >= attempts_max {
            let reason = format!(
                "not run again: {} attempts made, and the schedule now has {attempts_max}",
                delivery.attempts
            );
            let number = job.attempts.saturating_add(1);
            self.settle(job, not_run(&job, number, Outcome::reject(reason)), step);
        } else {
            return self.admit(job, everything, step.now);
        }
        true
    }

    /// Finds the place for a delivery that is not busy.
    fn admit(&mut self, job: Job, everything: bool, now: Timestamp) -> bool {
        let slot = match job.lane {
            None if job.due > now => {
                self.look_at = self.look_at.min(job.due);
                return false;
            }
            None => Slot::Ready(job),
            Some(lane) if self.lanes.claim(lane, job.event) => {
                if job.due > now {
                    Slot::Timer(job)
                } else {
                    Slot::Ready(job)
                }
            }
            Some(_) if self.lanes.waiting() >= WAITING_MAX && !everything => return false,
            Some(lane) => {
                self.lanes.wait(lane, job.event, job.attempts > 0);
                Slot::Waiting(job)
            }
        };
        match slot {
            Slot::Ready(_) => self.ready.push_back(job.event),
            Slot::Timer(_) => {
                self.timers.insert((job.due, job.event));
            }
            _ => {}
        }
        self.slots.insert(job.event, slot);
        true
    }

    // --- going on ---

    /// Of those that wait for room it is the next.
    pub(super) fn has_its_turn(&mut self) {
        self.in_line = false;
    }

    /// Does it, from now on, wait for room?
    pub(super) fn advance(&mut self, step: &mut Step) -> bool {
        let open = self.breaker.state();
        if open.is_some() != self.circuit_open {
            self.circuit_open = open.is_some();
            step.out.push(Command::Circuit { handler: self.plan.name.clone(), open });
        }
        if let Phase::Draining { gate } = self.phase {
            let ended = self.slots.is_empty() && !self.retired;
            if ended && step.caught_up && step.applied >= gate {
                self.phase = Phase::Loading;
                let handler = self.plan.name.clone();
                let unsettled = self.plan.order != Order::None;
                step.out.push(Command::Load { handler, ticket: self.ticket, unsettled });
            }
        }
        if self.phase != Phase::Active {
            return false;
        }
        self.lift_fences(step);
        if self.paused == Some(true) {
            return false;
        }
        while let Some(&(due, event)) = self.timers.first() {
            if due > step.now {
                break;
            }
            self.timers.pop_first();
            if let Some(Slot::Timer(job)) = self.slots.get(&event).copied() {
                self.slots.insert(event, Slot::Ready(job));
                self.ready.push_back(event);
            }
        }
        let crowded = self.start_what_may_run(step);
        self.fetch(step);
        self.log_position(step);
        crowded && !std::mem::replace(&mut self.in_line, true)
    }

    /// Is there more that only lacks room?
    fn start_what_may_run(&mut self, step: &mut Step) -> bool {
        while self.running < self.plan.concurrency.max(1)
            && !self.is_ahead()
            && self.earliest_start(step.now).is_some_and(|start| start <= step.now)
        {
            let head = self.startable_head(step);
            if step.room == 0 {
                return head.is_some() || !self.ready.is_empty();
            }
            let job = match head {
                Some(head) if self.heads_turn || self.ready.is_empty() => {
                    self.heads.pop_front();
                    self.heads_turn = false;
                    self.logged_position = self.logged_position.max(head.seq.saturating_add(1));
                    self.job_of(&head)
                }
                _ => {
                    let Some(event) = self.ready.pop_front() else { return false };
                    let Some(Slot::Ready(job)) = self.slots.get(&event) else { continue };
                    self.heads_turn = true;
                    *job
                }
            };
            if let Some(lane) = job.lane {
                self.lanes.claim(lane, job.event);
            }
            self.spacing.take(step.now);
            self.breaker.started(job.event);
            self.running += 1;
            step.room -= 1;
            self.slots.insert(job.event, Slot::Running(job));
            step.out.push(Command::Start {
                key: self.key(job.event),
                generation: job.generation,
                number: job.attempts.saturating_add(1),
                first: job.first,
            });
        }
        false
    }

    /// When `rate` and the circuit let an attempt start; `None`: once a running probe has ended.
    fn earliest_start(&self, now: Timestamp) -> Option<Timestamp> {
        Some(self.spacing.earliest(now).max(self.breaker.earliest(now)?))
    }

    /// Too much has ended that the index does not show yet.
    fn is_ahead(&self) -> bool {
        self.logging + self.fences.len() >= FENCES_MAX
    }

    /// The event at the cursor, where it may start now. By conversation, those that must wait are put
    /// aside so that others pass.
    fn startable_head(&mut self, step: &mut Step) -> Option<Head> {
        loop {
            let head = *self.heads.front()?;
            let job = self.job_of(&head);
            if job.due > step.now {
                return None;
            }
            let Some(lane) = job.lane else { return Some(head) };
            if !self.lanes.is_held(lane) {
                return (self.lanes.len() < LANES_MAX).then_some(head);
            }
            if self.plan.order != Order::Conversation || self.lanes.waiting() >= WAITING_MAX {
                return None;
            }
            self.heads.pop_front();
            self.lanes.wait(lane, head.seq, false);
            self.slots.insert(head.seq, Slot::Waiting(Job { first: false, ..job }));
            step.out.push(Command::Park { key: self.key(head.seq), due: job.due });
        }
    }

    fn more_heads(&self, step: &Step) -> bool {
        self.cursor <= step.applied && self.heads_end < step.applied
    }

    fn fetch(&mut self, step: &mut Step) {
        let handler = &self.plan.name;
        let room = READY_MAX.saturating_sub(self.heads.len());
        if !self.fetching_heads && self.more_heads(step) && room >= READY_MAX / 2 {
            self.fetching_heads = true;
            self.heads_asked_at = step.applied;
            let (handler, ticket, from) = (handler.clone(), self.ticket, self.cursor);
            step.out.push(Command::FetchHeads { handler, ticket, from, limit: room });
        }
        let room = self.ready.len() < READY_MAX / 2 && !self.is_ahead();
        if !self.fetching_due && self.look_at <= step.now && room {
            self.fetching_due = true;
            // Those held already may come first in the answer.
            self.due_limit = READY_MAX + self.slots.len();
            step.out.push(Command::FetchDue {
                handler: self.plan.name.clone(),
                ticket: self.ticket,
                until: step.now,
                limit: self.due_limit,
                conversations: self.plan.order == Order::Conversation,
            });
        }
    }

    /// Events passed over leave no record of their own; now and then the position is logged, so that
    /// a restart does not look at all of them again.
    fn log_position(&mut self, step: &mut Step) {
        if self.skipped == 0 || step.now < self.position_due() {
            return;
        }
        let at_end = self.heads.is_empty() && !self.more_heads(step);
        if self.skipped < SKIPPED_MIN && !at_end {
            return;
        }
        let to = self.heads.front().map_or(self.cursor, |head| head.seq);
        self.skipped = 0;
        if to > self.logged_position {
            self.logged_position = to;
            self.moved_at = step.now;
            step.out.push(Command::Moved { handler: self.plan.name.clone(), to });
        }
    }

    fn position_due(&self) -> Timestamp {
        Timestamp(self.moved_at.0.saturating_add(MOVED_GAP_MS))
    }

    fn lane_of(&self, conversation: Option<u64>) -> Option<u64> {
        match self.plan.order {
            Order::None => None,
            Order::Conversation => conversation,
            Order::Log => Some(0),
        }
    }

    fn job_of(&self, head: &Head) -> Job {
        Job {
            event: head.seq,
            lane: self.lane_of(head.conversation),
            generation: 0,
            attempts: 0,
            due: head.time.plus(self.plan.schedule.first_delay()),
            first: true,
            superseded: false,
        }
    }

    fn key(&self, event: Seq) -> DeliveryKey {
        DeliveryKey { event, handler: self.plan.name.clone() }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.heads.len() + self.slots.len() + self.ready.len() + self.lanes.waiting()
    }
}

/// The history line of an attempt that has nothing else to report.
fn not_run(job: &Job, number: u32, outcome: Outcome) -> Attempt {
    Attempt {
        number,
        generation: job.generation,
        started_at: job.due,
        took_ms: 0,
        outcome,
        request: None,
        response: None,
    }
}
