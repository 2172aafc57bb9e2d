//! One event for one handler: its state, its attempts, and the rule that takes it from one state to
//! the next.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};

use crate::clock::Timestamp;
use crate::schedule::Schedule;

/// The position of a record in the log, from 1 and gapless. An event is named by that of its record.
pub type Seq = u64;

/// Before the name of a follow-up rule, whose timers are kept as deliveries of its own.
const FOLLOW_UP: &str = "followup:";

/// A handler's name in the configuration: 1 to 64 of `a-z A-Z 0-9 _ -`; or that of a follow-up rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct HandlerName(Arc<str>);

impl HandlerName {
    /// # Errors
    /// The name is empty, too long or holds another character.
    pub fn new(name: &str) -> Result<HandlerName, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let own = name.strip_prefix(FOLLOW_UP).unwrap_or(name);
        if (1..=64).contains(&own.len()) && own.chars().all(fits) {
            Ok(HandlerName(name.into()))
        } else {
            Err(format!("a handler's name is 1 to 64 letters, digits, '_' or '-', not {name:?}"))
        }
    }

    /// # Errors
    /// As [`HandlerName::new`].
    pub fn of_follow_up(rule: &str) -> Result<HandlerName, String> {
        HandlerName::new(&format!("{FOLLOW_UP}{rule}"))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The follow-up rule that it stands for.
    #[must_use]
    pub fn follow_up_rule(&self) -> Option<&str> {
        self.0.strip_prefix(FOLLOW_UP)
    }
}

impl fmt::Display for HandlerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HandlerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct DeliveryKey {
    pub event: Seq,
    pub handler: HandlerName,
}

/// Raised by every replay. What an attempt of an older generation reports is dropped.
pub type Generation = u32;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum State {
    /// Waits for its next attempt, in schedule time.
    Scheduled {
        due: Timestamp,
    },
    Delivered,
    Dead {
        reason: String,
    },
    Discarded,
}

impl State {
    /// Nothing more happens by itself.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !matches!(self, State::Scheduled { .. })
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            State::Scheduled { .. } => "scheduled",
            State::Delivered => "delivered",
            State::Dead { .. } => "dead",
            State::Discarded => "discarded",
        }
    }
}

/// A delivery as it is kept. `running` is never persisted; an attempt that was started and not
/// finished shows as `open_attempt`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Delivery {
    pub key: DeliveryKey,
    pub generation: Generation,
    /// Attempts started in this generation.
    pub attempts: u32,
    /// The attempt of this generation that was started and has not reported back.
    pub open_attempt: Option<u32>,
    pub state: State,
}

/// What one run of a handler came to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    Delivered,
    /// Worth another attempt; `after_ms` is what the other side asked for (`Retry-After`).
    Retry {
        reason: String,
        after_ms: Option<u64>,
    },
    /// Another attempt cannot help.
    Reject {
        reason: String,
    },
    /// It failed while the handler's circuit was open, and uses up no attempt: the next one has the same
    /// number.
    Uncounted {
        reason: String,
    },
}

impl Outcome {
    #[must_use]
    pub fn retry(reason: impl Into<String>) -> Outcome {
        Outcome::Retry { reason: reason.into(), after_ms: None }
    }

    #[must_use]
    pub fn reject(reason: impl Into<String>) -> Outcome {
        Outcome::Reject { reason: reason.into() }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Delivered => "delivered",
            Outcome::Retry { .. } => "retry",
            Outcome::Reject { .. } => "reject",
            Outcome::Uncounted { .. } => "uncounted",
        }
    }

    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Outcome::Delivered => None,
            Outcome::Retry { reason, .. }
            | Outcome::Reject { reason }
            | Outcome::Uncounted { reason } => Some(reason),
        }
    }
}

/// One attempt as history keeps it. `request` and `response` are what a person debugging needs,
/// bounded and without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attempt {
    /// From 1, counted within the generation.
    pub number: u32,
    pub generation: Generation,
    /// Wall clock.
    pub started_at: Timestamp,
    pub took_ms: u64,
    pub outcome: Outcome,
    pub request: Option<String>,
    pub response: Option<String>,
}

impl Attempt {
    /// How many attempts of its generation are used up once it has ended.
    #[must_use]
    pub fn used_up(&self) -> u32 {
        match self.outcome {
            Outcome::Uncounted { .. } => self.number.saturating_sub(1),
            _ => self.number,
        }
    }
}

/// The state after attempt number `made` ended with `outcome` at schedule time `now`.
/// `random` (0.0–1.0) feeds the jitter.
#[must_use]
pub fn settle(
    made: u32,
    outcome: &Outcome,
    schedule: &Schedule,
    now: Timestamp,
    random: f64,
) -> State {
    match outcome {
        Outcome::Delivered => State::Delivered,
        Outcome::Reject { reason } => State::Dead { reason: reason.clone() },
        // As soon as its handler's circuit lets it.
        Outcome::Uncounted { .. } => State::Scheduled { due: now },
        Outcome::Retry { reason, after_ms } => {
            match schedule.next_due(made, now, after_ms.map(Duration::from_millis), random) {
                Some(due) => State::Scheduled { due },
                None => State::Dead { reason: reason.clone() },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(5_000);

    #[test]
    fn the_fifth_failure_is_the_last() {
        let retry = Outcome::retry("500");
        let s = Schedule::default();
        assert_eq!(
            settle(4, &retry, &s, NOW, 0.0),
            State::Scheduled { due: NOW.plus(Duration::from_secs(3600)) }
        );
        assert_eq!(settle(5, &retry, &s, NOW, 0.0), State::Dead { reason: "500".into() });
    }

    #[test]
    fn a_rejection_is_dead_at_once() {
        let gone = Outcome::reject("410 Gone");
        let state = settle(1, &gone, &Schedule::default(), NOW, 0.0);
        assert_eq!(state, State::Dead { reason: "410 Gone".into() });
    }

    #[test]
    fn a_failure_that_does_not_count_is_due_again_also_after_the_last_attempt() {
        let outcome = Outcome::Uncounted { reason: "500".into() };
        let state = settle(5, &outcome, &Schedule::default(), NOW, 0.0);
        assert_eq!(state, State::Scheduled { due: NOW });
    }

    #[test]
    fn names_of_handlers_are_plain() {
        assert!(HandlerName::new("crm-1_A").is_ok());
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(HandlerName::new(bad).is_err(), "{bad:?}");
        }
    }
}
