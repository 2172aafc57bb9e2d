//! Which path does what. Reads of events and dead letters, and replays, are the admin API's own.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, ORIGIN};
use hyper::{Method, Request, StatusCode, Uri};

use super::registry::Emulator;
use super::{events, history};
use crate::admin::routes::{self, read_json};
use crate::admin::serve::Respond;
use crate::admin::wire::PageJson;
use crate::admin::{AdminContext, Answer, Problem, json};

#[must_use]
pub fn responder(emulator: Arc<Emulator>, admin: Arc<AdminContext>) -> Respond {
    Arc::new(move |request| {
        let (emulator, admin) = (Arc::clone(&emulator), Arc::clone(&admin));
        // A task of its own: a client that hangs up leaves no change half done.
        let answered = tokio::spawn(async move { route(&emulator, &admin, request).await });
        Box::pin(async move {
            let crashed = |e| Err(Problem::internal(format!("the request failed: {e}; try again")));
            answered.await.unwrap_or_else(crashed).unwrap_or_else(|problem| problem.answer())
        })
    })
}

async fn route(
    emulator: &Arc<Emulator>,
    admin: &Arc<AdminContext>,
    request: Request<Incoming>,
) -> Result<Answer, Problem> {
    own_page(request.headers())?;
    let uri = request.uri().clone();
    let path = uri.path().strip_prefix("/api/v1").unwrap_or(uri.path()).to_owned();
    let query = uri.query().unwrap_or_default();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let method = request.method().clone();
    match (&method, segments.as_slice()) {
        (&Method::POST, ["endpoints"]) => {
            let registered = emulator.register(read_json(request.into_body()).await?).await?;
            Ok(created(json(&registered)))
        }
        (&Method::GET, ["endpoints"]) => {
            Ok(json(&PageJson { items: emulator.endpoints().await, next_cursor: None, note: None }))
        }
        (&Method::POST, ["endpoints", id, "verify"]) => Ok(json(&emulator.verify(id).await?)),
        (&Method::DELETE, ["endpoints", id]) => Ok(json(&emulator.delete(id).await?)),
        (&Method::POST, ["events"]) => {
            let sent = events::send(emulator, &read_json(request.into_body()).await?).await?;
            Ok(created(json(&sent)))
        }
        (&Method::GET, ["log"]) => {
            let wanted = history::Wanted::of(query)?;
            let (store, pings) = (emulator.store.clone(), emulator.pings().await);
            let read = tokio::task::spawn_blocking(move || history::page(&store, pings, wanted));
            let failed = |e| Problem::internal(format!("reading the log failed: {e}; try again"));
            let (items, next) = read.await.map_err(failed)?;
            let next_cursor = next.map(|seq| seq.to_string());
            Ok(json(&PageJson { items, next_cursor, note: emulator.store.catching_up() }))
        }
        (_, ["endpoints"]) => Err(not_allowed(&method, "GET, POST")),
        (_, ["endpoints", _]) => Err(not_allowed(&method, "DELETE")),
        (_, ["endpoints", _, "verify"]) => Err(not_allowed(&method, "POST")),
        (_, ["log"]) => Err(not_allowed(&method, "GET")),
        (&Method::GET, ["events"] | ["events", _] | ["dead"] | ["status"])
        | (&Method::POST, ["replay"] | ["dead", "replay" | "discard"]) => {
            let request = rewritten(request, &path, uri.query())?;
            Ok(routes::respond(admin, request).await)
        }
        (_, ["events"]) => Err(not_allowed(&method, "GET, POST")),
        (_, ["events", _] | ["dead"] | ["status"]) => Err(not_allowed(&method, "GET")),
        (_, ["replay"] | ["dead", "replay" | "discard"]) => Err(not_allowed(&method, "POST")),
        _ => Err(Problem::not_found(format!(
            "nothing at {path}; there is /endpoints, /events, /dead, /replay, /log and /status"
        ))),
    }
}

/// As the admin API knows it.
fn rewritten(
    mut request: Request<Incoming>,
    path: &str,
    query: Option<&str>,
) -> Result<Request<Incoming>, Problem> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let uri: Result<Uri, _> = format!("/api/v1{path}{query}").parse();
    *request.uri_mut() = uri.map_err(|e| Problem::bad(format!("{path:?} is no path: {e}")))?;
    Ok(request)
}

fn created(mut answer: Answer) -> Answer {
    *answer.status_mut() = StatusCode::CREATED;
    answer
}

fn not_allowed(method: &Method, allow: &'static str) -> Problem {
    let detail = format!("{method} is not for this path; use {allow}");
    Problem { allow: Some(allow), ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
}

/// A page that a browser has open elsewhere can send requests to loopback, and make its own name resolve to it:
/// so the host must be one of loopback's, and the origin, where there is one, the same.
fn own_page(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |why: String| Err(Problem::new(StatusCode::FORBIDDEN, why));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_loopback(host) {
        return refused(format!(
            "host {host:?} is not loopback; ask for 127.0.0.1 or localhost by that name"
        ));
    }
    match headers.get(ORIGIN) {
        Some(origin) if origin.as_bytes() != format!("http://{host}").as_bytes() => refused(
            format!("refused: a page of another origin asks ({origin:?}); use curl or a script"),
        ),
        _ => Ok(()),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn pages_of_other_sites_are_kept_out() {
        let ask = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_str(origin).unwrap());
            }
            own_page(&headers).is_ok()
        };
        for host in ["127.0.0.1:4010", "localhost:4010", "LOCALHOST", "[::1]:4010", "127.0.0.1"] {
            assert!(ask(host, None), "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:4010", "127.0.0.1.evil.example", "10.0.0.1:80"]
        {
            assert!(!ask(host, None), "{host}");
        }
        assert!(ask("127.0.0.1:4010", Some("http://127.0.0.1:4010")));
        for origin in ["null", "http://evil.example", "http://127.0.0.1:8080"] {
            assert!(!ask("127.0.0.1:4010", Some(origin)), "{origin}");
        }
    }
}
