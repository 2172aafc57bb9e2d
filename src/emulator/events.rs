//! Test events: made, stored, and from then on the replayer's.

use serde::Serialize;

use super::SOURCE;
use super::registry::Emulator;
use crate::admin::sample::Sample;
use crate::admin::wire::TriggerRequest;
use crate::admin::{Problem, Wanted};
use crate::delivery::Seq;
use crate::event::{Envelope, NewEvent, VerifiedBy, id_of_body};

/// What `bluehook serve` takes by default.
const BODY_MAX: usize = 1 << 20;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    pub event_id: String,
    pub seq: Seq,
    #[serde(rename = "type")]
    pub kind: String,
    /// Those that it goes to.
    pub endpoints: Vec<String>,
}

/// Answers once the event is durable; deliveries follow.
pub async fn send(emulator: &Emulator, request: &TriggerRequest) -> Result<Sent, Problem> {
    if request.kind.is_empty() {
        return Err(Problem::bad("type is empty; give one, such as message.received"));
    }
    if request.duplicate || request.bad_signature {
        return Err(Problem::bad(
            "the emulator signs and sends each event once; `bluehook trigger --to URL` knows --duplicate and \
             --bad-signature",
        ));
    }
    let now = emulator.clock.now().wall;
    let sample = Sample::build(request, now).map_err(Problem::bad)?;
    if sample.body.len() > BODY_MAX {
        let bytes = sample.body.len();
        return Err(Problem::bad(format!(
            "the event has {bytes} bytes, more than the {BODY_MAX} that `bluehook serve` takes; send less data"
        )));
    }
    let envelope = Envelope::parse(&sample.body);
    let id = envelope.id.clone().unwrap_or_else(|| id_of_body(&sample.body));
    let kind = envelope.kind.clone();
    let event = NewEvent {
        source: SOURCE.to_owned(),
        id: id.clone(),
        conversation: envelope.conversation(),
        kind: kind.clone(),
        received_at: now,
        headers: vec![("content-type".to_owned(), b"application/json".to_vec())],
        verified_by: VerifiedBy::None,
        body: sample.body.into(),
        imported: false,
    };
    let receipt = emulator.store.append_event(event).await.map_err(Problem::append)?;
    if receipt.is_duplicate() {
        let conflict = hyper::StatusCode::CONFLICT;
        return Err(Problem::new(
            conflict,
            format!(
                "not sent: there is an event {id:?} already; send that again with POST /replay"
            ),
        ));
    }
    let config = emulator.config();
    let goes_to = config.handlers.iter().filter(|endpoint| Wanted::by(endpoint).matches(&kind));
    let endpoints = goes_to.map(|endpoint| endpoint.name.to_string()).collect();
    Ok(Sent { event_id: id, seq: receipt.seq(), kind, endpoints })
}
