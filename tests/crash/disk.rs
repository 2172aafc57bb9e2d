//! Real block devices under a real ext4 file system: one whose power can be cut.
//!
//! The device is a loop device over a FUSE file, which this process serves. As in a disk with a volatile write
//! cache, a write is only there for good once a flush has followed it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

const SECTOR: usize = 512;
const PAGE: usize = 4096;
const DISK: INodeNo = INodeNo(2);
const DISK_NAME: &str = "disk.img";

/// Whether block devices can be made here; says so if not.
pub fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    assert!(can || std::env::var_os("CI").is_none(), "needs root and /dev/fuse");
    if !can {
        println!("LEFT OUT: needs root and /dev/fuse");
    }
    can
}

pub fn run(command: &str, arguments: &[&OsStr]) -> String {
    let output = Command::new(command).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An empty ext4 file system in a file.
pub fn make_ext4(image: &Path, bytes: u64) {
    std::fs::File::create(image).unwrap().set_len(bytes).unwrap();
    // Blocks as on a disk of usual size, on which a page that can't be read lies in one file. And without the
    // lazy work in the background, which would write at moments of its own.
    let options = "lazy_itable_init=0,lazy_journal_init=0";
    run(
        "mke2fs",
        &[
            "-q".as_ref(),
            "-t".as_ref(),
            "ext4".as_ref(),
            "-b".as_ref(),
            "4096".as_ref(),
            "-E".as_ref(),
            options.as_ref(),
            image.as_ref(),
        ],
    );
}

/// A file system in a file or device, mounted as long as this lives.
pub struct Mounted {
    device: String,
    pub at: PathBuf,
}

impl Mounted {
    pub fn new(image: &Path, at: &Path) -> Mounted {
        std::fs::create_dir_all(at).unwrap();
        let device = run("losetup", &["-f".as_ref(), "--show".as_ref(), image.as_ref()]);
        let mounted = Mounted { device, at: at.to_owned() };
        run("mount", &["-o".as_ref(), "noatime".as_ref(), mounted.device.as_ref(), at.as_ref()]);
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a process that a failed test left may still be in there.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

/// A disk of which only what was flushed survives a power cut.
pub struct VolatileDisk {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    at: PathBuf,
}

struct State {
    /// What a power cut leaves.
    durable: Vec<u8>,
    /// What reads see.
    current: Vec<u8>,
    /// Writes since the last flush, oldest first.
    unflushed: Vec<(usize, Vec<u8>)>,
    /// From the cut on, until power is back.
    off: bool,
    /// Every write and flush fails, as on a medium that is worn out.
    worn: bool,
    /// A byte whose page can't be read.
    bad: Vec<usize>,
}

/// What a power cut found.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub unflushed: usize,
    pub kept: usize,
}

impl VolatileDisk {
    /// One that holds an empty file system.
    pub fn with_ext4(folder: &Path, bytes: u64) -> VolatileDisk {
        let image = folder.join("empty.img");
        make_ext4(&image, bytes);
        let durable = std::fs::read(&image).unwrap();
        let at = folder.join("fuse");
        std::fs::create_dir_all(&at).unwrap();
        let state = State {
            current: durable.clone(),
            durable,
            unflushed: Vec::new(),
            off: false,
            worn: false,
            bad: vec![],
        };
        let state = Arc::new(Mutex::new(state));
        let served = Served(Arc::clone(&state));
        let session = fuser::spawn_mount(served, &at, &Config::default()).unwrap();
        VolatileDisk { state, session: Some(session), at }
    }

    pub fn image(&self) -> PathBuf {
        self.at.join(DISK_NAME)
    }

    pub fn holds_unflushed(&self) -> bool {
        !self.state.lock().unwrap().unflushed.is_empty()
    }

    /// Of the writes not yet flushed each survives with probability `keep`, one in ten of these in part.
    pub fn cut_power(&self, keep: f64, rng: &mut fastrand::Rng) -> Cut {
        let mut state = self.state.lock().unwrap();
        let unflushed = std::mem::take(&mut state.unflushed);
        let mut cut = Cut { unflushed: unflushed.len(), kept: 0 };
        for (at, data) in unflushed {
            if rng.f64() >= keep {
                continue;
            }
            cut.kept += 1;
            let sectors = data.len() / SECTOR;
            let whole = sectors < 2 || rng.usize(0..10) != 0;
            let len = if whole { data.len() } else { rng.usize(1..sectors) * SECTOR };
            state.durable[at..at + len].copy_from_slice(&data[..len]);
        }
        state.off = true;
        cut
    }

    pub fn wear_out(&self, worn: bool) {
        self.state.lock().unwrap().worn = worn;
    }

    /// The page that holds `text` can't be read from now on.
    pub fn spoil(&self, text: &[u8]) {
        let mut state = self.state.lock().unwrap();
        let at = state.current.windows(text.len()).position(|w| w == text);
        state.bad.push(at.expect("the text is on the disk"));
    }

    pub fn restore_power(&self) {
        let mut state = self.state.lock().unwrap();
        state.current = state.durable.clone();
        state.unflushed.clear();
        state.off = false;
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        drop(self.session.take());
    }
}

struct Served(Arc<Mutex<State>>);

impl Served {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let folder = ino == INodeNo::ROOT;
        let size = if folder { 0 } else { self.0.lock().unwrap().current.len() as u64 };
        FileAttr {
            ino,
            size,
            blocks: size / SECTOR as u64,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

const FOREVER: Duration = Duration::from_secs(1 << 20);

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == DISK_NAME {
            reply.entry(&FOREVER, &self.attributes(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Every write comes here at once: the kernel's cache would be a second, unasked one.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock().unwrap();
        if state.off {
            return reply.error(Errno::EIO);
        }
        let from = usize::try_from(offset).unwrap().min(state.current.len());
        let to = (from + size as usize).min(state.current.len());
        let page = |at: usize| at / PAGE * PAGE..(at / PAGE + 1) * PAGE;
        let mut bad = state.bad.iter().map(|at| page(*at));
        if bad.any(|bad| from < bad.end && bad.start < to) {
            return reply.error(Errno::EIO);
        }
        reply.data(&state.current[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock().unwrap();
        if state.off || state.worn {
            return reply.error(Errno::EIO);
        }
        let at = usize::try_from(offset).unwrap();
        state.current[at..at + data.len()].copy_from_slice(data);
        state.unflushed.push((at, data.to_vec()));
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.lock().unwrap();
        if state.off || state.worn {
            return reply.error(Errno::EIO);
        }
        for (at, data) in std::mem::take(&mut state.unflushed) {
            state.durable[at..at + data.len()].copy_from_slice(&data);
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
