//! Events, dead letters and the status as people read them.

use super::render::{Cell, Style, bytes, escape, table};
use super::time::relative;
use crate::admin::wire::{
    BACKLOG_COUNT_MAX, DeliveryItem, DeliveryJson, EventItem, EventJson, FollowUpJson, HandlerJson,
    LostJson, StatusJson,
};
use crate::clock::Timestamp;

pub fn events(items: &[EventJson], now: Timestamp, style: Style) -> String {
    let several = items.iter().any(|e| e.source != items[0].source);
    let row = |e: &EventJson| {
        let states: Vec<_> =
            e.deliveries.iter().map(|d| format!("{}: {}", d.handler, d.state)).collect();
        let deliveries = Cell::in_state(states.join(", "), worst(&e.deliveries));
        let when = relative(&e.received_at, now);
        vec![e.seq.to_string().into(), when.into(), (&e.kind).into(), (&e.event_id).into()]
            .into_iter()
            .chain(several.then(|| (&e.source).into()))
            .chain([deliveries])
            .collect()
    };
    let mut head = vec!["SEQ", "RECEIVED", "TYPE", "ID"];
    head.extend(several.then_some("SOURCE"));
    head.push("DELIVERIES");
    table(&head, items.iter().map(row).collect(), style)
}

/// The state that wants attention first.
fn worst(deliveries: &[DeliveryJson]) -> &str {
    let rank = |state: &str| match state {
        "dead" => 3,
        "scheduled" | "running" => 2,
        "delivered" => 1,
        _ => 0,
    };
    deliveries.iter().map(|d| d.state.as_str()).max_by_key(|state| rank(state)).unwrap_or("")
}

pub fn dead(items: &[DeliveryItem], now: Timestamp, style: Style) -> String {
    let row = |d: &DeliveryItem| {
        let reason = d.delivery.reason.as_deref().unwrap_or_default();
        let when = relative(&d.received_at, now);
        let reason = Cell::in_state(reason, "dead");
        vec![
            when.into(),
            (&d.kind).into(),
            (&d.event_id).into(),
            (&d.delivery.handler).into(),
            reason,
        ]
    };
    let head = ["RECEIVED", "TYPE", "ID", "HANDLER", "REASON"];
    table(&head, items.iter().map(row).collect(), style)
}

pub fn event(item: &EventItem, now: Timestamp, style: Style) -> String {
    let event = &item.event;
    let mut text = format!(
        "{}  {}\nsource {}, seq {}, received {} ({}), signature {}, duplicates {}{}\n",
        escape(&event.event_id),
        escape(&event.kind),
        escape(&event.source),
        event.seq,
        escape(&event.received_at),
        relative(&event.received_at, now),
        escape(&event.verified_by),
        event.duplicates,
        if event.conflict { ", a duplicate had another body" } else { "" },
    );
    let payload = event.payload.as_deref().or(event.payload_base64.as_deref()).unwrap_or_default();
    text.push_str(&format!("{}\n", escape(payload)));
    if let Some(answer) = &item.answer {
        text.push_str(&format!("answered {} in {} ms\n", answer.status, answer.took_ms));
    }
    for other in &item.conflicts {
        let payload = other.payload.as_deref().or(other.payload_base64.as_deref());
        text.push_str(&format!(
            "another body, received {}: {}\n",
            escape(&other.received_at),
            escape(payload.unwrap_or_default())
        ));
    }
    for d in &event.deliveries {
        let due = d.due_at.as_ref().map(|due| format!(", due {}", relative(due, now)));
        let state = style.paint(&d.state, &escape(&d.state));
        text.push_str(&format!("\n{}: {state}{}\n", escape(&d.handler), due.unwrap_or_default()));
        for a in &d.attempts {
            let outcome = style.paint(&a.outcome, &escape(&a.outcome));
            let reason = a.reason.as_deref().map(|r| format!(": {}", escape(r)));
            text.push_str(&format!(
                "  attempt {}, {}, {outcome} in {} ms{}\n",
                a.number,
                escape(&a.started_at),
                a.took_ms,
                reason.unwrap_or_default()
            ));
            for (mark, part) in [("-->", &a.request), ("<--", &a.response)] {
                for line in part.iter().flat_map(|part| part.lines()) {
                    text.push_str(&format!("    {mark} {}\n", escape(line)));
                }
            }
        }
    }
    text
}

pub fn status(status: &StatusJson, now: Timestamp, style: Style) -> String {
    let note = status.note.as_deref().map(|n| format!(": {}", escape(n))).unwrap_or_default();
    let oldest = status.oldest_undelivered.as_ref().map(|t| relative(t, now));
    // Where one handler's count ends early, so does the sum.
    let more = status.handlers.iter().any(|h| h.behind >= BACKLOG_COUNT_MAX);
    let mut text = format!(
        "{}{note}\nbluehook {}, started {}, listening on {}\n{} events, {}{} waiting, {} dead, \
         oldest undelivered {}\nlog {}, index {}, {} free\n",
        style.paint(&status.health, &escape(&status.health)),
        escape(&status.version),
        relative(&status.started_at, now),
        escape(&status.listen.join(", ")),
        status.events,
        status.backlog,
        if more { "+" } else { "" },
        status.dead,
        oldest.as_deref().unwrap_or("none"),
        bytes(status.log_bytes),
        bytes(status.index_bytes),
        bytes(status.disk_free_bytes),
    );
    for d in &status.damage {
        text.push_str(&lost(d));
    }
    for rule in &status.followups {
        text.push_str(&follow_up(rule, now));
    }
    if status.handlers.is_empty() {
        text.push_str("no handlers: add a [[handler]] to the configuration\n");
        return text;
    }
    let head = ["HANDLER", "STATE", "RUNNING", "WAITING", "BEHIND", "DEAD", "OLDEST", "NEXT TRY"];
    text.push_str(&table(&head, status.handlers.iter().map(|h| row(h, now)).collect(), style));
    for (h, open) in status.handlers.iter().filter_map(|h| Some((h, h.circuit.as_ref()?))) {
        text.push_str(&format!(
            "{} failed {} times in a row since {}: its deliveries wait and use up no attempts; tried again {}\n",
            escape(&h.name),
            open.failures,
            relative(&open.since, now),
            relative(&open.next_probe_at, now),
        ));
    }
    text
}

fn follow_up(rule: &FollowUpJson, now: Timestamp) -> String {
    let state = match (rule.configured, rule.paused) {
        (false, _) => ", not configured: its timers rest",
        (true, true) => ", paused",
        (true, false) => "",
    };
    let next = rule.next_due_at.as_ref().map(|due| format!(", next due {}", relative(due, now)));
    let (name, next) = (escape(&rule.name), next.unwrap_or_default());
    format!("follow-up {name}: {} waiting{next}{state}\n", rule.waiting)
}

/// One line for a place in the log that is lost.
pub fn lost(d: &LostJson) -> String {
    let records = match (d.first_seq, d.last_seq) {
        (first, last) if first == last => format!("record {first}"),
        (first, last) if first < last => format!("records {first} to {last}"),
        _ => format!("{} unreadable bytes, perhaps with records", d.bytes),
    };
    format!("lost: {records}, in {} at byte {}\n", escape(&d.segment), d.offset)
}

fn row(h: &HandlerJson, now: Timestamp) -> Vec<Cell> {
    let state = match (h.configured, h.paused, &h.circuit) {
        (false, ..) => "parked",
        (true, true, _) => "paused",
        (true, false, Some(_)) => "failing",
        (true, false, None) => "active",
    };
    let more = if h.behind >= BACKLOG_COUNT_MAX { "+" } else { "" };
    let time = |t: &Option<String>| t.as_ref().map_or(String::from("-"), |t| relative(t, now));
    // While the circuit is open nothing runs before the next probe, whatever is due.
    let next = h.circuit.as_ref().map(|open| open.next_probe_at.clone()).or(h.next_due_at.clone());
    vec![
        (&h.name).into(),
        Cell::in_state(state, state),
        h.running.to_string().into(),
        h.scheduled.to_string().into(),
        format!("{}{more}", h.behind).into(),
        h.dead.to_string().into(),
        time(&h.oldest_undelivered).into(),
        time(&next).into(),
    ]
}
