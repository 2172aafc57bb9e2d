//! Messages: what all events of each say together.

use std::sync::Arc;

use super::AdminContext;
use super::body::{Answer, json};
use super::lists::{blocking, caught_up};
use super::problem::Problem;
use super::query;
use super::wire::{MessageJson, PageJson, ReportJson};
use crate::event::normalise_address;
use crate::message::Status;
use crate::store::messages::{Message, MessageFilter};

const STATUSES: [Status; 6] = [
    Status::Unknown,
    Status::Received,
    Status::Sent,
    Status::Failed,
    Status::Delivered,
    Status::Read,
];

pub async fn list(cx: &Arc<AdminContext>, query: &str) -> Result<Answer, Problem> {
    let known = ["status", "source", "with", "since", "until", "search", "limit", "cursor"];
    let asked = query::parameters(query, &known)?;
    let (limit, cursor) = query::page(&asked)?;
    let filter = MessageFilter {
        status: asked.get("status").map(|text| status(text)).transpose()?,
        source: asked.get("source").cloned(),
        conversation: asked.get("with").map(|address| normalise_address(address)),
        since: query::time("since", asked.get("since").map(String::as_str))?,
        until: query::time("until", asked.get("until").map(String::as_str))?,
        search: asked.get("search").cloned(),
    };
    caught_up(cx).await;
    let page = blocking(cx, move |store| store.list_messages(&filter, cursor, limit)).await?;
    let items: Vec<_> = page.items.iter().map(|message| message_json(message, false)).collect();
    let next_cursor = page.next.map(|seq| seq.to_string());
    Ok(json(&PageJson { items, next_cursor, note: cx.store.catching_up() }))
}

pub async fn show(cx: &Arc<AdminContext>, query: &str, id: &str) -> Result<Answer, Problem> {
    let asked = query::parameters(query, &["source"])?;
    let (source, wanted) = (asked.get("source").cloned(), id.to_owned());
    caught_up(cx).await;
    let found = blocking(cx, move |store| store.message(source.as_deref(), &wanted)).await?;
    if let Some(message) = found {
        return Ok(json(&message_json(&message, true)));
    }
    if let Some(why) = cx.store.catching_up() {
        return Err(Problem::unavailable(format!(
            "no message {id:?} yet: {why}; try again in a moment"
        )));
    }
    Err(Problem::not_found(format!(
        "no message {id:?}: no event named it, or retention dropped them; see `bluehook messages`"
    )))
}

fn status(text: &str) -> Result<Status, Problem> {
    STATUSES.into_iter().find(|status| status.name() == text).ok_or_else(|| {
        let names: Vec<_> = STATUSES.iter().map(|status| status.name()).collect();
        Problem::bad(format!("status {text:?} is none of {}", names.join(", ")))
    })
}

fn message_json(message: &Message, timeline: bool) -> MessageJson {
    let reports = message.reports.iter().map(|(seq, report)| ReportJson {
        seq: *seq,
        event_id: report.event_id.clone(),
        kind: report.kind.clone(),
        at: report.at.to_rfc3339(),
    });
    let mut reports: Vec<_> = reports.collect();
    reports.sort_by(|a, b| (&a.at, a.seq).cmp(&(&b.at, b.seq)));
    MessageJson {
        view: message.view.clone(),
        events: message.reports.len() as u64,
        timeline: timeline.then_some(reports),
    }
}
