//! The last hour, minute by minute, for the page's charts.

use super::AdminContext;
use super::wire::{ActivityJson, MinuteJson};
use crate::tally::median_ms;

pub fn last_hour(cx: &AdminContext) -> ActivityJson {
    let now = cx.clock.now();
    let attempts = cx.replay.tally().last_hour(now);
    let arrivals = cx.arrivals.last_hour();
    let minutes = arrivals.iter().zip(&attempts).map(|((at, arrived), (_, outcomes))| {
        let failed = outcomes.retry + outcomes.reject;
        MinuteJson {
            at: at.to_rfc3339(),
            received: arrived.received,
            acknowledged: arrived.acknowledged,
            refused: arrived.refused,
            ack_median_ms: median_ms(&arrived.ack_buckets),
            ack_max_ms: arrived.ack_max_ms,
            attempts: outcomes.delivered + failed,
            failed,
        }
    });
    ActivityJson { minutes: minutes.collect() }
}
