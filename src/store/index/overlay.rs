//! Writes that wait for their batch, and reads that see them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bincode::{Decode, Encode};

use super::keys::{self, IdEntry, from_value, to_value};
use super::{BATCH_OPS_MAX, Kv, KvError, ids, is_packed, weight};
use crate::delivery::Seq;
use crate::event::DedupKey;

struct Write {
    value: Option<Vec<u8>>,
    /// The key is not in the map below, so taking the write back leaves nothing to delete.
    fresh: bool,
}

pub struct Overlay {
    kv: Arc<dyn Kv>,
    writes: BTreeMap<Vec<u8>, Write>,
    plain: usize,
    packed_bytes: usize,
    /// What waits of the packed families comes from events alone.
    is_of_events: bool,
    /// Of the duplicate keys among the writes.
    eras: BTreeSet<u64>,
}

impl Overlay {
    pub fn new(kv: Arc<dyn Kv>) -> Overlay {
        Overlay {
            kv,
            writes: BTreeMap::new(),
            plain: 0,
            packed_bytes: 0,
            is_of_events: true,
            eras: BTreeSet::new(),
        }
    }

    /// The map below. Ranges are read there, after a [`Overlay::write_out`].
    pub fn kv(&self) -> &dyn Kv {
        &*self.kv
    }

    /// Whether `ops` more writes and one on top fit into the batch.
    pub fn has_room(&self, ops: usize) -> bool {
        weight(self.plain, self.packed_bytes) + ops < BATCH_OPS_MAX
    }

    /// What follows changes the packed families as an event does, or as none does. Both in one batch do not go:
    /// `false` asks for a [`Overlay::write_out`] first.
    pub fn takes(&mut self, of_events: bool) -> bool {
        let takes = self.is_of_events == of_events || self.packed_bytes == 0;
        if takes {
            self.is_of_events = of_events;
        }
        takes
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

    /// The event of a duplicate key.
    pub fn id(&self, key: &DedupKey) -> Result<Option<IdEntry>, KvError> {
        for era in self.eras.iter().rev() {
            let write = self.writes.get(&keys::id_in(*era, key));
            if let Some(value) = write.and_then(|write| write.value.as_deref()) {
                return from_value(value).map(Some);
            }
        }
        let known = ids::find(&*self.kv, key)?;
        let is_gone = |entry: &IdEntry| {
            let write = self.writes.get(&keys::id(entry.seq, key));
            write.is_some_and(|write| write.value.is_none())
        };
        Ok(known.filter(|entry| !is_gone(entry)))
    }

    pub fn put_id(&mut self, seq: Seq, key: &DedupKey, entry: &IdEntry) -> Result<(), KvError> {
        self.eras.insert(keys::era_of(seq));
        self.put(keys::id(seq, key), entry)
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

    fn count(&mut self, key: &[u8], value_bytes: usize) {
        if key.first().is_some_and(|family| is_packed(*family)) {
            self.packed_bytes += key.len() + value_bytes;
        } else if !self.writes.contains_key(key) {
            self.plain += 1;
        }
    }

    fn write(&mut self, key: Vec<u8>, value: Vec<u8>, fresh: bool) {
        self.count(&key, value.len());
        match self.writes.entry(key) {
            Entry::Occupied(mut e) => e.get_mut().value = Some(value),
            Entry::Vacant(e) => {
                e.insert(Write { value: Some(value), fresh });
            }
        }
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        self.count(&key, 0);
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
        (self.plain, self.packed_bytes) = (0, 0);
        self.eras.clear();
        let mut batch: Vec<_> = writes.into_iter().map(|(k, w)| (k, w.value)).collect();
        batch.extend(last.map(|(k, v)| (k, Some(v))));
        if batch.is_empty() {
            return Ok(());
        }
        if self.is_of_events { self.kv.apply_events(batch) } else { self.kv.apply(batch) }
    }
}
