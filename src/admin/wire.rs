//! The JSON that the admin API and the command line share. Field names are part of the interface.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::delivery::{Seq, State};
use crate::message::MessageView;
use crate::store::Store;
use crate::store::check::{CheckReport, segment_file};
use crate::store::log::Damage;
pub use crate::store::transfer::{AttemptJson, DeliveryJson, EventJson};

/// Beyond it, what a handler has yet to look at is not counted.
pub const BACKLOG_COUNT_MAX: u64 = 10_000;

/// An event as the API shows it, with what isn't in the log's own record of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventItem {
    #[serde(flatten)]
    pub event: EventJson,
    /// What the sender was told. Known for the newest events of this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerJson>,
    /// Other bodies that came with the same id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<ConflictJson>,
    /// In brief items, instead of headers, payload and what attempts sent and got.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub brief: Option<Preview>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    pub payload_bytes: u64,
    /// The first characters of the payload.
    pub preview: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerJson {
    pub status: u16,
    pub took_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConflictJson {
    pub received_at: String,
    pub headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// One minute of the last hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MinuteJson {
    /// When it began.
    pub at: String,
    pub received: u64,
    pub acknowledged: u64,
    pub refused: u64,
    /// At most so long took half of the acknowledgements; a bucket's bound.
    pub ack_median_ms: Option<u64>,
    pub ack_max_ms: u64,
    pub attempts: u64,
    /// Of those, the ones that did not deliver.
    pub failed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityJson {
    pub minutes: Vec<MinuteJson>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignIn {
    pub url: String,
    pub works_for_seconds: u64,
}

/// A delivery together with what names its event: items of `/deliveries` and `/dead`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryItem {
    pub seq: Seq,
    pub event_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub received_at: String,
    #[serde(flatten)]
    pub delivery: DeliveryJson,
}

/// What all events of one message say together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageJson {
    #[serde(flatten)]
    pub view: MessageView,
    /// How many events name it.
    pub events: u64,
    /// What each of them says, in the order in which it happened; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Vec<ReportJson>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportJson {
    pub seq: Seq,
    pub event_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// As the event says, else when it was received.
    pub at: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageJson<T> {
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
    /// Why something may be missing: the index is being rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What `store check` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckJson {
    pub records: u64,
    pub events: u64,
    pub damage: Vec<LostJson>,
    /// Records whose checksum is right and whose content is not understood.
    pub unknown: Vec<UnknownJson>,
}

/// A place in the log that is lost. `first_seq > last_seq`: it isn't known that a record was there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LostJson {
    pub segment: String,
    pub offset: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnknownJson {
    pub seq: u64,
    pub reason: String,
}

impl CheckJson {
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.unknown.is_empty()
    }
}

impl From<&Damage> for LostJson {
    fn from(d: &Damage) -> LostJson {
        LostJson {
            segment: segment_file(d.segment),
            offset: d.offset,
            bytes: d.bytes,
            first_seq: d.first,
            last_seq: d.last,
        }
    }
}

impl LostJson {
    /// With the segment's whole path.
    #[must_use]
    pub fn in_dir(self, log_dir: &Path) -> LostJson {
        LostJson { segment: log_dir.join(&self.segment).display().to_string(), ..self }
    }
}

impl From<&CheckReport> for CheckJson {
    fn from(report: &CheckReport) -> CheckJson {
        let unknown =
            |(seq, reason): &(u64, String)| UnknownJson { seq: *seq, reason: reason.clone() };
        CheckJson {
            records: report.records,
            events: report.events,
            damage: report.damage.iter().map(LostJson::from).collect(),
            unknown: report.unknown.iter().map(unknown).collect(),
        }
    }
}

/// What the event stream carries, besides the sequence number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum StreamItem {
    Event(EventItem),
    Attempt {
        seq: Seq,
        #[serde(rename = "eventId")]
        event_id: String,
        #[serde(rename = "type")]
        event_type: String,
        handler: String,
        state: String,
        #[serde(rename = "dueAt", skip_serializing_if = "Option::is_none")]
        due_at: Option<String>,
        attempt: AttemptJson,
    },
}

/// The body of `POST /replay`, `/dead/replay` and `/dead/discard`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selection {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    pub all: bool,
    pub dry_run: bool,
}

impl Selection {
    #[must_use]
    pub fn names_something(&self) -> bool {
        let filters = [
            &self.kind,
            &self.status,
            &self.source,
            &self.handler,
            &self.since,
            &self.until,
            &self.search,
        ];
        self.all || !self.ids.is_empty() || filters.iter().any(|filter| filter.is_some())
    }

    /// Ids say exactly which events are meant: only a handler can narrow that.
    #[must_use]
    pub fn contradicts_itself(&self) -> bool {
        let filters =
            [&self.kind, &self.status, &self.source, &self.since, &self.until, &self.search];
        !self.ids.is_empty() && (self.all || filters.iter().any(|filter| filter.is_some()))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    pub events: u64,
    pub deliveries: u64,
    pub dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TriggerRequest {
    #[serde(rename = "type")]
    pub kind: String,
    /// Replaces the sample's `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// `data.body=Hi`: one value within the payload.
    #[serde(default)]
    pub set: Vec<String>,
    /// The same bytes are sent twice, as the vendor does when an answer is lost.
    #[serde(default)]
    pub duplicate: bool,
    /// As somebody sends it who does not know the secret.
    #[serde(default)]
    pub bad_signature: bool,
}

/// What became of one triggered event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Triggered {
    pub event_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub to: String,
    #[serde(flatten)]
    pub answer: Answered,
    /// The answer to the second copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub again: Option<Answered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answered {
    pub status: u16,
    /// Up to 4 KiB of it.
    pub body: String,
    pub took_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    pub events: u64,
    /// Were there already.
    pub known: u64,
    pub deliveries: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandlerJson {
    pub name: String,
    /// `false`: parked, because it is no longer in the configuration.
    pub configured: bool,
    pub paused: bool,
    pub running: u64,
    pub scheduled: u64,
    pub dead: u64,
    /// Events for it that it has yet to look at; at most [`BACKLOG_COUNT_MAX`] are counted.
    pub behind: u64,
    pub oldest_undelivered: Option<String>,
    pub next_due_at: Option<String>,
    /// `None`: closed.
    #[serde(default)]
    pub circuit: Option<CircuitJson>,
}

/// An open circuit: the handler failed time after time, and only probes run until one succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CircuitJson {
    pub since: String,
    /// In a row.
    pub failures: u32,
    pub next_probe_at: String,
}

/// A follow-up rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FollowUpJson {
    pub name: String,
    /// `false`: its timers rest, because it is no longer in the configuration.
    pub configured: bool,
    pub paused: bool,
    /// Timers that run.
    pub waiting: u64,
    pub next_due_at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusJson {
    /// `ok`, `rebuilding`, `full`, `failed`.
    pub health: String,
    pub note: Option<String>,
    pub version: String,
    pub started_at: String,
    pub listen: Vec<String>,
    pub events: u64,
    /// Deliveries that wait or run, and events that a handler has yet to look at (of those at most
    /// [`BACKLOG_COUNT_MAX`] are counted).
    pub backlog: u64,
    pub oldest_undelivered: Option<String>,
    pub dead: u64,
    pub log_bytes: u64,
    pub index_bytes: u64,
    pub disk_free_bytes: u64,
    pub durable_seq: Seq,
    pub damage: Vec<LostJson>,
    pub handlers: Vec<HandlerJson>,
    #[serde(default)]
    pub followups: Vec<FollowUpJson>,
}

impl StatusJson {
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.health == "ok" && self.damage.is_empty()
    }
}

/// RFC 9457. `detail` is one line: what, why, what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemJson {
    pub title: String,
    pub status: u16,
    pub detail: String,
}

#[must_use]
pub fn due_of(store: &Store, state: &State) -> Option<String> {
    match state {
        State::Scheduled { due } => Some(store.wall_of(*due).to_rfc3339()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_without_ids_or_filters_names_nothing() {
        assert!(!Selection { dry_run: true, ..Selection::default() }.names_something());
        assert!(Selection { all: true, ..Selection::default() }.names_something());
        let handler = Selection { handler: Some("crm".into()), ..Selection::default() };
        assert!(handler.names_something());
    }

    #[test]
    fn ids_and_filters_exclude_each_other_but_a_handler_goes_with_both() {
        let ids = Selection { ids: vec!["evt_1".into()], ..Selection::default() };
        let crm = Selection { handler: Some("crm".into()), ..ids.clone() };
        assert!(!ids.contradicts_itself() && !crm.contradicts_itself());
        assert!(Selection { all: true, ..ids.clone() }.contradicts_itself());
        assert!(Selection { kind: Some("a".into()), ..ids }.contradicts_itself());
    }

    fn status() -> StatusJson {
        StatusJson {
            health: "ok".into(),
            note: None,
            version: String::new(),
            started_at: String::new(),
            listen: vec![],
            events: 3,
            backlog: 7,
            oldest_undelivered: None,
            dead: 2,
            log_bytes: 0,
            index_bytes: 0,
            disk_free_bytes: 0,
            durable_seq: 0,
            damage: vec![],
            followups: vec![],
            handlers: vec![],
        }
    }

    #[test]
    fn a_backlog_and_dead_letters_are_healthy_a_full_disk_and_lost_records_are_not() {
        assert!(status().is_healthy());
        for health in ["rebuilding", "full", "failed"] {
            assert!(!StatusJson { health: health.into(), ..status() }.is_healthy(), "{health}");
        }
        let lost = LostJson { first_seq: 1, last_seq: 2, segment: "1".into(), offset: 9, bytes: 3 };
        assert!(!StatusJson { damage: vec![lost], ..status() }.is_healthy());
    }
}
