//! The quick duplicate check: events on their way into the index, in memory. Whoever comes first with a key
//! claims it, and only then looks it up in the index: there everything is found that the map no longer holds, and
//! copies that come meanwhile wait for the claim's end. So nobody waits for the disk under the lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::AppendError;
use crate::delivery::Seq;
use crate::event::DedupKey;

/// More than this many events ahead of the index, and intake has to wait: about 9 MB.
const AHEAD_MAX: usize = 60_000;
/// Room that is kept once most of it is empty again.
const ROOM_KEPT: usize = 4_096;

/// The hash of an event's body.
type BodyHash = [u8; 8];

/// The event and the hash of its body, once they are durable.
pub type Settled = Result<(Seq, BodyHash), AppendError>;

#[derive(Default)]
pub struct Dedup {
    ahead: Mutex<HashMap<DedupKey, Ahead>>,
}

struct Ahead {
    body_hash: BodyHash,
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
    Writing(oneshot::Receiver<Settled>),
    /// The first copy is durable.
    Durable { body_hash: BodyHash, seq: Seq },
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
        body_hash: BodyHash,
        in_index: impl FnOnce() -> Option<(Seq, BodyHash)>,
    ) -> Seen {
        let claimed = self.claim(key, body_hash);
        if matches!(claimed, Seen::First | Seen::Busy)
            && let Some((seq, body_hash)) = in_index()
        {
            if matches!(claimed, Seen::First) {
                self.give_up(&key, (seq, body_hash));
            }
            return Seen::Durable { body_hash, seq };
        }
        claimed
    }

    fn claim(&self, key: DedupKey, body_hash: BodyHash) -> Seen {
        let mut ahead = self.lock();
        let full = ahead.len() >= AHEAD_MAX;
        match ahead.entry(key) {
            Entry::Occupied(mut e) => {
                let Ahead { body_hash, state } = e.get_mut();
                match state {
                    FirstCopy::Durable(seq) => Seen::Durable { body_hash: *body_hash, seq: *seq },
                    FirstCopy::Writing(waiting) | FirstCopy::Applied(waiting) => {
                        let (tell, settled) = oneshot::channel();
                        waiting.push(tell);
                        Seen::Writing(settled)
                    }
                }
            }
            Entry::Vacant(_) if full => Seen::Busy,
            Entry::Vacant(e) => {
                e.insert(Ahead { body_hash, state: FirstCopy::Writing(Vec::new()) });
                Seen::First
            }
        }
    }

    /// The key was in the index already.
    fn give_up(&self, key: &DedupKey, first: (Seq, BodyHash)) {
        let claim = self.lock().remove(key);
        let waiting = claim.map(|claim| match claim.state {
            FirstCopy::Writing(waiting) | FirstCopy::Applied(waiting) => waiting,
            FirstCopy::Durable(_) => Vec::new(),
        });
        for tell in waiting.into_iter().flatten() {
            // Whoever gave up waiting needs no answer.
            _ = tell.send(Ok(first));
        }
    }

    /// The append of the first copy came to its end.
    pub fn settle(&self, key: &DedupKey, result: Result<Seq, AppendError>) {
        let mut ahead = self.lock();
        let (body_hash, waiting) = match ahead.remove(key) {
            Some(Ahead { body_hash, state: FirstCopy::Writing(waiting) }) => {
                if let Ok(seq) = result {
                    ahead.insert(*key, Ahead { body_hash, state: FirstCopy::Durable(seq) });
                }
                (body_hash, waiting)
            }
            Some(Ahead { body_hash, state: FirstCopy::Applied(waiting) }) => (body_hash, waiting),
            Some(durable) => {
                ahead.insert(*key, durable);
                return;
            }
            None => return,
        };
        drop(ahead);
        for tell in waiting {
            // Whoever gave up waiting needs no answer.
            _ = tell.send(result.map(|seq| (seq, body_hash)));
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

    fn nothing() -> Option<(Seq, BodyHash)> {
        None
    }

    #[test]
    fn copies_in_flight_hear_when_the_first_is_durable() {
        let dedup = Dedup::default();
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::First));
        let Seen::Writing(mut settled) = dedup.enter(KEY, BODY, nothing) else { panic!() };
        assert!(settled.try_recv().is_err());
        dedup.settle(&KEY, Ok(5));
        assert_eq!(settled.try_recv().unwrap(), Ok((5, BODY)));
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::Durable { seq: 5, .. }));
    }

    #[test]
    fn a_failed_append_is_forgotten_so_that_a_retry_is_stored() {
        let dedup = Dedup::default();
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::First));
        let Seen::Writing(mut settled) = dedup.enter(KEY, BODY, nothing) else { panic!() };
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
        assert!(matches!(dedup.enter(KEY, BODY, index), Seen::Writing(_)));
        dedup.settle(&KEY, Ok(5));
        assert!(matches!(dedup.enter(KEY, BODY, index), Seen::Durable { seq: 5, .. }));
        assert!(dedup.lock().is_empty());
    }
    #[test]
    fn copies_of_an_event_in_the_index_wait_for_the_look_up_and_hear_of_the_body_there() {
        let dedup = Dedup::default();
        let mut copy = None;
        let looked_up = || {
            copy = Some(dedup.enter(KEY, [3; 8], nothing));
            Some((5, BODY))
        };
        let first = dedup.enter(KEY, [3; 8], looked_up);
        assert!(matches!(first, Seen::Durable { seq: 5, body_hash: BODY }));
        let Some(Seen::Writing(mut settled)) = copy else { panic!() };
        assert_eq!(settled.try_recv().unwrap(), Ok((5, BODY)));
        assert!(dedup.lock().is_empty());
    }

    #[test]
    fn an_event_in_the_index_is_known_even_where_too_many_are_on_their_way() {
        let dedup = Dedup::default();
        for n in 0..AHEAD_MAX as u128 {
            assert!(matches!(dedup.enter(n.to_be_bytes(), BODY, nothing), Seen::First));
        }
        assert!(matches!(dedup.enter(KEY, BODY, nothing), Seen::Busy));
        assert!(matches!(dedup.enter(KEY, BODY, || Some((5, BODY))), Seen::Durable { .. }));
    }
}
