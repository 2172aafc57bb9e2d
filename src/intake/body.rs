//! Reads a request's body within its limits: bytes, time, and memory over all requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::answer::Reason;

/// For one piece of a body: more than are needed for the largest body there may be.
const GIVE_WAY_MAX: usize = 64;
const GIVE_WAY_WAIT: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Budget {
    used: AtomicU64,
    given_back: Notify,
}

impl Budget {
    /// `max_bytes` for all bodies in memory together: `connections_max` bodies of `body_max` each would be a gigabyte.
    pub(super) fn share(self: &Arc<Budget>, max_bytes: u64) -> Share {
        Share { budget: Arc::clone(self), max_bytes, bytes: 0 }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// One request's part of the budget; given back when dropped.
pub(super) struct Share {
    budget: Arc<Budget>,
    max_bytes: u64,
    bytes: u64,
}

impl Share {
    /// A lone request always gets its body, however large `body_max` is.
    fn take(&mut self, bytes: u64) -> bool {
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        let others = before.saturating_sub(self.bytes);
        let there_is_room = others == 0 || before + bytes <= self.max_bytes;
        if there_is_room {
            self.bytes += bytes;
        } else {
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        there_is_room
    }

    /// As [`Share::take`]; where there is no room, bodies that have been on their way for longest give way.
    async fn take_or_make_room(&mut self, bytes: u64, make_room: &impl Fn() -> bool) -> bool {
        let budget = Arc::clone(&self.budget);
        for _ in 0..GIVE_WAY_MAX {
            let given_back = budget.given_back.notified();
            if self.take(bytes) {
                return true;
            }
            if !make_room() {
                return false;
            }
            // Its connection ends at once; if it did so already, this is over soon.
            let _ = tokio::time::timeout(GIVE_WAY_WAIT, given_back).await;
        }
        self.take(bytes)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.given_back.notify_waiters();
    }
}

/// `make_room` lets another body give way, if it can.
///
/// # Errors
/// Which limit was met; and the first bytes read until then, for the ring.
pub(super) async fn read<B>(
    mut body: B,
    max_bytes: u64,
    deadline: Instant,
    share: &mut Share,
    holds: impl Fn(u64),
    make_room: impl Fn() -> bool,
) -> Result<Bytes, (Reason, Bytes)>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut all = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
            Err(_) => return Err((Reason::BodyTimeout, all.freeze())),
            Ok(None) => return Ok(all.freeze()),
            Ok(Some(Err(_))) => return Err((Reason::BodyBroken, all.freeze())),
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers carry nothing that we need.
        let Ok(data) = frame.into_data() else { continue };
        let len = data.len() as u64;
        if all.len() as u64 + len > max_bytes {
            return Err((Reason::BodyTooLarge, all.freeze()));
        }
        if !share.take_or_make_room(len, &make_room).await {
            return Err((Reason::Busy, all.freeze()));
        }
        holds(len);
        all.extend_from_slice(&data);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body_util::{Empty, Full};
    use hyper::body::Frame;

    use super::*;

    const BUDGET_BYTES: u64 = 1_000;

    struct Never;

    impl Body for Never {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_body_may_be_exactly_as_large_as_the_limit() {
        let budget = Arc::new(Budget::default());
        let body = || Full::new(Bytes::from_static(b"12345"));
        let mut share = budget.share(BUDGET_BYTES);
        assert_eq!(
            read(body(), 5, soon(), &mut share, |_| (), || false).await,
            Ok(Bytes::from_static(b"12345"))
        );
        let refused = read(body(), 4, soon(), &mut share, |_| (), || false).await.map_err(|e| e.0);
        assert_eq!(refused, Err(Reason::BodyTooLarge));
        assert_eq!(
            read(Empty::new(), 0, soon(), &mut share, |_| (), || false).await,
            Ok(Bytes::new())
        );
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_meets_the_deadline() {
        let budget = Arc::new(Budget::default());
        let refused =
            read(Never, 5, Instant::now(), &mut budget.share(BUDGET_BYTES), |_| (), || false)
                .await
                .map_err(|e| e.0);
        assert_eq!(refused, Err(Reason::BodyTimeout));
    }

    #[test]
    fn the_budget_bounds_all_requests_together_but_not_a_lone_one() {
        let budget = Arc::new(Budget::default());
        let mut first = budget.share(BUDGET_BYTES);
        assert!(first.take(BUDGET_BYTES * 2));
        assert!(!budget.share(BUDGET_BYTES).take(1));
        drop(first);
        assert!(budget.share(BUDGET_BYTES).take(1));
        assert_eq!(budget.used_bytes(), 0);
    }
}
