//! The circuit breaker of one handler. A handler that fails time after time is not sent the whole
//! backlog only to use up every delivery's attempts: its circuit opens, and until one attempt succeeds
//! only *probes* run, one at a time, ever further apart. What fails while it is open uses up no attempt.
//!
//! It lives in memory: after a restart it takes as many failures again to open.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::Circuit;
use crate::delivery::{Outcome, Seq};
use crate::schedule::RETRY_AFTER_MAX;

pub(super) struct Breaker {
    circuit: Circuit,
    /// In a row.
    failures: u32,
    open: Option<Open>,
}

struct Open {
    since: Timestamp,
    /// Between the last probe and the next.
    gap: Duration,
    next_probe: Timestamp,
    probing: Option<Seq>,
}

/// An open circuit, in schedule time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenCircuit {
    pub since: Timestamp,
    /// In a row, probes included.
    pub failures: u32,
    pub next_probe: Timestamp,
}

impl Breaker {
    pub(super) fn new(circuit: Circuit) -> Breaker {
        Breaker { circuit, failures: 0, open: None }
    }

    /// As with a handler that never failed.
    pub(super) fn close(&mut self) {
        *self = Breaker::new(self.circuit);
    }

    /// The earliest time, at or after `now`, that an attempt may start; `None` while a probe runs.
    pub(super) fn earliest(&self, now: Timestamp) -> Option<Timestamp> {
        match &self.open {
            None => Some(now),
            Some(open) if open.probing.is_some() => None,
            Some(open) => Some(open.next_probe.max(now)),
        }
    }

    pub(super) fn started(&mut self, event: Seq) {
        if let Some(open) = &mut self.open {
            open.probing = Some(event);
        }
    }

    /// The attempt for `event` was not made after all.
    pub(super) fn dropped(&mut self, event: Seq) {
        if let Some(open) = self.open.as_mut().filter(|open| open.probing == Some(event)) {
            open.probing = None;
        }
    }

    /// Takes in what an attempt came to, and gives what it counts as.
    pub(super) fn ended(&mut self, event: Seq, outcome: Outcome, now: Timestamp) -> Outcome {
        let was_probe = self.open.as_ref().is_some_and(|open| open.probing == Some(event));
        self.dropped(event);
        let (reason, after_ms) = match outcome {
            Outcome::Delivered => {
                self.close();
                return outcome;
            }
            // Says something about the event, and nothing about the others.
            Outcome::Reject { .. } | Outcome::Uncounted { .. } => return outcome,
            Outcome::Retry { ref reason, after_ms } => (reason.clone(), after_ms),
        };
        self.failures = self.failures.saturating_add(1);
        let asked = Duration::from_millis(after_ms.unwrap_or(0)).min(RETRY_AFTER_MAX);
        if let Some(open) = &mut self.open {
            if was_probe {
                open.gap = (open.gap * 2).min(self.circuit.longest);
                open.next_probe = now.plus(open.gap.max(asked));
            }
            return Outcome::Uncounted { reason };
        }
        if self.circuit.failures > 0 && self.failures >= self.circuit.failures {
            let gap = self.circuit.first;
            let next_probe = now.plus(gap.max(asked));
            self.open = Some(Open { since: now, gap, next_probe, probing: None });
        }
        outcome
    }

    pub(super) fn state(&self) -> Option<OpenCircuit> {
        let Open { since, next_probe, .. } = *self.open.as_ref()?;
        Some(OpenCircuit { since, failures: self.failures, next_probe })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIRCUIT: Circuit =
        Circuit { failures: 3, first: Duration::from_secs(30), longest: Duration::from_secs(100) };

    fn at(secs: i64) -> Timestamp {
        Timestamp(secs * 1_000)
    }

    fn failed(breaker: &mut Breaker, event: Seq, now: Timestamp) -> Outcome {
        breaker.started(event);
        breaker.ended(event, Outcome::retry("500"), now)
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::new(CIRCUIT);
        for n in 1..=3 {
            assert_eq!(failed(&mut breaker, n, at(0)), Outcome::retry("500"), "{n} counts");
        }
        breaker
    }

    #[test]
    fn so_many_failures_in_a_row_open_it_and_probes_grow_apart() {
        let mut breaker = opened();
        let state = OpenCircuit { since: at(0), failures: 3, next_probe: at(30) };
        assert_eq!(breaker.state(), Some(state));
        assert_eq!(breaker.earliest(at(10)), Some(at(30)));
        for (now, next) in [(30, 90), (90, 190), (190, 290)] {
            assert_eq!(breaker.earliest(at(now)), Some(at(now)));
            breaker.started(7);
            assert_eq!(breaker.earliest(at(now)), None, "one probe at a time");
            let counts_as = breaker.ended(7, Outcome::retry("500"), at(now));
            assert_eq!(counts_as, Outcome::Uncounted { reason: "500".into() });
            assert_eq!(breaker.earliest(at(now)), Some(at(next)));
        }
    }

    #[test]
    fn a_success_closes_it_and_starts_the_count_anew() {
        let mut breaker = opened();
        breaker.started(4);
        assert_eq!(breaker.ended(4, Outcome::Delivered, at(31)), Outcome::Delivered);
        assert_eq!((breaker.state(), breaker.earliest(at(31))), (None, Some(at(31))));
        assert_eq!(failed(&mut breaker, 5, at(32)), Outcome::retry("500"));
        assert_eq!(breaker.state(), None);
    }

    #[test]
    fn a_refusal_of_one_event_neither_opens_nor_closes_it() {
        let mut breaker = Breaker::new(CIRCUIT);
        for n in 1..=10 {
            breaker.started(n);
            breaker.ended(n, Outcome::reject("422"), at(0));
        }
        assert_eq!(breaker.state(), None);
        let mut breaker = opened();
        breaker.started(4);
        breaker.ended(4, Outcome::reject("422"), at(31));
        assert_eq!(breaker.earliest(at(31)), Some(at(31)), "the next probe goes at once");
    }

    #[test]
    fn what_was_under_way_when_it_opened_is_not_counted_and_moves_no_probe() {
        let mut breaker = opened();
        let counts_as = breaker.ended(9, Outcome::retry("timeout"), at(20));
        assert_eq!(counts_as, Outcome::Uncounted { reason: "timeout".into() });
        assert_eq!(breaker.earliest(at(20)), Some(at(30)));
        breaker.started(4);
        breaker.ended(9, Outcome::retry("timeout"), at(31));
        assert_eq!(breaker.earliest(at(31)), None, "the probe still runs");
        breaker.dropped(4);
        assert_eq!(breaker.earliest(at(31)), Some(at(31)));
    }

    #[test]
    fn retry_after_puts_the_probe_off_by_an_hour_at_most() {
        let mut breaker = opened();
        breaker.started(4);
        let asked = Outcome::Retry { reason: "429".into(), after_ms: Some(600_000) };
        breaker.ended(4, asked, at(30));
        assert_eq!(breaker.earliest(at(31)), Some(at(630)));
        breaker.started(4);
        let asked = Outcome::Retry { reason: "429".into(), after_ms: Some(u64::MAX) };
        breaker.ended(4, asked, at(630));
        assert_eq!(breaker.earliest(at(630)), Some(at(630 + 3_600)));
    }

    #[test]
    fn with_no_number_of_failures_it_never_opens() {
        let mut breaker = Breaker::new(Circuit { failures: 0, ..CIRCUIT });
        for n in 1..=100 {
            assert_eq!(failed(&mut breaker, n, at(0)), Outcome::retry("500"));
        }
        assert_eq!(breaker.state(), None);
    }
}
