//! Media that rot: bits flip, blocks turn to zeros, files shrink, vanish or change places. And copies of the
//! data directory that are taken while it is written to.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use super::disk::{Mounted, VolatileDisk, can_mount};
use crate::support::{Program, Server, binary, event_body, eventually, full_run, rng};

/// Small segments, so that there are several.
const SMALL: &str = "[retention]\ndisk_max = \"32 MiB\"\n";
const EVENTS: usize = 400;

fn padded(n: usize) -> String {
    let body = event_body(&format!("evt_{n}"), "message.read", n as u64);
    body.replacen('{', &format!("{{\"pad\":\"{}\",", "x".repeat(8_000)), 1)
}

/// A stopped store of some segments, of which nothing is damaged.
fn stopped_store() -> Server {
    let mut server = Server::start(&format!(
        "{SMALL}[[handler]]\nname = \"file\"\nevents = [\"*\"]\nfile = {{ path = \"{{dir}}/events.jsonl\" }}\n"
    ));
    let mut client = server.client();
    for n in 0..EVENTS {
        assert_eq!(client.post_signed(&padded(n)).unwrap().status, 200);
    }
    server.stop();
    server
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// As README says: again where a file vanished meanwhile, which rsync tells with 24.
fn rsync(from: &Path, to: &Path) {
    eventually("nothing vanishes", || {
        let contents = format!("{}/", from.display());
        let done = Command::new("rsync").args(["-a", "--delete"]).arg(contents).arg(to).output();
        let code = done.unwrap().status.code();
        assert!(matches!(code, Some(0 | 24)), "{code:?}");
        (code == Some(0)).then_some(())
    });
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(data.join("log")).unwrap().map(|f| f.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|f| f.extension().is_some_and(|e| e == "seg")).collect();
    files.sort();
    files
}

/// Exit code and report of `store check`.
fn check(data: &Path) -> (i32, Value) {
    check_with(&Program::plain(), data)
}

fn check_with(program: &Program, data: &Path) -> (i32, Value) {
    let mut command = program.command(&[]);
    let output =
        command.args(["store", "check", "--json", "--data-dir"]).arg(data).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("panicked"), "{error}");
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), report)
}

fn exported(server: &Server) -> BTreeSet<String> {
    server
        .cli_ok(&["export"])
        .lines()
        .map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["eventId"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// Where every record lies in a segment: offset and bytes, from one frame's magic to the next.
fn frames(file: &Path) -> Vec<(u64, u64)> {
    let bytes = std::fs::read(file).unwrap();
    let magic = bytes[..4].to_vec();
    let mut starts: Vec<usize> =
        (0..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == magic).collect();
    let end = bytes.iter().rposition(|&b| b != 0).unwrap() + 1;
    starts.push(end);
    starts.windows(2).map(|w| (w[0] as u64, (w[1] - w[0]) as u64)).collect()
}

/// Whether the damage that was reported covers a byte.
fn covers(report: &Value, file: &Path, at: u64) -> bool {
    let name = file.file_name().unwrap().to_str().unwrap();
    report["damage"].as_array().unwrap().iter().any(|d| {
        let (offset, bytes) = (d["offset"].as_u64().unwrap(), d["bytes"].as_u64().unwrap());
        d["segment"] == name && (offset..offset + bytes).contains(&at)
    })
}

fn lost(report: &Value) -> u64 {
    let damage = report["damage"].as_array().unwrap().iter();
    damage.map(|d| d["lastSeq"].as_u64().unwrap() + 1 - d["firstSeq"].as_u64().unwrap()).sum()
}

/// How many of so many flipped bits a program's check doesn't notice.
pub fn flips_unnoticed(program: &Program, flips: usize, rng: &mut fastrand::Rng) -> usize {
    let stopped = stopped_store();
    let data = stopped.data();
    let files = segments(&data);
    let mut unnoticed = 0;
    for _ in 0..flips {
        let file = &files[rng.usize(0..files.len() - 2)];
        let whole = std::fs::read(file).unwrap();
        let mut flipped = whole.clone();
        flipped[rng.usize(0..whole.len())] ^= 1 << rng.u32(0..8);
        std::fs::write(file, flipped).unwrap();
        unnoticed += usize::from(check_with(program, &data).0 == 0);
        std::fs::write(file, whole).unwrap();
    }
    unnoticed
}

#[test]
fn every_flipped_bit_in_the_log_is_located_and_costs_its_record_alone() {
    let mut rng = rng("flips in the log");
    let mut server = stopped_store();
    let data = server.data();
    let files = segments(&data);
    assert!(files.len() >= 3);
    let all: Vec<(PathBuf, u64, u64)> = files
        .iter()
        .flat_map(|f| frames(f).into_iter().map(|(at, len)| (f.clone(), at, len)))
        .collect();
    // The very last record says that what is before it is durable; it carries nothing.
    let all = &all[..all.len() - 1];
    assert_eq!(check(&data).0, 0);
    let flips = if full_run() { 500 } else { 100 };
    for round in 0..flips {
        // Every record as likely as any other, then every bit of it.
        let (file, start, len) = &all[rng.usize(0..all.len())];
        let at = start + rng.u64(0..*len);
        let bit = 1_u8 << rng.u32(0..8);
        let flip = || {
            let mut bytes = std::fs::read(file).unwrap();
            bytes[usize::try_from(at).unwrap()] ^= bit;
            std::fs::write(file, bytes).unwrap();
        };
        flip();
        let (code, report) = check(&data);
        let place = format!("{} at {at}, bit {bit:#x}: {report}", file.display());
        assert_eq!(code, 1, "{place}");
        assert!(covers(&report, file, at), "{place}");
        assert_eq!(lost(&report), 1, "{place}");
        if round % 20 == 0 {
            serve_what_is_left(&mut server, &report);
        }
        flip();
    }
    assert_eq!(check(&data).0, 0, "every flip was taken back");
}

/// On a copy: it starts, says what is damaged, has the rest, takes new events; a repair makes it whole.
fn serve_what_is_left(stopped: &mut Server, report: &Value) {
    let first = report["damage"][0]["firstSeq"].as_u64().unwrap();
    let mut server = Server::stopped(SMALL);
    copy(&stopped.data(), &server.data());
    server.spawn();
    let body = event_body("evt_new", "message.read", 1);
    assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
    let left = exported(&server);
    assert!(left.contains("evt_new"));
    assert!(left.len() >= EVENTS, "one of {EVENTS} at most is lost, {} are left", left.len());
    let audit = server.cli(&["store", "check", "--json"]);
    assert_eq!(audit.status.code(), Some(1), "{report}");
    let audit: Value = serde_json::from_slice(&audit.stdout).unwrap();
    assert_eq!(audit["damage"], report["damage"], "the running one finds what the check found");
    let status = server.cli(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let known = status["damage"].as_array().unwrap();
    assert!(known.iter().any(|d| d["firstSeq"] == first), "{status}");
    eventually("the damage is in the service log", || {
        server.log().contains("damaged").then_some(())
    });
    server.stop();
    let data = server.data();
    let repair = binary().args(["store", "repair", "--data-dir"]).arg(&data).output().unwrap();
    assert!(repair.status.success(), "{}", String::from_utf8_lossy(&repair.stderr));
    assert_eq!(check(&data).0, 0);
    server.spawn();
    assert_eq!(exported(&server), left, "a repair keeps what was readable");
}

#[test]
fn zeroed_blocks_cut_vanished_and_swapped_segments_are_found_and_the_rest_is_served() {
    const BLOCK: usize = 4096;
    let mut rng = rng("blocks");
    let mut stopped = stopped_store();
    let files = segments(&stopped.data());
    type Harm<'a> = (&'a str, Box<dyn FnMut(&[PathBuf]) + 'a>);
    let (mut one, mut two) = (rng.fork(), rng.fork());
    let harms: Vec<Harm<'_>> = vec![
        (
            "a zeroed block",
            Box::new(|files| {
                let mut bytes = std::fs::read(&files[0]).unwrap();
                let block = one.usize(1..bytes.len() / BLOCK - 1) * BLOCK;
                bytes[block..block + BLOCK].fill(0);
                std::fs::write(&files[0], bytes).unwrap();
            }),
        ),
        (
            "a cut segment",
            Box::new(|files| {
                let bytes = std::fs::read(&files[1]).unwrap();
                std::fs::write(&files[1], &bytes[..two.usize(0..bytes.len() / 2)]).unwrap();
            }),
        ),
        ("a vanished segment", Box::new(|files| std::fs::remove_file(&files[1]).unwrap())),
        (
            "two segments that changed places",
            Box::new(|files| {
                let aside = files[0].with_extension("x");
                std::fs::rename(&files[0], &aside).unwrap();
                std::fs::rename(&files[1], &files[0]).unwrap();
                std::fs::rename(&aside, &files[1]).unwrap();
            }),
        ),
    ];
    for (what, mut harm) in harms {
        let mut server = Server::stopped(SMALL);
        copy(&stopped.data(), &server.data());
        harm(&segments(&server.data()));
        let (code, report) = check(&server.data());
        assert_eq!(code, 1, "{what}: {report}");
        server.spawn();
        if what.contains("changed places") {
            assert!(server.log().contains("changed places"), "{}", server.log());
            assert_eq!(exported(&server).len(), EVENTS, "they are put back");
        }
        let body = event_body("evt_new", "message.read", 1);
        assert_eq!(server.client().post_signed(&body).unwrap().status, 200, "{what}");
        let left = exported(&server);
        let in_one_segment = EVENTS / (files.len() - 1) + 50;
        assert!(left.len() + 2 * in_one_segment > EVENTS, "{what}: only {} left", left.len());
        assert!(
            left.contains("evt_new") && left.contains(&format!("evt_{}", EVENTS - 1)),
            "{what}"
        );
        server.stop();
        let data = server.data();
        let repair = binary().args(["store", "repair", "--data-dir"]).arg(&data).output().unwrap();
        assert!(repair.status.success(), "{what}: {}", String::from_utf8_lossy(&repair.stderr));
        assert_eq!(check(&data).0, 0, "{what}");
    }
    stopped.spawn();
    assert_eq!(exported(&stopped).len(), EVENTS, "the original was not touched");
}

/// The first bytes of a segment, or the last of its records: what a sector is found by.
fn edge(segment: &Path, last: bool) -> Vec<u8> {
    let bytes = std::fs::read(segment).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    if last { bytes[end - 40..end].to_vec() } else { bytes[..64].to_vec() }
}

fn repair(data: &Path) -> String {
    let repair = binary().args(["store", "repair", "--data-dir"]).arg(data).output().unwrap();
    assert!(repair.status.success(), "{}", String::from_utf8_lossy(&repair.stderr));
    String::from_utf8(repair.stdout).unwrap()
}

#[test]
fn a_sector_that_cannot_be_read_costs_little_more_than_what_lies_in_it() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = VolatileDisk::with_ext4(folder.path(), 64 << 20);
    let at = folder.path().join("disk");
    let mut mounted = Some(Mounted::new(&disk.image(), &at));
    let mut server = Server::stopped_at(&at.join("data"), SMALL);
    server.spawn();
    let mut client = server.client();
    for n in 0..EVENTS {
        assert_eq!(client.post_signed(&padded(n)).unwrap().status, 200);
    }
    server.stop();
    let head = edge(&segments(&server.data())[1], false);
    // The index would know the record without reading it.
    std::fs::remove_dir_all(server.data().join("index")).unwrap();
    drop(mounted.take());
    // In the middle of a segment, and where another begins.
    disk.spoil(b"this is message 20.".as_slice());
    disk.spoil(&head);
    mounted = Some(Mounted::new(&disk.image(), &at));
    let (code, report) = check(&server.data());
    assert_eq!((code, report["damage"].as_array().unwrap().len()), (1, 2), "{report}");
    server.spawn();
    assert_eq!(
        server.client().post_signed(&event_body("evt_new", "message.read", 1)).unwrap().status,
        200
    );
    let left = exported(&server);
    // A record takes two pages: each bad one lies in one record or in two.
    assert!((EVENTS - 3..=EVENTS - 1).contains(&left.len()), "{} are left", left.len());
    assert!(!left.contains("evt_20") && left.contains("evt_new") && left.contains("evt_399"));
    let status = server.cli(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["damage"].as_array().unwrap().len(), 2, "{status}");
    server.stop();
    repair(&server.data());
    assert_eq!(check(&server.data()).0, 0);

    // Where the log ends: nothing may be cut there that only can't be read, so a person has to know.
    let end = edge(segments(&server.data()).last().unwrap(), true);
    drop(mounted.take());
    disk.spoil(&end);
    mounted = Some(Mounted::new(&disk.image(), &at));
    let (code, report) = check(&server.data());
    assert_eq!((code, report["damage"].as_array().unwrap().len()), (1, 1), "{report}");
    assert!(server.try_spawn().is_err());
    assert!(server.log().contains("store repair"), "{}", server.log());
    assert!(repair(&server.data()).contains("unreadable bytes"));
    server.spawn();
    let after = exported(&server);
    assert!(after.len() + 2 >= left.len() && after.is_subset(&left), "{} are left", after.len());
    drop(server);
    drop(mounted);
}

#[test]
fn whatever_happens_to_the_index_it_is_built_anew_and_nothing_is_lost() {
    let mut rng = rng("the index");
    let stopped = stopped_store();
    for round in 0..if full_run() { 200 } else { 20 } {
        let mut server = Server::stopped(SMALL);
        copy(&stopped.data(), &server.data());
        let db = server.data().join("index/db");
        let mut bytes = std::fs::read(&db).unwrap();
        let what = if round % 4 == 3 {
            let len = rng.usize(0..bytes.len());
            bytes.truncate(len);
            format!("cut to {len}")
        } else {
            let at = rng.usize(0..bytes.len());
            bytes[at] ^= 1 << rng.u32(0..8);
            format!("a bit flipped at {at}")
        };
        std::fs::write(&db, bytes).unwrap();
        server.spawn();
        let body = event_body("evt_new", "message.read", 1);
        assert_eq!(server.client().post_signed(&body).unwrap().status, 200, "{what}");
        assert_eq!(exported(&server).len(), EVENTS + 1, "{what}\n{}", server.log());
    }
}

#[test]
fn a_copy_taken_while_events_come_in_has_all_that_were_acknowledged_before() {
    let server = Server::start(SMALL);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let acknowledged = Mutex::new(HashSet::new());
    let mut copies = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = server.client();
                while !stop.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let body = event_body(&format!("evt_{n}"), "message.read", n as u64);
                    assert_eq!(client.post_signed(&body).unwrap().status, 200);
                    acknowledged.lock().unwrap().insert(format!("evt_{n}"));
                }
            });
        }
        for _ in 0..if full_run() { 20 } else { 4 } {
            let known = acknowledged.lock().unwrap().len();
            eventually("more events come in", || {
                (acknowledged.lock().unwrap().len() > known + 500).then_some(())
            });
            let before = acknowledged.lock().unwrap().clone();
            let other = Server::stopped(SMALL);
            match copies.len() % 2 {
                0 => copy(&server.data(), &other.data()),
                _ => rsync(&server.data(), &other.data()),
            }
            copies.push((before, other));
        }
        stop.store(true, Ordering::Relaxed);
    });
    for (before, mut other) in copies {
        other.spawn();
        let there = exported(&other);
        let missing: Vec<_> = before.iter().filter(|id| !there.contains(*id)).collect();
        assert!(missing.is_empty(), "{} of {} are missing", missing.len(), before.len());
        let body = event_body("evt_new", "message.read", 1);
        assert_eq!(other.client().post_signed(&body).unwrap().status, 200);
    }
}
