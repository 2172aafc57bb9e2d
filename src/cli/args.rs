//! The command line, as clap reads it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "bluehook",
    version,
    about = "The durable inbox for Blue Replies webhooks",
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done; 1 the thing asked for failed; 2 usage or configuration; \
                  3 not found; 4 the appliance can't be reached."
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Configuration file (default: ./bluehook.toml, then /etc/bluehook/bluehook.toml)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Machine output: one JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// The admin socket (default: admin.socket of the configuration)
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print nothing but what was asked for, and errors
    #[arg(long, global = true)]
    pub quiet: bool,
    /// No colours (also with NO_COLOR, and where the output is no terminal)
    #[arg(long, global = true)]
    pub no_color: bool,
}

pub const DEFAULT_LIMIT: usize = 50;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the appliance
    Serve {
        #[arg(long, hide = true, value_name = "FILE")]
        virtual_clock: Option<PathBuf>,
    },
    /// Validate the configuration and print it with the source of every value
    Check,
    /// The log of events
    #[command(subcommand)]
    Events(Events),
    /// Dead letters
    #[command(subcommand)]
    Dead(Dead),
    /// Run handlers again for stored events, whatever their state
    Replay {
        /// Event ids, or sequence numbers
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        #[command(flatten)]
        filter: Filter,
        /// Only this handler
        #[arg(long, value_name = "NAME")]
        handler: Option<String>,
        /// Count, but change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Health, backlog, disk and handlers; exits 0 healthy, 1 degraded, 4 not running
    Status,
    /// Print a link that signs a browser in to the debugger page, once
    Debugger {
        /// Open it, too
        #[arg(long)]
        open: bool,
    },
    /// What became of each message, from all its events
    Messages {
        /// Default: list
        #[command(subcommand)]
        verb: Option<Messages>,
    },
    /// Sign and send a realistic test event
    Trigger(Trigger),
    /// Whole events and deliveries as JSON lines, to standard output
    Export {
        #[arg(long, value_name = "TIME", value_parser = super::time::arg)]
        since: Option<String>,
        #[arg(long, value_name = "TIME", value_parser = super::time::arg)]
        until: Option<String>,
    },
    /// Take in what `export` wrote; events that are there already are kept as they are
    Import {
        /// `-`: standard input
        file: PathBuf,
    },
    /// A local stand-in for Blue Replies' sending side
    Emulate(Emulate),
    /// The store of a stopped appliance
    #[command(subcommand)]
    Store(StoreCommand),
    /// Signing secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the man page; with --dir, write those of all commands
    Man {
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Events {
    /// Newest first
    List {
        #[command(flatten)]
        filter: Filter,
        /// Only events that this handler has a delivery of
        #[arg(long, value_name = "NAME")]
        handler: Option<String>,
        #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = limit)]
        limit: usize,
    },
    /// One event with its deliveries and attempts
    Show { id: String },
    /// Follow new events and attempts
    Tail,
}

#[derive(Debug, Subcommand)]
pub enum Messages {
    /// Those with the newest event first
    List(MessageList),
    /// One message with its timeline
    Show {
        #[arg(value_name = "MESSAGE_ID")]
        id: String,
        /// Where several sources use the same id
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
    },
}

#[derive(Debug, Default, Args)]
pub struct MessageList {
    /// received, sent, failed, delivered, read or unknown
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,
    /// The other party's address
    #[arg(long, value_name = "ADDRESS")]
    pub with: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// As 2h, 3d, or an RFC 3339 time
    #[arg(long, value_name = "TIME", value_parser = super::time::arg)]
    pub since: Option<String>,
    #[arg(long, value_name = "TIME", value_parser = super::time::arg)]
    pub until: Option<String>,
    /// Text within the message, its id or its parties
    #[arg(long, value_name = "TEXT")]
    pub search: Option<String>,
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = limit)]
    pub limit: usize,
}

#[derive(Debug, Subcommand)]
pub enum Dead {
    /// Newest first
    List {
        #[command(flatten)]
        filter: Filter,
        #[arg(long, value_name = "NAME")]
        handler: Option<String>,
        #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = limit)]
        limit: usize,
    },
    /// Run dead deliveries again
    Replay(DeadChange),
    /// Settle dead deliveries for good
    Discard {
        #[command(flatten)]
        change: DeadChange,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub struct DeadChange {
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    #[command(flatten)]
    pub filter: Filter,
    #[arg(long, value_name = "NAME")]
    pub handler: Option<String>,
    /// All dead deliveries
    #[arg(long)]
    pub all: bool,
    /// Count, but change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct Filter {
    /// Glob over the type, such as 'message.*'
    #[arg(long = "type", value_name = "GLOB")]
    pub kind: Option<String>,
    /// scheduled, delivered, dead or discarded
    #[arg(long)]
    pub status: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// How long ago (2h, 30m, 1d), or an RFC 3339 time
    #[arg(long, value_name = "TIME", value_parser = super::time::arg)]
    pub since: Option<String>,
    #[arg(long, value_name = "TIME", value_parser = super::time::arg)]
    pub until: Option<String>,
    /// Text within the payload or the id
    #[arg(long, value_name = "TEXT")]
    pub search: Option<String>,
}

#[derive(Debug, Args)]
pub struct Trigger {
    /// message.sent, .delivered, .read, .failed, .received; any other is sent as well
    #[arg(value_name = "TYPE")]
    pub kind: String,
    /// Send there, not to the running appliance
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// Replaces the sample's data
    #[arg(long, value_name = "JSON")]
    pub data: Option<String>,
    /// One value within the event, such as data.body=Hi
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Send each event twice: the second is counted and not handled again
    #[arg(long)]
    pub duplicate: bool,
    /// Sign as somebody would who does not know the secret: it must be refused
    #[arg(long)]
    pub bad_signature: bool,
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
}

#[derive(Debug, Args)]
pub struct Emulate {
    /// Where its API listens; loopback only
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4010")]
    pub listen: std::net::SocketAddr,
    /// Divides the delays between attempts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub time_scale: u32,
    /// Endpoints, events and deliveries: a restart goes on with them
    #[arg(long, value_name = "DIR", default_value = "./bluehook-emulator")]
    pub data_dir: PathBuf,
    /// What events are signed with (default: one made at the first start, in the data directory)
    #[arg(long, value_name = "VALUE", env = "WEBHOOK_SECRET", hide_env_values = true)]
    pub secret: Option<String>,
}

impl Emulate {
    #[must_use]
    pub fn options(self, quiet: bool) -> crate::emulator::EmulateOptions {
        let Emulate { listen, time_scale, data_dir, secret } = self;
        crate::emulator::EmulateOptions { listen, time_scale, data_dir, secret, quiet }
    }
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Verify every record's checksum
    Check {
        /// Default: data_dir of the configuration
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Salvage what is readable into a fresh store, and say what was lost
    Repair {
        /// Default: data_dir of the configuration
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Print a fresh random signing secret
    Generate,
}

fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "a number from 1 on".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn common_flags_may_follow_the_verb() {
        let cli = Cli::try_parse_from(["bluehook", "events", "list", "--json", "--socket", "/s"]);
        let cli = cli.unwrap();
        assert!(cli.common.json);
        assert_eq!(cli.common.socket, Some(PathBuf::from("/s")));
    }

    #[test]
    fn bad_usage_is_refused() {
        for bad in [
            vec!["bluehook"],
            vec!["bluehook", "events", "list", "--limit", "0"],
            vec!["bluehook", "events", "list", "--since", "yesterday"],
            vec!["bluehook", "trigger"],
            vec!["bluehook", "trigger", "message.read", "--count", "0"],
        ] {
            assert!(Cli::try_parse_from(&bad).is_err(), "{bad:?}");
        }
    }
}
