//! Counts of what happened: durations in buckets, and the last hour minute by minute. Since the start of the
//! process; nothing of it is kept.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Moment, Timestamp};

/// Upper bounds of the buckets, in milliseconds; one more bucket holds the rest.
pub const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];
pub const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// The bucket that a duration counts in.
#[must_use]
pub fn bucket(took: Duration) -> usize {
    let us = micros(took);
    BOUNDS_MS.partition_point(|ms| ms * 1_000 < us)
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// How long something took, each time.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurationsView {
    /// Not cumulative; the last one has no upper bound.
    pub buckets: [u64; BUCKETS],
    pub sum_us: u64,
}

impl Durations {
    pub fn note(&self, took: Duration) {
        self.buckets[bucket(took)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(micros(took), Ordering::Relaxed);
    }

    #[must_use]
    pub fn view(&self) -> DurationsView {
        let buckets = std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed));
        DurationsView { buckets, sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

/// The bound below which half of what is in the buckets lies; `None` where there is nothing. What lies above the
/// last bound counts as that.
#[must_use]
pub fn median_ms(buckets: &[u64]) -> Option<u64> {
    let all: u64 = buckets.iter().sum();
    let mut seen = 0;
    let at = buckets.iter().position(|n| {
        seen += n;
        seen > 0 && seen * 2 >= all
    })?;
    Some(BOUNDS_MS[at.min(BOUNDS_MS.len() - 1)])
}

const MINUTES: i64 = 60;
const MINUTE_MS: i64 = 60_000;

/// A `T` for each minute of the last hour. By the boot clock: the wall clock may jump.
#[derive(Debug, Default)]
pub struct LastHour<T> {
    /// (minute since boot, counts), oldest first; minutes in which nothing happened are missing.
    minutes: Mutex<VecDeque<(i64, T)>>,
}

impl<T: Clone + Default> LastHour<T> {
    pub fn add(&self, now: Moment, change: impl FnOnce(&mut T)) {
        let minute = now.boot_ms.div_euclid(MINUTE_MS);
        let mut minutes = self.minutes.lock().unwrap_or_else(PoisonError::into_inner);
        if minutes.back().is_none_or(|(last, _)| *last < minute) {
            minutes.push_back((minute, T::default()));
        }
        if let Some((_, counts)) = minutes.back_mut() {
            change(counts);
        }
        while minutes.front().is_some_and(|(first, _)| *first <= minute - MINUTES) {
            minutes.pop_front();
        }
    }

    /// Sixty minutes, oldest first, the current one last, each with the time it began.
    #[must_use]
    pub fn list(&self, now: Moment) -> Vec<(Timestamp, T)> {
        let current = now.boot_ms.div_euclid(MINUTE_MS);
        let minutes = self.minutes.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |minute: i64| {
            let counts =
                minutes.iter().find(|(m, _)| *m == minute).map(|(_, counts)| counts.clone());
            let ago_ms = now.boot_ms - minute * MINUTE_MS;
            (Timestamp(now.wall.0.saturating_sub(ago_ms)), counts.unwrap_or_default())
        };
        (current - MINUTES + 1..=current).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, TestClock};

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it() {
        let durations = Durations::default();
        for ms in [1, 2, 3, 60_000] {
            durations.note(Duration::from_millis(ms));
        }
        let view = durations.view();
        assert_eq!(view.buckets[..3], [1, 1, 1]);
        assert_eq!((view.buckets[BUCKETS - 1], view.sum_us), (1, 60_006_000));
    }

    #[test]
    fn the_median_is_the_bound_of_its_bucket() {
        assert_eq!(median_ms(&[0; BUCKETS]), None);
        assert_eq!(median_ms(&[0, 3, 1]), Some(2));
        assert_eq!(median_ms(&[1, 0, 1]), Some(1));
        let mut rest = [0; BUCKETS];
        rest[BUCKETS - 1] = 5;
        assert_eq!(median_ms(&rest), Some(5_000));
    }

    #[test]
    fn an_hour_has_sixty_minutes_whatever_the_wall_clock_does() {
        let clock = TestClock::new(Timestamp(1_790_000_000_000));
        let hour = LastHour::<u64>::default();
        let at = clock.now().wall;
        for n in 0..70 {
            hour.add(clock.now(), |count| *count += n);
            hour.add(clock.now(), |count| *count += n);
            clock.advance(Duration::from_secs(60));
        }
        let listed = hour.list(clock.now());
        let counts: Vec<u64> = listed.iter().map(|(_, count)| *count).collect();
        assert_eq!((counts.len(), counts[0], counts[58], counts[59]), (60, 22, 138, 0));
        clock.set_wall(at);
        let (began, _) = hour.list(clock.now())[59];
        assert!(at.since(began) < Duration::from_secs(60));
    }
}
