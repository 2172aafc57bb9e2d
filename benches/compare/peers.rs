//! Brings in the programs that bluehook is compared with: from Debian, npm and crates.io, into the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

const QHOOK_VERSION: &str = "0.6.1";

/// Where what is built, installed, measured and written lies.
pub fn target() -> PathBuf {
    let own = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = own.join("compare");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub fn qhook() -> PathBuf {
    target().join("qhook/bin/qhook")
}

pub fn node_modules() -> PathBuf {
    target().join("node/node_modules")
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare")
}

pub fn install() {
    let mut missing = vec![];
    for (program, package) in [
        ("node", "nodejs"),
        ("npm", "npm"),
        ("redis-server", "redis-server"),
        ("webhook", "webhook"),
        ("strace", "strace"),
    ] {
        if Command::new("which").arg(program).output().is_ok_and(|o| !o.status.success()) {
            missing.push(package);
        }
    }
    if !missing.is_empty() {
        let update = "[ $(id -u) = 0 ] || sudo=sudo; $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends";
        must(Command::new("sh").arg("-c").arg(format!("{update} {}", missing.join(" "))));
    }
    let node = target().join("node");
    std::fs::create_dir_all(&node).unwrap();
    for file in ["package.json", "package-lock.json", "express.mjs", "bullmq.mjs"] {
        std::fs::copy(source().join(file), node.join(file)).unwrap();
    }
    if !node_modules().exists() {
        must(Command::new("npm").args(["ci", "--silent", "--no-audit"]).current_dir(&node));
    }
    if !qhook().exists() {
        println!("building qhook {QHOOK_VERSION}, once");
        let mut command = Command::new("cargo");
        command.args(["install", "--locked", "--quiet", "--version", QHOOK_VERSION, "--root"]);
        must(command.arg(target().join("qhook")).arg("qhook"));
    }
}

fn must(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
