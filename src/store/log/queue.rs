//! What waits for the appender's thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::frame::{HEADER_BYTES, PAYLOAD_BYTES_MAX};
use super::request::Request;
use crate::store::AppendError;

const BATCH_BYTES: usize = 1024 * 1024;
const BATCH_REQUESTS: usize = 1024;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What may wait in the queue.
    pub queue_requests: usize,
    pub queue_bytes: usize,
    /// Free space below which events are refused; bookkeeping may use three quarters of it. `None`:
    /// 64 MiB, at most 5 % of the disk.
    pub reserve_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { queue_requests: 8192, queue_bytes: 32 * 1024 * 1024, reserve_bytes: None }
    }
}

/// However the thread ends, nobody waits for it forever.
pub(super) struct CloseOnDrop(pub(super) Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.requests.drain(..).for_each(|request| request.refuse(AppendError::Closed));
    }
}

pub(super) struct Queue {
    limits: Limits,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
    closed: bool,
    /// Since when the thread owes a [`Batch::Wake`].
    wake_since: Option<Instant>,
}

pub(super) enum Batch {
    Requests(Vec<Request>),
    Wake,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Queue {
        Queue { limits, waiting: Mutex::default(), changed: Condvar::new() }
    }

    pub(super) fn push(&self, request: Request) {
        let bytes = request.bytes();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = if waiting.closed {
            Some(AppendError::Closed)
        } else if bytes > HEADER_BYTES + PAYLOAD_BYTES_MAX
            || waiting.bytes + bytes > self.limits.queue_bytes.max(bytes)
            || waiting.requests.len() >= self.limits.queue_requests
        {
            Some(AppendError::Busy)
        } else {
            None
        };
        if let Some(error) = refusal {
            drop(waiting);
            request.refuse(error);
            return;
        }
        waiting.bytes += bytes;
        waiting.requests.push_back(request);
        drop(waiting);
        self.changed.notify_one();
    }

    pub(super) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).requests.is_empty()
    }

    /// What to do next: whatever waits, at once; else, after `wake_after`, a wake-up. `None`: closed.
    pub(super) fn next(&self, wake_after: Option<Duration>) -> Option<Batch> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // The time runs on from when it was first asked for, however many batches come in between.
        waiting.wake_since = wake_after.and(waiting.wake_since.or_else(|| Some(Instant::now())));
        loop {
            let left = wake_after
                .zip(waiting.wake_since)
                .map(|(after, since)| after.saturating_sub(since.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                waiting.wake_since = None;
                return Some(Batch::Wake);
            }
            if !waiting.requests.is_empty() {
                return Some(Batch::Requests(waiting.take_batch()));
            }
            if waiting.closed {
                return None;
            }
            waiting = match left {
                Some(left) => {
                    let result = self.changed.wait_timeout(waiting, left);
                    result.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Waiting {
    fn take_batch(&mut self) -> Vec<Request> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_REQUESTS
            && let Some(next) = self.requests.front()
        {
            if !batch.is_empty() && bytes + next.bytes() > BATCH_BYTES {
                break;
            }
            bytes += next.bytes();
            batch.extend(self.requests.pop_front());
        }
        self.bytes -= bytes;
        batch
    }
}
