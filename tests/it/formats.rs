//! Stores that releases left behind: this one reads what each of them stored, and leaves what a later one did.
//!
//! `tests/data/stores/VERSION.tar.gz` holds `data`, the folder, and `export.jsonl`, what that release itself said of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Server, event_body, eventually, lines_of};

const KEEP: &str = "[retention]\ndelivered = \"forever\"\n";

fn releases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/stores");
    let found: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!found.is_empty());
    found
}

fn unpack(archive: &Path, server: &Server) {
    let dir = server.dir.path();
    let done = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(dir).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// One event a line; without what depends on the machine's boot.
fn events(text: &str) -> Vec<Value> {
    let one = |line: &str| {
        let mut event: Value = serde_json::from_str(line).unwrap();
        for delivery in event["deliveries"].as_array_mut().unwrap() {
            delivery["dueAt"] = Value::Null;
        }
        event
    };
    text.lines().map(one).collect()
}

#[test]
fn what_each_release_stored_is_read_and_goes_on() {
    for archive in releases() {
        // With the index that the release left, and without one.
        for index in [true, false] {
            let mut server = Server::stopped(KEEP);
            unpack(&archive, &server);
            if !index {
                std::fs::remove_dir_all(server.data().join("index")).unwrap();
            }
            let said = lines_of(&server.dir.path().join("export.jsonl")).join("\n");
            let stopped = server.cli_ok(&["export"]);
            assert_eq!(events(&stopped), events(&said), "{archive:?}, not running");
            server.spawn();
            let running = eventually("the index is there", || {
                // Degraded until then, which its exit code says.
                let said = server.cli(&["status", "--json"]).stdout;
                let status: Value = serde_json::from_slice(&said).unwrap();
                status["note"].is_null().then(|| server.cli_ok(&["export"]))
            });
            assert_eq!(events(&running), events(&said), "{archive:?}, index {index}");
            let answer = server.client().post_signed(&event_body("evt_new", "message.read", 1));
            assert_eq!(answer.unwrap().status, 200);
            assert_eq!(server.cli_ok(&["export"]).lines().count(), said.lines().count() + 1);
            server.stop();
            let data = server.data();
            server.cli_ok(&["store", "check", "--data-dir", data.to_str().unwrap()]);
        }
    }
}

fn digest(dir: &Path) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
            if path.is_dir() {
                folders.push(path.clone());
                found.push((path, Vec::new(), changed));
            } else {
                found.push((path.clone(), std::fs::read(&path).unwrap(), changed));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_store_of_a_later_release_is_refused_and_stays_as_it_is() {
    let mut server = Server::stopped(KEEP);
    unpack(&releases()[0], &server);
    std::fs::write(server.data().join("store-version"), "999\n").unwrap();
    let before = digest(&server.data());
    let status = server.try_spawn().unwrap_err();
    assert_eq!(status.code(), Some(1), "{}", server.log());
    let said = server.log();
    assert!(said.contains("format 999") && said.contains("install the release"), "{said}");
    let data = server.data();
    for words in [&["export"][..], &["store", "check", "--data-dir", data.to_str().unwrap()]] {
        assert_ne!(server.cli(words).status.code(), Some(0), "{words:?}");
    }
    assert!(digest(&server.data()) == before, "something was changed");
}
