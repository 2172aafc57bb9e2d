//! The configuration as the command line needs it.

use std::path::PathBuf;

use super::Failure;
use super::args::Common;
use crate::config::{Config, LoadOptions, Loaded};

/// # Errors
/// Every problem, one a line.
pub fn load(common: &Common) -> Result<Loaded, Failure> {
    let lossy = |(k, v): (std::ffi::OsString, std::ffi::OsString)| {
        (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned())
    };
    let options = LoadOptions {
        file: common.config.clone(),
        env: std::env::vars_os().map(lossy).collect(),
        credentials_dir: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        cwd: std::env::current_dir().unwrap_or_default(),
        flags: Vec::new(),
    };
    Config::load(&options).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        Failure::usage(lines.join("\n"))
    })
}

pub fn socket(common: &Common) -> Result<PathBuf, Failure> {
    match &common.socket {
        Some(path) => Ok(path.clone()),
        None => Ok(load(common)?.config.admin.socket),
    }
}
