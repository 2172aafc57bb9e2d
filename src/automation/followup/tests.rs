use std::path::Path;

use super::*;
use crate::clock::TestClock;
use crate::config::Retention;
use crate::event::Envelope;
use crate::store::disk::{Disk, MemDisk};
use crate::store::index::memory::MemoryKv;
use crate::store::{EventFilter, Home, StoreOptions};

const WALL: Timestamp = Timestamp(1_790_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const AFTER: Duration = Duration::from_secs(24 * 3600);

/// An appliance's store with one rule, that can be stopped and started.
struct Bench {
    disk: Arc<MemDisk>,
    index: MemoryKv,
    clock: Arc<TestClock>,
    config: FollowUp,
    store: Store,
    rule: FollowUps,
    ids: u64,
}

fn config(repeat: bool) -> FollowUp {
    FollowUp {
        name: HandlerName::of_follow_up("no-reply").unwrap(),
        start: vec!["message.read".into()],
        cancel: vec!["message.received".into()],
        after: AFTER,
        repeat,
    }
}

fn open(disk: &Arc<MemDisk>, index: &MemoryKv, clock: &Arc<TestClock>) -> Store {
    let retention =
        Retention { delivered: None, dead: None, dedup: Duration::MAX, disk_max: 1 << 31 };
    let options = StoreOptions { data_dir: Path::new("/data").to_owned(), retention };
    let disk: Arc<dyn Disk> = Arc::clone(disk) as Arc<dyn Disk>;
    Store::open_with(disk, options, clock.clone(), Home::Memory(index.clone())).unwrap()
}

impl Bench {
    async fn new(config: FollowUp) -> Bench {
        let (disk, index) = (Arc::new(MemDisk::new()), MemoryKv::new());
        let clock = Arc::new(TestClock::new(WALL));
        let store = open(&disk, &index, &clock);
        let rule = FollowUps::new(store.clone(), clock.clone(), &config, store.next_seq());
        let mut bench = Bench { disk, index, clock, config, store, rule, ids: 0 };
        bench.turn().await;
        bench
    }

    async fn turn(&mut self) {
        // The store's own threads need a moment after a start.
        let mut tries = 0;
        while self.rule.turn().await.is_err() {
            tries += 1;
            assert!(tries < 10_000, "the store is never ready");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// `without_index`: it is built anew from the log.
    async fn restart(&mut self, without_index: bool) {
        self.store.close().await;
        if without_index {
            self.index.clear();
        }
        self.store = open(&self.disk, &self.index, &self.clock);
        self.rule = FollowUps::new(
            self.store.clone(),
            self.clock.clone(),
            &self.config,
            self.store.next_seq(),
        );
    }

    async fn event(&mut self, kind: &str, data: &str) -> String {
        self.ids += 1;
        let id = format!("e{}", self.ids);
        let body = format!(r#"{{"eventId":"{id}","type":"{kind}","data":{data}}}"#);
        let event = NewEvent {
            source: "bluereplies".into(),
            id: id.clone(),
            kind: kind.into(),
            received_at: self.clock.now().wall,
            headers: vec![],
            verified_by: VerifiedBy::Raw,
            conversation: Envelope::parse(body.as_bytes()).conversation(),
            body: body.into(),
            imported: false,
        };
        self.store.append_event(event).await.unwrap();
        id
    }

    async fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        self.turn().await;
    }

    /// The ids of the start events that were followed up, oldest first.
    async fn fired(&mut self) -> Vec<String> {
        self.store.wait_applied(self.store.durable_seq()).await;
        let filter = EventFilter { kind: Some(DUE.into()), ..EventFilter::default() };
        let mut fired: Vec<_> = self.store.list_events(&filter, None, 100_000).items;
        fired.sort_by_key(|stored| stored.event.seq);
        let ids = fired.iter().map(|stored| {
            assert_eq!(stored.duplicates, 0);
            let id = stored.event.new.id.strip_prefix("followup:no-reply:").unwrap();
            id.to_owned()
        });
        ids.collect()
    }
}

const READ: &str = r#"{"messageId":"m1","from":"+1","to":"+49 30"}"#;
const REPLY: &str = r#"{"messageId":"r1","from":"+4930","to":"+1"}"#;

#[tokio::test]
async fn a_message_that_was_read_and_not_answered_is_followed_up_once() {
    let mut bench = Bench::new(config(false)).await;
    bench
        .event("message.sent", r#"{"messageId":"m1","from":"+1","to":"+49 30","body":"Hi"}"#)
        .await;
    let read = bench.event("message.read", r#"{"messageId":"m1"}"#).await;
    bench.pass(AFTER - HOUR).await;
    assert_eq!(bench.fired().await, [""; 0]);
    bench.pass(HOUR).await;
    assert_eq!(bench.fired().await, [read.as_str()]);
    let seq = bench.store.find(&format!("followup:no-reply:{read}"))[0];
    let event = bench.store.event(seq).unwrap();
    let payload: serde_json::Value = serde_json::from_slice(&event.new.body).unwrap();
    let data = &payload["data"];
    assert_eq!((&data["to"], &data["body"]), (&json!("+49 30"), &json!("Hi")));
    assert_eq!((&data["conversation"], &data["startedBy"]), (&json!("4930"), &json!(read)));
    assert_eq!(data["message"]["status"], "read");
    assert_eq!(event.new.conversation.as_deref(), Some("4930"));
    // The reminder that a handler sends is read, too: no end of reminders.
    bench.event("message.read", r#"{"messageId":"m2","to":"+4930"}"#).await;
    bench.pass(AFTER * 3).await;
    assert_eq!(bench.fired().await.len(), 1);
    bench.event("message.received", REPLY).await;
    bench.clock.advance(HOUR);
    let again = bench.event("message.read", r#"{"messageId":"m3","to":"+4930"}"#).await;
    bench.pass(AFTER * 3).await;
    assert_eq!(bench.fired().await, [read, again]);
}

#[tokio::test]
async fn with_repeat_each_silence_is_followed_up() {
    let mut bench = Bench::new(config(true)).await;
    let first = bench.event("message.read", READ).await;
    bench.event("message.read", r#"{"messageId":"m2","to":"+4930"}"#).await;
    bench.pass(AFTER).await;
    let second = bench.event("message.read", r#"{"messageId":"m3","to":"+4930"}"#).await;
    bench.pass(AFTER).await;
    assert_eq!(bench.fired().await, [first, second], "one timer at a time");
}

#[tokio::test]
async fn a_reply_ends_the_timer_also_across_restarts_and_rebuilds() {
    for without_index in [false, true] {
        let mut bench = Bench::new(config(false)).await;
        bench.event("message.read", READ).await;
        bench.turn().await;
        bench.restart(without_index).await;
        bench.event("message.received", REPLY).await;
        bench.restart(without_index).await;
        bench.pass(AFTER * 2).await;
        assert_eq!(bench.fired().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_reply_that_is_in_the_log_before_the_receipt_counts() {
    // After the message was sent: however long before the receipt.
    let mut bench = Bench::new(config(false)).await;
    bench.event("message.sent", READ).await;
    bench.clock.advance(HOUR);
    bench.event("message.received", REPLY).await;
    bench.clock.advance(HOUR * 5);
    bench.event("message.read", READ).await;
    bench.pass(AFTER * 2).await;
    assert_eq!(bench.fired().await, [""; 0]);

    // What was written before the message was sent is no answer to it.
    let mut bench = Bench::new(config(false)).await;
    bench.event("message.received", REPLY).await;
    bench.event("message.sent", READ).await;
    let read = bench.event("message.read", READ).await;
    bench.pass(AFTER * 2).await;
    assert_eq!(bench.fired().await, [read]);

    // Where nothing tells when it was sent: not long before the receipt, or before the time in it.
    let mut bench = Bench::new(config(false)).await;
    bench.event("message.received", REPLY).await;
    bench.clock.advance(Duration::from_secs(60));
    bench.event("message.read", READ).await;
    bench.pass(AFTER * 2).await;
    assert_eq!(bench.fired().await, [""; 0]);

    let mut bench = Bench::new(config(false)).await;
    bench.event("message.received", REPLY).await;
    bench.clock.advance(HOUR / 2);
    let read_at = WALL.to_rfc3339();
    let late = format!(r#"{{"messageId":"m1","to":"+4930","readAt":"{read_at}"}}"#);
    bench.event("message.read", &late).await;
    bench.pass(AFTER * 2).await;
    assert_eq!(bench.fired().await, [""; 0], "the receipt came half an hour late");

    let mut bench = Bench::new(config(false)).await;
    bench.event("message.received", REPLY).await;
    bench.clock.advance(HOUR / 2);
    let read = bench.event("message.read", READ).await;
    bench.pass(AFTER * 2).await;
    assert_eq!(bench.fired().await, [read]);
}

#[tokio::test]
async fn a_receipt_whose_message_is_told_later_counts_from_when_it_came() {
    let mut bench = Bench::new(config(false)).await;
    let read = bench.event("message.read", r#"{"messageId":"m1"}"#).await;
    bench.pass(HOUR * 2).await;
    bench.event("message.sent", READ).await;
    bench.pass(AFTER - HOUR * 2).await;
    assert_eq!(bench.fired().await, [read]);
}

#[tokio::test]
async fn a_rule_begins_with_what_comes_after_it() {
    let mut bench =
        Bench::new(FollowUp { name: HandlerName::of_follow_up("other").unwrap(), ..config(false) })
            .await;
    bench.event("message.read", READ).await;
    bench.config = config(false);
    bench.restart(false).await;
    bench.turn().await;
    let read = bench.event("message.read", READ).await;
    bench.pass(AFTER).await;
    assert_eq!(bench.fired().await, [read]);
}

#[tokio::test]
async fn a_wall_clock_that_jumps_neither_fires_nor_loses_a_timer() {
    let mut bench = Bench::new(config(false)).await;
    let read = bench.event("message.read", READ).await;
    bench.turn().await;
    bench.clock.set_wall(WALL.plus(AFTER * 400));
    bench.turn().await;
    assert_eq!(bench.fired().await, [""; 0]);
    bench.clock.set_wall(WALL.minus(AFTER * 400));
    bench.pass(AFTER - HOUR).await;
    assert_eq!(bench.fired().await, [""; 0]);
    bench.pass(HOUR).await;
    assert_eq!(bench.fired().await, [read]);
}

/// What the rule says of one conversation, from its events in the order of the log. Every message here was sent
/// before, so that what was said before counts as an answer if it came after that.
#[derive(Default)]
struct Expected {
    timer: Option<(String, Timestamp)>,
    barred: bool,
    fired: Vec<String>,
}

impl Expected {
    fn until(&mut self, now: Timestamp) {
        if let Some((id, _)) = self.timer.take_if(|(_, due)| *due <= now) {
            self.fired.push(id);
            self.barred = true;
        }
    }

    fn reply(&mut self) {
        self.timer = None;
        self.barred = false;
    }

    fn read(&mut self, id: String, now: Timestamp, answered: bool) {
        if self.timer.is_none() && !self.barred && !answered {
            self.timer = Some((id, now.plus(AFTER)));
        }
    }
}

/// Conversations of one store side by side, each a history of its own.
struct Histories {
    rng: fastrand::Rng,
    bench: Bench,
    of: Vec<History>,
    messages: u64,
}

#[derive(Default)]
struct History {
    expected: Expected,
    /// Messages sent, each with the number of replies there were by then.
    sent: Vec<(u64, u32)>,
    replies: u32,
}

impl Histories {
    /// Something happens in conversation `c`.
    async fn step(&mut self, c: usize) {
        let now = self.bench.clock.now().wall;
        let party = format!("+49{c:05}");
        let history = &mut self.of[c];
        match self.rng.u32(0..8) {
            0..=2 => {
                self.messages += 1;
                history.sent.push((self.messages, history.replies));
                let id = self.messages;
                let data = format!(r#"{{"messageId":"m{id}","from":"+1555","to":"{party}"}}"#);
                self.bench.event("message.sent", &data).await;
            }
            3..=6 => {
                let Some(&(message, replies)) = self.rng.choice(&history.sent) else { return };
                // Some receipts name the party, some only the message.
                let data = match self.rng.bool() {
                    true => format!(r#"{{"messageId":"m{message}"}}"#),
                    false => format!(r#"{{"messageId":"m{message}","to":"{party}"}}"#),
                };
                let id = self.bench.event("message.read", &data).await;
                history.expected.read(id, now, history.replies > replies);
            }
            _ => {
                history.replies += 1;
                let data = format!(r#"{{"messageId":"r","from":"{party}"}}"#);
                self.bench.event("message.received", &data).await;
                history.expected.reply();
            }
        }
    }

    async fn pass(&mut self, time: Duration) {
        self.bench.pass(time).await;
        let now = self.bench.clock.now().wall;
        self.of.iter_mut().for_each(|history| history.expected.until(now));
    }
}

/// With restarts, rebuilds, and times in which the rule does not get to run.
async fn random_histories(seed: u64, conversations: usize, stretches: usize) {
    let mut all = Histories {
        rng: fastrand::Rng::with_seed(seed),
        bench: Bench::new(config(false)).await,
        of: (0..conversations).map(|_| History::default()).collect(),
        messages: 0,
    };
    for _ in 0..stretches {
        for _ in 0..conversations / 2 {
            let c = all.rng.usize(0..conversations);
            all.step(c).await;
        }
        match all.rng.u32(0..8) {
            0..=4 => {
                let hours = all.rng.u32(1..20);
                all.pass(HOUR * hours).await;
            }
            5 => {
                let without_index = all.rng.bool();
                all.bench.restart(without_index).await;
            }
            6 => all.bench.turn().await,
            _ => {}
        }
    }
    all.pass(AFTER * 2).await;
    let mut wanted: Vec<String> = all.of.into_iter().flat_map(|h| h.expected.fired).collect();
    let mut fired = all.bench.fired().await;
    wanted.sort();
    fired.sort();
    assert!(fired == wanted, "seed {seed}: {} fired, {} wanted", fired.len(), wanted.len());
    assert!(fired.len() > conversations / 4, "seed {seed}: {} is too little to tell", fired.len());
    all.bench.store.close().await;
}

#[tokio::test]
async fn in_ten_thousand_random_histories_what_the_rule_says_fires_and_nothing_else() {
    let seed = std::env::var("BLUEHOOK_SEED").ok().and_then(|s| s.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("BLUEHOOK_SEED={seed}");
    // Conversations don't touch each other, so each is a history.
    for n in 0..20 {
        random_histories(seed.wrapping_add(n), 500, 40).await;
    }
}
