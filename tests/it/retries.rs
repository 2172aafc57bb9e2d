//! The five-step schedule under the virtual clock, with the real binary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::admin::Api;
use crate::support::{Receiver, Server, event_body, eventually};

const HANDLERS: &str = r#"
[[handler]]
name = "failing"
events = ["*"]
http = { url = "{failing}" }

[[handler]]
name = "good"
events = ["*"]
http = { url = "{good}" }
"#;

/// The delivery of `handler` for `id` as the CLI shows it.
fn delivery(server: &Server, id: &str, handler: &str) -> Option<Value> {
    let event = server.cli_json(&["events", "show", id]).pop()?;
    event["deliveries"].as_array()?.iter().find(|d| d["handler"] == handler).cloned()
}

fn attempts(server: &Server, id: &str, handler: &str) -> Vec<Value> {
    delivery(server, id, handler)
        .and_then(|d| d["attempts"].as_array().cloned())
        .unwrap_or_default()
}

fn wait_for_attempts(server: &Server, id: &str, count: usize) -> Vec<Value> {
    eventually(&format!("attempt {count} of {id}"), || {
        let made = attempts(server, id, "failing");
        assert!(made.len() <= count, "too many attempts: {made:#?}");
        (made.len() == count).then_some(made)
    })
}

/// Nothing may happen: gives the server many turns, then looks.
fn assert_still(server: &Server, receiver: &Receiver, requests: usize) {
    for _ in 0..20 {
        server.cli_ok(&["events", "list"]);
    }
    assert_eq!(receiver.count(), requests, "an attempt ran before it was due");
}

#[test]
fn a_failing_handler_is_tried_five_times_on_the_vendors_schedule_then_replayed() {
    let healthy = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&healthy);
    let failing =
        Receiver::start(
            move |_| if answer.load(Ordering::Relaxed) { (200, "") } else { (500, "") },
        );
    let good = Receiver::start(|_| (200, ""));
    let config =
        HANDLERS.replace("{failing}", &failing.url("/a")).replace("{good}", &good.url("/b"));
    let mut server = Server::start_with_clock(&config);

    let answer = server.client().post_signed(&event_body("evt_1", "message.read", 1)).unwrap();
    assert_eq!(answer.status, 200);
    wait_for_attempts(&server, "evt_1", 1);

    // Delays before attempts 2 to 5, in seconds; the clock stops just short of each, then passes it.
    let mut ahead = 0;
    for (done, delay) in [(1, 30), (2, 120), (3, 600), (4, 3600)] {
        server.set_clock_ahead(ahead + delay - 10);
        assert_still(&server, &failing, done);
        if done == 2 {
            // A restart in the middle changes nothing.
            server.stop();
            server.spawn();
            assert_still(&server, &failing, done);
        }
        if done == 3 {
            server.kill();
            server.spawn();
            assert_still(&server, &failing, done);
        }
        ahead += delay + 5;
        server.set_clock_ahead(ahead);
        wait_for_attempts(&server, "evt_1", done + 1);
    }

    let last = eventually("the delivery is dead", || {
        delivery(&server, "evt_1", "failing").filter(|d| d["state"] == "dead")
    });
    let outcomes: Vec<&str> = last["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["retry"; 5]);
    server.set_clock_ahead(ahead + 100_000);
    assert_still(&server, &failing, 5);
    assert_eq!(good.count(), 1, "the good handler ran once, at once");
    assert_eq!(server.cli_json(&["dead", "list"]).len(), 1);

    // Every attempt carried the same idempotency key.
    assert!(failing.requests().iter().all(|r| r.headers["idempotency-key"] == "evt_1"));

    // The endpoint is back: replayed from the CLI, delivered.
    healthy.store(true, Ordering::Relaxed);
    server.cli_ok(&["dead", "replay", "evt_1"]);
    eventually("the replay is delivered", || {
        delivery(&server, "evt_1", "failing").filter(|d| d["state"] == "delivered")
    });
    assert_eq!(failing.count(), 6);
    assert!(server.cli_json(&["dead", "list"]).is_empty());
    let history = attempts(&server, "evt_1", "failing");
    assert_eq!(history.len(), 6, "the history of the first five is kept: {history:#?}");
}

#[test]
fn one_failing_handler_delays_no_other() {
    let failing = Receiver::start(|_| (500, ""));
    let good = Receiver::start(|_| (200, ""));
    // Without its circuit, each event is tried.
    let config = HANDLERS
        .replace(
            "{failing}\" }",
            &format!("{}\" }}\ncircuit = {{ failures = 0 }}", failing.url("/a")),
        )
        .replace("{good}", &good.url("/b"));
    let server = Server::start_with_clock(&config);
    let mut client = server.client();
    for n in 0..200 {
        let body = event_body(&format!("evt_{n}"), "message.sent", n);
        assert_eq!(client.post_signed(&body).unwrap().status, 200);
    }
    // The clock stands still, so the failing one is stuck before its second attempts; the good one isn't.
    eventually("the good handler has them all", || (good.count() == 200).then_some(()));
    eventually("the failing handler was tried once each", || {
        (failing.count() == 200).then_some(())
    });
}

#[test]
fn retry_after_lengthens_the_delay() {
    let failing = Receiver::start(|_| (503, "retry-after: 300\r\n"));
    let good = Receiver::start(|_| (200, ""));
    let config =
        HANDLERS.replace("{failing}", &failing.url("/a")).replace("{good}", &good.url("/b"));
    let server = Server::start_with_clock(&config);
    server.client().post_signed(&event_body("evt_1", "message.read", 1)).unwrap();
    wait_for_attempts(&server, "evt_1", 1);
    server.set_clock_ahead(200);
    assert_still(&server, &failing, 1);
    server.set_clock_ahead(310);
    wait_for_attempts(&server, "evt_1", 2);
}

/// Events that a handler has yet to deliver.
fn left(handler: &Value) -> u64 {
    ["running", "scheduled", "behind"].iter().filter_map(|kind| handler[kind].as_u64()).sum()
}

/// A night without the service: nothing is dead in the morning, and everything arrives in order.
#[test]
fn a_service_that_is_down_for_a_night_costs_no_delivery_its_attempts() {
    let healthy = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&healthy);
    let crm = Receiver::start(
        move |_| if answer.load(Ordering::Relaxed) { (200, "") } else { (502, "") },
    );
    let server = Server::start_with_clock(&format!(
        "[[handler]]\nname = \"crm\"\nevents = [\"*\"]\nhttp = {{ url = \"{}\" }}\n\
         circuit = {{ failures = 3, probe_max = \"2m\" }}\n",
        crm.url("/")
    ));
    let handler = || server.status()["handlers"][0].clone();
    for n in 0..20 {
        let body = event_body(&format!("evt_{n}"), "message.read", n);
        assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
    }
    let open = eventually("the circuit opens", || {
        let handler = handler();
        (handler["circuit"]["failures"].as_u64() >= Some(3)).then_some(handler)
    });
    assert!(open["circuit"]["nextProbeAt"].is_string(), "{open}");
    let status = server.cli_ok(&["status"]);
    assert!(status.contains("failing"), "{status}");

    // Eight hours in steps: one probe for each gap, and no delivery ends.
    let mut ahead = 0;
    let mut asked = crm.count();
    for _ in 0..12 {
        ahead += 2400;
        server.set_clock_ahead(ahead);
        asked = eventually("a probe", || Some(crm.count()).filter(|count| *count > asked));
    }
    assert_eq!(handler()["dead"], 0, "{}", handler());

    healthy.store(true, Ordering::Relaxed);
    server.set_clock_ahead(ahead + 130);
    eventually("all delivered", || (left(&handler()) == 0).then_some(()));
    let handler = handler();
    assert_eq!((&handler["dead"], &handler["circuit"]), (&Value::from(0), &Value::Null));
    let mut shown: Vec<_> = (0..20)
        .flat_map(|n| attempts(&server, &format!("evt_{n}"), "crm"))
        .map(|attempt| attempt["outcome"].as_str().unwrap_or_default().to_owned())
        .collect();
    shown.sort();
    shown.dedup();
    assert_eq!(shown, ["delivered", "retry", "uncounted"]);
}

#[test]
fn resuming_a_handler_whose_service_is_back_tries_it_at_once() {
    let healthy = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&healthy);
    let crm = Receiver::start(
        move |_| if answer.load(Ordering::Relaxed) { (200, "") } else { (502, "") },
    );
    // The clock stands, so that no probe is ever due by itself.
    let server = Server::start_with_clock(&format!(
        "[[handler]]\nname = \"crm\"\nevents = [\"*\"]\nhttp = {{ url = \"{}\" }}\n\
         circuit = {{ failures = 1, probe = \"1h\", probe_max = \"1h\" }}\n",
        crm.url("/")
    ));
    for n in 0..3 {
        let body = event_body(&format!("evt_{n}"), "message.read", n);
        assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
    }
    let handler = || server.status()["handlers"][0].clone();
    eventually("the circuit opens", || (!handler()["circuit"].is_null()).then_some(()));
    healthy.store(true, Ordering::Relaxed);
    let resumed = Api::of(&server).ask("POST", "/api/v1/handlers/crm/resume", "");
    assert_eq!(resumed.status, 200, "{}", resumed.body);
    server.set_clock_ahead(31);
    eventually("all delivered", || (left(&handler()) == 0).then_some(()));
    assert!(handler()["circuit"].is_null());
}
