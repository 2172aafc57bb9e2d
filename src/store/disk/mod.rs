//! The file operations that the store makes, as a trait: the real disk, one in memory that can lose
//! power, and one that fails on demand.

mod fault;
mod memory;
mod real;

use std::io;
use std::path::Path;

pub use fault::{Call, Fault, FaultDisk};
pub use memory::MemDisk;
pub use real::RealDisk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    Read,
    ReadWrite,
    /// Fails with `AlreadyExists`.
    CreateNew,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub free: u64,
}

pub trait Disk: Send + Sync + 'static {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Names of the regular files in `dir`, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

#[expect(clippy::len_without_is_empty, reason = "a file's length, not a collection's")]
pub trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// What is read next comes from the device, not from memory, and no more with it than was asked for. A hint.
    fn read_afresh(&self) {}
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space up to `len`; the file reads as zeros there.
    fn allocate(&self, len: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
    fn sync_all(&self) -> io::Result<()>;
}
