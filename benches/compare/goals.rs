//! The ratios that matter, from the medians of one run.

use std::fmt::Write as _;

use crate::contestants::Contestant::{self, *};
use crate::rounds::{Cell, Sample, cpu_per_100_000, median_of};

#[derive(Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

pub fn ratios(samples: &[Sample]) -> String {
    const BUSY: Cell = Cell::closed(64, 700);
    const ALONE: Cell = Cell::closed(1, 700);
    let rate = |who: Contestant| median_of(samples, who, BUSY, |s| s.outcome.per_second());
    let p99 = |who: Contestant| median_of(samples, who, BUSY, |s| s.outcome.percentile(0.99));
    let alone = |who: Contestant| median_of(samples, who, ALONE, |s| s.outcome.percentile(0.5));
    let cpu = |who: Contestant| median_of(samples, who, BUSY, cpu_per_100_000);
    let bytes = |who: Contestant| median_of(samples, who, BUSY, |s| s.written_per_byte);
    let rows = [
        (
            "acks/s, 64 connections: bluehook / ceiling B",
            rate(Bluehook) / rate(CeilingB),
            Goal::AtLeast(0.9),
        ),
        (
            "p50, 1 connection: bluehook / ceiling B",
            alone(Bluehook) / alone(CeilingB),
            Goal::AtMost(1.15),
        ),
        (
            "acks/s: bluehook / BullMQ, always",
            rate(Bluehook) / rate(BullAlways),
            Goal::AtLeast(12.0),
        ),
        (
            "p99: bluehook / BullMQ, always",
            p99(Bluehook) / p99(BullAlways),
            Goal::AtMost(1.0 / 8.0),
        ),
        ("acks/s: bluehook / qhook", rate(Bluehook) / rate(Qhook), Goal::AtLeast(60.0)),
        ("p99: bluehook / qhook", p99(Bluehook) / p99(Qhook), Goal::AtMost(1.0 / 50.0)),
        (
            "acks/s: bluehook with 3 handlers / without",
            rate(Bluehook3) / rate(Bluehook),
            Goal::AtLeast(0.7),
        ),
        (
            "CPU for each ack: bluehook / ceiling B",
            cpu(Bluehook) / cpu(CeilingB),
            Goal::AtMost(1.4),
        ),
        ("bytes written for each of an event, 1 handler", bytes(Bluehook1), Goal::AtMost(3.0)),
        (
            "acks/s: bluehook / Express (in memory)",
            rate(Bluehook) / rate(Express),
            Goal::AtLeast(1.0),
        ),
        ("acks/s: bluehook / webhook (Debian)", rate(Bluehook) / rate(Webhook), Goal::AtLeast(1.0)),
    ];
    let mut text = "\nRatios of the medians, events of 700 B\n".to_owned();
    for (name, ratio, goal) in rows.into_iter().filter(|(_, ratio, _)| ratio.is_finite()) {
        let (sign, limit, reached) = match goal {
            Goal::AtLeast(limit) => ("≥", limit, ratio >= limit),
            Goal::AtMost(limit) => ("≤", limit, ratio <= limit),
        };
        let verdict = if reached { "reached" } else { "NOT reached" };
        writeln!(text, "{name:48} {ratio:8.3}  goal {sign} {limit:.3}  {verdict}").unwrap();
    }
    text
}
