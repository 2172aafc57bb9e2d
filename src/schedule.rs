//! When an attempt may run: the delay before each attempt, jitter, and what `Retry-After` may do.

use std::time::Duration;

use crate::clock::Timestamp;

/// The longest a `Retry-After` may put off an attempt (interface.md §3).
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Delays before attempt 1, 2, …; as many attempts as delays.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    delays: Vec<Duration>,
    /// 0.0 to 0.5: the share of a delay that may be added at random. It only ever lengthens.
    jitter: f64,
}

/// Blue Replies' own: at once, then 30 s, 2 min, 10 min and 1 h after the previous attempt.
pub const VENDOR_DELAYS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(3600),
];

impl Default for Schedule {
    fn default() -> Self {
        Schedule { delays: VENDOR_DELAYS.to_vec(), jitter: 0.0 }
    }
}

impl Schedule {
    /// # Errors
    /// No delay at all, more than 100, or a jitter outside 0–0.5.
    pub fn new(delays: Vec<Duration>, jitter: f64) -> Result<Schedule, String> {
        if delays.is_empty() || delays.len() > 100 {
            return Err(format!("a schedule has 1 to 100 delays, not {}", delays.len()));
        }
        if !(0.0..=0.5).contains(&jitter) {
            return Err(format!("jitter is a share from 0.0 to 0.5, not {jitter}"));
        }
        Ok(Schedule { delays, jitter })
    }

    #[must_use]
    pub fn attempts_max(&self) -> u32 {
        u32::try_from(self.delays.len()).unwrap_or(u32::MAX)
    }

    #[must_use]
    pub fn first_delay(&self) -> Duration {
        self.delays[0]
    }

    /// When the attempt after number `made` is due, or `None` when there is no further one.
    /// `random` is from 0.0 to 1.0; `retry_after` lengthens the delay, up to one hour.
    #[must_use]
    pub fn next_due(
        &self,
        made: u32,
        now: Timestamp,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Option<Timestamp> {
        let delay = *self.delays.get(usize::try_from(made).ok()?)?;
        let jittered = delay + delay.mul_f64(self.jitter * random.clamp(0.0, 1.0));
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        Some(now.plus(jittered.max(asked)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn the_vendor_schedule_has_five_attempts() {
        let s = Schedule::default();
        let dues: Vec<_> = (1..=5).map(|n| s.next_due(n, NOW, None, 0.7)).collect();
        let after = |secs| Some(NOW.plus(Duration::from_secs(secs)));
        assert_eq!(dues, [after(30), after(120), after(600), after(3600), None]);
    }

    #[test]
    fn retry_after_only_lengthens_and_is_clamped_to_an_hour() {
        let s = Schedule::default();
        let due = |made, secs| s.next_due(made, NOW, Some(Duration::from_secs(secs)), 0.0);
        assert_eq!(due(1, 5), Some(NOW.plus(Duration::from_secs(30))));
        assert_eq!(due(1, 90), Some(NOW.plus(Duration::from_secs(90))));
        assert_eq!(due(1, 1_000_000), Some(NOW.plus(Duration::from_secs(3600))));
    }

    #[test]
    fn jitter_only_lengthens() {
        let s = Schedule::new(VENDOR_DELAYS.to_vec(), 0.5).unwrap();
        assert_eq!(s.next_due(1, NOW, None, 0.0), Some(NOW.plus(Duration::from_secs(30))));
        assert_eq!(s.next_due(1, NOW, None, 1.0), Some(NOW.plus(Duration::from_secs(45))));
    }

    #[test]
    fn senseless_schedules_are_refused() {
        assert!(Schedule::new(vec![], 0.0).is_err());
        assert!(Schedule::new(vec![Duration::ZERO], 0.6).is_err());
        assert!(Schedule::new(vec![Duration::ZERO], f64::NAN).is_err());
    }
}
