//! What this room's tests share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{BuildContext, Call, Handler, Report, build};
use crate::clock::Timestamp;
use crate::config::{self, Action, Circuit, Http, HttpBody, Order, Start};
use crate::delivery::HandlerName;
use crate::event::{Envelope, Event, NewEvent, VerifiedBy};
use crate::schedule::Schedule;
use crate::signature::{Policy, Scheme, Secret};
use crate::trust::Trust;

pub const BODY: &str =
    r#"{"eventId":"e1","type":"message.read","data":{"messageId":"m1","from":"+1 5","n":7}}"#;

pub fn event(body: &str) -> Event {
    let envelope = Envelope::parse(body.as_bytes());
    let new = NewEvent {
        source: "bluereplies".into(),
        id: envelope.id.clone().unwrap_or_else(|| "none".into()),
        kind: envelope.kind.clone(),
        received_at: Timestamp(1_790_000_000_123),
        headers: vec![],
        verified_by: VerifiedBy::Raw,
        body: body.to_owned().into(),
        conversation: None,
        imported: false,
    };
    Event { seq: 1, new }
}

pub fn call(body: &str) -> Call {
    Call {
        message: None,
        event: Arc::new(event(body)),
        attempt: 1,
        now: Timestamp(1_790_000_001_000),
        deadline: Duration::from_secs(20),
    }
}

pub fn handler(action: Action) -> config::Handler {
    config::Handler {
        name: HandlerName::new("h").unwrap(),
        events: vec!["*".into()],
        when: None,
        order: Order::None,
        start: Start::Now,
        concurrency: 4,
        rate: None,
        timeout: Duration::from_secs(20),
        schedule: Schedule::default(),
        circuit: Circuit::OFF,
        action,
    }
}

pub fn http(url: &str) -> Http {
    Http {
        url: url.into(),
        method: "POST".into(),
        headers: vec![],
        body: HttpBody::Raw,
        sign: None,
        permanent: vec![],
        allow_private: false,
        delivery_headers: true,
        ca: None,
    }
}

/// Secret `crm` is `s3cret-token`, the source's `source-secret`; the variable `SET` is `value`.
pub fn context<T>(f: impl FnOnce(&BuildContext<'_>) -> T) -> T {
    let secrets = BTreeMap::from([("crm".to_owned(), Secret::new(b"s3cret-token".to_vec()))]);
    let signature = Policy {
        header: "x-bluereplies-signature".into(),
        scheme: Scheme::Hex,
        secrets: vec![Secret::new(b"source-secret".to_vec())],
        canonical_json: true,
    };
    let source = config::Source {
        name: "bluereplies".into(),
        path: "/".into(),
        signature,
        events: vec!["*".into()],
        ping_types: vec![],
    };
    let env = |name: &str| (name == "SET").then(|| "value".to_owned());
    f(&BuildContext {
        secrets: &secrets,
        sources: &[source],
        env: &env,
        trust: Trust::default(),
        limits: config::Limits::default(),
    })
}

pub fn ready(action: Action) -> Arc<dyn Handler> {
    context(|ctx| build(&handler(action), ctx)).unwrap().handler
}

pub async fn run(action: Action, call: Call) -> Report {
    ready(action).run(call).await
}
