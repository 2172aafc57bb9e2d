//! Writes that wait for their batch, and reads that see them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use bincode::{Decode, Encode};

use super::keys::{from_value, to_value};
use super::{BATCH_OPS_MAX, Kv, KvError};

struct Write {
    value: Option<Vec<u8>>,
    /// The key is not in the map below, so taking the write back leaves nothing to delete.
    fresh: bool,
}

pub struct Overlay {
    kv: Arc<dyn Kv>,
    writes: BTreeMap<Vec<u8>, Write>,
}

impl Overlay {
    pub fn new(kv: Arc<dyn Kv>) -> Overlay {
        Overlay { kv, writes: BTreeMap::new() }
    }

    /// The map below. Ranges are read there, after a [`Overlay::write_out`].
    pub fn kv(&self) -> &dyn Kv {
        &*self.kv
    }

    /// Whether `ops` more writes and one on top fit into the batch.
    pub fn has_room(&self, ops: usize) -> bool {
        self.writes.len() + ops < BATCH_OPS_MAX
    }

    pub fn get<T: Decode<()>>(&self, key: &[u8]) -> Result<Option<T>, KvError> {
        match self.writes.get(key) {
            Some(write) => write.value.as_deref().map(from_value).transpose(),
            None => self.kv.get(key)?.as_deref().map(from_value).transpose(),
        }
    }

    pub fn has(&self, key: &[u8]) -> Result<bool, KvError> {
        match self.writes.get(key) {
            Some(write) => Ok(write.value.is_some()),
            None => Ok(self.kv.get(key)?.is_some()),
        }
    }

    pub fn put(&mut self, key: Vec<u8>, value: &impl Encode) -> Result<(), KvError> {
        self.write(key, to_value(value)?, false);
        Ok(())
    }

    /// As `put`, for a key that is known not to be there.
    pub fn put_new(&mut self, key: Vec<u8>, value: &impl Encode) -> Result<(), KvError> {
        self.write(key, to_value(value)?, true);
        Ok(())
    }

    fn write(&mut self, key: Vec<u8>, value: Vec<u8>, fresh: bool) {
        match self.writes.entry(key) {
            Entry::Occupied(mut e) => e.get_mut().value = Some(value),
            Entry::Vacant(e) => {
                e.insert(Write { value: Some(value), fresh });
            }
        }
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        match self.writes.entry(key) {
            Entry::Occupied(e) if e.get().fresh => {
                e.remove();
            }
            Entry::Occupied(mut e) => e.get_mut().value = None,
            Entry::Vacant(e) => {
                e.insert(Write { value: None, fresh: false });
            }
        }
    }

    /// One batch with all that waits, and `last` behind it.
    pub fn write_out(&mut self, last: Option<(Vec<u8>, Vec<u8>)>) -> Result<(), KvError> {
        let writes = std::mem::take(&mut self.writes);
        let mut batch: Vec<_> = writes.into_iter().map(|(k, w)| (k, w.value)).collect();
        batch.extend(last.map(|(k, v)| (k, Some(v))));
        if batch.is_empty() { Ok(()) } else { self.kv.apply(batch) }
    }
}
