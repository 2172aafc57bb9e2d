//! What intake has done since the start, for the page and the metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::answer::{Answer, Reason};
use crate::clock::{Moment, Timestamp};
use crate::delivery::Seq;
use crate::tally::{self, Durations, DurationsView, LastHour};

/// Of so many events it is known how fast they were answered.
const ANSWERS_MAX: usize = 10_000;

#[derive(Default)]
pub struct Counters {
    received: AtomicU64,
    acknowledged: AtomicU64,
    duplicates: AtomicU64,
    pings: AtomicU64,
    not_wanted: AtomicU64,
    canonical: AtomicU64,
    used_up: AtomicU64,
    refused: [AtomicU64; Reason::NAMES.len()],
    acks: Durations,
    hour: LastHour<Minute>,
    /// How long the answer to an event took, in milliseconds.
    answers: Mutex<BTreeMap<Seq, u64>>,
}

/// One minute of the last hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Minute {
    pub received: u64,
    pub acknowledged: u64,
    pub refused: u64,
    pub ack_buckets: [u64; tally::BUCKETS],
    pub ack_max_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterView {
    /// Requests, of every kind.
    pub received: u64,
    /// Answered 200 with a receipt; duplicates included.
    pub acknowledged: u64,
    pub duplicates: u64,
    pub pings: u64,
    pub not_wanted: u64,
    /// Bodies whose canonical form was made, because the signature was not over the raw one.
    pub canonical: u64,
    /// Connections closed because they had brought all the requests they may.
    pub used_up: u64,
    /// Every reason there is.
    pub refused: Vec<(&'static str, u64)>,
    pub acks: DurationsView,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn note(&self, answer: &Answer, took: Duration, now: Moment) {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        add(&self.received, 1);
        match answer {
            Answer::Stored(receipt) => {
                add(&self.acknowledged, 1);
                add(&self.duplicates, u64::from(receipt.is_duplicate()));
                self.acks.note(took);
                if !receipt.is_duplicate() {
                    self.keep_answer(receipt.seq(), took_ms);
                }
            }
            Answer::Ping => add(&self.pings, 1),
            Answer::NotWanted => add(&self.not_wanted, 1),
            Answer::Refused(reason) => add(&self.refused[reason.index()], 1),
        }
        self.hour.add(now, |minute| {
            minute.received += 1;
            match answer {
                Answer::Stored(_) => {
                    minute.acknowledged += 1;
                    minute.ack_buckets[tally::bucket(took)] += 1;
                    minute.ack_max_ms = minute.ack_max_ms.max(took_ms);
                }
                Answer::Refused(_) => minute.refused += 1,
                Answer::Ping | Answer::NotWanted => {}
            }
        });
    }

    pub(super) fn note_used_up(&self) {
        add(&self.used_up, 1);
    }

    pub(super) fn note_canonical(&self) {
        add(&self.canonical, 1);
    }

    fn keep_answer(&self, seq: Seq, took_ms: u64) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert(seq, took_ms);
        if answers.len() > ANSWERS_MAX {
            answers.pop_first();
        }
    }

    /// How long the 200 for an event took, in milliseconds; known for the newest ones of this process.
    #[must_use]
    pub fn answered_in_ms(&self, seq: Seq) -> Option<u64> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(&seq).copied()
    }

    #[must_use]
    pub fn last_hour(&self, now: Moment) -> Vec<(Timestamp, Minute)> {
        self.hour.list(now)
    }

    #[must_use]
    pub fn snapshot(&self) -> CounterView {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterView {
            received: get(&self.received),
            acknowledged: get(&self.acknowledged),
            duplicates: get(&self.duplicates),
            pings: get(&self.pings),
            not_wanted: get(&self.not_wanted),
            canonical: get(&self.canonical),
            used_up: get(&self.used_up),
            refused: Reason::NAMES.into_iter().zip(self.refused.iter().map(get)).collect(),
            acks: self.acks.view(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, TestClock};

    #[test]
    fn refusals_are_counted_by_reason() {
        let counters = Counters::default();
        let now = TestClock::new(Timestamp(0)).now();
        counters.note(&Answer::Refused(Reason::Method), Duration::ZERO, now);
        counters.note(&Answer::Refused(Reason::Method), Duration::ZERO, now);
        counters.note(&Answer::Ping, Duration::ZERO, now);
        let view = counters.snapshot();
        assert!(view.refused.contains(&("method not allowed", 2)));
        assert_eq!((view.received, view.pings, view.acknowledged), (3, 1, 0));
        let (_, minute) = counters.last_hour(now).pop().unwrap();
        assert_eq!((minute.received, minute.refused), (3, 2));
    }

    #[test]
    fn of_the_newest_events_it_is_known_how_fast_they_were_answered() {
        let counters = Counters::default();
        for seq in 1..=ANSWERS_MAX as Seq + 1 {
            counters.keep_answer(seq, seq);
        }
        assert_eq!((counters.answered_in_ms(1), counters.answered_in_ms(2)), (None, Some(2)));
    }
}
