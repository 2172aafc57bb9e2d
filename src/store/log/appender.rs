//! Group commit: the only maker of receipts.

use crate::delivery::Seq;

/// Proof that a record is durable. Only this file makes one, and only after the sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    seq: Seq,
    duplicate: bool,
}

impl Receipt {
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        self.duplicate
    }
}
