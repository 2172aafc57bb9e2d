//! `events tail`: new events and the results of attempts, as they come.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Response;

use super::args::Common;
use super::client::{Body, Client};
use super::render::{Style, escape};
use super::{Failure, UNREACHABLE, print};
use crate::admin::wire::{EventItem, StreamItem};

const PATH: &str = "/api/v1/events/stream";
/// Between two tries to be connected again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Goes on where it was after a restart of the appliance. Ends when it is stopped, or where it is refused.
pub async fn tail(common: &Common, client: &Client) -> Result<(), Failure> {
    let mut reader = Reader { style: Style::of(common), json: common.json, last: None };
    let mut answer = client.stream(PATH, None).await?;
    loop {
        reader.read(answer).await?;
        if !common.quiet {
            note("the stream was cut off; waiting for bluehook to come back");
        }
        answer = loop {
            tokio::time::sleep(AGAIN_AFTER).await;
            match client.stream(PATH, reader.last.as_deref()).await {
                Ok(answer) => break answer,
                Err(failure) if failure.code == UNREACHABLE => {}
                Err(failure) => return Err(failure),
            }
        };
    }
}

#[expect(clippy::print_stderr, reason = "it is for whoever watches, not part of the list")]
fn note(text: &str) {
    eprintln!("bluehook: {text}");
}

struct Reader {
    style: Style,
    json: bool,
    /// The id of the last item that was printed.
    last: Option<String>,
}

impl Reader {
    /// Prints what comes, until the stream ends or is cut off.
    async fn read(&mut self, mut answer: Response<Body>) -> Result<(), Failure> {
        let mut rest: Vec<u8> = Vec::new();
        let mut id = None;
        while let Some(Ok(frame)) = answer.frame().await {
            rest.extend(frame.into_data().unwrap_or_default());
            while let Some(at) = rest.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = rest.drain(..=at).collect();
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end();
                if let Some(json) = line.strip_prefix("data: ") {
                    if self.json {
                        print(&format!("{json}\n"))?;
                    } else if let Ok(item) = serde_json::from_str::<StreamItem>(json) {
                        print(&line_of(&item, self.style))?;
                    }
                } else if let Some(next) = line.strip_prefix("id: ") {
                    id = Some(next.to_owned());
                } else if line.is_empty() {
                    // Only now the item is whole.
                    self.last = id.take().or(self.last.take());
                }
            }
        }
        Ok(())
    }
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
