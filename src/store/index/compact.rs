//! sled's file never shrinks, and rewritten pages leave holes in it. An index of mostly holes is copied to
//! a fresh one, which then takes its place. Readers go on with the old one meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ids::{Ids, WithIds};
use super::keys::{self, META_DENSE, META_EVENTS, META_IDS};
use super::packed::Packed;
use super::rebuild::{Home, unless_missing};
use super::sled::SledKv;
use super::{BATCH_OPS_MAX, Kv, KvError};
use crate::store::disk::{Disk as _, RealDisk};

/// A copy leaves so much of the disk to the log, beside what it may take itself.
const SPACE_LEFT_BYTES: u64 = 256 * 1024 * 1024;
const HOLES_MAX: u64 = 64 * 1024 * 1024;
const EVENT_BYTES: u64 = 200;
const ID_BYTES: u64 = 60;
/// The copy only appends; what it has cached serves nobody.
const CACHE_BYTES: u64 = 1024 * 1024;

/// A complete and durable copy that waits to take its original's place.
pub struct Copy {
    of: PathBuf,
    at: PathBuf,
    ids: Option<Ids>,
}

/// So much in holes is not worth a copy.
#[must_use]
pub fn holes_max(disk_max: u64) -> u64 {
    (disk_max / 4).min(HOLES_MAX)
}

/// About what an index without holes takes: measured on disk, an event without its duplicate key and such a key.
///
/// # Errors
/// The index is broken.
pub fn expected_bytes(kv: &dyn Kv) -> Result<u64, KvError> {
    let count = |key| match kv.get(key)? {
        Some(value) => keys::from_value::<u64>(&value),
        None => Ok(0),
    };
    let (events, ids) = (count(META_EVENTS)?, count(META_IDS)?);
    Ok(events.saturating_mul(EVENT_BYTES).saturating_add(ids.saturating_mul(ID_BYTES)))
}

/// Whether it has grown by half and by more than `holes_max` since it was copied, and beyond what it should take,
/// or half of what it held is gone.
///
/// # Errors
/// The index is broken.
pub fn is_worthwhile(kv: &dyn Kv, holes_max: u64) -> Result<bool, KvError> {
    let (dense, expected) = match kv.get(META_DENSE)? {
        Some(value) => keys::from_value::<(u64, u64)>(&value)?,
        None => (0, 0),
    };
    let bytes = kv.bytes();
    let should_take = expected_bytes(kv)?;
    let has_grown = bytes > dense.saturating_add(holes_max.max(dense / 2))
        && bytes > should_take.saturating_add(holes_max.max(should_take / 2));
    let has_emptied = bytes > holes_max && should_take < expected / 2;
    Ok(has_grown || has_emptied)
}

impl Home {
    /// Copies the index, which nobody may write to meanwhile. `None`: `stop` said so, there was no room
    /// for it, or the index is in memory anyway.
    ///
    /// # Errors
    /// The index is broken.
    pub fn copy(&self, kv: &dyn Kv, stop: impl Fn() -> bool) -> Result<Option<Copy>, KvError> {
        let Home::Sled(of) = self else { return Ok(None) };
        let copy = Copy { ids: kv.ids(), ..Copy::of(of) };
        let free = RealDisk.space(of.parent().unwrap_or(of)).map_or(u64::MAX, |space| space.free);
        if free < kv.bytes().saturating_add(SPACE_LEFT_BYTES) {
            tracing::warn!(free, "no room to compact the index; trying again later");
            return Ok(None);
        }
        kv.settle()?;
        match copy.fill(kv, stop) {
            Ok(()) => Ok(Some(copy)),
            Err(Failed::Index(error)) => Err(error),
            Err(Failed::Copy(why)) => {
                tracing::warn!(why, "the index was not compacted; trying again later");
                copy.discard();
                Ok(None)
            }
        }
    }

    /// What a crash has left of one.
    pub(super) fn discard_copy(&self) {
        if let Home::Sled(of) = self {
            Copy::of(of).discard();
        }
    }
}

enum Failed {
    Index(KvError),
    Copy(String),
}

impl From<KvError> for Failed {
    fn from(e: KvError) -> Failed {
        Failed::Copy(e.0)
    }
}

impl Copy {
    fn of(index: &Path) -> Copy {
        Copy { of: index.to_owned(), at: index.with_extension("copy"), ids: None }
    }

    /// Writes it, durably.
    fn fill(&self, from: &dyn Kv, stop: impl Fn() -> bool) -> Result<(), Failed> {
        unless_missing(fs::remove_dir_all(&self.at)).map_err(|e| Failed::Copy(e.to_string()))?;
        let into = SledKv::open_with_cache(&self.at, CACHE_BYTES)?;
        let mut start = Vec::new();
        loop {
            let pairs = from.range(&start, &[u8::MAX], BATCH_OPS_MAX).map_err(Failed::Index)?;
            let Some((last, _)) = pairs.last() else { break };
            start = keys::successor(last.clone());
            into.apply(pairs.into_iter().map(|(key, value)| (key, Some(value))).collect())?;
            if stop() {
                return Err(Failed::Copy("bluehook is stopping".to_owned()));
            }
        }
        into.flush()?;
        let dense = keys::to_value(&(into.bytes(), expected_bytes(&into)?))?;
        into.apply(vec![(META_DENSE.to_vec(), Some(dense))])?;
        into.sync()?;
        Ok(())
    }

    /// The original must be closed.
    ///
    /// # Errors
    /// It cannot be opened: the index has to be built anew.
    pub fn put_in_place(&self) -> Result<Arc<dyn Kv>, KvError> {
        let error = |e: std::io::Error| KvError(format!("index: the copy stays aside: {e}"));
        // A crash in between leaves no index: it is then built from the log.
        unless_missing(fs::remove_dir_all(self.old())).map_err(error)?;
        fs::rename(&self.of, self.old()).map_err(error)?;
        fs::rename(&self.at, &self.of).map_err(error)?;
        let kv = Packed::over(SledKv::open(&self.of)?)?;
        Ok(Arc::new(match &self.ids {
            Some(ids) => WithIds::knowing(kv, ids.clone()),
            None => WithIds::over(kv)?,
        }))
    }

    fn old(&self) -> PathBuf {
        self.of.with_extension("old")
    }

    /// Removes what is of no more use, be it the copy or what it has replaced.
    pub fn discard(&self) {
        for folder in [&self.at, &self.old()] {
            if let Err(error) = unless_missing(fs::remove_dir_all(folder)) {
                tracing::warn!(%error, folder = %folder.display(), "a copy of the index stays behind");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::Pair;

    fn all(kv: &dyn Kv) -> Vec<Pair> {
        let mut pairs = kv.range(&[], &[u8::MAX], usize::MAX).unwrap();
        pairs.retain(|(key, _)| key != META_DENSE);
        pairs
    }

    /// Pages that were written again and again, and few keys that are left.
    fn holey(dir: &Path) -> SledKv {
        let kv = SledKv::open(dir).unwrap();
        for round in 0..12u32 {
            for n in (0..20_000u32).step_by(BATCH_OPS_MAX) {
                let value = |n: u32| (round < 11 || n.is_multiple_of(7)).then(|| vec![0; 50]);
                let keys = n..n + u32::try_from(BATCH_OPS_MAX).unwrap();
                kv.apply(keys.map(|n| (n.to_be_bytes().to_vec(), value(n))).collect()).unwrap();
            }
            kv.flush().unwrap();
        }
        kv
    }

    #[test]
    fn a_copy_holds_the_same_in_less_space_and_takes_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::Sled(dir.path().join("index"));
        let kv = holey(&dir.path().join("index"));
        let (before, bytes) = (all(&kv), kv.bytes());
        assert!(is_worthwhile(&kv, 4 << 20).unwrap(), "{bytes}");
        let copy = home.copy(&kv, || false).unwrap().unwrap();
        assert!(all(&kv) == before, "the original is still there");
        drop(kv);
        let kv = copy.put_in_place().unwrap();
        assert!(all(&*kv) == before);
        assert!(kv.bytes() * 2 < bytes, "{} of {bytes}", kv.bytes());
        assert!(!is_worthwhile(&*kv, 4 << 20).unwrap());
        assert!(!dir.path().join("index.copy").exists());
    }

    #[test]
    fn a_copy_that_is_cut_off_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::Sled(dir.path().join("index"));
        let kv = SledKv::open(&dir.path().join("index")).unwrap();
        kv.apply(vec![(vec![1], Some(vec![2]))]).unwrap();
        assert!(home.copy(&kv, || true).unwrap().is_none());
        assert!(!dir.path().join("index.copy").exists());
        fs::write(dir.path().join("index.copy"), b"a file in its place").unwrap();
        assert!(home.copy(&kv, || false).unwrap().is_none(), "no room for it");
        assert_eq!(all(&kv).len(), 1);
    }
}
