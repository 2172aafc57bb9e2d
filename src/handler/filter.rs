//! Which events a handler wants.

use std::sync::Arc;

use wildmatch::WildMatch;

use super::template::{self, Engine};
use crate::event::{Event, MALFORMED};
use crate::message::MessageView;

/// Globs over the event's type, then the optional `when`.
#[derive(Clone)]
pub struct Filter {
    pub(super) handler: String,
    pub(super) globs: Vec<WildMatch>,
    pub(super) names_malformed: bool,
    pub(super) when: Option<(String, Arc<Engine>)>,
}

impl Filter {
    /// Malformed bodies go only to handlers that ask for `malformed` by name: `*` is not enough.
    #[must_use]
    pub fn matches_kind(&self, kind: &str) -> bool {
        if kind == MALFORMED {
            return self.names_malformed;
        }
        self.globs.iter().any(|glob| glob.matches(kind))
    }

    /// Whether [`Filter::when`] needs the event at all.
    #[must_use]
    pub fn has_when(&self) -> bool {
        self.when.is_some()
    }

    /// # Errors
    /// The expression cannot be computed for this event.
    pub fn when(&self, event: &Event, message: Option<&MessageView>) -> Result<bool, String> {
        let Some((source, engine)) = &self.when else { return Ok(true) };
        engine.is_true("when", source, &template::context(event, message, &self.handler, 1))
    }
}
