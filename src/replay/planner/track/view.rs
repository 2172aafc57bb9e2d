//! What is to be seen of a handler's deliveries: when to look again, what `status` shows.

use super::{Phase, Track};
use crate::clock::Timestamp;
use crate::replay::planner::{HandlerSnapshot, READY_MAX};

impl Track {
    pub(in crate::replay::planner) fn wake_at(&self, now: Timestamp) -> Option<Timestamp> {
        if self.phase != Phase::Active || self.paused == Some(true) {
            return None;
        }
        let mut times = Vec::new();
        if !self.fetching_due && self.ready.len() < READY_MAX / 2 {
            times.push(self.look_at);
        }
        times.extend(self.timers.first().map(|(due, _)| *due));
        if self.running < self.plan.concurrency.max(1)
            && let Some(start) = self.earliest_start(now)
        {
            if !self.ready.is_empty() {
                times.push(start);
            }
            if let Some(head) = self.heads.front() {
                times.push(self.job_of(head).due.max(start));
            }
        }
        if self.skipped > 0 {
            times.push(self.position_due());
        }
        times.into_iter().filter(|time| *time > now).min()
    }

    pub(in crate::replay::planner) fn snapshot(&self) -> HandlerSnapshot {
        HandlerSnapshot {
            name: self.plan.name.clone(),
            loading: self.phase != Phase::Active,
            paused: self.paused == Some(true),
            running: self.running,
            ready: self.ready.len() + self.heads.len(),
            waiting: self.lanes.waiting(),
            next_look: (self.phase == Phase::Active).then_some(self.look_at),
            circuit: self.breaker.state(),
        }
    }

    pub(in crate::replay::planner) fn running(&self) -> usize {
        self.running
    }
}
