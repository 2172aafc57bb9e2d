//! What changes as the store grows, and how a backlog drains.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::contestants::{self, HTTP, How, Running};
use crate::events::requests;
use crate::load::{self, Pace};
use crate::{measure, peers};

#[derive(clap::Args)]
pub struct Options {
    /// Stored events at which to measure
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000, 5_000_000])]
    events: Vec<usize>,
    /// Undelivered events that then drain, with 1 handler and with 10
    #[arg(long, default_value_t = 1_000_000)]
    backlog: usize,
}

/// Requests that are made at once: 90 MB.
const SLICE: usize = 100_000;
const BYTES: usize = 700;
const KEEP: &str = "[retention]\ndisk_max = \"100 GiB\"\n";
const REBUILT_WITHIN: Duration = Duration::from_secs(1800);

pub fn run(options: &Options) {
    peers::target();
    if !options.events.is_empty() {
        grow(&options.events);
    }
    if options.backlog > 0 {
        for handlers in [1, 10] {
            drain(options.backlog, handlers);
        }
    }
}

fn grow(counts: &[usize]) {
    println!(
        "\n{:>9} {:>8} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8}",
        "events",
        "acks/s",
        "p50 ms",
        "p99 ms",
        "peak MiB",
        "rest MiB",
        "start s",
        "lost s",
        "list ms",
        "rebuilt/s",
        "log B/ev",
        "idx B/ev"
    );
    let how = How::default();
    let mut running = contestants::bluehook("", KEEP, &how);
    // The event that told that it runs.
    let mut stored = 1;
    for &count in counts {
        measure::forget_peak(&running.pids());
        let missing = count - stored;
        let rate = missing as f64 / fill(&running, missing).as_secs_f64();
        stored = count;
        let peak = measure::peak_mib(&running.pids());
        await_index(&running, stored);
        running.stop();

        let start = running.start_bluehook(&how);
        stored += 1;
        let single = load::run(
            running.address,
            &requests(20_000, BYTES),
            1,
            Pace::Closed,
            Duration::from_secs(2),
        );
        stored += single.latencies.len();
        let rest = measure::resident_mib(&running.pids());
        let list = Instant::now();
        bluehook_says(&running, &["events", "list", "--limit", "50"]);
        let list = list.elapsed();
        await_index(&running, stored);
        let log = measure::folder_bytes(&running.dir.join("data/log"));
        let index = measure::folder_bytes(&running.dir.join("data/index"));

        running.stop();
        std::fs::remove_dir_all(running.dir.join("data/index")).unwrap();
        let lost = running.start_bluehook(&how);
        stored += 1;
        let begun = Instant::now();
        await_index(&running, stored);
        let rebuilt = stored as f64 / (begun.elapsed() + lost).as_secs_f64();
        println!(
            "{count:9} {rate:8.0} {:7.2} {:7.2} {peak:8.1} {rest:8.1} {:8.3} {:8.3} {:8.0} {rebuilt:9.0} {:9.0} {:8.0}",
            single.percentile(0.5),
            single.percentile(0.99),
            start.as_secs_f64(),
            lost.as_secs_f64(),
            list.as_secs_f64() * 1000.0,
            log as f64 / stored as f64,
            index as f64 / stored as f64,
        );
    }
    println!(
        "acks/s and peak: while it grew, 64 connections; p50 and p99: one connection; rest: after a start; start: until \
         the first 200 to an event, index there and lost; list: the first page, on the command line."
    );
}

/// How long it took, without making the requests.
fn fill(running: &Running, mut missing: usize) -> Duration {
    let mut took = Duration::ZERO;
    while missing > 0 {
        let slice = requests(missing.min(SLICE), BYTES);
        let outcome =
            load::run(running.address, &slice, 64, Pace::Closed, Duration::from_secs(3600));
        assert_eq!(outcome.failed, 0, "requests without an answer");
        missing -= outcome.latencies.len();
        took += outcome.took;
    }
    took
}

fn status(running: &Running) -> Value {
    serde_json::from_str(&bluehook_says(running, &["status", "--json"])).unwrap()
}

/// Degraded is told by the exit code and of no interest here.
fn bluehook_says(running: &Running, words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bluehook"));
    command.arg("--config").arg(running.dir.join("bluehook.toml")).args(words);
    let output = command.env("WEBHOOK_SECRET", crate::events::SECRET).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Until all events are in the index.
fn await_index(running: &Running, stored: usize) {
    let begun = Instant::now();
    loop {
        let status = status(running);
        if status["note"].is_null() && status["events"].as_u64() >= Some(stored as u64) {
            return;
        }
        assert!(begun.elapsed() < REBUILT_WITHIN, "the index does not catch up: {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn drain(backlog: usize, handlers: usize) {
    let names: Vec<String> = (1..=handlers).map(|n| format!("h{n}")).collect();
    let blocks: Vec<String> =
        names.iter().map(|name| HTTP.replace("\"http\"\n", &format!("\"{name}\"\n"))).collect();
    let mut running = contestants::bluehook(&blocks.concat(), KEEP, &How::default());
    for name in &names {
        post(&running, &format!("/api/v1/handlers/{name}/pause"));
    }
    fill(&running, backlog - 1);
    await_index(&running, backlog);
    measure::forget_peak(&running.pids());
    for name in &names {
        post(&running, &format!("/api/v1/handlers/{name}/resume"));
    }
    println!("\n{backlog} undelivered events, {handlers} handlers: deliveries/s, resident MiB");
    let (begun, mut left, mut at) = (Instant::now(), backlog * handlers, Instant::now());
    while left > 0 {
        std::thread::sleep(Duration::from_secs(10));
        let now = (backlog * handlers).saturating_sub(running.received());
        let took = at.elapsed().as_secs_f64();
        at = Instant::now();
        let rate = left.saturating_sub(now) as f64 / took;
        println!(
            "{:6.0} s {rate:8.0} {:8.1}",
            begun.elapsed().as_secs_f64(),
            measure::resident_mib(&running.pids())
        );
        left = now;
    }
    let rate = (backlog * handlers) as f64 / begun.elapsed().as_secs_f64();
    println!("{rate:.0} deliveries/s, peak {:.1} MiB", measure::peak_mib(&running.pids()));
    running.stop();
}

fn post(running: &Running, path: &str) {
    let mut stream = UnixStream::connect(running.dir.join("data/admin.sock")).unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
}
