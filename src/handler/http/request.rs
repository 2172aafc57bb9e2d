//! What is sent: URL, headers, body, signature, and the account of it that history keeps.

use std::collections::BTreeMap;

use base64::Engine as _;
use bytes::Bytes;
use hyper::{Method, Uri};
use minijinja::value::Value;
use sha2::{Digest, Sha256};

use super::super::Call;
use super::super::template::{Engine, Place, Template};
use super::{header_value, is_bodiless};
use crate::clock::Timestamp;
use crate::config::{self, ForwardSign, HttpBody};
use crate::event::NewEvent;
use crate::signature::{self, Policy, Scheme};

const SIGNATURE_HEADER: &str = "x-bluereplies-signature";
/// Headers that belong to the connection, not to the message.
const NOT_SETTABLE: [&str; 7] =
    ["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// The compiled templates.
pub(in crate::handler) struct Plan {
    pub(super) method: Method,
    url: Template,
    /// No template syntax in the host: an address there was written by the owner.
    pub(super) host_is_literal: bool,
    headers: Vec<(String, Template)>,
    body: BodyPlan,
}

enum BodyPlan {
    Raw,
    Json(JsonPlan),
    Form(Vec<(String, Template)>),
    Text(Template),
}

/// A JSON value whose strings are templates.
enum JsonPlan {
    Fixed(serde_json::Value),
    String(Template),
    Array(Vec<JsonPlan>),
    Object(Vec<(String, JsonPlan)>),
}

pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) content_type: Option<String>,
}

impl Plan {
    pub(in crate::handler) fn compile(
        http: &config::Http,
        engine: &mut Engine,
    ) -> Result<Plan, String> {
        let method = Method::from_bytes(http.method.as_bytes())
            .map_err(|_| format!("http.method: {:?} is no HTTP method", http.method))?;
        let url = engine.compile("http.url", &http.url, Place::Url)?;
        if !http.url.contains('{') {
            Target::parse(&http.url)?;
        }
        let mut headers = Vec::new();
        for (name, value) in &http.headers {
            let lower = name.to_ascii_lowercase();
            if hyper::header::HeaderName::from_bytes(lower.as_bytes()).is_err() {
                return Err(format!("http.headers: {name:?} cannot be the name of a header"));
            }
            if NOT_SETTABLE.contains(&lower.as_str()) {
                return Err(format!("http.headers: {name:?} is set by the connection; remove it"));
            }
            let field = format!("http.headers.{name}");
            headers.push((name.clone(), engine.compile(&field, value, Place::Text)?));
        }
        let body = match &http.body {
            HttpBody::Raw => BodyPlan::Raw,
            HttpBody::Json(value) => BodyPlan::Json(JsonPlan::compile("http.json", value, engine)?),
            HttpBody::Form(fields) => {
                let mut compiled = Vec::new();
                for (name, value) in fields {
                    let field = format!("http.form.{name}");
                    compiled.push((name.clone(), engine.compile(&field, value, Place::Text)?));
                }
                BodyPlan::Form(compiled)
            }
            HttpBody::Text(text) => {
                BodyPlan::Text(engine.compile("http.body", text, Place::Text)?)
            }
        };
        Ok(Plan { method, url, host_is_literal: host_is_literal(&http.url), headers, body })
    }

    pub(super) fn target(&self, engine: &Engine, context: &Value) -> Result<Target, String> {
        Target::parse(&engine.render(&self.url, context)?)
    }

    pub(super) fn headers(
        &self,
        engine: &Engine,
        context: &Value,
    ) -> Result<Vec<(String, String)>, String> {
        let render = |(name, value): &(String, Template)| {
            Ok((name.to_ascii_lowercase(), engine.render(value, context)?))
        };
        self.headers.iter().map(render).collect()
    }

    pub(super) fn body(
        &self,
        engine: &Engine,
        context: &Value,
        event: &NewEvent,
    ) -> Result<Body, String> {
        let (bytes, content_type) = match &self.body {
            BodyPlan::Raw if is_bodiless(&self.method) => {
                return Ok(Body { bytes: Bytes::new(), content_type: None });
            }
            BodyPlan::Raw => {
                let original = event.headers.iter().find(|(n, _)| n == "content-type");
                let original = original.map(|(_, v)| String::from_utf8_lossy(v).into_owned());
                (event.body.clone(), original.unwrap_or_else(|| "application/json".to_owned()))
            }
            BodyPlan::Json(plan) => {
                let text = plan.render(engine, context)?.to_string();
                (text.into(), "application/json".to_owned())
            }
            BodyPlan::Form(fields) => {
                let mut form = form_urlencoded::Serializer::new(String::new());
                for (name, value) in fields {
                    form.append_pair(name, &engine.render(value, context)?);
                }
                (form.finish().into(), "application/x-www-form-urlencoded".to_owned())
            }
            BodyPlan::Text(template) => {
                let text = engine.render(template, context)?;
                (text.into(), "text/plain; charset=utf-8".to_owned())
            }
        };
        Ok(Body { bytes, content_type: Some(content_type) })
    }

    /// `POST https://host/path`, the headers with private values as `***`, the size of the body.
    pub(super) fn account(
        &self,
        target: &Target,
        headers: &[(String, String)],
        body_bytes: usize,
    ) -> String {
        let mut text = format!("{} {}", self.method, target.uri);
        for (name, value) in headers {
            let from_secret = |(own, template): &(String, Template)| {
                template.private && own.eq_ignore_ascii_case(name)
            };
            let hidden = is_private(name) || self.headers.iter().any(from_secret);
            let value = if hidden { "***" } else { value.as_str() };
            text.push_str(&format!("\n{name}: {value}"));
        }
        text.push_str(&format!("\nbody: {body_bytes} bytes"));
        text
    }
}

impl JsonPlan {
    fn compile(
        field: &str,
        value: &serde_json::Value,
        engine: &mut Engine,
    ) -> Result<JsonPlan, String> {
        Ok(match value {
            serde_json::Value::String(text) => JsonPlan::String(engine.compile_value(field, text)?),
            serde_json::Value::Array(items) => {
                let mut compiled = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    compiled.push(JsonPlan::compile(&format!("{field}[{i}]"), item, engine)?);
                }
                JsonPlan::Array(compiled)
            }
            serde_json::Value::Object(fields) => {
                let mut compiled = Vec::new();
                for (name, item) in fields {
                    let plan = JsonPlan::compile(&format!("{field}.{name}"), item, engine)?;
                    compiled.push((name.clone(), plan));
                }
                JsonPlan::Object(compiled)
            }
            fixed => JsonPlan::Fixed(fixed.clone()),
        })
    }

    fn render(&self, engine: &Engine, context: &Value) -> Result<serde_json::Value, String> {
        match self {
            JsonPlan::Fixed(value) => Ok(value.clone()),
            JsonPlan::String(template) => engine.render_value(template, context),
            JsonPlan::Array(items) => {
                let items: Result<Vec<_>, _> =
                    items.iter().map(|item| item.render(engine, context)).collect();
                Ok(serde_json::Value::Array(items?))
            }
            JsonPlan::Object(fields) => {
                let mut map = serde_json::Map::new();
                for (name, plan) in fields {
                    map.insert(name.clone(), plan.render(engine, context)?);
                }
                Ok(serde_json::Value::Object(map))
            }
        }
    }
}

/// Where a request goes, with a user and password taken out of the URL.
pub(super) struct Target {
    pub(super) uri: Uri,
    pub(super) authority: String,
    userinfo: Option<String>,
}

impl Target {
    /// The URL itself stays out of the error: it may hold a secret.
    pub(super) fn parse(url: &str) -> Result<Target, String> {
        let uri: Uri = url.trim().parse().map_err(|e| format!("http.url: not a valid URL: {e}"))?;
        let mut parts = uri.into_parts();
        if !matches!(parts.scheme.as_ref().map(|s| s.as_str()), Some("http" | "https")) {
            return Err("http.url: must begin with https:// or http://".to_owned());
        }
        let full = parts.authority.as_ref().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let (userinfo, authority) = match full.rsplit_once('@') {
            Some((userinfo, host)) => (Some(userinfo.to_owned()), host.to_owned()),
            None => (None, full),
        };
        let invalid = |e: &dyn std::fmt::Display| format!("http.url: not a valid URL: {e}");
        parts.authority = Some(authority.parse().map_err(|e| invalid(&e))?);
        let uri = Uri::from_parts(parts).map_err(|e| invalid(&e))?;
        if uri.host().unwrap_or_default().is_empty() {
            return Err("http.url: names no host".to_owned());
        }
        Ok(Target { uri, authority, userinfo })
    }

    pub(super) fn basic(&self) -> Option<String> {
        let userinfo = self.userinfo.as_ref()?;
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let pair = [percent_decode(user), b":".to_vec(), percent_decode(password)].concat();
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
    }

    pub(super) fn password(&self) -> Option<String> {
        let (_, password) = self.userinfo.as_ref()?.split_once(':')?;
        Some(String::from_utf8_lossy(&percent_decode(password)).into_owned())
    }
}

fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let mut byte = [0];
        match bytes.get(at + 1..at + 3) {
            Some(digits)
                if bytes[at] == b'%' && hex::decode_to_slice(digits, &mut byte).is_ok() =>
            {
                out.push(byte[0]);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

fn host_is_literal(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    !scheme.contains('{') && !host.contains('{') && is_owners(user)
}

/// Literal but for secrets and variables, which nobody but the owner sets.
fn is_owners(user: &str) -> bool {
    user.split("{{").skip(1).all(|rest| {
        let Some((code, _)) = rest.split_once("}}") else { return false };
        let call = ["secret(", "env("].iter().find_map(|call| code.trim().strip_prefix(call));
        let inside = call.and_then(|rest| rest.strip_suffix(')'));
        inside.is_some_and(|name| !name.contains(['(', ')', '|', '~', ',']))
    }) && !user.contains("{%")
}

/// Headers that carry credentials by their nature.
fn is_private(name: &str) -> bool {
    ["authorization", "cookie", "token", "secret", "api-key", "apikey", "password"]
        .iter()
        .any(|word| name.contains(word))
}

/// An id as a header can carry it: itself, or `sha256:…` of it.
fn header_id(id: &str) -> String {
    if !id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic()) {
        id.to_owned()
    } else {
        format!("sha256:{}", hex::encode(Sha256::digest(id)))
    }
}

/// What a receiver can tell attempts and repeats by.
pub(super) fn delivery_headers(call: &Call) -> [(String, String); 2] {
    [
        ("idempotency-key".to_owned(), header_id(&call.event.new.id)),
        ("x-bluehook-attempt".to_owned(), call.attempt.to_string()),
    ]
}

pub(super) fn standard_headers(content_type: Option<&String>) -> Vec<(String, String)> {
    let agent = concat!("bluehook/", env!("CARGO_PKG_VERSION"));
    let mut headers = vec![("user-agent".to_owned(), agent.to_owned())];
    if let Some(value) = content_type.filter(|v| header_value(v).is_some()) {
        headers.push(("content-type".to_owned(), value.clone()));
    }
    headers
}

/// The sources' secrets, for signing what is sent on.
pub(super) struct Signers(BTreeMap<String, Policy>);

impl Signers {
    pub(super) fn new(sources: &[config::Source]) -> Signers {
        Signers(sources.iter().map(|s| (s.name.clone(), s.signature.clone())).collect())
    }

    pub(super) fn headers(
        &self,
        sign: ForwardSign,
        event: &NewEvent,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Vec<(String, String)>, String> {
        let unsigned =
            || format!("cannot sign: source {:?} has no secret; configure one", event.source);
        let policy = self.0.get(&event.source).ok_or_else(unsigned)?;
        let secret = policy.secrets.first().ok_or_else(unsigned)?;
        match sign {
            ForwardSign::BlueReplies => {
                // A source of another scheme has no header of this kind: then the usual name.
                let header = match policy.scheme {
                    Scheme::Hex if !policy.header.is_empty() => policy.header.clone(),
                    _ => SIGNATURE_HEADER.to_owned(),
                };
                Ok(vec![(header, signature::sign_hex(secret, body))])
            }
            ForwardSign::StandardWebhooks => {
                let tolerance = std::time::Duration::ZERO;
                let policy =
                    Policy { scheme: Scheme::StandardWebhooks { tolerance }, ..policy.clone() };
                signature::sign(&policy, &header_id(&event.id), body, now).ok_or_else(unsigned)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_the_url_becomes_a_header() {
        let t = Target::parse("https://me:p%40ss@host:8443/x?y").unwrap();
        assert_eq!(t.uri.to_string(), "https://host:8443/x?y");
        assert_eq!(t.basic().as_deref(), Some("Basic bWU6cEBzcw=="));
        assert_eq!(t.password().as_deref(), Some("p@ss"));
    }

    #[test]
    fn only_http_urls_with_a_host_are_targets() {
        for bad in [
            "ftp://x/",
            "/path",
            "host",
            "https://",
            "http://a b/",
            "http://u:pw@/",
            "http://h%2Fx/",
        ] {
            let Err(error) = Target::parse(bad) else { panic!("{bad} was accepted") };
            assert!(!error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn a_host_with_a_template_in_it_is_not_literal() {
        assert!(host_is_literal("http://127.0.0.1:1/{{ data.x }}"));
        assert!(host_is_literal("http://127.0.0.1?{{ data.x }}"));
        assert!(host_is_literal("http://me:{{ secret('pw') }}@127.0.0.1/{{ data.x }}"));
        assert!(host_is_literal("http://{{ env('U') }}:{{secret('pw')}}@127.0.0.1/"));
        for url in [
            "http://{{ data.h }}/",
            "http://{{ data.user }}@127.0.0.1/",
            "http://{{ data.user | safe }}@127.0.0.1/",
            "http://{{ secret('x') ~ data.user | safe }}@127.0.0.1/",
            "http://{{ secret('x') }}{{ data.user|safe }}@127.0.0.1/",
            "http://{% set x = data.h | safe %}{{ secret('x') }}@127.0.0.1/",
            "http://me@{{ data.h }}/",
            "{{ secret('url') }}",
            "{{ x }}://127.0.0.1/",
            "http://a{{ x }}:1",
        ] {
            assert!(!host_is_literal(url), "{url}");
        }
    }

    #[test]
    fn ids_that_no_header_can_carry_are_hashed() {
        assert_eq!(header_id("evt_1"), "evt_1");
        for id in ["a b", "ä", "a\r\nb", ""] {
            assert!(header_id(id).starts_with("sha256:"), "{id:?}");
        }
    }
}
