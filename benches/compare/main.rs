//! The whole program under load, side by side with what people would use instead and with what the machine can do.
//!
//! `cargo bench --bench compare` runs all contestants; `-- --help` lists the other parts. It installs what it needs from Debian,
//! npm and crates.io. Contestants take turns within each round, so that a slow minute of the machine hits them all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot go on has nobody to tell"
)]

mod ceiling;
mod contestants;
mod events;
mod goals;
mod growth;
mod load;
mod measure;
mod peers;
mod plot;
mod rounds;
mod small;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "compare")]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// Cargo passes it.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Throughput, latency and cost of every contestant, and the goals (about an hour)
    Peers(rounds::Options),
    /// What changes as the store grows to millions of events, and how a backlog drains (about 20 minutes)
    Growth(growth::Options),
    /// A quarter of a processor, 128 MiB and a slow disk (about 5 minutes; needs root, for cgroups)
    Small(small::Options),
    /// One of the servers that mark what the machine can do; started by the other parts
    #[command(hide = true)]
    Ceiling(ceiling::Options),
    /// The service that handlers post to; started by the other parts
    #[command(hide = true)]
    Receiver { port: u16 },
}

fn main() {
    match Args::parse().part {
        Some(Part::Ceiling(options)) => ceiling::serve(&options),
        Some(Part::Receiver { port }) => ceiling::receive(port),
        Some(Part::Peers(options)) => rounds::run(&options),
        Some(Part::Growth(options)) => growth::run(&options),
        Some(Part::Small(options)) => small::run(&options),
        None => rounds::run(&rounds::Options::default()),
    }
}
