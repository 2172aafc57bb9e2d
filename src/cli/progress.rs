//! How far a long transfer is, on a line of its own that is written over: on a terminal alone.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::args::Common;
use super::render::bytes;

/// Between two looks of the reader.
const EVERY: Duration = Duration::from_millis(250);

pub struct Progress {
    /// `None`: nobody watches.
    shown: Option<Instant>,
    /// "imported"
    what: &'static str,
    /// In bytes, where it is known.
    total: Option<u64>,
    done: u64,
}

impl Progress {
    /// On standard error, so that what goes to standard output stays whole.
    pub fn new(common: &Common, what: &'static str, total: Option<u64>) -> Progress {
        let watched = std::io::stderr().is_terminal() && !common.quiet && !common.json;
        Progress { shown: watched.then(Instant::now), what, total, done: 0 }
    }

    /// `more` bytes are through.
    pub fn add(&mut self, more: usize) {
        self.done += more as u64;
        let due = self.shown.is_some_and(|shown| shown.elapsed() >= EVERY);
        if due {
            self.shown = Some(Instant::now());
            let line = line(self.what, self.done, self.total);
            // Who cannot see it misses nothing else.
            let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        }
    }
}

/// The line goes, for what comes after it.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, done: u64, total: Option<u64>) -> String {
    match total.filter(|total| *total > 0) {
        Some(total) => {
            let percent = u128::from(done.min(total)) * 100 / u128::from(total);
            format!("{what} {} of {} ({percent} %)", bytes(done), bytes(total))
        }
        None => format!("{what} {}", bytes(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_how_much_of_how_much() {
        assert_eq!(line("imported", 512, Some(1024)), "imported 512 B of 1.0 KiB (50 %)");
        assert_eq!(line("imported", 2048, Some(1024)), "imported 2.0 KiB of 1.0 KiB (100 %)");
        assert_eq!(line("exported", 1024, None), "exported 1.0 KiB");
        assert_eq!(line("imported", 0, Some(0)), "imported 0 B");
    }
}
