//! An endpoint as it is registered, the handler that it becomes, and what the sender takes for success.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SOURCE;
use crate::clock::{BoxFuture, Timestamp};
use crate::config::{self, Action, Circuit, ForwardSign, HttpBody, Limits, Order, Start};
use crate::delivery::{HandlerName, Outcome, Seq};
use crate::event::{Event, NewEvent, VerifiedBy};
use crate::handler::{self, BuildContext, Call, Handler, Report, Trust};
use crate::schedule::Schedule;

/// Blue Replies waits so long for a verification ping, and for any other answer.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const CONCURRENCY: usize = 8;
const NAME_MAX: usize = 100;
const GLOBS_MAX: usize = 50;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub url: String,
    /// Globs over the types that are sent to it.
    pub events: Vec<String>,
    /// Once a ping was answered with 200. Only then it gets events.
    pub active: bool,
    pub created_at: String,
    /// The latest one.
    pub ping: Pinged,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinged {
    pub at: String,
    pub status: Option<u16>,
    pub took_ms: u64,
    pub error: Option<String>,
}

/// A ping as the log of requests shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ping {
    /// The record of the store that came next: puts pings and attempts in one order.
    pub before: Seq,
    pub endpoint: String,
    pub body: String,
    #[serde(flatten)]
    pub result: Pinged,
    pub request: Option<String>,
    pub response: Option<String>,
}

/// What `POST /endpoints` takes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    pub url: String,
    #[serde(default = "all_events")]
    pub events: Vec<String>,
    #[serde(default)]
    pub name: Option<String>,
}

fn all_events() -> Vec<String> {
    vec!["*".to_owned()]
}

impl Registration {
    /// # Errors
    /// One line: what, why, what to do next.
    pub fn check(&self) -> Result<(), String> {
        if self.url.contains(['{', '}']) {
            return Err(format!(
                "url {:?} holds a brace, which no URL may; write it as %7B or %7D",
                self.url
            ));
        }
        let fits = |glob: &String| !glob.is_empty() && glob.len() <= NAME_MAX;
        if self.events.is_empty() || self.events.len() > GLOBS_MAX || !self.events.iter().all(fits)
        {
            return Err(format!(
                "events must be 1 to {GLOBS_MAX} types such as \"message.read\", or globs such as \"message.*\"; \
                 leave it out for all"
            ));
        }
        if self.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > NAME_MAX) {
            return Err(format!("name must have 1 to {NAME_MAX} bytes; or leave it out"));
        }
        Ok(())
    }
}

/// The handler that sends to `url`, as the configuration would have it.
///
/// # Errors
/// `id` cannot be a handler's name.
pub fn configured(
    id: &str,
    url: &str,
    events: &[String],
    schedule: &Schedule,
) -> Result<config::Handler, String> {
    Ok(config::Handler {
        name: HandlerName::new(id)?,
        events: events.to_vec(),
        when: None,
        order: Order::None,
        start: Start::Now,
        concurrency: CONCURRENCY,
        rate: None,
        timeout: ANSWER_WITHIN,
        schedule: schedule.clone(),
        // Blue Replies' own sender has none.
        circuit: Circuit::OFF,
        action: Action::Http(config::Http {
            url: url.to_owned(),
            method: "POST".to_owned(),
            headers: vec![],
            body: HttpBody::Raw,
            sign: Some(ForwardSign::BlueReplies),
            permanent: vec![],
            allow_private: true,
            delivery_headers: false,
            ca: None,
        }),
    })
}

/// Sends one verification ping to an endpoint: an event that is neither stored nor tried again. It is signed,
/// else a server that checks every request, as the vendor's own example does, could never be registered.
///
/// # Errors
/// The URL is none that can be sent to: one line.
pub async fn ping(
    endpoint: &config::Handler,
    sources: &[config::Source],
    now: Timestamp,
    before: Seq,
) -> Result<Ping, String> {
    let sender = sender(endpoint, sources)?;
    let body = serde_json::json!({ "type": "ping", "timestamp": now.to_rfc3339() }).to_string();
    let event = Event {
        seq: before,
        new: NewEvent {
            source: SOURCE.to_owned(),
            id: crate::event::id_of_body(body.as_bytes()),
            kind: "ping".to_owned(),
            received_at: now,
            headers: vec![],
            verified_by: VerifiedBy::None,
            body: body.clone().into(),
            conversation: None,
            imported: false,
        },
    };
    let call =
        Call { event: Arc::new(event), message: None, attempt: 1, now, deadline: ANSWER_WITHIN };
    let started = tokio::time::Instant::now();
    let report = sender.run(call).await;
    let took = started.elapsed();
    Ok(Ping {
        before,
        endpoint: endpoint.name.as_str().to_owned(),
        body,
        result: Pinged {
            at: now.to_rfc3339(),
            status: status_of(report.response.as_deref()),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            error: report.outcome.reason().map(str::to_owned),
        },
        request: report.request,
        response: report.response,
    })
}

fn sender(endpoint: &config::Handler, sources: &[config::Source]) -> Result<Strict, String> {
    let secrets = std::collections::BTreeMap::new();
    let context = BuildContext {
        secrets: &secrets,
        sources,
        env: &|_| None,
        trust: Trust::default(),
        limits: Limits::default(),
    };
    Ok(Strict(handler::build(endpoint, &context)?.handler))
}

/// The `http` handler, judged by what Blue Replies says of itself: 200 is success, everything else fails the
/// attempt and the next one follows after the fixed delay. It knows no answer that ends it early (410) or puts
/// it off (`Retry-After`).
pub struct Strict(pub Arc<dyn Handler>);

impl Handler for Strict {
    fn run(&self, call: Call) -> BoxFuture<'_, Report> {
        Box::pin(async {
            let report = self.0.run(call).await;
            Report { outcome: judge(&report), ..report }
        })
    }
}

fn judge(report: &Report) -> Outcome {
    let reason = || report.outcome.reason().unwrap_or_default().to_owned();
    match status_of(report.response.as_deref()) {
        Some(200) => Outcome::Delivered,
        Some(status @ 201..=299) => Outcome::retry(format!(
            "{status}: Blue Replies asks for 200, and names no other success"
        )),
        _ => Outcome::retry(reason()),
    }
}

/// Of an answer as history keeps it: `HTTP/1.1 200 OK`, headers, body.
#[must_use]
pub fn status_of(response: Option<&str>) -> Option<u16> {
    response?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(outcome: Outcome, response: Option<&str>) -> Outcome {
        judge(&Report { outcome, request: None, response: response.map(str::to_owned) })
    }

    #[test]
    fn only_200_is_success_and_nothing_ends_or_puts_off_the_schedule() {
        assert_eq!(judged(Outcome::Delivered, Some("HTTP/1.1 200 OK\n\nOK")), Outcome::Delivered);
        let no_content = judged(Outcome::Delivered, Some("HTTP/1.1 204 No Content\n\n"));
        assert!(no_content.reason().unwrap().starts_with("204: "), "{no_content:?}");
        let gone = judged(Outcome::reject("410 Gone"), Some("HTTP/1.1 410 Gone\n\n"));
        assert_eq!(gone, Outcome::retry("410 Gone"));
        let later = Outcome::Retry { reason: "503".into(), after_ms: Some(60_000) };
        assert_eq!(judged(later, Some("HTTP/1.1 503 \n\n")), Outcome::retry("503"));
        assert_eq!(judged(Outcome::retry("timed out"), None), Outcome::retry("timed out"));
    }

    #[test]
    fn registrations_are_checked() {
        let registration = |url: &str, events: &[&str]| Registration {
            url: url.to_owned(),
            events: events.iter().map(|&e| e.to_owned()).collect(),
            name: None,
        };
        assert!(registration("http://a/", &["*"]).check().is_ok());
        // It would be a template otherwise, and read secrets or the environment.
        assert!(registration("http://a/{{ env('HOME') }}", &["*"]).check().is_err());
        assert!(registration("http://a/", &[]).check().is_err());
        assert!(registration("http://a/", &[""]).check().is_err());
    }
}
