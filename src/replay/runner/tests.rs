use std::path::Path;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::clock::{BoxFuture, TestClock};
use crate::config::{Circuit, Order, Retention};
use crate::delivery::State;
use crate::event::{NewEvent, VerifiedBy};
use crate::schedule::Schedule;
use crate::store::disk::{self, Disk, Fault, FaultDisk, MemDisk};
use crate::store::index::memory::MemoryKv;
use crate::store::{Home, StoreOptions};

const WALL: Timestamp = Timestamp(1_790_000_000_000);

/// Always succeeds, and counts.
#[derive(Default)]
struct Counting(AtomicU32);

impl Handler for Counting {
    fn run(&self, _call: Call) -> BoxFuture<'_, Report> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { bare(Outcome::Delivered) })
    }
}

fn store(disk: Arc<dyn Disk>, clock: Arc<TestClock>) -> Store {
    let retention =
        Retention { delivered: None, dead: None, dedup: Duration::MAX, disk_max: 1 << 31 };
    let options = StoreOptions { data_dir: Path::new("/data").to_owned(), retention };
    Store::open_with(disk, options, clock, Home::Memory(MemoryKv::new())).unwrap()
}

fn event() -> NewEvent {
    NewEvent {
        source: "bluereplies".to_owned(),
        id: "e1".to_owned(),
        kind: "message.read".to_owned(),
        received_at: WALL,
        headers: Vec::new(),
        verified_by: VerifiedBy::Raw,
        body: "{}".into(),
        conversation: None,
        imported: false,
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "never: {what}");
}

/// Found by the simulator: one failed read made the delivery dead at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_just_now_is_tried_again() {
    let fault = FaultDisk::new(Arc::new(MemDisk::new()));
    let clock = Arc::new(TestClock::new(WALL));
    let store = store(Arc::new(fault.clone()), clock.clone());
    let seq = store.append_event(event()).await.unwrap().seq();
    until("the event is indexed", || store.progress().borrow().applied >= seq).await;

    let name = HandlerName::new("crm").unwrap();
    let key = DeliveryKey { event: seq, handler: name.clone() };
    let counting = Arc::new(Counting::default());
    let handler = RunnerHandler {
        plan: HandlerPlan {
            name,
            order: Order::None,
            concurrency: 1,
            rate: None,
            schedule: Schedule::default(),
            circuit: Circuit::OFF,
        },
        start: Start::Beginning,
        timeout: Duration::from_secs(5),
        matches_kind: Arc::new(|_| true),
        when: None,
        uses_message: false,
        handler: counting.clone(),
    };
    // The index reads the log as well; what it is refused it asks for again.
    let (call, error) = (Some(disk::Call::Read), std::io::ErrorKind::Other);
    fault.fail(Fault { call, nth: 1, error, sticky: true });
    let replay = start(store.clone(), clock.clone(), vec![handler], usize::MAX);
    // The boot, the event, the handler met, the attempt's start and its end.
    until("the attempt has ended", || store.next_seq() == 6).await;
    fault.heal();

    let retried = || {
        let delivery = store.delivery(&key);
        delivery.is_some_and(|d| d.attempts == 1 && d.open_attempt.is_none())
    };
    until("the first attempt is settled", retried).await;
    assert!(matches!(store.delivery(&key).unwrap().state, State::Scheduled { .. }));
    assert_eq!(counting.0.load(Ordering::Relaxed), 0);
    clock.advance(Duration::from_secs(31));
    until("it is delivered", || store.delivery(&key).is_some_and(|d| d.state == State::Delivered))
        .await;
    assert_eq!(counting.0.load(Ordering::Relaxed), 1);
    replay.stop().await;
    store.close().await;
}
