//! What a request over TCP must show before anything else looks at it.
//!
//! A page that a browser has open elsewhere can send requests to loopback, and make its own name resolve to it.
//! So the host must be one of ours, the origin too, and the token or the session's cookie must be there; a
//! cookie alone changes nothing unless the browser says that our own page asks.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderMap, HeaderName,
    HeaderValue, LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Method, Request, StatusCode};

use super::body::{Answer, full};
use super::door::{Door, SESSION_LIFE};
use super::page;
use super::problem::Problem;
use super::serve::Respond;

const SESSION_COOKIE: &str = "bluehook_session";
const SIGN_IN: &str = "sign in with the link that `bluehook debugger` prints, or send the token in \
                       <data_dir>/admin.token as `Authorization: Bearer …`";

/// Nothing is loaded from elsewhere, nothing inline runs, nobody frames it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub struct Guard {
    door: Arc<Door>,
}

/// How someone got in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Token,
    Cookie,
}

impl Guard {
    #[must_use]
    pub fn new(door: Arc<Door>) -> Guard {
        Guard { door }
    }

    pub async fn answer(&self, request: Request<Incoming>, api: &Respond) -> Answer {
        let mut answer = match self.admit(&request) {
            Ok(Some(answer)) => answer,
            Ok(None) => api(request).await,
            Err(problem) => refusal(&request, &problem),
        };
        harden(answer.headers_mut());
        answer
    }

    /// Refuses, answers by itself, or (`None`) lets the request through to the API.
    fn admit<B>(&self, request: &Request<B>) -> Result<Option<Answer>, Problem> {
        let headers = request.headers();
        let host = self.own_host(headers)?;
        own_origin(headers, &host)?;
        let path = request.uri().path();
        if path == "/signin" {
            return self.sign_in(request).map(Some);
        }
        let pass = self.pass(headers)?;
        let changes = request.method() != Method::GET && request.method() != Method::HEAD;
        if changes && pass == Pass::Cookie && !asked_by_own_page(headers) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "refused: the browser doesn't say that bluehook's own page asks; use that page, or the token",
            ));
        }
        Ok(page::answer(request.method(), path))
    }

    /// Loopback by one of its names, with any port: a tunnel may have another one.
    fn own_host(&self, headers: &HeaderMap) -> Result<String, Problem> {
        let mut hosts = headers.get_all(HOST).iter();
        let (host, more) = (hosts.next().and_then(|h| h.to_str().ok()), hosts.next());
        let own = host.filter(|_| more.is_none()).filter(|host| {
            let name = match host.rsplit_once(':') {
                Some((name, port)) if port.parse::<u16>().is_ok() => name,
                _ => host,
            };
            let own = self.door.address.ip();
            let bare = name.trim_start_matches('[').trim_end_matches(']');
            name.eq_ignore_ascii_case("localhost")
                || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip == own || ip.is_loopback())
        });
        own.map(str::to_ascii_lowercase).ok_or_else(|| {
            Problem::new(
                StatusCode::FORBIDDEN,
                "refused: this host is not bluehook's; use localhost or a loopback address",
            )
        })
    }

    fn pass(&self, headers: &HeaderMap) -> Result<Pass, Problem> {
        let bearer = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| {
            let (scheme, token) = v.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        if bearer.is_some_and(|token| self.door.knows_token(token)) {
            return Ok(Pass::Token);
        }
        let cookies = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok());
        let mut pairs = cookies.flat_map(|v| v.split(';')).filter_map(|p| p.trim().split_once('='));
        if pairs.any(|(name, value)| name == SESSION_COOKIE && self.door.knows_session(value)) {
            return Ok(Pass::Cookie);
        }
        Err(Problem::new(StatusCode::UNAUTHORIZED, format!("not signed in: {SIGN_IN}")))
    }

    fn sign_in<B>(&self, request: &Request<B>) -> Result<Answer, Problem> {
        if request.method() != Method::GET {
            let detail = "this path opens a sign-in link; use GET";
            let status = StatusCode::METHOD_NOT_ALLOWED;
            return Err(Problem { allow: Some("GET"), ..Problem::new(status, detail) });
        }
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let code = form_urlencoded::parse(query).find(|(name, _)| name == "code");
        let session = code.and_then(|(_, code)| self.door.redeem(&code)).ok_or_else(|| {
            Problem::new(
                StatusCode::UNAUTHORIZED,
                "this sign-in link was used already, or is too old; get another with `bluehook debugger`",
            )
        })?;
        let cookie = format!(
            "{SESSION_COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}",
            SESSION_LIFE.as_secs()
        );
        let mut answer = full(StatusCode::SEE_OTHER, "text/plain; charset=utf-8", "signed in\n");
        answer.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
        if let Ok(cookie) = HeaderValue::try_from(cookie) {
            answer.headers_mut().insert(SET_COOKIE, cookie);
        }
        Ok(answer)
    }
}

fn own_origin(headers: &HeaderMap, host: &str) -> Result<(), Problem> {
    let refused = || {
        Problem::new(
            StatusCode::FORBIDDEN,
            "refused: another site's page asks; open bluehook's own page, or use the token without a browser",
        )
    };
    let of_host = |origin: &str| {
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        rest.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
    };
    for origin in headers.get_all(ORIGIN) {
        if !origin.to_str().is_ok_and(of_host) {
            return Err(refused());
        }
    }
    match fetch_site(headers) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(refused()),
    }
}

fn fetch_site(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get("sec-fetch-site").map(HeaderValue::as_bytes)
}

/// [`own_origin`] has compared what is there; here it must be there.
fn asked_by_own_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || fetch_site(headers) == Some(b"same-origin")
}

fn refusal<B>(request: &Request<B>, problem: &Problem) -> Answer {
    let shows_a_page = matches!(request.uri().path(), "/" | "/signin");
    let mut answer = match problem.status {
        StatusCode::UNAUTHORIZED if shows_a_page => {
            let text = page::signed_out(&problem.detail);
            full(problem.status, "text/html; charset=utf-8", text)
        }
        _ => problem.answer(),
    };
    if problem.status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer realm=\"bluehook\"");
        answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    }
    answer
}

fn harden(headers: &mut HeaderMap) {
    const RESOURCE: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    const OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (RESOURCE, "same-origin"),
        (OPENER, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{TestClock, Timestamp};

    struct Case {
        guard: Guard,
        token: String,
        session: String,
        _dir: tempfile::TempDir,
    }

    fn case() -> Case {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::new(Timestamp(1_790_000_000_000)));
        let door = Door::open(dir.path(), ([127, 0, 0, 1], 3001).into(), clock).unwrap();
        let token = std::fs::read_to_string(super::super::door::token_path(dir.path())).unwrap();
        let link = door.link().unwrap();
        let session = door.redeem(link.split_once("code=").unwrap().1).unwrap();
        let guard = Guard::new(Arc::new(door));
        Case { guard, token: token.trim().to_owned(), session, _dir: dir }
    }

    impl Case {
        fn status(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in headers {
                let value = value.replace("TOKEN", &self.token).replace("SESSION", &self.session);
                request = request.header(*name, value);
            }
            match self.guard.admit(&request.body(()).unwrap()) {
                Ok(None) => 0,
                Ok(Some(answer)) => answer.status().as_u16(),
                Err(problem) => problem.status.as_u16(),
            }
        }
    }

    const OWN: (&str, &str) = ("host", "127.0.0.1:3001");
    const BEARER: (&str, &str) = ("authorization", "Bearer TOKEN");
    const COOKIE_: (&str, &str) = ("cookie", "a=b; bluehook_session=SESSION");

    #[test]
    fn the_token_or_the_cookie_let_in_and_nothing_else_does() {
        let case = case();
        let api = "/api/v1/status";
        for (headers, status) in [
            (vec![OWN, BEARER], 0),
            (vec![OWN, COOKIE_], 0),
            (vec![OWN, ("authorization", "bearer TOKEN")], 0),
            (vec![OWN], 401),
            (vec![OWN, ("authorization", "Bearer wrong")], 401),
            (vec![OWN, ("authorization", "Basic TOKEN")], 401),
            (vec![OWN, ("cookie", "bluehook_session=1.ab")], 401),
            (vec![OWN, ("cookie", "other=SESSION")], 401),
        ] {
            assert_eq!(case.status("GET", api, &headers), status, "{headers:?}");
        }
        // Before routing: nobody learns what there is.
        for path in
            ["/", "/nothing", "/metrics", "/healthz", "/assets/app.js", "/api/v1/openapi.json"]
        {
            assert_eq!(case.status("GET", path, &[OWN]), 401, "{path}");
        }
    }

    #[test]
    fn foreign_hosts_and_origins_are_refused_whoever_asks() {
        let case = case();
        for (headers, status) in [
            (vec![("host", "localhost:9999"), BEARER], 0),
            (vec![("host", "[::1]:3001"), BEARER], 0),
            (vec![("host", "LOCALHOST"), BEARER], 0),
            (vec![("host", "evil.example:3001"), BEARER], 403),
            (vec![("host", "127.0.0.1.evil.example"), BEARER], 403),
            (vec![("host", "192.0.2.1:3001"), BEARER], 403),
            (vec![("host", ""), BEARER], 403),
            (vec![BEARER], 403),
            (vec![OWN, ("host", "evil.example"), BEARER], 403),
            (vec![OWN, BEARER, ("origin", "http://127.0.0.1:3001")], 0),
            (vec![OWN, BEARER, ("origin", "http://127.0.0.1:8080")], 403),
            (vec![OWN, BEARER, ("origin", "http://evil.example")], 403),
            (vec![OWN, BEARER, ("origin", "null")], 403),
            (vec![OWN, BEARER, ("sec-fetch-site", "cross-site")], 403),
            (vec![OWN, BEARER, ("sec-fetch-site", "same-site")], 403),
            (vec![OWN, BEARER, ("sec-fetch-site", "none")], 0),
        ] {
            assert_eq!(case.status("GET", "/api/v1/status", &headers), status, "{headers:?}");
        }
    }

    #[test]
    fn a_cookie_changes_nothing_unless_our_own_page_asks() {
        let case = case();
        let path = "/api/v1/dead/discard";
        for (headers, status) in [
            (vec![OWN, COOKIE_], 403),
            (vec![OWN, COOKIE_, ("sec-fetch-site", "none")], 403),
            (vec![OWN, COOKIE_, ("sec-fetch-site", "same-origin")], 0),
            (vec![OWN, COOKIE_, ("origin", "http://127.0.0.1:3001")], 0),
            (vec![OWN, COOKIE_, ("origin", "http://localhost:3001")], 403),
            (vec![OWN, BEARER], 0),
        ] {
            assert_eq!(case.status("POST", path, &headers), status, "{headers:?}");
        }
    }

    #[test]
    fn a_used_or_forged_link_signs_nobody_in() {
        let case = case();
        let link = case.guard.door.link().unwrap();
        let path = link.strip_prefix("http://127.0.0.1:3001").unwrap();
        assert_eq!(case.status("POST", path, &[OWN]), 405);
        assert_eq!(case.status("GET", path, &[OWN]), 303);
        assert_eq!(case.status("GET", path, &[OWN]), 401);
        assert_eq!(case.status("GET", "/signin?code=", &[OWN]), 401);
        assert_eq!(case.status("GET", "/signin", &[OWN]), 401);
    }
}
