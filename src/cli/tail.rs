//! `events tail`: new events and the results of attempts, as they come.

use http_body_util::BodyExt as _;
use hyper::Method;

use super::args::Common;
use super::client::{Client, empty};
use super::render::{Style, escape};
use super::{Failure, print};
use crate::admin::wire::{EventItem, StreamItem};

pub async fn tail(common: &Common, client: &Client) -> Result<(), Failure> {
    let style = Style::of(common);
    let mut answer = client.send(Method::GET, "/api/v1/events/stream", empty()).await?;
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|e| {
            Failure::unreachable(format!("the stream was cut off: {e}; is bluehook still running?"))
        })?;
        rest.extend(frame.into_data().unwrap_or_default());
        while let Some(at) = rest.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = rest.drain(..=at).collect();
            let line = String::from_utf8_lossy(&line);
            let Some(json) = line.trim_end().strip_prefix("data: ") else { continue };
            if common.json {
                print(&format!("{json}\n"))?;
            } else if let Ok(item) = serde_json::from_str::<StreamItem>(json) {
                print(&line_of(&item, style))?;
            }
        }
    }
    Err(Failure::unreachable("the stream ended: bluehook stopped; start it with `bluehook serve`"))
}

/// `-->` came in, `<--` what a handler made of it.
fn line_of(item: &StreamItem, style: Style) -> String {
    match item {
        StreamItem::Event(EventItem { event: e, .. }) => format!(
            "--> {} {} {} from {}\n",
            escape(&e.received_at),
            escape(&e.kind),
            escape(&e.event_id),
            escape(&e.source)
        ),
        StreamItem::Attempt { event_id, event_type, handler, state, due_at, attempt, .. } => {
            let reason = attempt.reason.as_deref().map(|r| format!(": {}", escape(r)));
            let due = due_at.as_deref().map(|due| format!(", again at {}", escape(due)));
            format!(
                "<-- {} {} {} {} {} in {} ms{}{}\n",
                escape(&attempt.started_at),
                escape(event_type),
                escape(event_id),
                escape(handler),
                style.paint(state, &escape(state)),
                attempt.took_ms,
                reason.unwrap_or_default(),
                due.unwrap_or_default()
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::wire::AttemptJson;

    #[test]
    fn an_attempt_is_one_line_whatever_the_event_is_called() {
        let attempt = AttemptJson {
            number: 2,
            generation: 0,
            started_at: "2026-11-25T09:34:00.000Z".into(),
            took_ms: 12,
            outcome: "retry".into(),
            reason: Some("500\nInternal".into()),
            request: None,
            response: None,
        };
        let item = StreamItem::Attempt {
            seq: 7,
            event_id: "evt_\u{1b}[2J".into(),
            event_type: "message.read".into(),
            handler: "crm".into(),
            state: "scheduled".into(),
            due_at: Some("2026-11-25T09:36:00.000Z".into()),
            attempt,
        };
        assert_eq!(
            line_of(&item, Style { width: 80, colour: false }),
            "<-- 2026-11-25T09:34:00.000Z message.read evt_\\u{1b}[2J crm scheduled in 12 ms: \
             500\\nInternal, again at 2026-11-25T09:36:00.000Z\n"
        );
    }
}
