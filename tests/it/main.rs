//! Tests that run the real binary against real sockets, files and processes, and the house rules.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod admin;
mod automations;
mod canonical;
mod cli;
#[path = "../crash/mod.rs"]
mod crash;
mod emulator;
mod forbidden;
mod formats;
mod fuzzed;
mod handlers;
mod hardening;
mod hostile;
mod intake;
mod lifecycle;
mod load;
mod naughty;
mod neighbours;
mod node;
mod notify;
mod page;
mod recipes;
mod refusals;
mod retries;
mod schema;
mod sim;
mod smuggling;
mod soak;
mod support;
mod systemd;
mod tidy;
mod tls;
