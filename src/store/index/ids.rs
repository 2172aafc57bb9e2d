//! Which duplicate keys the index can hold at all. Nearly every event is new, and to look it up in sled would
//! mean to wait for the batch that is being written: so intake would go at the index's pace.
//!
//! A Bloom filter over the keys, in memory: what it does not know is not in the index. It takes 10 bits a key, for
//! 1 wrong "perhaps" in 100, and is filled from the index after every start. A key that leaves the index stays in it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastbloom::BloomFilter;

use super::keys::{self, IDS, IdEntry};
use super::{Batch, Kv, KvError, Missing, Pair};
use crate::event::DedupKey;

const BITS_PER_KEY: usize = 10;
const HASHES: u32 = 7;
const ROOM_MIN: usize = 256 * 1024;
/// 8 MB. What comes on top makes it wrong more often.
const ROOM_MAX: usize = 6_400_000;
/// Keys that are read at once.
const SLICE: usize = 4_096;

pub struct WithIds<K> {
    kv: K,
    filter: Ids,
}

/// What is known of an index's duplicate keys: a copy of the index has the same.
pub type Ids = Arc<Mutex<Filter>>;

pub struct Filter {
    /// Complete, unless `filling` is all there is.
    current: Option<Bounded>,
    /// With more room, and from which key on it still lacks those of the index.
    filling: Option<(Bounded, Vec<u8>)>,
}

struct Bounded {
    bloom: BloomFilter,
    room: usize,
    held: usize,
}

impl Bounded {
    fn new(room: usize) -> Bounded {
        let bloom = BloomFilter::with_num_bits(room * BITS_PER_KEY).hashes(HASHES);
        Bounded { bloom, room, held: 0 }
    }

    fn insert(&mut self, key: &[u8]) {
        // Known before: counted once.
        self.held += usize::from(!self.bloom.insert_hash(hash_of(key)));
    }
}

/// What lies under a duplicate key: it is looked for era by era, from the newest on.
///
/// # Errors
/// The index is broken.
pub fn find(kv: &dyn Kv, key: &DedupKey) -> Result<Option<IdEntry>, KvError> {
    let (from, to) = keys::family(IDS);
    let era_in = |pairs: Vec<Pair>| pairs.first().and_then(|(key, _)| keys::first_number(key));
    if kv.lacks_id(key) {
        return Ok(None);
    }
    let (Some(oldest), Some(newest)) =
        (era_in(kv.range(&from, &to, 1)?), era_in(kv.range_back(&from, &to, 1)?))
    else {
        return Ok(None);
    };
    for era in (oldest..=newest).rev() {
        if let Some(value) = kv.get(&keys::id_in(era, key))? {
            return keys::from_value(&value).map(Some);
        }
    }
    Ok(None)
}

/// The duplicate key's own bytes are a hash.
fn hash_of(key: &[u8]) -> u64 {
    let bytes = key.last_chunk::<16>().and_then(|key| key.first_chunk().copied());
    bytes.map_or(0, u64::from_be_bytes)
}

fn is_id(key: &[u8]) -> bool {
    key.first() == Some(&IDS)
}

impl Filter {
    fn begin(&mut self, room: usize) {
        self.filling = Some((Bounded::new(room), keys::family(IDS).0));
    }

    fn insert<'a>(&mut self, ids: impl Iterator<Item = &'a [u8]>) {
        for id in ids {
            if let Some(current) = &mut self.current {
                current.insert(id);
            }
            if let Some((filling, _)) = &mut self.filling {
                filling.insert(id);
            }
        }
        if self.filling.is_none()
            && let Some(current) = &self.current
            && current.held > current.room
            && current.room < ROOM_MAX
        {
            let room = (current.room * 4).min(ROOM_MAX);
            self.begin(room);
        }
    }

    fn rules_out(&self, id: &[u8]) -> bool {
        self.current.as_ref().is_some_and(|c| !c.bloom.contains_hash(hash_of(id)))
    }
}

impl<K: Kv> WithIds<K> {
    /// # Errors
    /// The index is broken.
    pub fn over(kv: K) -> Result<WithIds<K>, KvError> {
        let held = match kv.get(keys::META_IDS)? {
            Some(value) => keys::from_value::<u64>(&value)?,
            None => 0,
        };
        let mut filter = Filter { current: None, filling: None };
        let room = usize::try_from(held.saturating_mul(2)).unwrap_or(ROOM_MAX);
        filter.begin(room.clamp(ROOM_MIN, ROOM_MAX));
        Ok(WithIds::knowing(kv, Arc::new(Mutex::new(filter))))
    }

    pub fn knowing(kv: K, filter: Ids) -> WithIds<K> {
        WithIds { kv, filter }
    }

    /// First: who does not find a key here must not find it in the index a moment later.
    fn learn(&self, batch: &Batch) {
        let ids = batch.iter().filter(|(key, value)| value.is_some() && is_id(key));
        self.filter().insert(ids.map(|(key, _)| key.as_slice()));
    }

    fn filter(&self) -> MutexGuard<'_, Filter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kv> Kv for WithIds<K> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        if is_id(key) && self.filter().rules_out(key) { Ok(None) } else { self.kv.get(key) }
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        self.kv.range(from, to, limit)
    }

    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        self.kv.range_back(from, to, limit)
    }

    fn lacks_id(&self, key: &DedupKey) -> bool {
        self.filter().rules_out(key)
    }

    fn ids(&self) -> Option<Ids> {
        Some(self.filter.clone())
    }

    fn settle(&self) -> Result<(), KvError> {
        self.kv.settle()
    }

    fn missing(&self) -> Option<Missing> {
        self.kv.missing()
    }

    fn is_complete_again(&self) {
        self.kv.is_complete_again();
    }

    fn apply(&self, batch: Batch) -> Result<(), KvError> {
        self.learn(&batch);
        self.kv.apply(batch)
    }

    fn apply_events(&self, batch: Batch) -> Result<(), KvError> {
        self.learn(&batch);
        self.kv.apply_events(batch)
    }

    fn flush(&self) -> Result<(), KvError> {
        self.kv.flush()
    }

    fn sync(&self) -> Result<(), KvError> {
        self.kv.sync()
    }

    fn bytes(&self) -> u64 {
        self.kv.bytes()
    }

    fn warm(&self) -> Result<bool, KvError> {
        let Some(from) = self.filter().filling.as_ref().map(|(_, from)| from.clone()) else {
            return Ok(false);
        };
        let pairs = self.kv.range(&from, &keys::family(IDS).1, SLICE)?;
        let mut filter = self.filter();
        let Some((mut filling, _)) = filter.filling.take() else { return Ok(false) };
        for (key, _) in &pairs {
            filling.insert(key);
        }
        match pairs.into_iter().last() {
            Some((last, _)) => filter.filling = Some((filling, keys::successor(last))),
            None => filter.current = Some(filling),
        }
        Ok(filter.filling.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryKv;
    use super::*;
    use crate::event::dedup_key;

    fn id(n: usize) -> Vec<u8> {
        keys::id(n as u64 * 9, &dedup_key("s", &n.to_string()))
    }

    fn put(kv: &dyn Kv, numbers: std::ops::Range<usize>) {
        for n in numbers {
            kv.apply(vec![(id(n), Some(vec![1]))]).unwrap();
        }
    }

    fn warm(kv: &dyn Kv) {
        while kv.warm().unwrap() {}
    }

    #[test]
    fn every_key_of_the_index_is_found_before_while_and_after_it_is_filled() {
        let below = MemoryKv::default();
        put(&below, 0..2_000);
        let kv = WithIds::over(below).unwrap();
        let mut last = 2_000;
        for slices in [0, 1, 2, 9] {
            for _ in 0..slices {
                kv.warm().unwrap();
            }
            put(&kv, last..last + 100);
            last += 100;
            assert!((0..last).all(|n| kv.get(&id(n)).unwrap().is_some()), "{slices} slices");
        }
        assert!(!kv.warm().unwrap());
    }

    #[test]
    fn what_is_new_is_not_looked_for_in_the_index() {
        let below = MemoryKv::default();
        put(&below, 0..5_000);
        let kv = WithIds::over(below.clone()).unwrap();
        warm(&kv);
        let asked = (5_000..15_000).filter(|n| !kv.filter().rules_out(&id(*n))).count();
        assert!(asked < 300, "{asked} of 10,000");
    }

    #[test]
    fn it_grows_with_the_index() {
        let kv = WithIds::over(MemoryKv::default()).unwrap();
        warm(&kv);
        let many = ROOM_MIN + ROOM_MIN / 8;
        put(&kv, 0..many);
        assert!(kv.filter().filling.is_some(), "a larger one is on its way");
        assert!(kv.get(&id(many + 1)).unwrap().is_none());
        put(&kv, many..many + 100);
        warm(&kv);
        assert!(kv.filter().current.as_ref().unwrap().room > ROOM_MIN);
        assert!((0..many + 100).all(|n| kv.get(&id(n)).unwrap().is_some()));
    }
}
