//! The configuration as the command line needs it.

use std::path::{Path, PathBuf};

use super::Failure;
use super::args::Common;
use crate::config::{Flag, LoadOptions, Loaded};

/// What loading looks at: flags, environment, files.
#[must_use]
pub fn options(common: &Common) -> LoadOptions {
    let lossy = |(k, v): (std::ffi::OsString, std::ffi::OsString)| {
        (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned())
    };
    let socket = common.socket.as_ref().map(|path| Flag {
        name: "--socket".to_owned(),
        key: "admin.socket".to_owned(),
        value: path.display().to_string(),
    });
    LoadOptions {
        file: common.config.clone(),
        env: std::env::vars_os().map(lossy).collect(),
        credentials_dir: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        cwd: std::env::current_dir().unwrap_or_default(),
        flags: socket.into_iter().collect(),
    }
}

/// # Errors
/// Every problem, one a line.
pub fn load(common: &Common) -> Result<Loaded, Failure> {
    crate::server::load(&options(common)).map_err(|problems| Failure::usage(problems.join("\n")))
}

/// The socket of the appliance that runs on a directory: the configured one, if that is its, else the default.
pub fn socket_of(common: &Common, data_dir: &Path) -> Result<PathBuf, Failure> {
    let by_default = data_dir.join("admin.sock");
    if by_default.exists() {
        return Ok(by_default);
    }
    socket(common)
}

pub fn socket(common: &Common) -> Result<PathBuf, Failure> {
    match &common.socket {
        Some(path) => Ok(path.clone()),
        None => Ok(load(common)?.config.admin.socket),
    }
}
