//! The validated configuration. Everything below `config` has been checked; nothing above re-checks.

mod files;
mod followups;
mod handlers;
mod layers;
mod load;
mod notify;
mod read;
mod restart;
pub mod secrets;
mod sections;
mod show;
#[cfg(test)]
mod tests;
mod tls;
mod units;

pub use load::{Flag, LoadOptions, Loaded, Problem, ValueSource};
pub use show::render;
pub use units::show_duration;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::delivery::HandlerName;
use crate::schedule::Schedule;
use crate::signature::{Policy, Secret};

#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub intake: Intake,
    /// At least one; the first is the default.
    pub sources: Vec<Source>,
    pub schedule: Schedule,
    pub limits: Limits,
    pub retention: Retention,
    pub admin: Admin,
    pub log: Log,
    pub handlers: Vec<Handler>,
    pub followups: Vec<FollowUp>,
    /// `None`: nobody is told.
    pub notify: Option<Notify>,
    /// `[secrets]`, for `secret('name')` in templates.
    pub secrets: BTreeMap<String, Secret>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Listen {
    /// For people.
    #[must_use]
    pub fn list(addresses: &[Listen]) -> String {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Over everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Attempts at once, of all handlers together.
    pub attempts: usize,
    /// Open files that are left to log, index and admin API.
    pub files_reserved: u64,
    /// What one template may come to, in bytes.
    pub rendered_max: usize,
    /// What is kept of a response, of a command's output, of a request's account, in bytes each.
    pub kept: usize,
}

impl Default for Limits {
    /// As `config/default.toml` says.
    fn default() -> Limits {
        Limits { attempts: 256, files_reserved: 128, rendered_max: 8 << 20, kept: 16 << 10 }
    }
}

#[derive(Clone, Debug)]
pub struct Intake {
    pub listen: Vec<Listen>,
    pub body_max: u64,
    pub read_timeout: Duration,
    pub ack_deadline: Duration,
    pub connections_max: usize,
    /// Trusted proxies have no such limit.
    pub connections_per_address: usize,
    pub requests_per_connection: u32,
    /// Of a request, in bytes.
    pub head_max: usize,
    pub headers_max: usize,
    /// Of all requests at one time.
    pub bodies_max: u64,
    /// Wrong signatures of one address that are answered 401.
    pub failed_signatures: Rate,
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// `None`: plain HTTP, behind a proxy.
    pub tls: Option<Tls>,
}

/// Where the certificate comes from that TCP connections are answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// PEM files, read again when they change.
    Files {
        cert: PathBuf,
        key: PathBuf,
    },
    Acme(Acme),
}

/// A certificate that bluehook asks an authority for (RFC 8555) and renews.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// At least one.
    pub domains: Vec<String>,
    /// `mailto:` addresses.
    pub contact: Vec<String>,
    /// The authority's directory.
    pub directory: String,
    /// Further authorities to trust when speaking to the directory.
    pub ca: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    /// `/webhooks/bluereplies`
    pub path: String,
    /// Secrets, header, scheme, `canonical_json`. No secret at all is allowed (intake answers 503).
    pub signature: Policy,
    /// Globs; events of other types are acknowledged and not stored.
    pub events: Vec<String>,
    pub ping_types: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// `None`: forever.
    pub delivered: Option<Duration>,
    pub dead: Option<Duration>,
    /// How long the duplicate check remembers an event whose payload is gone.
    pub dedup: Duration,
    pub disk_max: u64,
}

#[derive(Clone, Debug)]
pub struct Admin {
    pub socket: PathBuf,
    /// `None`: off.
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub level: tracing::Level,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    None,
    Conversation,
    Log,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Now,
    Beginning,
}

/// At most `count` attempts per `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

/// When a handler that fails time after time is left alone, and how often it is tried meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// In a row; 0: never.
    pub failures: u32,
    /// From its opening to the first probe. The gap doubles with each probe that fails.
    pub first: Duration,
    /// The longest gap.
    pub longest: Duration,
}

impl Circuit {
    /// Never opens.
    pub const OFF: Circuit =
        Circuit { failures: 0, first: Duration::ZERO, longest: Duration::ZERO };
}

#[derive(Clone, Debug)]
pub struct Handler {
    pub name: HandlerName,
    pub events: Vec<String>,
    /// A minijinja expression.
    pub when: Option<String>,
    pub order: Order,
    pub start: Start,
    pub concurrency: usize,
    pub rate: Option<Rate>,
    pub timeout: Duration,
    pub schedule: Schedule,
    pub circuit: Circuit,
    pub action: Action,
}

/// After a start event, unless something cancels it in the same conversation, comes an event of type
/// `followup.due`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowUp {
    /// Under which its timers are kept.
    pub name: HandlerName,
    /// Globs over event types.
    pub start: Vec<String>,
    pub cancel: Vec<String>,
    pub after: Duration,
    /// Also where the one before went unanswered.
    pub repeat: bool,
}

/// How a person is told that something is wrong, and from where on it is.
#[derive(Clone, Debug)]
pub struct Notify {
    /// What runs for each notice; its globs are over their types.
    pub handler: Handler,
    /// Between two notices of one matter.
    pub interval: Duration,
    /// Events undelivered for longer than this are worth a notice.
    pub backlog_age: Duration,
    /// So is less free space than this, in bytes.
    pub disk_free: u64,
}

#[derive(Clone, Debug)]
pub enum Action {
    Http(Http),
    Exec(Exec),
    File(FileSink),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardSign {
    BlueReplies,
    StandardWebhooks,
}

/// What an `http` handler sends. Strings are templates.
#[derive(Clone, Debug)]
pub enum HttpBody {
    /// The event's bytes as stored.
    Raw,
    /// Every string in it is a template, rendered per value.
    Json(serde_json::Value),
    Form(Vec<(String, String)>),
    Text(String),
}

#[derive(Clone, Debug)]
pub struct Http {
    pub url: String,
    pub method: String,
    pub headers: Vec<(String, String)>,
    pub body: HttpBody,
    pub sign: Option<ForwardSign>,
    /// Statuses that are dead at once, besides 410.
    pub permanent: Vec<u16>,
    pub allow_private: bool,
    /// `Idempotency-Key` and `X-Bluehook-Attempt`; always, but for the emulator: Blue Replies doesn't send them.
    pub delivery_headers: bool,
    /// PEM file with further certificate authorities.
    pub ca: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Exec {
    /// Templates. At least the program.
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct FileSink {
    pub path: PathBuf,
    /// Bytes at which the file is moved to `.1`; `None`: never.
    pub rotate: Option<u64>,
    pub keep: u32,
}
