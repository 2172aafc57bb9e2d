//! The log: append-only segment files of CRC-framed records. The truth.

pub mod appender;
pub mod frame;
mod order;
mod queue;
pub mod reader;
mod recover;
pub mod request;
mod segment;
#[cfg(test)]
mod tests;
pub mod writer;

use std::fmt;
use std::io;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::delivery::Seq;

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

pub use appender::{Appender, AppenderCore, LogHealth, LogProgress, Pulse, Receipt};
pub use order::put_in_order;
pub use queue::Limits;
pub use reader::{LogReader, Scan, ScanItem};
pub use request::{Priority, Told};
pub use writer::LogWriter;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// How large a segment file grows: 1 MiB to 64 MiB. (Tests use less.)
    pub segment_bytes: u32,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { segment_bytes: 16 * 1024 * 1024 }
    }
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub segment: u32,
    pub offset: u32,
    /// Of the whole frame.
    pub len: u32,
}

/// A record as it was read, its checksums verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub seq: Seq,
    /// Schedule time.
    pub time: Timestamp,
    pub kind: u8,
    pub payload: Bytes,
    pub place: Place,
}

/// A stretch of a segment that does not read as records. `first > last`: no number is known to be lost
/// with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub segment: u32,
    pub offset: u64,
    /// 0: nothing unreadable lies here, the numbers are just missing.
    pub bytes: u64,
    pub first: Seq,
    pub last: Seq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub number: u32,
    /// `None` while the segment holds no record.
    pub first: Option<Seq>,
    pub last: Option<Seq>,
    pub bytes: u64,
    pub sealed: bool,
}

/// What was found on opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The oldest record's number; equal to `next` where there is none.
    pub first: Seq,
    pub next: Seq,
    /// Cut off at the end: writes that were never acknowledged.
    pub torn_bytes: u64,
    pub damage: Vec<Damage>,
    /// Segments had changed places and were put back.
    pub reordered: bool,
    /// The latest schedule time that a record carries.
    pub high_water: Timestamp,
}

#[derive(Debug)]
pub enum LogError {
    Io(io::Error),
    /// Written by a later release.
    NewerFormat {
        segment: u32,
        version: u8,
    },
    /// One line: what and where.
    Corrupt(String),
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> LogError {
        LogError::Io(error)
    }
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Io(error) if error.raw_os_error() == Some(EIO) => write!(
                f,
                "log: {error}; the disk fails: take a copy of what can be read, then `bluehook store \
                 repair` salvages it"
            ),
            LogError::Io(error) => write!(f, "log: {error}"),
            LogError::NewerFormat { segment, version } => write!(
                f,
                "log segment {segment} has format version {version}, newer than this release reads; \
                 install the release that wrote it"
            ),
            LogError::Corrupt(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for LogError {}
