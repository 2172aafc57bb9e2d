//! Time as the rest of the crate sees it.
//!
//! Two clocks exist: the wall clock, which people read and which may jump, and the boot clock
//! (`CLOCK_BOOTTIME`), which never jumps but means nothing after a reboot. [`Timeline`] joins them
//! into one *schedule time* that due times are kept in: it runs with the boot clock, so a jump of the
//! wall clock changes no delay, and it never runs backwards over a reboot.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bincode::{Decode, Encode};

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub const ZERO: Timestamp = Timestamp(0);
    pub const MAX: Timestamp = Timestamp(i64::MAX);

    #[must_use]
    pub fn plus(self, delay: Duration) -> Timestamp {
        let ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        Timestamp(self.0.saturating_add(ms))
    }

    #[must_use]
    pub fn minus(self, time: Duration) -> Timestamp {
        let ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        Timestamp(self.0.saturating_sub(ms))
    }

    /// How long after `earlier` this is; zero where it is not after.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339, UTC, milliseconds: `2026-11-25T09:34:00.000Z`.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => format!("{t:.3}"),
            Err(_) => format!("{}ms", self.0),
        }
    }

    /// Reads what [`Timestamp::to_rfc3339`] writes, and any other RFC 3339 instant.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
        text.parse::<jiff::Timestamp>().ok().map(|t| Timestamp(t.as_millisecond()))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

/// Which boot of the machine: the kernel's random `boot_id`.
pub type BootId = u128;

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub wall: Timestamp,
    pub boot_id: BootId,
    /// Milliseconds since boot, suspend included.
    pub boot_ms: i64,
}

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where time comes from. Injected, so that tests and the simulator own it.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Moment;
    /// Returns at `boot_ms` (boot clock) or later.
    fn sleep_until(&self, boot_ms: i64) -> BoxFuture<'_, ()>;
}

/// Schedule time: the boot clock plus an offset that is fixed for one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Timeline {
    pub boot_id: BootId,
    pub offset_ms: i64,
}

/// What is kept of a timeline from one start to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptTimeline {
    pub timeline: Timeline,
    /// How far the wall clock was seen ahead of schedule time; never less than nothing.
    pub wall_ahead_ms: i64,
}

/// Before this project was: what a wall clock shows then is wrong. 2026-01-01.
const EARLIEST: Timestamp = Timestamp(1_767_225_600_000);

impl KeptTimeline {
    /// Goes on from what was kept; `high_water` is the latest schedule time in the log.
    ///
    /// Within one boot nothing changes. After a reboot schedule time goes on from whichever is later,
    /// the wall clock, less what it was ahead, or the high-water mark: a machine without a battery clock
    /// that starts in 1970 then waits out what was left of each delay, never less. And one that began in
    /// 1970 and was set right later, in that boot or by the next one, hasn't seen half a century pass,
    /// after which all would be outdated.
    #[must_use]
    pub fn resume(last: Option<KeptTimeline>, high_water: Timestamp, now: Moment) -> KeptTimeline {
        if let Some(last) = last.filter(|l| l.timeline.boot_id == now.boot_id) {
            return last;
        }
        let ahead = last.map_or(0, |l| l.wall_ahead_ms.max(0));
        let by_wall = Timestamp(now.wall.0.saturating_sub(ahead));
        let was_wrong = high_water > Timestamp::ZERO && high_water < EARLIEST;
        let start =
            if was_wrong && by_wall >= EARLIEST { high_water } else { by_wall.max(high_water) };
        let offset_ms = start.0.saturating_sub(now.boot_ms);
        let timeline = Timeline { boot_id: now.boot_id, offset_ms };
        KeptTimeline { timeline, wall_ahead_ms: ahead }.noting(now)
    }

    /// With how the wall clock goes now. Less than was kept before this boot it can't become: a clock that
    /// begins in 1970 again, or is set back for a while, doesn't unsay it.
    #[must_use]
    pub fn noting(self, now: Moment) -> KeptTimeline {
        let wall_ahead_ms = self.wall_ahead_ms.max(self.timeline.wall_ahead_ms(now));
        KeptTimeline { wall_ahead_ms, ..self }
    }
}

impl Timeline {
    #[must_use]
    pub fn at(&self, now: Moment) -> Timestamp {
        Timestamp(now.boot_ms.saturating_add(self.offset_ms))
    }

    fn wall_ahead_ms(&self, now: Moment) -> i64 {
        now.wall.0.saturating_sub(self.at(now).0)
    }

    /// What a clock on the wall will show at schedule time `due`, as it goes now.
    #[must_use]
    pub fn wall_of(&self, due: Timestamp, now: Moment) -> Timestamp {
        Timestamp(due.0.saturating_add(self.ahead_ms(now)))
    }

    /// The opposite of [`Self::wall_of`].
    #[must_use]
    pub fn of_wall(&self, wall: Timestamp, now: Moment) -> Timestamp {
        Timestamp(wall.0.saturating_sub(self.ahead_ms(now)))
    }

    /// In whole seconds: what is shown doesn't tremble as the clocks are read one after the other.
    fn ahead_ms(self, now: Moment) -> i64 {
        self.wall_ahead_ms(now).saturating_add(500).div_euclid(1_000) * 1_000
    }

    /// The boot-clock reading at which schedule time `due` is reached.
    #[must_use]
    pub fn boot_ms_of(&self, due: Timestamp) -> i64 {
        due.0.saturating_sub(self.offset_ms)
    }
}

/// The machine's clocks.
pub struct SystemClock {
    boot_id: BootId,
}

impl SystemClock {
    #[must_use]
    pub fn new() -> SystemClock {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        SystemClock { boot_id: BootId::from_str_radix(&digits, 16).unwrap_or(0) }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

fn read_ms(id: rustix::time::ClockId) -> i64 {
    let t = rustix::time::clock_gettime(id);
    t.tv_sec.saturating_mul(1000).saturating_add(t.tv_nsec / 1_000_000)
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment {
            wall: Timestamp(read_ms(rustix::time::ClockId::Realtime)),
            boot_id: self.boot_id,
            boot_ms: read_ms(rustix::time::ClockId::Boottime),
        }
    }

    fn sleep_until(&self, boot_ms: i64) -> BoxFuture<'_, ()> {
        let left = u64::try_from(boot_ms.saturating_sub(self.now().boot_ms)).unwrap_or(0);
        Box::pin(tokio::time::sleep(Duration::from_millis(left)))
    }
}

/// A clock that a test moves by writing a file: `<wall offset ms> <boot offset ms> <boot number>`,
/// added to the machine's clocks. It drives the real binary through hours of schedule in moments
/// (hidden flag `serve --virtual-clock FILE`).
pub struct FileClock {
    path: std::path::PathBuf,
    system: SystemClock,
}

impl FileClock {
    #[must_use]
    pub fn new(path: std::path::PathBuf) -> FileClock {
        FileClock { path, system: SystemClock::new() }
    }
}

impl Clock for FileClock {
    fn now(&self) -> Moment {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|n| n.parse::<i64>().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        let (wall, boot, boot_number) = (next(), next(), next());
        let now = self.system.now();
        Moment {
            wall: Timestamp(now.wall.0.saturating_add(wall)),
            boot_id: now.boot_id.wrapping_add(boot_number.unsigned_abs().into()),
            boot_ms: now.boot_ms.saturating_add(boot),
        }
    }

    fn sleep_until(&self, boot_ms: i64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while self.now().boot_ms < boot_ms {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }
}

/// A clock that only moves when told to.
pub struct TestClock {
    state: std::sync::Mutex<Moment>,
    moved: tokio::sync::Notify,
}

impl TestClock {
    #[must_use]
    pub fn new(wall: Timestamp) -> TestClock {
        let state = std::sync::Mutex::new(Moment { wall, boot_id: 1, boot_ms: 1_000 });
        TestClock { state, moved: tokio::sync::Notify::new() }
    }

    fn change(&self, f: impl FnOnce(&mut Moment)) {
        f(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        self.moved.notify_waiters();
    }

    /// Both clocks go on by `by`.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.change(|m| {
            m.wall.0 = m.wall.0.saturating_add(ms);
            m.boot_ms = m.boot_ms.saturating_add(ms);
        });
    }

    /// Only the wall clock jumps.
    pub fn set_wall(&self, wall: Timestamp) {
        self.change(|m| m.wall = wall);
    }

    /// A reboot: a new boot id, the boot clock near zero.
    pub fn reboot(&self, wall: Timestamp) {
        self.change(|m| {
            m.wall = wall;
            m.boot_id = m.boot_id.wrapping_add(1);
            m.boot_ms = 1_000;
        });
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn sleep_until(&self, boot_ms: i64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let moved = self.moved.notified();
                if self.now().boot_ms >= boot_ms {
                    return;
                }
                moved.await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339_with_milliseconds() {
        assert_eq!(Timestamp(1_790_000_000_123).to_rfc3339(), "2026-09-21T14:13:20.123Z");
        assert_eq!(Timestamp(0).to_rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            Timestamp::parse_rfc3339("2026-09-21T16:13:20.123+02:00"),
            Some(Timestamp(1_790_000_000_123))
        );
    }

    /// 2026-09-21.
    const TODAY: i64 = 1_790_000_000_000;
    const YEAR: i64 = 365 * 86_400_000;

    fn start(clock: &TestClock) -> KeptTimeline {
        KeptTimeline::resume(None, Timestamp::ZERO, clock.now())
    }

    #[test]
    fn a_wall_jump_within_one_boot_changes_no_schedule_time() {
        let clock = TestClock::new(Timestamp(1_000_000));
        let kept = start(&clock);
        let before = kept.timeline.at(clock.now());
        clock.set_wall(Timestamp(9_000_000_000));
        let again = KeptTimeline::resume(Some(kept), before, clock.now());
        assert_eq!(again.timeline.at(clock.now()), before);
    }

    #[test]
    fn a_reboot_into_1970_goes_on_from_the_high_water_mark() {
        let clock = TestClock::new(Timestamp(TODAY));
        let kept = start(&clock);
        clock.advance(Duration::from_secs(5));
        let high = kept.timeline.at(clock.now());
        clock.reboot(Timestamp(0));
        let next = KeptTimeline::resume(Some(kept.noting(clock.now())), high, clock.now()).timeline;
        assert_eq!(next.at(clock.now()), high);
        clock.advance(Duration::from_secs(1));
        assert_eq!(next.at(clock.now()), high.plus(Duration::from_secs(1)));
    }

    /// Found by asking what a Pi does on its first day: began in 1970, set right by NTP, rebooted.
    #[test]
    fn a_clock_set_right_during_one_boot_makes_nothing_older_in_the_next() {
        let clock = TestClock::new(Timestamp(0));
        let first = start(&clock);
        let line = first.timeline;
        clock.set_wall(Timestamp(TODAY));
        let (high, kept) = (line.at(clock.now()), first.noting(clock.now()));
        let due = high.plus(Duration::from_secs(30));
        assert_eq!(line.wall_of(due, clock.now()), Timestamp(TODAY + 30_000));
        assert_eq!(line.of_wall(Timestamp(TODAY + 30_000), clock.now()), due);
        clock.reboot(Timestamp(TODAY + 600_000));
        let next = KeptTimeline::resume(Some(kept), high, clock.now());
        assert_eq!(next.timeline.at(clock.now()), high.plus(Duration::from_secs(600)));
    }

    /// Found by reading the code: a boot that began in 1970 again wrote over what the first had seen.
    #[test]
    fn boots_that_begin_in_1970_and_end_before_ntp_make_nothing_older() {
        let clock = TestClock::new(Timestamp(0));
        let mut kept = start(&clock);
        let mut high = kept.timeline.at(clock.now());
        for (set_right, began) in
            [(false, 0), (true, 0), (false, 0), (false, TODAY), (false, TODAY)]
        {
            if set_right {
                clock.set_wall(Timestamp(TODAY));
            }
            clock.advance(Duration::from_secs(5));
            high = high.max(kept.timeline.at(clock.now()));
            kept = kept.noting(clock.now());
            clock.reboot(Timestamp(began));
            kept = KeptTimeline::resume(Some(kept), high, clock.now());
            let passed = kept.timeline.at(clock.now()).since(high);
            assert!(passed < Duration::from_secs(60), "{passed:?} passed");
        }
    }

    #[test]
    fn a_first_day_in_1970_that_ends_before_ntp_makes_nothing_older_in_the_next_boot() {
        let clock = TestClock::new(Timestamp(0));
        let kept = start(&clock);
        clock.advance(Duration::from_secs(5));
        let high = kept.timeline.at(clock.now());
        clock.reboot(Timestamp(TODAY));
        let next = KeptTimeline::resume(Some(kept), high, clock.now());
        assert_eq!(next.timeline.at(clock.now()), high);
        assert_eq!(next.timeline.wall_of(high, clock.now()), Timestamp(TODAY));
        // And so on from there.
        clock.reboot(Timestamp(TODAY + 600_000));
        let third = KeptTimeline::resume(Some(next), high, clock.now());
        assert_eq!(third.timeline.at(clock.now()), high.plus(Duration::from_secs(600)));
    }

    /// Found by reading the code: the reboot after it made everything a year older.
    #[test]
    fn a_clock_that_was_set_back_for_a_while_makes_nothing_older_after_a_reboot() {
        let clock = TestClock::new(Timestamp(TODAY));
        let first = start(&clock);
        clock.set_wall(Timestamp(TODAY - YEAR));
        let (high, kept) = (first.timeline.at(clock.now()), first.noting(clock.now()));
        clock.reboot(Timestamp(TODAY + 600_000));
        let next = KeptTimeline::resume(Some(kept), high, clock.now());
        assert_eq!(next.timeline.at(clock.now()), Timestamp(TODAY + 600_000));
    }

    #[test]
    fn a_reboot_with_a_good_clock_counts_the_time_that_was_off() {
        let clock = TestClock::new(Timestamp(TODAY));
        let kept = start(&clock);
        clock.reboot(Timestamp(TODAY + 600_000));
        let next = KeptTimeline::resume(Some(kept), Timestamp(TODAY), clock.now());
        assert_eq!(next.timeline.at(clock.now()), Timestamp(TODAY + 600_000));
    }
}
