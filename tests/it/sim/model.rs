//! What the world outside knows: who was told what, which handler ran when. The log and the index are
//! held against it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bluehook::clock::{BootId, Timestamp};
use bluehook::delivery::{DeliveryKey, Generation, HandlerName, Outcome, Seq, State};
use bluehook::event::{DedupKey, body_hash, dedup_key};
use bluehook::replay::planner::HandlerPlan;
use bluehook::store::index::query::View;
use bluehook::store::log::{Frame, LogReader, ScanItem};
use bluehook::store::record::{self, EventRecord, Record};

/// `Err` says which promise was broken.
pub type Check = Result<(), String>;

/// In the configuration of the simulated appliance, so it must show up nowhere.
pub const SECRET: &[u8] = b"whsec-of-the-simulated-workspace";

/// A sender was told 200.
pub struct Acked {
    pub key: DedupKey,
    pub seq: Seq,
    pub body: Vec<u8>,
    /// The record that keeps this body beside the first one.
    pub kept_in: Option<Seq>,
    pub duplicate: bool,
}

/// One run of a handler, seen from the handler.
pub struct Run {
    pub key: DeliveryKey,
    pub generation: Generation,
    pub number: u32,
    /// Schedule time at which its start was decided on.
    pub asked_at: Timestamp,
    /// The record of its start.
    pub start: Seq,
    /// Wall clock.
    pub started_at: Timestamp,
    pub boot_id: BootId,
    pub started_boot_ms: i64,
    pub ended_boot_ms: Option<i64>,
    /// `None`: it was cut off, or runs still.
    pub outcome: Option<Outcome>,
    /// The record of its start was never durable and is gone: the appliance cannot know of it.
    pub lost: bool,
}

#[derive(Default)]
pub struct Model {
    pub acked: Vec<Acked>,
    pub runs: Vec<Run>,
    /// What a signature covered.
    pub signed: HashSet<Vec<u8>>,
    /// Ids that were taken for new while the index was behind: only those may have a second record.
    pub taken_blindly: HashSet<DedupKey>,
}

impl Model {
    // --- what the handlers see ---

    /// `log` reads the log as it is now; asked only when there is reason to doubt.
    pub fn launched(
        &mut self,
        run: Run,
        plan: &HandlerPlan,
        log: impl Fn() -> Result<Vec<Logged>, String>,
    ) -> Check {
        let what = format!("{:?} generation {} attempt {}", run.key, run.generation, run.number);
        let of_key = || self.runs.iter().filter(|r| r.key == run.key);
        if of_key().any(|r| r.ended_boot_ms.is_none()) {
            return Err(format!("I6: {what} starts while another one runs"));
        }
        if run.number > plan.schedule.attempts_max() {
            return Err(format!("I4: {what} is more than the schedule has"));
        }
        if let Some(newer) = of_key().find(|r| !r.lost && r.generation > run.generation) {
            return Err(format!("I4: {what} runs after generation {}", newer.generation));
        }
        let before = of_key().rfind(|r| !r.lost && r.generation == run.generation);
        if let Some(before) = before {
            // What failed while the circuit was open is made again under its number.
            let uncounted = matches!(before.outcome, Some(Outcome::Uncounted { .. }));
            if before.number > run.number || (before.number == run.number && !uncounted) {
                return Err(format!("I4: {what} runs after number {}", before.number));
            }
            let delay = |outcome: Option<&Outcome>| {
                let after_ms = match outcome {
                    Some(Outcome::Retry { after_ms, .. }) => *after_ms,
                    Some(Outcome::Uncounted { .. }) => return 0,
                    None => None,
                    // Nothing runs after this.
                    Some(_) => return i64::MAX,
                };
                let after = after_ms.map(Duration::from_millis);
                let due = plan.schedule.next_due(before.number, Timestamp::ZERO, after, 0.0);
                due.map_or(i64::MAX, |due| due.0)
            };
            // Of another boot only schedule time can be compared, and the end may be unknown to it.
            let waited = match before.ended_boot_ms {
                Some(end) if before.boot_id == run.boot_id => run.started_boot_ms - end,
                _ => run.asked_at.0 - before.asked_at.0,
            };
            // An outcome that never came to be durable is that of an attempt that was cut off.
            let is_fine = |outcome| waited >= delay(outcome);
            let outcome = before.outcome.as_ref();
            if !is_fine(outcome) && (!is_fine(None) || is_logged(before, log)?) {
                return Err(format!("I4: {what} runs {waited} ms after {:?}", before.outcome));
            }
        }
        self.runs.push(run);
        Ok(())
    }

    pub fn ended(&mut self, key: &DeliveryKey, outcome: &Outcome, boot_ms: i64) {
        let open = |r: &&mut Run| r.key == *key && r.ended_boot_ms.is_none();
        if let Some(run) = self.runs.iter_mut().find(open) {
            run.ended_boot_ms = Some(boot_ms);
            run.outcome = Some(outcome.clone());
        }
    }

    /// The run that ended last did not count: the handler's circuit was open.
    pub fn not_counted(&mut self, key: &DeliveryKey, outcome: &Outcome) {
        if let Some(run) = self.runs.iter_mut().rfind(|r| r.key == *key) {
            run.outcome = Some(outcome.clone());
        }
    }

    /// The process is gone, and with it whatever ran.
    pub fn cut_off(&mut self, boot_ms: i64) {
        for run in self.runs.iter_mut().filter(|r| r.ended_boot_ms.is_none()) {
            run.ended_boot_ms = Some(boot_ms);
        }
    }

    // --- the log ---

    /// Everything in the log up to `last`, which must be gapless and whole.
    pub fn read_log(reader: &LogReader, last: Seq) -> Result<Vec<Logged>, String> {
        let mut found = Vec::new();
        if last == 0 {
            return Ok(found);
        }
        let first = reader.first_position().map_err(|e| format!("log: {e}"))?.unwrap_or((1, 0));
        let mut scan = reader.scan(first, last);
        while let Some(item) = scan.next().map_err(|e| format!("log: {e}"))? {
            match item {
                ScanItem::Damage(d) => return Err(format!("I10: {d:?} up to {last}")),
                ScanItem::Frame(frame) => found.push(Logged::new(frame)?),
            }
        }
        if !found.iter().map(|l| l.frame.seq).eq(1..=last) {
            return Err(format!("I10: {} records up to {last}", found.len()));
        }
        Ok(found)
    }

    /// I1, I2, I5, I12 as far as the log itself shows them.
    pub fn audit_log(&self, log: &[Logged]) -> Check {
        let at = |seq: Seq| seq.checked_sub(1).and_then(|i| log.get(usize::try_from(i).ok()?));
        for acked in &self.acked {
            let seq = acked.seq;
            let Some(Logged { record: Record::Event(event), .. }) = at(seq) else {
                return Err(format!("I1: acknowledged event {seq} is gone of {}", log.len()));
            };
            if dedup_key(&event.source, &event.id) != acked.key {
                return Err(format!("I1: acknowledged event {seq} is another one now"));
            }
            if !acked.duplicate && event.body != acked.body {
                return Err(format!("I1: acknowledged event {seq} has another body"));
            }
            let kept = acked.kept_in.map(at);
            let is_kept = |l: Option<&Logged>| match l.map(|l| &l.record) {
                Some(Record::Repeat(r)) => {
                    r.of == seq && r.conflict.as_ref().is_some_and(|c| c.body == acked.body)
                }
                _ => false,
            };
            if kept.is_some_and(|l| !is_kept(l)) {
                return Err(format!("I1: the conflicting body of {seq} is gone"));
            }
        }
        let mut seen = HashSet::new();
        for Logged { frame, record } in log {
            if frame.payload.windows(SECRET.len()).any(|w| w == SECRET) {
                return Err(format!("I12: record {} holds the secret", frame.seq));
            }
            if let Record::Event(event) = record {
                let key = dedup_key(&event.source, &event.id);
                if !self.signed.contains(&event.body) {
                    return Err(format!("I2: nobody signed what event {} holds", frame.seq));
                }
                if !seen.insert(key) && !self.taken_blindly.contains(&key) {
                    return Err(format!("I5: event {} was stored before", frame.seq));
                }
            }
        }
        Ok(())
    }

    /// After a recovery, or when the log was reopened after a fault: which starts of handlers the log no longer knows.
    pub fn mark_lost(&mut self, log: &[Logged]) {
        for run in &mut self.runs {
            let record = usize::try_from(run.start - 1).ok().and_then(|i| log.get(i));
            let is_start = record.is_some_and(|l| match &l.record {
                Record::AttemptStarted { key, generation, number } => {
                    (key, generation, number) == (&run.key, &run.generation, &run.number)
                }
                _ => false,
            });
            run.lost |= !is_start;
        }
    }

    // --- the index, once it has caught up with the log ---

    pub fn audit_index(&self, view: &View<'_>, log: &[Logged]) -> Check {
        let error = |e: bluehook::store::index::KvError| format!("index: {e}");
        let mut firsts: HashMap<DedupKey, (Seq, &EventRecord, u32)> = HashMap::new();
        let mut copies: BTreeMap<Seq, u32> = BTreeMap::new();
        for Logged { frame, record } in log {
            match record {
                Record::Event(event) => {
                    let key = dedup_key(&event.source, &event.id);
                    let entry = firsts.entry(key).or_insert((frame.seq, event, 0));
                    if entry.0 != frame.seq {
                        *copies.entry(entry.0).or_default() += 1;
                        if view.entry(frame.seq).map_err(error)?.is_some() {
                            return Err(format!("I5: event {} is in the index twice", entry.0));
                        }
                    }
                }
                Record::Repeat(r) => *copies.entry(r.of).or_default() += 1,
                _ => {}
            }
        }
        if view.event_count().map_err(error)? != firsts.len() as u64 {
            return Err(format!("I5: the index does not count {} events", firsts.len()));
        }
        for (key, (seq, event, _)) in &firsts {
            let id = view.id(key).map_err(error)?;
            let hash = body_hash(&event.body);
            if id.map(|i| (i.seq, i.body_hash)) != Some((*seq, hash)) {
                return Err(format!("I5: the index does not know event {seq} by its id"));
            }
            let stored = view.event(*seq).map_err(error)?;
            if stored.is_none_or(|s| s.new.body != event.body) {
                return Err(format!("I1: event {seq} cannot be read by way of the index"));
            }
            let count = view.repeats(*seq).map_err(error)?.count;
            if count != copies.get(seq).copied().unwrap_or(0) {
                return Err(format!("I5: event {seq} counts {count} further copies"));
            }
        }
        for Logged { frame, record } in log {
            let Record::AttemptFinished { key, attempt, .. } = record else { continue };
            if !view.attempts(key).map_err(error)?.contains(attempt) {
                return Err(format!("I7: the attempt in record {} is not in history", frame.seq));
            }
        }
        Ok(())
    }

    /// I3: once faults have stopped and handlers succeed, everything comes to its end.
    pub fn is_settled(&self, view: &View<'_>, log: &[Logged], plans: &[Wanted]) -> Check {
        let error = |e: bluehook::store::index::KvError| format!("index: {e}");
        let mut seen = HashSet::new();
        for Logged { frame, record } in log {
            let Record::Event(event) = record else { continue };
            if !seen.insert(dedup_key(&event.source, &event.id)) {
                continue;
            }
            for wanted in plans.iter().filter(|w| w.wants(&event.kind)) {
                let key = DeliveryKey { event: frame.seq, handler: wanted.handler.clone() };
                // With `start = "now"` it is open which events of that moment are new.
                let from = log.iter().find_map(|l| match &l.record {
                    Record::HandlerSeen { handler, from } if *handler == key.handler => {
                        Some(if *from == 1 { 1 } else { l.frame.seq })
                    }
                    _ => None,
                });
                let delivery = view.delivery(&key).map_err(error)?;
                let must = from.is_some_and(|from| frame.seq >= from);
                match delivery.map(|d| (d.state, d.generation)) {
                    None if must => return Err(format!("I3: {key:?} was never begun")),
                    Some((State::Scheduled { due }, _)) => {
                        return Err(format!("I3: {key:?} is still scheduled, for {due}"));
                    }
                    Some((State::Delivered, generation)) => {
                        let success = |r: &Run| {
                            r.key == key
                                && r.generation == generation
                                && r.outcome == Some(Outcome::Delivered)
                        };
                        if !self.runs.iter().any(success) {
                            return Err(format!("I3: {key:?} counts as delivered and is not"));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn is_logged(run: &Run, log: impl Fn() -> Result<Vec<Logged>, String>) -> Result<bool, String> {
    Ok(log()?.iter().any(|l| match &l.record {
        Record::AttemptFinished { key, attempt, .. } => {
            *key == run.key
                && (attempt.generation, attempt.number) == (run.generation, run.number)
                && attempt.started_at == run.started_at
                && Some(&attempt.outcome) == run.outcome.as_ref()
        }
        _ => false,
    }))
}

/// A record as it was read.
pub struct Logged {
    pub frame: Frame,
    pub record: Record,
}

impl Logged {
    fn new(frame: Frame) -> Result<Logged, String> {
        match record::decode(frame.kind, &frame.payload) {
            Ok(record) => Ok(Logged { frame, record }),
            Err(e) => Err(format!("I10: record {}: {e}", frame.seq)),
        }
    }
}

/// What a handler asks for.
pub struct Wanted {
    pub handler: HandlerName,
    pub kind: Option<&'static str>,
}

impl Wanted {
    pub fn wants(&self, kind: &str) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
    }
}
