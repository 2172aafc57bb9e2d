//! Crash images: the real binary is recorded call by call, then thousands of states in which a crash may have
//! left the disk are built from that, and each is opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bluehook::clock::{SystemClock, Timestamp};
use bluehook::config::Retention;
use bluehook::event::{NewEvent, VerifiedBy};
use bluehook::store::disk::RealDisk;
use bluehook::store::{Store, StoreOptions};

use super::model::{FileSystem, Names};
use super::stored;
use super::trace::{self, Call, Moment, Traced};
use crate::support::{Program, Server, event_body, eventually, full_run, rng};

/// Segments of 1 MiB. What is settled goes when it is an hour old, which the test's clock decides.
const CONFIG: &str = r#"
[retention]
disk_max = "32 MiB"
delivered = "1h"

[schedule]
delays = ["0s", "30d"]

[[handler]]
name = "file"
events = ["message.read"]
file = { path = "{dir}/events.jsonl" }

[[handler]]
name = "unreachable"
events = ["message.failed"]
http = { url = "http://127.0.0.1:9/" }
"#;
/// So much that few segments hold many events.
const PAD_BYTES: usize = 4_000;
/// Of so many events one is never settled.
const UNSETTLED: u64 = 20;

/// One story of the real binary, and what it acknowledged.
pub struct Recording {
    root: PathBuf,
    calls: Vec<Traced>,
    /// Event number to the moment its 200 had arrived.
    acknowledged: BTreeMap<u64, Moment>,
}

fn id(n: u64) -> String {
    format!("evt_{n}")
}

/// As intake would hand it to the store.
fn event(n: u64) -> NewEvent {
    NewEvent {
        source: "bluereplies".to_owned(),
        id: id(n),
        kind: "message.read".to_owned(),
        received_at: Timestamp::ZERO,
        headers: Vec::new(),
        verified_by: VerifiedBy::Raw,
        body: body(n).into(),
        conversation: None,
        imported: false,
    }
}

fn body(n: u64) -> String {
    let kind = if n.is_multiple_of(UNSETTLED) { "message.failed" } else { "message.read" };
    let plain = event_body(&id(n), kind, n);
    plain.replacen('{', &format!("{{\"pad\":\"{}\",", "x".repeat(PAD_BYTES)), 1)
}

/// Three sessions: retention under load, a rebuild under load, a plain one. Two are killed.
pub fn record(program: &Program) -> Recording {
    let mut server = Server::stopped_with_clock(CONFIG);
    server.program = program.clone();
    let mut recording =
        Recording { root: server.data(), calls: Vec::new(), acknowledged: BTreeMap::new() };
    let mut hours = 0;
    for session in 0..3 {
        let file = server.dir.path().join(format!("trace.{session}"));
        if session == 1 {
            recording.remove_index();
        }
        trace::record(&mut server, &file);
        server.spawn();
        let pid = server.pid();
        if session < 2 {
            // Until something was dropped, so that a crash can meet that.
            recording.send(&server, 600);
            hours += 2;
            server.set_clock_ahead(hours * 3600);
            eventually("a segment is dropped", || {
                recording.send(&server, 10);
                server.log().contains("dropped a segment").then_some(())
            });
            recording.send(&server, 100);
            server.kill();
        } else {
            recording.send(&server, 100);
            server.stop();
        }
        let calls = trace::read(&file, &recording.root, pid, recording.calls.len());
        recording.calls.extend(calls);
        recording.assert_true();
    }
    recording
}

impl Recording {
    fn send(&mut self, server: &Server, count: u64) {
        let first = self.acknowledged.last_key_value().map_or(1, |(n, _)| n + 1);
        let acknowledged = Mutex::new(&mut self.acknowledged);
        std::thread::scope(|scope| {
            for sender in 0..4 {
                let acknowledged = &acknowledged;
                scope.spawn(move || {
                    let mut client = server.client();
                    for n in (first..first + count).skip(sender).step_by(4) {
                        if client.post_signed(&body(n)).unwrap().status == 200 {
                            acknowledged.lock().unwrap().insert(n, trace::now());
                        }
                    }
                });
            }
        });
    }

    /// While stopped, as a person would.
    fn remove_index(&mut self) {
        std::fs::remove_dir_all(self.root.join("index")).unwrap();
        self.calls.push(Traced {
            call: Call::Remove { path: self.root.join("index") },
            began: trace::now(),
            after: self.calls.len(),
            unfinished: false,
        });
    }

    /// The test of the recorder: with everything kept, the model's files are the real ones. Of the calls that a
    /// kill met in mid-air each may have come to its end or not, and a write may have come halfway.
    fn assert_true(&mut self) {
        for call in self.calls.iter_mut().filter(|c| c.unfinished) {
            if let Call::Write { path, at, data } = &mut call.call {
                let found = std::fs::read(path).unwrap_or_default();
                let found = found.get(usize::try_from(*at).unwrap()..).unwrap_or_default();
                let landed = data.iter().zip(found).take_while(|(wanted, is)| wanted == is);
                data.truncate(landed.count());
            }
        }
        self.calls.retain(
            |c| !matches!(&c.call, Call::Write { data, .. } if c.unfinished && data.is_empty()),
        );
        let open: Vec<usize> =
            (0..self.calls.len()).filter(|&i| self.calls[i].unfinished).collect();
        assert!(open.len() < 10, "{} calls in mid-air", open.len());
        let all = (1_u32 << open.len()) - 1;
        let left_out = |mask: u32| -> Vec<usize> {
            open.iter()
                .enumerate()
                .filter(|(bit, _)| mask & (1 << bit) == 0)
                .map(|(_, &i)| i)
                .collect()
        };
        let first = self.differences(&[]);
        if first.is_some() {
            let fits = (0..all).rev().map(left_out).find(|out| self.differences(out).is_none());
            assert!(fits.is_some(), "whichever of {} in mid-air took place: {first:?}", open.len());
            let out = fits.unwrap();
            let mut at = 0..;
            self.calls.retain(|_| !out.contains(&at.next().unwrap()));
        }
        self.calls.iter_mut().for_each(|c| c.unfinished = false);
    }

    fn differences(&self, left_out: &[usize]) -> Option<String> {
        let mut model = FileSystem::new(&self.root, Names::Strict);
        let calls = self.calls.iter().enumerate().filter(|(i, _)| !left_out.contains(i));
        calls.for_each(|(_, c)| model.apply(c));
        model.settle();
        let copy = tempfile::tempdir().unwrap();
        model.crash(copy.path(), &mut fastrand::Rng::with_seed(1));
        let output =
            Command::new("diff").arg("-r").arg(&self.root).arg(copy.path()).output().unwrap();
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// How many calls come before a crash.
    fn random_point(&self, crashes: Crashes, rng: &mut fastrand::Rng) -> usize {
        let all = self.calls.len();
        let names = |call: &Call| match call {
            Call::Remove { path } => path.extension().is_some_and(|e| e == "seg"),
            Call::Create { .. } | Call::Rename { .. } => crashes == Crashes::Anywhere,
            _ => false,
        };
        if crashes == Crashes::Anywhere && rng.bool() {
            return rng.usize(1..=all);
        }
        let names = self.calls.iter().enumerate().filter(|(_, traced)| names(&traced.call));
        let names: Vec<usize> = names.map(|(n, _)| n + 1).collect();
        (names[rng.usize(0..names.len())] + rng.usize(0..12)).min(all)
    }

    /// From each call on, what is certainly there: acknowledged before any later call began.
    fn promised(&self) -> Vec<Moment> {
        let mut earliest = Moment::MAX;
        let mut moments: Vec<Moment> = (self.calls.iter().rev())
            .map(|c| {
                earliest = earliest.min(c.began);
                earliest
            })
            .collect();
        moments.reverse();
        moments.push(Moment::MAX);
        moments
    }
}

/// When, in the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crashes {
    /// Half of them just after a name has changed in a folder, where most is at stake.
    Anywhere,
    /// Just after a segment was removed.
    AtDrops,
}

/// Builds and opens so many images; gives what is wrong with any.
pub fn campaign(
    recording: &Recording,
    images: usize,
    crashes: Crashes,
    rng: &mut fastrand::Rng,
) -> Vec<String> {
    let promised = recording.promised();
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for names in [Names::Strict, Names::Journal] {
            let mut rng = rng.fork();
            let (promised, failures) = (&promised, &failures);
            scope.spawn(move || {
                let mut model = FileSystem::new(&recording.root, names);
                let mut points: Vec<usize> =
                    (0..images / 2).map(|_| recording.random_point(crashes, &mut rng)).collect();
                points.sort_unstable();
                let mut done = 0;
                for (i, point) in points.into_iter().enumerate() {
                    recording.calls[done..point].iter().for_each(|call| model.apply(call));
                    done = point;
                    let image = in_memory();
                    let at = image.path().join("data");
                    let how = model.crash(&at, &mut rng);
                    let there = recording.acknowledged.iter();
                    let due: Vec<u64> =
                        there.filter(|(_, t)| **t < promised[point]).map(|(n, _)| *n).collect();
                    let opened = open(&at, &due, &mut rng);
                    let serves = || if i.is_multiple_of(100) { serve(&at, &due) } else { Ok(()) };
                    match opened.and_then(|()| serves()) {
                        Ok(()) => {}
                        Err(why) => failures.lock().unwrap().push(format!("{how}: {why}")),
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap()
}

/// Where building many files costs no disk.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.exists() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Opens an image with the store's own code and looks for every event that is due.
fn open(image: &Path, due: &[u64], rng: &mut fastrand::Rng) -> Result<(), String> {
    let retention = Retention {
        delivered: None,
        dead: None,
        dedup: Duration::from_secs(7 * 86_400),
        disk_max: 32 << 20,
    };
    let options = StoreOptions { data_dir: image.to_owned(), retention };
    let store = Store::open(Arc::new(RealDisk), options, Arc::new(SystemClock::new()))
        .map_err(|e| format!("does not open: {e:?}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut progress = store.progress();
        let ready = progress.wait_for(|p| p.caught_up && p.applied >= p.durable);
        let ready = tokio::time::timeout(Duration::from_secs(60), ready).await;
        ready
            .map_err(|_| format!("the index does not catch up: {:?}", store.stats().note))?
            .unwrap();
        let mut wrong = Vec::new();
        let dropped_of = due.len() / 50 + 1;
        for n in due {
            let found = store.find(&id(*n));
            match (found.len(), n.is_multiple_of(UNSETTLED)) {
                (1, _) if store.event(found[0]).is_some() => {}
                (1, _) => wrong.push(format!("{} is lost, though in the index", id(*n))),
                // Settled and dropped: then it is known still. Some of these will do.
                (0, false) => {
                    if rng.usize(0..dropped_of) > 0 {
                        continue;
                    }
                    let again = event(*n);
                    if !store.append_event(again).await.is_ok_and(|receipt| receipt.is_duplicate())
                    {
                        wrong.push(format!("{} is lost", id(*n)));
                    }
                }
                (0, true) => wrong.push(format!("{} is lost, and was not settled", id(*n))),
                (times, _) => wrong.push(format!("{} is stored {times} times", id(*n))),
            }
        }
        store.close().await;
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join(", ")) }
    })
}

/// Starts the real binary on an image: it listens, and has what is not settled.
fn serve(image: &Path, due: &[u64]) -> Result<(), String> {
    let mut server = Server::stopped_at(image, CONFIG);
    server.spawn();
    let stored = stored(&server);
    let mut unsettled = due.iter().filter(|n| n.is_multiple_of(UNSETTLED));
    match unsettled.find(|n| stored.get(&id(**n)) != Some(&1)) {
        Some(n) => Err(format!("serve: {} is lost or stored twice", id(*n))),
        None => Ok(()),
    }
}

#[test]
fn no_state_in_which_a_crash_leaves_the_disk_loses_what_was_acknowledged() {
    let mut rng = rng("crash images");
    let recording = record(&Program::plain());
    let images = if full_run() { 20_000 } else { 600 };
    let syncs = recording.calls.iter().filter(|c| matches!(c.call, Call::Sync { .. })).count();
    println!(
        "{} calls, {syncs} of them syncs; {} events; {images} images",
        recording.calls.len(),
        recording.acknowledged.len()
    );
    let failures = campaign(&recording, images, Crashes::Anywhere, &mut rng);
    assert!(
        failures.is_empty(),
        "{} of {images}:\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n")
    );
}
