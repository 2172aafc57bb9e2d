//! What runs when an event matches: http, exec, file.

mod address;
mod exec;
mod file;
mod filter;
mod http;
mod redact;
mod scan;
pub mod template;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wildmatch::WildMatch;

use crate::clock::{BoxFuture, Timestamp};
use crate::config::{self, Action, HttpBody, Limits};
use crate::delivery::Outcome;
use crate::event::{Event, MALFORMED};
use crate::message::MessageView;
use crate::signature::Secret;
pub use crate::trust::Trust;

pub use filter::Filter;
use redact::Redactor;
use template::{Engine, Values};

/// What a handler is told of one attempt.
#[derive(Clone, Debug)]
pub struct Call {
    pub event: Arc<Event>,
    /// Of the event's message, where some template looks at it.
    pub message: Option<Arc<MessageView>>,
    /// From 1.
    pub attempt: u32,
    pub now: Timestamp,
    pub deadline: Duration,
}

/// What one attempt came to, with what history keeps of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub outcome: Outcome,
    /// A short account of what was sent, without secrets.
    pub request: Option<String>,
    /// Status, headers and the first 16 KiB; or exit status and output.
    pub response: Option<String>,
}

impl Report {
    fn bare(outcome: Outcome) -> Report {
        Report { outcome, request: None, response: None }
    }
}

pub trait Handler: Send + Sync {
    /// Runs once. It must end within `call.deadline`, leaving nothing running; dropping the future
    /// must kill what it started.
    fn run(&self, call: Call) -> BoxFuture<'_, Report>;
}

/// What handlers need besides their own configuration.
pub struct BuildContext<'a> {
    /// For `secret('name')`.
    pub secrets: &'a BTreeMap<String, Secret>,
    /// For `sign`.
    pub sources: &'a [config::Source],
    /// For `env('NAME')`: this process's environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    pub limits: Limits,
    /// Shared: the system's authorities take a millisecond to read.
    pub trust: Trust,
}

/// A handler ready to run.
pub struct Built {
    pub handler: Arc<dyn Handler>,
    pub filter: Filter,
    /// Some template looks at `message`.
    pub uses_message: bool,
}

/// What the three kinds of handler have in common.
struct Common {
    name: String,
    engine: Arc<Engine>,
    redactor: Redactor,
    /// Of a request's account, a response, an output.
    kept_bytes: usize,
}

/// # Errors
/// One line: the handler, the field, what is wrong there.
pub fn build(handler: &config::Handler, ctx: &BuildContext<'_>) -> Result<Built, String> {
    let named = |e: String| format!("handler {:?}: {e}", handler.name.as_str());
    build_unnamed(handler, ctx).map_err(named)
}

/// Finds everything that [`build`] would refuse. Starts, opens and connects nothing.
///
/// # Errors
/// As [`build`].
pub fn check(handler: &config::Handler, ctx: &BuildContext<'_>) -> Result<(), String> {
    build(handler, ctx).map(|_| ())
}

fn build_unnamed(handler: &config::Handler, ctx: &BuildContext<'_>) -> Result<Built, String> {
    let values = values(handler, ctx);
    let mut engine = Engine::new(&values);
    let name = handler.name.as_str().to_owned();
    if let Some(when) = &handler.when {
        engine.compile_condition("when", when)?;
    }
    let of_sources = ctx.sources.iter().flat_map(|source| &source.signature.secrets);
    let secrets = ctx.secrets.values().chain(of_sources).map(text_of);
    let redactor = Redactor::new(secrets.chain(values.env.values().cloned()));

    let kept_bytes = ctx.limits.kept;
    let (built, engine): (Arc<dyn Handler>, _) = match &handler.action {
        Action::Http(http) => {
            let plan = http::Plan::compile(http, &mut engine)?;
            let common =
                Common { name: name.clone(), engine: Arc::new(engine), redactor, kept_bytes };
            let engine = Arc::clone(&common.engine);
            (Arc::new(http::Http::new(http, plan, ctx, handler.concurrency, common)?), engine)
        }
        Action::Exec(exec) => {
            let plan = exec::Plan::compile(exec, &mut engine)?;
            let common =
                Common { name: name.clone(), engine: Arc::new(engine), redactor, kept_bytes };
            let engine = Arc::clone(&common.engine);
            (Arc::new(exec::Exec::new(plan, common)), engine)
        }
        Action::File(sink) => (Arc::new(file::File::new(sink)), Arc::new(engine)),
    };
    let uses_message = engine.uses_message;
    let filter = Filter {
        handler: name,
        globs: handler.events.iter().map(|glob| WildMatch::new(glob)).collect(),
        names_malformed: handler.events.iter().any(|glob| glob == MALFORMED),
        when: handler.when.clone().map(|when| (when, engine)),
    };
    Ok(Built { handler: built, filter, uses_message })
}

fn text_of(secret: &Secret) -> String {
    String::from_utf8_lossy(secret.expose()).into_owned()
}

/// Every secret, and those variables that a template names. Variables are read here, once, so that
/// their values are known to the redactor before the first attempt.
fn values(handler: &config::Handler, ctx: &BuildContext<'_>) -> Values {
    let mut values = Values { rendered_max_bytes: ctx.limits.rendered_max, ..Values::default() };
    for (name, secret) in ctx.secrets {
        values.secrets.insert(name.clone(), text_of(secret));
    }
    let templates = sources_of_templates(&handler.action);
    let mut code: Vec<_> = templates.into_iter().flat_map(scan::template_code).collect();
    code.extend(handler.when.as_deref().map(|when| (0, when)));
    for name in scan::variables(&code) {
        if let Some(value) = (ctx.env)(name) {
            values.env.insert(name.to_owned(), value);
        }
    }
    values
}

fn sources_of_templates(action: &Action) -> Vec<&str> {
    fn strings<'a>(value: &'a serde_json::Value, out: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::String(text) => out.push(text),
            serde_json::Value::Array(items) => items.iter().for_each(|v| strings(v, out)),
            serde_json::Value::Object(fields) => fields.values().for_each(|v| strings(v, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    match action {
        Action::Http(http) => {
            out.push(http.url.as_str());
            out.extend(http.headers.iter().map(|(_, value)| value.as_str()));
            match &http.body {
                HttpBody::Raw => {}
                HttpBody::Json(value) => strings(value, &mut out),
                HttpBody::Form(fields) => out.extend(fields.iter().map(|(_, v)| v.as_str())),
                HttpBody::Text(text) => out.push(text),
            }
        }
        Action::Exec(exec) => {
            out.extend(exec.command.iter().map(String::as_str));
            out.extend(exec.env.iter().map(|(_, value)| value.as_str()));
        }
        Action::File(_) => {}
    }
    out
}

/// The name most like `name`, if one is alike enough to be what was meant.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .filter(|(distance, k)| *distance <= k.len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

/// `30 s`, `1.5 s`.
fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::testing::{context, event, handler};
    use super::*;
    use crate::config::{Exec, FileSink, Http};

    fn exec(command: &[&str]) -> Action {
        let command = command.iter().map(|&s| s.to_owned()).collect();
        Action::Exec(Exec { command, env: vec![], cwd: None })
    }

    fn problem(action: Action) -> String {
        context(|ctx| check(&handler(action), ctx)).unwrap_err()
    }

    #[test]
    fn what_templates_get_wrong_is_said_at_start_with_its_place() {
        for (argument, part) in [
            ("{{ data.from ", "exec.command[1]"),
            ("a\n{{ secret('crn') }}", "line 2, column 4: unknown secret \"crn\""),
            ("{{ secret(data.x) }}", "takes one name"),
            ("{{ env('UNSET') }}", "\"UNSET\" is not set"),
            ("{{ dta.from }}", "unknown name \"dta\", did you mean \"data\"?"),
            ("{{ fetch('x') }}", "unknown name \"fetch\""),
            ("{{ data.from|uper }}", "column 14: unknown filter \"uper\""),
            ("{% if data.x is blank %}{% endif %}", "unknown test \"blank\""),
            ("{{ data.x | default(event.id | nope) }}", "unknown filter \"nope\""),
        ] {
            let error = problem(exec(&["/bin/true", argument]));
            assert!(error.starts_with("handler \"h\": "), "{error}");
            assert!(error.contains(part) && !error.contains('\n'), "{argument}: {error}");
        }
    }

    #[test]
    fn good_templates_pass() {
        for argument in [
            "plain",
            "{",
            "{{ '|x is y' }}",
            "{{ secret('crm') }}",
            "{{ env('SET') | upper }}",
            "{{ data.secret }}",
            "{% for x in data.items %}{{ loop.index }}{% endfor %}",
            "{% raw %}{{ nothing }}{% endraw %}",
            "{{ data.a is not defined and data.b is none }}",
        ] {
            context(|ctx| check(&handler(exec(&["/bin/true", argument])), ctx)).unwrap();
        }
    }

    #[test]
    fn a_condition_that_does_not_compile_is_refused() {
        for (when, part) in [
            ("data.to and", "when"),
            ("data.to }} x", "bare expression"),
            ("{{ data.to }}", "when"),
            ("dat.to", "\"dat\""),
            ("data.to|x", "\"x\""),
        ] {
            let mut h = handler(exec(&["/bin/true"]));
            h.when = Some(when.into());
            let error = context(|ctx| check(&h, ctx)).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn bad_http_settings_are_refused() {
        let http = |f: fn(&mut Http)| {
            let mut http = testing::http("https://example.org/");
            f(&mut http);
            problem(Action::Http(http))
        };
        assert!(http(|h| h.url = "ftp://x".into()).contains("http.url"));
        assert!(http(|h| h.method = "A B".into()).contains("http.method"));
        assert!(http(|h| h.headers = vec![("a b".into(), "x".into())]).contains("http.headers"));
        let length = http(|h| h.headers = vec![("Content-Length".into(), "1".into())]);
        assert!(length.contains("set by the connection"), "{length}");
        assert!(http(|h| h.ca = Some("/nonexistent".into())).contains("http.ca"));
        assert!(http(|h| h.ca = Some("/dev/null".into())).contains("no certificate"));
        let json = serde_json::json!({"a": [{"b": "{{ secret('no') }}"}]});
        let mut h = testing::http("https://example.org/");
        h.body = HttpBody::Json(json);
        assert!(problem(Action::Http(h)).contains("http.json.a[0].b"));
    }

    #[test]
    fn malformed_events_go_only_to_who_names_them() {
        let filter = |globs: &[&str]| {
            let sink = FileSink { path: "/nowhere/x".into(), rotate: None, keep: 1 };
            let mut h = handler(Action::File(sink));
            h.events = globs.iter().map(|&g| g.to_owned()).collect();
            context(|ctx| build(&h, ctx)).unwrap().filter
        };
        let all = filter(&["*"]);
        assert!(all.matches_kind("message.read") && !all.matches_kind(MALFORMED));
        assert!(filter(&["*", "malformed"]).matches_kind(MALFORMED));
        assert!(!filter(&["malform*"]).matches_kind(MALFORMED));
        let messages = filter(&["message.*"]);
        assert!(messages.matches_kind("message.read") && !messages.matches_kind("call.read"));
        assert!(!messages.has_when());
    }

    #[test]
    fn a_condition_chooses_events() {
        let mut h = handler(exec(&["/bin/true"]));
        h.when = Some("data.to and not test and data.n > 3 and handler == 'h'".into());
        let filter = context(|ctx| build(&h, ctx)).unwrap().filter;
        let when = |body: &str| filter.when(&event(body), None);
        assert!(filter.has_when());
        assert_eq!(when(r#"{"type":"t","data":{"to":"x","n":4}}"#), Ok(true));
        assert_eq!(when(r#"{"type":"t","test":true,"data":{"to":"x","n":4}}"#), Ok(false));
        assert_eq!(when(r#"{"type":"t","data":{"to":"","n":4}}"#), Ok(false));
        assert_eq!(when(r#"{"type":"t"}"#), Ok(false));
        assert_eq!(when("not json"), Ok(false));
    }
}
