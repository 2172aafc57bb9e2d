//! Replay and discard: each change is a record in the log, durable before it is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::AdminContext;
use super::lists::{blocking, no_such_event, resolve};
use super::problem::Problem;
use super::query;
use super::wanted::Wanted;
use super::wire::{Changed, Selection};
use crate::clock::Timestamp;
use crate::delivery::{DeliveryKey, HandlerName, Seq, State};
use crate::store::record::Record;
use crate::store::{AppendError, Store, StoredEvent};

/// Events looked at in one step; between steps the store serves others.
const STEP: usize = 100;
/// How often and how long to wait where too much waits for the disk.
pub const BUSY_TRIES: u32 = 500;
pub const BUSY_WAIT: Duration = Duration::from_millis(10);
/// How long an answer waits for the index to show the change.
const APPLIED_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Every matching handler, whatever the state.
    Replay,
    DeadReplay,
    DeadDiscard,
}

pub async fn replay(cx: &Arc<AdminContext>, selection: Selection) -> Result<Changed, Problem> {
    run(cx, selection, Action::Replay).await
}

pub async fn dead_replay(cx: &Arc<AdminContext>, selection: Selection) -> Result<Changed, Problem> {
    run(cx, selection, Action::DeadReplay).await
}

pub async fn dead_discard(
    cx: &Arc<AdminContext>,
    selection: Selection,
) -> Result<Changed, Problem> {
    run(cx, selection, Action::DeadDiscard).await
}

async fn run(
    cx: &Arc<AdminContext>,
    selection: Selection,
    action: Action,
) -> Result<Changed, Problem> {
    if !selection.names_something() {
        return Err(Problem::bad(
            "nothing is selected: give ids or a filter, or \"all\": true to mean all of them",
        ));
    }
    if selection.contradicts_itself() {
        return Err(Problem::bad(
            "ids say which events are meant: give them, or a filter, not both (a handler goes with each)",
        ));
    }
    let only = selection.handler.as_deref().map(|name| known_handler(cx, name)).transpose()?;
    // What a handler has begun when it is asked for shall be known.
    wait_applied(&cx.store, cx.store.next_seq() - 1).await;
    if let Some(why) = cx.store.catching_up() {
        return Err(Problem::unavailable(format!(
            "what is selected cannot be told yet: {why}; try again in a moment"
        )));
    }
    let mut filter = query::filter(&selection)?;
    // A replay of a handler also makes deliveries that don't exist yet; the filter would hide those.
    if action == Action::Replay {
        filter.handler = None;
    }
    let _held = cx.store.hold_retention().await;
    let epoch = cx.store.log_epoch();
    let mut writer = Writer { cx, action, epoch, waiting: None, written: 0, last: 0 };
    let mut changed = Changed { dry_run: selection.dry_run, ..Changed::default() };
    let mut steps = Steps::new(cx, &selection.ids, action).await?;
    let configured = (cx.config)();
    let configured = configured.handlers.iter().map(|h| (h.name.clone(), Wanted::by(h))).collect();
    let targets = Targets { configured, only, action };
    loop {
        let (targets, filter) = (targets.clone(), filter.clone());
        let step = steps.clone();
        let (keys, events, next) =
            blocking(cx, move |store| step.take(store, &filter, &targets)).await?;
        changed.events += events;
        changed.deliveries += keys.len() as u64;
        if !selection.dry_run {
            for key in keys {
                writer.write(key).await.map_err(|problem| writer.cut_off(problem))?;
            }
        }
        match next {
            Some(next) => steps = next,
            None => break,
        }
    }
    writer.finish().await?;
    Ok(changed)
}

/// The handler of that name, whether configured or only met in the log.
///
/// # Errors
/// There is none.
pub fn known_handler(cx: &AdminContext, name: &str) -> Result<HandlerName, Problem> {
    let known = HandlerName::new(name).ok().filter(|name| {
        let configured = (cx.config)().handlers.iter().any(|h| h.name == *name);
        configured || cx.store.known_handlers().contains(name)
    });
    known.ok_or_else(|| {
        Problem::not_found(format!(
            "no handler {name:?}: neither configured nor in the log; see `bluehook status`"
        ))
    })
}

/// Where the walk over the selected events stands.
#[derive(Clone)]
enum Steps {
    Named(Vec<Seq>),
    Filtered { cursor: Option<Seq> },
    FilteredDead { cursor: Option<Seq> },
}

type Step = (Vec<DeliveryKey>, u64, Option<Steps>);

impl Steps {
    async fn new(cx: &Arc<AdminContext>, ids: &[String], action: Action) -> Result<Steps, Problem> {
        if !ids.is_empty() {
            let ids = ids.to_vec();
            // All are looked up first: with one unknown, nothing is changed.
            let found = blocking(cx, move |store| {
                let mut seqs = Vec::new();
                for id in &ids {
                    match resolve(store, id) {
                        found if found.is_empty() => return Err(no_such_event(store, id)),
                        found => seqs.extend(found),
                    }
                }
                seqs.sort_unstable();
                seqs.dedup();
                Ok(seqs)
            });
            return Ok(Steps::Named(found.await??));
        }
        Ok(match action {
            Action::Replay => Steps::Filtered { cursor: None },
            Action::DeadReplay | Action::DeadDiscard => Steps::FilteredDead { cursor: None },
        })
    }

    fn take(self, store: &Store, filter: &crate::store::EventFilter, targets: &Targets) -> Step {
        match self {
            Steps::Named(mut seqs) => {
                let rest = seqs.split_off(seqs.len().min(STEP));
                let stored = seqs.into_iter().filter_map(|seq| store.stored_event(seq));
                let (keys, events) = targets.of_all(store, stored);
                (keys, events, (!rest.is_empty()).then_some(Steps::Named(rest)))
            }
            Steps::Filtered { cursor } => {
                let page = store.list_events(filter, cursor, STEP);
                let (keys, events) = targets.of_all(store, page.items.into_iter());
                (keys, events, page.next.map(|seq| Steps::Filtered { cursor: Some(seq) }))
            }
            Steps::FilteredDead { cursor } => {
                let page = store.list_dead(filter, cursor, STEP);
                let keys: Vec<_> =
                    page.items.into_iter().map(|(_, stored)| stored.delivery.key).collect();
                let mut events: Vec<_> = keys.iter().map(|key| key.event).collect();
                events.dedup();
                let next = page.next.map(|seq| Steps::FilteredDead { cursor: Some(seq) });
                (keys, events.len() as u64, next)
            }
        }
    }
}

/// Which handlers of an event are meant.
#[derive(Clone)]
struct Targets {
    configured: Vec<(HandlerName, Wanted)>,
    only: Option<HandlerName>,
    action: Action,
}

impl Targets {
    fn of_all(
        &self,
        store: &Store,
        stored: impl Iterator<Item = StoredEvent>,
    ) -> (Vec<DeliveryKey>, u64) {
        // A handler comes to an event it hasn't reached by itself.
        let mut cursors: BTreeMap<HandlerName, Option<Seq>> = BTreeMap::new();
        let mut reached = |handler: &HandlerName, seq: Seq| {
            let cursor = cursors
                .entry(handler.clone())
                .or_insert_with(|| store.handler_stats(handler).cursor);
            cursor.is_some_and(|cursor| seq < cursor)
        };
        let (mut keys, mut events) = (Vec::new(), 0);
        for stored in stored {
            let before = keys.len();
            keys.extend(self.of(&stored, &mut reached));
            events += u64::from(keys.len() > before);
        }
        (keys, events)
    }

    fn of(
        &self,
        stored: &StoredEvent,
        reached: &mut impl FnMut(&HandlerName, Seq) -> bool,
    ) -> Vec<DeliveryKey> {
        let seq = stored.event.seq;
        let wanted = |name: &HandlerName| self.only.as_ref().is_none_or(|only| only == name);
        let dead_only = self.action != Action::Replay;
        let existing = stored.deliveries.iter().map(|d| &d.delivery);
        let mut names: Vec<HandlerName> = existing
            .filter(|d| !dead_only || matches!(d.state, State::Dead { .. }))
            .map(|d| d.key.handler.clone())
            .filter(&wanted)
            // Events run again bring no reminder again, unless that is what was asked for.
            .filter(|name| dead_only || self.only.is_some() || name.follow_up_rule().is_none())
            .collect();
        if !dead_only {
            for (name, globs) in &self.configured {
                if globs.matches(&stored.event.new.kind)
                    && wanted(name)
                    && !names.contains(name)
                    && reached(name, seq)
                {
                    names.push(name.clone());
                }
            }
        }
        names.into_iter().map(|handler| DeliveryKey { event: seq, handler }).collect()
    }
}

/// Writes all records but the last without waiting for the disk; the last one's sync covers them.
struct Writer<'a> {
    cx: &'a Arc<AdminContext>,
    action: Action,
    /// Of the log: when it is reopened after a fault, records that were only written may be gone.
    epoch: u64,
    waiting: Option<DeliveryKey>,
    written: u64,
    last: Seq,
}

impl Writer<'_> {
    async fn write(&mut self, key: DeliveryKey) -> Result<(), Problem> {
        if let Some(before) = self.waiting.replace(key) {
            let record = [self.record(before)];
            self.last = patiently(|| self.cx.store.append_in(self.epoch, &record)).await?;
            self.written += 1;
        }
        Ok(())
    }

    /// How far it came before the fault.
    fn cut_off(&self, problem: Problem) -> Problem {
        if self.written == 0 {
            return problem;
        }
        let detail = format!(
            "cut off by a fault after {} deliveries were written: {}; look at `bluehook events list` \
             before you repeat it",
            self.written, problem.detail
        );
        Problem { detail, ..problem }
    }

    async fn finish(mut self) -> Result<(), Problem> {
        let Some(key) = self.waiting.take() else { return Ok(()) };
        let record = self.record(key);
        let receipt = patiently(|| self.cx.store.append_durable(record.clone())).await;
        let receipt = receipt.map_err(|problem| self.cut_off(problem))?;
        if self.cx.store.log_epoch() != self.epoch {
            return Err(self.cut_off(Problem::append(AppendError::Failed)));
        }
        self.last = self.last.max(receipt.seq());
        wait_applied(&self.cx.store, self.last).await;
        self.cx.replay.nudge().await;
        Ok(())
    }

    fn record(&self, key: DeliveryKey) -> Record {
        match self.action {
            Action::DeadDiscard => Record::Discarded { key },
            Action::Replay | Action::DeadReplay => Record::Replayed { key, due: self.now() },
        }
    }

    fn now(&self) -> Timestamp {
        self.cx.store.timeline().at(self.cx.clock.now())
    }
}

/// Tries again while too much waits for the disk.
pub async fn patiently<T, F: Future<Output = Result<T, AppendError>>>(
    mut append: impl FnMut() -> F,
) -> Result<T, Problem> {
    for _ in 0..BUSY_TRIES {
        match append().await {
            Err(AppendError::Busy) => tokio::time::sleep(BUSY_WAIT).await,
            result => return result.map_err(Problem::append),
        }
    }
    Err(Problem::append(AppendError::Busy))
}

/// Returns when the index shows everything up to `seq`, or after [`APPLIED_WAIT`]: the change is
/// durable either way.
pub async fn wait_applied(store: &Store, seq: Seq) {
    wait_shown(store, seq, APPLIED_WAIT).await;
}

pub async fn wait_shown(store: &Store, seq: Seq, within: Duration) {
    let mut progress = store.progress();
    let reached = progress.wait_for(|p| p.caught_up && p.applied >= seq);
    let _ = tokio::time::timeout(within, reached).await;
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::super::testing::{context, settle, store_event};
    use super::*;
    use crate::delivery::Outcome;

    const HANDLERS: &str = r#"
        [[handler]]
        name = "crm"
        events = ["message.*"]
        file = { path = "/tmp/crm.jsonl" }
        [[handler]]
        name = "all"
        events = ["*"]
        file = { path = "/tmp/all.jsonl" }
    "#;

    fn ids(ids: &[&str]) -> Selection {
        Selection { ids: ids.iter().map(|&id| id.to_owned()).collect(), ..Selection::default() }
    }

    /// The handler has looked at every event below `to`.
    async fn reached(cx: &Arc<AdminContext>, handler: &str, to: Seq) {
        let handler = HandlerName::new(handler).unwrap();
        let receipt = cx.store.append_durable(Record::HandlerMoved { handler, to }).await.unwrap();
        cx.store.wait_applied(receipt.seq()).await;
    }

    fn scheduled(cx: &Arc<AdminContext>, handler: &str, event: Seq) -> Option<u32> {
        let key = DeliveryKey { event, handler: HandlerName::new(handler).unwrap() };
        let delivery = cx.store.delivery(&key)?;
        matches!(delivery.state, State::Scheduled { .. }).then_some(delivery.generation)
    }

    #[tokio::test]
    async fn a_replay_means_existing_deliveries_and_matching_handlers_that_went_past() {
        let cx = context(HANDLERS);
        let a = store_event(&cx.store, "a", "message.read").await;
        let b = store_event(&cx.store, "b", "other.kind").await;
        settle(&cx.store, "crm", a, Outcome::Delivered).await;
        reached(&cx, "crm", b + 1).await;
        reached(&cx, "all", b).await;
        let changed = replay(&cx, ids(&["a", "b"])).await.unwrap();
        // crm and all for a; b does not match crm, and all comes to it by itself.
        assert_eq!((changed.events, changed.deliveries), (1, 2));
        assert_eq!(scheduled(&cx, "crm", a), Some(1));
        assert!(scheduled(&cx, "all", a).is_some());
        assert_eq!((scheduled(&cx, "crm", b), scheduled(&cx, "all", b)), (None, None));
    }

    #[tokio::test]
    async fn a_dry_run_counts_what_a_replay_would_do_and_does_nothing() {
        let cx = context(HANDLERS);
        let a = store_event(&cx.store, "a", "message.read").await;
        settle(&cx.store, "crm", a, Outcome::Delivered).await;
        let by_kind = Selection { kind: Some("*.read".into()), ..Selection::default() };
        let dry = Selection { dry_run: true, ..by_kind.clone() };
        assert_eq!(replay(&cx, dry).await.unwrap().deliveries, 1);
        assert_eq!(scheduled(&cx, "crm", a), None);
        assert_eq!(replay(&cx, by_kind).await.unwrap().deliveries, 1);
        assert_eq!(scheduled(&cx, "crm", a), Some(1));
        let other = Selection { kind: Some("*.sent".into()), ..Selection::default() };
        assert_eq!(replay(&cx, other).await.unwrap().deliveries, 0);
    }

    #[tokio::test]
    async fn malformed_events_are_replayed_only_by_handlers_that_name_them() {
        let cx = context(HANDLERS);
        let seq = store_event(&cx.store, "a", crate::event::MALFORMED).await;
        reached(&cx, "all", seq + 1).await;
        assert_eq!(replay(&cx, ids(&["a"])).await.unwrap().deliveries, 0);
    }

    #[tokio::test]
    async fn only_dead_deliveries_are_discarded_and_each_event_counts_once() {
        let cx = context(HANDLERS);
        for n in 0..150 {
            let seq = store_event(&cx.store, &format!("evt_{n}"), "message.read").await;
            settle(&cx.store, "crm", seq, Outcome::reject("410 Gone")).await;
            let outcome = if n == 0 { Outcome::Delivered } else { Outcome::reject("410 Gone") };
            settle(&cx.store, "all", seq, outcome).await;
        }
        let all = Selection { all: true, ..Selection::default() };
        let changed = dead_discard(&cx, all.clone()).await.unwrap();
        assert_eq!((changed.events, changed.deliveries), (150, 299));
        assert_eq!(dead_discard(&cx, all).await.unwrap().deliveries, 0);
    }

    #[tokio::test]
    async fn what_is_not_known_or_not_clear_changes_nothing() {
        let cx = context(HANDLERS);
        let a = store_event(&cx.store, "a", "message.read").await;
        settle(&cx.store, "crm", a, Outcome::Delivered).await;
        let nobody = Selection { handler: Some("nobody".into()), ..ids(&["a"]) };
        let both = Selection { kind: Some("*".into()), ..ids(&["a"]) };
        for (selection, status) in [
            (ids(&["a", "b"]), StatusCode::NOT_FOUND),
            (nobody, StatusCode::NOT_FOUND),
            (both, StatusCode::BAD_REQUEST),
            (Selection::default(), StatusCode::BAD_REQUEST),
        ] {
            let problem = replay(&cx, selection.clone()).await.unwrap_err();
            assert_eq!(problem.status, status, "{selection:?}: {}", problem.detail);
        }
        assert_eq!(scheduled(&cx, "crm", a), None);
    }
}
