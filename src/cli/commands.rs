//! Verbs that ask the running appliance.

use std::io::{IsTerminal as _, Write as _};

use http_body_util::BodyExt as _;
use hyper::Method;

use super::args::{Command, Common, Dead, DeadChange, Events, Filter, Trigger};
use super::client::{Client, empty, read};
use super::render::{bytes, escape, table, width};
use super::time::relative;
use super::{FAILED, Failure, print, print_json, settings};
use crate::admin::wire::{
    Changed, DeliveryItem, EventJson, Imported, PageJson, Selection, StatusJson, StreamItem,
    TriggerRequest, Triggered,
};
use crate::admin::{sample, send};
use crate::clock::{Clock as _, SystemClock, Timestamp};

const PAGE: usize = 500;

pub async fn run(common: &Common, command: Command) -> Result<(), Failure> {
    if let Command::Trigger(trigger) = &command {
        return self::trigger(common, trigger).await;
    }
    let client = Client { socket: settings::socket(common)? };
    match command {
        Command::Events(Events::List { filter, handler, limit }) => {
            list(common, &client, "events", &selection(filter, handler), limit, event_rows).await
        }
        Command::Events(Events::Show { id }) => show(common, &client, &id).await,
        Command::Events(Events::Tail) => tail(common, &client).await,
        Command::Dead(Dead::List { filter, handler, limit }) => {
            list(common, &client, "dead", &selection(filter, handler), limit, dead_rows).await
        }
        Command::Dead(Dead::Replay(change)) => dead_change(common, &client, "replay", change).await,
        Command::Dead(Dead::Discard { change, yes }) => {
            if change.all && !change.dry_run && !yes {
                confirm()?;
            }
            dead_change(common, &client, "discard", change).await
        }
        Command::Replay { ids, filter, handler, dry_run } => {
            let selection = Selection { ids, dry_run, ..selection(filter, handler) };
            if !selection.names_something() {
                return Err(Failure::usage(
                    "nothing to replay: give event ids, or --since and the like",
                ));
            }
            let changed: Changed = client.post("/api/v1/replay", &selection).await?;
            report(common, "to run again", &changed)
        }
        Command::Status => status(common, &client).await,
        Command::Export { since, until } => export(&client, since, until).await,
        Command::Import { file } => import(common, &client, &file).await,
        _ => Err(Failure::usage("this verb needs no appliance")),
    }
}

fn selection(f: Filter, handler: Option<String>) -> Selection {
    Selection {
        kind: f.kind,
        status: f.status,
        source: f.source,
        since: f.since,
        until: f.until,
        search: f.search,
        handler,
        ..Selection::default()
    }
}

fn query(s: &Selection) -> form_urlencoded::Serializer<'static, String> {
    let mut out = form_urlencoded::Serializer::new(String::new());
    for (name, value) in [
        ("type", &s.kind),
        ("status", &s.status),
        ("source", &s.source),
        ("handler", &s.handler),
        ("since", &s.since),
        ("until", &s.until),
        ("search", &s.search),
    ] {
        if let Some(value) = value {
            out.append_pair(name, value);
        }
    }
    out
}

async fn list<T: serde::de::DeserializeOwned + serde::Serialize>(
    common: &Common,
    client: &Client,
    what: &str,
    selection: &Selection,
    mut left: usize,
    rows: fn(&[T]) -> String,
) -> Result<(), Failure> {
    let mut cursor: Option<String> = None;
    while left > 0 {
        let mut q = query(selection);
        q.append_pair("limit", &left.min(PAGE).to_string());
        if let Some(cursor) = &cursor {
            q.append_pair("cursor", cursor);
        }
        let page: PageJson<T> = client.get(&format!("/api/v1/{what}?{}", q.finish())).await?;
        left = left.saturating_sub(page.items.len());
        if common.json {
            for item in &page.items {
                print_json(item)?;
            }
        } else if !page.items.is_empty() {
            print(&rows(&page.items))?;
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok(())
}

fn now() -> Timestamp {
    SystemClock::new().now().wall
}

fn event_rows(items: &[EventJson]) -> String {
    let row = |e: &EventJson| {
        let states: Vec<_> =
            e.deliveries.iter().map(|d| format!("{}: {}", d.handler, d.state)).collect();
        let when = relative(&e.received_at, now());
        vec![e.seq.to_string(), when, e.kind.clone(), e.event_id.clone(), states.join(", ")]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    table(&["SEQ", "RECEIVED", "TYPE", "ID", "DELIVERIES"], &rows, width())
}

fn dead_rows(items: &[DeliveryItem]) -> String {
    let row = |d: &DeliveryItem| {
        let reason = d.delivery.reason.clone().unwrap_or_default();
        let when = relative(&d.received_at, now());
        vec![when, d.kind.clone(), d.event_id.clone(), d.delivery.handler.clone(), reason]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    table(&["RECEIVED", "TYPE", "ID", "HANDLER", "REASON"], &rows, width())
}

async fn show(common: &Common, client: &Client, id: &str) -> Result<(), Failure> {
    let id: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
    let id = id.replace('+', "%20");
    let event: EventJson = client.get(&format!("/api/v1/events/{id}")).await?;
    if common.json {
        return print_json(&event);
    }
    let mut text = format!(
        "{}  {}\nsource {}, seq {}, received {}, signature {}, duplicates {}{}\n",
        escape(&event.event_id),
        escape(&event.kind),
        escape(&event.source),
        event.seq,
        event.received_at,
        event.verified_by,
        event.duplicates,
        if event.conflict { ", a duplicate had another body" } else { "" },
    );
    let payload = event.payload.as_deref().or(event.payload_base64.as_deref()).unwrap_or_default();
    text.push_str(&format!("{}\n", escape(payload)));
    for d in &event.deliveries {
        let due = d.due_at.as_ref().map(|due| format!(", due {}", relative(due, now())));
        let due = due.unwrap_or_default();
        text.push_str(&format!("\n{}: {}{due}\n", escape(&d.handler), d.state));
        for a in &d.attempts {
            let reason = a.reason.as_deref().unwrap_or_default();
            text.push_str(&format!(
                "  {} {} {} in {} ms {}\n",
                a.number,
                a.started_at,
                a.outcome,
                a.took_ms,
                escape(reason)
            ));
            for (mark, part) in [("-->", &a.request), ("<--", &a.response)] {
                for line in part.iter().flat_map(|part| part.lines()) {
                    text.push_str(&format!("    {mark} {}\n", escape(line)));
                }
            }
        }
    }
    print(&text)
}

async fn tail(common: &Common, client: &Client) -> Result<(), Failure> {
    let mut answer = client.send(Method::GET, "/api/v1/events/stream", empty()).await?;
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|e| {
            Failure::unreachable(format!("the stream was cut off: {e}; is bluehook still running?"))
        })?;
        rest.extend(frame.into_data().unwrap_or_default());
        while let Some(at) = rest.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = rest.drain(..=at).collect();
            let line = String::from_utf8_lossy(&line);
            let Some(json) = line.trim_end().strip_prefix("data: ") else { continue };
            if common.json {
                print(&format!("{json}\n"))?;
            } else if let Ok(item) = serde_json::from_str::<StreamItem>(json) {
                print(&tail_line(&item))?;
            }
        }
    }
    Err(Failure::unreachable("the stream ended: bluehook stopped; start it with `bluehook serve`"))
}

fn tail_line(item: &StreamItem) -> String {
    match item {
        StreamItem::Event(e) => {
            format!("--> {} {} {}\n", e.received_at, escape(&e.kind), escape(&e.event_id))
        }
        StreamItem::Attempt { event_id, event_type, handler, state, attempt, .. } => {
            let reason = attempt.reason.as_deref().map(|r| format!(" ({})", escape(r)));
            format!(
                "<-- {} {} {} {} {state} {} ms{}\n",
                attempt.started_at,
                escape(event_type),
                escape(event_id),
                escape(handler),
                attempt.took_ms,
                reason.unwrap_or_default()
            )
        }
    }
}

async fn dead_change(
    common: &Common,
    client: &Client,
    verb: &str,
    change: DeadChange,
) -> Result<(), Failure> {
    let DeadChange { ids, filter, handler, all, dry_run } = change;
    let selection = Selection { ids, all, dry_run, ..selection(filter, handler) };
    if !selection.names_something() {
        return Err(Failure::usage(format!(
            "nothing to {verb}: give event ids, a filter, or --all to mean all dead deliveries"
        )));
    }
    let changed: Changed = client.post(&format!("/api/v1/dead/{verb}"), &selection).await?;
    report(common, if verb == "replay" { "to run again" } else { "discarded" }, &changed)
}

fn report(common: &Common, what: &str, changed: &Changed) -> Result<(), Failure> {
    if common.json {
        return print_json(changed);
    }
    if common.quiet {
        return Ok(());
    }
    let dry = if changed.dry_run { " (dry run: nothing changed)" } else { "" };
    print(&format!("{what}: {} deliveries of {} events{dry}\n", changed.deliveries, changed.events))
}

fn confirm() -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("`dead discard --all` is for good: add --yes to mean it"));
    }
    let _ = write!(std::io::stderr(), "Discard all dead deliveries for good? [y/N] ");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    if matches!(line.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::failed("nothing was discarded"))
}

async fn status(common: &Common, client: &Client) -> Result<(), Failure> {
    let status: StatusJson = client.get("/api/v1/status").await?;
    if common.json {
        print_json(&status)?;
    } else {
        let note = status.note.as_deref().map(|n| format!(": {}", escape(n))).unwrap_or_default();
        let oldest = status.oldest_undelivered.as_ref().map(|t| relative(t, now()));
        print(&format!(
            "{}{note}\nbluehook {}, started {}, listening on {}\n{} events, {} waiting, {} dead, oldest undelivered {}\nlog {}, index {}, {} free\n",
            status.health,
            status.version,
            relative(&status.started_at, now()),
            escape(&status.listen.join(", ")),
            status.events,
            status.backlog,
            status.dead,
            oldest.as_deref().unwrap_or("none"),
            bytes(status.log_bytes),
            bytes(status.index_bytes),
            bytes(status.disk_free_bytes),
        ))?;
        for d in &status.damage {
            let (first, last) = (d.first_seq, d.last_seq);
            print(&format!("records {first} to {last} lost in {} at {}\n", d.segment, d.offset))?;
        }
        let row = |h: &crate::admin::wire::HandlerJson| {
            let state = match (h.configured, h.paused) {
                (false, _) => "parked",
                (true, true) => "paused",
                (true, false) => "active",
            };
            let n = |n: u64| n.to_string();
            vec![h.name.clone(), state.to_owned(), n(h.running), n(h.scheduled), n(h.dead)]
        };
        let rows: Vec<_> = status.handlers.iter().map(row).collect();
        let head = ["HANDLER", "STATE", "RUNNING", "WAITING", "DEAD"];
        print(&table(&head, &rows, width()))?;
    }
    if status.is_healthy() { Ok(()) } else { Err(Failure { code: FAILED, message: String::new() }) }
}

async fn export(
    client: &Client,
    since: Option<String>,
    until: Option<String>,
) -> Result<(), Failure> {
    let q = query(&Selection { since, until, ..Selection::default() }).finish();
    let mut answer = client.send(Method::GET, &format!("/api/v1/export?{q}"), empty()).await?;
    let mut out = std::io::stdout().lock();
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|e| {
            Failure::failed(format!("the export was cut off: {e}; what was written is not whole"))
        })?;
        let data = frame.into_data().unwrap_or_default();
        out.write_all(&data).map_err(|e| Failure::writing(&e))?;
    }
    out.flush().map_err(|e| Failure::writing(&e))
}

async fn import(common: &Common, client: &Client, file: &std::path::Path) -> Result<(), Failure> {
    let (tx, body) = super::client::streamed();
    let path = file.to_owned();
    let reader = tokio::task::spawn_blocking(move || super::client::feed(&path, &tx));
    let answer = client.send(Method::POST, "/api/v1/import", body).await;
    let fed = reader.await.unwrap_or(Ok(()));
    fed.map_err(|e| {
        Failure::failed(format!("cannot read {}: {e}; check the file", file.display()))
    })?;
    let done: Imported = read(answer?).await?;
    if common.json {
        return print_json(&done);
    }
    if common.quiet {
        return Ok(());
    }
    print(&format!(
        "imported {} events and {} deliveries; {} events were there already\n",
        done.events, done.deliveries, done.known
    ))
}

async fn trigger(common: &Common, asked: &Trigger) -> Result<(), Failure> {
    let data = asked.data.as_deref().map(serde_json::from_str).transpose();
    let data = data.map_err(|e| Failure::usage(format!("--data is no JSON: {e}")))?;
    let request = TriggerRequest { kind: asked.kind.clone(), data, set: asked.set.clone() };
    let mut refused = 0;
    for _ in 0..asked.count {
        let done: Triggered = match &asked.to {
            None => {
                let client = Client { socket: settings::socket(common)? };
                client.post("/api/v1/trigger", &request).await?
            }
            Some(url) => {
                let loaded = settings::load(common)?;
                let source = loaded.config.sources.first();
                let source = source.ok_or_else(|| Failure::usage("no source is configured"))?;
                let sample = sample::Sample::build(&request, now()).map_err(Failure::usage)?;
                let headers = sample.headers(&source.signature, now()).map_err(Failure::usage)?;
                send::to_url(url, &sample, &headers).await.map_err(Failure::unreachable)?
            }
        };
        refused += u32::from(!(200..300).contains(&done.status));
        if common.json {
            print_json(&done)?;
        } else if !common.quiet {
            print(&format!(
                "{} {} -> {}: {} in {} ms\n",
                escape(&done.kind),
                escape(&done.event_id),
                escape(&done.to),
                done.status,
                done.took_ms
            ))?;
        }
    }
    if refused == 0 {
        return Ok(());
    }
    Err(Failure::failed(format!("{refused} of {} were not accepted; see the log", asked.count)))
}
