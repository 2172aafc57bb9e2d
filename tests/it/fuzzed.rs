//! The seeds of the fuzz targets, and the inputs that once broke one, through the same targets. `tests/fuzz/run` goes on
//! from there.

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

use crate::support::{Server, connect, event_body};

fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let mut inputs = Vec::new();
    for (folder, prefix) in [(fuzz.join("seeds").join(target), ""), (fuzz.join("found"), target)] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with(prefix) {
                inputs.push((name, std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    assert!(!inputs.is_empty(), "{target} has no seeds");
    inputs
}

#[test]
fn what_was_fuzzed_holds_for_its_seeds_and_for_what_was_found() {
    for (target, run) in [
        ("signature", targets::signature as fn(&[u8])),
        ("canonical", targets::canonical),
        ("record", targets::record),
        ("log", targets::log),
        ("config", targets::config),
        ("template", targets::template),
    ] {
        for (name, input) in inputs(target) {
            println!("{target}: {name}");
            run(&input);
        }
    }
}

/// With the real binary: whatever came before, the next event is acknowledged, and nothing panicked.
#[test]
fn what_was_fuzzed_over_a_connection_leaves_the_server_as_it_was() {
    let server = Server::start("");
    for (name, input) in inputs("intake") {
        let stream = connect(server.addr);
        let half = stream.try_clone().unwrap();
        let shut = || drop(half.shutdown(std::net::Shutdown::Write));
        targets::converse(stream, shut, &input);
        let body = event_body(&format!("evt_{name}"), "message.sent", 1);
        assert_eq!(server.client().post_signed(&body).unwrap().status, 200, "{name}");
    }
    let token = server.token();
    for (name, input) in inputs("admin") {
        let input = String::from_utf8_lossy(&input).replace("TOKEN", &token);
        let stream = connect(server.page());
        // A client that is gone before the answer is not answered.
        let stays = input.contains("connection: close");
        let half = stream.try_clone().unwrap();
        let shut = || drop((!stays).then(|| half.shutdown(std::net::Shutdown::Write)));
        let statuses = targets::converse(stream, shut, input.as_bytes());
        assert!(!stays || !statuses.is_empty(), "{name}");
        let opened = input.contains(&token);
        assert!(opened || statuses.iter().all(|status| *status >= 400), "{name}: {statuses:?}");
    }
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
