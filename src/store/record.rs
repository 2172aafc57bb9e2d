//! What is logged. Everything that changes state is one of these records first.

use bincode::{Decode, Encode};

use crate::clock::{Timeline, Timestamp};
use crate::delivery::{Attempt, Delivery, DeliveryKey, Generation, HandlerName, Seq, State};
use crate::event::{DedupKey, VerifiedBy};

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
    /// A delivery as it stands, with its history: carried forward, or imported.
    Snapshot {
        delivery: Delivery,
        attempts: Vec<Attempt>,
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
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConflictBody {
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}
