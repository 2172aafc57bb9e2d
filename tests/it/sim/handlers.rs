//! The handlers of the simulated world.

use std::time::Duration;

use bluehook::config::{Circuit, Order, Rate, Start};
use bluehook::delivery::{HandlerName, Outcome};
use bluehook::replay::planner::HandlerPlan;
use bluehook::schedule::Schedule;

/// The types of the events that come.
pub const KINDS: [&str; 2] = ["message.received", "message.read"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    Good,
    Flaky,
    /// Never ends before its deadline.
    Hanging,
    Rejecting,
}

pub struct SimHandler {
    pub plan: HandlerPlan,
    pub start: Start,
    pub timeout_ms: i64,
    pub temper: Temper,
    /// The events it wants; all where `None`.
    pub kind: Option<&'static str>,
    pub configured: bool,
}

impl SimHandler {
    /// How long a run takes, and what comes of it.
    pub fn run(&self, rng: &mut fastrand::Rng, calm: bool) -> (i64, Outcome) {
        let retry = Outcome::retry("500");
        match self.temper {
            _ if calm => (rng.i64(0..20), Outcome::Delivered),
            Temper::Good => (rng.i64(0..50), Outcome::Delivered),
            Temper::Hanging => (self.timeout_ms, Outcome::retry("no end within its deadline")),
            Temper::Rejecting if rng.bool() => (rng.i64(0..50), Outcome::reject("410")),
            Temper::Rejecting => (rng.i64(0..50), Outcome::Delivered),
            Temper::Flaky => {
                let took = rng.i64(0..3_000);
                match rng.u8(0..10) {
                    0..4 => (took, Outcome::Delivered),
                    4..6 => {
                        let after_ms = Some(rng.u64(0..5_000_000));
                        (took, Outcome::Retry { reason: "429".to_owned(), after_ms })
                    }
                    _ => (took, retry),
                }
            }
        }
    }
}

fn handler(name: &str, temper: Temper, order: Order) -> SimHandler {
    SimHandler {
        plan: HandlerPlan {
            name: HandlerName::new(name).unwrap(),
            order,
            concurrency: 4,
            rate: None,
            schedule: Schedule::default(),
            circuit: Circuit::OFF,
        },
        start: Start::Beginning,
        timeout_ms: 30_000,
        temper,
        kind: None,
        configured: true,
    }
}

/// One of each temper, order and way to start.
pub fn handlers(rng: &mut fastrand::Rng) -> Vec<SimHandler> {
    let mut all = vec![
        handler("good", Temper::Good, Order::None),
        handler("flaky", Temper::Flaky, Order::None),
        handler("hanging", Temper::Hanging, Order::None),
        handler("talk", Temper::Flaky, Order::Conversation),
        handler("strict", Temper::Rejecting, Order::Log),
        handler("late", Temper::Good, Order::None),
    ];
    all[1].kind = Some(KINDS[0]);
    all[1].plan.schedule = Schedule::new([0, 1, 5].map(Duration::from_secs).to_vec(), 0.5).unwrap();
    all[2].plan.concurrency = 1;
    let secs = Duration::from_secs;
    let circuit = Circuit { failures: 4, first: secs(2), longest: secs(20) };
    for n in [1, 3, 4] {
        all[n].plan.circuit = circuit;
    }
    all[3].plan.schedule = Schedule::new([0, 2].map(Duration::from_secs).to_vec(), 0.0).unwrap();
    all[5].start = Start::Now;
    all[5].configured = false;
    all[5].plan.rate = Some(Rate { count: 5, per: Duration::from_secs(1) });
    // Histories with fewer handlers go further with their events.
    for n in [1, 2, 3, 4] {
        all[n].configured = rng.u8(..) < 160;
    }
    all
}
