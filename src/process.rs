//! What the process asks of the system for itself.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Secrets and messages are in memory: nothing of it is written to a core file, and no other process of the same user,
/// a handler's command say, may look into it. Programs that handlers start are as they were.
pub fn keep_memory_private() {
    let quiet = Rlimit { current: Some(0), ..getrlimit(Resource::Core) };
    let kept = set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .and_then(|()| setrlimit(Resource::Core, quiet));
    if let Err(error) = kept {
        tracing::warn!(%error, "core dumps could not be turned off");
    }
}

/// How many files may be open from now on: `wanted`, or what the system grants.
#[must_use]
pub fn allow_open_files(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let (now, most) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    if now >= wanted {
        return now;
    }
    let more = wanted.min(most);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(more), maximum: limit.maximum }) {
        Ok(()) => more,
        Err(_) => now,
    }
}

/// What the process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub open_files: u64,
    pub open_files_max: u64,
    pub resident_bytes: u64,
}

/// `None`: the system does not say.
#[must_use]
pub fn usage() -> Option<Usage> {
    Some(Usage {
        open_files: std::fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        open_files_max: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        resident_bytes: resident_bytes()?,
    })
}

#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_takes_is_more_than_nothing_and_no_more_than_it_may() {
        let usage = usage().unwrap();
        assert!(usage.open_files > 2 && usage.open_files <= usage.open_files_max);
        assert!(usage.resident_bytes > 1 << 20);
    }

    #[test]
    fn what_is_granted_is_known() {
        let before = allow_open_files(0);
        assert_eq!(allow_open_files(before), before);
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert!(allow_open_files(u64::MAX) <= most);
    }
}
