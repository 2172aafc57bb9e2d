//! The index in memory: for the simulator, for tests, and for reading a stopped store.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{BATCH_OPS_MAX, Batch, Kv, KvError, Pair, weight_of};

#[derive(Default)]
struct State {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What undoes each batch since the last flush, oldest first. Only kept where a crash may come.
    undo: Vec<Batch>,
    keeps_undo: bool,
}

/// Clones share the content, as two openings of one file do.
#[derive(Clone, Default)]
pub struct MemoryKv {
    state: Arc<Mutex<State>>,
}

impl MemoryKv {
    #[must_use]
    pub fn new() -> MemoryKv {
        MemoryKv::default()
    }

    /// One that can be crashed back to a batch boundary.
    #[must_use]
    pub fn crashable() -> MemoryKv {
        let kv = MemoryKv::default();
        kv.lock().keeps_undo = true;
        kv
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many batches a crash could take back.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.lock().undo.len()
    }

    /// Takes back all but the first `keep` batches since the last flush.
    pub fn crash(&self, keep: usize) {
        let mut state = self.lock();
        while state.undo.len() > keep {
            for (key, value) in state.undo.pop().unwrap_or_default().into_iter().rev() {
                match value {
                    Some(value) => state.map.insert(key, value),
                    None => state.map.remove(&key),
                };
            }
        }
    }

    pub fn clear(&self) {
        let mut state = self.lock();
        state.map.clear();
        state.undo.clear();
    }

    /// Everything in it, for comparing two indexes.
    #[must_use]
    pub fn dump(&self) -> Vec<Pair> {
        self.lock().map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// `None` for an empty range, which a map refuses.
fn bounds<'a>(from: &'a [u8], to: &'a [u8]) -> Option<Bounds<'a>> {
    (from < to).then_some((Bound::Included(from), Bound::Excluded(to)))
}

fn owned((key, value): (&Vec<u8>, &Vec<u8>)) -> Pair {
    (key.clone(), value.clone())
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.lock().map.get(key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let Some(bounds) = bounds(from, to) else { return Ok(Vec::new()) };
        Ok(self.lock().map.range::<[u8], _>(bounds).take(limit).map(owned).collect())
    }

    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let Some(bounds) = bounds(from, to) else { return Ok(Vec::new()) };
        Ok(self.lock().map.range::<[u8], _>(bounds).rev().take(limit).map(owned).collect())
    }

    fn apply(&self, batch: Batch) -> Result<(), KvError> {
        if weight_of(&batch) > BATCH_OPS_MAX {
            return Err(KvError(format!("a batch of {} operations", batch.len())));
        }
        let mut state = self.lock();
        let mut undo = Vec::new();
        for (key, value) in batch {
            let before = match value {
                Some(value) => state.map.insert(key.clone(), value),
                None => state.map.remove(&key),
            };
            if state.keeps_undo {
                undo.push((key, before));
            }
        }
        if state.keeps_undo {
            state.undo.push(undo);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), KvError> {
        self.lock().undo.clear();
        Ok(())
    }

    fn sync(&self) -> Result<(), KvError> {
        self.flush()
    }

    fn bytes(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_takes_back_whole_batches() {
        let kv = MemoryKv::crashable();
        kv.apply(vec![(b"a".to_vec(), Some(b"1".to_vec()))]).unwrap();
        kv.flush().unwrap();
        kv.apply(vec![(b"a".to_vec(), Some(b"2".to_vec())), (b"b".to_vec(), Some(b"2".to_vec()))])
            .unwrap();
        kv.apply(vec![(b"a".to_vec(), None)]).unwrap();
        kv.crash(1);
        assert_eq!(kv.get(b"a").unwrap(), Some(b"2".to_vec()));
        kv.crash(0);
        assert_eq!(kv.dump(), [(b"a".to_vec(), b"1".to_vec())]);
    }
}
