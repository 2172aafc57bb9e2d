//! The JSON that the admin API and the command line share. Field names are part of the interface.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::Timestamp;
use crate::delivery::{Attempt, Delivery, DeliveryKey, HandlerName, Outcome, Seq, State};
use crate::event::{Envelope, NewEvent, VerifiedBy};
use crate::store::{StoredDelivery, StoredEvent};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventJson {
    pub seq: Seq,
    pub event_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub received_at: String,
    pub verified_by: String,
    pub duplicates: u32,
    pub conflict: bool,
    /// A header that came more than once has a list of values.
    pub headers: Map<String, Value>,
    /// The exact text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Instead of `payload` where the body is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    #[serde(default)]
    pub deliveries: Vec<DeliveryJson>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryJson {
    pub handler: String,
    pub state: String,
    pub generation: u32,
    #[serde(default)]
    pub attempts: Vec<AttemptJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<String>,
    /// Why it is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptJson {
    pub number: u32,
    pub generation: u32,
    pub started_at: String,
    pub took_ms: u64,
    pub outcome: String,
    pub reason: Option<String>,
    pub request: Option<String>,
    pub response: Option<String>,
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageJson<T> {
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
}

/// What the event stream carries, besides the sequence number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum StreamItem {
    Event(EventJson),
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
}

/// What became of one triggered event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Triggered {
    pub event_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub to: String,
    pub status: u16,
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
    /// Records of the log that it has yet to look at.
    pub behind: u64,
    pub oldest_undelivered: Option<String>,
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
    pub backlog: u64,
    pub oldest_undelivered: Option<String>,
    pub dead: u64,
    pub log_bytes: u64,
    pub index_bytes: u64,
    pub disk_free_bytes: u64,
    pub durable_seq: Seq,
    pub damage: Vec<DamageJson>,
    pub handlers: Vec<HandlerJson>,
}

impl StatusJson {
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.health == "ok" && self.damage.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DamageJson {
    pub first_seq: Seq,
    pub last_seq: Seq,
    pub segment: String,
    pub offset: u64,
}

/// RFC 9457. `detail` is one line: what, why, what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemJson {
    pub title: String,
    pub status: u16,
    pub detail: String,
}

impl EventJson {
    #[must_use]
    pub fn of(stored: &StoredEvent) -> EventJson {
        let new = &stored.event.new;
        let (payload, payload_base64) = match std::str::from_utf8(&new.body) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(STANDARD.encode(&new.body))),
        };
        EventJson {
            seq: stored.event.seq,
            event_id: new.id.clone(),
            kind: new.kind.clone(),
            source: new.source.clone(),
            received_at: new.received_at.to_rfc3339(),
            verified_by: new.verified_by.name().to_owned(),
            duplicates: stored.duplicates,
            conflict: stored.conflict,
            headers: headers_to_json(&new.headers),
            payload,
            payload_base64,
            deliveries: stored.deliveries.iter().map(DeliveryJson::of).collect(),
        }
    }

    /// The event to store when this line is imported.
    ///
    /// # Errors
    /// A field that cannot be read, named.
    pub fn to_new(&self) -> Result<NewEvent, String> {
        let body = match (&self.payload, &self.payload_base64) {
            (Some(text), None) => Bytes::copy_from_slice(text.as_bytes()),
            (None, Some(text)) => {
                STANDARD.decode(text).map_err(|e| format!("payloadBase64: {e}"))?.into()
            }
            _ => return Err("exactly one of payload and payloadBase64 is needed".to_owned()),
        };
        let verified_by = match self.verified_by.as_str() {
            "raw" => VerifiedBy::Raw,
            "canonical" => VerifiedBy::Canonical,
            "none" => VerifiedBy::None,
            other => return Err(format!("verifiedBy: {other:?} is not raw, canonical or none")),
        };
        Ok(NewEvent {
            source: self.source.clone(),
            id: self.event_id.clone(),
            kind: self.kind.clone(),
            received_at: time("receivedAt", &self.received_at)?,
            headers: headers_from_json(&self.headers)?,
            verified_by,
            conversation: Envelope::parse(&body).conversation(),
            body,
            imported: true,
        })
    }
}

fn time(field: &str, text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc3339(text)
        .ok_or_else(|| format!("{field}: {text:?} is not an RFC 3339 time"))
}

fn headers_to_json(headers: &[(String, Vec<u8>)]) -> Map<String, Value> {
    let mut out = Map::new();
    for (name, value) in headers {
        let value = Value::String(String::from_utf8_lossy(value).into_owned());
        match out.get_mut(name) {
            None => {
                out.insert(name.clone(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    out
}

fn headers_from_json(headers: &Map<String, Value>) -> Result<Vec<(String, Vec<u8>)>, String> {
    let text = |name: &str, value: &Value| match value {
        Value::String(text) => Ok((name.to_owned(), text.clone().into_bytes())),
        _ => Err(format!("headers: the value of {name:?} is not a string")),
    };
    let mut out = Vec::new();
    for (name, value) in headers {
        match value {
            Value::Array(values) => {
                for value in values {
                    out.push(text(name, value)?);
                }
            }
            value => out.push(text(name, value)?),
        }
    }
    Ok(out)
}

impl DeliveryJson {
    #[must_use]
    pub fn of(stored: &StoredDelivery) -> DeliveryJson {
        let delivery = &stored.delivery;
        let running = delivery.open_attempt.is_some() && !delivery.state.is_settled();
        DeliveryJson {
            handler: delivery.key.handler.to_string(),
            state: if running { "running" } else { delivery.state.name() }.to_owned(),
            generation: delivery.generation,
            attempts: stored.attempts.iter().map(AttemptJson::of).collect(),
            due_at: due_of(&delivery.state),
            reason: match &delivery.state {
                State::Dead { reason } => Some(reason.clone()),
                _ => None,
            },
        }
    }

    /// The delivery as an import keeps it, for the event now stored as `event`.
    ///
    /// # Errors
    /// A field that cannot be read, named.
    pub fn to_stored(&self, event: Seq) -> Result<(Delivery, Vec<Attempt>), String> {
        let attempts =
            self.attempts.iter().map(AttemptJson::to_attempt).collect::<Result<Vec<_>, _>>()?;
        let state = match self.state.as_str() {
            "delivered" => State::Delivered,
            "discarded" => State::Discarded,
            "dead" => State::Dead { reason: self.reason.clone().unwrap_or_default() },
            "scheduled" | "running" => State::Scheduled {
                due: match &self.due_at {
                    Some(text) => time("dueAt", text)?,
                    None => Timestamp::ZERO,
                },
            },
            other => return Err(format!("state: {other:?} is none that a delivery has")),
        };
        let made = attempts.iter().filter(|a| a.generation == self.generation).count();
        let delivery = Delivery {
            key: DeliveryKey { event, handler: HandlerName::new(&self.handler)? },
            generation: self.generation,
            attempts: u32::try_from(made).unwrap_or(u32::MAX),
            open_attempt: None,
            state,
        };
        Ok((delivery, attempts))
    }
}

#[must_use]
pub fn due_of(state: &State) -> Option<String> {
    match state {
        State::Scheduled { due } => Some(due.to_rfc3339()),
        _ => None,
    }
}

impl AttemptJson {
    #[must_use]
    pub fn of(attempt: &Attempt) -> AttemptJson {
        AttemptJson {
            number: attempt.number,
            generation: attempt.generation,
            started_at: attempt.started_at.to_rfc3339(),
            took_ms: attempt.took_ms,
            outcome: attempt.outcome.name().to_owned(),
            reason: attempt.outcome.reason().map(str::to_owned),
            request: attempt.request.clone(),
            response: attempt.response.clone(),
        }
    }

    fn to_attempt(&self) -> Result<Attempt, String> {
        let reason = self.reason.clone().unwrap_or_default();
        let outcome = match self.outcome.as_str() {
            "delivered" => Outcome::Delivered,
            "retry" => Outcome::retry(reason),
            "reject" => Outcome::reject(reason),
            other => return Err(format!("outcome: {other:?} is not delivered, retry or reject")),
        };
        Ok(Attempt {
            number: self.number,
            generation: self.generation,
            started_at: time("startedAt", &self.started_at)?,
            took_ms: self.took_ms,
            outcome,
            request: self.request.clone(),
            response: self.response.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn stored(body: &[u8]) -> StoredEvent {
        let new = NewEvent {
            source: "bluereplies".into(),
            id: "evt_1".into(),
            kind: "message.read".into(),
            received_at: Timestamp(1_790_000_000_123),
            headers: vec![
                ("accept".into(), b"a".to_vec()),
                ("x".into(), b"1".to_vec()),
                ("x".into(), b"2".to_vec()),
            ],
            verified_by: VerifiedBy::Raw,
            body: Bytes::copy_from_slice(body),
            conversation: None,
            imported: false,
        };
        StoredEvent {
            event: Event { seq: 7, new },
            duplicates: 1,
            conflict: false,
            deliveries: vec![],
        }
    }

    #[test]
    fn an_event_has_the_field_names_of_the_interface() {
        let json = serde_json::to_value(EventJson::of(&stored(b"{\"a\": 1}"))).unwrap();
        let names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        assert_eq!(
            names,
            [
                "seq",
                "eventId",
                "type",
                "source",
                "receivedAt",
                "verifiedBy",
                "duplicates",
                "conflict",
                "headers",
                "payload",
                "deliveries"
            ]
        );
        assert_eq!(json["payload"], "{\"a\": 1}");
        assert_eq!(json["headers"]["x"], serde_json::json!(["1", "2"]));
    }

    #[test]
    fn a_body_that_is_not_utf8_comes_back_exactly() {
        let json = EventJson::of(&stored(b"\xff\x00"));
        assert_eq!((json.payload.clone(), json.payload_base64.as_deref()), (None, Some("/wA=")));
    }

    #[test]
    fn a_delivery_survives_export_and_import() {
        let handler = HandlerName::new("crm").unwrap();
        let attempt = Attempt {
            number: 1,
            generation: 2,
            started_at: Timestamp(1_790_000_000_123),
            took_ms: 12,
            outcome: Outcome::reject("410 Gone"),
            request: Some("POST https://crm.test/".into()),
            response: None,
        };
        let delivery = Delivery {
            key: DeliveryKey { event: 7, handler },
            generation: 2,
            attempts: 1,
            open_attempt: None,
            state: State::Dead { reason: "410 Gone".into() },
        };
        let before = StoredDelivery { delivery: delivery.clone(), attempts: vec![attempt.clone()] };
        let text = serde_json::to_string(&DeliveryJson::of(&before)).unwrap();
        let json: DeliveryJson = serde_json::from_str(&text).unwrap();
        assert_eq!(json.to_stored(7), Ok((delivery, vec![attempt])));
    }

    #[test]
    fn a_selection_without_ids_or_filters_names_nothing() {
        assert!(!Selection { dry_run: true, ..Selection::default() }.names_something());
        assert!(Selection { all: true, ..Selection::default() }.names_something());
        let handler = Selection { handler: Some("crm".into()), ..Selection::default() };
        assert!(handler.names_something());
    }
}
