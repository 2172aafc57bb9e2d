//! The admin API: what people and scripts ask of a running appliance.
//!
//! [`socket`] listens, [`routes`] answers; the modules below it do one group of routes each. Handlers
//! are never called from here: what is to run is written to the store and the replayer finds it.

mod body;
mod change;
mod lists;
mod problem;
mod query;
pub mod routes;
pub mod sample;
pub mod send;
pub mod serve;
pub mod socket;
mod status;
mod stream;
#[cfg(test)]
mod testing;
mod transfer;
mod wanted;
pub mod wire;

use std::sync::Arc;

pub use body::{Answer, AnswerBody, json};
pub use problem::Problem;
pub use wanted::Wanted;

use crate::clock::{BoxFuture, Clock, Timestamp};
use crate::config::{Config, Listen};
use crate::delivery::HandlerName;
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
    /// How many attempts run now, per handler.
    fn running(&self) -> BoxFuture<'_, Vec<(HandlerName, u64)>>;
}

/// The ring of requests that intake refused, newest first.
pub trait Rejections: Send + Sync {
    fn rejections(&self) -> Vec<serde_json::Value>;
}

/// All that the API needs of the rest.
pub struct AdminContext {
    pub store: Store,
    /// The configuration in force now; a reload replaces it.
    pub config: Arc<dyn Fn() -> Arc<Config> + Send + Sync>,
    pub clock: Arc<dyn Clock>,
    pub replay: Arc<dyn ReplayControl>,
    pub rejections: Arc<dyn Rejections>,
    /// Where intake listens in fact.
    pub intake: Vec<Listen>,
    pub started_at: Timestamp,
    /// The store of a stopped appliance, opened for reading: nothing runs.
    pub stopped: bool,
}
