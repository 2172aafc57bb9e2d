//! What intake has done since the start, for the status and the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::answer::{Answer, Reason};

/// Upper bounds of the acknowledgement's latency buckets; one more bucket holds the rest.
pub const LATENCY_BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];

#[derive(Default)]
pub struct Counters {
    received: AtomicU64,
    acknowledged: AtomicU64,
    duplicates: AtomicU64,
    pings: AtomicU64,
    not_wanted: AtomicU64,
    refused: [AtomicU64; Reason::NAMES.len()],
    ack_buckets: [AtomicU64; LATENCY_BOUNDS_MS.len() + 1],
    ack_sum_us: AtomicU64,
    ack_max_us: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterView {
    /// Requests, of every kind.
    pub received: u64,
    /// Answered 200 with a receipt; duplicates included.
    pub acknowledged: u64,
    pub duplicates: u64,
    pub pings: u64,
    pub not_wanted: u64,
    /// Reasons that have occurred.
    pub refused: Vec<(&'static str, u64)>,
    /// Not cumulative; the last one has no upper bound.
    pub ack_buckets: Vec<u64>,
    pub ack_sum_us: u64,
    pub ack_max_us: u64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn note(&self, answer: &Answer, took: Duration) {
        add(&self.received, 1);
        match answer {
            Answer::Stored(receipt) => {
                add(&self.acknowledged, 1);
                add(&self.duplicates, u64::from(receipt.is_duplicate()));
                self.note_latency(took);
            }
            Answer::Ping => add(&self.pings, 1),
            Answer::NotWanted => add(&self.not_wanted, 1),
            Answer::Refused(reason) => add(&self.refused[reason.index()], 1),
        }
    }

    fn note_latency(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_MS.partition_point(|ms| ms * 1_000 < us);
        add(&self.ack_buckets[bucket], 1);
        add(&self.ack_sum_us, us);
        self.ack_max_us.fetch_max(us, Ordering::Relaxed);
    }

    #[must_use]
    pub fn snapshot(&self) -> CounterView {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let refused = Reason::NAMES.into_iter().zip(self.refused.iter().map(get));
        CounterView {
            received: get(&self.received),
            acknowledged: get(&self.acknowledged),
            duplicates: get(&self.duplicates),
            pings: get(&self.pings),
            not_wanted: get(&self.not_wanted),
            refused: refused.filter(|(_, n)| *n > 0).collect(),
            ack_buckets: self.ack_buckets.iter().map(get).collect(),
            ack_sum_us: get(&self.ack_sum_us),
            ack_max_us: get(&self.ack_max_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_counts_in_the_first_bucket_that_holds_it() {
        let counters = Counters::default();
        for ms in [1, 2, 3, 60_000] {
            counters.note_latency(Duration::from_millis(ms));
        }
        let view = counters.snapshot();
        assert_eq!(view.ack_buckets[..3], [1, 1, 1]);
        assert_eq!(view.ack_buckets.last(), Some(&1));
        assert_eq!(view.ack_max_us, 60_000_000);
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let counters = Counters::default();
        counters.note(&Answer::Refused(Reason::Method), Duration::ZERO);
        counters.note(&Answer::Refused(Reason::Method), Duration::ZERO);
        counters.note(&Answer::Ping, Duration::ZERO);
        let view = counters.snapshot();
        assert_eq!(view.refused, [("method not allowed", 2)]);
        assert_eq!((view.received, view.pings, view.acknowledged), (3, 1, 0));
    }
}
