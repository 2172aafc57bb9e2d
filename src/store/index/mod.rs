//! The catalogue over the log: where each event lies, and what is still alive.
//!
//! Everything here can be rebuilt from the log. Whatever makes it doubtful ends in that.

pub mod apply;
pub mod compact;
mod ids;
pub mod keys;
mod links;
pub mod memory;
mod overlay;
mod packed;
mod page;
pub mod query;
pub mod rebuild;
pub mod sled;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::event::DedupKey;

/// The largest batch. Larger ones make sled's memory explode.
pub const BATCH_OPS_MAX: usize = 64;

/// What keys and values of the packed families take in one batch's operations, so as to be counted among them.
const PACKED_OP_BYTES: usize = page::PAGE_BYTES / 5 * 4;

/// Whether many pairs of this family lie in one page.
#[must_use]
pub fn is_packed(family: u8) -> bool {
    matches!(family, keys::EVENTS | keys::IDS | keys::MESSAGES | keys::VOICES)
}

/// Operations in a batch with so many of its own and so many bytes of the packed families.
#[must_use]
pub fn weight(plain: usize, packed_bytes: usize) -> usize {
    plain + packed_bytes.div_ceil(PACKED_OP_BYTES)
}

/// As [`weight`], of a batch.
#[must_use]
pub fn weight_of(batch: &Batch) -> usize {
    let (mut plain, mut packed_bytes) = (0, 0);
    for (key, value) in batch {
        if key.first().is_some_and(|family| is_packed(*family)) {
            packed_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        } else {
            plain += 1;
        }
    }
    weight(plain, packed_bytes)
}

pub type Pair = (Vec<u8>, Vec<u8>);

/// Records after the one at `after` (the log's first, if there is none) up to the one at `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub after: Option<keys::Position>,
    pub upto: keys::Position,
}

/// Keys with their new values; `None` deletes.
pub type Batch = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// An ordered map of small values with atomic batches.
pub trait Kv: Send + Sync {
    /// # Errors
    /// The index is broken and has to be rebuilt; so it is for every call here.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// Up to `limit` pairs with `from <= key < to`, ascending.
    ///
    /// # Errors
    /// As `get`.
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError>;

    /// Up to `limit` pairs with `from <= key < to`, descending.
    ///
    /// # Errors
    /// As `get`.
    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError>;

    /// All or nothing, also over a crash. At most [`BATCH_OPS_MAX`] operations, as [`weight`] counts them.
    ///
    /// # Errors
    /// As `get`.
    fn apply(&self, batch: Batch) -> Result<(), KvError>;

    /// As [`Kv::apply`], of what events alone add to the packed families: a crash may take that along, and then the
    /// index says that it is [`Kv::missing`].
    ///
    /// # Errors
    /// As `get`.
    fn apply_events(&self, batch: Batch) -> Result<(), KvError> {
        self.apply(batch)
    }

    /// Which events are to be applied once more before anything else is.
    fn missing(&self) -> Option<Missing> {
        None
    }

    /// They have been.
    fn is_complete_again(&self) {}

    /// What was applied is out of this process's memory.
    ///
    /// # Errors
    /// As `get`.
    fn flush(&self) -> Result<(), KvError>;

    /// What was applied survives a power cut.
    ///
    /// # Errors
    /// As `get`.
    fn sync(&self) -> Result<(), KvError>;

    /// On disk.
    fn bytes(&self) -> u64;

    /// Says for certain that a duplicate key is not in it.
    fn lacks_id(&self, _key: &DedupKey) -> bool {
        false
    }

    /// What it knows of its duplicate keys, if anything.
    fn ids(&self) -> Option<ids::Ids> {
        None
    }

    /// Puts in order what came last, so that nothing will be missing. Only for whoever applies.
    ///
    /// # Errors
    /// As `get`.
    fn settle(&self) -> Result<(), KvError> {
        Ok(())
    }

    /// Does a little of what makes it quicker. Tells whether there is more to do.
    ///
    /// # Errors
    /// As `get`.
    fn warm(&self) -> Result<bool, KvError> {
        Ok(false)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvError(pub String);

impl fmt::Display for KvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KvError {}
