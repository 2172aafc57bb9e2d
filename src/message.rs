//! The message view: what all events of one message say of it together.
//!
//! Events come late, twice and out of order, so the view is a fold that does not depend on their order. Whoever
//! asks for it gets it from the events that are in the log at that moment; nothing else is kept, so nothing can
//! disagree with the log after a crash, a rebuild or retention.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::event::{Envelope, Event, first_text, normalise_address};
use crate::signature::json::{self, Value};

pub const RECEIVED: &str = "message.received";
/// Events that tell how far an outgoing message got; never something that the other party said.
pub const REPORTS: [&str; 4] =
    ["message.sent", "message.delivered", "message.read", "message.failed"];

/// How far a message got. A later event never moves it back: `unknown < received < sent < failed < delivered <
/// read`. A message that was delivered or read has not failed, whatever else was reported, and in whatever order:
/// Blue Replies may have tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Only events of other types.
    Unknown,
    Received,
    Sent,
    Failed,
    Delivered,
    Read,
}

impl Status {
    #[must_use]
    pub fn of_kind(kind: &str) -> Status {
        match kind {
            RECEIVED => Status::Received,
            "message.sent" => Status::Sent,
            "message.failed" => Status::Failed,
            "message.delivered" => Status::Delivered,
            "message.read" => Status::Read,
            _ => Status::Unknown,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Unknown => "unknown",
            Status::Received => "received",
            Status::Sent => "sent",
            Status::Failed => "failed",
            Status::Delivered => "delivered",
            Status::Read => "read",
        }
    }
}

/// What one event says of its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub message_id: String,
    pub source: String,
    pub event_id: String,
    pub kind: String,
    /// When it happened: as the event says, else when it was received.
    pub at: Timestamp,
    from: Option<String>,
    to: Option<String>,
    body: Option<String>,
    error: Option<String>,
}

impl Report {
    /// `None`: the event names no message.
    #[must_use]
    pub fn of(event: &Event) -> Option<Report> {
        let value = json::parse(&event.new.body).ok().filter(Value::is_object)?;
        let envelope = Envelope::of(&value);
        let data = value.get("data");
        Some(Report {
            message_id: envelope.message_id?,
            source: event.new.source.clone(),
            event_id: event.new.id.clone(),
            kind: event.new.kind.clone(),
            at: own_time(&value, &event.new.kind).unwrap_or(event.new.received_at),
            from: envelope.from,
            to: envelope.to,
            body: envelope.text,
            error: data.and_then(error_text),
        })
    }

    fn status(&self) -> Status {
        Status::of_kind(&self.kind)
    }

    /// Decides where two events differ, the same whichever came first: the earlier in a message's life, then in
    /// time.
    fn rank(&self) -> (bool, Status, Timestamp, &str) {
        let status = self.status();
        (status == Status::Unknown, status, self.at, &self.event_id)
    }
}

/// When it happened, as the event itself says.
#[must_use]
pub fn own_time(value: &Value, kind: &str) -> Option<Timestamp> {
    let of_kind: &[&str] = match kind {
        "message.sent" => &["sentAt", "sent_at"],
        "message.delivered" => &["deliveredAt", "delivered_at"],
        "message.read" => &["readAt", "read_at"],
        "message.failed" => &["failedAt", "failed_at"],
        RECEIVED => &["receivedAt", "received_at"],
        _ => &[],
    };
    let general = ["timestamp", "createdAt", "created_at", "time"];
    let data = value.get("data");
    data.and_then(|data| first_text(data, of_kind))
        .or_else(|| data.and_then(|data| first_text(data, &general)))
        .or_else(|| first_text(value, &general))
        .and_then(|text| time(&text))
}

/// RFC 3339, or seconds or milliseconds since 1970.
fn time(text: &str) -> Option<Timestamp> {
    const SECONDS_MAX: i64 = 100_000_000_000; // the year 5138; in milliseconds: March 1973
    if let Ok(number) = text.parse::<i64>() {
        let ms = if number.abs() < SECONDS_MAX { number * 1_000 } else { number };
        return Some(Timestamp(ms));
    }
    Timestamp::parse_rfc3339(text)
}

/// A text, or what an error object says first.
fn error_text(data: &Value) -> Option<String> {
    first_text(data, &["error", "errorMessage", "error_message", "reason"]).or_else(|| {
        let error = data.get("error").filter(|error| error.is_object())?;
        first_text(error, &["message", "detail", "code"])
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Inbound,
    Outbound,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageView {
    pub id: String,
    pub source: String,
    pub direction: Direction,
    pub status: Status,
    /// The other party's address: digits alone for a telephone number, lower case for a mail address.
    pub conversation: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub body: Option<String>,
    /// What the last failure said; also of a message that got through later.
    pub error: Option<String>,
    #[serde(with = "as_text")]
    pub sent_at: Option<Timestamp>,
    #[serde(with = "as_text")]
    pub delivered_at: Option<Timestamp>,
    #[serde(with = "as_text")]
    pub read_at: Option<Timestamp>,
    #[serde(with = "as_text")]
    pub failed_at: Option<Timestamp>,
    #[serde(with = "as_text")]
    pub received_at: Option<Timestamp>,
    /// The newest message that the other party wrote in this conversation.
    #[serde(with = "as_text")]
    pub last_inbound_at: Option<Timestamp>,
}

/// Times as everywhere in JSON: RFC 3339, UTC, with milliseconds.
mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::Timestamp;

    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => to.serialize_str(&time.to_rfc3339()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D>(from: D) -> Result<Option<Timestamp>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(from)?;
        let time = |text: String| {
            Timestamp::parse_rfc3339(&text).ok_or_else(|| D::Error::custom("no RFC 3339 time"))
        };
        text.map(time).transpose()
    }
}

impl MessageView {
    /// `None` of no reports. They are of one message; neither their order nor repetitions matter.
    #[must_use]
    pub fn of(mut reports: Vec<Report>) -> Option<MessageView> {
        reports.sort_by(|a, b| a.rank().cmp(&b.rank()));
        reports.dedup_by(|a, b| a.event_id == b.event_id && a.kind == b.kind);
        let first = reports.first()?;
        let field = |field: fn(&Report) -> &Option<String>| {
            reports.iter().find_map(|report| field(report).clone())
        };
        // The first time counts: a second receipt, of another device, makes nothing later.
        let at = |status: Status| {
            let times = reports.iter().filter(|report| report.status() == status);
            times.map(|report| report.at).min()
        };
        let received_at = at(Status::Received);
        let direction =
            if received_at.is_some() { Direction::Inbound } else { Direction::Outbound };
        let (from, to) = (field(|r| &r.from), field(|r| &r.to));
        let other = match direction {
            Direction::Inbound => from.as_ref().or(to.as_ref()),
            Direction::Outbound => to.as_ref(),
        };
        let errors = reports.iter().filter(|report| report.error.is_some());
        let last_error = errors.max_by_key(|report| (report.at, &report.event_id));
        Some(MessageView {
            id: first.message_id.clone(),
            source: first.source.clone(),
            direction,
            status: reports.iter().map(Report::status).max().unwrap_or(Status::Unknown),
            conversation: other.map(|address| normalise_address(address)),
            error: last_error.and_then(|report| report.error.clone()),
            body: field(|r| &r.body),
            sent_at: at(Status::Sent),
            delivered_at: at(Status::Delivered),
            read_at: at(Status::Read),
            failed_at: at(Status::Failed),
            received_at,
            last_inbound_at: None,
            from,
            to,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{NewEvent, VerifiedBy};

    const RECEIVED_AT: i64 = 1_790_000_000_000;

    fn event(id: &str, kind: &str, data: &str) -> Event {
        let body = format!(r#"{{"eventId":"{id}","type":"{kind}","data":{data}}}"#);
        let new = NewEvent {
            source: "bluereplies".into(),
            id: id.into(),
            kind: kind.into(),
            received_at: Timestamp(RECEIVED_AT),
            headers: vec![],
            verified_by: VerifiedBy::Raw,
            body: body.into(),
            conversation: None,
            imported: false,
        };
        Event { seq: 1, new }
    }

    fn view(events: &[Event]) -> MessageView {
        MessageView::of(events.iter().filter_map(Report::of).collect()).unwrap()
    }

    fn a_life() -> Vec<Event> {
        vec![
            event(
                "e1",
                "message.sent",
                r#"{"messageId":"m","from":"+1 555","to":"+49 (30) 1","body":"Hi","sentAt":"2026-11-25T10:00:00Z"}"#,
            ),
            event(
                "e2",
                "message.failed",
                r#"{"messageId":"m","error":"not on iMessage","timestamp":"2026-11-25T10:00:01Z"}"#,
            ),
            event("e3", "message.delivered", r#"{"messageId":"m","deliveredAt":1795600802}"#),
            event(
                "e4",
                "message.read",
                r#"{"messageId":"m","to":"+49301","body":"other","readAt":"2026-11-25T10:05:00Z"}"#,
            ),
            event("e5", "message.read", r#"{"messageId":"m","readAt":"2026-11-25T11:00:00Z"}"#),
            event("e6", "message.reaction", r#"{"messageId":"m","from":"someone"}"#),
        ]
    }

    #[test]
    fn a_message_is_what_its_events_say_together() {
        let view = view(&a_life());
        assert_eq!((view.id.as_str(), view.status), ("m", Status::Read));
        assert_eq!(view.direction, Direction::Outbound);
        assert_eq!(view.from.as_deref(), Some("+1 555"));
        assert_eq!(view.to.as_deref(), Some("+49 (30) 1"));
        assert_eq!(view.conversation.as_deref(), Some("49301"));
        assert_eq!(
            view.body.as_deref(),
            Some("Hi"),
            "what was sent, not what another event repeats"
        );
        assert_eq!(view.error.as_deref(), Some("not on iMessage"));
        let text = |time: Option<Timestamp>| time.unwrap().to_rfc3339();
        assert_eq!(text(view.read_at), "2026-11-25T10:05:00.000Z", "the first of two receipts");
        assert_eq!(text(view.sent_at), "2026-11-25T10:00:00.000Z");
        assert_eq!(text(view.delivered_at), "2026-11-25T10:00:02.000Z");
        assert_eq!(view.received_at, None);
    }

    #[test]
    fn any_order_and_any_repetition_give_the_same_view() {
        let seed = std::env::var("BLUEHOOK_SEED").ok().and_then(|s| s.parse().ok());
        let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("BLUEHOOK_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let kinds = ["sent", "delivered", "read", "failed", "received", "reaction"];
        let fields = ["from", "to", "body", "error", "readAt", "sentAt", "timestamp"];
        for _ in 0..2_000 {
            let events: Vec<Event> = (0..rng.usize(1..8))
                .map(|n| {
                    let mut data = String::from(r#"{"messageId":"m""#);
                    for field in fields {
                        if rng.bool() {
                            continue;
                        }
                        // Few values, so that equal times and differing fields meet.
                        let value = rng.u32(1..4);
                        data += &match field.strip_suffix("At").is_some() || field == "timestamp" {
                            true => format!(r#","{field}":{}"#, 1_795_600_800 + value),
                            false => format!(r#","{field}":"v{value}""#),
                        };
                    }
                    let kind = format!("message.{}", kinds[rng.usize(0..kinds.len())]);
                    event(&format!("e{n}"), &kind, &(data + "}"))
                })
                .collect();
            let expected = view(&events);
            for _ in 0..5 {
                let mut other = events.clone();
                for _ in 0..rng.usize(0..4) {
                    other.push(events[rng.usize(0..events.len())].clone());
                }
                rng.shuffle(&mut other);
                assert_eq!(view(&other), expected, "{events:#?}");
            }
        }
    }

    #[test]
    fn each_event_after_another_never_moves_the_status_back() {
        let life = a_life();
        let mut seen = Vec::new();
        let mut before = Status::Unknown;
        for event in life.into_iter().rev() {
            seen.push(event);
            let status = view(&seen).status;
            assert!(status >= before);
            before = status;
        }
        assert_eq!(before, Status::Read);
    }

    #[test]
    fn an_incoming_message_has_its_sender_as_conversation() {
        let view = view(&[event("e", RECEIVED, r#"{"messageId":"m","from":"A@B.c","to":"+1"}"#)]);
        assert_eq!(view.direction, Direction::Inbound);
        assert_eq!(view.conversation.as_deref(), Some("a@b.c"));
        assert_eq!(view.received_at, Some(Timestamp(RECEIVED_AT)), "no time of its own");
    }

    #[test]
    fn an_error_may_be_an_object_and_an_event_may_name_no_message() {
        let failed = r#"{"messageId":"m","error":{"code":22,"message":"not reachable"}}"#;
        assert_eq!(
            view(&[event("e", "message.failed", failed)]).error.as_deref(),
            Some("not reachable")
        );
        assert_eq!(Report::of(&event("e", "message.read", "{}")), None);
        assert_eq!(Report::of(&event("e", "message.read", "[1]")), None);
    }
}
