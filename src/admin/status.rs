//! How things stand: for people and for probes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::AdminContext;
use super::lists::blocking;
use super::problem::Problem;
use super::wanted::Wanted;
use super::wire::{
    BACKLOG_COUNT_MAX, CircuitJson, FollowUpJson, HandlerJson, LostJson, StatusJson,
};
use crate::clock::Timestamp;
use crate::delivery::{HandlerName, Seq};
use crate::replay::planner::HandlerSnapshot;
use crate::store::{Health, Store};

/// Events looked at in one read, and reads for one handler.
const COUNT_STEP: usize = 1_000;
const COUNT_STEPS_MAX: usize = 20;

pub async fn handlers(cx: &Arc<AdminContext>) -> Result<Vec<HandlerJson>, Problem> {
    let now: BTreeMap<HandlerName, HandlerSnapshot> =
        cx.replay.handlers().await.into_iter().map(|h| (h.name.clone(), h)).collect();
    let config = (cx.config)();
    blocking(cx, move |store| {
        // In the order of the configuration; those no longer in it last.
        let mut names: Vec<HandlerName> = config.handlers.iter().map(|h| h.name.clone()).collect();
        let configured = names.len();
        for name in store.known_handlers() {
            if !names.contains(&name) && name.follow_up_rule().is_none() {
                names.push(name);
            }
        }
        let one = |(i, name): (usize, &HandlerName)| {
            let stats = store.handler_stats(name);
            let due = store.next_due(name, Timestamp::ZERO);
            let now = now.get(name);
            let wall = |time| store.wall_of(time).to_rfc3339();
            HandlerJson {
                name: name.to_string(),
                configured: i < configured,
                paused: stats.paused,
                running: now.map_or(0, |now| now.running as u64),
                scheduled: stats.scheduled,
                dead: stats.dead,
                behind: match (stats.cursor, config.handlers.get(i)) {
                    (Some(cursor), Some(handler)) => behind(store, cursor, &Wanted::by(handler)),
                    _ => 0,
                },
                oldest_undelivered: stats.oldest.map(Timestamp::to_rfc3339),
                next_due_at: due.map(wall),
                circuit: now.and_then(|now| now.circuit).map(|open| CircuitJson {
                    since: wall(open.since),
                    failures: open.failures,
                    next_probe_at: wall(open.next_probe),
                }),
            }
        };
        names.iter().enumerate().map(one).collect()
    })
    .await
}

async fn followups(cx: &Arc<AdminContext>) -> Result<Vec<FollowUpJson>, Problem> {
    let config = (cx.config)();
    blocking(cx, move |store| {
        let mut names: Vec<HandlerName> =
            config.followups.iter().map(|rule| rule.name.clone()).collect();
        let configured = names.len();
        for name in store.known_handlers() {
            if !names.contains(&name) && name.follow_up_rule().is_some() {
                names.push(name);
            }
        }
        let one = |(i, name): (usize, &HandlerName)| {
            let stats = store.handler_stats(name);
            let due = store.next_due(name, Timestamp::ZERO);
            FollowUpJson {
                name: name.follow_up_rule().unwrap_or_default().to_owned(),
                configured: i < configured,
                paused: stats.paused,
                waiting: stats.scheduled,
                next_due_at: due.map(|due| store.wall_of(due).to_rfc3339()),
            }
        };
        names.iter().enumerate().map(one).collect()
    })
    .await
}

/// A running retry is among the scheduled; a running first attempt lies behind the cursor.
pub fn waiting(h: &HandlerJson) -> u64 {
    h.scheduled.max(h.running) + h.behind
}

/// Events from `cursor` on that match, counted up to [`BACKLOG_COUNT_MAX`].
fn behind(store: &Store, cursor: Seq, wanted: &Wanted) -> u64 {
    let (mut from, mut count) = (cursor, 0);
    // Types that don't match are looked over, but not without end.
    for _ in 0..COUNT_STEPS_MAX {
        let (heads, next) = store.heads_from(from, COUNT_STEP);
        if heads.is_empty() {
            break;
        }
        count +=
            heads.iter().filter(|head| !head.imported && wanted.matches(&head.kind)).count() as u64;
        if count >= BACKLOG_COUNT_MAX {
            return BACKLOG_COUNT_MAX;
        }
        from = next;
    }
    count
}

pub async fn status(cx: &Arc<AdminContext>) -> Result<StatusJson, Problem> {
    let handlers = handlers(cx).await?;
    let stats = blocking(cx, |store| store.stats()).await?;
    Ok(StatusJson {
        health: health_name(stats.health).to_owned(),
        note: stats.note.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: cx.started_at.to_rfc3339(),
        listen: cx.intake.iter().map(ToString::to_string).collect(),
        events: stats.events,
        backlog: handlers.iter().map(waiting).sum(),
        // RFC 3339 of one form: the order of the texts is that of the times.
        oldest_undelivered: handlers.iter().filter_map(|h| h.oldest_undelivered.clone()).min(),
        dead: handlers.iter().map(|h| h.dead).sum(),
        log_bytes: stats.log_bytes,
        index_bytes: stats.index_bytes,
        disk_free_bytes: stats.disk_free,
        durable_seq: stats.progress.durable,
        damage: stats.damage.iter().map(|d| LostJson::from(d).in_dir(&stats.log_dir)).collect(),
        handlers,
        followups: followups(cx).await?,
    })
}

fn health_name(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Rebuilding => "rebuilding",
        Health::Full => "full",
        Health::Failed => "failed",
    }
}

/// Why events are not accepted now; `None` where they are. A rebuild of the index refuses nothing.
pub async fn not_ready(cx: &Arc<AdminContext>) -> Result<Option<String>, Problem> {
    let stats = blocking(cx, |store| store.stats()).await?;
    let why = match stats.health {
        Health::Ok | Health::Rebuilding => return Ok(None),
        Health::Full => "not accepting events: the disk is full; free some space",
        Health::Failed => "not accepting events: the log cannot be written; check the disk",
    };
    Ok(Some(stats.note.unwrap_or_else(|| why.to_owned())))
}
