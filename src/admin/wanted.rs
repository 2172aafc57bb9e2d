//! Which events a configured handler takes, as far as their type tells.

use wildmatch::WildMatch;

use crate::config::Handler;
use crate::event::MALFORMED;

/// The globs of one handler. Its `when` needs the whole event and is the replayer's to ask.
#[derive(Clone)]
pub struct Wanted {
    globs: Vec<WildMatch>,
    names_malformed: bool,
}

impl Wanted {
    pub fn by(handler: &Handler) -> Wanted {
        Wanted {
            globs: handler.events.iter().map(|glob| WildMatch::new(glob)).collect(),
            names_malformed: handler.events.iter().any(|glob| glob == MALFORMED),
        }
    }

    pub fn matches(&self, kind: &str) -> bool {
        if kind == MALFORMED {
            return self.names_malformed;
        }
        self.globs.iter().any(|glob| glob.matches(kind))
    }
}
