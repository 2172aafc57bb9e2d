//! A machine like a Pi Zero: a quarter of one processor, 128 MiB, a disk like an SD card. Needs root, for cgroups.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::contestants::{self, HTTP, How, Running};
use crate::events::requests;
use crate::load::{self, Pace};
use crate::{measure, peers};

#[derive(clap::Args)]
pub struct Options {
    /// Percent of one processor
    #[arg(long, default_value_t = 25)]
    cpu: u64,
    #[arg(long, default_value_t = 128)]
    memory_mib: u64,
    /// Writes a second that the disk bears, of 4 KiB or so: an SD card of class A1 bears 500
    #[arg(long, default_value_t = 500)]
    disk_writes: u64,
    #[arg(long, default_value_t = 10)]
    disk_mib: u64,
    /// Events a second to try, one after the other
    #[arg(long, value_delimiter = ',', default_values_t = [50, 100, 200, 400, 800, 1600])]
    rates: Vec<u64>,
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

const BYTES: usize = 700;
const PERIOD_US: u64 = 100_000;
const SENDERS_PATIENCE_MS: f64 = 5_000.0;

/// Made for one run, removed with it.
struct Cgroup(Vec<PathBuf>);

impl Cgroup {
    fn new(options: &Options) -> Cgroup {
        let name = format!("bluehook-bench-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let disk = disk_of(&peers::target());
        let quota = options.cpu * PERIOD_US / 100;
        let memory = options.memory_mib * 1024 * 1024;
        let bytes = options.disk_mib * 1024 * 1024;
        let writes = options.disk_writes;
        let folders = if root.join("cgroup.controllers").exists() {
            let folder = root.join(name);
            make(&folder);
            set(&folder, "cpu.max", &format!("{quota} {PERIOD_US}"));
            set(&folder, "memory.max", &memory.to_string());
            set(&folder, "io.max", &format!("{disk} wbps={bytes} wiops={writes}"));
            vec![folder]
        } else {
            let folders = ["cpu", "memory", "blkio"].map(|part| root.join(part).join(&name));
            folders.iter().for_each(|folder| make(folder));
            let [cpu, ram, io] = &folders;
            set(cpu, "cpu.cfs_period_us", &PERIOD_US.to_string());
            set(cpu, "cpu.cfs_quota_us", &quota.to_string());
            set(ram, "memory.limit_in_bytes", &memory.to_string());
            set(io, "blkio.throttle.write_bps_device", &format!("{disk} {bytes}"));
            set(io, "blkio.throttle.write_iops_device", &format!("{disk} {writes}"));
            folders.to_vec()
        };
        Cgroup(folders)
    }

    /// Starts what follows inside.
    fn through(&self) -> How {
        let enter: String =
            self.0.iter().map(|f| format!("echo $$ > {}/cgroup.procs; ", f.display())).collect();
        let through = ["/bin/sh", "-c", &format!("{enter}exec \"$0\" \"$@\"")];
        How { through: through.map(str::to_owned).to_vec(), folder: None }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in &self.0 {
            if let Err(error) = fs::remove_dir(folder) {
                println!("{} stays behind: {error}", folder.display());
            }
        }
    }
}

fn make(folder: &Path) {
    fs::create_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}; this part needs root and cgroups", folder.display()));
}

fn set(folder: &Path, file: &str, value: &str) {
    fs::write(folder.join(file), value)
        .unwrap_or_else(|e| panic!("{}/{file}: {e}", folder.display()));
}

/// `major:minor` of the whole disk that a folder lies on.
fn disk_of(folder: &Path) -> String {
    let device = fs::metadata(folder).unwrap().st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let parent = format!("/sys/dev/block/{major}:{minor}/../dev");
    let parent = fs::read_to_string(parent).unwrap_or_default();
    if parent.trim().is_empty() { format!("{major}:{minor}") } else { parent.trim().to_owned() }
}

pub fn run(options: &Options) {
    println!(
        "\n{} % of a processor, {} MiB, disk {} writes/s and {} MiB/s, events of {BYTES} B, one HTTP handler",
        options.cpu, options.memory_mib, options.disk_writes, options.disk_mib
    );
    println!(
        "{:>10} {:>8} {:>8} {:>9} {:>8} {:>8} {:>9}",
        "events/s", "acks/s", "p50 ms", "p99.9 ms", "shed", "failed", "peak MiB"
    );
    let mut held = None;
    for &rate in &options.rates {
        let outcome = measured(options, 64, Pace::PerSecond(rate), &rate.to_string());
        let in_time = outcome.percentile(0.999) < SENDERS_PATIENCE_MS;
        if in_time && outcome.refused + outcome.failed == 0 {
            held = Some(rate);
        }
    }
    match held {
        Some(rate) => {
            println!("holds {rate} events/s: all acknowledged, p99.9 within the sender's 5 s")
        }
        None => println!("holds none of these rates"),
    }
    measured(options, 1_000, Pace::Closed, "overload");
}

fn measured(options: &Options, connections: usize, pace: Pace, name: &str) -> load::Outcome {
    let length = Duration::from_secs(options.seconds);
    let count = match pace {
        Pace::Closed => 200_000,
        Pace::PerSecond(rate) => usize::try_from(rate * options.seconds).unwrap(),
    };
    let cgroup = Cgroup::new(options);
    let mut running: Running = contestants::bluehook(HTTP, "", &cgroup.through());
    let pids = running.pids();
    let outcome = load::run(running.address, &requests(count, BYTES), connections, pace, length);
    println!(
        "{name:>10} {:8.0} {:8.1} {:9.1} {:8} {:8} {:9.1}",
        outcome.per_second(),
        outcome.percentile(0.5),
        outcome.percentile(0.999),
        outcome.shed,
        outcome.failed + outcome.refused - outcome.shed,
        measure::peak_mib(&pids),
    );
    running.kill();
    outcome
}
