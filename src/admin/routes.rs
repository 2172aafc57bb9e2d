//! Which path does what.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;

use super::body::{Answer, full, json};
use super::problem::Problem;
use super::{
    AdminContext, NotTold, activity, change, door, lists, messages, metrics, openapi, query,
    sample, send, socket, status, stream, transfer, wire,
};
use crate::store::audit::Pace;

/// The largest body of a request, besides an import's.
const BODY_MAX: usize = 8 << 20;

/// The function that [`socket::serve`] wants.
#[must_use]
pub fn responder(cx: Arc<AdminContext>) -> socket::Respond {
    Arc::new(move |request| {
        let cx = cx.clone();
        Box::pin(async move { respond(&cx, request).await })
    })
}

/// Answers one request. Also called without a socket, on a stopped store.
pub async fn respond<B>(cx: &Arc<AdminContext>, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    route(cx, request).await.unwrap_or_else(|problem| problem.answer())
}

async fn route<B>(cx: &Arc<AdminContext>, request: Request<B>) -> Result<Answer, Problem>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let api = match segments.as_slice() {
        ["api", "v1", rest @ ..] => rest,
        [other] => return probe(cx, &parts.method, other).await,
        _ => return Err(no_such_path(&path)),
    };
    let wanted = match api {
        ["replay" | "trigger" | "import" | "signin"]
        | ["dead", "replay" | "discard"]
        | ["store", "check"]
        | ["notify", "test"]
        | ["handlers", _, "pause" | "resume"] => Method::POST,
        ["events" | "deliveries" | "dead" | "rejections" | "handlers" | "status" | "export"]
        | ["activity" | "openapi.json" | "messages"]
        | ["events" | "messages", _] => Method::GET,
        _ => return Err(no_such_path(&path)),
    };
    allow(&parts.method, &wanted)?;
    if wanted == Method::POST {
        query::none(&query)?;
    }
    match api {
        ["events"] => lists::events(cx, &query).await,
        ["events", "stream"] => {
            let last_id = parts.headers.get("last-event-id").and_then(|v| v.to_str().ok());
            stream::events(cx, &query, last_id)
        }
        ["events", id] => lists::event(cx, &query, &unescape(id)).await,
        ["deliveries"] => lists::deliveries(cx, &query).await,
        ["dead"] => lists::dead(cx, &query).await,
        ["messages"] => messages::list(cx, &query).await,
        ["messages", id] => messages::show(cx, &query, &unescape(id)).await,
        ["rejections"] => {
            query::none(&query)?;
            let items = cx.arrivals.rejections();
            Ok(json(&wire::PageJson { items, next_cursor: None, note: None }))
        }
        ["handlers"] => {
            query::none(&query)?;
            let items = status::handlers(cx).await?;
            Ok(json(&wire::PageJson { items, next_cursor: None, note: None }))
        }
        ["activity"] => {
            query::none(&query)?;
            Ok(json(&activity::last_hour(cx)))
        }
        ["openapi.json"] => {
            query::none(&query)?;
            Ok(full(StatusCode::OK, "application/json", openapi::DOCUMENT))
        }
        ["status"] => {
            query::none(&query)?;
            Ok(json(&status::status(cx).await?))
        }
        ["export"] => transfer::export(cx, &query).await,
        ["import"] => Ok(json(&transfer::import(cx, body).await?)),
        ["signin"] => Ok(json(&sign_in(cx)?)),
        ["replay"] => Ok(json(&change::replay(cx, read_json(body).await?).await?)),
        ["dead", "replay"] => Ok(json(&change::dead_replay(cx, read_json(body).await?).await?)),
        ["dead", _] => Ok(json(&change::dead_discard(cx, read_json(body).await?).await?)),
        ["store", _] => {
            let audit = lists::blocking(cx, |store| store.audit(Pace::ON_DEMAND)).await?;
            let report = audit.map_err(Problem::unavailable)?;
            Ok(json(&wire::CheckJson::from(&report)))
        }
        ["notify", _] => {
            test_notice(cx).await?;
            Ok(json(&serde_json::json!({ "delivered": true })))
        }
        ["handlers", name, verb] => {
            pause(cx, &unescape(name), *verb == "pause").await?;
            Ok(json(&serde_json::json!({ "paused": *verb == "pause" })))
        }
        // Only `trigger` is left of those above.
        _ => Ok(json(&trigger(cx, &read_json(body).await?).await?)),
    }
}

async fn probe(cx: &Arc<AdminContext>, method: &Method, name: &str) -> Result<Answer, Problem> {
    if !matches!(name, "healthz" | "readyz" | "metrics") {
        return Err(no_such_path(&format!("/{name}")));
    }
    allow(method, &Method::GET)?;
    let text = "text/plain; charset=utf-8";
    match name {
        "healthz" => Ok(full(StatusCode::OK, text, "ok\n")),
        "readyz" => match status::not_ready(cx).await? {
            None => Ok(full(StatusCode::OK, text, "ready\n")),
            Some(why) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)),
        },
        _ => Ok(full(StatusCode::OK, "text/plain; version=0.0.4", metrics::metrics(cx).await?)),
    }
}

fn allow(method: &Method, wanted: &Method) -> Result<(), Problem> {
    if method == wanted {
        return Ok(());
    }
    let allow = if *wanted == Method::POST { "POST" } else { "GET" };
    let detail = format!("{method} is not for this path; use {allow}");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Err(Problem { allow: Some(allow), ..Problem::new(status, detail) })
}

fn no_such_path(path: &str) -> Problem {
    Problem::not_found(format!("nothing at {path}: the API is below /api/v1"))
}

/// An id in a path may hold any character, percent-encoded.
fn unescape(segment: &str) -> String {
    let plus_kept = segment.replace('+', "%2B");
    let mut pairs = form_urlencoded::parse(plus_kept.as_bytes());
    let name = pairs.next().map(|(name, value)| {
        if value.is_empty() { name.into_owned() } else { format!("{name}={value}") }
    });
    name.unwrap_or_default()
}

/// # Errors
/// The body cannot be read, is too large, or is not such a JSON text.
pub async fn read_json<B, T>(body: B) -> Result<T, Problem>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
    T: DeserializeOwned,
{
    let read = Limited::new(body, BODY_MAX).collect().await;
    let bytes = read.map_err(|e| Problem::bad(format!("cannot read the body: {e}")))?.to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|e| Problem::bad(format!("the body is not what this path takes: {e}")))
}

async fn pause(cx: &Arc<AdminContext>, name: &str, paused: bool) -> Result<(), Problem> {
    let handler = change::known_handler(cx, name)?;
    cx.replay.set_paused(handler, paused).await.map_err(Problem::append)
}

async fn test_notice(cx: &AdminContext) -> Result<(), Problem> {
    let nobody = || Problem::bad("nobody is told of problems: add [notify] to the configuration");
    match cx.notices.as_ref().ok_or_else(nobody)?.test().await {
        Ok(()) => Ok(()),
        Err(NotTold::NobodyIsTold) => Err(nobody()),
        Err(NotTold::Failed(why)) => {
            Err(Problem::unavailable(format!("the notice was not delivered: {why}")))
        }
    }
}

/// A link that signs in to the page.
fn sign_in(cx: &AdminContext) -> Result<wire::SignIn, Problem> {
    let door = cx.door.as_ref().ok_or_else(|| {
        Problem::unavailable("the page is not served: set admin.listen, then restart")
    })?;
    let url = door.link().map_err(Problem::internal)?;
    Ok(wire::SignIn { url, works_for_seconds: door::CODE_LIFE.as_secs() })
}

/// Signs and sends one sample to our own intake.
async fn trigger(
    cx: &Arc<AdminContext>,
    request: &wire::TriggerRequest,
) -> Result<wire::Triggered, Problem> {
    let config = (cx.config)();
    let Some(source) = config.sources.first() else {
        return Err(Problem::internal("no source is configured; add a [[source]]"));
    };
    let Some(listen) = cx.intake.first() else {
        return Err(Problem::internal("intake does not listen anywhere; set intake.listen"));
    };
    let now = cx.clock.now().wall;
    let sample = sample::Sample::build(request, now).map_err(Problem::bad)?;
    let headers =
        sample.headers(&source.signature, now, request.bad_signature).map_err(Problem::bad)?;
    let target =
        send::Target::Intake { listen: listen.clone(), path: source.path.clone(), tls: cx.tls };
    send::send(&target, request, &sample, &headers).await.map_err(Problem::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_paths_keep_every_character() {
        for (segment, id) in
            [("evt_1", "evt_1"), ("sha256:ab", "sha256:ab"), ("a%2Fb%3Dc", "a/b=c"), ("a+b", "a+b")]
        {
            assert_eq!(unescape(segment), id);
        }
    }
}
