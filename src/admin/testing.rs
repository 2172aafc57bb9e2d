//! A whole API over a store in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{AdminContext, Arrivals, ReplayControl};
use crate::clock::{BoxFuture, Clock, TestClock, Timestamp};
use crate::config::{Config, LoadOptions, Retention};
use crate::delivery::{Attempt, DeliveryKey, HandlerName, Outcome, Seq, State};
use crate::event::{NewEvent, VerifiedBy};
use crate::replay::planner::HandlerSnapshot;
use crate::store::disk::MemDisk;
use crate::store::index::memory::MemoryKv;
use crate::store::record::Record;
use crate::store::{AppendError, FIRST_GENERATION, Home, Store, StoreOptions};

const WALL: Timestamp = Timestamp(1_790_000_000_000);

/// No handler ever runs.
struct Still;

impl ReplayControl for Still {
    fn set_paused(&self, _: HandlerName, _: bool) -> BoxFuture<'_, Result<(), AppendError>> {
        Box::pin(async { Ok(()) })
    }

    fn nudge(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn handlers(&self) -> BoxFuture<'_, Vec<HandlerSnapshot>> {
        Box::pin(async { Vec::new() })
    }
}

impl Arrivals for Still {}

/// The API as it is with these `[[handler]]`s.
pub fn context(handlers: &str) -> Arc<AdminContext> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bluehook.toml");
    std::fs::write(&file, format!("data_dir = \"/data\"\n{handlers}")).unwrap();
    let options = LoadOptions { file: Some(file), ..LoadOptions::default() };
    let config = Arc::new(Config::load(&options).unwrap().config);
    let clock: Arc<dyn Clock> = Arc::new(TestClock::new(WALL));
    let retention =
        Retention { delivered: None, dead: None, dedup: Duration::MAX, disk_max: 1 << 31 };
    let options = StoreOptions { data_dir: Path::new("/data").to_owned(), retention };
    let home = Home::Memory(MemoryKv::new());
    let store = Store::open_with(Arc::new(MemDisk::new()), options, clock.clone(), home).unwrap();
    Arc::new(AdminContext {
        store,
        config: Arc::new(move || config.clone()),
        clock,
        replay: Arc::new(Still),
        arrivals: Arc::new(Still),
        notices: None,
        door: None,
        intake: Vec::new(),
        tls: false,
        started_at: WALL,
        stopped: false,
    })
}

pub async fn store_event(store: &Store, id: &str, kind: &str) -> Seq {
    let event = NewEvent {
        source: "bluereplies".into(),
        id: id.into(),
        kind: kind.into(),
        received_at: WALL,
        headers: vec![],
        verified_by: VerifiedBy::Raw,
        body: format!(r#"{{"eventId":"{id}"}}"#).into(),
        conversation: None,
        imported: false,
    };
    let seq = store.append_event(event).await.unwrap().seq();
    store.wait_applied(seq).await;
    seq
}

/// The handler tries event `seq` once, and that is its end.
pub async fn settle(store: &Store, handler: &str, seq: Seq, outcome: Outcome) {
    let key = DeliveryKey { event: seq, handler: HandlerName::new(handler).unwrap() };
    let generation = FIRST_GENERATION;
    store.append(Record::AttemptStarted { key: key.clone(), generation, number: 1 }).await.unwrap();
    let next = match &outcome {
        Outcome::Delivered => State::Delivered,
        other => State::Dead { reason: other.reason().unwrap_or_default().to_owned() },
    };
    let attempt = Attempt {
        number: 1,
        generation,
        started_at: WALL,
        took_ms: 3,
        outcome,
        request: None,
        response: None,
    };
    let record = Record::AttemptFinished { key, attempt, next };
    let receipt = store.append_durable(record).await.unwrap();
    store.wait_applied(receipt.seq()).await;
}
