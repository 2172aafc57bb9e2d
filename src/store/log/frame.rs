//! The codec of a frame: a fixed header, then the payload. Pure.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic |
//! | 4 | version |
//! | 5 | kind |
//! | 6..8 | zero |
//! | 8..12 | payload length |
//! | 12..20 | seq |
//! | 20..28 | schedule time, ms |
//! | 28..32 | `durable_back` |
//! | 32..36 | log id |
//! | 36..40 | crc32c of the payload |
//! | 40..44 | crc32c of bytes 0..40 |
//!
//! Little-endian. The log id is random, one per log: text in a payload that looks like a frame can't
//! pass for one when a reader looks for the next frame after damage.

use crate::clock::Timestamp;
use crate::defect::{self, Defect};
use crate::delivery::Seq;

pub const HEADER_BYTES: usize = 44;
pub const VERSION: u8 = 1;
/// A longer length in a header is damage.
pub const PAYLOAD_BYTES_MAX: usize = 32 * 1024 * 1024;

const MAGIC: [u8; 4] = [0xb1, b'H', b'k', 0x0f];
pub(super) const FIRST_BYTE: u8 = MAGIC[0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub payload_bytes: u32,
    pub seq: Seq,
    pub time: Timestamp,
    /// `seq` minus the highest record known to be durable when this one was encoded. Recovery tells by
    /// it whether a hole was acknowledged (damage) or never could have been (a torn tail).
    pub durable_back: u32,
    pub log_id: u32,
    pub payload_crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFrame {
    Invalid,
    /// An intact header of a later format.
    Newer(u8),
}

impl Header {
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.payload_bytes as usize
    }

    /// The highest record that this frame says was durable.
    #[must_use]
    pub fn durable(&self) -> Seq {
        // The largest value stands for "that or more".
        if self.durable_back == u32::MAX {
            return 0;
        }
        self.seq.saturating_sub(u64::from(self.durable_back))
    }

    #[must_use]
    pub fn matches(&self, payload: &[u8]) -> bool {
        let intact = defect::has(Defect::NoChecksum) || crc32c::crc32c(payload) == self.payload_crc;
        payload.len() == self.payload_bytes as usize && intact
    }

    /// # Errors
    /// `bytes` does not begin with an intact header of this format.
    pub fn decode(bytes: &[u8]) -> Result<Header, NoFrame> {
        let Some((head, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(NoFrame::Invalid);
        };
        let intact =
            defect::has(Defect::NoChecksum) || crc32c::crc32c(&head[..40]) == u32_at(head, 40);
        if head[..4] != MAGIC || !intact {
            return Err(NoFrame::Invalid);
        }
        if head[4] > VERSION {
            return Err(NoFrame::Newer(head[4]));
        }
        let header = Header {
            kind: head[5],
            payload_bytes: u32_at(head, 8),
            seq: u64_at(head, 12),
            time: Timestamp(u64_at(head, 20).cast_signed()),
            durable_back: u32_at(head, 28),
            log_id: u32_at(head, 32),
            payload_crc: u32_at(head, 36),
        };
        let sane = head[4] == VERSION
            && head[6..8] == [0, 0]
            && header.seq > 0
            && header.payload_bytes as usize <= PAYLOAD_BYTES_MAX;
        if sane { Ok(header) } else { Err(NoFrame::Invalid) }
    }
}

/// What the writer knows of a frame besides its payload.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    pub log_id: u32,
    pub seq: Seq,
    pub time: Timestamp,
    pub kind: u8,
    pub durable: Seq,
}

/// Appends the frame to `out`.
pub fn encode(out: &mut Vec<u8>, stamp: Stamp, payload: &[u8]) {
    let start = out.len();
    let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let durable_back = u32::try_from(stamp.seq.saturating_sub(stamp.durable)).unwrap_or(u32::MAX);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, stamp.kind, 0, 0]);
    out.extend_from_slice(&payload_bytes.to_le_bytes());
    out.extend_from_slice(&stamp.seq.to_le_bytes());
    out.extend_from_slice(&stamp.time.0.to_le_bytes());
    out.extend_from_slice(&durable_back.to_le_bytes());
    out.extend_from_slice(&stamp.log_id.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(b)
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let stamp = Stamp {
            log_id: 0xdead_beef,
            seq: 7,
            time: Timestamp(1_790_000_000_123),
            kind: 3,
            durable: 5,
        };
        let mut out = Vec::new();
        encode(&mut out, stamp, payload);
        out
    }

    fn valid(bytes: &[u8]) -> bool {
        Header::decode(bytes).is_ok_and(|h| h.matches(&bytes[HEADER_BYTES..]))
    }

    #[test]
    fn the_bytes_of_a_frame_never_change() {
        assert_eq!(hex::encode(frame(b"hello")), GOLDEN);
    }

    const GOLDEN: &str = concat!(
        "b1486b0f010300000500000007000000000000007b6c50c4a001000002000000efbeadde",
        "4cbb719a03e4ac0168656c6c6f"
    );

    #[test]
    fn a_frame_reads_back_as_it_was_written() {
        let bytes = frame(b"hello");
        let header = Header::decode(&bytes).unwrap();
        assert_eq!((header.kind, header.seq, header.durable()), (3, 7, 5));
        assert_eq!(header.time, Timestamp(1_790_000_000_123));
        assert_eq!(header.frame_bytes(), bytes.len());
        assert!(header.matches(b"hello"));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for payload in [&b""[..], b"hello", &[0; 300]] {
            let good = frame(payload);
            assert!(valid(&good));
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(!valid(&bad), "bit {bit}");
            }
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let good = frame(b"hello");
        for len in 0..HEADER_BYTES {
            assert_eq!(Header::decode(&good[..len]), Err(NoFrame::Invalid));
        }
        for len in HEADER_BYTES..good.len() {
            assert!(!valid(&good[..len]));
        }
    }

    #[test]
    fn an_intact_header_of_a_later_format_is_told_apart_from_damage() {
        let mut bytes = frame(b"");
        bytes[4] = 2;
        assert_eq!(Header::decode(&bytes), Err(NoFrame::Invalid), "a flipped version is damage");
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Err(NoFrame::Newer(2)));
    }

    #[test]
    fn a_distance_too_large_for_its_field_claims_nothing() {
        let mut out = Vec::new();
        let stamp = Stamp { log_id: 1, seq: 1 << 40, time: Timestamp::ZERO, kind: 0, durable: 3 };
        encode(&mut out, stamp, b"");
        assert_eq!(Header::decode(&out).unwrap().durable(), 0);
    }
}
