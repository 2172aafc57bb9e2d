//! `rate`: attempts are spaced evenly, so that no window of the period ever holds more than the count.

use crate::clock::Timestamp;
use crate::config::Rate;

pub(super) struct Spacing {
    interval_us: i64,
    /// The next attempt may start here.
    next_us: i64,
}

impl Spacing {
    pub(super) fn new(rate: Option<Rate>) -> Spacing {
        let interval_us = rate.map_or(0, |rate| {
            let per = i64::try_from(rate.per.as_micros()).unwrap_or(i64::MAX);
            let count = i64::from(rate.count.max(1));
            per / count + i64::from(per % count > 0)
        });
        Spacing { interval_us, next_us: i64::MIN }
    }

    /// A changed rate holds from the next attempt on; it does not forget the last one.
    pub(super) fn change(&mut self, rate: Option<Rate>) {
        self.interval_us = Spacing::new(rate).interval_us;
    }

    /// The earliest time, at or after `now`, that the next attempt may start.
    pub(super) fn earliest(&self, now: Timestamp) -> Timestamp {
        if self.interval_us == 0 || self.next_us <= now.0.saturating_mul(1_000) {
            return now;
        }
        Timestamp(self.next_us.div_euclid(1_000) + i64::from(self.next_us.rem_euclid(1_000) > 0))
    }

    pub(super) fn take(&mut self, now: Timestamp) {
        if self.interval_us == 0 {
            return;
        }
        let now_us = now.0.saturating_mul(1_000);
        // The clock ticks in milliseconds: rates above 1,000/s may catch up what one tick hides.
        let slack_us = if self.interval_us < 1_000 { 1_000 } else { 0 };
        self.next_us = self.next_us.max(now_us - slack_us).saturating_add(self.interval_us);
    }
}
