//! Opening the index, and doubting it: whatever is not certainly right is moved aside and built anew
//! from the log.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::ids::WithIds;
use super::keys::{self, FORMAT, Position, Session};
use super::memory::MemoryKv;
use super::packed::Packed;
use super::sled::SledKv;
use super::{Kv, KvError, apply};
use crate::clock::BootId;
use crate::delivery::Seq;
use crate::store::log::LogReader;

/// Where the index lives.
#[derive(Clone)]
pub enum Home {
    Sled(PathBuf),
    Memory(MemoryKv),
    /// In memory, in pages as on disk: for the simulator.
    Pages(MemoryKv),
}

/// What the log says that an index must agree with.
#[derive(Clone, Copy, Debug)]
pub struct LogState {
    pub first: Seq,
    pub next: Seq,
}

pub struct OpenIndex {
    pub kv: Arc<dyn Kv>,
    pub position: Position,
    /// Why it begins anew.
    pub doubt: Option<String>,
}

impl Home {
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self) -> Result<Arc<dyn Kv>, KvError> {
        Ok(match self {
            Home::Sled(dir) => Arc::new(WithIds::over(Packed::over(SledKv::open(dir)?)?)?),
            Home::Memory(kv) => Arc::new(kv.clone()),
            Home::Pages(kv) => Arc::new(WithIds::over(Packed::over(kv.clone())?)?),
        })
    }

    /// Keeps one doubtful index, the newest, for whoever wants to know what happened.
    fn set_aside(&self) -> io::Result<()> {
        match self {
            Home::Sled(dir) => {
                let aside = dir.with_extension("aside");
                unless_missing(fs::remove_dir_all(&aside))?;
                unless_missing(fs::rename(dir, &aside))
            }
            Home::Memory(kv) | Home::Pages(kv) => {
                kv.clear();
                Ok(())
            }
        }
    }

    /// The index if it can be trusted, else an empty one.
    ///
    /// # Errors
    /// Not even an empty one can be made.
    pub fn open_or_begin(
        &self,
        reader: &LogReader,
        log: LogState,
        boot_id: BootId,
    ) -> Result<OpenIndex, KvError> {
        self.discard_copy();
        match self.open().and_then(|kv| trusted(kv, reader, log, boot_id)) {
            Ok((kv, Some(position))) => mark(kv, position, boot_id, None),
            Ok((kv, None)) => {
                mark(kv, beginning(reader, log)?, boot_id, Some("there was none".to_owned()))
            }
            Err(doubt) => self.begin(reader, log, boot_id, doubt.0),
        }
    }

    /// An empty index; the one that was there is moved aside.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn begin(
        &self,
        reader: &LogReader,
        log: LogState,
        boot_id: BootId,
        doubt: String,
    ) -> Result<OpenIndex, KvError> {
        self.set_aside().map_err(|e| KvError(format!("index: cannot be moved aside: {e}")))?;
        let kv = self.open()?;
        let position = beginning(reader, log)?;
        mark(kv, position, boot_id, Some(doubt))
    }
}

pub(super) fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// From here on a crash of the machine makes the index doubtful, until it is closed.
fn mark(
    kv: Arc<dyn Kv>,
    position: Position,
    boot_id: BootId,
    doubt: Option<String>,
) -> Result<OpenIndex, KvError> {
    write_session(&*kv, Session { boot_id, clean: false })?;
    kv.sync()?;
    Ok(OpenIndex { kv, position, doubt })
}

/// # Errors
/// The index is broken.
pub fn write_session(kv: &dyn Kv, session: Session) -> Result<(), KvError> {
    kv.apply(vec![(keys::META_SESSION.to_vec(), Some(keys::to_value(&session)?))])
}

/// The position before the oldest record.
///
/// # Errors
/// The log's folder cannot be read.
pub fn beginning(reader: &LogReader, log: LogState) -> Result<Position, KvError> {
    let first = reader.first_position().map_err(|e| KvError(format!("log: {e}")))?;
    let (segment, offset) = first.unwrap_or((1, 0));
    Ok(Position {
        format: FORMAT,
        applied: log.first.saturating_sub(1),
        segment,
        offset: offset.into(),
        last: None,
    })
}

/// The index as it is with its position, or none in an empty one.
fn trusted(
    kv: Arc<dyn Kv>,
    reader: &LogReader,
    log: LogState,
    boot_id: BootId,
) -> Result<(Arc<dyn Kv>, Option<Position>), KvError> {
    let doubt = |why: &str| Err(KvError(why.to_owned()));
    let Some(position) = kv.get(keys::META_POSITION)? else {
        return if kv.range(&[], &[u8::MAX], 1)?.is_empty() {
            Ok((kv, None))
        } else {
            doubt("it knows no position")
        };
    };
    let position: Position = keys::from_value(&position)?;
    if position.format != FORMAT {
        return doubt("it has another format");
    }
    let session: Option<Session> =
        kv.get(keys::META_SESSION)?.as_deref().map(keys::from_value).transpose()?;
    match session {
        Some(session) if session.clean || session.boot_id == boot_id => {}
        _ => return doubt("the machine stopped without closing it"),
    }
    if position.applied >= log.next || position.applied + 1 < log.first {
        return doubt("it does not belong to this log");
    }
    if let Some((place, time)) = position.last {
        match reader.read(position.applied, place.into()) {
            Ok(frame) if frame.time == time => {}
            _ => return doubt("it does not agree with the log"),
        }
    }
    if let Some(missing) = kv.missing() {
        let after = missing.after.map_or_else(|| beginning(reader, log), Ok)?;
        apply::refill(kv.clone(), reader, after, missing.upto)?;
    }
    Ok((kv, Some(position)))
}
