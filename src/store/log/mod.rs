//! The log: append-only segment files of CRC-framed records. The truth.

pub mod appender;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub segment: u32,
    pub offset: u32,
    /// Of the whole frame.
    pub len: u32,
}
