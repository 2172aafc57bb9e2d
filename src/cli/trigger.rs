//! `bluehook trigger`: signs and sends test events.

use super::args::{Common, Trigger};
use super::client::Client;
use super::commands::now;
use super::render::escape;
use super::{Failure, print, print_json, settings};
use crate::admin::sample::{self, Sample};
use crate::admin::send::{self, Target};
use crate::admin::wire::{Answered, TriggerRequest, Triggered};

/// Not an event: what `[notify]` runs is tried.
const TEST_NOTICE: &str = "notice.test";
/// As much of an answer as fits beside the rest of a line.
const ANSWER_CHARS: usize = 160;

pub async fn run(common: &Common, asked: &Trigger) -> Result<(), Failure> {
    let data = asked.data.as_deref().map(serde_json::from_str).transpose();
    let data = data.map_err(|e| Failure::usage(format!("--data is no JSON: {e}")))?;
    let request = TriggerRequest {
        kind: asked.kind.clone(),
        data,
        set: asked.set.clone(),
        duplicate: asked.duplicate,
        bad_signature: asked.bad_signature,
    };
    if asked.kind == TEST_NOTICE && asked.to.is_none() {
        let client = Client { socket: settings::socket(common)?, stopped: None };
        let told: serde_json::Value =
            client.post("/api/v1/notify/test", &serde_json::Value::Null).await?;
        return match (common.json, common.quiet) {
            (true, _) => print_json(&told),
            (false, true) => Ok(()),
            (false, false) => print("notice.test was delivered through [notify]\n"),
        };
    }
    let target = asked.to.as_deref().map(Target::url).transpose().map_err(Failure::usage)?;
    if !sample::TYPES.contains(&asked.kind.as_str()) && !common.quiet {
        let known = sample::TYPES.join(", ");
        eprintln!("bluehook: {:?} is none of {known}; sent all the same", asked.kind);
    }
    let mut unexpected = 0;
    for _ in 0..asked.count {
        let done = match &target {
            None => {
                let client = Client { socket: settings::socket(common)?, stopped: None };
                client.post("/api/v1/trigger", &request).await?
            }
            Some(target) => to(common, target, &request).await?,
        };
        let copies = std::iter::once(&done.answer).chain(&done.again);
        let wrong = copies.filter(|a| (200..300).contains(&a.status) == asked.bad_signature);
        unexpected += wrong.count();
        if common.json {
            print_json(&done)?;
        } else if !common.quiet {
            print(&lines(&done))?;
        }
    }
    match (unexpected, asked.bad_signature) {
        (0, _) => Ok(()),
        (n, true) => Err(Failure::failed(format!(
            "{n} with a wrong signature were accepted: whoever knows the address can send events; check that \
             the endpoint verifies"
        ))),
        (n, false) => Err(Failure::failed(format!("{n} were not accepted; see the log"))),
    }
}

async fn to(
    common: &Common,
    target: &Target,
    request: &TriggerRequest,
) -> Result<Triggered, Failure> {
    let loaded = settings::load(common)?;
    let source = loaded.config.sources.first();
    let source = source.ok_or_else(|| Failure::usage("no source is configured"))?;
    let sample = Sample::build(request, now()).map_err(Failure::usage)?;
    let headers = sample.headers(&source.signature, now(), request.bad_signature);
    let headers = headers.map_err(Failure::usage)?;
    send::send(target, request, &sample, &headers).await.map_err(Failure::unreachable)
}

fn lines(done: &Triggered) -> String {
    let event = format!("{} {}", escape(&done.kind), escape(&done.event_id));
    let line = |answer: &Answered, which: &str| {
        let body: String = answer.body.trim().chars().take(ANSWER_CHARS).collect();
        let said = if body.is_empty() { String::new() } else { format!(": {}", escape(&body)) };
        let (to, status, took) = (escape(&done.to), answer.status, answer.took_ms);
        format!("{event} -> {to}: {status} in {took} ms{which}{said}\n")
    };
    let again = done.again.as_ref().map(|answer| line(answer, " (again)"));
    line(&done.answer, "") + &again.unwrap_or_default()
}
