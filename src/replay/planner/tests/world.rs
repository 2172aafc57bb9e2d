//! A log, an index that lags behind it, and handlers, all in memory: the least that the planner needs
//! to be driven through hours of schedule. It asserts what must hold at every start of an attempt.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use super::super::*;
use crate::delivery::Outcome;

pub struct Logged {
    time: Timestamp,
    entry: Entry,
}

enum Entry {
    Event { conversation: Option<u64>, wanted: bool },
    Started(DeliveryKey, Generation, u32),
    Finished(DeliveryKey, Attempt, State),
    Parked(DeliveryKey, Timestamp),
    Replayed(DeliveryKey, Timestamp),
    Moved(HandlerName, Seq),
}

/// One attempt that ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    pub handler: String,
    pub event: Seq,
    pub number: u32,
    pub start: i64,
    pub end: i64,
    pub outcome: Outcome,
}

/// How an attempt goes: how long it takes, and what comes of it.
pub type Script = Box<dyn FnMut(&DeliveryKey, u32) -> (i64, Outcome)>;

pub struct World {
    pub planner: Planner,
    attempts_max: usize,
    plans: Vec<HandlerPlan>,
    pub now: Timestamp,
    pub log: Vec<Logged>,
    pub applied: Seq,
    /// How many records the index takes in per step; all where `None`.
    pub lag: Option<fastrand::Rng>,
    epoch: u64,
    cursors: BTreeMap<HandlerName, Seq>,
    pub deliveries: BTreeMap<DeliveryKey, Delivery>,
    /// Delivered at their first attempt.
    at_once: HashSet<DeliveryKey>,
    script: Script,
    flying: BTreeMap<(i64, Seq, HandlerName), (Ran, Generation)>,
    pub ran: Vec<Ran>,
    pub moved: Vec<(HandlerName, Seq)>,
    /// Each time that a circuit opened (true) or closed.
    pub circuit: Vec<bool>,
}

pub const T0: i64 = 1_790_000_000_000;

pub fn plan(name: &str) -> HandlerPlan {
    HandlerPlan {
        name: HandlerName::new(name).unwrap(),
        order: Order::None,
        concurrency: 4,
        rate: None,
        schedule: Schedule::default(),
        circuit: Circuit::OFF,
    }
}

pub fn retry() -> Outcome {
    Outcome::retry("500")
}

impl World {
    pub fn new(plans: Vec<HandlerPlan>, script: Script) -> World {
        World::with_room(plans, script, usize::MAX)
    }

    pub fn with_room(plans: Vec<HandlerPlan>, script: Script, attempts_max: usize) -> World {
        let mut world = World {
            planner: Planner::new(fastrand::Rng::with_seed(7), attempts_max),
            attempts_max,
            plans: plans.clone(),
            now: Timestamp(T0),
            log: Vec::new(),
            applied: 0,
            lag: None,
            epoch: 0,
            cursors: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            at_once: HashSet::new(),
            script,
            flying: BTreeMap::new(),
            ran: Vec::new(),
            moved: Vec::new(),
            circuit: Vec::new(),
        };
        world.feed(Input::Configure(plans));
        world
    }

    fn append(&mut self, entry: Entry) -> Seq {
        self.log.push(Logged { time: self.now, entry });
        self.log.len() as Seq
    }

    pub fn event(&mut self) -> Seq {
        self.append(Entry::Event { conversation: None, wanted: true })
    }

    pub fn unwanted(&mut self) -> Seq {
        self.append(Entry::Event { conversation: None, wanted: false })
    }

    pub fn event_of(&mut self, conversation: u64) -> Seq {
        self.append(Entry::Event { conversation: Some(conversation), wanted: true })
    }

    pub fn replay(&mut self, handler: &str, event: Seq) {
        let key = DeliveryKey { event, handler: HandlerName::new(handler).unwrap() };
        self.append(Entry::Replayed(key, self.now));
    }

    pub fn configure(&mut self, plans: Vec<HandlerPlan>) {
        self.plans = plans.clone();
        self.feed(Input::Configure(plans));
    }

    /// The process is killed and started again: what ran is gone, the log stays.
    pub fn crash(&mut self) {
        self.flying.clear();
        self.planner = Planner::new(fastrand::Rng::with_seed(8), self.attempts_max);
        self.apply(usize::MAX);
        self.feed(Input::Configure(self.plans.clone()));
        self.progress();
    }

    /// The log was reopened after a fault; nothing of it is lost.
    pub fn fault(&mut self) {
        self.epoch += 1;
        self.progress();
    }

    pub fn progress(&mut self) {
        let (durable, applied) = (self.log.len() as Seq, self.applied);
        self.feed(Input::Progress { epoch: self.epoch, durable, applied, caught_up: true });
    }

    pub fn run_for(&mut self, ms: i64) {
        let end = self.now.0 + ms;
        loop {
            let count = self.lag.as_mut().map_or(usize::MAX, |rng| rng.usize(0..4));
            self.apply(count);
            self.progress();
            self.feed(Input::Tick);
            let mut next = end;
            if (self.applied as usize) < self.log.len() {
                next = next.min(self.now.0 + 1);
            }
            if let Some(wake) = self.planner.wake_at(self.now) {
                assert!(wake > self.now, "a wake-up that is over would spin");
                next = next.min(wake.0);
            }
            next = next.min(self.flying.keys().next().map_or(end, |(at, ..)| *at));
            self.now = Timestamp(next.max(self.now.0));
            while let Some(entry) = self.flying.first_entry() {
                let (at, event, handler) = entry.key().clone();
                if at > self.now.0 {
                    break;
                }
                let (ran, generation) = entry.remove();
                let attempt = Attempt {
                    number: ran.number,
                    generation,
                    started_at: Timestamp(ran.start),
                    took_ms: 0,
                    outcome: ran.outcome.clone(),
                    request: None,
                    response: None,
                };
                self.ran.push(ran);
                self.feed(Input::Finished { key: DeliveryKey { event, handler }, attempt });
            }
            if self.now.0 >= end && self.flying.keys().next().is_none_or(|(at, ..)| *at > end) {
                return;
            }
        }
    }

    pub fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for command in self.planner.step(input, self.now) {
                inputs.extend(self.execute(command));
            }
        }
    }

    fn execute(&mut self, command: Command) -> Option<Input> {
        match command {
            Command::Load { handler, ticket, unsettled } => {
                let cursor = self.cursors.get(&handler).copied().unwrap_or(1);
                let unsettled = if unsettled { self.due(&handler, Timestamp::MAX) } else { vec![] };
                Some(Input::Loaded { handler, ticket, cursor, paused: false, unsettled })
            }
            Command::FetchHeads { handler, ticket, from, limit } => {
                let (mut heads, mut next, mut skipped) = (vec![], from, 0);
                while next <= self.applied && heads.len() < limit {
                    let logged = &self.log[next as usize - 1];
                    if let Entry::Event { conversation, wanted } = logged.entry {
                        if wanted {
                            heads.push(Head { seq: next, time: logged.time, conversation });
                        } else {
                            skipped += 1;
                        }
                    }
                    next += 1;
                }
                Some(Input::Heads { handler, ticket, heads, next, skipped })
            }
            Command::FetchDue { handler, ticket, until, limit, .. } => {
                let mut found = self.due(&handler, until);
                found.truncate(limit);
                let after = |d: &Delivery| match d.state {
                    State::Scheduled { due } if due > until && d.key.handler == handler => {
                        Some(due)
                    }
                    _ => None,
                };
                let next = self.deliveries.values().filter_map(after).min();
                Some(Input::Due { handler, ticket, found, next })
            }
            Command::Start { key, generation, number, first } => {
                self.start(key, generation, number, first)
            }
            Command::Park { key, due } => {
                self.append(Entry::Parked(key, due));
                None
            }
            Command::Moved { handler, to } => {
                self.moved.push((handler.clone(), to));
                self.append(Entry::Moved(handler, to));
                None
            }
            Command::Settle { key, attempt, next } => {
                let seq = self.append(Entry::Finished(key.clone(), attempt, next));
                Some(Input::Logged { key, seq, epoch: Some(self.epoch) })
            }
            Command::Circuit { open, .. } => {
                self.circuit.push(open.is_some());
                None
            }
        }
    }

    fn start(
        &mut self,
        key: DeliveryKey,
        generation: Generation,
        number: u32,
        first: bool,
    ) -> Option<Input> {
        let wanted = match self.deliveries.get(&key) {
            None => !self.at_once.contains(&key) && generation == 0 && number == 1,
            Some(d) => {
                !first
                    && (d.generation, d.attempts + 1) == (generation, number)
                    && d.open_attempt.is_none()
                    && !d.state.is_settled()
            }
        };
        if !wanted {
            return Some(Input::Dropped { key });
        }
        let plan = self.plans.iter().find(|p| p.name == key.handler).expect("configured");
        let of_handler = |(_, event, handler): &&(i64, Seq, HandlerName)| {
            assert!((*event, handler) != (key.event, &key.handler), "{key:?} runs twice at once");
            *handler == key.handler
        };
        let running = self.flying.keys().filter(of_handler).count();
        assert!(running < plan.concurrency, "{key:?}: {running} run already");
        assert!(number <= plan.schedule.attempts_max(), "{key:?}: attempt {number}");
        self.append(Entry::Started(key.clone(), generation, number));
        let (took, outcome) = (self.script)(&key, number);
        let ran = Ran {
            handler: key.handler.to_string(),
            event: key.event,
            number,
            start: self.now.0,
            end: self.now.0 + took,
            outcome,
        };
        self.flying.insert((ran.end, key.event, key.handler), (ran, generation));
        None
    }

    fn due(&self, handler: &HandlerName, until: Timestamp) -> Vec<Found> {
        let mut due: Vec<_> = self
            .deliveries
            .values()
            .filter(|d| d.key.handler == *handler)
            .filter_map(|d| match d.state {
                State::Scheduled { due } if due <= until => Some((due, d.clone())),
                _ => None,
            })
            .collect();
        due.sort_by_key(|(due, d)| (*due, d.key.event));
        due.into_iter()
            .map(|(_, delivery)| {
                let logged = &self.log[delivery.key.event as usize - 1];
                let Entry::Event { conversation, .. } = logged.entry else { unreachable!() };
                Found { delivery, conversation }
            })
            .collect()
    }

    fn apply(&mut self, count: usize) {
        for _ in 0..count {
            let Some(logged) = self.log.get(self.applied as usize) else { return };
            self.applied += 1;
            let fresh = |key: &DeliveryKey, due: Timestamp| Delivery {
                key: key.clone(),
                generation: 0,
                attempts: 0,
                open_attempt: None,
                state: State::Scheduled { due },
            };
            match &logged.entry {
                Entry::Event { .. } => {}
                Entry::Started(key, generation, number) => {
                    let d = self
                        .deliveries
                        .entry(key.clone())
                        .or_insert_with(|| fresh(key, logged.time));
                    if d.generation == *generation {
                        (d.attempts, d.open_attempt) = (*number, Some(*number));
                    }
                    let cursor = self.cursors.entry(key.handler.clone()).or_insert(1);
                    *cursor = (*cursor).max(key.event + 1);
                }
                Entry::Finished(key, attempt, next) => {
                    let Some(d) = self.deliveries.get_mut(key) else { continue };
                    if d.generation == attempt.generation {
                        d.open_attempt = None;
                        d.attempts = attempt.used_up();
                        d.state = next.clone();
                        if (d.generation, d.attempts, next) == (0, 1, &State::Delivered) {
                            self.deliveries.remove(key);
                            self.at_once.insert(key.clone());
                        }
                    }
                }
                Entry::Parked(key, due) => {
                    self.deliveries.insert(key.clone(), fresh(key, *due));
                }
                Entry::Replayed(key, due) => {
                    let d = self.deliveries.entry(key.clone()).or_insert_with(|| fresh(key, *due));
                    d.generation += 1;
                    (d.attempts, d.open_attempt) = (0, None);
                    d.state = State::Scheduled { due: *due };
                }
                Entry::Moved(handler, to) => {
                    let cursor = self.cursors.entry(handler.clone()).or_insert(1);
                    *cursor = (*cursor).max(*to);
                }
            }
        }
    }

    /// `(number, start)` of every attempt that ended, for one handler and event.
    pub fn attempts(&self, handler: &str, event: Seq) -> Vec<(u32, i64)> {
        let of = |ran: &&Ran| ran.handler == handler && ran.event == event;
        self.ran.iter().filter(of).map(|ran| (ran.number, ran.start - T0)).collect()
    }

    pub fn state(&self, handler: &str, event: Seq) -> &'static str {
        let key = DeliveryKey { event, handler: HandlerName::new(handler).unwrap() };
        if self.at_once.contains(&key) {
            return "delivered";
        }
        self.deliveries.get(&key).map_or("none", |d| d.state.name())
    }

    pub fn pause(&mut self, handler: &str) {
        self.feed(Input::Pause(HandlerName::new(handler).unwrap()));
    }

    pub fn resume(&mut self, handler: &str) {
        self.feed(Input::Resume(HandlerName::new(handler).unwrap()));
    }

    pub fn rate(count: u32, secs: u64) -> Rate {
        Rate { count, per: Duration::from_secs(secs) }
    }
}
