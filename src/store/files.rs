//! The small files beside the log: the lock, the format version, the timeline.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::OpenError;
use super::disk::{Disk, Open};
use crate::clock::{BootId, KeptTimeline, Timeline};

const LOCK: &str = "lock";
const VERSION: &str = "store-version";
const TIMELINE: &str = "timeline";
const FORMAT: u32 = 1;
const SMALL_BYTES: usize = 256;
/// What is ours has no deeper folders.
const LINK_DEPTH_MAX: usize = 4;

#[must_use]
pub fn log_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("log")
}

#[must_use]
pub fn index_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("index")
}

fn failed(what: &str, path: &Path, error: &io::Error) -> OpenError {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "; check its owner and permissions",
        _ => "",
    };
    OpenError::Other(format!("{what} {}: {error}{hint}", path.display()))
}

/// Creates the data directory for its owner alone, and holds it for this process.
pub fn lock(data_dir: &Path) -> Result<File, OpenError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(|e| failed("cannot create the data directory", data_dir, &e))?;
    close_to_others(data_dir)?;
    let path = data_dir.join(LOCK);
    refuse_links(data_dir, LINK_DEPTH_MAX)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| failed("cannot write in the data directory", data_dir, &e))?;
    take(&mut file, FlockOperation::NonBlockingLockExclusive)?;
    let pid = format!("{}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(pid.as_bytes()))
        .map_err(|e| failed("cannot write", &path, &e))?;
    Ok(file)
}

/// What an administrator made by hand is often open to all.
fn close_to_others(data_dir: &Path) -> Result<(), OpenError> {
    let failed = |e: io::Error| failed("cannot close to other users", data_dir, &e);
    let mut permissions = std::fs::metadata(data_dir).map_err(failed)?.permissions();
    let mode = permissions.mode();
    if mode & 0o077 != 0 {
        permissions.set_mode(mode & !0o077);
        std::fs::set_permissions(data_dir, permissions).map_err(failed)?;
        tracing::info!(dir = %data_dir.display(), "closed the data directory to other users");
    }
    Ok(())
}

/// Whoever could once write here may have left a link that leads our writes elsewhere. `data_dir` itself may be one: its
/// owner chose it.
fn refuse_links(dir: &Path, depth: usize) -> Result<(), OpenError> {
    let entries = match std::fs::read_dir(dir) {
        // lost+found, which is root's.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        entries => entries.map_err(|e| failed("cannot read", dir, &e))?,
    };
    for entry in entries {
        let entry = entry.map_err(|e| failed("cannot read", dir, &e))?;
        let path = entry.path();
        // Somebody's socket or partial file may be gone again.
        let Ok(meta) = entry.metadata() else { continue };
        let kind = meta.file_type();
        let (what, remedy) = if kind.is_symlink() {
            ("a symbolic link", "put what it points to in its place, or move the whole data_dir")
        } else if kind.is_file() && meta.nlink() > 1 {
            ("a hard link, the file having another name", "make a copy of its own of it")
        } else {
            if kind.is_dir() && depth > 0 {
                refuse_links(&path, depth - 1)?;
            }
            continue;
        };
        return Err(OpenError::Other(format!("{} is {what}; {remedy}", path.display())));
    }
    Ok(())
}

/// For reading a store that nobody runs on, without changing anything.
pub fn lock_shared(data_dir: &Path) -> Result<Option<File>, OpenError> {
    let mut file = match File::open(data_dir.join(LOCK)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|e| failed("cannot read the data directory", data_dir, &e))?,
    };
    take(&mut file, FlockOperation::NonBlockingLockShared)?;
    Ok(Some(file))
}

fn take(file: &mut File, how: FlockOperation) -> Result<(), OpenError> {
    match flock(&*file, how) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let read = file.read_to_string(&mut text);
            Err(OpenError::Locked { pid: read.ok().and_then(|_| text.trim().parse().ok()) })
        }
        Err(e) => Err(OpenError::Other(format!("cannot lock the data directory: {e}"))),
    }
}

/// Notes the format in a new store; refuses one that a later release made.
pub fn check_version(disk: &dyn Disk, data_dir: &Path) -> Result<(), OpenError> {
    match read_version(disk, data_dir)? {
        Some(_) => Ok(()),
        None => write_small(disk, data_dir, VERSION, &format!("{FORMAT}\n"))
            .map_err(|e| failed("cannot write in the data directory", data_dir, &e)),
    }
}

pub fn read_version(disk: &dyn Disk, data_dir: &Path) -> Result<Option<u32>, OpenError> {
    let path = data_dir.join(VERSION);
    let text = read_small(disk, &path).map_err(|e| failed("cannot read", &path, &e))?;
    let Some(text) = text else { return Ok(None) };
    match text.trim().parse() {
        Ok(version) if version <= FORMAT => Ok(Some(version)),
        Ok(version) => Err(OpenError::Other(format!(
            "the store in {} has format {version}, newer than this release reads ({FORMAT}); install \
             the release that wrote it",
            data_dir.display()
        ))),
        // A crash before the first sync; the log itself says what it is.
        Err(_) => Ok(None),
    }
}

/// # Errors
/// It cannot be read just now. Going on without it would let a jump of the wall clock change delays.
pub fn read_timeline(disk: &dyn Disk, data_dir: &Path) -> Result<Option<KeptTimeline>, OpenError> {
    let path = data_dir.join(TIMELINE);
    let text = read_small(disk, &path).map_err(|e| failed("cannot read", &path, &e))?;
    Ok(text.as_deref().and_then(parse_timeline))
}

fn parse_timeline(text: &str) -> Option<KeptTimeline> {
    let mut words = text.split_whitespace();
    let boot_id = BootId::from_str_radix(words.next()?, 16).ok()?;
    let timeline = Timeline { boot_id, offset_ms: words.next()?.parse().ok()? };
    Some(KeptTimeline { timeline, wall_ahead_ms: words.next().unwrap_or("0").parse().ok()? })
}

/// Written before anything is scheduled by it, so that a restart in the same boot goes on with it.
pub fn write_timeline(
    disk: &dyn Disk,
    data_dir: &Path,
    kept: KeptTimeline,
) -> Result<(), OpenError> {
    let KeptTimeline { timeline: Timeline { boot_id, offset_ms }, wall_ahead_ms } = kept;
    let text = format!("{boot_id:032x} {offset_ms} {wall_ahead_ms}\n");
    write_small(disk, data_dir, TIMELINE, &text)
        .map_err(|e| failed("cannot write in the data directory", data_dir, &e))
}

fn read_small(disk: &dyn Disk, path: &Path) -> io::Result<Option<String>> {
    let file = match disk.open(path, Open::Read) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = vec![0; SMALL_BYTES];
    let got = file.read_at(&mut bytes, 0)?;
    bytes.truncate(got);
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The old content or the new one, whatever happens meanwhile.
fn write_small(disk: &dyn Disk, dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = dir.join(name);
    let new = dir.join(format!("{name}.new"));
    let _left_over = disk.remove(&new);
    let file = disk.open(&new, Open::CreateNew)?;
    file.write_all_at(text.as_bytes(), 0)?;
    file.sync_all()?;
    drop(file);
    disk.rename(&new, &path)?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::disk::{Call, Fault, FaultDisk, MemDisk};

    #[test]
    fn a_timeline_that_cannot_be_read_is_not_taken_for_none() {
        let disk = FaultDisk::new(Arc::new(MemDisk::new()));
        let (dir, timeline) = (Path::new("/data"), Timeline { boot_id: 7, offset_ms: -3 });
        let timeline = KeptTimeline { timeline, wall_ahead_ms: 9 };
        assert_eq!(read_timeline(&disk, dir), Ok(None));
        write_timeline(&disk, dir, timeline).unwrap();
        let error = io::ErrorKind::Other;
        disk.fail(Fault { call: Some(Call::Read), nth: 1, error, sticky: false });
        assert!(read_timeline(&disk, dir).is_err());
        assert_eq!(read_timeline(&disk, dir), Ok(Some(timeline)));
    }
}
