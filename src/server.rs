//! Wiring: what starts in which order, and how it stops.

use std::path::PathBuf;

#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub config: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub virtual_clock: Option<PathBuf>,
}

/// Runs until a signal; returns the exit code.
#[must_use]
pub fn serve(_options: ServeOptions) -> u8 {
    todo!()
}
