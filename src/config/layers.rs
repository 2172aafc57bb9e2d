//! The layers that make up the configuration: figment merges them and remembers where each value
//! came from; the line numbers are ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::load::{LoadOptions, Problem};

/// The documented defaults are the lowest layer.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

const ENV_PREFIX: &str = "BLUEHOOK_";

/// `BLUEHOOK_` variables that are no configuration: read by the command line, or set for `exec`
/// handlers (from where `bluehook` may well be called).
const ENV_OTHER: [&str; 10] = [
    "BLUEHOOK_CONFIG",
    "BLUEHOOK_SEED",
    "BLUEHOOK_EVENT_ID",
    "BLUEHOOK_EVENT_TYPE",
    "BLUEHOOK_SOURCE",
    "BLUEHOOK_ATTEMPT",
    "BLUEHOOK_HANDLER",
    "BLUEHOOK_RECEIVED_AT",
    "BLUEHOOK_MESSAGE_ID",
    "BLUEHOOK_SOCKET",
];

struct Layer {
    name: String,
    dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

/// All layers merged, with the way back from a value to where it was written.
pub struct Merged {
    figment: Figment,
    pub root: Dict,
    pub files: Vec<PathBuf>,
    /// (layer name, key path) -> line.
    lines: BTreeMap<(String, String), usize>,
}

impl Merged {
    /// `default`, `file /etc/bluehook/bluehook.toml`, `env BLUEHOOK_DATA_DIR` or `flag --socket`.
    pub fn source(&self, tag: Tag, path: &str) -> String {
        match self.figment.get_metadata(tag).map(|m| m.name.as_ref()) {
            Some("env") => format!("env {}", env_name(path)),
            Some(name) => name.to_owned(),
            None => "default".to_owned(),
        }
    }

    pub fn is_env(&self, tag: Tag) -> bool {
        self.figment.get_metadata(tag).is_some_and(|m| m.name == "env")
    }

    /// Like [`Merged::source`], as `file:line` where the line is known.
    pub fn place(&self, tag: Tag, path: &str) -> String {
        let source = self.source(tag, path);
        let Some(file) = source.strip_prefix("file ") else { return source };
        // A value within an inline table that TOML gives no span has that of what encloses it.
        let mut at = path;
        loop {
            if let Some(line) = self.lines.get(&(source.clone(), at.to_owned())) {
                return format!("{file}:{line}");
            }
            match at.rfind(['.', '[']) {
                Some(cut) => at = &at[..cut],
                None => return file.to_owned(),
            }
        }
    }
}

/// The variable of a key path; an index within a list given as one variable is left out.
fn env_name(path: &str) -> String {
    let whole = path.split('[').next().unwrap_or(path);
    format!("{ENV_PREFIX}{}", whole.to_uppercase().replace('.', "__"))
}

/// Reads and merges every layer. Files that cannot be read or parsed are problems and left out.
pub fn merge(options: &LoadOptions, problems: &mut Vec<Problem>) -> Merged {
    let mut lines = BTreeMap::new();
    let mut files = Vec::new();
    let mut figment = Figment::new();
    match parse(DEFAULTS) {
        Ok(dict) => figment = figment.merge(Layer { name: "default".to_owned(), dict }),
        Err((line, message)) => {
            problems.push(Problem::at(format!("built-in defaults:{line}"), "", message));
        }
    }

    if let Some(file) = main_file(options) {
        let mut before = Before::default();
        if let Some((dict, text)) = read(&file, problems) {
            collect_lines(&file, &text, &before, &mut lines);
            before.add(&dict);
            figment = figment.merge(Layer { name: file_layer(&file), dict });
            files.push(file.clone());
        }
        for extra in handler_files(&file, problems) {
            let Some((dict, text)) = read(&extra, problems) else { continue };
            collect_lines(&extra, &text, &before, &mut lines);
            let fits = |key: &String| ["handler", "followup", "secrets"].contains(&key.as_str());
            for key in dict.keys().filter(|key| !fits(key)) {
                let line = lines.get(&(file_layer(&extra), key.clone()));
                let place = line.map_or(extra.display().to_string(), |line| {
                    format!("{}:{line}", extra.display())
                });
                let message = "a file in handlers.d may hold only [[handler]], [[followup]] and \
                               [secrets]; move this to the main file";
                problems.push(Problem::at(place, key, message));
            }
            before.add(&dict);
            let dict = dict.into_iter().filter(|(key, _)| fits(key)).collect();
            figment = figment.admerge(Layer { name: file_layer(&extra), dict });
            files.push(extra);
        }
    }

    figment = figment.merge(Layer { name: "env".to_owned(), dict: env_dict(&options.env) });
    for flag in &options.flags {
        let mut dict = Dict::new();
        insert(&mut dict, &flag.key, Value::from(flag.value.clone()));
        figment = figment.merge(Layer { name: format!("flag {}", flag.name), dict });
    }

    let root = match figment.data() {
        Ok(mut profiles) => profiles.remove(&Profile::Default).unwrap_or_default(),
        Err(error) => {
            problems.push(Problem::at("configuration".to_owned(), "", error.to_string()));
            Dict::new()
        }
    };
    Merged { figment, root, files, lines }
}

fn main_file(options: &LoadOptions) -> Option<PathBuf> {
    if let Some(file) = &options.file {
        // Shown as given; opened from the working directory, which tests inject.
        return Some(options.cwd.join(file));
    }
    [options.cwd.join("bluehook.toml"), PathBuf::from("/etc/bluehook/bluehook.toml")]
        .into_iter()
        .find(|file| file.exists())
}

fn file_layer(file: &Path) -> String {
    format!("file {}", file.display())
}

fn read(file: &Path, problems: &mut Vec<Problem>) -> Option<(Dict, String)> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("can't be read: {error}; check the path and its permissions");
            problems.push(Problem::at(file.display().to_string(), "", message));
            return None;
        }
    };
    match parse(&text) {
        Ok(dict) => Some((dict, text)),
        Err((line, message)) => {
            problems.push(Problem::at(format!("{}:{line}", file.display()), "", message));
            None
        }
    }
}

pub fn parse(text: &str) -> Result<Dict, (usize, String)> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let what = error.message().trim().lines().collect::<Vec<_>>().join(", ");
        (line, format!("not valid TOML: {what}"))
    })?;
    match Value::serialize(table) {
        Ok(Value::Dict(_, dict)) => Ok(dict),
        Ok(_) => Ok(Dict::new()),
        Err(error) => Err((1, error.to_string())),
    }
}

/// `handlers.d/*.toml` beside the main file, by name.
fn handler_files(file: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let dir = file.with_file_name("handlers.d");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            let message = format!("can't be read: {error}; check its permissions");
            problems.push(Problem::at(dir.display().to_string(), "", message));
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        // As a shell's *.toml: an editor's lock is no configuration.
        .filter(|path| path.file_name().is_none_or(|name| name.as_encoded_bytes()[0] != b'.'))
        .collect();
    files.sort();
    files
}

/// How many items each list that further files add to has so far.
#[derive(Default)]
struct Before(BTreeMap<&'static str, usize>);

impl Before {
    fn add(&mut self, dict: &Dict) {
        for key in ["handler", "followup"] {
            let items = dict.get(key).and_then(Value::as_array).map_or(0, <[Value]>::len);
            *self.0.entry(key).or_default() += items;
        }
    }

    fn of(&self, key: &str) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }
}

fn env_dict(env: &[(String, String)]) -> Dict {
    let mut dict = Dict::new();
    for (name, value) in env {
        if ENV_OTHER.contains(&name.as_str()) {
            continue;
        }
        let Some(key) = name.strip_prefix(ENV_PREFIX) else { continue };
        insert(&mut dict, &key.to_lowercase().replace("__", "."), env_value(value));
    }
    dict
}

/// A list or table is TOML; anything else is text, which the reader of a number or a boolean
/// parses, so that a text that happens to look like a number stays a text.
fn env_value(text: &str) -> Value {
    if text.starts_with(['[', '{', '"']) {
        let parsed = parse(&format!("v = {text}")).ok().and_then(|mut dict| dict.remove("v"));
        if let Some(value) = parsed {
            return value;
        }
    }
    Value::from(text)
}

fn insert(dict: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            dict.insert(key.to_owned(), value);
        }
        Some((head, rest)) => {
            let inner = dict.entry(head.to_owned()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// A TOML value reduced to where its parts stand.
enum Spans {
    Leaf,
    Table(Vec<(Spanned<String>, Spanned<Spans>)>),
    List(Vec<Spanned<Spans>>),
}

impl<'de> Deserialize<'de> for Spans {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Spans, D::Error> {
        struct Build;
        impl<'de> Visitor<'de> for Build {
            type Value = Spans;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a TOML value")
            }
            fn visit_bool<E>(self, _: bool) -> Result<Spans, E> {
                Ok(Spans::Leaf)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Spans, E> {
                Ok(Spans::Leaf)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Spans, E> {
                Ok(Spans::Leaf)
            }
            fn visit_str<E>(self, _: &str) -> Result<Spans, E> {
                Ok(Spans::Leaf)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Spans, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Spans::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Spans, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Spans::Table(entries))
            }
        }
        deserializer.deserialize_any(Build)
    }
}

/// `before`: what earlier files hold; the items of this one are counted on from there.
fn collect_lines(
    file: &Path,
    text: &str,
    before: &Before,
    lines: &mut BTreeMap<(String, String), usize>,
) {
    // Line numbers are a courtesy: without them a message names the file alone.
    let Ok(spans) = toml::from_str::<Spans>(text) else { return };
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let line_at = |offset: usize| ends.partition_point(|&end| end < offset) + 1;
    let layer = file_layer(file);
    let mut todo = vec![(String::new(), &spans)];
    while let Some((path, spans)) = todo.pop() {
        match spans {
            Spans::Leaf => {}
            Spans::Table(entries) => {
                for (key, value) in entries {
                    let path = join(&path, key.get_ref());
                    let line = line_at(key.span().start);
                    lines.insert((layer.clone(), path.clone()), line);
                    todo.push((path, value.get_ref()));
                }
            }
            Spans::List(items) => {
                let first = before.of(&path);
                for (i, item) in items.iter().enumerate() {
                    let path = format!("{path}[{}]", first + i);
                    lines.insert((layer.clone(), path.clone()), line_at(item.span().start));
                    todo.push((path, item.get_ref()));
                }
            }
        }
    }
}

pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
}
