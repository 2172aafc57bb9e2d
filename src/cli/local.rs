//! Verbs that need no appliance.

use std::path::Path;

use clap::CommandFactory as _;

use super::args::{Cli, Common};
use super::{Failure, print, print_json, settings};

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
