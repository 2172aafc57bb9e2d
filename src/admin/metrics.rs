//! The metrics, as Prometheus reads them (text format 0.0.4): names end in their unit, counters in `_total`.

use std::fmt::Write as _;
use std::sync::Arc;

use super::AdminContext;
use super::problem::Problem;
use super::status;
use super::wire::{FollowUpJson, HandlerJson, StatusJson};
use crate::clock::Timestamp;
use crate::delivery::HandlerName;
use crate::process;
use crate::tally::{BOUNDS_MS, DurationsView};

/// A metric's name, type and help.
#[derive(Clone, Copy)]
struct Family(&'static str, &'static str, &'static str);

#[derive(Default)]
struct Exposition {
    out: String,
}

impl Exposition {
    fn family(&mut self, Family(name, kind, help): Family) -> &mut Exposition {
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self
    }

    /// Labels hold names of handlers and our own words: nothing that needs an escape.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.out, "{name}{labels} {value}");
    }

    fn one(&mut self, family: Family, value: f64) {
        self.family(family).sample(family.0, &[], value);
    }

    fn histogram(&mut self, family: Family, view: &DurationsView) {
        let Family(name, ..) = family;
        self.family(family);
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (i, n) in view.buckets.iter().enumerate() {
            count += n;
            let bound = BOUNDS_MS.get(i).map(|ms| (*ms as f64 / 1_000.0).to_string());
            let bound = bound.unwrap_or_else(|| "+Inf".to_owned());
            self.sample(&bucket, &[("le", &bound)], count as f64);
        }
        self.sample(&format!("{name}_sum"), &[], view.sum_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), &[], count as f64);
    }
}

pub async fn metrics(cx: &Arc<AdminContext>) -> Result<String, Problem> {
    let status = status::status(cx).await?;
    let mut out = Exposition::default();
    about(cx, &status, &mut out);
    intake(cx, &mut out);
    store(cx, &status, &mut out);
    let now = cx.clock.now().wall;
    handlers(&status.handlers, now, &mut out);
    followups(&status.followups, &mut out);
    attempts(cx, &status.handlers, &mut out);
    Ok(out.out)
}

fn about(cx: &AdminContext, status: &StatusJson, out: &mut Exposition) {
    let build = Family("bluehook_build_info", "gauge", "Always 1; the version is the label's.");
    out.family(build).sample(build.0, &[("version", &status.version)], 1.0);
    let started =
        Family("bluehook_start_time_seconds", "gauge", "When the process started, Unix time.");
    out.one(started, cx.started_at.0 as f64 / 1_000.0);
    // As Prometheus' own client libraries name them.
    let Some(usage) = process::usage() else { return };
    for (name, help, value) in [
        ("process_open_fds", "Open files.", usage.open_files),
        ("process_max_fds", "Files that may be open.", usage.open_files_max),
        ("process_resident_memory_bytes", "Memory in use.", usage.resident_bytes),
    ] {
        out.one(Family(name, "gauge", help), value as f64);
    }
}

fn intake(cx: &AdminContext, out: &mut Exposition) {
    let view = cx.arrivals.counters();
    for (name, help, value) in [
        (
            "bluehook_requests_received_total",
            "Requests to the intake, of every kind.",
            view.received,
        ),
        (
            "bluehook_requests_acknowledged_total",
            "Events answered 200 once they were durable; duplicates included.",
            view.acknowledged,
        ),
        ("bluehook_duplicates_total", "Events that were known already.", view.duplicates),
        ("bluehook_pings_total", "Verification pings.", view.pings),
        (
            "bluehook_unwanted_total",
            "Events acknowledged and not stored, for the source doesn't want their type.",
            view.not_wanted,
        ),
        (
            "bluehook_canonical_forms_total",
            "Bodies brought into canonical form to check their signature.",
            view.canonical,
        ),
        (
            "bluehook_connections_used_up_total",
            "Connections closed after all the requests that one may bring.",
            view.used_up,
        ),
    ] {
        out.one(Family(name, "counter", help), value as f64);
    }
    let refused =
        Family("bluehook_requests_refused_total", "counter", "Refused requests, by reason.");
    out.family(refused);
    for (reason, n) in &view.refused {
        out.sample(refused.0, &[("reason", reason)], *n as f64);
    }
    let load = cx.arrivals.load();
    for (name, help, value) in [
        ("bluehook_connections", "Connections to the intake.", load.connections as f64),
        ("bluehook_bodies_bytes", "Bodies of requests in memory.", load.bodies_bytes as f64),
    ] {
        out.one(Family(name, "gauge", help), value);
    }
    let gave_way = "Connections closed, on which nothing came, because others needed the place.";
    out.one(
        Family("bluehook_connections_gave_way_total", "counter", gave_way),
        load.gave_way as f64,
    );
    let acks = "From the first byte of a request to its acknowledgement.";
    out.histogram(Family("bluehook_ack_duration_seconds", "histogram", acks), &view.acks);
}

fn store(cx: &AdminContext, status: &StatusJson, out: &mut Exposition) {
    let syncs = "Syncs of the log to disk (fdatasync).";
    let view = cx.store.sync_durations();
    out.histogram(Family("bluehook_log_sync_duration_seconds", "histogram", syncs), &view);
    let health = Family("bluehook_store_health", "gauge", "1 for the state that the store is in.");
    out.family(health);
    for state in ["ok", "rebuilding", "full", "failed"] {
        out.sample(health.0, &[("state", state)], f64::from(u8::from(status.health == state)));
    }
    let accepting = u64::from(matches!(status.health.as_str(), "ok" | "rebuilding"));
    for (name, help, value) in [
        ("bluehook_accepting", "1 while events are accepted.", accepting),
        ("bluehook_events", "Events in the log.", status.events),
        ("bluehook_durable_seq", "Number of the newest durable record.", status.durable_seq),
        ("bluehook_log_bytes", "Size of the log.", status.log_bytes),
        ("bluehook_index_bytes", "Size of the index.", status.index_bytes),
        ("bluehook_disk_free_bytes", "Free space beside the data.", status.disk_free_bytes),
        ("bluehook_damaged_ranges", "Places in the log that are lost.", status.damage.len() as u64),
    ] {
        out.one(Family(name, "gauge", help), value as f64);
    }
}

fn handlers(handlers: &[HandlerJson], now: Timestamp, out: &mut Exposition) {
    type Read = fn(&HandlerJson, Timestamp) -> f64;
    let age: Read = |h, now| {
        let oldest = h.oldest_undelivered.as_deref().and_then(Timestamp::parse_rfc3339);
        oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64())
    };
    let gauges: [(&str, &str, Read); 8] = [
        (
            "bluehook_handler_backlog",
            "Deliveries that wait or run, and events yet to be looked at.",
            |h, _| status::waiting(h) as f64,
        ),
        (
            "bluehook_handler_oldest_undelivered_age_seconds",
            "How long the oldest undelivered event waits; 0: none.",
            age,
        ),
        ("bluehook_handler_scheduled", "Deliveries that wait for an attempt.", |h, _| {
            h.scheduled as f64
        }),
        ("bluehook_handler_running", "Attempts that run now.", |h, _| h.running as f64),
        ("bluehook_handler_behind", "Events that the handler has yet to look at.", |h, _| {
            h.behind as f64
        }),
        ("bluehook_handler_dead_letters", "Dead deliveries.", |h, _| h.dead as f64),
        ("bluehook_handler_paused", "1 while the handler is paused.", |h, _| {
            f64::from(u8::from(h.paused))
        }),
        (
            "bluehook_handler_circuit_open",
            "1 while only probes run, because the handler failed time after time.",
            |h, _| f64::from(u8::from(h.circuit.is_some())),
        ),
    ];
    for (name, help, read) in gauges {
        out.family(Family(name, "gauge", help));
        for handler in handlers {
            out.sample(name, &[("handler", &handler.name)], read(handler, now));
        }
    }
}

fn followups(rules: &[FollowUpJson], out: &mut Exposition) {
    let name = "bluehook_followup_timers";
    out.family(Family(name, "gauge", "Follow-up timers that run."));
    for rule in rules {
        out.sample(name, &[("rule", &rule.name)], rule.waiting as f64);
    }
}

fn attempts(cx: &AdminContext, handlers: &[HandlerJson], out: &mut Exposition) {
    let tally = cx.replay.tally().by_handler();
    let family = Family("bluehook_attempts_total", "counter", "Attempts, by what they came to.");
    out.family(family);
    for handler in handlers {
        // From the start, with zeros: a rate over a counter that appears late is wrong.
        let counts =
            HandlerName::new(&handler.name).ok().and_then(|name| tally.get(&name).copied());
        let counts = counts.unwrap_or_default();
        for (outcome, n) in [
            ("delivered", counts.delivered),
            ("retry", counts.retry),
            ("reject", counts.reject),
            ("uncounted", counts.uncounted),
        ] {
            out.sample(family.0, &[("handler", &handler.name), ("outcome", outcome)], n as f64);
        }
    }
}
