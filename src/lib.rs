#![doc = include_str!("../ARCHITECTURE.md")]
#![forbid(unsafe_code)]

pub mod admin;
pub mod automation;
pub mod cli;
pub mod clock;
pub mod config;
pub mod defect;
pub mod delivery;
pub mod emulator;
pub mod event;
pub mod files;
pub mod framing;
pub mod handler;
pub mod intake;
pub mod message;
pub mod notify;
pub mod process;
pub mod replay;
pub mod schedule;
pub mod server;
pub mod signature;
pub mod store;
pub mod systemd;
pub mod tally;
pub mod trust;
