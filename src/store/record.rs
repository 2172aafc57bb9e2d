//! What is logged. Everything that changes state is one of these records first.

use std::fmt;

use bincode::{Decode, Encode};

use crate::clock::{Timeline, Timestamp};
use crate::delivery::{Attempt, Delivery, DeliveryKey, Generation, HandlerName, Seq, State};
use crate::event::{DedupKey, NewEvent, VerifiedBy};

/// The largest encoded record: a body at the largest configurable `body_max`, and its headers.
pub const RECORD_BYTES_MAX: usize = 20 * 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Record {
    Event(EventRecord),
    /// A known event arrived again.
    Repeat(RepeatRecord),
    /// Written (not necessarily synced) before the handler runs.
    AttemptStarted {
        key: DeliveryKey,
        generation: Generation,
        number: u32,
    },
    /// `next` is the state that `delivery::settle` gave.
    AttemptFinished {
        key: DeliveryKey,
        attempt: Attempt,
        next: State,
    },
    /// A person (or a rule) settled the delivery: dead → discarded.
    Discarded {
        key: DeliveryKey,
    },
    /// Run again: raises the generation, due at `due`. Creates the delivery where there is none.
    Replayed {
        key: DeliveryKey,
        due: Timestamp,
    },
    /// The handler is known from here on and considers events from `from`.
    HandlerSeen {
        handler: HandlerName,
        from: Seq,
    },
    /// Every event below `to` has been considered by the handler. Only ever moves on.
    HandlerMoved {
        handler: HandlerName,
        to: Seq,
    },
    HandlerPaused {
        handler: HandlerName,
        paused: bool,
    },
    /// A session began in this boot.
    Boot {
        timeline: Timeline,
    },
    /// A clean stop: everything before is durable.
    Stopped,
    /// An event whose segment is about to go, carried to the tail under its own number.
    Carried {
        seq: Seq,
        time: Timestamp,
        event: EventRecord,
        repeats: u32,
    },
    /// A delivery as it stood once record `as_of` was applied, with its history: carried forward, or
    /// imported. What happened to it later wins.
    Snapshot {
        delivery: Delivery,
        attempts: Vec<Attempt>,
        as_of: Seq,
        /// Of a follow-up: a hash of the conversation in which its timer is the only one of its rule.
        conversation: Option<u64>,
    },
    /// A handler as it stood once record `as_of` was applied, carried forward.
    HandlerCarried {
        handler: HandlerName,
        /// `None`: only deliveries of it are known.
        cursor: Option<Seq>,
        paused: bool,
        as_of: Seq,
    },
    /// The duplicate keys of events that retention dropped, with the body hashes.
    Keys {
        dropped_at: Timestamp,
        keys: Vec<(DedupKey, [u8; 8], Seq)>,
    },
    /// Segment `segment`, holding records `first..=last`, is no longer needed.
    Dropped {
        segment: u32,
        first: Seq,
        last: Seq,
        events: u64,
    },
    /// Duplicate keys that are older than `retention.dedup`.
    Forgotten {
        keys: Vec<DedupKey>,
    },
    /// Somebody wrote in the conversation of this follow-up: if its timer still runs, it ends.
    Answered {
        key: DeliveryKey,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EventRecord {
    pub source: String,
    pub id: String,
    pub kind: String,
    pub received_at: Timestamp,
    pub headers: Vec<(String, Vec<u8>)>,
    pub verified_by: VerifiedBy,
    pub body: Vec<u8>,
    pub conversation: Option<String>,
    pub imported: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepeatRecord {
    /// The first copy.
    pub of: Seq,
    pub received_at: Timestamp,
    /// Kept only where it differs from the first.
    pub conflict: Option<ConflictBody>,
    /// The record this one replaces, where a conflicting body was carried forward: then it is not
    /// counted again.
    pub carried_from: Option<Seq>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConflictBody {
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl From<NewEvent> for EventRecord {
    fn from(e: NewEvent) -> EventRecord {
        EventRecord {
            source: e.source,
            id: e.id,
            kind: e.kind,
            received_at: e.received_at,
            headers: e.headers,
            verified_by: e.verified_by,
            body: e.body.into(),
            conversation: e.conversation,
            imported: e.imported,
        }
    }
}

impl From<EventRecord> for NewEvent {
    fn from(e: EventRecord) -> NewEvent {
        NewEvent {
            source: e.source,
            id: e.id,
            kind: e.kind,
            received_at: e.received_at,
            headers: e.headers,
            verified_by: e.verified_by,
            body: e.body.into(),
            conversation: e.conversation,
            imported: e.imported,
        }
    }
}

/// Why a record whose checksum is right cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    UnknownKind(u8),
    UnknownVersion { kind: u8, version: u8 },
    Malformed { kind: u8, why: String },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::UnknownKind(kind) => {
                write!(f, "record kind {kind} is unknown; it may come from a newer bluehook")
            }
            DecodeError::UnknownVersion { kind, version } => write!(
                f,
                "version {version} of record kind {kind} is unknown; it may come from a newer bluehook"
            ),
            DecodeError::Malformed { kind, why } => {
                write!(f, "record kind {kind} is malformed: {why}")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// The numbers on disk. Never reuse one.
pub(super) mod kind {
    pub const EVENT: u8 = 1;
    pub const REPEAT: u8 = 2;
    pub const ATTEMPT_STARTED: u8 = 3;
    pub const ATTEMPT_FINISHED: u8 = 4;
    pub const DISCARDED: u8 = 5;
    pub const REPLAYED: u8 = 6;
    pub const HANDLER_SEEN: u8 = 7;
    pub const HANDLER_MOVED: u8 = 8;
    pub const HANDLER_PAUSED: u8 = 9;
    pub const BOOT: u8 = 10;
    pub const STOPPED: u8 = 11;
    pub const CARRIED: u8 = 12;
    pub const SNAPSHOT: u8 = 13;
    pub const HANDLER_CARRIED: u8 = 14;
    pub const KEYS: u8 = 15;
    pub const DROPPED: u8 = 16;
    pub const FORGOTTEN: u8 = 17;
    pub const ANSWERED: u8 = 18;
}

/// The layout of every kind. Each payload starts with it, so that one kind can move on alone.
const VERSION: u8 = 1;
/// A snapshot that has a conversation; one without is as it always was.
const SNAPSHOT_OF_FOLLOW_UP: u8 = 2;

/// `legacy` is fixed-width little-endian; the limit keeps a corrupt length from asking for memory.
fn layout() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<RECORD_BYTES_MAX>()
}

fn payload(fields: impl Encode) -> Vec<u8> {
    payload_of(VERSION, fields)
}

fn payload_of(version: u8, fields: impl Encode) -> Vec<u8> {
    // Encoding into memory fails only for types that none of ours contains (a poisoned lock, …).
    let mut out = vec![version];
    let result = bincode::encode_into_std_write(fields, &mut out, layout());
    debug_assert!(result.is_ok(), "{result:?}");
    out
}

/// The frame's kind and payload.
#[must_use]
pub fn encode(record: &Record) -> (u8, Vec<u8>) {
    match record {
        Record::Event(event) => (kind::EVENT, payload(event)),
        Record::Repeat(repeat) => (kind::REPEAT, payload(repeat)),
        Record::AttemptStarted { key, generation, number } => {
            (kind::ATTEMPT_STARTED, payload((key, generation, number)))
        }
        Record::AttemptFinished { key, attempt, next } => {
            (kind::ATTEMPT_FINISHED, payload((key, attempt, next)))
        }
        Record::Discarded { key } => (kind::DISCARDED, payload(key)),
        Record::Replayed { key, due } => (kind::REPLAYED, payload((key, due))),
        Record::HandlerSeen { handler, from } => (kind::HANDLER_SEEN, payload((handler, from))),
        Record::HandlerMoved { handler, to } => (kind::HANDLER_MOVED, payload((handler, to))),
        Record::HandlerPaused { handler, paused } => {
            (kind::HANDLER_PAUSED, payload((handler, paused)))
        }
        Record::Boot { timeline } => (kind::BOOT, payload(timeline)),
        Record::Stopped => (kind::STOPPED, payload(())),
        Record::Carried { seq, time, event, repeats } => {
            (kind::CARRIED, payload((seq, time, event, repeats)))
        }
        Record::Snapshot { delivery, attempts, as_of, conversation: None } => {
            (kind::SNAPSHOT, payload((delivery, attempts, as_of)))
        }
        Record::Snapshot { delivery, attempts, as_of, conversation } => (
            kind::SNAPSHOT,
            payload_of(SNAPSHOT_OF_FOLLOW_UP, (delivery, attempts, as_of, conversation)),
        ),
        Record::HandlerCarried { handler, cursor, paused, as_of } => {
            (kind::HANDLER_CARRIED, payload((handler, cursor, paused, as_of)))
        }
        Record::Keys { dropped_at, keys } => (kind::KEYS, payload((dropped_at, keys))),
        Record::Dropped { segment, first, last, events } => {
            (kind::DROPPED, payload((segment, first, last, events)))
        }
        Record::Forgotten { keys } => (kind::FORGOTTEN, payload(keys)),
        Record::Answered { key } => (kind::ANSWERED, payload(key)),
    }
}

/// # Errors
/// The kind or its version is not known here, or the payload is not exactly one such record.
pub fn decode(kind: u8, payload: &[u8]) -> Result<Record, DecodeError> {
    let (version, rest) = match payload.split_first() {
        Some((version, rest)) => (*version, rest),
        None => return Err(DecodeError::Malformed { kind, why: "empty".to_owned() }),
    };
    if !(kind::EVENT..=kind::ANSWERED).contains(&kind) {
        return Err(DecodeError::UnknownKind(kind));
    }
    if (kind, version) == (kind::SNAPSHOT, SNAPSHOT_OF_FOLLOW_UP) {
        let (delivery, attempts, as_of, conversation) =
            fields(rest).map_err(|why| DecodeError::Malformed { kind, why })?;
        return Ok(Record::Snapshot { delivery, attempts, as_of, conversation });
    }
    if version != VERSION {
        return Err(DecodeError::UnknownVersion { kind, version });
    }
    decode_fields(kind, rest).map_err(|why| DecodeError::Malformed { kind, why })
}

fn decode_fields(kind: u8, rest: &[u8]) -> Result<Record, String> {
    Ok(match kind {
        kind::EVENT => Record::Event(fields(rest)?),
        kind::REPEAT => Record::Repeat(fields(rest)?),
        kind::ATTEMPT_STARTED => {
            let (key, generation, number) = fields(rest)?;
            Record::AttemptStarted { key, generation, number }
        }
        kind::ATTEMPT_FINISHED => {
            let (key, attempt, next) = fields(rest)?;
            Record::AttemptFinished { key, attempt, next }
        }
        kind::DISCARDED => Record::Discarded { key: fields(rest)? },
        kind::REPLAYED => {
            let (key, due) = fields(rest)?;
            Record::Replayed { key, due }
        }
        kind::HANDLER_SEEN => {
            let (handler, from) = fields(rest)?;
            Record::HandlerSeen { handler, from }
        }
        kind::HANDLER_MOVED => {
            let (handler, to) = fields(rest)?;
            Record::HandlerMoved { handler, to }
        }
        kind::HANDLER_PAUSED => {
            let (handler, paused) = fields(rest)?;
            Record::HandlerPaused { handler, paused }
        }
        kind::BOOT => Record::Boot { timeline: fields(rest)? },
        kind::STOPPED => {
            let () = fields(rest)?;
            Record::Stopped
        }
        kind::CARRIED => {
            let (seq, time, event, repeats) = fields(rest)?;
            Record::Carried { seq, time, event, repeats }
        }
        kind::SNAPSHOT => {
            let (delivery, attempts, as_of) = fields(rest)?;
            Record::Snapshot { delivery, attempts, as_of, conversation: None }
        }
        kind::ANSWERED => Record::Answered { key: fields(rest)? },
        kind::HANDLER_CARRIED => {
            let (handler, cursor, paused, as_of) = fields(rest)?;
            Record::HandlerCarried { handler, cursor, paused, as_of }
        }
        kind::KEYS => {
            let (dropped_at, keys) = fields(rest)?;
            Record::Keys { dropped_at, keys }
        }
        kind::DROPPED => {
            let (segment, first, last, events) = fields(rest)?;
            Record::Dropped { segment, first, last, events }
        }
        _ => Record::Forgotten { keys: fields(rest)? },
    })
}

fn fields<T: Decode<()>>(bytes: &[u8]) -> Result<T, String> {
    match bincode::decode_from_slice(bytes, layout()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(format!("{} bytes follow the record", bytes.len() - used)),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Outcome;

    fn key() -> DeliveryKey {
        DeliveryKey { event: 7, handler: HandlerName::new("crm").unwrap() }
    }

    fn event() -> EventRecord {
        EventRecord {
            source: "s".into(),
            id: "e1".into(),
            kind: "k".into(),
            received_at: Timestamp(1),
            headers: vec![("h".into(), vec![0xff])],
            verified_by: VerifiedBy::Canonical,
            body: b"{}".to_vec(),
            conversation: Some("c".into()),
            imported: true,
        }
    }

    fn attempt() -> Attempt {
        Attempt {
            number: 2,
            generation: 1,
            started_at: Timestamp(3),
            took_ms: 4,
            outcome: Outcome::Retry { reason: "no".into(), after_ms: Some(5) },
            request: None,
            response: Some("r".into()),
        }
    }

    fn one_of_each() -> Vec<(Record, &'static str)> {
        let handler = key().handler;
        let delivery = Delivery {
            key: key(),
            generation: 1,
            attempts: 2,
            open_attempt: Some(2),
            state: State::Dead { reason: "d".into() },
        };
        vec![
            (
                Record::Event(event()),
                "1 010100000000000000730200000000000000653101000000000000006b010000000000000001000000000000000100000000000000680100000000000000ff0100000002000000000000007b7d0101000000000000006301",
            ),
            (
                Record::Repeat(RepeatRecord {
                    of: 7,
                    received_at: Timestamp(1),
                    conflict: Some(ConflictBody { headers: vec![], body: vec![9] }),
                    carried_from: Some(3),
                }),
                "2 0107000000000000000100000000000000010000000000000000010000000000000009010300000000000000",
            ),
            (
                Record::AttemptStarted { key: key(), generation: 1, number: 2 },
                "3 010700000000000000030000000000000063726d0100000002000000",
            ),
            (
                Record::AttemptFinished {
                    key: key(),
                    attempt: attempt(),
                    next: State::Scheduled { due: Timestamp(6) },
                },
                "4 010700000000000000030000000000000063726d0200000001000000030000000000000004000000000000000100000002000000000000006e6f0105000000000000000001010000000000000072000000000600000000000000",
            ),
            (Record::Discarded { key: key() }, "5 010700000000000000030000000000000063726d"),
            (
                Record::Replayed { key: key(), due: Timestamp(6) },
                "6 010700000000000000030000000000000063726d0600000000000000",
            ),
            (
                Record::HandlerSeen { handler: handler.clone(), from: 1 },
                "7 01030000000000000063726d0100000000000000",
            ),
            (
                Record::HandlerMoved { handler: handler.clone(), to: 2 },
                "8 01030000000000000063726d0200000000000000",
            ),
            (
                Record::HandlerPaused { handler: handler.clone(), paused: true },
                "9 01030000000000000063726d01",
            ),
            (
                Record::Boot { timeline: Timeline { boot_id: 1, offset_ms: -2 } },
                "10 0101000000000000000000000000000000feffffffffffffff",
            ),
            (Record::Stopped, "11 01"),
            (
                Record::Carried { seq: 7, time: Timestamp(8), event: event(), repeats: 9 },
                "12 01070000000000000008000000000000000100000000000000730200000000000000653101000000000000006b010000000000000001000000000000000100000000000000680100000000000000ff0100000002000000000000007b7d010100000000000000630109000000",
            ),
            (
                Record::Snapshot {
                    delivery: delivery.clone(),
                    attempts: vec![attempt()],
                    as_of: 10,
                    conversation: None,
                },
                "13 010700000000000000030000000000000063726d010000000200000001020000000200000001000000000000006401000000000000000200000001000000030000000000000004000000000000000100000002000000000000006e6f01050000000000000000010100000000000000720a00000000000000",
            ),
            (
                Record::HandlerCarried { handler, cursor: Some(3), paused: false, as_of: 4 },
                "14 01030000000000000063726d010300000000000000000400000000000000",
            ),
            (
                Record::Keys { dropped_at: Timestamp(1), keys: vec![([1; 16], [2; 8], 3)] },
                "15 01010000000000000001000000000000000101010101010101010101010101010102020202020202020300000000000000",
            ),
            (
                Record::Dropped { segment: 1, first: 2, last: 3, events: 4 },
                "16 0101000000020000000000000003000000000000000400000000000000",
            ),
            (
                Record::Forgotten { keys: vec![[1; 16]] },
                "17 01010000000000000001010101010101010101010101010101",
            ),
            (
                Record::Snapshot { delivery, attempts: vec![], as_of: 10, conversation: Some(11) },
                "13 020700000000000000030000000000000063726d010000000200000001020000000200000001000000000000006400000000000000000a00000000000000010b00000000000000",
            ),
            (Record::Answered { key: key() }, "18 010700000000000000030000000000000063726d"),
        ]
    }

    #[test]
    fn every_record_has_the_bytes_it_always_had() {
        for (record, golden) in one_of_each() {
            let (kind, payload) = encode(&record);
            assert_eq!(format!("{kind} {}", hex::encode(&payload)), golden, "{record:?}");
        }
    }

    #[test]
    fn every_record_comes_back_as_it_was() {
        for (record, _) in one_of_each() {
            let (kind, payload) = encode(&record);
            assert_eq!(decode(kind, &payload), Ok(record));
        }
    }

    #[test]
    fn every_truncation_and_every_extension_is_refused() {
        for (record, _) in one_of_each() {
            let (kind, mut payload) = encode(&record);
            for cut in 0..payload.len() {
                assert!(decode(kind, &payload[..cut]).is_err(), "{record:?} cut at {cut}");
            }
            payload.push(0);
            assert!(decode(kind, &payload).is_err(), "{record:?} extended");
        }
    }

    #[test]
    fn a_corrupt_length_is_an_error_and_no_allocation() {
        let (kind, mut payload) = encode(&Record::Event(event()));
        payload[1..9].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(decode(kind, &payload), Err(DecodeError::Malformed { .. })));
    }

    #[test]
    fn kinds_and_versions_of_the_future_are_named() {
        assert_eq!(decode(99, &[1]), Err(DecodeError::UnknownKind(99)));
        assert_eq!(decode(5, &[2]), Err(DecodeError::UnknownVersion { kind: 5, version: 2 }));
    }
}
