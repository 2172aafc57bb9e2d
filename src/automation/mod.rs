//! What happens by itself, from the log: follow-ups.

pub mod followup;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::config::FollowUp;
use crate::delivery::{HandlerName, Seq};
use crate::store::Store;
use followup::FollowUps;

/// The rules at work, each in a task of its own: none holds up another.
pub struct Automations {
    store: Store,
    clock: Arc<dyn Clock>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    /// Where the log was when each rule first came up.
    new_from: HashMap<HandlerName, Seq>,
    tasks: Option<Tasks>,
}

struct Tasks {
    stop: watch::Sender<bool>,
    all: JoinSet<()>,
}

impl Automations {
    pub async fn start(store: Store, clock: Arc<dyn Clock>, rules: &[FollowUp]) -> Automations {
        let automations = Automations { store, clock, running: Mutex::default() };
        automations.reconfigure(rules).await;
        automations
    }

    /// Timers of rules that are left out stay, and go on once the rule is there again.
    pub async fn reconfigure(&self, rules: &[FollowUp]) {
        let mut running = self.running.lock().await;
        end(running.tasks.take()).await;
        let next = self.store.next_seq();
        running.new_from.retain(|name, _| rules.iter().any(|rule| rule.name == *name));
        let (stop, stopping) = watch::channel(false);
        let mut all = JoinSet::new();
        for rule in rules {
            let from = *running.new_from.entry(rule.name.clone()).or_insert(next);
            let rule = FollowUps::new(self.store.clone(), Arc::clone(&self.clock), rule, from);
            all.spawn(rule.run(stopping.clone()));
        }
        running.tasks = Some(Tasks { stop, all });
    }

    pub async fn stop(&self) {
        end(self.running.lock().await.tasks.take()).await;
    }
}

async fn end(tasks: Option<Tasks>) {
    let Some(Tasks { stop, mut all }) = tasks else { return };
    stop.send_replace(true);
    while all.join_next().await.is_some() {}
}
