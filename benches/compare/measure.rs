//! What a contestant's processes cost, as Linux counts it.

use std::fs::read_to_string;

/// Clock ticks a second in `/proc/PID/stat`: fixed on Linux.
const TICKS: f64 = 100.0;

/// Up to now, by all of them and the children they have waited for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Usage {
    pub cpu_seconds: f64,
    /// Sent to the device.
    pub written: u64,
}

pub fn usage(pids: &[u32]) -> Usage {
    let mut total = Usage::default();
    for pid in pids {
        let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The name, in brackets, may hold spaces. utime is field 14, the others follow.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11..15].iter().map(|f| f.parse::<u64>().unwrap()).sum();
        total.cpu_seconds += ticks as f64 / TICKS;
        total.written += field(&format!("/proc/{pid}/io"), "write_bytes:");
    }
    total
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
