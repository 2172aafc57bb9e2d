//! The tables of the configuration but `[[handler]]`: keys, types, ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::load::{LoadOptions, ValueSource};
use super::read::{Node, Table};
use super::secrets::Places;
use super::{
    Admin, Config, Intake, Limits, Listen, Log, LogFormat, Retention, Source, followups, handlers,
    notify, tls,
};
use crate::delivery::HandlerName;
use crate::schedule::Schedule;
use crate::signature::{Policy, Scheme, Secret};

/// What a `[[source]]` has that doesn't say otherwise; `path` follows from its name.
pub const SOURCE_DEFAULTS: &str = r#"
events = ["*"]
canonical_json = true
signature = { header = "x-bluereplies-signature", scheme = "hex", tolerance = "5m" }
ping_types = ["ping", "webhook.ping", "webhook.test", "webhook.verification"]
"#;

const YEAR: Duration = Duration::from_secs(366 * 86_400);
const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub struct Read {
    pub config: Config,
    pub handler_origins: BTreeMap<HandlerName, String>,
    pub secret_origins: BTreeMap<String, Vec<String>>,
    /// Values that no layer holds because they follow from others.
    pub implied: Vec<ValueSource>,
}

/// Reads everything, so that all problems are reported, and only then gives up on what is missing.
pub fn read(top: &Node<'_>, options: &LoadOptions) -> Option<Read> {
    let places = Places { options };
    let mut implied = Vec::new();
    let root = top.table()?;
    let data_dir = root.get("data_dir").and_then(|node| node.path());
    let intake = section(&root, "intake", intake);
    let mut secret_origins = BTreeMap::new();
    let sources = root
        .get("source")
        .and_then(|node| sources(&node, &places, &mut secret_origins, &mut implied));
    let schedule = section(&root, "schedule", schedule);
    let limits = section(&root, "limits", limits);
    let retention = section(&root, "retention", retention);
    let admin = section(&root, "admin", |table| admin(table, data_dir.as_deref(), &mut implied));
    let log = section(&root, "log", log);
    let mut secrets: BTreeMap<String, Secret> = BTreeMap::new();
    for (name, node) in root.get("secrets").iter().flat_map(Node::entries) {
        if let Some(found) = places.read(&node, true) {
            secrets.insert(name.to_owned(), found.secret);
        }
    }
    let (handlers, handler_origins) = handlers::read(root.get("handler"));
    let followups = followups::read(root.get("followup"));
    let notify = section(&root, "notify", notify::read);
    root.finish();

    let config = Config {
        data_dir: data_dir?,
        intake: intake?,
        sources: sources?,
        schedule: schedule?,
        limits: limits?,
        retention: retention?,
        admin: admin?,
        log: log?,
        handlers,
        followups,
        notify,
        secrets,
    };
    Some(Read { config, handler_origins, secret_origins, implied })
}

fn section<T>(
    root: &Table<'_>,
    key: &'static str,
    read: impl FnOnce(&Table<'_>) -> Option<T>,
) -> Option<T> {
    let table = root.get(key)?.table()?;
    let value = read(&table);
    table.finish();
    value
}

fn intake(table: &Table<'_>) -> Option<Intake> {
    let listen = table.get("listen").and_then(|node| {
        let items = node.list_or_one(true)?;
        if items.is_empty() {
            node.problem("names no address; write for example [\"127.0.0.1:3000\"]");
        }
        Some(items.iter().filter_map(listen).collect())
    });
    let body_max = table.get("body_max").and_then(|n| n.bytes(1 << 10..=16 << 20));
    let read_timeout = table.get("read_timeout").and_then(|n| n.duration(ms(100)..=secs(60)));
    let ack_deadline = table.get("ack_deadline").and_then(|n| n.duration(ms(100)..=ms(4900)));
    let connections_max = table.get("connections_max").and_then(|n| n.integer(1..=65_536));
    let connections_per_address =
        table.get("connections_per_address").and_then(|n| n.integer(1..=65_536));
    let requests_per_connection =
        table.get("requests_per_connection").and_then(|n| n.integer(1..=1_000_000_000));
    let head_max = table.get("head_max").and_then(|n| n.bytes(8 << 10..=256 << 10));
    let headers_max = table.get("headers_max").and_then(|n| n.integer(16..=1_000));
    let bodies_max = table.get("bodies_max").and_then(|n| n.bytes(1 << 20..=1 << 30));
    let failed_signatures = table.get("failed_signatures").and_then(|n| n.rate());
    let trusted_proxies = table
        .get("trusted_proxies")
        .and_then(|node| Some(node.list_or_one(false)?.iter().filter_map(network).collect()));
    let tls = match table.get("tls") {
        Some(node) => Some(tls::read(&node)?),
        None => None,
    };
    Some(Intake {
        listen: listen?,
        body_max: body_max?,
        read_timeout: read_timeout?,
        ack_deadline: ack_deadline?,
        connections_max: usize::try_from(connections_max?).ok()?,
        connections_per_address: usize::try_from(connections_per_address?).ok()?,
        requests_per_connection: u32::try_from(requests_per_connection?).ok()?,
        head_max: usize::try_from(head_max?).ok()?,
        headers_max: usize::try_from(headers_max?).ok()?,
        bodies_max: bodies_max?,
        failed_signatures: failed_signatures?,
        trusted_proxies: trusted_proxies?,
        tls,
    })
}

fn listen(node: &Node<'_>) -> Option<Listen> {
    let text = node.string()?;
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() {
            node.problem("names no socket; write for example \"unix:/run/bluehook/intake.sock\"");
            return None;
        }
        return Some(Listen::Unix(node.cx.resolve(path)));
    }
    address(node, &text).map(Listen::Tcp)
}

fn address(node: &Node<'_>, text: &str) -> Option<SocketAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        node.problem(format!(
            "{text:?} is not an address; write IP:PORT such as \"127.0.0.1:3000\" or \"[::1]:3000\""
        ));
    }
    address
}

/// A network; bits of the host may be set, and a lone address is a network of one.
fn network(node: &Node<'_>) -> Option<ipnet::IpNet> {
    let text = node.string()?;
    let alone = || text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from);
    let net = text.parse::<ipnet::IpNet>().or_else(|_| alone()).ok();
    if net.is_none() {
        node.problem(format!("{text:?} is not a network; write for example \"10.0.0.0/8\""));
    }
    net
}

fn sources(
    node: &Node<'_>,
    places: &Places<'_>,
    origins: &mut BTreeMap<String, Vec<String>>,
    implied: &mut Vec<ValueSource>,
) -> Option<Vec<Source>> {
    let items = node.list()?;
    if items.is_empty() {
        node.problem("at least one [[source]] is needed; remove the key for the default one");
    }
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    let mut sources = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(table) = item.table() else { continue };
        let name = table.get("name").and_then(|node| {
            let name = name(&node)?;
            if !names.insert(name.clone()) {
                node.problem(format!("another source is named {name:?}; names are unique"));
            }
            Some(name)
        });
        if table.get("name").is_none() {
            item.problem("a source needs a name");
        }
        let path = table.get("path").and_then(|node| {
            let path = node.string()?;
            let plain = |c: char| c.is_ascii_graphic() && !"?#%{}\"<>\\^`|".contains(c);
            if !path.starts_with('/') || !path.chars().all(plain) {
                node.problem("a path starts with '/' and is plain ASCII, such as \"/webhooks/x\"");
            }
            if !paths.insert(path.clone()) {
                node.problem(format!("another source has the path {path:?}; paths are unique"));
            }
            Some(path)
        });
        let mut found = Vec::new();
        match table.get("secrets") {
            Some(secrets) => {
                let items = secrets.list().unwrap_or_default();
                found.extend(items.iter().filter_map(|secret| places.read(secret, false)));
            }
            // The default source needs no configuration but this variable.
            None if i == 0 => {
                if let Some(secret) = places.env("WEBHOOK_SECRET").filter(|s| !s.is_empty()) {
                    let origin = "env WEBHOOK_SECRET".to_owned();
                    implied.push(ValueSource {
                        key: format!("{}.secrets", item.path),
                        value: "***".to_owned(),
                        source: origin.clone(),
                    });
                    let secret = Secret::new(secret.as_bytes().to_vec());
                    found.push(super::secrets::Found { secret, origin });
                }
            }
            None => {}
        }
        let canonical_json = table.get("canonical_json").and_then(|node| node.bool());
        let signature = section(&table, "signature", signature);
        let events = table.get("events").and_then(|node| node.strings());
        let ping_types = table.get("ping_types").and_then(|node| node.strings());
        table.finish();

        let (Some(name), Some(path), Some((header, scheme)), Some(canonical_json)) =
            (name, path, signature, canonical_json)
        else {
            continue;
        };
        let from = found.iter().map(|found| found.origin.clone()).collect();
        origins.insert(name.clone(), from);
        let secrets = found.into_iter().map(|found| found.secret).collect();
        sources.push(Source {
            name,
            path,
            signature: Policy { header, scheme, secrets, canonical_json },
            events: events.unwrap_or_default(),
            ping_types: ping_types.unwrap_or_default(),
        });
    }
    Some(sources)
}

/// A source's name keeps to what a handler's may be: it stands in paths, variables and labels.
fn name(node: &Node<'_>) -> Option<String> {
    let name = node.string()?;
    if HandlerName::new(&name).is_err() {
        node.problem(format!(
            "a source's name is 1 to 64 letters, digits, '_' or '-', not {name:?}"
        ));
        return None;
    }
    Some(name)
}

fn signature(table: &Table<'_>) -> Option<(String, Scheme)> {
    let header = table.get("header").and_then(|node| {
        let header = node.string()?;
        if !handlers::is_header_name(&header) {
            node.problem(format!("{header:?} is not a header's name"));
            return None;
        }
        Some(header.to_ascii_lowercase())
    });
    let tolerance =
        table.get("tolerance").and_then(|node| node.duration(secs(1)..=secs(86_400)))?;
    let scheme = table.get("scheme").and_then(|node| {
        node.choice(&[
            ("hex", Scheme::Hex),
            ("timestamped", Scheme::Timestamped { tolerance }),
            ("standard-webhooks", Scheme::StandardWebhooks { tolerance }),
        ])
    });
    Some((header?, scheme?))
}

/// `[schedule]`, and a handler's own `schedule`.
pub fn schedule(table: &Table<'_>) -> Option<Schedule> {
    let delays = table.get("delays").and_then(|node| {
        let items = node.list()?;
        if !(1..=100).contains(&items.len()) {
            node.problem(format!("a schedule has 1 to 100 delays, not {}", items.len()));
            return None;
        }
        let delays: Vec<_> =
            items.iter().filter_map(|n| n.duration(Duration::ZERO..=secs(30 * 86_400))).collect();
        (delays.len() == items.len()).then_some(delays)
    });
    let jitter = table.get("jitter").and_then(|node| node.float(0.0..=0.5));
    Schedule::new(delays?, jitter?).map_err(|error| table.node.problem(error)).ok()
}

fn limits(table: &Table<'_>) -> Option<Limits> {
    let attempts = table.get("attempts").and_then(|node| node.integer(1..=65_536));
    let files_reserved = table.get("files_reserved").and_then(|node| node.integer(16..=4_096));
    let rendered_max = table.get("rendered_max").and_then(|node| node.bytes(1 << 10..=64 << 20));
    let kept = table.get("kept").and_then(|node| node.bytes(1 << 10..=256 << 10));
    Some(Limits {
        attempts: usize::try_from(attempts?).ok()?,
        files_reserved: files_reserved?,
        rendered_max: usize::try_from(rendered_max?).ok()?,
        kept: usize::try_from(kept?).ok()?,
    })
}

fn retention(table: &Table<'_>) -> Option<Retention> {
    let range = secs(60)..=10 * YEAR;
    let delivered = table.get("delivered").and_then(|node| node.duration_or_forever(range.clone()));
    let dead = table.get("dead").and_then(|node| node.duration_or_forever(range));
    let dedup = table.get("dedup").and_then(|node| node.duration(secs(3600)..=10 * YEAR));
    let disk_max = table.get("disk_max").and_then(|node| node.bytes(32 << 20..=u64::MAX));
    Some(Retention { delivered: delivered?, dead: dead?, dedup: dedup?, disk_max: disk_max? })
}

fn admin(
    table: &Table<'_>,
    data_dir: Option<&Path>,
    implied: &mut Vec<ValueSource>,
) -> Option<Admin> {
    let socket = match table.get("socket") {
        Some(node) => node.path(),
        None => data_dir.map(|dir| {
            let socket = dir.join("admin.sock");
            implied.push(ValueSource {
                key: "admin.socket".to_owned(),
                value: format!("{:?}", socket.display().to_string()),
                source: "default".to_owned(),
            });
            socket
        }),
    };
    let listen = table.get("listen").and_then(|node| {
        let text = node.any_string()?;
        if text.is_empty() {
            return Some(None);
        }
        let address = address(&node, &text)?;
        if !address.ip().is_loopback() {
            node.problem(format!(
                "{address} is not a loopback address; use 127.0.0.1 or [::1] and reach it through \
                 an SSH tunnel or a proxy"
            ));
            return None;
        }
        Some(Some(address))
    });
    Some(Admin { socket: socket?, listen: listen? })
}

fn log(table: &Table<'_>) -> Option<Log> {
    let level = table.get("level").and_then(|node| {
        node.choice(&[
            ("error", tracing::Level::ERROR),
            ("warn", tracing::Level::WARN),
            ("info", tracing::Level::INFO),
            ("debug", tracing::Level::DEBUG),
            ("trace", tracing::Level::TRACE),
        ])
    });
    let format = table.get("format").and_then(|node| {
        node.choice(&[
            ("auto", LogFormat::Auto),
            ("text", LogFormat::Text),
            ("json", LogFormat::Json),
        ])
    });
    Some(Log { level: level?, format: format? })
}
