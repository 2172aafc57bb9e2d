//! Every contestant in turn, round after round.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::contestants::{self, Contestant, How, Running};
use crate::events::requests;
use crate::load::{self, Outcome, Pace};
use crate::{goals, measure, peers, plot};

#[derive(clap::Args)]
pub struct Options {
    /// Who takes part
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Contestant::ALL)]
    only: Vec<Contestant>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Bytes of an event
    #[arg(long, value_delimiter = ',', default_values_t = [700, 8192])]
    bytes: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    connections: Vec<usize>,
    /// Events a second over 64 connections, beside the closed loops; those who cannot keep up show it
    #[arg(long, value_delimiter = ',', default_values_t = [500, 2000])]
    rates: Vec<u64>,
}

impl Default for Options {
    fn default() -> Options {
        #[derive(clap::Parser)]
        struct Defaults {
            #[command(flatten)]
            options: Options,
        }
        <Defaults as clap::Parser>::parse_from(["compare"]).options
    }
}

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    pub connections: usize,
    pub bytes: usize,
    pub pace: Pace,
}

impl Cell {
    pub const fn closed(connections: usize, bytes: usize) -> Cell {
        Cell { connections, bytes, pace: Pace::Closed }
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (connections, bytes) = (self.connections, self.bytes);
        match self.pace {
            Pace::Closed => write!(f, "{connections} × {bytes} B"),
            Pace::PerSecond(rate) => write!(f, "{rate}/s × {bytes} B"),
        }
    }
}

/// What one contestant did under one kind of load in one round.
#[derive(Debug, Clone)]
pub struct Sample {
    pub contestant: Contestant,
    pub cell: Cell,
    pub outcome: Outcome,
    pub cpu_seconds: f64,
    /// By the device, for each byte of an acknowledged event, until all is done and synced.
    pub written_per_byte: f64,
    pub peak_mib: f64,
}

/// More than any contestant acknowledges in a second.
const RATE_MAX: f64 = 100_000.0;
const REQUESTS_BYTES_MAX: usize = 300_000_000;

pub fn measure(running: &Running, contestant: Contestant, cell: Cell, length: Duration) -> Sample {
    let rate = match cell.pace {
        Pace::Closed => RATE_MAX,
        Pace::PerSecond(rate) => rate as f64,
    };
    let count = ((rate * length.as_secs_f64()) as usize).min(REQUESTS_BYTES_MAX / cell.bytes);
    let requests = requests(count, cell.bytes);
    let pids = running.pids();
    measure::forget_peak(&pids);
    let written = measure::device_written(&running.dir);
    let before = measure::cpu_seconds(&pids);
    let outcome = load::run(running.address, &requests, cell.connections, cell.pace, length);
    let peak_mib = measure::peak_mib(&pids);
    // What was put off counts too.
    measure::await_rest(&pids);
    let cpu_seconds = measure::cpu_seconds(&pids) - before;
    let written = measure::device_written(&running.dir) - written;
    let payload = (outcome.latencies.len() * cell.bytes) as f64;
    Sample {
        contestant,
        cell,
        cpu_seconds,
        written_per_byte: written as f64 / payload,
        peak_mib,
        outcome,
    }
}

pub fn run(options: &Options) {
    peers::install(&options.only);
    let length = Duration::from_secs_f64(options.seconds);
    let mut cells = vec![];
    for &bytes in &options.bytes {
        cells.extend(options.connections.iter().map(|&n| Cell::closed(n, bytes)));
    }
    let small = options.bytes.first().copied().unwrap_or(700);
    cells.extend(options.rates.iter().map(|&rate| Cell {
        connections: 64,
        bytes: small,
        pace: Pace::PerSecond(rate),
    }));
    let begun = Instant::now();
    let mut samples = vec![];
    for round in 1..=options.rounds {
        // Each contestant comes first, last and in between.
        for n in 0..options.only.len() {
            let contestant = options.only[(n + round) % options.only.len()];
            for &cell in &cells {
                let mut running = contestants::start(contestant, &How::default());
                // The first requests meet cold caches and unopened connections.
                let warm = Cell { pace: Pace::Closed, ..cell };
                measure(&running, contestant, warm, Duration::from_millis(300));
                samples.push(measure(&running, contestant, cell, length));
                running.kill();
            }
        }
        println!("round {round} of {} after {:.0?}", options.rounds, begun.elapsed());
    }
    let mut report = table(&options.only, &cells, &samples);
    report += &syncs(&options.only);
    report += &goals::ratios(&samples);
    println!("{report}");
    let folder = peers::target();
    std::fs::write(folder.join("compare.txt"), &report).unwrap();
    std::fs::write(folder.join("compare.svg"), plot::bars(&samples)).unwrap();
    println!("also in {}: compare.txt and compare.svg", folder.display());
}

/// The samples of one contestant and one load.
pub fn of(samples: &[Sample], contestant: Contestant, cell: Cell) -> Vec<&Sample> {
    samples.iter().filter(|s| s.contestant == contestant && s.cell == cell).collect()
}

pub fn median_of(
    samples: &[Sample],
    contestant: Contestant,
    cell: Cell,
    value: impl Fn(&Sample) -> f64,
) -> f64 {
    measure::median(of(samples, contestant, cell).into_iter().map(value).collect())
}

pub fn cpu_per_100_000(sample: &Sample) -> f64 {
    sample.cpu_seconds * 100_000.0 / sample.outcome.latencies.len() as f64
}

fn table(contestants: &[Contestant], cells: &[Cell], samples: &[Sample]) -> String {
    let mut text = String::new();
    for &cell in cells {
        writeln!(
            text,
            "\n{cell}\n{:34} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7}",
            "",
            "acks/s",
            "±",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU s",
            "peak MiB",
            "bytes",
            "errors"
        )
        .unwrap();
        for &contestant in contestants {
            let of = of(samples, contestant, cell);
            let rates: Vec<f64> = of.iter().map(|s| s.outcome.per_second()).collect();
            let median =
                |value: &dyn Fn(&Sample) -> f64| median_of(samples, contestant, cell, value);
            let errors: u64 = of.iter().map(|s| s.outcome.refused + s.outcome.failed).sum();
            writeln!(
                text,
                "{:34} {:8.0} {:5.0}% {:8.2} {:8.2} {:8.2} {:8.1} {:9.1} {:9.2} {:7}",
                contestant.name(),
                measure::median(rates.clone()),
                measure::spread(&rates) * 100.0,
                median(&|s| s.outcome.percentile(0.5)),
                median(&|s| s.outcome.percentile(0.99)),
                median(&|s| s.outcome.percentile(0.999)),
                median(&cpu_per_100_000),
                median(&|s| s.peak_mib),
                median(&|s| s.written_per_byte),
                errors,
            )
            .unwrap();
        }
    }
    text + "\nMedians of the rounds; ±: largest less smallest rate, by the median. CPU: seconds for 100,000 \
            acknowledgements. Bytes: taken by the device for each byte of an event. Both until all that was put off is done.\n"
}

/// Counted in runs of their own: counting costs time.
fn syncs(contestants: &[Contestant]) -> String {
    let mut text = "\nSyncs for each event at 64 connections\n".to_owned();
    for &contestant in contestants {
        let trace = peers::target().join("trace");
        _ = std::fs::remove_file(&trace);
        let strace =
            "strace -D -f --seccomp-bpf -A -e trace=fsync,fdatasync,sync_file_range,msync -o";
        let mut through: Vec<String> = strace.split(' ').map(str::to_owned).collect();
        through.push(trace.to_str().unwrap().to_owned());
        let mut running = contestants::start(contestant, &How { through, ..How::default() });
        let count = || {
            let text = std::fs::read_to_string(&trace).unwrap_or_default();
            text.lines().filter(|line| line.contains("sync(") && !line.contains("resumed")).count()
        };
        let before = count();
        let requests = requests(40_000, 700);
        let length = Duration::from_secs(2);
        let outcome = load::run(running.address, &requests, 64, Pace::Closed, length);
        let syncs = count() - before;
        running.stop();
        let each = syncs as f64 / outcome.latencies.len() as f64;
        writeln!(text, "{:34} {each:8.3}", contestant.name()).unwrap();
    }
    text
}
