//! Where webhooks arrive: limits, signature, append, answer. Nothing else happens before the 200.
//!
//! The only way to a 200 for an event is [`answer::Answer::Stored`], which holds the appender's
//! receipt: an answer cannot overtake the disk.

mod acme;
mod answer;
mod body;
mod counters;
mod failures;
mod listen;
mod peer;
mod places;
mod rejections;
mod rules;
mod serve;
mod service;
mod tls;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use wildmatch::WildMatch;

use crate::clock::{Clock, Timestamp};
use crate::config::{self, Config};
use crate::store::Store;

pub use answer::Reason;
pub use counters::{CounterView, Counters, Minute};
pub use listen::{Bound, bind};
pub use rejections::{Note, Rejections};
pub use serve::serve;
pub use tls::Tls;

/// What a reload replaces.
struct Live {
    limits: config::Intake,
    sources: Vec<LiveSource>,
}

struct LiveSource {
    config: config::Source,
    /// `config.events`, compiled.
    wanted: Vec<WildMatch>,
}

impl LiveSource {
    fn wants(&self, kind: &str) -> bool {
        self.wanted.iter().any(|glob| glob.matches(kind))
    }
}

impl Live {
    fn new(config: &Config) -> Live {
        let sources = config.sources.iter().map(|source| LiveSource {
            wanted: source.events.iter().map(|glob| WildMatch::new(glob)).collect(),
            config: source.clone(),
        });
        Live { limits: config.intake.clone(), sources: sources.collect() }
    }
}

/// The state that all connections share, and the handle for reloads and for the admin API.
pub struct Intake {
    live: RwLock<Arc<Live>>,
    store: Store,
    clock: Arc<dyn Clock>,
    pub counters: Counters,
    pub rejections: Rejections,
    places: Arc<places::Places>,
    failures: failures::Failures,
    /// Bodies held in memory by all requests together.
    bodies: Arc<body::Budget>,
    no_secret_line: Throttle,
    store_line: Throttle,
    accept_line: Throttle,
}

impl Intake {
    #[must_use]
    pub fn new(config: &Config, store: Store, clock: Arc<dyn Clock>) -> Arc<Intake> {
        Arc::new(Intake {
            live: RwLock::new(Arc::new(Live::new(config))),
            store,
            clock,
            counters: Counters::default(),
            rejections: Rejections::default(),
            places: Arc::default(),
            failures: failures::Failures::default(),
            bodies: Arc::default(),
            no_secret_line: Throttle::default(),
            store_line: Throttle::default(),
            accept_line: Throttle::default(),
        })
    }

    /// Sources, secrets and limits of `config` hold from the next request on. Listeners stay.
    pub fn reload(&self, config: &Config) {
        let live = Arc::new(Live::new(config));
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
    }

    fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What happened in each minute of the last hour, and when it began.
    #[must_use]
    pub fn last_hour(&self) -> Vec<(Timestamp, Minute)> {
        self.counters.last_hour(self.clock.now())
    }

    /// How near its limits it is.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            connections: self.places.open(),
            gave_way: self.places.gave_way(),
            bodies_bytes: self.bodies.used_bytes(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Open now.
    pub connections: usize,
    /// Connections closed since the start, on which nothing came, because others needed the place.
    pub gave_way: u64,
    /// Bodies in memory.
    pub bodies_bytes: u64,
}

/// Lets one line through per [`Throttle::EVERY`], so that a flood of requests is no flood of lines.
struct Throttle {
    /// Boot clock, milliseconds.
    next: AtomicI64,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle { next: AtomicI64::new(i64::MIN) }
    }
}

impl Throttle {
    const EVERY: Duration = Duration::from_secs(60);

    fn lets_through(&self, clock: &dyn Clock) -> bool {
        let now = clock.now().boot_ms;
        let next = self.next.load(Ordering::Relaxed);
        let after = now.saturating_add(i64::try_from(Self::EVERY.as_millis()).unwrap_or(i64::MAX));
        now >= next
            && self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;

    #[test]
    fn a_throttle_lets_one_line_through_per_minute() {
        let clock = TestClock::new(Timestamp(0));
        let throttle = Throttle::default();
        assert!(throttle.lets_through(&clock));
        assert!(!throttle.lets_through(&clock));
        clock.advance(Throttle::EVERY);
        assert!(throttle.lets_through(&clock));
    }
}
