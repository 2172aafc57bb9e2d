//! The command line: what a person or a script asks of the appliance.

pub mod args;
mod client;
mod commands;
mod local;
mod messages;
mod progress;
mod render;
mod settings;
mod show;
mod stopped;
mod tail;
mod time;
mod trigger;

use std::ffi::OsString;
use std::io::{self, Write};

use clap::Parser as _;
use clap::error::ErrorKind;

use args::{Cli, Command};

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const NOT_FOUND: u8 = 3;
pub const UNREACHABLE: u8 = 4;

/// Why a verb did not do what it was asked, as exit code and one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    /// Empty where nothing is to be said; otherwise a line, or one for each problem.
    pub message: String,
}

impl Failure {
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure { code: FAILED, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { code: USAGE, message: message.into() }
    }

    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure { code: NOT_FOUND, message: message.into() }
    }

    pub fn unreachable(message: impl Into<String>) -> Failure {
        Failure { code: UNREACHABLE, message: message.into() }
    }

    /// The reader of our output has gone: that is its right.
    fn writing(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure { code: 0, message: String::new() },
            _ => Failure::failed(format!("cannot write the output: {error}")),
        }
    }
}

/// What clap says over several lines, as all our errors are said.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        let part = part.strip_prefix("error: ").unwrap_or(part);
        let between = if line.is_empty() || line.ends_with(':') { " " } else { "; " };
        if !part.starts_with("For more information") {
            line.push_str(between);
            line.push_str(part);
        }
    }
    format!("{}; --help says more", line.trim_start())
}

/// Does what the arguments ask; returns the exit code.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            match error.kind() {
                ErrorKind::DisplayHelp
                | ErrorKind::DisplayVersion
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => drop(error.print()),
                _ => warn(&one_line(&error.render().to_string())),
            }
            return u8::try_from(error.exit_code()).unwrap_or(USAGE);
        }
    };
    let done = match cli.command {
        Command::Serve { virtual_clock } => {
            let load = settings::options(&cli.common);
            return crate::server::serve(&crate::server::ServeOptions { load, virtual_clock });
        }
        Command::Emulate(chosen) => {
            return crate::emulator::emulate(&chosen.options(cli.common.quiet));
        }
        command => dispatch(&cli.common, command),
    };
    let Err(failure) = done else { return 0 };
    failure.message.lines().for_each(warn);
    failure.code
}

/// One line to standard error.
fn warn(line: &str) {
    // Nobody to tell where that is closed.
    let _ = writeln!(io::stderr(), "bluehook: {}", render::escape(line));
}

fn dispatch(common: &args::Common, command: Command) -> Result<(), Failure> {
    match command {
        Command::Check => local::check(common),
        Command::Store(args::StoreCommand::Repair { data_dir }) => {
            local::store_repair(common, data_dir.as_deref())
        }
        Command::Secret(args::SecretCommand::Generate) => local::secret(),
        Command::Completions { shell } => local::completions(shell),
        Command::Man { dir } => local::man(dir.as_deref()),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| {
                Failure::failed(format!("cannot start the runtime: {e}; try again"))
            })?;
            runtime.block_on(async {
                match command {
                    Command::Store(args::StoreCommand::Check { data_dir }) => {
                        local::store_check(common, data_dir.as_deref()).await
                    }
                    command => commands::run(common, command).await,
                }
            })
        }
    }
}

/// Writes to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::writing(&e))
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).unwrap_or_default();
    print(&(text + "\n"))
}
