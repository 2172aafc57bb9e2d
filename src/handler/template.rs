//! Templates in a handler's configuration: compiled once, rendered per attempt, without files or
//! network, bounded in steps and output.
//!
//! * In a URL every value that is put in is percent-encoded (all but `A-Z a-z 0-9 - . _ ~`), so that
//!   data cannot leave its place. What the owner wrote stays as it is: literal text, `secret()`,
//!   `env()`, and what is marked `| safe`.
//! * In URLs and commands a missing value is an error; elsewhere it is empty.
//! * A string of a `json` body that is exactly one `{{ expression }}` keeps the value's type.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, State, UndefinedBehavior};

use super::scan;
use crate::config::Limits;
use crate::event::Event;
use crate::message::MessageView;
use crate::signature::json;

/// Instructions per rendering: a loop over a megabyte of JSON fits, an endless one ends.
const FUEL: u64 = 1_000_000;

/// Every name that a template may use, besides minijinja's own functions.
const NAMES: [&str; 9] =
    ["event", "data", "payload", "test", "message", "attempt", "handler", "secret", "env"];

/// Where a template stands decides how it is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A missing value is empty.
    Text,
    /// A missing value is an error.
    Argument,
    /// As `Argument`, and values are percent-encoded.
    Url,
}

/// What `secret()` and `env()` look names up in.
#[derive(Clone)]
pub struct Values {
    /// What one template may come to.
    pub rendered_max_bytes: usize,
    pub secrets: BTreeMap<String, String>,
    /// Those variables that some template names; the others cannot be read.
    pub env: BTreeMap<String, String>,
}

impl Default for Values {
    fn default() -> Values {
        Values {
            rendered_max_bytes: Limits::default().rendered_max,
            secrets: BTreeMap::new(),
            env: BTreeMap::new(),
        }
    }
}

/// Three environments, for the three places, that hold one handler's templates by field.
pub struct Engine {
    text: Environment<'static>,
    argument: Environment<'static>,
    url: Environment<'static>,
    rendered_max_bytes: usize,
    /// Templates so far: the environments know them by number, as two fields can share a name.
    count: usize,
    /// Some template looks at `message`, which takes several reads.
    pub uses_message: bool,
}

/// One compiled field. Only the engine that compiled it can render it.
#[derive(Clone, Debug)]
pub struct Template {
    field: String,
    key: String,
    source: String,
    place: Place,
    form: Form,
    /// It calls `secret()` or `env()`: what it renders to is not for reports.
    pub private: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// No template syntax in it.
    Literal,
    Template,
    /// Exactly one `{{ expression }}`.
    Expression,
}

impl Engine {
    #[must_use]
    pub fn new(values: &Values) -> Engine {
        let mut url = environment(values, UndefinedBehavior::Strict, Value::from_safe_string);
        url.set_formatter(|out, state, value| {
            let text = text_of(state, value)?;
            out.write_str(&if value.is_safe() { text } else { percent_encode(&text) })?;
            Ok(())
        });
        Engine {
            text: environment(values, UndefinedBehavior::Chainable, Value::from),
            argument: environment(values, UndefinedBehavior::Strict, Value::from),
            url,
            rendered_max_bytes: values.rendered_max_bytes,
            count: 0,
            uses_message: false,
        }
    }

    fn environment(&self, place: Place) -> &Environment<'static> {
        match place {
            Place::Text => &self.text,
            Place::Argument => &self.argument,
            Place::Url => &self.url,
        }
    }

    /// # Errors
    /// What is wrong with it and where, in one line that begins with the field.
    pub fn compile(&mut self, field: &str, source: &str, place: Place) -> Result<Template, String> {
        let form = if ["{{", "{%", "{#"].iter().any(|open| source.contains(open)) {
            Form::Template
        } else {
            Form::Literal
        };
        self.count += 1;
        let key = self.count.to_string();
        if form == Form::Template {
            let environment = match place {
                Place::Text => &mut self.text,
                Place::Argument => &mut self.argument,
                Place::Url => &mut self.url,
            };
            environment
                .add_template_owned(key.clone(), source.to_owned())
                .map_err(|e| describe(field, source, &e))?;
            let template = environment.get_template(&key).map_err(|e| e.to_string())?;
            let names = template.undeclared_variables(false);
            check_names(environment, field, names.iter().map(String::as_str))?;
            self.uses_message |= names.contains("message");
            scan::check(environment, &scan::template_code(source))
                .map_err(|e| e.within(field, source))?;
        }
        let private = form == Form::Template && scan::calls_private(&scan::template_code(source));
        let (field, source) = (field.to_owned(), source.to_owned());
        Ok(Template { field, key, source, place, form, private })
    }

    /// A string of a JSON body.
    ///
    /// # Errors
    /// As [`Engine::compile`].
    pub fn compile_value(&mut self, field: &str, source: &str) -> Result<Template, String> {
        let mut template = self.compile(field, source, Place::Text)?;
        if let Some(inner) = lone_expression(source)
            && scan::is_one_expression(inner)
            && self.text.compile_expression(inner).is_ok()
        {
            template.form = Form::Expression;
        }
        Ok(template)
    }

    /// # Errors
    /// As [`Engine::compile`].
    pub fn compile_condition(&mut self, field: &str, source: &str) -> Result<(), String> {
        if !scan::is_one_expression(source) {
            return Err(format!(
                "{field}: '}}}}' closes nothing; write the bare expression, as in {field} = \"data.to\""
            ));
        }
        let expression =
            self.text.compile_expression(source).map_err(|e| describe(field, source, &e))?;
        let names = expression.undeclared_variables(false);
        check_names(&self.text, field, names.iter().map(String::as_str))?;
        let uses_message = names.contains("message");
        scan::check(&self.text, &[(0, source)]).map_err(|e| e.within(field, source))?;
        self.uses_message |= uses_message;
        Ok(())
    }

    /// # Errors
    /// The expression cannot be computed for this event.
    pub fn is_true(&self, field: &str, source: &str, context: &Value) -> Result<bool, String> {
        self.text
            .compile_expression(source)
            .and_then(|e| e.eval(context))
            .map(|v| v.is_true())
            .map_err(|e| describe(field, source, &e))
    }

    /// # Errors
    /// The template cannot be rendered for this event: its field, line and why.
    pub fn render(&self, template: &Template, context: &Value) -> Result<String, String> {
        let Template { field, key, source, .. } = template;
        if template.form == Form::Literal {
            return Ok(source.clone());
        }
        let mut out = Limited::to(self.rendered_max_bytes);
        self.environment(template.place)
            .get_template(key)
            .and_then(|t| t.render_captured_to(context, &mut out).map(|_| ()))
            .map_err(|e| match out.exceeded {
                true => format!(
                    "template {field}: it came to more than the {} bytes of limits.rendered_max",
                    self.rendered_max_bytes
                ),
                false => describe(field, source, &e),
            })?;
        String::from_utf8(out.out).map_err(|e| format!("template {field}: {e}"))
    }

    /// As [`Engine::render`], but a lone expression keeps its type.
    ///
    /// # Errors
    /// As [`Engine::render`].
    pub fn render_value(
        &self,
        template: &Template,
        context: &Value,
    ) -> Result<serde_json::Value, String> {
        let Template { field, source, .. } = template;
        match lone_expression(source) {
            Some(inner) if template.form == Form::Expression => {
                let value = self
                    .text
                    .compile_expression(inner)
                    .and_then(|e| e.eval(context))
                    .map_err(|e| describe(field, source, &e))?;
                if value.is_undefined() {
                    return Ok(serde_json::Value::Null);
                }
                serde_json::to_value(&value).map_err(|e| format!("template {field}: {e}"))
            }
            _ => self.render(template, context).map(serde_json::Value::String),
        }
    }
}

/// What templates see of an attempt.
#[must_use]
pub fn context(event: &Event, message: Option<&MessageView>, handler: &str, attempt: u32) -> Value {
    let payload =
        json::parse(&event.new.body).map_or(serde_json::Value::Null, |value| value.to_serde());
    let data = payload.get("data").cloned().unwrap_or_else(|| serde_json::json!({}));
    let test = payload.get("test").cloned().unwrap_or(serde_json::Value::Bool(false));
    minijinja::context! {
        event => minijinja::context! {
            id => event.new.id,
            type => event.new.kind,
            source => event.new.source,
            receivedAt => event.new.received_at.to_rfc3339(),
        },
        data => Value::from_serialize(&data),
        test => Value::from_serialize(&test),
        payload => Value::from_serialize(&payload),
        message => message.map_or(Value::UNDEFINED, Value::from_serialize),
        attempt => attempt,
        handler => handler,
    }
}

fn environment(
    values: &Values,
    undefined: UndefinedBehavior,
    wrap: fn(String) -> Value,
) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(undefined);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_keep_trailing_newline(true);
    environment.set_fuel(Some(FUEL));
    environment.remove_global("debug");
    environment.set_formatter(|out, state, value| Ok(out.write_str(&text_of(state, value)?)?));
    let values = Arc::new(values.clone());
    let secrets = Arc::clone(&values);
    environment.add_function("secret", move |name: &str| {
        secrets.secrets.get(name).cloned().map(wrap).ok_or_else(|| unknown("secret", name))
    });
    environment.add_function("env", move |name: &str| {
        values.env.get(name).cloned().map(wrap).ok_or_else(|| unknown("variable", name))
    });
    environment
}

/// A value as JavaScript would put it into a text: `true`, not `True`; lists and objects as JSON.
/// Null is empty.
fn text_of(state: &State<'_, '_>, value: &Value) -> Result<String, minijinja::Error> {
    match value.kind() {
        ValueKind::Undefined if state.undefined_behavior() == UndefinedBehavior::Strict => {
            Err(ErrorKind::UndefinedError.into())
        }
        ValueKind::Undefined | ValueKind::None => Ok(String::new()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Seq | ValueKind::Map => serde_json::to_string(value)
            .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string())),
        _ => Ok(value.to_string()),
    }
}

fn unknown(what: &str, name: &str) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, format!("unknown {what} {name:?}"))
}

/// The inside of a string that is `{{ … }}` from end to end.
fn lone_expression(source: &str) -> Option<&str> {
    let inner = source.strip_prefix("{{")?.strip_suffix("}}")?;
    let inner = inner.strip_prefix('-').unwrap_or(inner);
    Some(inner.strip_suffix('-').unwrap_or(inner))
}

fn check_names<'a>(
    environment: &Environment<'_>,
    field: &str,
    used: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    let mut unknown: Vec<&str> = used
        .filter(|name| !NAMES.contains(name) && !environment.globals().any(|(g, _)| g == *name))
        .collect();
    unknown.sort_unstable();
    let Some(name) = unknown.first() else { return Ok(()) };
    Err(match super::nearest(name, NAMES.into_iter()) {
        Some(near) => format!("{field}: unknown name {name:?}, did you mean {near:?}?"),
        None => format!("{field}: unknown name {name:?}; templates see {}", NAMES.join(", ")),
    })
}

/// One line: the field, where in it, what, and the piece that is meant.
fn describe(field: &str, source: &str, error: &minijinja::Error) -> String {
    let place = match error.range() {
        Some(range) => scan::position(source, range.start),
        None => format!("line {}", error.line().unwrap_or(1)),
    };
    let mut text = format!("template {field}: {place}: {}", error.kind());
    if let Some(detail) = error.detail() {
        text = format!("{text}: {detail}");
    }
    let piece = error.range().and_then(|range| source.get(range)).unwrap_or_default().trim();
    if !piece.is_empty() {
        text = format!("{text} in {piece:?}");
    }
    text.replace('\n', " ")
}

pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Collects output up to a limit.
struct Limited {
    out: Vec<u8>,
    max_bytes: usize,
    exceeded: bool,
}

impl Limited {
    fn to(max_bytes: usize) -> Limited {
        Limited { out: Vec::new(), max_bytes, exceeded: false }
    }
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.out.len() + bytes.len() > self.max_bytes {
            self.exceeded = true;
            return Err(io::Error::other("too much"));
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::testing::event;

    fn engine() -> Engine {
        let mut values = Values::default();
        values.secrets.insert("key".into(), "a/b&c".into());
        Engine::new(&values)
    }

    fn body() -> Value {
        let body = r#"{"type":"t","data":{"s":"a\"b/é&?#@ ","n":1.5,"i":7,"b":true,"z":null,
            "o":{"y":1,"x":[1,"2"]}}}"#;
        context(&event(body), None, "h", 2)
    }

    fn render(place: Place, source: &str) -> Result<String, String> {
        let mut engine = engine();
        let template = engine.compile("field", source, place)?;
        engine.render(&template, &body())
    }

    #[test]
    fn values_in_a_url_cannot_leave_their_place() {
        let url = |source| render(Place::Url, source).unwrap();
        assert_eq!(
            url("https://h/{{ data.s }}?x={{ data.i }}"),
            "https://h/a%22b%2F%C3%A9%26%3F%23%40%20?x=7"
        );
        assert_eq!(url("https://{{ '../@evil/' }}h/"), "https://..%2F%40evil%2Fh/");
        assert_eq!(url("{{ 'https://h/a?b' | safe }}"), "https://h/a?b");
        assert_eq!(url("https://h/{{ secret('key') }}"), "https://h/a/b&c");
    }

    #[test]
    fn a_missing_value_is_an_error_in_urls_and_commands_and_empty_elsewhere() {
        for place in [Place::Url, Place::Argument] {
            let error = render(place, "x\n{{ data.none }}").unwrap_err();
            assert!(error.starts_with("template field: line 2, column 4: undefined"), "{error}");
        }
        assert_eq!(render(Place::Text, "[{{ data.none.deeper }}]").unwrap(), "[]");
        assert_eq!(render(Place::Url, "{{ data.none | default('d') }}").unwrap(), "d");
    }

    #[test]
    fn a_lone_expression_keeps_its_type() {
        let value = |source: &str| {
            let mut engine = engine();
            let template = engine.compile_value("f", source).unwrap();
            engine.render_value(&template, &body()).unwrap()
        };
        assert_eq!(value("{{ data.i }}"), 7);
        assert_eq!(value("{{- data.n -}}"), 1.5);
        assert_eq!(value("{{ data.b }}"), true);
        assert_eq!(value("{{ data.z }}"), serde_json::Value::Null);
        assert_eq!(value("{{ data.none }}"), serde_json::Value::Null);
        assert_eq!(value("{{ data.o }}").to_string(), r#"{"y":1,"x":[1,"2"]}"#);
        assert_eq!(value("{{ data.s }}"), "a\"b/é&?#@ ");
        assert_eq!(value("{{ data.i }} "), "7 ");
        assert_eq!(value("{{ data.i }}{{ data.b }}"), "7true");
        assert_eq!(value("[{{ data.z }}] {{ data.o.x }}"), r#"[] [1,"2"]"#);
        assert_eq!(value("n {{ attempt }} {{ handler }} {{ event.type }}"), "n 2 h t");
    }

    #[test]
    fn loops_without_end_run_out_of_steps() {
        let endless =
            "{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}";
        let error = render(Place::Text, endless).unwrap_err();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn output_has_a_limit() {
        let error = render(Place::Text, "{{ 'x' * 9000000 }}").unwrap_err();
        assert!(error.contains("limits.rendered_max"), "{error}");
    }

    #[test]
    fn files_cannot_be_read() {
        for source in ["{% include '/etc/passwd' %}", "{% extends '/etc/passwd' %}"] {
            assert!(render(Place::Text, source).unwrap_err().contains("not found"), "{source}");
        }
    }

    #[test]
    fn text_without_templates_is_kept_as_it_is() {
        assert_eq!(render(Place::Text, "a { b }\n").unwrap(), "a { b }\n");
        assert_eq!(render(Place::Text, "{{ data.i }}\n").unwrap(), "7\n");
    }
}
