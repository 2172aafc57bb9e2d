//! What is wrong, and whether it is time to say so. Decides; reads no clock and sends nothing.
//!
//! Two kinds of matter: counts (dead letters, damaged places), of which each rise is owed a notice, and
//! conditions (an open circuit, an old backlog, a full disk), which are told when they begin and when they end.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::delivery::HandlerName;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Store,
    Disk,
    Damage,
    Dead(HandlerName),
    Circuit(HandlerName),
    Backlog(HandlerName),
}

impl Subject {
    pub fn name(&self) -> &'static str {
        match self {
            Subject::Store => "store",
            Subject::Disk => "disk",
            Subject::Damage => "damage",
            Subject::Dead(_) => "dead",
            Subject::Circuit(_) => "circuit",
            Subject::Backlog(_) => "backlog",
        }
    }

    pub fn handler(&self) -> Option<&HandlerName> {
        match self {
            Subject::Dead(name) | Subject::Circuit(name) | Subject::Backlog(name) => Some(name),
            Subject::Store | Subject::Disk | Subject::Damage => None,
        }
    }

    fn is_circuit(&self) -> bool {
        matches!(self, Subject::Circuit(_))
    }

    fn is_count(&self) -> bool {
        matches!(self, Subject::Dead(_) | Subject::Damage)
    }
}

/// `dead:crm`, `disk`
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.handler() {
            Some(handler) => write!(f, "{}:{handler}", self.name()),
            None => f.write_str(self.name()),
        }
    }
}

impl FromStr for Subject {
    type Err = ();

    fn from_str(text: &str) -> Result<Subject, ()> {
        let Some((name, handler)) = text.split_once(':') else {
            let plain = [Subject::Store, Subject::Disk, Subject::Damage];
            return plain.into_iter().find(|subject| subject.name() == text).ok_or(());
        };
        let handler = HandlerName::new(handler).map_err(drop)?;
        match name {
            "dead" => Ok(Subject::Dead(handler)),
            "circuit" => Ok(Subject::Circuit(handler)),
            "backlog" => Ok(Subject::Backlog(handler)),
            _ => Err(()),
        }
    }
}

/// How one matter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Count(u64),
    /// Whether it is bad. A circuit is known by when it opened: a second one is another matter.
    Bad(Option<Timestamp>),
}

/// What there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// So many more, of so many.
    More {
        new: u64,
        total: u64,
    },
    Begun(Timestamp),
    Ended,
}

/// What a restart needs to know of a matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The count when it was last told, or lower; 1 for a condition that was told and has not ended.
    pub count: u64,
    /// When the last notice left, or was given up. In schedule time, as everything here.
    pub last: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Matter {
    told: Told,
    /// The last count, and what is owed of it.
    seen: u64,
    owed: u64,
    /// Since when it is bad.
    bad: Option<Timestamp>,
    /// Which spell of badness was told; `ZERO` for one that an earlier process told.
    told_bad: Option<Timestamp>,
    /// A notice of it is on its way.
    under_way: bool,
}

pub struct Watch {
    interval: Duration,
    matters: BTreeMap<Subject, Matter>,
    /// What a restart would need to know changed.
    changed: bool,
}

impl Watch {
    pub fn new(interval: Duration, told: BTreeMap<Subject, Told>) -> Watch {
        let matters = told.into_iter().map(|(subject, told)| {
            // Which circuit was told is not known any more, and every circuit is closed at the start.
            let told_bad = (told.count > 0 && !subject.is_circuit()).then_some(Timestamp::ZERO);
            let matter =
                Matter { told, seen: told.count, owed: 0, bad: None, told_bad, under_way: false };
            (subject, matter)
        });
        Watch { interval, matters: matters.collect(), changed: false }
    }

    /// How things stand now. What is not among the levels cannot be told at the moment and keeps its state.
    pub fn observe(&mut self, levels: &[(Subject, Level)]) {
        for (subject, level) in levels {
            let quiet = matches!(level, Level::Count(0) | Level::Bad(None));
            if quiet && !self.matters.contains_key(subject) {
                continue;
            }
            let matter = self.matters.entry(subject.clone()).or_insert(Matter {
                told: Told { count: 0, last: None },
                seen: 0,
                owed: 0,
                bad: None,
                told_bad: None,
                under_way: false,
            });
            match *level {
                Level::Count(count) => {
                    matter.owed = (matter.owed + count.saturating_sub(matter.seen)).min(count);
                    matter.seen = count;
                    if count < matter.told.count {
                        matter.told.count = count;
                        self.changed = true;
                    }
                }
                // Only a circuit tells itself when it opened.
                Level::Bad(Some(_)) if matter.bad.is_some() && !subject.is_circuit() => {}
                Level::Bad(since) => matter.bad = since,
            }
        }
    }

    /// Matters of handlers that are no longer there.
    pub fn forget(&mut self, gone: impl Fn(&HandlerName) -> bool) {
        let before = self.matters.len();
        self.matters.retain(|subject, _| !subject.handler().is_some_and(&gone));
        self.changed |= self.matters.len() != before;
    }

    /// The next thing to say, if it is time. It is under way until [`Watch::ended`].
    pub fn take(&mut self, now: Timestamp) -> Option<(Subject, Owed)> {
        for (subject, matter) in &mut self.matters {
            if matter.under_way {
                continue;
            }
            let waits = matter.told.last.is_some_and(|last| now.since(last) < self.interval);
            let owed = match (matter.bad, matter.told_bad) {
                _ if matter.owed > 0 => Owed::More { new: matter.owed, total: matter.seen },
                (Some(bad), None) => Owed::Begun(bad),
                (Some(bad), Some(told)) if told != Timestamp::ZERO && told != bad => {
                    Owed::Begun(bad)
                }
                (None, Some(_)) if !subject.is_count() => Owed::Ended,
                _ => continue,
            };
            // The end of what was told is good news, and there is one for each notice.
            if waits && owed != Owed::Ended {
                continue;
            }
            matter.under_way = true;
            return Some((subject.clone(), owed));
        }
        None
    }

    /// A notice was delivered, or given up: then it is owed again after the interval.
    pub fn ended(&mut self, subject: &Subject, owed: Owed, delivered: bool, now: Timestamp) {
        let Some(matter) = self.matters.get_mut(subject) else { return };
        self.changed = true;
        matter.under_way = false;
        match owed {
            // It isn't said again that something ended.
            Owed::Ended => {
                matter.told_bad = None;
                matter.told.count = 0;
                return;
            }
            Owed::More { new, .. } if delivered => {
                matter.owed = matter.owed.saturating_sub(new);
                matter.told.count = matter.seen - matter.owed;
            }
            Owed::Begun(since) if delivered => {
                matter.told_bad = Some(since);
                matter.told.count = 1;
            }
            Owed::More { .. } | Owed::Begun(_) => {}
        }
        matter.told.last = Some(now);
    }

    /// What to keep, where it changed since the last call.
    pub fn take_changes(&mut self) -> Option<BTreeMap<Subject, Told>> {
        std::mem::take(&mut self.changed).then(|| {
            let kept = self.matters.iter().map(|(subject, matter)| (subject.clone(), matter.told));
            kept.collect()
        })
    }

    /// It could not be kept: the next call gives it again.
    pub fn not_kept(&mut self) {
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp(1_790_000_000_000 + ms)
    }

    fn watch() -> Watch {
        Watch::new(Duration::from_secs(3600), BTreeMap::new())
    }

    fn dead(handler: &str) -> Subject {
        Subject::Dead(HandlerName::new(handler).unwrap())
    }

    fn circuit() -> Subject {
        Subject::Circuit(HandlerName::new("crm").unwrap())
    }

    /// Observes, and delivers what is due.
    fn told(
        watch: &mut Watch,
        now: Timestamp,
        levels: &[(Subject, Level)],
    ) -> Vec<(Subject, Owed)> {
        watch.observe(levels);
        let mut told = Vec::new();
        while let Some((subject, owed)) = watch.take(now) {
            watch.ended(&subject, owed, true, now);
            told.push((subject, owed));
        }
        told
    }

    #[test]
    fn the_first_dead_letter_is_told_at_once_and_more_at_most_once_an_hour_with_counts() {
        let mut w = watch();
        let level = |n| [(dead("crm"), Level::Count(n))];
        assert_eq!(told(&mut w, at(0), &level(0)), []);
        assert_eq!(
            told(&mut w, at(1), &level(1)),
            [(dead("crm"), Owed::More { new: 1, total: 1 })]
        );
        for n in 2..9 {
            assert_eq!(told(&mut w, at(n * 1000), &level(n as u64)), []);
        }
        assert_eq!(told(&mut w, at(HOUR), &level(8)), []);
        let more = Owed::More { new: 7, total: 8 };
        assert_eq!(told(&mut w, at(HOUR + 1), &level(8)), [(dead("crm"), more)]);
        assert_eq!(told(&mut w, at(9 * HOUR), &level(8)), [], "nothing new, nothing to say");
    }

    #[test]
    fn each_handler_has_an_hour_of_its_own() {
        let mut w = watch();
        told(&mut w, at(0), &[(dead("crm"), Level::Count(1))]);
        let both = [(dead("crm"), Level::Count(2)), (dead("ticket"), Level::Count(3))];
        let said = told(&mut w, at(5), &both);
        assert_eq!(said, [(dead("ticket"), Owed::More { new: 3, total: 3 })]);
    }

    #[test]
    fn what_was_replayed_meanwhile_hides_no_new_dead_letter() {
        let mut w = watch();
        told(&mut w, at(0), &[(dead("crm"), Level::Count(5))]);
        assert_eq!(told(&mut w, at(1), &[(dead("crm"), Level::Count(0))]), []);
        assert_eq!(told(&mut w, at(2), &[(dead("crm"), Level::Count(3))]), [], "within the hour");
        let owed = Owed::More { new: 3, total: 3 };
        assert_eq!(
            told(&mut w, at(HOUR), &[(dead("crm"), Level::Count(3))]),
            [(dead("crm"), owed)]
        );
        // What nobody has to look at any more is not told.
        told(&mut w, at(HOUR + 1), &[(dead("crm"), Level::Count(9))]);
        assert_eq!(told(&mut w, at(2 * HOUR), &[(dead("crm"), Level::Count(0))]), []);
    }

    #[test]
    fn a_restart_tells_what_died_meanwhile_and_nothing_twice() {
        let mut w = watch();
        told(&mut w, at(0), &[(dead("crm"), Level::Count(5))]);
        told(&mut w, at(1), &[(dead("crm"), Level::Count(2))]);
        let kept = w.take_changes().unwrap();
        assert_eq!(w.take_changes(), None);
        let mut again = Watch::new(Duration::from_secs(3600), kept);
        assert_eq!(told(&mut again, at(2), &[(dead("crm"), Level::Count(2))]), []);
        assert_eq!(told(&mut again, at(3), &[(dead("crm"), Level::Count(4))]), []);
        let owed = Owed::More { new: 2, total: 4 };
        assert_eq!(
            told(&mut again, at(HOUR), &[(dead("crm"), Level::Count(4))]),
            [(dead("crm"), owed)]
        );
    }

    #[test]
    fn a_condition_is_told_when_it_begins_and_when_it_ends() {
        let mut w = watch();
        let disk = |bad| [(Subject::Disk, Level::Bad(bad))];
        assert_eq!(told(&mut w, at(0), &disk(None)), []);
        assert_eq!(told(&mut w, at(1), &disk(Some(at(1)))), [(Subject::Disk, Owed::Begun(at(1)))]);
        assert_eq!(told(&mut w, at(9 * HOUR), &disk(Some(at(9 * HOUR)))), []);
        assert_eq!(told(&mut w, at(10 * HOUR), &disk(None)), [(Subject::Disk, Owed::Ended)]);
        assert_eq!(told(&mut w, at(10 * HOUR + 1), &disk(None)), []);
    }

    #[test]
    fn a_condition_that_comes_and_goes_is_told_once_an_hour() {
        let mut w = watch();
        let mut begun = 0;
        for n in 0..120 {
            let bad = (n % 2 == 0).then(|| at(n * 60_000));
            let said = told(&mut w, at(n * 60_000), &[(Subject::Disk, Level::Bad(bad))]);
            begun += said.iter().filter(|(_, owed)| matches!(owed, Owed::Begun(_))).count();
        }
        assert_eq!(begun, 2, "two hours");
    }

    #[test]
    fn a_restart_does_not_tell_again_that_the_disk_is_full_but_that_it_no_longer_is() {
        let mut w = watch();
        told(&mut w, at(0), &[(Subject::Disk, Level::Bad(Some(at(0))))]);
        let mut again = Watch::new(Duration::from_secs(3600), w.take_changes().unwrap());
        let bad = [(Subject::Disk, Level::Bad(Some(at(5))))];
        assert_eq!(told(&mut again, at(9 * HOUR), &bad), []);
        let ended = told(&mut again, at(9 * HOUR), &[(Subject::Disk, Level::Bad(None))]);
        assert_eq!(ended, [(Subject::Disk, Owed::Ended)]);
    }

    #[test]
    fn a_circuit_that_opens_after_a_restart_is_told_once_the_hour_is_over() {
        let mut w = watch();
        told(&mut w, at(0), &[(circuit(), Level::Bad(Some(at(0))))]);
        let mut again = Watch::new(Duration::from_secs(3600), w.take_changes().unwrap());
        assert_eq!(told(&mut again, at(1), &[(circuit(), Level::Bad(None))]), [], "unknown");
        let open = [(circuit(), Level::Bad(Some(at(2))))];
        assert_eq!(told(&mut again, at(2), &open), []);
        assert_eq!(told(&mut again, at(HOUR), &open), [(circuit(), Owed::Begun(at(2)))]);
    }

    #[test]
    fn a_notice_that_cannot_be_delivered_is_owed_again_after_the_interval_with_what_came_meanwhile()
    {
        let mut w = watch();
        w.observe(&[(dead("crm"), Level::Count(1))]);
        let (subject, owed) = w.take(at(0)).unwrap();
        assert_eq!(w.take(at(5)), None, "it is under way");
        w.observe(&[(dead("crm"), Level::Count(3))]);
        w.ended(&subject, owed, false, at(10));
        assert_eq!(w.take(at(HOUR)), None);
        let again = w.take(at(HOUR + 10)).unwrap();
        assert_eq!(again, (dead("crm"), Owed::More { new: 3, total: 3 }));
    }

    #[test]
    fn subjects_are_read_as_they_are_written() {
        let crm = HandlerName::new("crm").unwrap();
        for subject in [
            Subject::Store,
            Subject::Disk,
            Subject::Damage,
            Subject::Dead(crm.clone()),
            Subject::Circuit(crm.clone()),
            Subject::Backlog(crm),
        ] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
        for wrong in ["", "dead", "dead:", "disk:crm", "dead:a b", "other:crm"] {
            assert_eq!(wrong.parse::<Subject>(), Err(()), "{wrong}");
        }
    }
}
