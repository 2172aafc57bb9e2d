//! `[[handler]]`: keys, types, ranges. Whether templates compile is the handler room's to say.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::read::{Node, Table};
use super::{
    Action, Circuit, Exec, FileSink, ForwardSign, Handler, Http, HttpBody, Order, Start, sections,
    units,
};
use crate::delivery::HandlerName;

/// Of one attempt.
pub const TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// What a `[[handler]]` has that doesn't say otherwise; `schedule` is the general one.
pub const DEFAULTS: &str = r#"
events = ["*"]
order = "none"
start = "now"
concurrency = 4
timeout = "30s"
circuit = { failures = 10, probe = "30s", probe_max = "10m" }
"#;

/// The same for what its kind has.
pub const ACTION_DEFAULTS: &str = r#"
http = { method = "POST", allow_private = false, permanent = [] }
file = { keep = 5 }
"#;

/// Handlers, and where each is written. Those with problems are left out.
pub fn read(node: Option<Node<'_>>) -> (Vec<Handler>, BTreeMap<HandlerName, String>) {
    let mut handlers = Vec::new();
    let mut origins: BTreeMap<HandlerName, String> = BTreeMap::new();
    for item in node.and_then(|node| node.list()).unwrap_or_default() {
        let Some(table) = item.table() else { continue };
        let name = table.get("name").and_then(|node| {
            let text = node.string()?;
            let name = HandlerName::new(&text).map_err(|error| node.problem(error)).ok()?;
            let origin = item.cx.merged.place(item.value.tag(), &item.path);
            if let Some(other) = origins.get(&name) {
                node.problem(format!("another handler is named \"{name}\", at {other}"));
                return None;
            }
            origins.insert(name.clone(), format!("{origin}: {}", item.path));
            Some(name)
        });
        if table.get("name").is_none() {
            item.problem("a handler needs a name");
        }
        let handler = handler(&table, name);
        table.finish();
        handlers.extend(handler);
    }
    (handlers, origins)
}

fn handler(table: &Table<'_>, name: Option<HandlerName>) -> Option<Handler> {
    let events = table.get("events").and_then(|node| {
        let events = node.strings()?;
        if events.is_empty() {
            node.problem("matches nothing; write [\"*\"] for every type");
        }
        Some(events)
    });
    let when_node = table.get("when");
    let when = when_node.and_then(|node| node.string());
    let order = table.get("order").and_then(|node| {
        node.choice(&[
            ("none", Order::None),
            ("conversation", Order::Conversation),
            ("log", Order::Log),
        ])
    });
    let start = table
        .get("start")
        .and_then(|node| node.choice(&[("now", Start::Now), ("beginning", Start::Beginning)]));
    let concurrency = table.get("concurrency").and_then(|node| node.integer(1..=1024));
    let rate = table.get("rate").and_then(|node| node.rate());
    let timeout = table.get("timeout").and_then(|node| node.duration(TIMEOUTS));
    let schedule = table.get("schedule").and_then(|node| {
        let table = node.table()?;
        let schedule = sections::schedule(&table);
        table.finish();
        schedule
    });
    let circuit = table.get("circuit").and_then(|node| within(&node, circuit));
    let action = action(table);
    Some(Handler {
        name: name?,
        events: events?,
        when,
        order: order?,
        start: start?,
        concurrency: usize::try_from(concurrency?).ok()?,
        rate,
        timeout: timeout?,
        schedule: schedule?,
        circuit: circuit?,
        action: action?,
    })
}

fn circuit(table: &Table<'_>) -> Option<Circuit> {
    let failures = table.get("failures").and_then(|node| node.integer(0..=1_000_000));
    let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
    let first = table.get("probe").and_then(|node| node.duration(range.clone()))?;
    let longest_node = table.get("probe_max")?;
    let longest = longest_node.duration(range)?;
    if longest < first {
        longest_node.problem(format!(
            "probe_max is the longest gap between two probes and cannot be shorter than probe, {}",
            units::show_duration(first)
        ));
        return None;
    }
    Some(Circuit { failures: u32::try_from(failures?).ok()?, first, longest })
}

pub fn action(table: &Table<'_>) -> Option<Action> {
    let (http_node, exec_node, file_node) =
        (table.get("http"), table.get("exec"), table.get("file"));
    let given: Vec<_> = [("http", &http_node), ("exec", &exec_node), ("file", &file_node)]
        .into_iter()
        .filter_map(|(kind, node)| node.is_some().then_some(kind))
        .collect();
    let http = http_node.and_then(|node| within(&node, http)).map(Action::Http);
    let exec = exec_node.and_then(|node| within(&node, exec)).map(Action::Exec);
    let file = file_node.and_then(|node| within(&node, file)).map(Action::File);
    match given.as_slice() {
        [_] => http.or(exec).or(file),
        [] => {
            table.node.problem("a handler has exactly one of http, exec and file; add one");
            None
        }
        several => {
            table.node.problem(format!(
                "a handler has exactly one of http, exec and file, not {}; make each a handler of \
                 its own",
                several.join(" and ")
            ));
            None
        }
    }
}

fn within<T>(node: &Node<'_>, read: impl FnOnce(&Table<'_>) -> Option<T>) -> Option<T> {
    let table = node.table()?;
    let value = read(&table);
    table.finish();
    value
}

fn http(table: &Table<'_>) -> Option<Http> {
    let url = required(table, "url").and_then(|node| {
        let url = node.string()?;
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        // A template may yield the scheme; what it yields is checked when it is called.
        let fits =
            rest.map_or(url.starts_with("{{"), |rest| !rest.is_empty() && !rest.starts_with('/'));
        if !fits {
            node.problem("a URL starts with http:// or https:// and a host");
        }
        fits.then_some(url)
    });
    let method = table.get("method").and_then(|node| {
        let method = node.string()?;
        let fits = method.len() <= 20 && method.chars().all(|c| c.is_ascii_uppercase());
        if !fits {
            node.problem(format!("{method:?} is not a method; write for example \"POST\""));
        }
        fits.then_some(method)
    });
    let headers = table.get("headers").map(|node| pairs(&node)).unwrap_or_default();
    for (name, node) in table.get("headers").iter().flat_map(Node::entries) {
        if !is_header_name(name) {
            node.problem("not a header's name");
        }
    }
    let (json, form, text) = (table.get("json"), table.get("form"), table.get("body"));
    let given = [&json, &form, &text].into_iter().filter(|node| node.is_some()).count();
    if given > 1 {
        table.node.problem("at most one of json, form and body; without, the raw event is sent");
    }
    let body = match (json, form, text) {
        (Some(json), ..) => match serde_json::to_value(json.value) {
            Ok(value) => Some(HttpBody::Json(value)),
            Err(error) => {
                json.problem(format!("can't be written as JSON: {error}"));
                None
            }
        },
        (_, Some(form), _) => Some(HttpBody::Form(pairs(&form))),
        (.., Some(text)) => text.any_string().map(HttpBody::Text),
        (None, None, None) => Some(HttpBody::Raw),
    };
    let sign = table.get("sign").and_then(|node| {
        node.choice(&[
            ("bluereplies", ForwardSign::BlueReplies),
            ("standard-webhooks", ForwardSign::StandardWebhooks),
        ])
    });
    let permanent = table.get("permanent").and_then(|node| {
        let statuses = node.list()?;
        let status = |node: &Node<'_>| u16::try_from(node.integer(300..=599)?).ok();
        Some(statuses.iter().filter_map(status).collect())
    });
    let allow_private = table.get("allow_private").and_then(|node| node.bool());
    let ca = table.get("ca").and_then(|node| {
        let path = node.path()?;
        if let Err(error) = std::fs::File::open(&path) {
            node.problem(format!("{} can't be read: {error}; correct the path", path.display()));
        }
        Some(path)
    });
    Some(Http {
        url: url?,
        method: method?,
        headers,
        body: body?,
        sign,
        permanent: permanent?,
        allow_private: allow_private?,
        delivery_headers: true,
        ca,
    })
}

fn exec(table: &Table<'_>) -> Option<Exec> {
    let command = required(table, "command").and_then(|node| {
        let Some(items) = node.value.as_array() else {
            node.problem(
                "expected a list such as [\"/usr/bin/program\", \"argument\"]; there is no shell",
            );
            return None;
        };
        if items.is_empty() {
            node.problem("names no program");
            return None;
        }
        let items = node.list()?;
        let program = items.first().and_then(Node::string);
        let arguments: Vec<_> = items.iter().skip(1).map(Node::any_string).collect();
        std::iter::once(program).chain(arguments).collect::<Option<Vec<_>>>()
    });
    let env = table.get("env").map(|node| pairs(&node)).unwrap_or_default();
    let cwd = table.get("cwd").and_then(|node| {
        let path = node.path()?;
        if !path.is_dir() {
            node.problem(format!("{} is not a folder; create it", path.display()));
        }
        Some(path)
    });
    Some(Exec { command: command?, env, cwd })
}

fn file(table: &Table<'_>) -> Option<FileSink> {
    let path = required(table, "path").and_then(|node| node.path());
    let rotate = table.get("rotate").and_then(|node| node.bytes(1 << 10..=u64::MAX));
    let keep = table.get("keep").and_then(|node| node.integer(1..=1000));
    Some(FileSink { path: path?, rotate, keep: u32::try_from(keep?).ok()? })
}

fn required<'a>(table: &Table<'a>, key: &'static str) -> Option<Node<'a>> {
    let node = table.get(key);
    if node.is_none() {
        table.node.problem(format!("needs {key}"));
    }
    node
}

fn pairs(node: &Node<'_>) -> Vec<(String, String)> {
    let pair = |(key, value): (&str, Node<'_>)| Some((key.to_owned(), value.any_string()?));
    node.entries().into_iter().filter_map(pair).collect()
}

/// RFC 9110's token.
pub fn is_header_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(fits)
}
