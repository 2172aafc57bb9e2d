//! Typed access to the merged tree. Every reader reports what is wrong and goes on, so that all
//! problems of a configuration show at once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::{Dict, Num, Value};

use super::Rate;
use super::layers::{Merged, join};
use super::load::Problem;
use super::units;

/// What every reader needs: the way back to the places, and where to report.
pub struct Cx<'a> {
    pub merged: &'a Merged,
    pub cwd: PathBuf,
    pub problems: RefCell<Vec<Problem>>,
    pub warnings: RefCell<Vec<String>>,
}

impl Cx<'_> {
    /// A relative path counts from the working directory.
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.cwd.join(path.strip_prefix("./").unwrap_or(path))
    }
}

#[derive(Clone)]
pub struct Node<'a> {
    pub cx: &'a Cx<'a>,
    pub path: String,
    pub value: &'a Value,
}

impl<'a> Node<'a> {
    pub fn problem(&self, message: impl Into<String>) {
        let place = self.cx.merged.place(self.value.tag(), &self.path);
        self.cx.problems.borrow_mut().push(Problem::at(place, &self.path, message));
    }

    pub fn warn(&self, message: impl Display) {
        let place = self.cx.merged.place(self.value.tag(), &self.path);
        self.cx.warnings.borrow_mut().push(format!("{place}: {}: {message}", self.path));
    }

    /// Reports that `expected` is missing here. Of text only the kind is said: it may be a secret.
    fn wrong_type(&self, expected: &str) {
        let found = match self.value {
            Value::String(..) | Value::Char(..) => "a text",
            Value::Bool(..) => "a boolean",
            Value::Num(..) => "a number",
            Value::Dict(..) => "a table",
            Value::Array(..) => "a list",
            Value::Empty(..) => "nothing",
        };
        self.problem(format!("expected {expected}, found {found}"));
    }

    fn text(&self, expected: &str) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.wrong_type(expected);
        }
        text
    }

    /// Environment variables are text: what a number or boolean is, its reader decides.
    fn env_text(&self) -> Option<&'a str> {
        self.value.as_str().filter(|_| self.cx.merged.is_env(self.value.tag()))
    }

    /// A text that is not empty.
    pub fn string(&self) -> Option<String> {
        let text = self.text("a text")?;
        if text.is_empty() {
            self.problem("must not be empty");
            return None;
        }
        Some(text.to_owned())
    }

    /// A text that may be empty.
    pub fn any_string(&self) -> Option<String> {
        self.text("a text").map(str::to_owned)
    }

    pub fn path(&self) -> Option<PathBuf> {
        self.string().map(|path| self.cx.resolve(&path))
    }

    pub fn bool(&self) -> Option<bool> {
        let env = self.env_text().and_then(|text| text.parse().ok());
        let found = self.value.to_bool().or(env);
        if found.is_none() {
            self.wrong_type("true or false");
        }
        found
    }

    pub fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let number = match self.value {
            Value::Num(_, n) => whole(*n),
            _ => self.env_text().and_then(|text| text.parse().ok()),
        };
        let Some(number) = number else {
            self.wrong_type(&expected);
            return None;
        };
        let fits = u64::try_from(number).ok().filter(|n| range.contains(n));
        if fits.is_none() {
            self.problem(format!("expected {expected}, not {number}"));
        }
        fits
    }

    pub fn float(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let expected = format!("a number from {:?} to {:?}", range.start(), range.end());
        let number = match self.value {
            Value::Num(_, n) => {
                n.to_f64().or_else(|| whole(*n).and_then(|n| i32::try_from(n).ok()).map(f64::from))
            }
            _ => self.env_text().and_then(|text| text.parse().ok()),
        };
        let Some(number) = number else {
            self.wrong_type(&expected);
            return None;
        };
        if !range.contains(&number) {
            self.problem(format!("expected {expected}, not {number}"));
            return None;
        }
        Some(number)
    }

    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text("a duration such as \"30s\"")?;
        let Some(d) = units::duration(text) else {
            self.problem(format!(
                "{text:?} is not a duration; write a number and a unit, such as \"30s\", \"10m\", \
                 \"24h\" or \"30d\""
            ));
            return None;
        };
        if !range.contains(&d) {
            let show = units::show_duration;
            let (low, high) = (show(*range.start()), show(*range.end()));
            self.problem(format!("must be from {low} to {high}, not {}", show(d)));
            return None;
        }
        Some(d)
    }

    /// `Some(None)` is `"forever"`.
    pub fn duration_or_forever(&self, range: RangeInclusive<Duration>) -> Option<Option<Duration>> {
        if self.value.as_str() == Some("forever") {
            return Some(None);
        }
        self.duration(range).map(Some)
    }

    pub fn rate(&self) -> Option<Rate> {
        let text = self.string()?;
        let rate = units::rate(&text);
        if rate.is_none() {
            self.problem(format!(
                "{text:?} is not a rate; write \"10/s\", \"5/m\" or \"100/h\", with a count from 1 \
                 to 1000000"
            ));
        }
        rate
    }

    /// A size with its unit, or a whole number of bytes.
    pub fn bytes(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let size = match self.value {
            Value::Num(_, n) => whole(*n).and_then(|n| u64::try_from(n).ok()),
            _ => units::bytes(self.text("a size such as \"1 MiB\"")?),
        };
        let Some(size) = size else {
            self.problem("not a size; write a number and a unit, such as \"512 KiB\" or \"2 GiB\"");
            return None;
        };
        if !range.contains(&size) {
            let show = units::show_bytes;
            let (low, high) = (show(*range.start()), show(*range.end()));
            let bounds = if *range.end() == u64::MAX {
                format!("must be at least {low}")
            } else {
                format!("must be from {low} to {high}")
            };
            self.problem(format!("{bounds}, not {}", show(size)));
            return None;
        }
        Some(size)
    }

    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        let expected = format!("one of {}", names.join(", "));
        let text = self.text(&expected)?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let known = choices.iter().map(|(name, _)| *name);
            let hint =
                nearest(text, known).map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
            self.problem(format!("expected {expected}, not {text:?}{hint}"));
        }
        found
    }

    pub fn list(&self) -> Option<Vec<Node<'a>>> {
        let Some(items) = self.value.as_array() else {
            self.wrong_type("a list");
            return None;
        };
        let item = |(i, value)| Node { cx: self.cx, path: format!("{}[{i}]", self.path), value };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A list, or a single text that stands for a list of one where `single` or from a variable.
    pub fn list_or_one(&self, single: bool) -> Option<Vec<Node<'a>>> {
        if self.value.as_str().is_some() && (single || self.env_text().is_some()) {
            return Some(vec![self.clone()]);
        }
        self.list()
    }

    /// A list of texts; what is no text is reported and left out.
    pub fn strings(&self) -> Option<Vec<String>> {
        Some(self.list_or_one(false)?.iter().filter_map(Node::string).collect())
    }

    pub fn dict(&self) -> Option<&'a Dict> {
        let dict = self.value.as_dict();
        if dict.is_none() {
            self.wrong_type("a table");
        }
        dict
    }

    /// The entries of a table whose keys the user chooses.
    pub fn entries(&self) -> Vec<(&'a str, Node<'a>)> {
        let entry = |(key, value): (&'a String, &'a Value)| {
            (key.as_str(), Node { cx: self.cx, path: join(&self.path, key), value })
        };
        self.dict().into_iter().flatten().map(entry).collect()
    }

    pub fn table(&self) -> Option<Table<'a>> {
        let dict = self.dict()?;
        Some(Table { node: self.clone(), dict, known: RefCell::default() })
    }
}

/// A table with fixed keys: those asked for are known, and [`Table::finish`] reports the others.
pub struct Table<'a> {
    pub node: Node<'a>,
    dict: &'a Dict,
    known: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Table<'a> {
    pub fn get(&self, key: &'static str) -> Option<Node<'a>> {
        self.known.borrow_mut().insert(key);
        let value = self.dict.get(key)?;
        Some(Node { cx: self.node.cx, path: join(&self.node.path, key), value })
    }

    pub fn finish(self) {
        let known = self.known.into_inner();
        for (key, value) in self.dict {
            if known.contains(key.as_str()) {
                continue;
            }
            let path = join(&self.node.path, key);
            let hint = match nearest(key, known.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!(
                    "the keys here are {}",
                    known.iter().copied().collect::<Vec<_>>().join(", ")
                ),
            };
            // The place of a table is its first leaf: figment tags a merged table by its first layer.
            let node = Node { cx: self.node.cx, path, value: first_leaf(value) };
            node.problem(format!("unknown key; {hint}"));
        }
    }
}

fn whole(n: Num) -> Option<i128> {
    n.to_i128().or_else(|| n.to_u128().and_then(|n| i128::try_from(n).ok()))
}

fn first_leaf(mut value: &Value) -> &Value {
    while let Value::Dict(_, dict) = value {
        match dict.values().next() {
            Some(inner) => value = inner,
            None => break,
        }
    }
    value
}

fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|k| (strsim::jaro_winkler(word, k), k))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}
