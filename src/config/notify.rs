//! `[notify]`: how a person is told that something is wrong, and from where on it is.

use std::time::Duration;

use super::read::Table;
use super::{Circuit, Handler, Notify, Order, Start, handlers, sections};
use crate::delivery::HandlerName;

const HOUR: Duration = Duration::from_secs(3600);

/// What `[notify]` has where it is there and doesn't say otherwise; `schedule` is the general one.
pub const DEFAULTS: &str = r#"
events = ["*"]
timeout = "30s"
interval = "1h"
backlog_age = "2h"
disk_free = "512 MiB"
"#;

pub fn read(table: &Table<'_>) -> Option<Notify> {
    let events = table.get("events").and_then(|node| {
        let events = node.strings()?;
        if events.is_empty() {
            node.problem("matches nothing; write [\"*\"] for every notice");
        }
        Some(events)
    });
    let timeout = table.get("timeout").and_then(|node| node.duration(handlers::TIMEOUTS));
    let interval = table
        .get("interval")
        .and_then(|node| node.duration(Duration::from_secs(60)..=HOUR * 24 * 7));
    let backlog_age = table
        .get("backlog_age")
        .and_then(|node| node.duration(Duration::from_secs(60)..=HOUR * 24 * 366));
    let disk_free = table.get("disk_free").and_then(|node| node.bytes(0..=u64::MAX));
    let schedule = table.get("schedule").and_then(|node| {
        let table = node.table()?;
        let schedule = sections::schedule(&table);
        table.finish();
        schedule
    });
    let handler = Handler {
        name: HandlerName::new("notify").ok()?,
        action: handlers::action(table)?,
        events: events?,
        when: None,
        order: Order::None,
        start: Start::Now,
        concurrency: 1,
        rate: None,
        timeout: timeout?,
        schedule: schedule?,
        circuit: Circuit::OFF,
    };
    Some(Notify { handler, interval: interval?, backlog_age: backlog_age?, disk_free: disk_free? })
}
