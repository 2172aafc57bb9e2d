//! The admin API: what people and scripts ask of a running appliance.
//!
//! [`socket`] listens, [`routes`] answers; the modules below it do one group of routes each. Handlers
//! are never called from here: what is to run is written to the store and the replayer finds it.

mod activity;
mod body;
mod change;
mod door;
mod guard;
mod lists;
mod messages;
mod metrics;
mod openapi;
mod own_tls;
mod page;
mod problem;
mod query;
pub mod routes;
pub mod sample;
pub mod send;
pub mod serve;
pub mod socket;
mod status;
mod stream;
pub mod tcp;
#[cfg(test)]
mod testing;
mod transfer;
mod wanted;
pub mod wire;

use std::sync::Arc;

pub use body::{Answer, AnswerBody, json};
pub use door::Door;
pub use guard::Guard;
pub use problem::Problem;
pub use wanted::Wanted;

use crate::clock::{BoxFuture, Clock, Timestamp};
use crate::config::{Config, Listen};
use crate::delivery::{HandlerName, Seq};
use crate::intake::{CounterView, Load, Minute, Note};
pub use crate::replay::planner::HandlerSnapshot;
use crate::replay::tally::Tally;
use crate::store::{AppendError, Store};

/// The replayer, as far as the API steers it.
pub trait ReplayControl: Send + Sync {
    fn set_paused(
        &self,
        handler: HandlerName,
        paused: bool,
    ) -> BoxFuture<'_, Result<(), AppendError>>;
    /// Something became due.
    fn nudge(&self) -> BoxFuture<'_, ()>;
    /// How the configured handlers stand now.
    fn handlers(&self) -> BoxFuture<'_, Vec<HandlerSnapshot>>;
    /// What attempts came to.
    fn tally(&self) -> Arc<Tally> {
        Arc::default()
    }
}

/// Intake, as far as the API shows it. Without one nothing has arrived.
pub trait Arrivals: Send + Sync {
    /// Requests that left no event, newest first.
    fn rejections(&self) -> Vec<Note> {
        Vec::new()
    }
    fn counters(&self) -> CounterView {
        CounterView::default()
    }
    /// How near its limits intake is.
    fn load(&self) -> Load {
        Load::default()
    }
    /// How long the 200 for an event took, where that is known.
    fn answered_in_ms(&self, _seq: Seq) -> Option<u64> {
        None
    }
    /// Minute by minute, oldest first.
    fn last_hour(&self) -> Vec<(Timestamp, Minute)> {
        Vec::new()
    }
}

/// Who is told that something is wrong, as far as the API can try it.
pub trait Notices: Send + Sync {
    /// Sends a notice of type `notice.test`, once.
    fn test(&self) -> BoxFuture<'_, Result<(), NotTold>>;
}

/// Why a test notice did not arrive.
pub enum NotTold {
    /// There is no `[notify]`.
    NobodyIsTold,
    Failed(String),
}

/// All that the API needs of the rest.
pub struct AdminContext {
    pub store: Store,
    /// The configuration in force now; a reload replaces it.
    pub config: Arc<dyn Fn() -> Arc<Config> + Send + Sync>,
    pub clock: Arc<dyn Clock>,
    pub replay: Arc<dyn ReplayControl>,
    pub arrivals: Arc<dyn Arrivals>,
    /// `None`: nothing runs.
    pub notices: Option<Arc<dyn Notices>>,
    /// Where intake listens in fact.
    pub intake: Vec<Listen>,
    /// Whether those of TCP speak TLS.
    pub tls: bool,
    /// How the page is signed in to; `None` where it is not served.
    pub door: Option<Arc<Door>>,
    pub started_at: Timestamp,
    /// The store of a stopped appliance, opened for reading: nothing runs.
    pub stopped: bool,
}
