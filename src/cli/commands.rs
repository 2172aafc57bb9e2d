//! Verbs that ask the running appliance.

use std::io::{BufRead, IsTerminal as _, Write as _};

use http_body_util::BodyExt as _;
use hyper::Method;

use super::args::{Command, Common, Dead, DeadChange, Events, Filter};
use super::client::{Client, empty, read};
use super::progress::Progress;
use super::render::Style;
use super::{FAILED, Failure, USAGE, print, print_json, show, stopped, tail};
use crate::admin::wire::{Changed, EventItem, Imported, PageJson, Selection, SignIn, StatusJson};
use crate::clock::{Clock as _, SystemClock, Timestamp};

const PAGE: usize = 500;

pub async fn run(common: &Common, command: Command) -> Result<(), Failure> {
    if let Command::Trigger(trigger) = &command {
        return super::trigger::run(common, trigger).await;
    }
    let client = stopped::client(common, &command).await?;
    match command {
        Command::Events(Events::List { filter, handler, limit }) => {
            list(common, &client, "events", &selection(filter, handler), limit, show::events).await
        }
        Command::Events(Events::Show { id }) => show(common, &client, &id).await,
        Command::Events(Events::Tail) => tail::tail(common, &client).await,
        Command::Dead(Dead::List { filter, handler, limit }) => {
            list(common, &client, "dead", &selection(filter, handler), limit, show::dead).await
        }
        Command::Dead(Dead::Replay(change)) => dead_change(common, &client, "replay", change).await,
        Command::Dead(Dead::Discard { change, yes }) => {
            if needs_consent(&change, yes) {
                let stdin = std::io::stdin();
                confirm(stdin.is_terminal(), &mut stdin.lock())?;
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
        Command::Debugger { open } => debugger(common, &client, open).await,
        Command::Messages { verb } => super::messages::run(common, &client, verb).await,
        Command::Status => status(common, &client).await,
        Command::Export { since, until } => export(common, &client, since, until).await,
        Command::Import { file } => import(common, &client, &file).await,
        _ => Err(Failure::usage("this verb needs no appliance")),
    }
}

async fn debugger(common: &Common, client: &Client, open: bool) -> Result<(), Failure> {
    let link: SignIn = client.post("/api/v1/signin", &()).await?;
    match common.json {
        true => print_json(&link)?,
        false => print(&format!("{}\n", link.url))?,
    }
    if !common.quiet && !common.json {
        let minutes = link.works_for_seconds / 60;
        super::warn(&format!("the link works once, within {minutes} minutes, on this machine"));
    }
    if open {
        let opened = std::process::Command::new("xdg-open").arg(&link.url).status();
        if !opened.is_ok_and(|status| status.success()) {
            return Err(Failure::failed(
                "cannot open a browser (xdg-open fails); open the link above by hand",
            ));
        }
    }
    Ok(())
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

/// Pages of `what`, until there are `left` of them or no more.
async fn list<T: serde::de::DeserializeOwned + serde::Serialize>(
    common: &Common,
    client: &Client,
    what: &str,
    selection: &Selection,
    left: usize,
    rows: fn(&[T], Timestamp, Style) -> String,
) -> Result<(), Failure> {
    pages(common, client, what, || query(selection), left, rows).await
}

pub(super) async fn pages<T: serde::de::DeserializeOwned + serde::Serialize>(
    common: &Common,
    client: &Client,
    what: &str,
    query: impl Fn() -> form_urlencoded::Serializer<'static, String>,
    mut left: usize,
    rows: fn(&[T], Timestamp, Style) -> String,
) -> Result<(), Failure> {
    let style = Style::of(common);
    let mut cursor: Option<String> = None;
    while left > 0 {
        let mut q = query();
        q.append_pair("limit", &left.min(PAGE).to_string());
        if let Some(cursor) = &cursor {
            q.append_pair("cursor", cursor);
        }
        let mut page: PageJson<T> = client.get(&format!("/api/v1/{what}?{}", q.finish())).await?;
        // A page of dead letters does not end within an event, so it may be longer.
        page.items.truncate(left);
        if let Some(note) = page.note.filter(|_| cursor.is_none() && !common.quiet) {
            eprintln!("note: something may be missing: {note}");
        }
        left -= page.items.len();
        if common.json {
            for item in &page.items {
                print_json(item)?;
            }
        } else if !page.items.is_empty() {
            print(&rows(&page.items, now(), style))?;
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok(())
}

pub(super) fn now() -> Timestamp {
    SystemClock::new().now().wall
}

async fn show(common: &Common, client: &Client, id: &str) -> Result<(), Failure> {
    let id: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
    let id = id.replace('+', "%20");
    let item: EventItem = client.get(&format!("/api/v1/events/{id}")).await?;
    if common.json {
        return print_json(&item);
    }
    print(&show::event(&item, now(), Style::of(common)))
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

/// A discard is for good, and a filter may mean more than its writer thinks.
fn needs_consent(change: &DeadChange, yes: bool) -> bool {
    let bulk = change.all || change.handler.is_some() || change.filter != Filter::default();
    bulk && change.ids.is_empty() && !change.dry_run && !yes
}

fn confirm(terminal: bool, answers: &mut impl BufRead) -> Result<(), Failure> {
    if !terminal {
        return Err(Failure::usage(
            "this discards dead deliveries in bulk, for good: add --yes to mean it, or --dry-run to count",
        ));
    }
    let _ = write!(std::io::stderr(), "Discard all these dead deliveries for good? [y/N] ");
    let mut line = String::new();
    let _ = answers.read_line(&mut line);
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
        print(&show::status(&status, now(), Style::of(common)))?;
    }
    if status.is_healthy() { Ok(()) } else { Err(Failure { code: FAILED, message: String::new() }) }
}

async fn export(
    common: &Common,
    client: &Client,
    since: Option<String>,
    until: Option<String>,
) -> Result<(), Failure> {
    let q = query(&Selection { since, until, ..Selection::default() }).finish();
    let mut answer = client.send(Method::GET, &format!("/api/v1/export?{q}"), empty()).await?;
    let mut out = std::io::stdout().lock();
    // What goes to a terminal shows itself how far it is.
    let mut progress =
        (!std::io::stdout().is_terminal()).then(|| Progress::new(common, "exported", None));
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|e| {
            Failure::failed(format!("the export was cut off: {e}; what was written is not whole"))
        })?;
        let data = frame.into_data().unwrap_or_default();
        out.write_all(&data).map_err(|e| Failure::writing(&e))?;
        if let Some(progress) = &mut progress {
            progress.add(data.len());
        }
    }
    drop(progress);
    out.flush().map_err(|e| Failure::writing(&e))
}

async fn import(common: &Common, client: &Client, file: &std::path::Path) -> Result<(), Failure> {
    let (tx, body) = super::client::streamed();
    let path = file.to_owned();
    let total = std::fs::metadata(&path).ok().filter(|m| m.is_file()).map(|m| m.len());
    let mut progress = Progress::new(common, "imported", total);
    let reader = tokio::task::spawn_blocking(move || {
        super::client::feed(&path, &tx, |sent| progress.add(sent))
    });
    let answer = client.send(Method::POST, "/api/v1/import", body).await;
    let fed = reader.await.unwrap_or(Ok(()));
    fed.map_err(|e| {
        Failure::failed(format!("cannot read {}: {e}; check the file", file.display()))
    })?;
    // The call was right, the file is not: that is no wrong usage.
    let answer = answer.map_err(|failure| match failure.code {
        USAGE => Failure::failed(failure.message),
        _ => failure,
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> DeadChange {
        DeadChange {
            ids: vec![],
            filter: Filter::default(),
            handler: None,
            all: false,
            dry_run: false,
        }
    }

    #[test]
    fn a_discard_in_bulk_asks_first_one_by_id_or_without_effect_does_not() {
        let all = || DeadChange { all: true, ..change() };
        assert!(needs_consent(&all(), false));
        assert!(needs_consent(&DeadChange { handler: Some("crm".into()), ..change() }, false));
        let kind = Filter { kind: Some("*".into()), ..Filter::default() };
        assert!(needs_consent(&DeadChange { filter: kind, ..change() }, false));
        assert!(!needs_consent(&all(), true));
        assert!(!needs_consent(&DeadChange { dry_run: true, ..all() }, false));
        assert!(!needs_consent(&DeadChange { ids: vec!["evt_1".into()], ..change() }, false));
    }

    #[test]
    fn only_a_yes_on_a_terminal_discards() {
        assert_eq!(confirm(true, &mut &b"y\n"[..]), Ok(()));
        for no in ["n\n", "\n", "", "yep\n"] {
            assert_eq!(confirm(true, &mut no.as_bytes()).unwrap_err().code, FAILED, "{no:?}");
        }
        assert_eq!(confirm(false, &mut &b"y\n"[..]).unwrap_err().code, USAGE);
    }
}
