//! One request: limits, signature, append, answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use ipnet::IpNet;
use tokio::time::Instant;

use super::answer::{Answer, Reason};
use super::body::{self, Share};
use super::peer::{Origin, peer_of, show};
use super::places::Place;
use super::rejections::{HEADERS_KEPT_BYTES, Note, PATH_KEPT_CHARS};
use super::rules::{self, Head};
use super::{Intake, LiveSource};
use crate::event::{Envelope, NewEvent, id_of_body};
use crate::signature::{self, Rejection};
use crate::store::record::RECORD_BYTES_MAX;

/// One connection.
pub(super) struct Visit {
    pub intake: Arc<Intake>,
    pub origin: Origin,
    pub place: Place,
    /// Requests so far.
    pub requests: AtomicU32,
}

pub(super) async fn answer(visit: Arc<Visit>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let arrived = Instant::now();
    let Visit { intake, origin, place, requests } = &*visit;
    let live = intake.live();
    let (head, body) = request.into_parts();
    let used_up =
        requests.fetch_add(1, Ordering::Relaxed) + 1 >= live.limits.requests_per_connection;
    if used_up {
        intake.counters.note_used_up();
    }
    // What comes after a chunked body nobody has framed.
    let last = used_up || head.headers.contains_key(header::TRANSFER_ENCODING);
    let mut seen = Bytes::new();
    let answer = match live.sources.iter().find(|s| s.config.path == head.uri.path()) {
        None => Answer::Refused(Reason::UnknownPath),
        Some(source) => {
            let limits = &live.limits;
            let length = body.size_hint().exact();
            match rules::judge_head(&head.method, &head.headers, length, limits.body_max) {
                Err(reason) => Answer::Refused(reason),
                Ok(Head::Ping) => Answer::Ping,
                Ok(Head::ReadBody) => {
                    let mut share = intake.bodies.share(limits.bodies_max);
                    let deadline = arrived + limits.read_timeout;
                    let (holds, make_room) =
                        (|bytes| place.holds(bytes), || place.make_room_for_a_body());
                    let read =
                        body::read(body, limits.body_max, deadline, &mut share, holds, make_room);
                    match read.await {
                        Err((reason, start)) => {
                            seen = start;
                            Answer::Refused(reason)
                        }
                        Ok(whole) => {
                            place.works();
                            seen = whole.clone();
                            let by = arrived + limits.ack_deadline;
                            take(intake, source, &head.headers, whole, share, by).await
                        }
                    }
                }
            }
        }
    };
    let peer = || peer(*origin, &head.headers, &live.limits.trusted_proxies);
    let answer = match answer {
        // Whoever signed it rightly has done nothing wrong.
        Answer::Refused(Reason::Signature(rejection)) if rejection != Rejection::Expired => {
            let limit = live.limits.failed_signatures;
            match intake.failures.note(peer(), limit, intake.clock.now()) {
                Ok(()) => answer,
                Err(seconds) => Answer::Refused(Reason::FailedTooOften(seconds)),
            }
        }
        answer => answer,
    };
    let took = arrived.elapsed();
    intake.counters.note(&answer, took, intake.clock.now());
    let reason = match &answer {
        Answer::Stored(_) | Answer::NotWanted => None,
        Answer::Ping => Some("ping"),
        // The ring has had a hundred of them from there.
        Answer::Refused(Reason::FailedTooOften(_)) => None,
        Answer::Refused(reason) => Some(reason.name()),
    };
    if let Some(reason) = reason {
        let mut note = note_of(intake, peer(), &head, reason);
        note.status = answer.status().as_u16();
        note.took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        note.set_body(&seen);
        tracing::debug!(peer = %note.peer, method = %note.method, path = ?note.path, status = note.status, reason, "no event");
        intake.rejections.add(note);
    }
    let mut response = answer.into_response();
    if last {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    place.waits();
    response
}

fn peer(origin: Origin, headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let forwarded = headers.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes);
    peer_of(origin, forwarded, trusted)
}

/// A whole body has arrived for `source`.
async fn take(
    intake: &Arc<Intake>,
    source: &LiveSource,
    headers: &HeaderMap,
    body: Bytes,
    share: Share,
    by: Instant,
) -> Answer {
    let config = &source.config;
    if rules::is_ping(&config.signature, &config.ping_types, headers, &body) {
        return Answer::Ping;
    }
    if config.signature.secrets.is_empty() {
        if intake.no_secret_line.lets_through(intake.clock.as_ref()) {
            tracing::warn!(
                source = %config.name,
                "answering 503: no signing secret is configured for this source; set WEBHOOK_SECRET or the source's secrets, then reload (SIGHUP) or restart"
            );
        }
        return Answer::Refused(Reason::NoSecret);
    }
    let received_at = intake.clock.now().wall;
    let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let verified = signature::verify(&config.signature, pairs, &body, received_at);
    if signature::tried_canonical(&config.signature, &verified) {
        intake.counters.note_canonical();
    }
    let verified = match verified {
        Ok(verified) => verified,
        Err(rejection) => return Answer::Refused(Reason::Signature(rejection)),
    };
    let body = verified.canonical.map_or(body, Bytes::from);
    // JavaScript writes 1e20 out in full: the canonical form may be longer than what arrived.
    if body.len() + rules::HEADERS_STORED_BYTES > RECORD_BYTES_MAX / 10 * 9 {
        return Answer::Refused(Reason::BodyTooLarge);
    }
    let envelope = Envelope::parse(&body);
    if !source.wants(&envelope.kind) {
        return Answer::NotWanted;
    }
    let event = NewEvent {
        source: config.name.clone(),
        id: envelope.id.clone().unwrap_or_else(|| id_of_body(&body)),
        conversation: envelope.conversation(),
        kind: envelope.kind,
        received_at,
        headers: rules::kept_headers(headers, rules::HEADERS_STORED_BYTES),
        verified_by: verified.by,
        body,
        imported: false,
    };
    append(intake, event, share, by).await
}

async fn append(intake: &Intake, event: NewEvent, share: Share, by: Instant) -> Answer {
    // Whether the deadline passes or the sender hangs up: what is on its way into the log gets there, and the
    // sender's retry is then a duplicate.
    let appended = std::panic::AssertUnwindSafe(intake.store.append_event(event)).catch_unwind();
    let appended = tokio::time::timeout_at(by, appended).await;
    drop(share);
    let reason = match appended {
        Ok(Ok(Ok(receipt))) => return Answer::Stored(receipt),
        Ok(Ok(Err(error))) => Reason::Store(error),
        Ok(Err(_)) => Reason::Crashed,
        Err(_) => Reason::AckDeadline,
    };
    if intake.store_line.lets_through(intake.clock.as_ref()) {
        tracing::warn!(
            reason = reason.name(),
            "answering 503; senders will try again, `bluehook status` says more"
        );
    }
    Answer::Refused(reason)
}

fn note_of(
    intake: &Intake,
    peer: Option<IpAddr>,
    head: &hyper::http::request::Parts,
    reason: &'static str,
) -> Note {
    let kept = rules::kept_headers(&head.headers, HEADERS_KEPT_BYTES);
    let text =
        |(name, value): (String, Vec<u8>)| (name, String::from_utf8_lossy(&value).into_owned());
    Note {
        time: intake.clock.now().wall.to_rfc3339(),
        peer: show(peer),
        method: head.method.as_str().chars().take(32).collect(),
        path: head.uri.path().chars().take(PATH_KEPT_CHARS).collect(),
        status: 0,
        reason,
        headers: kept.into_iter().map(text).collect(),
        body: None,
        body_base64: None,
        took_ms: 0,
    }
}
