//! Threads that no acknowledgement waits for. On a machine that is busy they get out of its way.

use std::io;
use std::thread::{Builder, JoinHandle};

/// A tenth of the time where both want to run.
const NICENESS: i32 = 10;

/// What the thread starts is as patient: so are the writers of sled.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(|| {
        // On Linux this is the thread, not the process. Without it there is less for the others.
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "a thread runs at the priority of all");
        }
        body();
    })
}
