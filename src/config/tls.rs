//! `[intake.tls]`: certificate files, or an authority that gives one.

use std::path::PathBuf;

use super::read::{Node, Table};
use super::{Acme, Tls};

/// Let's Encrypt, as its documentation gives it.
const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

pub fn read(node: &Node<'_>) -> Option<Tls> {
    let table = node.table()?;
    let (cert, key, acme) = (table.get("cert"), table.get("key"), table.get("acme"));
    table.finish();
    match (cert, key, acme) {
        (Some(cert), Some(key), None) => {
            let (cert, key) = (readable(&cert), readable(&key));
            Some(Tls::Files { cert: cert?, key: key? })
        }
        (None, None, Some(node)) => {
            let table = node.table()?;
            let acme = acme_table(&table);
            table.finish();
            acme.map(Tls::Acme)
        }
        _ => {
            node.problem(
                "needs either cert and key, the two files, or acme = { domains = [\"hooks.example.com\"] }; \
                 remove [intake.tls] for plain HTTP behind a proxy",
            );
            None
        }
    }
}

fn readable(node: &Node<'_>) -> Option<PathBuf> {
    let path = node.path()?;
    if let Err(error) = std::fs::File::open(&path) {
        node.problem(format!(
            "cannot read {}: {error}; name a PEM file that bluehook's user may read",
            path.display()
        ));
        return None;
    }
    Some(path)
}

fn acme_table(table: &Table<'_>) -> Option<Acme> {
    let Some(domains) = table.get("domains") else {
        table.node.problem("needs domains, such as [\"hooks.example.com\"]");
        return None;
    };
    let names = domains.list_or_one(true)?;
    if names.is_empty() {
        domains.problem("names no domain; write for example [\"hooks.example.com\"]");
    }
    let contact = match table.get("contact") {
        Some(node) => node.list_or_one(true)?.iter().filter_map(contact).collect(),
        None => Vec::new(),
    };
    let directory = match table.get("directory") {
        Some(node) => {
            let url = node.string()?;
            if !url.starts_with("https://") {
                node.problem("is the https:// URL of an ACME directory");
            }
            url
        }
        None => DIRECTORY.to_owned(),
    };
    let ca = match table.get("ca") {
        Some(node) => Some(readable(&node)?),
        None => None,
    };
    Some(Acme { domains: names.iter().filter_map(domain).collect(), contact, directory, ca })
}

fn domain(node: &Node<'_>) -> Option<String> {
    let name = node.string()?;
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let numbers = |name: &str| name.parse::<std::net::IpAddr>().is_ok();
    if !name.contains('.') || !name.split('.').all(label) || numbers(&name) {
        node.problem(format!(
            "{name:?} is no domain name that an authority can check; write for example \
             \"hooks.example.com\" (no wildcard, no address, no port)"
        ));
        return None;
    }
    Some(name.to_ascii_lowercase())
}

/// An address with or without `mailto:`.
fn contact(node: &Node<'_>) -> Option<String> {
    let text = node.string()?;
    let address = text.strip_prefix("mailto:").unwrap_or(&text);
    if !address.contains('@') || address.contains(char::is_whitespace) {
        node.problem(format!("{text:?} is no e-mail address; write \"you@example.com\""));
        return None;
    }
    Some(format!("mailto:{address}"))
}
