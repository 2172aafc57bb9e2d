//! Verbs that work without an appliance.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::CommandFactory as _;

use super::args::{Cli, Common};
use super::client::Client;
use super::render::escape;
use super::show::lost;
use super::{Failure, print, print_json, settings, warn};
use crate::admin::wire::CheckJson;
use crate::store::disk::{Disk, RealDisk};
use crate::store::{OpenError, check, repair};

pub fn check(common: &Common) -> Result<(), Failure> {
    let loaded = settings::load(common)?;
    if !common.quiet {
        loaded.warnings.iter().for_each(|warning| warn(&format!("warning: {warning}")));
    }
    if common.json {
        for v in &loaded.values {
            print_json(&serde_json::json!({"key": v.key, "value": v.value, "source": v.source}))?;
        }
        return Ok(());
    }
    let text = crate::config::render(&loaded);
    print(&text.lines().map(|line| escape(line) + "\n").collect::<String>())
}

pub fn secret() -> Result<(), Failure> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::failed(format!("the system gives no random bytes: {e}")))?;
    print(&(hex::encode(bytes) + "\n"))
}

pub fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bluehook", &mut out);
    print(&String::from_utf8_lossy(&out))
}

pub fn man(dir: Option<&Path>) -> Result<(), Failure> {
    if let Some(dir) = dir {
        return clap_mangen::generate_to(Cli::command(), dir).map_err(|e| {
            Failure::failed(format!(
                "cannot write man pages to {}: {e}; make the folder",
                dir.display()
            ))
        });
    }
    let mut out = Vec::new();
    let page = clap_mangen::Man::new(Cli::command());
    page.render(&mut out)
        .map_err(|e| Failure::failed(format!("cannot write the man page: {e}")))?;
    print(&String::from_utf8_lossy(&out))
}

/// Offline; where an appliance runs on the directory, that one does it.
pub async fn store_check(common: &Common, data_dir: Option<&Path>) -> Result<(), Failure> {
    let data_dir = data_dir_of(common, data_dir)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (report, next) = match check::check(&disk, &data_dir) {
        Ok(report) => {
            let repair = format!("run `bluehook store repair --data-dir {}`", data_dir.display());
            (CheckJson::from(&report), repair)
        }
        Err(OpenError::Locked { pid }) => {
            let socket = match &common.socket {
                Some(socket) => socket.clone(),
                None => settings::socket_of(common, &data_dir)?,
            };
            let client = Client { socket, stopped: None };
            if !client.is_answered().await {
                return Err(refused("check", &data_dir, OpenError::Locked { pid }));
            }
            let report: CheckJson = client.post("/api/v1/store/check", &()).await?;
            (report, "stop it, then run `bluehook store repair`".to_owned())
        }
        Err(error) => return Err(refused("check", &data_dir, error)),
    };
    if common.json {
        print_json(&report)?;
    } else {
        let (records, events) = (report.records, report.events);
        print(&format!("{records} records, {events} events\n{}", losses(&report)))?;
    }
    if report.is_sound() {
        return Ok(());
    }
    Err(Failure::failed(format!("the store in {} is damaged; {next}", data_dir.display())))
}

pub fn store_repair(common: &Common, data_dir: Option<&Path>) -> Result<(), Failure> {
    let data_dir = data_dir_of(common, data_dir)?;
    let done = repair::repair(&data_dir).map_err(|e| refused("repair", &data_dir, e))?;
    if common.json {
        return print_json(&serde_json::json!({
            "records": done.records,
            "orphans": done.orphans,
            "reordered": done.reordered,
            "kept": done.kept.as_ref().map(|path| path.display().to_string()),
            "found": CheckJson::from(&done.found),
        }));
    }
    let mut text = match done.reordered {
        true => "log segments had changed places: they are back in order\n".to_owned(),
        false => String::new(),
    };
    let Some(kept) = &done.kept else {
        let changed = if done.reordered { "" } else { ", nothing changed" };
        text.push_str(&format!("no record is damaged: {} records{changed}\n", done.records));
        return print(&text);
    };
    text.push_str(&losses(&CheckJson::from(&done.found)));
    text.push_str(&format!("saved: {} records", done.records));
    if done.orphans > 0 {
        text.push_str(&format!("; left out: {} about events that are lost", done.orphans));
    }
    text.push_str(&format!("\nthe damaged store is kept in {}\n", escape(&kept.to_string_lossy())));
    print(&text)
}

/// That of the configuration where none is given.
fn data_dir_of(common: &Common, given: Option<&Path>) -> Result<PathBuf, Failure> {
    match given {
        Some(dir) => Ok(dir.to_owned()),
        None => Ok(settings::load(common)?.config.data_dir),
    }
}

fn refused(what: &str, data_dir: &Path, error: OpenError) -> Failure {
    match error {
        OpenError::Locked { pid } => Failure::failed(format!(
            "cannot {what} {}: bluehook{} runs on it; stop it first (while it runs, `bluehook status` \
             shows the damage it has met)",
            data_dir.display(),
            pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
        )),
        OpenError::Other(line) => Failure::failed(line),
    }
}

/// One line for each place in the log that is lost.
fn losses(report: &CheckJson) -> String {
    let mut text = String::new();
    for d in &report.damage {
        text.push_str(&lost(d));
    }
    for unknown in &report.unknown {
        let (seq, why) = (unknown.seq, escape(&unknown.reason));
        text.push_str(&format!("not understood: record {seq}: {why}\n"));
    }
    text
}
