//! Brings in the programs that bluehook is compared with: from Debian, npm and crates.io, into the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::contestants::Contestant;

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

pub fn install(contestants: &[Contestant]) {
    use Contestant::{BullAlways, BullEverysec, Express, Qhook, Webhook};
    let takes_part = |of: &[Contestant]| of.iter().any(|c| contestants.contains(c));
    let node = takes_part(&[Express, BullAlways, BullEverysec]);
    let mut missing = vec![];
    for (program, package, wanted) in [
        ("node", "nodejs", node),
        ("npm", "npm", node),
        ("redis-server", "redis-server", takes_part(&[BullAlways, BullEverysec])),
        ("webhook", "webhook", takes_part(&[Webhook])),
        ("strace", "strace", true),
    ] {
        let there =
            || Command::new("which").arg(program).output().is_ok_and(|o| o.status.success());
        if wanted && !there() {
            missing.push(package);
        }
    }
    if !missing.is_empty() {
        let update = "[ $(id -u) = 0 ] || sudo=sudo; $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends";
        must(Command::new("sh").arg("-c").arg(format!("{update} {}", missing.join(" "))));
    }
    if node {
        install_node();
    }
    if takes_part(&[Qhook]) && !qhook().exists() {
        println!("building qhook {QHOOK_VERSION}, once");
        let mut command = Command::new("cargo");
        command.args(["install", "--locked", "--quiet", "--version", QHOOK_VERSION, "--root"]);
        must(command.arg(target().join("qhook")).arg("qhook"));
    }
}

fn install_node() {
    let node = target().join("node");
    std::fs::create_dir_all(&node).unwrap();
    for file in ["package.json", "package-lock.json", "express.mjs", "bullmq.mjs"] {
        std::fs::copy(source().join(file), node.join(file)).unwrap();
    }
    if !node_modules().exists() {
        must(Command::new("npm").args(["ci", "--silent", "--no-audit"]).current_dir(&node));
    }
}

fn must(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
