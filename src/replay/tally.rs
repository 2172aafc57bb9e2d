//! What attempts came to since the start, for the page and the metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::clock::{Moment, Timestamp};
use crate::delivery::{HandlerName, Outcome};
use crate::tally::LastHour;

/// Attempts by what they came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub delivered: u64,
    pub retry: u64,
    pub reject: u64,
    /// While the handler's circuit was open.
    pub uncounted: u64,
}

impl Outcomes {
    pub fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Delivered => self.delivered += 1,
            Outcome::Retry { .. } => self.retry += 1,
            Outcome::Reject { .. } => self.reject += 1,
            Outcome::Uncounted { .. } => self.uncounted += 1,
        }
    }
}

#[derive(Debug, Default)]
pub struct Tally {
    by_handler: Mutex<BTreeMap<HandlerName, Outcomes>>,
    hour: LastHour<Outcomes>,
}

impl Tally {
    pub fn note(&self, handler: &HandlerName, outcome: &Outcome, now: Moment) {
        let mut by_handler = self.by_handler.lock().unwrap_or_else(PoisonError::into_inner);
        by_handler.entry(handler.clone()).or_default().add(outcome);
        self.hour.add(now, |minute| minute.add(outcome));
    }

    #[must_use]
    pub fn by_handler(&self) -> BTreeMap<HandlerName, Outcomes> {
        self.by_handler.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn last_hour(&self, now: Moment) -> Vec<(Timestamp, Outcomes)> {
        self.hour.list(now)
    }
}
