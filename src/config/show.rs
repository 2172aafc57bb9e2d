//! The configuration as `bluehook check` prints it, without secrets.

use figment::value::Value;

use super::layers::{Merged, join};
use super::load::{Loaded, ValueSource};

/// Words in a header's or variable's name that mark its value as a secret.
const SECRET_NAMES: [&str; 7] =
    ["authorization", "cookie", "api-key", "apikey", "token", "secret", "password"];

/// Every leaf of the merged tree, in the order of the keys.
pub fn values(merged: &Merged) -> Vec<ValueSource> {
    let mut out = Vec::new();
    for (key, value) in &merged.root {
        leaves(merged, key, value, &mut out);
    }
    out
}

fn leaves(merged: &Merged, path: &str, value: &Value, out: &mut Vec<ValueSource>) {
    match value {
        Value::Dict(_, dict) if !dict.is_empty() => {
            for (key, value) in dict {
                leaves(merged, &join(path, key), value, out);
            }
        }
        Value::Array(_, items) if items.iter().any(|item| item.as_dict().is_some()) => {
            for (i, item) in items.iter().enumerate() {
                leaves(merged, &format!("{path}[{i}]"), item, out);
            }
        }
        _ => out.push(ValueSource {
            key: path.to_owned(),
            value: if is_secret(path, value) { "***".to_owned() } else { toml_of(value) },
            source: merged.source(value.tag(), path),
        }),
    }
}

/// A header or variable of a handler whose name says that it is secret and whose value is literal;
/// and credentials within a URL.
fn is_secret(path: &str, value: &Value) -> bool {
    let Some(text) = value.as_str().filter(|text| !text.contains("{{")) else { return false };
    let named = |table: &str| {
        path.split_once(table).is_some_and(|(_, name)| {
            let name = name.to_ascii_lowercase().replace('_', "-");
            SECRET_NAMES.iter().any(|word| name.contains(word))
        })
    };
    let in_url = || {
        let authority = text.split_once("://").map(|(_, rest)| rest.split('/').next());
        path.ends_with(".url") && authority.flatten().is_some_and(|a| a.contains('@'))
    };
    named(".http.headers.") || named(".exec.env.") || in_url()
}

fn toml_of(value: &Value) -> String {
    let empty = || "\"\"".to_owned();
    toml::Value::try_from(value).map_or_else(|_| empty(), |value| value.to_string())
}

/// Lines `key = value    # source`.
#[must_use]
pub fn render(loaded: &Loaded) -> String {
    let left: Vec<_> = loaded.values.iter().map(|v| format!("{} = {}", v.key, v.value)).collect();
    // One long line doesn't push all comments to the far right.
    let width = left.iter().map(|line| line.chars().count()).filter(|&n| n <= 60).max();
    let width = width.unwrap_or(0);
    let line =
        |(left, value): (&String, &ValueSource)| format!("{left:width$}    # {}\n", value.source);
    left.iter().zip(&loaded.values).map(line).collect()
}
