//! What attempts came to, on its way into the log: everything that waits goes together.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Shared;
use crate::delivery::DeliveryKey;
use crate::replay::planner::Input;
use crate::store::record::Record;

/// Outcomes logged together.
const BATCH_MAX: usize = 256;

pub(super) struct Settled {
    pub key: DeliveryKey,
    pub record: Record,
}

/// Until the sender is gone and all is logged.
pub(super) async fn run(shared: Arc<Shared>, mut queue: mpsc::UnboundedReceiver<Settled>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (keys, records): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|settled| (settled.key, settled.record)).unzip();
        let Some((last, epoch)) = shared.append(&records, |_| true).await else { return };
        for (key, after) in keys.into_iter().zip((0..records.len() as u64).rev()) {
            shared.send(Input::Logged { key, seq: last - after, epoch }).await;
        }
    }
}
