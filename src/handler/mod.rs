//! What runs when an event matches: http, exec, file.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{BoxFuture, Timestamp};
use crate::delivery::Outcome;
use crate::event::Event;

/// What a handler is told of one attempt.
#[derive(Clone, Debug)]
pub struct Call {
    pub event: Arc<Event>,
    /// From 1.
    pub attempt: u32,
    pub now: Timestamp,
    pub deadline: Duration,
}

/// What one attempt came to, with what history keeps of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub outcome: Outcome,
    /// A short account of what was sent, without secrets.
    pub request: Option<String>,
    /// Status, headers and the first 16 KiB; or exit status and output.
    pub response: Option<String>,
}

pub trait Handler: Send + Sync {
    /// Runs once. It must end within `call.deadline`, leaving nothing running; dropping the future
    /// must kill what it started.
    fn run(&self, call: Call) -> BoxFuture<'_, Report>;
}
