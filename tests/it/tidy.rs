//! The house rules that a compiler does not check.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Who may import whom (house rule: arrows only point down). `main` and `lib` see everything.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("defect", &[]),
    ("files", &[]),
    ("framing", &[]),
    ("process", &[]),
    ("trust", &[]),
    ("schedule", &["clock"]),
    ("tally", &["clock"]),
    ("delivery", &["clock", "schedule"]),
    ("signature", &["clock", "event"]),
    ("event", &["clock", "delivery", "signature"]),
    ("message", &["clock", "event", "signature"]),
    ("config", &["clock", "delivery", "files", "schedule", "signature"]),
    ("store", &["clock", "config", "defect", "delivery", "event", "message", "signature", "tally"]),
    (
        "handler",
        &["clock", "config", "delivery", "event", "message", "schedule", "signature", "trust"],
    ),
    (
        "replay",
        &[
            "clock", "config", "delivery", "event", "handler", "message", "schedule", "store",
            "tally",
        ],
    ),
    (
        "intake",
        &[
            "clock",
            "config",
            "delivery",
            "event",
            "files",
            "framing",
            "signature",
            "store",
            "tally",
            "trust",
        ],
    ),
    ("systemd", &["store"]),
    ("automation", &["clock", "config", "delivery", "event", "message", "store"]),
    (
        "notify",
        &[
            "clock", "config", "delivery", "event", "files", "handler", "replay", "schedule",
            "store",
        ],
    ),
    (
        "admin",
        &[
            "clock",
            "config",
            "delivery",
            "event",
            "framing",
            "handler",
            "intake",
            "message",
            "process",
            "replay",
            "schedule",
            "signature",
            "store",
            "tally",
        ],
    ),
    (
        "server",
        &[
            "admin",
            "automation",
            "clock",
            "config",
            "delivery",
            "event",
            "handler",
            "intake",
            "message",
            "notify",
            "process",
            "replay",
            "signature",
            "store",
            "systemd",
        ],
    ),
    (
        "emulator",
        &[
            "admin",
            "clock",
            "config",
            "delivery",
            "event",
            "files",
            "handler",
            "replay",
            "schedule",
            "server",
            "signature",
            "store",
        ],
    ),
    (
        "cli",
        &[
            "admin",
            "clock",
            "config",
            "delivery",
            "emulator",
            "event",
            "handler",
            "server",
            "signature",
            "store",
        ],
    ),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    rust_files(&root().join("src"), &mut found);
    found.sort();
    let name = |p: &Path| p.strip_prefix(root().join("src")).unwrap().display().to_string();
    found.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

/// `store/log/frame.rs` → `store`, `clock.rs` → `clock`.
fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

/// Every `crate::room` that the text names, in `use` lines and in paths.
fn imports(text: &str) -> BTreeSet<&str> {
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn arrows_between_rooms_only_point_down() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let from = room(&file);
        if from == "main" || from == "lib" {
            continue;
        }
        let (_, allowed) = MAY_IMPORT
            .iter()
            .find(|(name, _)| *name == from)
            .unwrap_or_else(|| panic!("src/{file}: room '{from}' has no line in the table"));
        for to in imports(without_tests(&text)) {
            if to != from && !allowed.contains(&to) {
                wrong.push(format!("src/{file} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_one_file_names_sled() {
    let naming: Vec<String> = sources()
        .into_iter()
        // `super::sled` is our own module of that name.
        .filter(|(_, text)| text.replace("super::sled::", "").contains("sled::"))
        .map(|(file, _)| file)
        .collect();
    assert_eq!(naming, ["store/index/sled.rs"]);
}

#[test]
fn files_stay_readable() {
    for (file, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 620, "src/{file} has {lines} lines; split it by reason to change");
    }
}

#[test]
fn nothing_is_left_half_done() {
    for (file, text) in sources() {
        for sign in ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "#[allow("] {
            assert!(!text.contains(sign), "src/{file} holds {sign}");
        }
    }
}

#[test]
fn the_top_level_stays_as_it_is() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "config",
        "tests",
        "benches",
        "packaging",
        "README.md",
        "SECURITY.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE",
        "target",
        "bluehook-data",
        "bluehook-emulator",
        "deny.toml",
    ];
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with('.') || allowed.contains(&name.as_str()),
            "{name} at the top level"
        );
    }
}

#[test]
fn every_dependency_is_explained() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest.split("[dependencies]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let mut explained = false;
    for line in section.lines().filter(|l| !l.trim().is_empty()) {
        if line.starts_with('#') {
            explained = true;
        } else {
            assert!(explained || line.contains('#'), "no word on why: {line}");
        }
    }
}
