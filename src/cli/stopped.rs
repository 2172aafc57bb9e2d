//! Reading the store while no appliance runs on it: the same routes, answered in this process.

use std::sync::Arc;

use super::args::{Command, Common, Dead, Events};
use super::client::Client;
use super::{Failure, settings};
use crate::admin::{AdminContext, Arrivals, HandlerSnapshot, ReplayControl};
use crate::clock::{BoxFuture, Clock, SystemClock};
use crate::delivery::HandlerName;
use crate::store::disk::RealDisk;
use crate::store::{AppendError, OpenError, Store};

/// Verbs that only read what is stored.
fn only_reads(command: &Command) -> bool {
    matches!(
        command,
        Command::Events(Events::List { .. } | Events::Show { .. })
            | Command::Dead(Dead::List { .. })
            | Command::Export { .. }
    )
}

/// The running appliance, or for a verb that only reads the stopped store.
pub async fn client(common: &Common, command: &Command) -> Result<Client, Failure> {
    let running = Client { socket: settings::socket(common)?, stopped: None };
    // With --socket one appliance is meant, not whatever store the configuration names.
    if common.socket.is_some() || !only_reads(command) || running.is_answered().await {
        return Ok(running);
    }
    let config = Arc::new(settings::load(common)?.config);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let data_dir = config.data_dir.display();
    let store = Store::open_read_only(Arc::new(RealDisk), &config.data_dir, Arc::clone(&clock));
    let store = store.map_err(|error| match error {
        OpenError::Locked { pid } => Failure::unreachable(format!(
            "cannot reach bluehook at {}, yet it{} holds {data_dir}: it is starting or stopping, or its admin.socket \
             is another; try again, or give --socket",
            running.socket.display(),
            pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        )),
        OpenError::Other(line) => Failure::unreachable(format!(
            "bluehook does not run, and {line}; start it with `bluehook serve`"
        )),
    })?;
    let started_at = clock.now().wall;
    let cx = AdminContext {
        store,
        config: Arc::new(move || Arc::clone(&config)),
        clock,
        replay: Arc::new(Nothing),
        arrivals: Arc::new(Nothing),
        notices: None,
        door: None,
        intake: Vec::new(),
        tls: false,
        started_at,
        stopped: true,
    };
    Ok(Client { stopped: Some(Arc::new(cx)), ..running })
}

/// What runs in a stopped appliance.
struct Nothing;

impl ReplayControl for Nothing {
    fn set_paused(&self, _: HandlerName, _: bool) -> BoxFuture<'_, Result<(), AppendError>> {
        Box::pin(async { Err(AppendError::Closed) })
    }

    fn nudge(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn handlers(&self) -> BoxFuture<'_, Vec<HandlerSnapshot>> {
        Box::pin(async { Vec::new() })
    }
}

impl Arrivals for Nothing {}
