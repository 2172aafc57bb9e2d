//! The parts of a walk, one by one: `cargo bench --bench parts`, or `-- index` for those whose name holds it.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on has nobody to tell")]

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;

use bluehook::clock::Timestamp;
use bluehook::config::{Circuit, Order};
use bluehook::delivery::{Attempt, HandlerName, Outcome};
use bluehook::event::{Event, VerifiedBy};
use bluehook::handler::template::{self, Engine, Values};
use bluehook::replay::planner::{Command, HandlerPlan, Head, Input, Planner};
use bluehook::schedule::Schedule;
use bluehook::signature::{Policy, Scheme, Secret, json, sign_hex, verify};
use bluehook::store::Home;
use bluehook::store::disk::RealDisk;
use bluehook::store::index::apply::{Applier, At};
use bluehook::store::index::keys::{FORMAT, Position};
use bluehook::store::log::frame::{self, Header, Stamp};
use bluehook::store::log::{LogOptions, LogWriter, Place};
use bluehook::store::record::{self, EventRecord, Record};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const BODY_BYTES: usize = 700;

fn body(n: u64) -> String {
    let head = format!(
        r#"{{"eventId":"evt_{n:012}","type":"message.read","createdAt":"2026-11-25T09:00:00.000Z","data":{{"messageId":"msg_{:012}","from":"+15550001111","to":"+1555{:07}","body":""#,
        n / 4,
        n % 1000
    );
    let room = BODY_BYTES - head.len() - 3;
    format!("{head}{}\"}}}}", "x".repeat(room))
}

fn event(n: u64) -> EventRecord {
    EventRecord {
        source: "bluereplies".into(),
        id: format!("evt_{n:012}"),
        kind: "message.read".into(),
        received_at: Timestamp(1_764_000_000_000),
        headers: vec![("content-type".into(), b"application/json".to_vec())],
        verified_by: VerifiedBy::Raw,
        body: body(n).into(),
        conversation: Some(format!("+1555{:07}", n % 1000)),
        imported: false,
    }
}

fn signature(c: &mut Criterion) {
    let mut group = c.benchmark_group("signature");
    let policy = Policy {
        header: "x-bluereplies-signature".into(),
        scheme: Scheme::Hex,
        secrets: vec![Secret::new(b"whs-bench-secret".to_vec())],
        canonical_json: true,
    };
    let body = body(1);
    let spaced = body.replace(',', ", ");
    let signature = sign_hex(&policy.secrets[0], body.as_bytes());
    let headers = || [("x-bluereplies-signature", signature.as_bytes())].into_iter();
    group.throughput(Throughput::Bytes(body.len() as u64));
    for (name, sent) in [("verify/as signed", &body), ("verify/canonical form", &spaced)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                verify(&policy, headers(), black_box(sent.as_bytes()), Timestamp(0)).unwrap()
            });
        });
    }
    group.bench_function("canonical form", |b| {
        b.iter(|| json::canonical(black_box(spaced.as_bytes())).unwrap());
    });
    group.finish();
}

fn log(c: &mut Criterion) {
    let mut group = c.benchmark_group("log");
    let (kind, payload) = record::encode(&Record::Event(event(1)));
    group.throughput(Throughput::Bytes(payload.len() as u64));
    let mut framed = Vec::new();
    group.bench_function("frame/encode", |b| {
        b.iter(|| {
            framed.clear();
            let stamp = Stamp { log_id: 1, seq: 2, time: Timestamp(3), kind, durable: 1 };
            frame::encode(&mut framed, stamp, black_box(&payload));
        });
    });
    group.bench_function("frame/decode", |b| {
        b.iter(|| {
            let header = Header::decode(black_box(&framed)).unwrap();
            assert!(header.matches(&framed[frame::HEADER_BYTES..]));
            record::decode(header.kind, &framed[frame::HEADER_BYTES..]).unwrap()
        });
    });
    // To a real disk: what it says is the disk's share, too.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut writer, _) =
        LogWriter::open(Arc::new(RealDisk), dir.path(), LogOptions::default()).unwrap();
    for together in [1, 64] {
        group.throughput(Throughput::Elements(together));
        group.bench_function(format!("append/{together} with one sync"), |b| {
            b.iter(|| {
                for _ in 0..together {
                    writer.append(Timestamp(1), kind, &payload);
                }
                if writer.is_nearly_full() {
                    writer.prepare().unwrap();
                }
                writer.write().unwrap();
                writer.sync().unwrap();
            });
        });
    }
    group.finish();
}

/// One handler takes 256 events, each of which succeeds at once.
fn planner(c: &mut Criterion) {
    const EVENTS: u64 = 256;
    let plan = HandlerPlan {
        name: HandlerName::new("crm").unwrap(),
        order: Order::None,
        concurrency: 16,
        rate: None,
        schedule: Schedule::default(),
        circuit: Circuit::OFF,
    };
    let mut group = c.benchmark_group("planner");
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function("events delivered", |b| {
        b.iter(|| {
            let now = Timestamp(1);
            let mut planner = Planner::new(fastrand::Rng::with_seed(1), usize::MAX);
            let progress =
                Input::Progress { epoch: 0, durable: EVENTS, applied: EVENTS, caught_up: true };
            let mut inputs = VecDeque::from([Input::Configure(vec![plan.clone()]), progress]);
            let mut delivered = 0;
            while let Some(input) = inputs.pop_front() {
                for command in planner.step(input, now) {
                    delivered += u64::from(matches!(command, Command::Settle { .. }));
                    inputs.extend(answer(command, EVENTS));
                }
            }
            assert_eq!(delivered, EVENTS);
        });
    });
    group.finish();
}

fn answer(command: Command, events: u64) -> Option<Input> {
    Some(match command {
        Command::Load { handler, ticket, .. } => {
            Input::Loaded { handler, ticket, cursor: 1, paused: false, unsettled: vec![] }
        }
        Command::FetchHeads { handler, ticket, from, limit } => {
            let next = (from + limit as u64).min(events + 1);
            let head = |seq| Head { seq, time: Timestamp(1), conversation: None };
            Input::Heads {
                handler,
                ticket,
                heads: (from..next).map(head).collect(),
                next,
                skipped: 0,
            }
        }
        Command::FetchDue { handler, ticket, .. } => {
            Input::Due { handler, ticket, found: vec![], next: None }
        }
        Command::Start { key, generation, number, .. } => {
            let attempt = Attempt {
                number,
                generation,
                started_at: Timestamp(1),
                took_ms: 1,
                outcome: Outcome::Delivered,
                request: None,
                response: None,
            };
            Input::Finished { key, attempt }
        }
        Command::Settle { key, .. } => {
            let seq = events + key.event;
            Input::Logged { key, seq, epoch: Some(0) }
        }
        _ => return None,
    })
}

fn templates(c: &mut Criterion) {
    let mut engine = Engine::new(&Values::default());
    let source = r#"{"email": "{{ data.to }}", "read": "{{ event.receivedAt }}", "text": {{ data.body | tojson }}}"#;
    let template = engine.compile("json", source, template::Place::Text).unwrap();
    let event = Event { seq: 1, new: event(1).into() };
    let mut group = c.benchmark_group("template");
    group.bench_function("context", |b| {
        b.iter(|| template::context(black_box(&event), None, "crm", 1));
    });
    let context = template::context(&event, None, "crm", 1);
    group.bench_function("render", |b| {
        b.iter(|| engine.render(&template, black_box(&context)).unwrap());
    });
    group.finish();
}

/// Steps of 1,000 events into an index on disk that grows.
fn index(c: &mut Criterion) {
    const STEP: u64 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let kv = Home::Sled(dir.path().join("index")).open().unwrap();
    while kv.warm().unwrap() {}
    let start = Position { format: FORMAT, applied: 0, segment: 1, offset: 0, last: None };
    let mut applier = Applier::new(kv.clone(), start);
    let mut next = 1;
    let mut group = c.benchmark_group("index");
    group.throughput(Throughput::Elements(STEP)).sample_size(50);
    group.bench_function("apply", |b| {
        b.iter_batched(
            || {
                let events: Vec<_> = (next..next + STEP).map(|n| (n, event(n))).collect();
                next += STEP;
                events
            },
            |events| {
                for (seq, event) in events {
                    let offset = u32::try_from(seq % 10_000).unwrap() * 1_000;
                    let place = Place { segment: 1, offset, len: 1_000 };
                    let at = At { seq, time: Timestamp(1), place };
                    applier.apply(at, Record::Event(event)).unwrap();
                }
                applier.commit().unwrap();
                black_box(applier.take_written_keys());
                kv.warm().unwrap();
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(parts, signature, log, index, planner, templates);
criterion_main!(parts);
