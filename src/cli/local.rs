//! Verbs that need no appliance.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::CommandFactory as _;

use super::args::{Cli, Common};
use super::render::escape;
use super::{Failure, print, print_json, settings, warn};
use crate::store::check::CheckReport;
use crate::store::disk::{Disk, RealDisk};
use crate::store::log::Damage;
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

pub fn store_check(common: &Common, data_dir: Option<&Path>) -> Result<(), Failure> {
    let data_dir = data_dir_of(common, data_dir)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let report = check::check(&disk, &data_dir).map_err(|e| refused("check", &data_dir, e))?;
    if common.json {
        print_json(&report_json(&report))?;
    } else {
        print(&format!(
            "{} records, {} events\n{}",
            report.records,
            report.events,
            losses(&report)
        ))?;
    }
    if report.is_sound() {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "the store in {} is damaged; run `bluehook store repair --data-dir {}`",
        data_dir.display(),
        data_dir.display()
    )))
}

pub fn store_repair(common: &Common, data_dir: Option<&Path>) -> Result<(), Failure> {
    let data_dir = data_dir_of(common, data_dir)?;
    let done = repair::repair(&data_dir).map_err(|e| refused("repair", &data_dir, e))?;
    if common.json {
        return print_json(&serde_json::json!({
            "records": done.records,
            "orphans": done.orphans,
            "kept": done.kept.as_ref().map(|path| path.display().to_string()),
            "found": report_json(&done.found),
        }));
    }
    let Some(kept) = &done.kept else {
        return print(&format!("nothing is damaged: {} records, nothing changed\n", done.records));
    };
    let mut text = losses(&done.found);
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

fn report_json(report: &CheckReport) -> serde_json::Value {
    let damage = |d: &Damage| {
        serde_json::json!({
            "segment": check::segment_file(d.segment), "offset": d.offset, "bytes": d.bytes,
            "firstSeq": d.first, "lastSeq": d.last,
        })
    };
    serde_json::json!({
        "records": report.records,
        "events": report.events,
        "damage": report.damage.iter().map(damage).collect::<Vec<_>>(),
        "unknown": report.unknown.iter().map(|(seq, why)| {
            serde_json::json!({"seq": seq, "reason": why})
        }).collect::<Vec<_>>(),
    })
}

/// One line for each place in the log that is lost.
fn losses(report: &CheckReport) -> String {
    let mut text = String::new();
    for d in &report.damage {
        let file = check::segment_file(d.segment);
        let records = match d.first == d.last {
            true => format!("record {}", d.first),
            false => format!("records {} to {}", d.first, d.last),
        };
        text.push_str(&format!("lost: {records}, in {file} at byte {}\n", d.offset));
    }
    for (seq, why) in &report.unknown {
        text.push_str(&format!("not understood: record {seq}: {}\n", escape(why)));
    }
    text
}
