//! What was told, in a file beside the log: after a restart nothing is told twice.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::watch::{Subject, Told};
use crate::clock::Timestamp;

const FILE: &str = "notify.json";

#[derive(Serialize, Deserialize)]
struct ToldJson {
    count: u64,
    /// Milliseconds of schedule time, which no jump of the wall clock moves.
    last: Option<i64>,
}

/// Nothing where there is no such file, or none that can be read: then something may be told once more.
pub fn read(data_dir: &Path) -> BTreeMap<Subject, Told> {
    let path = data_dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            tracing::warn!(%error, "cannot read {}; a notice may come twice", path.display());
            return BTreeMap::new();
        }
    };
    let told: BTreeMap<String, ToldJson> = serde_json::from_slice(&text).unwrap_or_default();
    let read = |(subject, told): (String, ToldJson)| {
        let last = told.last.map(Timestamp);
        Some((subject.parse().ok()?, Told { count: told.count, last }))
    };
    told.into_iter().filter_map(read).collect()
}

/// # Errors
/// It could not be written; the old one stays.
pub fn write(data_dir: &Path, told: &BTreeMap<Subject, Told>) -> io::Result<()> {
    let json = |(subject, told): (&Subject, &Told)| {
        (subject.to_string(), ToldJson { count: told.count, last: told.last.map(|last| last.0) })
    };
    let told: BTreeMap<String, ToldJson> = told.iter().map(json).collect();
    crate::files::replace(&data_dir.join(FILE), &serde_json::to_vec_pretty(&told)?)
}
