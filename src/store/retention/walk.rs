//! When room is made: every few seconds, along the log from its oldest segment on, for as long as that wins
//! something.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Pass, pass};
use crate::store::{Inner, Store, background};

const CHECK_EVERY: Duration = Duration::from_secs(5);
/// A walk along the log that wins less is not repeated at once.
const WON_MIN: u64 = 1024 * 1024;
/// So many checks are left out after a walk or a look ahead for nothing: a minute, then twice as long each
/// time, up to about ten minutes.
const PAUSE_MIN: u32 = 12;
const PAUSE_MAX: u32 = 128;

/// Starts the thread, which also keeps an eye on the wall clock. It ends when the store is closed or dropped.
pub fn spawn(store: &Store) -> io::Result<std::thread::JoinHandle<()>> {
    let inner = Arc::downgrade(&store.inner);
    let mut stop = store.inner.stop.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    background::spawn("retention", move || {
        runtime.block_on(async {
            tokio::select! {
                () = watch_clock(&inner) => {}
                () = keep_room(&inner) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
    })
}

async fn watch_clock(inner: &Weak<Inner>) {
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        Store { inner }.keep_timeline();
    }
}

async fn keep_room(inner: &Weak<Inner>) {
    let mut pauses = Pauses::default();
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        make_room(inner, &mut pauses).await;
    }
}

/// Checks that are left out because the last ones won nothing.
#[derive(Default)]
pub(super) struct Pauses {
    walk: Pause,
    look: Pause,
}

#[derive(Default)]
struct Pause {
    /// Of the log when something was done for nothing: a new one is worth another try.
    newest: u32,
    left: u32,
    length: u32,
}

impl Pause {
    /// Whether this check is to be left out.
    fn goes_on(&mut self, newest: u32) -> bool {
        if self.newest != newest {
            *self = Pause::default();
        }
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }

    fn begin(&mut self, newest: u32) {
        self.length = (self.length * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.left = self.length;
        self.newest = newest;
    }
}

pub(super) async fn make_room(inner: &Weak<Inner>, pauses: &mut Pauses) {
    let Some(newest) = inner.upgrade().and_then(|inner| newest(&inner)) else { return };
    if pauses.walk.goes_on(newest) {
        return;
    }
    let looks_ahead = !pauses.look.goes_on(newest);
    let mut round = Round { until: newest, won: 0 };
    while let Some(inner) = inner.upgrade() {
        let store = Store { inner };
        match pass(&store, looks_ahead).await {
            Ok(Pass::Dropped(won)) => {
                round.won += won;
                let Some(newest) = self::newest(&store.inner) else { return };
                match round.after(oldest_left(&store), newest) {
                    Some(next) => round = next,
                    None => {
                        pauses.walk.begin(newest);
                        store.note_full();
                        return;
                    }
                }
            }
            Ok(Pass::Futile) if looks_ahead => {
                let Some(newest) = self::newest(&store.inner) else { return };
                return pauses.look.begin(newest);
            }
            Ok(Pass::Futile | Pass::NotDue) => return,
            Err(why) => {
                tracing::warn!(why, "no segment could be dropped; trying again");
                return;
            }
        }
    }
}

/// One walk along the log: from its oldest segment to the newest there was.
#[derive(Debug, PartialEq, Eq)]
struct Round {
    until: u32,
    /// Bytes of what was dropped, less what was carried.
    won: u64,
}

impl Round {
    /// How to go on after a segment was dropped. `None`: what this walk has carried is the oldest now, and
    /// it won so little that to carry it again would be for nothing.
    fn after(self, oldest: u32, newest: u32) -> Option<Round> {
        if oldest <= self.until {
            return Some(self);
        }
        (self.won >= WON_MIN).then_some(Round { until: newest, won: 0 })
    }
}

fn newest(inner: &Inner) -> Option<u32> {
    Some(inner.appender.as_ref()?.segments().last()?.number)
}

fn oldest_left(store: &Store) -> u32 {
    let segments = store.inner.appender.as_ref().map(|a| a.segments()).unwrap_or_default();
    segments.first().map_or(u32::MAX, |s| s.number)
}

#[cfg(test)]
mod tests {
    use super::{PAUSE_MAX, PAUSE_MIN, Pause, Round, WON_MIN};

    /// Found by a long run: what had come in while room was made counted as carried, and with the last of the
    /// load retention came to a halt far above its budget.
    #[test]
    fn a_walk_along_the_log_that_won_something_is_followed_by_another() {
        let walk = || Round { until: 50, won: WON_MIN };
        assert_eq!(walk().after(50, 80), Some(walk()), "not at its end");
        assert_eq!(walk().after(51, 80), Some(Round { until: 80, won: 0 }));
        assert_eq!(Round { won: WON_MIN - 1, ..walk() }.after(51, 80), None, "for nothing");
    }

    /// Found by reading: it was repeated only with a new segment, and a log that is full gets none.
    #[test]
    fn a_walk_for_nothing_is_repeated_after_longer_and_longer_pauses_or_with_a_new_segment() {
        let mut pause = Pause::default();
        let mut left_out = |newest| {
            pause.begin(newest);
            std::iter::from_fn(|| pause.goes_on(newest).then_some(())).count() + 1
        };
        let lengths: Vec<usize> = (0..6).map(|_| left_out(7)).collect();
        let (min, max) = (PAUSE_MIN as usize, PAUSE_MAX as usize);
        assert_eq!(lengths, [min, 2 * min, 4 * min, 8 * min, max, max]);
        assert!(!pause.goes_on(8), "a new segment");
        pause.begin(8);
        assert_eq!(pause.left, PAUSE_MIN, "and then from the beginning");
    }
}
