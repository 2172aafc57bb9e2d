//! How many files there may be open, and who shares them.

use super::Config;

/// A command's input, output and errors, and the process itself; what HTTP takes is less.
const FILES_PER_ATTEMPT: u64 = 4;

impl Config {
    /// As many as all of it together could have open.
    #[must_use]
    pub fn open_files_wanted(&self) -> u64 {
        let attempts = self.limits.attempts as u64 * FILES_PER_ATTEMPT;
        self.limits.files_reserved + self.intake.connections_max as u64 + attempts
    }

    /// Lowers the limits of connections and attempts to what `open_files` allow, so that a file of the log can always
    /// be opened. Gives a line for people where it did.
    pub fn fit_to_open_files(&mut self, open_files: u64) -> Option<String> {
        let wanted = self.open_files_wanted();
        if open_files >= wanted {
            return None;
        }
        let shared = open_files - self.limits.files_reserved.min(open_files / 2);
        let most = |n: u64| usize::try_from(n.max(1)).unwrap_or(usize::MAX);
        let connections = most(shared / 2).min(self.intake.connections_max);
        let rest = shared.saturating_sub(connections as u64);
        let attempts = most(rest / FILES_PER_ATTEMPT).min(self.limits.attempts);
        (self.intake.connections_max, self.limits.attempts) = (connections, attempts);
        Some(format!(
            "{open_files} open files are allowed, {wanted} are wanted: at most {connections} connections and \
             {attempts} attempts at once; raise the limit (LimitNOFILE= of the service, or ulimit -n)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LoadOptions;

    fn defaults() -> Config {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/default.toml");
        let options = LoadOptions { file: Some(file.into()), ..LoadOptions::default() };
        Config::load(&options).unwrap().config
    }

    #[test]
    fn where_all_could_be_open_nothing_is_lowered() {
        let mut config = defaults();
        let wanted = config.open_files_wanted();
        assert_eq!(wanted, 128 + 1024 + 4 * 256);
        assert_eq!(config.fit_to_open_files(wanted), None);
        assert_eq!((config.intake.connections_max, config.limits.attempts), (1024, 256));
    }

    #[test]
    fn the_log_has_its_files_however_few_there_are() {
        for (open_files, connections, attempts) in
            [(2_000, 936, 234), (1_024, 448, 112), (64, 16, 4), (16, 4, 1), (0, 1, 1)]
        {
            let mut config = defaults();
            let line = config.fit_to_open_files(open_files).unwrap();
            let lowered = (config.intake.connections_max, config.limits.attempts);
            assert_eq!(lowered, (connections, attempts), "{open_files}");
            assert!(line.contains(&format!("at most {connections} connections and {attempts} at")));
        }
    }
}
