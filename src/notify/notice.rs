//! A notice: an event that is not stored, of type `notice.*`, for the handler of `[notify]`.

use std::time::Duration;

use bytes::Bytes;
use bytesize::ByteSize;
use serde::Serialize;
use serde_json::{Value, json};

use super::watch::{Owed, Subject};
use crate::clock::Timestamp;
use crate::config::show_duration;
use crate::event::{Event, NewEvent, VerifiedBy};

/// What a notice tells besides its matter.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The machine's name.
    pub host: String,
    /// The one line for people, without the host.
    pub text: String,
    pub latest: Option<Latest>,
}

/// Of a handler's dead letters that of the newest event, and why it failed.
#[derive(Clone, Debug, Serialize)]
pub struct Latest {
    #[serde(rename = "eventId")]
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub error: Option<String>,
}

/// What the texts speak of.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Of the handler in question, in a row.
    pub failures: u32,
    pub backlog_age: Duration,
    /// In bytes, as is the limit.
    pub free: u64,
    pub free_limit: u64,
    /// The store's own.
    pub note: Option<String>,
    pub latest: Option<Latest>,
}

/// One line for people, in words that a chat shows as they are.
pub fn text(subject: &Subject, owed: Owed, figures: &Figures) -> String {
    let size = |bytes| ByteSize(bytes).display().iec();
    match (subject, owed) {
        (Subject::Dead(handler), Owed::More { new, total }) => {
            let letters = if new == 1 { "letter" } else { "letters" };
            let latest = figures.latest.as_ref().map(|latest| {
                let error = latest.error.as_deref().unwrap_or("no attempt is on record");
                format!("; the newest is {} ({}): {error}", latest.id, latest.kind)
            });
            format!(
                "handler {handler} has {new} new dead {letters} ({total} in all){}. See: bluehook dead list \
                 --handler {handler}",
                latest.unwrap_or_default()
            )
        }
        (Subject::Circuit(handler), Owed::Begun(_)) => format!(
            "handler {handler} fails: {} attempts in a row. It is probed until it succeeds; meanwhile no event \
             uses up its attempts",
            figures.failures
        ),
        (Subject::Circuit(handler), _) => {
            format!("handler {handler} runs as usual again: its circuit is closed")
        }
        (Subject::Backlog(handler), Owed::Begun(_)) => format!(
            "handler {handler} has left an event undelivered for more than {}. See: bluehook status",
            show_duration(figures.backlog_age)
        ),
        (Subject::Backlog(handler), _) => format!(
            "handler {handler} has caught up: no event has waited for more than {}",
            show_duration(figures.backlog_age)
        ),
        (Subject::Disk, Owed::Begun(_)) => format!(
            "the disk fills up: {} free, less than {}. Once it is full, events are refused (503) until there is \
             space",
            size(figures.free),
            size(figures.free_limit)
        ),
        (Subject::Disk, _) => format!("the disk has space again: {} free", size(figures.free)),
        (Subject::Store, Owed::Begun(_)) => format!(
            "events are refused (503): {}",
            figures.note.as_deref().unwrap_or("see bluehook status")
        ),
        (Subject::Store, _) => "events are accepted again".to_owned(),
        (Subject::Damage, Owed::More { new, total }) => format!(
            "the log is damaged in {new} new {} ({total} in all). See: bluehook store check",
            if new == 1 { "place" } else { "places" }
        ),
        // Counts have no other states.
        (Subject::Damage | Subject::Dead(_), _) => {
            format!("{subject} changed. See: bluehook status")
        }
    }
}

/// About nothing: a test, to see that notices arrive. The times are in schedule time. `source` is that of a configured source, by whose secret it can be signed.
pub fn event(
    about: Option<(&Subject, Owed)>,
    now: Timestamp,
    wall_of: impl Fn(Timestamp) -> Timestamp,
    source: &str,
    details: Details,
) -> Event {
    let now = wall_of(now);
    let (name, id) = about.map_or_else(
        || ("test", "test".to_owned()),
        |(subject, _)| (subject.name(), subject.to_string()),
    );
    let (kind, id) = (format!("notice.{name}"), format!("notice:{id}:{}", now.0));
    let (mut new, mut total, mut since, mut ended) = (Value::Null, Value::Null, Value::Null, false);
    match about.map(|(_, owed)| owed) {
        Some(Owed::More { new: n, total: t }) => (new, total) = (n.into(), t.into()),
        Some(Owed::Begun(begun)) => since = wall_of(begun).to_rfc3339().into(),
        Some(Owed::Ended) => ended = true,
        None => {}
    }
    let handler = about.and_then(|(subject, _)| subject.handler()).map(|name| name.as_str());
    let text = match details.host.as_str() {
        "" => details.text,
        host => format!("bluehook on {host}: {}", details.text),
    };
    let body = json!({
        "eventId": id,
        "type": kind,
        "timestamp": now.to_rfc3339(),
        "data": {
            "subject": name,
            "handler": handler,
            "text": text,
            "host": details.host,
            "ended": ended,
            "new": new,
            "total": total,
            "since": since,
            "latest": details.latest,
        }
    });
    let new = NewEvent {
        source: source.to_owned(),
        id,
        kind,
        received_at: now,
        headers: vec![],
        verified_by: VerifiedBy::None,
        body: Bytes::from(body.to_string()),
        conversation: None,
        imported: false,
    };
    Event { seq: 0, new }
}
