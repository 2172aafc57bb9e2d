//! Layers in, validated [`Config`] out, with the source of each value, or every problem at once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use figment::value::{Dict, Value};

use super::layers;
use super::read::{Cx, Node};
use super::{Config, handlers, notify, sections, show};
use crate::delivery::HandlerName;

/// A command-line flag that sets a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// `--socket`
    pub name: String,
    /// `admin.socket`
    pub key: String,
    pub value: String,
}

/// All that loading looks at, besides the files.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// `--config`. `None`: `./bluehook.toml`, then `/etc/bluehook/bluehook.toml`, then defaults.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// `$CREDENTIALS_DIRECTORY`, where systemd puts credentials.
    pub credentials_dir: Option<PathBuf>,
    /// Relative paths count from here.
    pub cwd: PathBuf,
    pub flags: Vec<Flag>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `/etc/bluehook/bluehook.toml:12`, `env BLUEHOOK_DATA_DIR`, …
    pub place: String,
    /// `intake.body_max`; empty where the whole file is meant.
    pub key: String,
    pub message: String,
}

impl Problem {
    pub fn at(place: String, key: &str, message: impl Into<String>) -> Problem {
        Problem { place, key: key.to_owned(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.place, self.message),
            key => write!(f, "{}: {key}: {}", self.place, self.message),
        }
    }
}

/// One value as `bluehook check` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueSource {
    pub key: String,
    /// As TOML; `***` for a secret.
    pub value: String,
    /// `default`, `file /etc/bluehook/bluehook.toml`, `env BLUEHOOK_…`, `flag --socket`.
    pub source: String,
}

#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub values: Vec<ValueSource>,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
    pub warnings: Vec<String>,
    /// Where each handler is written and its key: `/etc/bluehook/bluehook.toml:40: handler[1]`.
    pub handler_origins: BTreeMap<HandlerName, String>,
    /// Source name -> where its secrets came from: `env WEBHOOK_SECRET`, `file /etc/…`.
    pub secret_origins: BTreeMap<String, Vec<String>>,
}

impl Config {
    /// # Errors
    /// Everything that is wrong, one problem a line.
    pub fn load(options: &LoadOptions) -> Result<Loaded, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut merged = layers::merge(options, &mut problems);
        fill_defaults(&mut merged.root, &mut problems);

        let root = Value::from(merged.root.clone());
        let cx = Cx {
            merged: &merged,
            cwd: options.cwd.clone(),
            problems: RefCell::new(problems),
            warnings: RefCell::default(),
        };
        let top = Node { cx: &cx, path: String::new(), value: &root };
        let read = sections::read(&top, options);
        let mut values = show::values(&merged);

        let mut problems = cx.problems.into_inner();
        let warnings = cx.warnings.into_inner();
        match read {
            Some(read) if problems.is_empty() => {
                values.extend(read.implied);
                Ok(Loaded {
                    config: read.config,
                    values,
                    files: merged.files,
                    warnings,
                    handler_origins: read.handler_origins,
                    secret_origins: read.secret_origins,
                })
            }
            _ => {
                if problems.is_empty() {
                    let message = "a value is missing that has no default";
                    problems.push(Problem::at("configuration".to_owned(), "", message));
                }
                Err(problems)
            }
        }
    }
}

/// Writes the defaults of lists of tables into each of their tables, as the layers can't. Values
/// without a tag count as defaults.
fn fill_defaults(root: &mut Dict, problems: &mut Vec<Problem>) {
    let mut defaults = |text| {
        layers::parse(text).unwrap_or_else(|(line, message)| {
            problems.push(Problem::at(format!("built-in defaults:{line}"), "", message));
            Dict::new()
        })
    };
    let source = defaults(sections::SOURCE_DEFAULTS);
    let mut handler = defaults(handlers::DEFAULTS);
    let actions = defaults(handlers::ACTION_DEFAULTS);
    let mut notify = defaults(notify::DEFAULTS);
    // A handler without a schedule of its own has the general one, with its sources.
    if let Some(schedule) = root.get("schedule") {
        handler.insert("schedule".to_owned(), schedule.clone());
        notify.insert("schedule".to_owned(), schedule.clone());
    }
    for table in tables(root, "source") {
        fill(table, &source);
        if let Some(name) = table.get("name").and_then(Value::as_str) {
            let path = format!("/webhooks/{name}");
            table.entry("path".to_owned()).or_insert_with(|| Value::from(path));
        }
    }
    for table in tables(root, "handler") {
        fill(table, &handler);
        fill_actions(table, &actions);
    }
    if let Some(Value::Dict(_, table)) = root.get_mut("notify") {
        fill(table, &notify);
        fill_actions(table, &actions);
    }
}

fn fill_actions(table: &mut Dict, actions: &Dict) {
    for (kind, defaults) in actions {
        if let (Some(Value::Dict(_, action)), Some(defaults)) =
            (table.get_mut(kind), defaults.as_dict())
        {
            fill(action, defaults);
        }
    }
}

fn tables<'a>(root: &'a mut Dict, key: &str) -> impl Iterator<Item = &'a mut Dict> {
    let items = match root.get_mut(key) {
        Some(Value::Array(_, items)) => items.as_mut_slice(),
        _ => &mut [],
    };
    items.iter_mut().filter_map(|item| match item {
        Value::Dict(_, dict) => Some(dict),
        _ => None,
    })
}

fn fill(table: &mut Dict, defaults: &Dict) {
    for (key, default) in defaults {
        match (table.get_mut(key), default) {
            (None, _) => {
                table.insert(key.clone(), default.clone());
            }
            (Some(Value::Dict(_, inner)), Value::Dict(_, default)) => fill(inner, default),
            (Some(_), _) => {}
        }
    }
}
