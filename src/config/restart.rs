//! What a reload can't change.

use super::Config;

impl Config {
    /// The keys whose change takes effect only after a restart.
    #[must_use]
    pub fn changes_needing_restart(old: &Config, new: &Config) -> Vec<String> {
        let keys = [
            ("data_dir", old.data_dir != new.data_dir),
            ("intake.listen", old.intake.listen != new.intake.listen),
            ("intake.tls", old.intake.tls != new.intake.tls),
            ("limits.attempts", old.limits.attempts != new.limits.attempts),
            ("admin.socket", old.admin.socket != new.admin.socket),
            ("admin.listen", old.admin.listen != new.admin.listen),
            ("log.format", old.log.format != new.log.format),
        ];
        keys.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key.to_owned()).collect()
    }
}
