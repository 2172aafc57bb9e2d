//! From the end of an attempt to where the index knows of it: settle, log, fence.

use super::{Job, Phase, Slot, Step, Track};
use crate::clock::Timestamp;
use crate::delivery::{self, Attempt, Seq, State};
use crate::replay::planner::Command;

impl Track {
    pub(in crate::replay::planner) fn finished(
        &mut self,
        event: Seq,
        attempt: Attempt,
        step: &mut Step,
    ) {
        let Some(Slot::Running(job)) = self.slots.get(&event) else { return };
        let job = *job;
        self.running -= 1;
        let outcome = self.breaker.ended(event, attempt.outcome, step.now);
        self.settle(job, Attempt { outcome, ..attempt }, step);
    }

    pub(super) fn settle(&mut self, job: Job, attempt: Attempt, step: &mut Step) {
        let (schedule, random) = (&self.plan.schedule, step.rng.f64());
        let next = delivery::settle(attempt.number, &attempt.outcome, schedule, step.now, random);
        let (due, retry) = match next {
            State::Scheduled { due } => (due, true),
            _ => (job.due, false),
        };
        let job = Job { due, first: false, attempts: attempt.used_up(), ..job };
        self.logging += 1;
        self.slots.insert(job.event, Slot::Logging { job, retry });
        step.out.push(Command::Settle { key: self.key(job.event), attempt, next });
    }

    pub(in crate::replay::planner) fn dropped(&mut self, event: Seq, step: &mut Step) {
        let Some(Slot::Running(job)) = self.slots.get(&event).copied() else { return };
        self.running -= 1;
        self.breaker.dropped(event);
        self.slots.remove(&event);
        self.release(&job, step.now);
        self.look_for_due(step.now);
    }

    pub(in crate::replay::planner) fn logged(&mut self, event: Seq, seq: Seq, step: &mut Step) {
        let Some(Slot::Logging { job, retry }) = self.slots.get(&event).copied() else { return };
        self.logging -= 1;
        if let Phase::Draining { gate } = self.phase {
            self.phase = Phase::Draining { gate: gate.max(seq) };
            self.slots.remove(&event);
            return;
        }
        self.slots.insert(event, Slot::Fenced { job, retry });
        self.fences.insert((seq, event));
        if !retry {
            self.release(&job, step.now);
        }
    }

    /// Gives the lane on, where the delivery held one.
    pub(super) fn release(&mut self, job: &Job, now: Timestamp) {
        let Some(next) = job.lane.and_then(|lane| self.lanes.release(lane, job.event)) else {
            return;
        };
        if let Some(Slot::Waiting(next)) = self.slots.remove(&next) {
            self.admit(next, true, now);
        }
    }

    /// What the index has taken in is free again. Not while an answer is on its way that may have
    /// been read before.
    pub(super) fn lift_fences(&mut self, step: &Step) {
        while !self.fetching_due {
            let Some(&(seq, event)) = self.fences.first() else { return };
            if seq > step.applied {
                return;
            }
            self.fences.pop_first();
            let Some(Slot::Fenced { job, retry }) = self.slots.remove(&event) else { continue };
            if job.superseded {
                self.look_for_due(step.now);
            }
            match job.lane {
                _ if !retry => {}
                Some(_) => {
                    self.admit(job, true, step.now);
                }
                // It comes back from the index.
                None => self.look_at = self.look_at.min(job.due),
            }
        }
    }
}
