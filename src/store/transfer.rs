//! Whole events as JSON lines, out and in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::record::Record;
use super::{AppendError, EventFilter, Store, StoredDelivery, StoredEvent};
use crate::clock::Timestamp;
use crate::delivery::{Attempt, Delivery, DeliveryKey, HandlerName, Outcome, Seq, State};
use crate::event::{NewEvent, VerifiedBy};

/// An event as every `--json` output and the API show it (interface.md §1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventJson {
    pub seq: Seq,
    pub event_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub received_at: String,
    pub verified_by: String,
    #[serde(default)]
    pub duplicates: u32,
    #[serde(default)]
    pub conflict: bool,
    /// In the order they came; a name may occur twice. Values that are not UTF-8 are shown with U+FFFD.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Instead of `payload`, where that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    #[serde(default)]
    pub deliveries: Vec<DeliveryJson>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryJson {
    pub handler: String,
    pub state: String,
    /// Why it is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub generation: u32,
    #[serde(default)]
    pub attempts: Vec<AttemptJson>,
    #[serde(default)]
    pub due_at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptJson {
    pub number: u32,
    #[serde(default)]
    pub generation: u32,
    pub started_at: String,
    pub took_ms: u64,
    pub outcome: String,
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub request: Option<String>,
    #[serde(default)]
    pub response: Option<String>,
}

impl EventJson {
    #[must_use]
    pub fn of(store: &Store, stored: &StoredEvent) -> EventJson {
        let new = &stored.event.new;
        let (payload, payload_base64) = text_or_base64(&new.body);
        let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
        EventJson {
            seq: stored.event.seq,
            event_id: new.id.clone(),
            kind: new.kind.clone(),
            source: new.source.clone(),
            received_at: new.received_at.to_rfc3339(),
            verified_by: new.verified_by.name().to_owned(),
            duplicates: stored.duplicates,
            conflict: stored.conflict,
            headers: new.headers.iter().map(|(name, v)| (name.clone(), text(v))).collect(),
            payload,
            payload_base64,
            deliveries: stored.deliveries.iter().map(|d| DeliveryJson::of(store, d)).collect(),
        }
    }
}

impl DeliveryJson {
    #[must_use]
    pub fn of(store: &Store, stored: &StoredDelivery) -> DeliveryJson {
        let delivery = &stored.delivery;
        let (reason, due_at) = match &delivery.state {
            State::Scheduled { due } => (None, Some(store.wall_of(*due).to_rfc3339())),
            State::Dead { reason } => (Some(reason.clone()), None),
            State::Delivered | State::Discarded => (None, None),
        };
        DeliveryJson {
            handler: delivery.key.handler.as_str().to_owned(),
            state: delivery.state.name().to_owned(),
            reason,
            generation: delivery.generation,
            attempts: stored.attempts.iter().map(AttemptJson::from).collect(),
            due_at,
        }
    }
}

impl From<&Attempt> for AttemptJson {
    fn from(a: &Attempt) -> AttemptJson {
        AttemptJson {
            number: a.number,
            generation: a.generation,
            started_at: a.started_at.to_rfc3339(),
            took_ms: a.took_ms,
            outcome: a.outcome.name().to_owned(),
            reason: a.outcome.reason().map(str::to_owned),
            request: a.request.clone(),
            response: a.response.clone(),
        }
    }
}

/// `payload` and `payloadBase64`: one of them.
#[must_use]
pub fn text_or_base64(body: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(body) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(body))),
    }
}

fn time(field: &str, text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc3339(text).ok_or_else(|| format!("{field} is no RFC 3339 time: {text:?}"))
}

impl EventJson {
    /// # Errors
    /// One line: which field cannot be read.
    pub fn to_event(&self) -> Result<NewEvent, String> {
        let body = match (&self.payload, &self.payload_base64) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(code)) => {
                BASE64.decode(code).map_err(|e| format!("payloadBase64 cannot be read: {e}"))?
            }
            (None, None) => return Err("payload is missing".to_owned()),
        };
        let verified_by = match self.verified_by.as_str() {
            "raw" => VerifiedBy::Raw,
            "canonical" => VerifiedBy::Canonical,
            "none" => VerifiedBy::None,
            other => return Err(format!("verifiedBy is raw, canonical or none, not {other:?}")),
        };
        let envelope = crate::event::Envelope::parse(&body);
        Ok(NewEvent {
            source: self.source.clone(),
            id: self.event_id.clone(),
            kind: self.kind.clone(),
            received_at: time("receivedAt", &self.received_at)?,
            headers: self.headers.iter().map(|(n, v)| (n.clone(), v.clone().into())).collect(),
            verified_by,
            conversation: envelope.conversation(),
            body: body.into(),
            imported: true,
        })
    }
}

impl DeliveryJson {
    fn to_delivery(&self, event: Seq) -> Result<(Delivery, Vec<Attempt>), String> {
        let handler = HandlerName::new(&self.handler)?;
        let attempts: Vec<Attempt> =
            self.attempts.iter().map(AttemptJson::to_attempt).collect::<Result<_, _>>()?;
        let state = match (self.state.as_str(), &self.due_at) {
            ("delivered", _) => State::Delivered,
            ("discarded", _) => State::Discarded,
            ("dead", _) => State::Dead { reason: self.reason.clone().unwrap_or_default() },
            ("scheduled" | "running", Some(due)) => State::Scheduled { due: time("dueAt", due)? },
            ("scheduled" | "running", None) => return Err("dueAt is missing".to_owned()),
            (other, _) => return Err(format!("state {other:?} is unknown")),
        };
        let current = attempts.iter().filter(|a| a.generation == self.generation);
        let delivery = Delivery {
            key: DeliveryKey { event, handler },
            generation: self.generation,
            attempts: current.map(Attempt::used_up).max().unwrap_or(0),
            open_attempt: None,
            state,
        };
        Ok((delivery, attempts))
    }
}

impl AttemptJson {
    fn to_attempt(&self) -> Result<Attempt, String> {
        let reason = self.reason.clone().unwrap_or_default();
        let outcome = match self.outcome.as_str() {
            "delivered" => Outcome::Delivered,
            "retry" => Outcome::retry(reason),
            "reject" => Outcome::reject(reason),
            "uncounted" => Outcome::Uncounted { reason },
            other => return Err(format!("outcome {other:?} is unknown")),
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

/// Why a line was not imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportError {
    /// It does not describe an event: which field, and why.
    Line(String),
    Append(AppendError),
}

/// How many events are looked up at a time.
const EXPORT_CHUNK: usize = 256;

/// Every event that fits, oldest first, with its deliveries and their attempts.
pub struct Export {
    store: Store,
    filter: EventFilter,
    next: Seq,
    /// What is stored later is not part of it.
    end: Seq,
    ready: std::vec::IntoIter<Seq>,
}

impl Store {
    #[must_use]
    pub fn export(&self, filter: EventFilter) -> Export {
        let end = self.durable_seq() + 1;
        Export { store: self.clone(), filter, next: 1, end, ready: Vec::new().into_iter() }
    }

    /// Brings an exported event in; a second time changes nothing. Tells whether it was new.
    ///
    /// # Errors
    /// The line does not describe an event, or it could not be stored.
    pub async fn import(&self, json: &EventJson) -> Result<bool, ImportError> {
        let event = json.to_event().map_err(ImportError::Line)?;
        // All of it is checked before any of it is stored.
        for delivery in &json.deliveries {
            delivery.to_delivery(1).map_err(ImportError::Line)?;
        }
        let receipt = self.append_event(event).await.map_err(ImportError::Append)?;
        let seq = receipt.seq();
        if receipt.is_duplicate() {
            self.wait_applied(seq).await;
            if !self.event(seq).is_some_and(|e| e.new.imported) {
                // It came from its sender: its deliveries are its own.
                return Ok(false);
            }
        }
        for delivery in &json.deliveries {
            let (mut delivery, attempts) = delivery.to_delivery(seq).map_err(ImportError::Line)?;
            if let State::Scheduled { due } = &mut delivery.state {
                *due = self.inner.timeline.of_wall(*due, self.inner.clock.now());
            }
            if receipt.is_duplicate() && self.delivery(&delivery.key).is_some() {
                continue;
            }
            let record = Record::Snapshot { delivery, attempts, as_of: seq, conversation: None };
            self.append_durable(record).await.map_err(ImportError::Append)?;
        }
        Ok(!receipt.is_duplicate())
    }

    /// Returns once record `seq` is in the index (or the store is closed).
    pub async fn wait_applied(&self, seq: Seq) {
        let mut progress = self.progress();
        let mut stop = self.inner.stop.subscribe();
        tokio::select! {
            _ = progress.wait_for(|p| p.applied >= seq) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

impl Iterator for Export {
    /// An error (what is not there is not in the export) ends it.
    type Item = Result<EventJson, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while let Some(seq) = self.ready.next() {
                match self.store.read_whole(self.end, |view| view.fitting(&self.filter, seq)) {
                    Ok(Some(event)) => return Some(Ok(EventJson::of(&self.store, &event))),
                    Ok(None) => {}
                    Err(why) => return Some(Err(why)),
                }
            }
            let from = self.next;
            if from >= self.end {
                return None;
            }
            let heads = self.store.read_whole(self.end, |v| v.heads_from(from, EXPORT_CHUNK));
            let (heads, next) = match heads {
                Ok((heads, _)) if heads.is_empty() => return None,
                Ok(found) => found,
                Err(why) => return Some(Err(why)),
            };
            self.next = next;
            let end = self.end;
            let seqs: Vec<Seq> = heads.into_iter().map(|h| h.seq).filter(|&s| s < end).collect();
            self.ready = seqs.into_iter();
        }
    }
}
