//! Pages of events and deliveries.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;

use super::body::{Answer, json};
use super::change::wait_shown;
use super::problem::Problem;
use super::query::{self, ListQuery};
use super::wire::{
    AnswerJson, ConflictJson, DeliveryItem, DeliveryJson, EventItem, EventJson, PageJson, Preview,
};
use super::{AdminContext, AnswerBody};
use crate::clock::Timestamp;
use crate::delivery::Seq;
use crate::event::Event;
use crate::store::record::ConflictBody;
use crate::store::transfer::text_or_base64;
use crate::store::{Page, Store, StoredDelivery, StoredEvent};

/// Of a payload, in brief items.
const PREVIEW_CHARS: usize = 600;
/// How long a read waits for the index.
const READ_WAIT: Duration = Duration::from_secs(1);

/// Runs `read` where it may wait for the disk.
pub async fn blocking<T: Send + 'static>(
    cx: &Arc<AdminContext>,
    read: impl FnOnce(&Store) -> T + Send + 'static,
) -> Result<T, Problem> {
    let store = cx.store.clone();
    let read = tokio::task::spawn_blocking(move || read(&store)).await;
    read.map_err(|e| Problem::internal(format!("reading the store failed: {e}; see the log")))
}

/// What was acknowledged before the question is in the answer. While the index is being rebuilt that may
/// take long: then an answer that lacks something, and says so, beats none.
pub async fn caught_up(cx: &Arc<AdminContext>) {
    wait_shown(&cx.store, cx.store.durable_seq(), READ_WAIT).await;
}

/// The event as people see it: an attempt that was begun is running, unless nothing runs at all.
pub fn event_item(cx: &AdminContext, stored: &StoredEvent, brief: bool) -> EventItem {
    let mut event = EventJson::of(&cx.store, stored);
    for (shown, stored) in event.deliveries.iter_mut().zip(&stored.deliveries) {
        show_running(cx, shown, stored);
        if brief {
            shorten(shown);
        }
    }
    let brief = brief.then(|| {
        event.headers.clear();
        (event.payload, event.payload_base64) = (None, None);
        preview(&stored.event.new.body)
    });
    let took_ms = cx.arrivals.answered_in_ms(event.seq);
    let answer = took_ms.map(|took_ms| AnswerJson { status: StatusCode::OK.as_u16(), took_ms });
    EventItem { event, answer, conflicts: Vec::new(), brief }
}

fn shorten(delivery: &mut DeliveryJson) {
    for attempt in &mut delivery.attempts {
        (attempt.request, attempt.response) = (None, None);
    }
}

fn preview(body: &[u8]) -> Preview {
    // Four bytes hold any character.
    let start = String::from_utf8_lossy(&body[..body.len().min(PREVIEW_CHARS * 4)]);
    let preview = start.chars().take(PREVIEW_CHARS).collect();
    Preview { payload_bytes: body.len() as u64, preview }
}

fn conflict_json((received_at, body): (Timestamp, ConflictBody)) -> ConflictJson {
    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
    let headers = body.headers.into_iter().map(|(name, value)| (name, text(value))).collect();
    let (payload, payload_base64) = text_or_base64(&body.body);
    ConflictJson { received_at: received_at.to_rfc3339(), headers, payload, payload_base64 }
}

fn show_running(cx: &AdminContext, shown: &mut DeliveryJson, stored: &StoredDelivery) {
    let open = stored.delivery.open_attempt.is_some() && !stored.delivery.state.is_settled();
    if open && !cx.stopped {
        shown.state = "running".to_owned();
    }
}

pub async fn events(cx: &Arc<AdminContext>, query: &str) -> Result<Answer, Problem> {
    let ListQuery { filter, limit, cursor, brief } = query::list(query)?;
    caught_up(cx).await;
    let page = blocking(cx, move |store| store.list_events(&filter, cursor, limit)).await?;
    Ok(answer(cx, page, |stored| [event_item(cx, &stored, brief)]))
}

/// The events that `id` names: by `eventId` (one per source), else by sequence number. `seq:18` is the event with
/// that number, even where another one has "18" for its id.
pub fn resolve(store: &Store, id: &str) -> Vec<Seq> {
    if let Some(seq) = id.strip_prefix("seq:").and_then(|seq| seq.parse().ok())
        && store.event(seq).is_some()
    {
        return vec![seq];
    }
    let found = store.find(id);
    if !found.is_empty() {
        return found;
    }
    let by_seq = id.parse::<Seq>().ok().filter(|&seq| store.event(seq).is_some());
    by_seq.into_iter().collect()
}

pub fn no_such_event(store: &Store, id: &str) -> Problem {
    if let Some(why) = store.catching_up() {
        return Problem::unavailable(format!("no event {id:?} yet: {why}; try again in a moment"));
    }
    Problem::not_found(format!(
        "no event {id:?}: it never arrived, or retention dropped it; see `bluehook events list`"
    ))
}

pub async fn event(cx: &Arc<AdminContext>, query: &str, id: &str) -> Result<Answer, Problem> {
    query::none(query)?;
    caught_up(cx).await;
    let wanted = id.to_owned();
    // The first, where several sources used the same id: the others came of it, or have other sequence numbers.
    let found = blocking(cx, move |store| {
        let seq = resolve(store, &wanted).into_iter().min()?;
        Some((store.stored_event(seq)?, store.conflicts(seq)))
    });
    match found.await? {
        Some((stored, conflicts)) => {
            let conflicts = conflicts.into_iter().map(conflict_json).collect();
            Ok(json(&EventItem { conflicts, ..event_item(cx, &stored, false) }))
        }
        None => Err(no_such_event(&cx.store, id)),
    }
}

/// The deliveries of the events in a page.
pub async fn deliveries(cx: &Arc<AdminContext>, query: &str) -> Result<Answer, Problem> {
    let ListQuery { filter, limit, cursor, brief } = query::list(query)?;
    let wanted = filter.clone();
    caught_up(cx).await;
    let page = blocking(cx, move |store| store.list_events(&filter, cursor, limit)).await?;
    Ok(answer(cx, page, |stored| {
        let fits = |d: &&StoredDelivery| {
            let handler = wanted.handler.as_deref();
            let status = wanted.status.as_deref();
            handler.is_none_or(|h| h == d.delivery.key.handler.as_str())
                && status.is_none_or(|s| s == d.delivery.state.name())
        };
        let deliveries = stored.deliveries.iter().filter(fits);
        deliveries.map(|d| item(cx, &stored.event, d, brief)).collect::<Vec<_>>()
    }))
}

pub async fn dead(cx: &Arc<AdminContext>, query: &str) -> Result<Answer, Problem> {
    let ListQuery { filter, limit, cursor, brief } = query::list(query)?;
    caught_up(cx).await;
    let page = blocking(cx, move |store| store.list_dead(&filter, cursor, limit)).await?;
    Ok(answer(cx, page, |(event, delivery)| [item(cx, &event, &delivery, brief)]))
}

fn item(cx: &AdminContext, event: &Event, stored: &StoredDelivery, brief: bool) -> DeliveryItem {
    let mut delivery = DeliveryJson::of(&cx.store, stored);
    show_running(cx, &mut delivery, stored);
    if brief {
        shorten(&mut delivery);
    }
    DeliveryItem {
        seq: event.seq,
        event_id: event.new.id.clone(),
        kind: event.new.kind.clone(),
        source: event.new.source.clone(),
        received_at: event.new.received_at.to_rfc3339(),
        delivery,
    }
}

fn answer<T, J: serde::Serialize, I: IntoIterator<Item = J>>(
    cx: &AdminContext,
    page: Page<T>,
    to_json: impl Fn(T) -> I,
) -> hyper::Response<AnswerBody> {
    let items: Vec<J> = page.items.into_iter().flat_map(to_json).collect();
    let next_cursor = page.next.map(|seq| seq.to_string());
    json(&PageJson { items, next_cursor, note: cx.store.catching_up() })
}
