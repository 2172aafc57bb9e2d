//! What a contestant's processes cost, as Linux counts it.

use std::fs::read_to_string;
use std::os::linux::fs::MetadataExt as _;
use std::time::Duration;

/// Clock ticks a second in `/proc/PID/stat`: fixed on Linux.
const TICKS: f64 = 100.0;

/// Processor seconds up to now, of all of them and the children they have waited for.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let mut total = 0.0;
    for pid in pids {
        let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The name, in brackets, may hold spaces. utime is field 14, the others follow.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11..15].iter().map(|f| f.parse::<u64>().unwrap()).sum();
        total += ticks as f64 / TICKS;
    }
    total
}

/// Returns once they have nothing to do any more, or after a while.
pub fn await_rest(pids: &[u32]) {
    for _ in 0..25 {
        let before = cpu_seconds(pids);
        std::thread::sleep(Duration::from_millis(200));
        if cpu_seconds(pids) - before < 0.03 {
            return;
        }
    }
}

/// What the device that a folder lies on has taken, with all that was still held back. A process's own
/// `write_bytes` counts whole folios of the page cache, many times what is sent.
pub fn device_written(folder: &std::path::Path) -> u64 {
    rustix::fs::sync();
    let device = std::fs::metadata(folder).unwrap().st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap();
    let sectors: u64 = stat.split_whitespace().nth(6).unwrap().parse().unwrap();
    sectors * 512
}

/// From here on the peak is counted anew.
pub fn forget_peak(pids: &[u32]) {
    for pid in pids {
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    }
}

pub fn peak_mib(pids: &[u32]) -> f64 {
    sum_mib(pids, "VmHWM:")
}

pub fn resident_mib(pids: &[u32]) -> f64 {
    sum_mib(pids, "VmRSS:")
}

/// What the files in a folder take, without those of folders in it.
pub fn folder_bytes(folder: &std::path::Path) -> u64 {
    let entries =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    entries.filter(std::fs::Metadata::is_file).map(|file| file.len()).sum()
}

fn sum_mib(pids: &[u32], name: &str) -> f64 {
    let kib: u64 = pids.iter().map(|pid| field(&format!("/proc/{pid}/status"), name)).sum();
    kib as f64 / 1024.0
}

fn field(file: &str, name: &str) -> u64 {
    let text = read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|v| v.is_finite());
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Largest less smallest, as a share of the median.
pub fn spread(values: &[f64]) -> f64 {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    (high - low) / median(values.to_vec())
}
