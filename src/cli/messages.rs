//! `bluehook messages`: what became of each message.

use super::args::{Common, DEFAULT_LIMIT, MessageList, Messages};
use super::client::Client;
use super::commands::{now, pages};
use super::render::{Cell, Style, escape, table};
use super::time::relative;
use super::{Failure, print, print_json};
use crate::admin::wire::MessageJson;
use crate::clock::Timestamp;

pub async fn run(common: &Common, client: &Client, verb: Option<Messages>) -> Result<(), Failure> {
    match verb {
        None => {
            list(common, client, &MessageList { limit: DEFAULT_LIMIT, ..MessageList::default() })
                .await
        }
        Some(Messages::List(asked)) => list(common, client, &asked).await,
        Some(Messages::Show { id, source }) => show(common, client, &id, source.as_deref()).await,
    }
}

async fn list(common: &Common, client: &Client, asked: &MessageList) -> Result<(), Failure> {
    let query = || {
        let mut out = form_urlencoded::Serializer::new(String::new());
        for (name, value) in [
            ("status", &asked.status),
            ("with", &asked.with),
            ("source", &asked.source),
            ("since", &asked.since),
            ("until", &asked.until),
            ("search", &asked.search),
        ] {
            if let Some(value) = value {
                out.append_pair(name, value);
            }
        }
        out
    };
    pages(common, client, "messages", query, asked.limit, rows).await
}

fn rows(items: &[MessageJson], now: Timestamp, style: Style) -> String {
    let row = |message: &MessageJson| {
        let view = &message.view;
        let times =
            [view.received_at, view.read_at, view.delivered_at, view.failed_at, view.sent_at];
        let when = times.into_iter().flatten().max().map(Timestamp::to_rfc3339);
        let when = when.map_or_else(String::new, |when| relative(&when, now));
        let text = view.body.as_deref().or(view.error.as_deref()).unwrap_or_default();
        vec![
            when.into(),
            Cell::in_state(view.status.name(), state(message)),
            view.conversation.as_deref().unwrap_or_default().into(),
            (&view.id).into(),
            text.into(),
        ]
    };
    let head = ["WHEN", "STATUS", "WITH", "MESSAGE", "TEXT"];
    table(&head, items.iter().map(row).collect(), style)
}

/// The delivery state whose colour fits.
fn state(message: &MessageJson) -> &'static str {
    match message.view.status.name() {
        "failed" => "dead",
        "delivered" | "read" => "delivered",
        _ => "",
    }
}

async fn show(
    common: &Common,
    client: &Client,
    id: &str,
    source: Option<&str>,
) -> Result<(), Failure> {
    let id: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(source.map(|source| ("source", source)));
    let path = format!("/api/v1/messages/{}?{}", id.replace('+', "%20"), query.finish());
    let message: MessageJson = client.get(path.trim_end_matches('?')).await?;
    if common.json {
        return print_json(&message);
    }
    print(&one(&message, now(), Style::of(common)))
}

fn one(message: &MessageJson, now: Timestamp, style: Style) -> String {
    let view = &message.view;
    let status = style.paint(state(message), view.status.name());
    let mut text = format!("{}  {status}  source {}\n", escape(&view.id), escape(&view.source));
    let last_inbound = view.last_inbound_at.map(|at| relative(&at.to_rfc3339(), now));
    for (name, value) in [
        ("from", &view.from),
        ("to", &view.to),
        ("conversation", &view.conversation),
        ("last inbound", &last_inbound),
        ("text", &view.body),
        ("error", &view.error),
    ] {
        if let Some(value) = value {
            text.push_str(&format!("{name}: {}\n", escape(value)));
        }
    }
    for report in message.timeline.iter().flatten() {
        let (at, kind, id) = (escape(&report.at), escape(&report.kind), escape(&report.event_id));
        text.push_str(&format!("  {at} ({})  {kind}  {id}\n", relative(&report.at, now)));
    }
    text
}
