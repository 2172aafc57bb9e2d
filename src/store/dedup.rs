//! The quick duplicate check: events on their way into the index, in memory. One lock covers the map and
//! the look-up in the index, so that no copy slips between them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::AppendError;
use crate::delivery::Seq;
use crate::event::DedupKey;

/// More than this many events ahead of the index, and intake has to wait: about 8 MB.
const AHEAD_MAX: usize = 100_000;
/// Room that is kept once most of it is empty again.
const ROOM_KEPT: usize = 4_096;

pub type Settled = Result<Seq, AppendError>;

#[derive(Default)]
pub struct Dedup {
    ahead: Mutex<HashMap<DedupKey, Ahead>>,
}

struct Ahead {
    body_hash: [u8; 8],
    state: FirstCopy,
}

/// How far the first copy is.
enum FirstCopy {
    /// Not durable yet; those who wait for it.
    Writing(Vec<oneshot::Sender<Settled>>),
    Durable(Seq),
    /// In the index before the append was heard of.
    Applied(Vec<oneshot::Sender<Settled>>),
}

#[derive(Debug)]
pub enum Seen {
    /// New: the caller appends it, and then says so with [`Dedup::settle`].
    First,
    /// The first copy is being written.
    Writing { body_hash: [u8; 8], settled: oneshot::Receiver<Settled> },
    /// The first copy is durable.
    Durable { body_hash: [u8; 8], seq: Seq },
    /// Too many are on their way.
    Busy,
}

impl Dedup {
    fn lock(&self) -> MutexGuard<'_, HashMap<DedupKey, Ahead>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `in_index` looks the key up there: `(event, body hash)`.
    pub fn enter(
        &self,
        key: DedupKey,
        body_hash: [u8; 8],
        in_index: impl FnOnce() -> Option<(Seq, [u8; 8])>,
    ) -> Seen {
        let mut ahead = self.lock();
        let full = ahead.len() >= AHEAD_MAX;
        match ahead.entry(key) {
            Entry::Occupied(mut e) => {
                let first = e.get_mut();
                let body_hash = first.body_hash;
                match &mut first.state {
                    FirstCopy::Durable(seq) => Seen::Durable { body_hash, seq: *seq },
                    FirstCopy::Writing(waiting) | FirstCopy::Applied(waiting) => {
                        let (tell, settled) = oneshot::channel();
                        waiting.push(tell);
                        Seen::Writing { body_hash, settled }
                    }
                }
            }
            Entry::Vacant(e) => match in_index() {
                Some((seq, body_hash)) => Seen::Durable { body_hash, seq },
                None if full => Seen::Busy,
                None => {
                    e.insert(Ahead { body_hash, state: FirstCopy::Writing(Vec::new()) });
                    Seen::First
                }
            },
        }
    }

    /// The append of the first copy came to its end.
    pub fn settle(&self, key: &DedupKey, result: Settled) {
        let mut ahead = self.lock();
        let waiting = match ahead.remove(key) {
            Some(Ahead { body_hash, state: FirstCopy::Writing(waiting) }) => {
                if let Ok(seq) = result {
                    ahead.insert(*key, Ahead { body_hash, state: FirstCopy::Durable(seq) });
                }
                waiting
            }
            Some(Ahead { state: FirstCopy::Applied(waiting), .. }) => waiting,
            Some(durable) => {
                ahead.insert(*key, durable);
                return;
            }
            None => return,
        };
        drop(ahead);
        for tell in waiting {
            // Whoever gave up waiting needs no answer.
            _ = tell.send(result);
        }
    }

    /// These are in the index now.
    pub fn applied(&self, keys: impl IntoIterator<Item = DedupKey>) {
        let mut ahead = self.lock();
        for key in keys {
            match ahead.remove(&key) {
                Some(Ahead { body_hash, state: FirstCopy::Writing(waiting) }) => {
                    ahead.insert(key, Ahead { body_hash, state: FirstCopy::Applied(waiting) });
                }
                Some(applied @ Ahead { state: FirstCopy::Applied(_), .. }) => {
                    ahead.insert(key, applied);
                }
                Some(_) | None => {}
            }
        }
        if ahead.capacity() > ROOM_KEPT && ahead.len() < ahead.capacity() / 8 {
            ahead.shrink_to(ROOM_KEPT / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DedupKey = [1; 16];
    const BODY: [u8; 8] = [2; 8];

    fn nothing() -> Option<(Seq, [u8; 8])> {
        None
    }

    #[test]
    fn copies_in_flight_hear_when_the_first_is_durable() {
        let dedup = Dedup::default();
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::First));
        let Seen::Writing { mut settled, .. } = dedup.enter(KEY, BODY, nothing) else { panic!() };
        assert!(settled.try_recv().is_err());
        dedup.settle(&KEY, Ok(5));
        assert_eq!(settled.try_recv().unwrap(), Ok(5));
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::Durable { seq: 5, .. }));
    }

    #[test]
    fn a_failed_append_is_forgotten_so_that_a_retry_is_stored() {
        let dedup = Dedup::default();
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::First));
        let Seen::Writing { mut settled, .. } = dedup.enter(KEY, BODY, nothing) else { panic!() };
        dedup.settle(&KEY, Err(AppendError::Failed));
        assert_eq!(settled.try_recv().unwrap(), Err(AppendError::Failed));
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::First));
    }

    #[test]
    fn an_event_is_known_at_every_moment_whichever_of_index_and_append_is_heard_of_first() {
        let dedup = Dedup::default();
        let index = || Some((5, BODY));
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::First));
        dedup.applied([KEY]);
        assert!(matches!(dedup.enter(KEY, BODY, index), Seen::Writing { .. }));
        dedup.settle(&KEY, Ok(5));
        assert!(matches!(dedup.enter(KEY, BODY, index), Seen::Durable { seq: 5, .. }));
        assert!(dedup.lock().is_empty());
    }
}
