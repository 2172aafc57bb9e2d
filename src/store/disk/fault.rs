//! A disk that fails on demand, and counts what is asked of it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Disk, DiskFile, Open, Space};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    CreateDir,
    List,
    Open,
    Rename,
    Remove,
    SyncDir,
    Space,
    Read,
    Write,
    Len,
    SetLen,
    Allocate,
    SyncData,
    SyncAll,
}

/// The `nth` call from now (1: the very next) fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `None`: calls of every kind count.
    pub call: Option<Call>,
    pub nth: u64,
    pub error: io::ErrorKind,
    /// All later ones fail as well, until [`FaultDisk::heal`].
    pub sticky: bool,
}

#[derive(Clone)]
pub struct FaultDisk {
    inner: Arc<dyn Disk>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    counts: BTreeMap<Call, u64>,
    fault: Option<Fault>,
    /// What cannot be read.
    spoiled: Vec<(PathBuf, Range<u64>)>,
}

impl FaultDisk {
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>) -> FaultDisk {
        FaultDisk { inner, state: Arc::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn fail(&self, fault: Fault) {
        self.with(|s| s.fault = Some(fault));
    }

    pub fn heal(&self) {
        self.with(|s| s.fault = None);
    }

    /// Bytes of a file that cannot be read, as in a bad sector.
    pub fn spoil(&self, path: &Path, bytes: Range<u64>) {
        self.with(|s| s.spoiled.push((path.to_owned(), bytes)));
    }

    /// How many calls of this kind (`None`: of any) were made, failed ones included.
    #[must_use]
    pub fn count(&self, call: Option<Call>) -> u64 {
        self.with(|s| match call {
            Some(call) => s.counts.get(&call).copied().unwrap_or(0),
            None => s.counts.values().sum(),
        })
    }

    fn pass(&self, call: Call) -> io::Result<()> {
        self.with(|s| {
            *s.counts.entry(call).or_default() += 1;
            let Some(fault) = &mut s.fault else { return Ok(()) };
            if fault.call.is_some_and(|kind| kind != call) {
                return Ok(());
            }
            fault.nth = fault.nth.saturating_sub(1);
            if fault.nth > 0 {
                return Ok(());
            }
            let error = io::Error::new(fault.error, format!("injected fault in {call:?}"));
            if !fault.sticky {
                s.fault = None;
            }
            Err(error)
        })
    }
}

impl Disk for FaultDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.pass(Call::CreateDir)?;
        self.inner.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.pass(Call::List)?;
        self.inner.list(dir)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        self.pass(Call::Open)?;
        let inner = self.inner.open(path, how)?;
        Ok(Box::new(FaultFile { inner, disk: self.clone(), path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass(Call::Rename)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass(Call::Remove)?;
        self.inner.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.pass(Call::SyncDir)?;
        self.inner.sync_dir(dir)
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        self.pass(Call::Space)?;
        self.inner.space(dir)
    }
}

struct FaultFile {
    inner: Box<dyn DiskFile>,
    disk: FaultDisk,
    path: PathBuf,
}

impl DiskFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.pass(Call::Read)?;
        let end = offset + buf.len() as u64;
        let hits = |(path, bytes): &(PathBuf, Range<u64>)| {
            *path == self.path && bytes.start < end && offset < bytes.end
        };
        if self.disk.with(|s| s.spoiled.iter().any(hits)) {
            return Err(io::Error::other("a bad sector"));
        }
        self.inner.read_at(buf, offset)
    }

    /// A failing write leaves half of its bytes behind.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.disk.pass(Call::Write) {
            self.inner.write_all_at(&data[..data.len() / 2], offset)?;
            return Err(error);
        }
        self.inner.write_all_at(data, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.pass(Call::Len)?;
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.pass(Call::SetLen)?;
        self.inner.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.pass(Call::Allocate)?;
        self.inner.allocate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.pass(Call::SyncData)?;
        self.inner.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.disk.pass(Call::SyncAll)?;
        self.inner.sync_all()
    }
}
