//! What happens by itself, from the log: follow-ups.

pub mod followup;

use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::config::FollowUp;
use crate::store::Store;
use followup::FollowUps;

/// The rules at work, each in a task of its own: none holds up another.
pub struct Automations {
    store: Store,
    clock: Arc<dyn Clock>,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Automations {
    pub async fn start(store: Store, clock: Arc<dyn Clock>, rules: &[FollowUp]) -> Automations {
        let automations = Automations { store, clock, running: Mutex::new(None) };
        automations.reconfigure(rules).await;
        automations
    }

    /// Timers of rules that are left out stay, and go on once the rule is there again.
    pub async fn reconfigure(&self, rules: &[FollowUp]) {
        let mut running = self.running.lock().await;
        end(running.take()).await;
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for rule in rules {
            let rule = FollowUps::new(self.store.clone(), Arc::clone(&self.clock), rule);
            tasks.spawn(rule.run(stopping.clone()));
        }
        *running = Some(Running { stop, tasks });
    }

    pub async fn stop(&self) {
        end(self.running.lock().await.take()).await;
    }
}

async fn end(running: Option<Running>) {
    let Some(Running { stop, mut tasks }) = running else { return };
    stop.send_replace(true);
    while tasks.join_next().await.is_some() {}
}
