//! How many wrong signatures an address is told of: beyond that it hears 429, and the ring stays legible.
//!
//! A right signature is a right one whatever came before it from the same address, which may be a whole proxy's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::peer::network_of;
use crate::clock::Moment;
use crate::config::Rate;

/// Addresses that are remembered; of more the one is forgotten that has failed longest ago.
const ADDRESSES_MAX: usize = 4_096;

#[derive(Default)]
pub(super) struct Failures {
    windows: Mutex<HashMap<Option<IpAddr>, Window>>,
}

/// The failures of one address since the first that counts.
struct Window {
    began_boot_ms: i64,
    count: u32,
}

impl Failures {
    /// Another failure of `address` (`None`: nobody knows whose).
    ///
    /// # Errors
    /// There were too many: after so many seconds it may fail again.
    pub(super) fn note(
        &self,
        address: Option<IpAddr>,
        limit: Rate,
        now: Moment,
    ) -> Result<(), u64> {
        let address = address.map(network_of);
        let per_ms = i64::try_from(limit.per.as_millis()).unwrap_or(i64::MAX);
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= ADDRESSES_MAX && !windows.contains_key(&address) {
            windows.retain(|_, window| now.boot_ms - window.began_boot_ms < per_ms);
            let oldest = windows.iter().min_by_key(|(_, window)| window.began_boot_ms);
            if let Some(oldest) = oldest.map(|(address, _)| *address)
                && windows.len() >= ADDRESSES_MAX
            {
                windows.remove(&oldest);
            }
        }
        let window =
            windows.entry(address).or_insert(Window { began_boot_ms: now.boot_ms, count: 0 });
        if now.boot_ms - window.began_boot_ms >= per_ms {
            *window = Window { began_boot_ms: now.boot_ms, count: 0 };
        }
        if window.count < limit.count {
            window.count += 1;
            return Ok(());
        }
        let left_ms = window.began_boot_ms + per_ms - now.boot_ms;
        let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or_default());
        Err(left.as_secs() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, TestClock, Timestamp};

    const LIMIT: Rate = Rate { count: 2, per: Duration::from_secs(60) };

    fn ip(n: u32) -> Option<IpAddr> {
        Some(IpAddr::from(n.to_be_bytes()))
    }

    #[test]
    fn each_address_may_fail_so_often_in_so_long() {
        let clock = TestClock::new(Timestamp(0));
        let failures = Failures::default();
        let note = |n| failures.note(ip(n), LIMIT, clock.now());
        assert_eq!([note(1), note(1), note(1), note(2)], [Ok(()), Ok(()), Err(61), Ok(())]);
        clock.advance(Duration::from_millis(59_500));
        assert_eq!(note(1), Err(1));
        clock.advance(Duration::from_millis(500));
        assert_eq!([note(1), note(1), note(1)], [Ok(()), Ok(()), Err(61)]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let clock = TestClock::new(Timestamp(0));
        let failures = Failures::default();
        for n in 0..3 * ADDRESSES_MAX as u32 {
            clock.advance(Duration::from_millis(1));
            assert_eq!(failures.note(ip(n), LIMIT, clock.now()), Ok(()));
        }
        assert_eq!(failures.windows.lock().unwrap().len(), ADDRESSES_MAX);
    }
}
