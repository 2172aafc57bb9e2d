//! A disk in memory that can lose power: what was not synced survives in pieces, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, Open, Space};

const SECTOR: usize = 512;
/// Reported as the size of a disk without a limit.
const UNLIMITED: u64 = 1 << 40;

/// Cheap to clone; all clones are the same disk.
#[derive(Clone, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<u64, Node>,
    live: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    /// Changes of names that no `sync_dir` has made durable yet, oldest first.
    renames: Vec<NameChange>,
    next_node: u64,
    capacity: Option<u64>,
    sync_lies: bool,
    sync_fails: bool,
    /// Raised by a crash: handles from before are dead.
    power_cycle: u64,
}

struct NameChange {
    dirs: Vec<PathBuf>,
    entries: Vec<(PathBuf, Option<u64>)>,
}

#[derive(Default)]
struct Node {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Node {
    fn touch(&mut self, from: usize, to: usize) {
        if from < to {
            self.dirty.extend(from / SECTOR..=(to - 1) / SECTOR);
        }
    }

    fn resize(&mut self, len: usize) {
        let old = self.live.len();
        self.live.resize(len, 0);
        self.touch(old.min(len), old.max(len));
    }

    fn sync(&mut self) {
        self.durable.resize(self.live.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            copy_sector(&self.live, &mut self.durable, sector);
        }
    }

    /// Keeps a random choice of what was not synced: either length, any of the dirty sectors.
    fn crash(&mut self, rng: &mut fastrand::Rng) {
        let mut kept = self.durable.clone();
        if rng.bool() {
            kept.resize(self.live.len(), 0);
        }
        for &sector in &self.dirty {
            if rng.bool() {
                copy_sector(&self.live, &mut kept, sector);
            }
        }
        self.dirty.clear();
        self.live.clone_from(&kept);
        self.durable = kept;
    }
}

fn copy_sector(from: &[u8], to: &mut [u8], sector: usize) {
    let start = sector * SECTOR;
    let end = (start + SECTOR).min(from.len()).min(to.len());
    if start < end {
        to[start..end].copy_from_slice(&from[start..end]);
    }
}

impl State {
    fn used(&self) -> u64 {
        self.live.values().filter_map(|id| self.nodes.get(id)).map(|n| n.live.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        self.capacity.unwrap_or(UNLIMITED).saturating_sub(self.used())
    }

    fn change(&mut self, dirs: Vec<PathBuf>, entries: Vec<(PathBuf, Option<u64>)>) {
        apply(&mut self.live, &entries);
        self.renames.push(NameChange { dirs, entries });
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, entries: &[(PathBuf, Option<u64>)]) {
    for (path, node) in entries {
        match node {
            Some(id) => names.insert(path.clone(), *id),
            None => names.remove(path),
        };
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

impl MemDisk {
    #[must_use]
    pub fn new() -> MemDisk {
        MemDisk::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes fit; `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// A broken device for the test of the test: `sync_data` answers and does nothing.
    pub fn set_sync_lies(&self, lies: bool) {
        self.lock().sync_lies = lies;
    }

    /// The next sync of a file fails as Linux fails one: what it should have written still reads well and
    /// counts as written, though it never reached the device.
    pub fn set_sync_fails(&self, fails: bool) {
        self.lock().sync_fails = fails;
    }

    /// Power off and on: un-synced sectors, lengths and names each survive by the toss of a coin.
    /// Files opened before fail from now on.
    pub fn crash(&self, rng: &mut fastrand::Rng) {
        let mut state = self.lock();
        let state = &mut *state;
        state.power_cycle += 1;
        for change in std::mem::take(&mut state.renames) {
            if rng.bool() {
                apply(&mut state.durable, &change.entries);
            }
        }
        state.live.clone_from(&state.durable);
        let named: BTreeSet<u64> = state.live.values().copied().collect();
        state.nodes.retain(|id, _| named.contains(id));
        for node in state.nodes.values_mut() {
            node.crash(rng);
        }
    }

    /// The bytes of a file as they read now.
    #[must_use]
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock();
        state.live.get(path).and_then(|id| state.nodes.get(id)).map(|n| n.live.clone())
    }

    /// Rot: changes a file behind everyone's back, durably.
    pub fn corrupt(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(node) = state.live.get(path).and_then(|id| state.nodes.get_mut(id)) {
            change(&mut node.live);
            node.dirty.clear();
            node.durable.clone_from(&node.live);
        }
    }
}

impl Disk for MemDisk {
    /// Folders are not modelled: they exist, durably.
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        let inside = state.live.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        let node = match (state.live.get(path), how) {
            (Some(_), Open::CreateNew) => {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            (Some(&id), _) => id,
            (None, Open::CreateNew) => {
                let id = state.next_node;
                state.next_node += 1;
                state.nodes.insert(id, Node::default());
                state.change(vec![parent(path)], vec![(path.to_owned(), Some(id))]);
                id
            }
            (None, _) => return Err(not_found(path)),
        };
        let power_cycle = state.power_cycle;
        Ok(Box::new(MemFile { disk: self.clone(), node, power_cycle }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let node = *state.live.get(from).ok_or_else(|| not_found(from))?;
        let entries = vec![(from.to_owned(), None), (to.to_owned(), Some(node))];
        state.change(vec![parent(from), parent(to)], entries);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if !state.live.contains_key(path) {
            return Err(not_found(path));
        }
        state.change(vec![parent(path)], vec![(path.to_owned(), None)]);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        let (synced, left) = std::mem::take(&mut state.renames)
            .into_iter()
            .partition(|change| change.dirs.iter().any(|d| d == dir));
        state.renames = left;
        let synced: Vec<NameChange> = synced;
        for change in &synced {
            apply(&mut state.durable, &change.entries);
        }
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.lock();
        Ok(Space { total: state.capacity.unwrap_or(UNLIMITED), free: state.free() })
    }
}

struct MemFile {
    disk: MemDisk,
    node: u64,
    power_cycle: u64,
}

impl MemFile {
    fn with<T>(&self, act: impl FnOnce(&mut Node, &Room) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.lock();
        let room = Room { free: state.free(), sync_lies: state.sync_lies };
        if state.power_cycle != self.power_cycle {
            return Err(io::Error::other("the power went off since this file was opened"));
        }
        match state.nodes.get_mut(&self.node) {
            Some(node) => act(node, &room),
            None => Err(io::Error::other("the file is gone")),
        }
    }
}

impl MemFile {
    fn sync(&self, only_data: bool) -> io::Result<()> {
        let fails = std::mem::take(&mut self.disk.lock().sync_fails);
        self.with(|node, room| {
            if fails {
                node.dirty.clear();
                return Err(io::Error::other("the device did not take the data"));
            }
            if !(only_data && room.sync_lies) {
                node.sync();
            }
            Ok(())
        })
    }
}

struct Room {
    free: u64,
    sync_lies: bool,
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn storage_full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl DiskFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|node, _| {
            let start = index(offset).min(node.live.len());
            let n = buf.len().min(node.live.len() - start);
            buf[..n].copy_from_slice(&node.live[start..start + n]);
            Ok(n)
        })
    }

    /// On a full disk the part that fits is written, as on a real one.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.with(|node, room| {
            let start = index(offset);
            let fits = (node.live.len() + index(room.free)).saturating_sub(start).min(data.len());
            let end = start + fits;
            if end > node.live.len() {
                node.resize(end);
            }
            node.live[start..end].copy_from_slice(&data[..fits]);
            node.touch(start, end);
            if fits < data.len() { Err(storage_full()) } else { Ok(()) }
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|node, _| Ok(node.live.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|node, _| {
            node.resize(index(len));
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|node, room| {
            let more = len.saturating_sub(node.live.len() as u64);
            if more > room.free {
                return Err(storage_full());
            }
            if more > 0 {
                node.resize(index(len));
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(true)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/d/f";

    fn written_and_synced(data: &[u8]) -> (MemDisk, Box<dyn DiskFile>) {
        let disk = MemDisk::new();
        let file = disk.open(Path::new(PATH), Open::CreateNew).unwrap();
        file.write_all_at(data, 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        (disk, file)
    }

    #[test]
    fn what_was_synced_survives_every_crash() {
        for seed in 0..50 {
            let (disk, file) = written_and_synced(&[7; 2000]);
            file.write_all_at(&[8; 2000], 2000).unwrap();
            disk.crash(&mut fastrand::Rng::with_seed(seed));
            let kept = disk.bytes(Path::new(PATH)).unwrap();
            assert_eq!(&kept[..2000], &[7; 2000], "seed {seed}");
            assert!(file.len().is_err(), "an old handle is dead");
        }
    }

    #[test]
    fn what_was_not_synced_survives_in_pieces_in_any_order() {
        let mut later_without_earlier = false;
        let mut name_lost = false;
        for seed in 0..200 {
            let (disk, file) = written_and_synced(&[0; 4096]);
            file.write_all_at(&[8; 4096], 0).unwrap();
            disk.open(Path::new("/d/g"), Open::CreateNew).unwrap();
            disk.crash(&mut fastrand::Rng::with_seed(seed));
            let kept = disk.bytes(Path::new(PATH)).unwrap();
            later_without_earlier |= kept[0] == 0 && kept[4095] == 8;
            name_lost |= disk.list(Path::new("/d")).unwrap() == ["f"];
        }
        assert!(later_without_earlier && name_lost);
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_then_refuses() {
        let (disk, file) = written_and_synced(&[1; 100]);
        disk.set_capacity(Some(150));
        let error = file.write_all_at(&[2; 100], 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 150);
        assert_eq!(disk.space(Path::new("/d")).unwrap().free, 0);
    }
}
