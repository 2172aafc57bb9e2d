//! The index on disk. The only file that names sled, and the place for all that its 0.34 needs: small
//! batches, our own syncs (its flush does not reach the device), and no trust in its panics.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{BATCH_OPS_MAX, Batch, Kv, KvError, Pair};

const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// A process that was just killed may hold the lock for a moment more.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);
const CACHE_BYTES: u64 = 2 * 1024 * 1024;
/// What sled holds back is written by threads of its own, from buffers of 2 MiB each: without a flush in
/// between, thousands of batches (a dropped segment, a copy) had tens of them in memory at once.
const BYTES_PER_FLUSH: usize = 1024 * 1024;
/// What an operation takes there beside its key and value, about.
const OP_BYTES: usize = 256;
/// Pages above a quarter of it would go to `blobs/`, which does not survive power cuts.
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;

pub struct SledKv {
    db: ::sled::Db,
    dir: PathBuf,
    unflushed: AtomicUsize,
}

impl SledKv {
    /// # Errors
    /// It cannot be opened, panics on the way, or does not answer in time.
    pub fn open(dir: &Path) -> Result<SledKv, KvError> {
        SledKv::open_with_cache(dir, CACHE_BYTES)
    }

    /// # Errors
    /// As [`SledKv::open`].
    pub fn open_with_cache(dir: &Path, cache_bytes: u64) -> Result<SledKv, KvError> {
        remove_half_written_snapshots(dir).map_err(|e| KvError(format!("index: {e}")))?;
        let (done, result) = mpsc::channel();
        let path = dir.to_owned();
        // A thread of its own: a damaged file can make sled loop for good.
        std::thread::Builder::new()
            .name("index-open".to_owned())
            .spawn(move || {
                let opened = guarded(|| open_once_unlocked(&path, cache_bytes));
                // Nobody listens any more once the time is up.
                drop(done.send(opened));
            })
            .map_err(|e| KvError(format!("index: no thread to open it: {e}")))?;
        let db = result
            .recv_timeout(OPEN_WITHIN)
            .map_err(|_| KvError("index: no answer while opening".to_owned()))??;
        let kv = SledKv { db, dir: dir.to_owned(), unflushed: AtomicUsize::new(0) };
        kv.assert_no_blobs()?;
        Ok(kv)
    }

    fn assert_no_blobs(&self) -> Result<(), KvError> {
        let blobs = fs::read_dir(self.dir.join("blobs"));
        if blobs.is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(KvError("index: a page outgrew its segment".to_owned()));
        }
        Ok(())
    }

    fn sync_files(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                File::open(entry.path())?.sync_data()?;
            }
        }
        File::open(&self.dir)?.sync_all()
    }
}

fn open_once_unlocked(dir: &Path, cache_bytes: u64) -> ::sled::Result<::sled::Db> {
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        let opened = ::sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None)
            .open();
        match opened {
            Err(::sled::Error::Io(e)) if is_lock(&e) && Instant::now() < until => {
                std::thread::sleep(LOCK_RETRY);
            }
            other => return other,
        }
    }
}

fn is_lock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("lock")
}

fn remove_half_written_snapshots(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// sled panics where others return an error.
fn guarded<T>(call: impl FnOnce() -> ::sled::Result<T>) -> Result<T, KvError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| KvError(format!("index: {e}"))),
        Err(_) => Err(KvError("index: sled panicked".to_owned())),
    }
}

fn pair((key, value): (::sled::IVec, ::sled::IVec)) -> Pair {
    (key.to_vec(), value.to_vec())
}

impl Kv for SledKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        guarded(|| Ok(self.db.get(key)?.map(|v| v.to_vec())))
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        if from >= to {
            return Ok(Vec::new());
        }
        guarded(|| self.db.range(from..to).take(limit).map(|r| r.map(pair)).collect())
    }

    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        if from >= to {
            return Ok(Vec::new());
        }
        guarded(|| self.db.range(from..to).rev().take(limit).map(|r| r.map(pair)).collect())
    }

    fn apply(&self, batch: Batch) -> Result<(), KvError> {
        if batch.len() > BATCH_OPS_MAX {
            return Err(KvError(format!("index: a batch of {} operations", batch.len())));
        }
        let mut ops = ::sled::Batch::default();
        let mut bytes = 0;
        for (key, value) in batch {
            bytes += key.len() + value.as_ref().map_or(0, Vec::len) + OP_BYTES;
            match value {
                Some(value) => ops.insert(key, value),
                None => ops.remove(key),
            }
        }
        guarded(|| self.db.apply_batch(ops))?;
        let unflushed = self.unflushed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unflushed < BYTES_PER_FLUSH {
            return Ok(());
        }
        self.unflushed.store(0, Ordering::Relaxed);
        self.flush()
    }

    fn flush(&self) -> Result<(), KvError> {
        guarded(|| self.db.flush()).map(drop)
    }

    fn sync(&self) -> Result<(), KvError> {
        self.flush()?;
        self.assert_no_blobs()?;
        self.sync_files().map_err(|e| KvError(format!("index: sync: {e}")))
    }

    fn bytes(&self) -> u64 {
        guarded(|| self.db.size_on_disk()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kv: &SledKv, key: &[u8]) {
        kv.apply(vec![(key.to_vec(), Some(b"v".to_vec()))]).unwrap();
    }

    #[test]
    fn what_was_applied_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let kv = SledKv::open(dir.path()).unwrap();
        for key in [b"a", b"b", b"c"] {
            put(&kv, key);
        }
        kv.sync().unwrap();
        drop(kv);
        let kv = SledKv::open(dir.path()).unwrap();
        let keys = |pairs: Vec<Pair>| pairs.into_iter().map(|(k, _)| k).collect::<Vec<_>>();
        assert_eq!(keys(kv.range(b"a", b"c", 9).unwrap()), [b"a", b"b"]);
        assert_eq!(keys(kv.range_back(b"a", b"d", 2).unwrap()), [b"c", b"b"]);
    }

    #[test]
    fn a_half_written_snapshot_does_not_keep_it_from_opening() {
        let dir = tempfile::tempdir().unwrap();
        drop(SledKv::open(dir.path()).unwrap());
        fs::write(dir.path().join("snap.0000.generating"), b"junk").unwrap();
        SledKv::open(dir.path()).unwrap();
    }

    #[test]
    fn garbage_is_an_error_or_an_empty_index_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("conf"), b"garbage").unwrap();
        fs::write(dir.path().join("db"), vec![7; 4096]).unwrap();
        if let Ok(kv) = SledKv::open(dir.path()) {
            assert!(kv.range(&[], &[u8::MAX], 1).unwrap().is_empty());
        }
    }
}
