//! The replayer's tasks around the real planner, and the handlers that they run. What `replay::runner`
//! does in tasks of its own is done here in steps that may come in any order.

use std::collections::{BTreeMap, VecDeque};

use bluehook::clock::{Clock, Timestamp};
use bluehook::config::{Order, Start};
use bluehook::delivery::{
    Attempt, Delivery, DeliveryKey, Generation, HandlerName, Outcome, Seq, State,
};
use bluehook::replay::planner::{Command, DUE_POLL_MS, Found, Head, Input, Planner};
use bluehook::store::log::{Priority, Receipt};
use bluehook::store::record::Record;
use bluehook::store::{AppendError, Progress};

use super::handlers::SimHandler;
use super::model::{Check, Model, Run};
use super::process::{Outside, Process, Sabotage, Ticket};

const BACK_OFF_MS: i64 = 50;
const UNSETTLED_MAX: usize = 200_000;

/// The records that begin something, of one handler, one after the other.
struct Queue {
    handler: HandlerName,
    /// With the epoch that each was decided in.
    items: VecDeque<(u64, Command)>,
    /// The first item's record.
    writing: Option<Writing>,
    retry_at: i64,
    /// The handler is configured; when not, what is in here is still done.
    open: bool,
}

struct Writing {
    /// The event could not be read.
    missing: bool,
    ticket: Ticket<Result<Seq, AppendError>>,
    asked_at: Timestamp,
}

/// `Load`, `FetchHeads` or `FetchDue`.
struct Question {
    command: Command,
    introducing: Option<Ticket<Result<Seq, AppendError>>>,
    retry_at: i64,
}

struct Settling {
    key: DeliveryKey,
    record: Record,
    epoch: u64,
    ticket: Option<Ticket<Result<Seq, AppendError>>>,
    retry_at: i64,
}

struct Admin {
    ticket: Ticket<Result<Receipt, AppendError>>,
    then: Input,
}

enum Message {
    Input(Input),
    Launch(Launch),
}

struct Launch {
    key: DeliveryKey,
    generation: Generation,
    number: u32,
    asked_at: Timestamp,
    start: Seq,
    ran_in: u64,
    /// The event could not be read.
    missing: bool,
}

struct Running {
    key: DeliveryKey,
    generation: Generation,
    number: u32,
    started_at: Timestamp,
    ends_at_boot_ms: i64,
    outcome: Outcome,
}

pub struct Replayer {
    attempts_max: usize,
    pub planner: Planner,
    told: Progress,
    /// As the planner knows it.
    epoch: u64,
    new_from: BTreeMap<HandlerName, Seq>,
    queues: Vec<Queue>,
    questions: Vec<Question>,
    settling: Vec<Settling>,
    admin: VecDeque<Admin>,
    inbox: VecDeque<Message>,
    running: Vec<Running>,
    ticked_at: Timestamp,
    /// Epochs that ended, and what was durable then: what they wrote above it is gone.
    reopenings: Vec<(u64, Seq)>,
}

#[derive(Clone, Debug)]
pub enum Work {
    Tell,
    Tick,
    Inbox,
    Question(usize),
    Queue(usize),
    Settling(usize),
    Admin,
    Finish(usize),
}

impl Replayer {
    pub fn new(rng: fastrand::Rng) -> Replayer {
        // A copy decides: what seeds that once failed do stays as it was.
        let attempts_max = [1, 3, usize::MAX][rng.clone().usize(0..3)];
        Replayer {
            attempts_max,
            planner: Planner::new(rng, attempts_max),
            told: Progress::default(),
            epoch: 0,
            new_from: BTreeMap::new(),
            queues: Vec::new(),
            questions: Vec::new(),
            settling: Vec::new(),
            admin: VecDeque::new(),
            inbox: VecDeque::new(),
            running: Vec::new(),
            ticked_at: Timestamp::ZERO,
            reopenings: Vec::new(),
        }
    }

    pub fn reopened(&mut self, ended: u64, durable: Seq) {
        self.reopenings.push((ended, durable));
    }

    pub fn work(&self, now: Timestamp, progress: Progress, out: &Outside) -> Vec<Work> {
        let boot_ms = out.clock.now().boot_ms;
        let mut work = Vec::new();
        if self.told != progress {
            work.push(Work::Tell);
        }
        if self.ticked_at != now {
            work.push(Work::Tick);
        }
        if !self.inbox.is_empty() {
            work.push(Work::Inbox);
        }
        if self.admin.front().is_some_and(|a| a.ticket.is_ready()) {
            work.push(Work::Admin);
        }
        let mut list = |make: fn(usize) -> Work, ready: Vec<bool>| {
            work.extend(ready.iter().enumerate().filter(|(_, r)| **r).map(|(n, _)| make(n)));
        };
        let is_ready = |ticket: &Option<Ticket<_>>, retry_at: i64| match ticket {
            Some(ticket) => Ticket::is_ready(ticket),
            None => retry_at <= boot_ms,
        };
        let ready = |q: &Question| is_ready(&q.introducing, q.retry_at);
        list(Work::Question, self.questions.iter().map(ready).collect());
        let ready = |q: &Queue| match &q.writing {
            Some(writing) => writing.ticket.is_ready(),
            None => !q.items.is_empty() && q.retry_at <= boot_ms,
        };
        list(Work::Queue, self.queues.iter().map(ready).collect());
        let ready = |s: &Settling| is_ready(&s.ticket, s.retry_at);
        list(Work::Settling, self.settling.iter().map(ready).collect());
        let ready = |r: &Running| r.ends_at_boot_ms <= boot_ms;
        list(Work::Finish, self.running.iter().map(ready).collect());
        work
    }

    /// When the next run ends, on the boot clock.
    pub fn next_end(&self) -> Option<i64> {
        self.running.iter().map(|r| r.ends_at_boot_ms).min()
    }

    fn is_busy_with(&self, key: &DeliveryKey) -> bool {
        self.running.iter().any(|r| r.key == *key)
            || self.settling.iter().any(|s| s.key == *key)
            || self.queues.iter().any(|q| q.handler == key.handler && !q.items.is_empty())
    }
}

impl Process {
    pub fn configure(&mut self, out: &Outside) {
        let configured: Vec<&SimHandler> = out.handlers.iter().filter(|h| h.configured).collect();
        let next = self.next_seq();
        let known = std::mem::take(&mut self.replayer.new_from);
        for queue in &mut self.replayer.queues {
            queue.open = configured.iter().any(|h| h.plan.name == queue.handler);
        }
        for handler in &configured {
            let name = &handler.plan.name;
            let new_from = known.get(name).copied().unwrap_or(next);
            self.replayer.new_from.insert(name.clone(), new_from);
            if !self.replayer.queues.iter().any(|q| q.open && q.handler == *name) {
                self.replayer.queues.push(Queue {
                    handler: name.clone(),
                    items: VecDeque::new(),
                    writing: None,
                    retry_at: 0,
                    open: true,
                });
            }
        }
        let plans = configured.iter().map(|h| h.plan.clone()).collect();
        self.plan(Input::Configure(plans), out);
    }

    pub fn administer(&mut self, record: &Record, then: Input) {
        let ticket = self.submit_durable(record, Priority::Bookkeeping);
        self.replayer.admin.push_back(Admin { ticket, then });
    }

    pub fn set_paused(&mut self, handler: HandlerName, paused: bool) {
        let record = Record::HandlerPaused { handler: handler.clone(), paused };
        let then = if paused { Input::Pause(handler) } else { Input::Resume(handler) };
        self.administer(&record, then);
    }

    fn plan(&mut self, input: Input, out: &Outside) {
        let now = self.now(out);
        out.tell(|| format!("  heard {input:?}"));
        for command in self.replayer.planner.step(input, now) {
            out.tell(|| format!("    says {command:?}"));
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        let replayer = &mut self.replayer;
        let handler = match &command {
            Command::Settle { key, attempt, next } => {
                let (key, attempt, next) = (key.clone(), attempt.clone(), next.clone());
                let record = Record::AttemptFinished { key: key.clone(), attempt, next };
                replayer.settling.push(Settling {
                    key,
                    record,
                    epoch: 0,
                    ticket: None,
                    retry_at: 0,
                });
                return;
            }
            Command::Circuit { .. } => return,
            Command::Load { handler, .. }
            | Command::FetchHeads { handler, .. }
            | Command::FetchDue { handler, .. }
            | Command::Moved { handler, .. } => handler.clone(),
            Command::Start { key, .. } | Command::Park { key, .. } => key.handler.clone(),
        };
        let open = |q: &&mut Queue| q.open && q.handler == handler;
        let Some(queue) = replayer.queues.iter_mut().find(open) else { return };
        match command {
            Command::Load { .. } | Command::FetchHeads { .. } | Command::FetchDue { .. } => {
                replayer.questions.push(Question { command, introducing: None, retry_at: 0 });
            }
            command => queue.items.push_back((replayer.epoch, command)),
        }
    }

    pub fn replay(&mut self, work: Work, out: &mut Outside) -> Check {
        match work {
            Work::Tell => {
                let Progress { epoch, durable, applied, caught_up, .. } = self.progress;
                self.replayer.told = self.progress;
                self.replayer.epoch = epoch;
                let applied = if out.sabotage == Sabotage::NoFences { durable } else { applied };
                self.plan(Input::Progress { epoch, durable, applied, caught_up }, out);
            }
            Work::Tick => {
                self.replayer.ticked_at = self.now(out);
                self.plan(Input::Tick, out);
            }
            Work::Inbox => {
                if self.progress.epoch != self.replayer.epoch {
                    self.replay(Work::Tell, out)?;
                }
                match self.replayer.inbox.pop_front() {
                    Some(Message::Input(input)) => self.plan(input, out),
                    Some(Message::Launch(launch)) => self.launch(launch, out)?,
                    None => {}
                }
            }
            Work::Question(n) => self.question(n, out),
            Work::Queue(n) => self.begin(n, out),
            Work::Settling(n) => self.settle(n, out),
            Work::Admin => {
                if let Some(Admin { mut ticket, then }) = self.replayer.admin.pop_front()
                    && let Some(Ok(_)) = ticket.take()
                {
                    self.plan(then, out);
                }
            }
            Work::Finish(n) => self.finish(n, out),
        }
        Ok(())
    }

    // --- what the planner asks of the index ---

    fn question(&mut self, n: usize, out: &Outside) {
        let mut question = self.replayer.questions.swap_remove(n);
        if let Command::Load { handler, .. } = &question.command {
            let introduced = match &mut question.introducing {
                Some(ticket) => matches!(ticket.take(), Some(Ok(_))),
                None => self.cursor(handler).is_some(),
            };
            if !introduced {
                let boot_ms = out.clock.now().boot_ms;
                if question.introducing.take().is_some() {
                    question.retry_at = boot_ms + BACK_OFF_MS;
                } else {
                    let from = self.first_event(handler, out);
                    let record = Record::HandlerSeen { handler: handler.clone(), from };
                    question.introducing = Some(self.submit_in(&record, out));
                }
                self.replayer.questions.push(question);
                return;
            }
        }
        let answer = self.answer(question.command, out);
        self.replayer.inbox.push_back(Message::Input(answer));
    }

    fn cursor(&self, handler: &HandlerName) -> Option<Seq> {
        self.read(|view| view.handler_stats(handler).ok()?.cursor).flatten()
    }

    fn first_event(&self, handler: &HandlerName, out: &Outside) -> Seq {
        let configured = out.handlers.iter().find(|h| h.plan.name == *handler);
        match configured.map(|h| h.start) {
            Some(Start::Beginning) => 1,
            _ => self.next_seq().min(self.replayer.new_from.get(handler).copied().unwrap_or(1)),
        }
    }

    fn answer(&self, question: Command, out: &Outside) -> Input {
        let handler_of = |name: &HandlerName| out.handlers.iter().find(|h| h.plan.name == *name);
        match question {
            Command::Load { handler, ticket, unsettled } => {
                let stats = self.read(|view| view.handler_stats(&handler).ok()).flatten();
                let cursor = stats.as_ref().and_then(|s| s.cursor);
                let cursor = cursor.unwrap_or_else(|| self.first_event(&handler, out));
                let order = handler_of(&handler).map(|h| h.plan.order);
                let unsettled = if unsettled {
                    let all = self.due(&handler, Timestamp::MAX, UNSETTLED_MAX);
                    self.with_conversations(all, order == Some(Order::Conversation))
                } else {
                    Vec::new()
                };
                let paused = stats.is_some_and(|s| s.paused);
                Input::Loaded { handler, ticket, cursor, paused, unsettled }
            }
            Command::FetchHeads { handler, ticket, from, limit } => {
                let found = self.read(|view| view.heads_from(from, limit).ok()).flatten();
                let (found, next) = found.unwrap_or((Vec::new(), from));
                let looked_at = found.len();
                let wanted = handler_of(&handler).and_then(|h| h.kind);
                let heads: Vec<Head> = found
                    .into_iter()
                    .filter(|head| wanted.is_none_or(|kind| kind == head.kind))
                    .map(|h| Head { seq: h.seq, time: h.time, conversation: h.conversation })
                    .collect();
                let skipped = (looked_at - heads.len()) as u64;
                Input::Heads { handler, ticket, heads, next, skipped }
            }
            Command::FetchDue { handler, ticket, until, limit, conversations } => {
                let due = self.due(&handler, until, limit);
                let next = self.read(|view| view.next_due(&handler, until).ok()).flatten();
                let found = self.with_conversations(due, conversations);
                Input::Due { handler, ticket, found, next: next.flatten() }
            }
            _ => Input::Tick,
        }
    }

    fn due(&self, handler: &HandlerName, until: Timestamp, limit: usize) -> Vec<Delivery> {
        let due = self.read(|view| view.due(handler, until, limit).ok()).flatten();
        due.unwrap_or_default()
    }

    fn with_conversations(&self, deliveries: Vec<Delivery>, wanted: bool) -> Vec<Found> {
        let found = |delivery: Delivery| {
            let conversation = self.conversation(delivery.key.event).filter(|_| wanted);
            Found { delivery, conversation }
        };
        deliveries.into_iter().map(found).collect()
    }

    fn conversation(&self, event: Seq) -> Option<u64> {
        self.read(|view| view.entry(event).ok().flatten()).flatten()?.conversation
    }

    // --- starts, one handler's one after the other ---

    fn begin(&mut self, n: usize, out: &Outside) {
        let boot_ms = out.clock.now().boot_ms;
        let published = self.progress.epoch;
        let queue = &mut self.replayer.queues[n];
        let Some((epoch, command)) = queue.items.front().cloned() else { return };
        let is_current = published == epoch;
        let Some(mut writing) = queue.writing.take() else {
            if is_current && self.is_wanted(&command, out) {
                let record = begins(&command);
                let ticket = self.submit_in(&record, out);
                let asked_at = self.now(out);
                let missing = self.is_missing(&command);
                self.replayer.queues[n].writing = Some(Writing { missing, ticket, asked_at });
            } else {
                self.give_up(n);
            }
            return;
        };
        match writing.ticket.take() {
            Some(Ok(start)) => {
                queue.items.pop_front();
                if let Command::Start { key, generation, number, .. } = command {
                    let ran_in = writing.ticket.ran_in();
                    let (asked_at, missing) = (writing.asked_at, writing.missing);
                    let launch =
                        Launch { key, generation, number, asked_at, start, ran_in, missing };
                    self.replayer.inbox.push_back(Message::Launch(launch));
                }
            }
            Some(Err(_)) if is_current => queue.retry_at = boot_ms + BACK_OFF_MS,
            _ => self.give_up(n),
        }
    }

    fn is_missing(&self, command: &Command) -> bool {
        let Command::Start { key, .. } = command else { return false };
        self.read(|view| view.event(key.event).ok().flatten()).flatten().is_none()
    }

    fn give_up(&mut self, n: usize) {
        if let Some((_, Command::Start { key, .. })) = self.replayer.queues[n].items.pop_front() {
            self.replayer.inbox.push_back(Message::Input(Input::Dropped { key }));
        }
    }

    /// Whether the delivery is still as the planner knew it.
    fn is_wanted(&self, command: &Command, out: &Outside) -> bool {
        let Command::Start { key, generation, number, first } = command else { return true };
        if out.sabotage == Sabotage::NoFences {
            return true;
        }
        match self.read(|view| view.delivery(key).ok().flatten()).flatten() {
            None => *generation == 0 && *number == 1,
            Some(delivery) => {
                !first
                    && delivery.generation == *generation
                    && delivery.attempts.saturating_add(1) == *number
                    && delivery.open_attempt.is_none()
                    && !delivery.state.is_settled()
            }
        }
    }

    // --- runs ---

    fn launch(&mut self, launch: Launch, out: &mut Outside) -> Check {
        let Launch { key, generation, number, asked_at, start, ran_in, missing } = launch;
        let now = out.clock.now();
        let Some(handler) = out.handlers.iter().find(|h| h.plan.name == key.handler) else {
            return Ok(());
        };
        let gone = |(ended, durable): &(u64, Seq)| ran_in <= *ended && start > *durable;
        let run = Run {
            key: key.clone(),
            generation,
            number,
            asked_at,
            start,
            started_at: now.wall,
            boot_id: now.boot_id,
            started_boot_ms: now.boot_ms,
            ended_boot_ms: None,
            outcome: None,
            lost: self.replayer.reopenings.iter().any(gone),
        };
        if let Some(other) = self.in_the_way(&key, handler.plan.order) {
            return Err(format!("order: {key:?} starts while {other:?} runs"));
        }
        let (reader, durable) = (out.reader(), self.durable());
        out.model.launched(run, &handler.plan, || Model::read_log(&reader, durable))?;
        let (took, outcome) = if missing {
            (0, Outcome::retry("the event could not be read"))
        } else {
            handler.run(&mut out.rng, out.calm)
        };
        self.replayer.running.push(Running {
            key,
            generation,
            number,
            started_at: now.wall,
            ends_at_boot_ms: now.boot_ms + took,
            outcome,
        });
        Ok(())
    }

    /// What must have ended before this one may run.
    fn in_the_way(&self, key: &DeliveryKey, order: Order) -> Option<DeliveryKey> {
        let lane = |event| match order {
            Order::None => None,
            Order::Conversation => self.conversation(event),
            Order::Log => Some(0),
        };
        let mine = lane(key.event)?;
        let same = |r: &&Running| r.key.handler == key.handler && lane(r.key.event) == Some(mine);
        self.replayer.running.iter().find(same).map(|r| r.key.clone())
    }

    fn finish(&mut self, n: usize, out: &mut Outside) {
        let Running { key, generation, number, started_at, outcome, .. } =
            self.replayer.running.swap_remove(n);
        out.model.ended(&key, &outcome, out.clock.now().boot_ms);
        let attempt = Attempt {
            number,
            generation,
            started_at,
            took_ms: 0,
            outcome,
            request: Some("POST".to_owned()),
            response: None,
        };
        self.plan(Input::Finished { key: key.clone(), attempt }, out);
        let settled = self.replayer.settling.last().map(|settling| &settling.record);
        if let Some(Record::AttemptFinished { key: of, attempt, .. }) = settled
            && *of == key
            && matches!(attempt.outcome, Outcome::Uncounted { .. })
        {
            out.model.not_counted(&key, &attempt.outcome);
        }
    }

    /// Logs an outcome, however long the log takes to accept it.
    fn settle(&mut self, n: usize, out: &Outside) {
        let published = self.progress.epoch;
        let settling = &mut self.replayer.settling[n];
        let Some(ticket) = &mut settling.ticket else {
            settling.epoch = published;
            let record = settling.record.clone();
            let ticket = self.submit_in(&record, out);
            self.replayer.settling[n].ticket = Some(ticket);
            return;
        };
        if let Some(Ok(seq)) = ticket.take() {
            let Settling { key, epoch, .. } = self.replayer.settling.swap_remove(n);
            let epoch = (published == epoch).then_some(epoch);
            let logged = Input::Logged { key, seq, epoch };
            self.replayer.inbox.push_back(Message::Input(logged));
        } else {
            settling.ticket = None;
            settling.retry_at = out.clock.now().boot_ms + BACK_OFF_MS;
        }
    }

    // --- what must hold once nothing is left to do at this moment ---

    /// I11: whatever other handlers are up to, what is due runs.
    pub fn nothing_due_waits(&self, out: &Outside) -> Check {
        let poll_ago = Timestamp(self.now(out).0 - DUE_POLL_MS);
        let running = self.replayer.planner.running();
        if running > self.replayer.attempts_max {
            return Err(format!("limits: {running} attempts run at once"));
        }
        // Some of it waits for its turn then.
        if running == self.replayer.attempts_max {
            return Ok(());
        }
        for snapshot in self.replayer.planner.snapshot() {
            let Some(handler) = out.handlers.iter().find(|h| h.plan.name == snapshot.name) else {
                continue;
            };
            let full = snapshot.running >= handler.plan.concurrency;
            let may_wait = handler.plan.order != Order::None || handler.plan.rate.is_some();
            let probing = snapshot.circuit.is_some();
            if snapshot.loading || snapshot.paused || full || may_wait || probing {
                continue;
            }
            let due = self.due(&snapshot.name, poll_ago, UNSETTLED_MAX);
            if let Some(late) = due.iter().find(|d| !self.replayer.is_busy_with(&d.key)) {
                return Err(format!("I11: {:?} is due and waits: {:?}", late.key, late.state));
            }
            if snapshot.ready > 0 && handler.plan.schedule.first_delay().is_zero() {
                return Err(format!("I11: {:?} has something ready and waits", snapshot.name));
            }
        }
        Ok(())
    }
}

fn begins(command: &Command) -> Record {
    match command.clone() {
        Command::Start { key, generation, number, .. } => {
            Record::AttemptStarted { key, generation, number }
        }
        Command::Park { key, due } => {
            let state = State::Scheduled { due };
            let as_of = key.event;
            let delivery = Delivery { key, generation: 0, attempts: 0, open_attempt: None, state };
            Record::Snapshot { delivery, attempts: vec![], as_of, conversation: None }
        }
        Command::Moved { handler, to } => Record::HandlerMoved { handler, to },
        other => unreachable!("{other:?} begins nothing"),
    }
}
