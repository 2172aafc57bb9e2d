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
pub mod query;
pub mod rebuild;
pub mod sled;
#[cfg(test)]
mod tests;

use std::fmt;

/// The largest batch. Larger ones make sled's memory explode.
pub const BATCH_OPS_MAX: usize = 64;

pub type Pair = (Vec<u8>, Vec<u8>);

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

    /// All or nothing, also over a crash. At most [`BATCH_OPS_MAX`] operations.
    ///
    /// # Errors
    /// As `get`.
    fn apply(&self, batch: Batch) -> Result<(), KvError>;

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
