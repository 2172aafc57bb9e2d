//! What the service manager is told. Where there is none, nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::store::Store;

pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// To be followed by [`ready`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock"),
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("completing what is under way")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot reach the service manager");
    }
}

/// Feeds the watchdog, if there is one, for as long as the log makes progress. It runs where requests are answered,
/// so that it stops, too, when no request would be answered any more.
pub async fn feed_watchdog(store: Store) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut seen = None;
    loop {
        let Some(pulse) = store.pulse() else { return };
        if pulse.goes_on(seen) {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::warn!("the log has made no progress for a while; is the disk stuck?");
        }
        seen = Some(pulse);
        tokio::time::sleep((limit / 4).max(Duration::from_millis(10))).await;
    }
}
