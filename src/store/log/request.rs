//! What is asked of the appender, and who hears what came of it.

use tokio::sync::oneshot;

use super::Receipt;
use super::frame::HEADER_BYTES;
use crate::delivery::Seq;
use crate::store::AppendError;

/// What gives way first when the disk fills up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    Event,
    /// What is needed to settle the events that are stored, and to make room.
    Bookkeeping,
}

/// What a batch is made of.
pub enum Request {
    Append {
        kind: u8,
        payload: Vec<u8>,
        priority: Priority,
        done: Done,
    },
    /// Records of which none may be in the log without those before it; all or none.
    Series {
        epoch: u64,
        records: Vec<(u8, Vec<u8>)>,
        /// Told the number of the last.
        done: Done,
    },
    /// Drop the oldest segment.
    Remove {
        segment: u32,
        done: oneshot::Sender<Result<(), AppendError>>,
    },
    /// Keep this one aside when it is dropped.
    Damaged {
        segment: u32,
    },
}

/// When an append counts as done, and who wants to know.
pub enum Done {
    Durable(Box<dyn Told>),
    Written(oneshot::Sender<Result<Seq, AppendError>>),
}

/// Hears, on the appender's thread, what came of an append. Dropped unheard: the thread is gone.
pub trait Told: Send {
    fn hear(self: Box<Self>, result: Result<Receipt, AppendError>);
}

impl Told for oneshot::Sender<Result<Receipt, AppendError>> {
    fn hear(self: Box<Self>, result: Result<Receipt, AppendError>) {
        // Whoever gave up waiting needs no answer.
        _ = self.send(result);
    }
}

impl Done {
    pub(super) fn refuse(self, error: AppendError) {
        match self {
            Done::Durable(done) => done.hear(Err(error)),
            // Whoever gave up waiting needs no answer.
            Done::Written(done) => _ = done.send(Err(error)),
        }
    }
}

impl Request {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Request::Append { payload, .. } => HEADER_BYTES + payload.len(),
            Request::Series { records, .. } => {
                records.iter().map(|(_, payload)| HEADER_BYTES + payload.len()).sum()
            }
            Request::Remove { .. } | Request::Damaged { .. } => 0,
        }
    }

    pub(super) fn refuse(self, error: AppendError) {
        match self {
            Request::Append { done, .. } | Request::Series { done, .. } => done.refuse(error),
            Request::Remove { done, .. } => _ = done.send(Err(error)),
            Request::Damaged { .. } => {}
        }
    }
}
