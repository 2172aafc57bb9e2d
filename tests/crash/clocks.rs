//! Clocks that are wrong, are set right, and jump, under the real binary.

use std::time::SystemTime;

use serde_json::Value;

use crate::support::{Receiver, Server, event_body, eventually};

const YEAR: i64 = 365 * 86_400;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

fn seconds(rfc3339: &Value) -> i64 {
    let time: jiff::Timestamp = rfc3339.as_str().unwrap().parse().unwrap();
    time.as_second()
}

/// The one delivery there is, once it has had so many attempts.
fn delivery(server: &Server, attempts: usize) -> Value {
    eventually(&format!("attempt {attempts}"), || {
        let event = server.cli_json(&["events", "show", "evt_1"]).pop()?;
        let delivery = event["deliveries"][0].clone();
        let made = delivery["attempts"].as_array().map_or(0, Vec::len);
        (made == attempts && delivery["state"] != "running").then_some(delivery)
    })
}

/// What the next start will know of the wall clock, in seconds ahead of schedule time.
fn kept_ahead(server: &Server) -> i64 {
    let text = std::fs::read_to_string(server.data().join("timeline")).unwrap();
    text.split_whitespace().nth(2).unwrap().parse::<i64>().unwrap() / 1000
}

#[test]
fn a_first_day_that_begins_in_1970_and_is_set_right_later_loses_and_rushes_nothing() {
    let receiver = Receiver::start(|_| (500, ""));
    let handler = format!(
        "[schedule]\njitter = 0.0\n[[handler]]\nname = \"down\"\nevents = [\"*\"]\nhttp = {{ url = \"{}\" }}\n",
        receiver.url("/down")
    );
    let mut server = Server::stopped_with_clock(&handler);
    server.set_clocks(-now(), 0, 0);
    server.spawn();
    let body = event_body("evt_1", "message.read", 1);
    assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
    let first = delivery(&server, 1);
    assert!(seconds(&first["dueAt"]) < YEAR, "it is 1970: {first}");

    // NTP arrives. What is due stays half a minute away, and is shown in the time that people now have.
    server.set_clocks(0, 0, 0);
    let second = delivery(&server, 1);
    let away = seconds(&second["dueAt"]) - now();
    assert!((-90..=31).contains(&away), "{away} s away: {second}");
    let mut passed = 31;
    for attempts in 2..=4 {
        server.set_clocks(passed, passed, 0);
        delivery(&server, attempts);
        passed += [121, 601, 3601][attempts - 2];
    }
    eventually("the set clock is kept", || (kept_ahead(&server) > 50 * YEAR).then_some(()));

    // A reboot, ten minutes without power, with a clock that is right from the start.
    server.stop();
    server.set_clocks(passed, 0, 1);
    server.spawn();
    let last = delivery(&server, 5);
    assert_eq!(last["state"], "dead");
    let attempts = last["attempts"].as_array().unwrap();
    assert!(seconds(&attempts[0]["startedAt"]) < YEAR, "then it was 1970: {last}");
    assert!(seconds(&attempts[4]["startedAt"]) > 50 * YEAR, "{last}");
    assert_eq!(receiver.count(), 5);
}

#[test]
fn a_wall_clock_that_jumps_a_year_and_back_drops_nothing_and_knows_its_duplicates() {
    const EVENTS: u64 = 300;
    let mut server = Server::stopped_with_clock(
        "[retention]\ndisk_max = \"32 MiB\"\ndelivered = \"1h\"\ndedup = \"1d\"\n\
         [[handler]]\nname = \"file\"\nevents = [\"*\"]\nfile = { path = \"{dir}/events.jsonl\" }\n",
    );
    server.spawn();
    // Several segments, so that retention has something that it could drop.
    let body = |n: u64| {
        let plain = event_body(&format!("evt_{n}"), "message.read", n);
        plain.replacen('{', &format!("{{\"pad\":\"{}\",", "x".repeat(15_000)), 1)
    };
    let send = |server: &Server| {
        let mut client = server.client();
        for n in 0..EVENTS {
            assert_eq!(client.post_signed(&body(n)).unwrap().status, 200);
        }
    };
    send(&server);
    // Retention looks when the clock does; with the second jump noted it has been through the first.
    for (jump, wall) in [YEAR, -YEAR, YEAR, 0].into_iter().enumerate() {
        server.set_clocks(wall, 0, 0);
        eventually(&format!("jump {jump}"), || {
            (kept_ahead(&server).abs_diff(wall.max(0)) < 60).then_some(())
        });
        send(&server);
    }
    server.kill();
    server.set_clocks(-YEAR, 0, 0);
    server.spawn();
    send(&server);
    assert_eq!(server.cli_ok(&["export"]).lines().count() as u64, EVENTS);
    assert!(!server.log().contains("dropped a segment"), "{}", server.log());
    // The same in other boots: one with the clock still wrong, one that begins and ends in 1970, one set right.
    for (boot, wall) in [-YEAR, -now(), 0].into_iter().enumerate() {
        server.kill();
        server.set_clocks(wall, 0, u32::try_from(boot).unwrap() + 1);
        server.spawn();
        send(&server);
        assert_eq!(server.cli_ok(&["export"]).lines().count() as u64, EVENTS, "boot {boot}");
        assert!(!server.log().contains("dropped a segment"), "{}", server.log());
    }
}
