//! Verbs that need no appliance.

use std::path::Path;
use std::sync::Arc;

use clap::CommandFactory as _;

use super::args::{Cli, Common};
use super::{Failure, print, print_json, settings};
use crate::store::disk::Disk;
use crate::store::disk::RealDisk;
use crate::store::{OpenError, check};

pub fn check(common: &Common) -> Result<(), Failure> {
    let loaded = settings::load(common)?;
    if common.json {
        for v in &loaded.values {
            print_json(&serde_json::json!({"key": v.key, "value": v.value, "source": v.source}))?;
        }
        return Ok(());
    }
    print(&crate::config::render(&loaded))
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

pub fn store_check(common: &Common, data_dir: &Path) -> Result<(), Failure> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let report = check::check(&disk, data_dir).map_err(|e| match e {
        OpenError::Locked { .. } => Failure::failed(format!(
            "cannot check {}: bluehook runs on it; stop it first",
            data_dir.display()
        )),
        OpenError::Other(line) => Failure::failed(line),
    })?;
    if common.json {
        let damage = |d: &crate::store::log::Damage| {
            serde_json::json!({
                "segment": check::segment_file(d.segment), "offset": d.offset, "bytes": d.bytes,
                "firstSeq": d.first, "lastSeq": d.last,
            })
        };
        print_json(&serde_json::json!({
            "records": report.records,
            "events": report.events,
            "damage": report.damage.iter().map(damage).collect::<Vec<_>>(),
            "unknown": report.unknown.iter().map(|(seq, why)| {
                serde_json::json!({"seq": seq, "reason": why})
            }).collect::<Vec<_>>(),
        }))?;
    } else {
        print(&format!("{} records, {} events\n", report.records, report.events))?;
        for d in &report.damage {
            let (file, first, last) = (check::segment_file(d.segment), d.first, d.last);
            print(&format!("damaged: records {first} to {last}, {file} at byte {}\n", d.offset))?;
        }
        for (seq, why) in &report.unknown {
            print(&format!("not understood: record {seq}: {}\n", super::render::escape(why)))?;
        }
    }
    if report.is_sound() {
        return Ok(());
    }
    Err(Failure::failed("the store is damaged; run `bluehook store repair` on it"))
}
