//! `[notify]` with the real binary: what a person is told, how often, and whatever happens to the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::{Receiver, Server, event_body, eventually};

/// Notices as the chat got them: the texts, without who says it.
fn texts(chat: &Receiver) -> Vec<String> {
    let text = |body: &[u8]| {
        let json: Value = serde_json::from_slice(body).unwrap();
        let text = json["text"].as_str().unwrap().to_owned();
        text.split_once(": ").unwrap().1.to_owned()
    };
    chat.requests().iter().map(|request| text(&request.body)).collect()
}

fn notify(chat: &Receiver) -> String {
    let url = chat.url("/services/T0/B0");
    format!("[notify]\nhttp = {{ url = \"{url}\", json = {{ text = \"{{{{ data.text }}}}\" }} }}\n")
}

fn post(server: &Server, ids: std::ops::Range<u64>) {
    let mut client = server.client();
    for n in ids {
        let body = event_body(&format!("evt_{n}"), "message.read", n);
        assert_eq!(client.post_signed(&body).unwrap().status, 200);
    }
}

const DEAD_AT_ONCE: &str = "schedule = { delays = [\"0s\"] }\ncircuit = { failures = 0 }\n";

#[test]
fn the_first_dead_letter_is_told_at_once_then_once_an_hour_with_counts_also_across_restarts() {
    let crm = Receiver::start(|_| (500, ""));
    let chat = Receiver::start(|_| (200, ""));
    let url = crm.url("/");
    let handler = format!(
        "[[handler]]\nname = \"crm\"\nevents = [\"message.read\"]\nhttp = {{ url = \"{url}\" }}\n{DEAD_AT_ONCE}\
         [[handler]]\nname = \"other\"\nevents = [\"message.sent\"]\nhttp = {{ url = \"{url}\" }}\n{DEAD_AT_ONCE}"
    );
    let mut server = Server::start_with_clock(&format!("{handler}{}", notify(&chat)));
    post(&server, 0..1);
    eventually("the first notice", || (chat.count() == 1).then_some(()));
    let first = texts(&chat).remove(0);
    assert!(first.starts_with("handler crm has 1 new dead letter (1 in all); the newest is evt_0"));
    assert!(first.contains("500") && first.contains("bluehook dead list --handler crm"), "{first}");

    post(&server, 1..8);
    server.kill();
    server.spawn();
    // The other one's notice shows that the server looked.
    let other = event_body("evt_other", "message.sent", 1);
    assert_eq!(server.client().post_signed(&other).unwrap().status, 200);
    eventually("the notice of the other", || (chat.count() == 2).then_some(()));
    assert!(texts(&chat)[1].starts_with("handler other has 1 new"), "{:?}", texts(&chat));
    server.set_clock_ahead(3601);
    eventually("the third notice", || (chat.count() == 3).then_some(()));
    let second = texts(&chat).remove(2);
    assert!(second.starts_with("handler crm has 7 new dead letters (8 in all)"), "{second}");
    server.stop();
    server.set_clock_ahead(4 * 3600);
    server.spawn();
    let other = event_body("evt_later", "message.sent", 1);
    assert_eq!(server.client().post_signed(&other).unwrap().status, 200);
    eventually("the notice of the other", || (chat.count() == 4).then_some(()));
    assert!(texts(&chat)[3].starts_with("handler other has 1 new"), "{:?}", texts(&chat));
}

#[test]
fn a_notice_that_the_chat_refuses_is_tried_again_on_the_schedule_with_one_key() {
    let well = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&well);
    let chat = Receiver::start(
        move |_| if answer.load(Ordering::Relaxed) { (200, "") } else { (503, "") },
    );
    let handler = format!(
        "[[handler]]\nname = \"script\"\nevents = [\"*\"]\nexec = {{ command = [\"/bin/false\"] }}\n{DEAD_AT_ONCE}"
    );
    let server = Server::start_with_clock(&format!("{handler}{}", notify(&chat)));
    post(&server, 0..1);
    eventually("the first attempt", || (chat.count() == 1).then_some(()));
    well.store(true, Ordering::Relaxed);
    server.set_clock_ahead(31);
    eventually("the second attempt", || (chat.count() == 2).then_some(()));
    let requests = chat.requests();
    let keys: Vec<_> = requests.iter().map(|r| &r.headers["idempotency-key"]).collect();
    assert_eq!(keys[0], keys[1]);
    assert_eq!(requests[0].body, requests[1].body);
    let log = server.log();
    assert!(log.contains("a notice was not delivered, another attempt follows"), "{log}");
}

#[test]
fn a_service_that_goes_down_and_comes_back_is_told_and_so_is_an_old_backlog() {
    let well = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&well);
    let crm = Receiver::start(
        move |_| if answer.load(Ordering::Relaxed) { (200, "") } else { (502, "") },
    );
    let chat = Receiver::start(|_| (200, ""));
    let url = crm.url("/");
    let server = Server::start_with_clock(&format!(
        "[[handler]]\nname = \"crm\"\nevents = [\"*\"]\nhttp = {{ url = \"{url}\" }}\ncircuit = {{ failures = 3 }}\n{}",
        notify(&chat)
    ));
    post(&server, 0..4);
    let told = |text: &str, count: usize| {
        eventually(text, || {
            let texts = texts(&chat);
            (texts.len() == count && texts.iter().any(|t| t.contains(text))).then_some(())
        });
    };
    told("handler crm fails: ", 1);
    server.set_clock_ahead(2 * 3600 + 60);
    told("handler crm has left an event undelivered for more than 2h", 2);
    well.store(true, Ordering::Relaxed);
    server.set_clock_ahead(4 * 3600);
    told("handler crm runs as usual again", 4);
    told("handler crm has caught up", 4);
}

/// By an exec handler, which gets the notice as it gets events.
#[test]
fn a_disk_that_fills_up_is_told_through_a_program() {
    let server = Server::start(
        "[notify]\nexec = { command = [\"/bin/sh\", \"-c\", \"cat >> {dir}/told; echo >> {dir}/told; echo $BLUEHOOK_EVENT_TYPE >> {dir}/told\"] }\n\
         disk_free = \"1 EiB\"\nevents = [\"notice.disk\"]\n",
    );
    let told = server.dir.path().join("told");
    let lines = eventually("the notice", || {
        let lines = crate::support::lines_of(&told);
        (lines.len() == 2).then_some(lines)
    });
    let notice: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&notice["type"], lines[1].as_str()), (&Value::from("notice.disk"), "notice.disk"));
    let data = &notice["data"];
    assert!(data["text"].as_str().unwrap().contains("free, less than 1.0 EiB"), "{notice}");
    assert_eq!((&data["subject"], &data["ended"]), (&Value::from("disk"), &Value::from(false)));
    assert!(data["since"].is_string() && data["handler"].is_null(), "{notice}");
}

#[test]
fn a_test_notice_arrives_or_says_why_not() {
    let well = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&well);
    let chat = Receiver::start(
        move |_| if answer.load(Ordering::Relaxed) { (200, "") } else { (404, "") },
    );
    let mut server = Server::start("");
    let nobody = server.cli(&["trigger", "notice.test"]);
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(2) && said.contains("add [notify]"), "{said}");
    server.stop();
    server.write_config(&format!("{}events = [\"notice.dead\"]\n", notify(&chat)));
    server.spawn();
    let refused = server.cli(&["trigger", "notice.test"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(1)
            && said.contains("not delivered: ")
            && said.contains("404"),
        "{said}"
    );
    well.store(true, Ordering::Relaxed);
    server.cli_ok(&["trigger", "notice.test"]);
    assert_eq!(texts(&chat)[1], "this is a test: notices arrive");
    assert!(server.cli_json(&["events", "list"]).is_empty(), "it is no event");
}

#[test]
fn a_fault_in_a_notices_template_is_refused_at_start() {
    let server = Server::stopped(
        "[notify]\nhttp = { url = \"https://chat.example/\", body = \"{{ data.text\" }\n",
    );
    let refused = server.cli(&["check"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("[notify]: ") && said.contains("body"), "{said}");
}

#[test]
fn a_store_that_takes_nothing_more_is_told_all_the_same() {
    let chat = Receiver::start(|_| (200, ""));
    let server = Server::start(&format!(
        "[retention]\ndisk_max = \"32 MiB\"\n[[handler]]\nname = \"crm\"\nevents = [\"*\"]\n\
         exec = {{ command = [\"/bin/false\"] }}\nschedule = {{ delays = [\"1h\"] }}\n{}",
        notify(&chat)
    ));
    let mut client = server.client();
    let filler = "x".repeat(900_000);
    let refused = (0..100).find(|n| {
        let body = format!(
            r#"{{"eventId":"evt_{n}","type":"message.read","data":{{"body":"{filler}"}}}}"#
        );
        client.post_signed(&body).unwrap().status == 503
    });
    assert!(refused.is_some(), "disk_max refuses nothing");
    eventually("the notice", || {
        texts(&chat)
            .iter()
            .any(|t| t.starts_with("events are refused (503): disk_max"))
            .then_some(())
    });
}
