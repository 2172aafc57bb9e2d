//! Messages and conversations, as the events in the log tell them.

use std::ops::Range;

use super::{EventHead, Page, Store};
use crate::clock::Timestamp;
use crate::delivery::{Delivery, DeliveryKey, HandlerName, Seq};
use crate::message::{MessageView, Report, Status};

/// A message with what each of its events says, oldest event first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub view: MessageView,
    pub reports: Vec<(Seq, Report)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageFilter {
    pub status: Option<Status>,
    pub source: Option<String>,
    /// The other party's address, normalised.
    pub conversation: Option<String>,
    /// Wall clock, inclusive / exclusive, over when its newest event was received.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Plain substring of its id, its parties or its text.
    pub search: Option<String>,
}

impl MessageFilter {
    pub(super) fn fits_entry(&self, source: &str, received_at: Timestamp) -> bool {
        self.source.as_ref().is_none_or(|wanted| wanted == source)
            && self.since.is_none_or(|since| received_at >= since)
            && self.until.is_none_or(|until| received_at < until)
    }

    pub(super) fn fits(&self, view: &MessageView) -> bool {
        let has = |text: &str| {
            let fields = [Some(&view.id), view.from.as_ref(), view.to.as_ref(), view.body.as_ref()];
            fields.into_iter().flatten().any(|field| field.contains(text))
        };
        self.status.is_none_or(|status| status == view.status)
            && (self.conversation.is_none() || self.conversation == view.conversation)
            && self.search.as_deref().is_none_or(has)
    }
}

impl Store {
    /// The message with this id, of that source, or of whichever source has one.
    #[must_use]
    pub fn message(&self, source: Option<&str>, id: &str) -> Option<Message> {
        let sources = match source {
            Some(source) => vec![source.to_owned()],
            None => self.read(|view| view.sources()).unwrap_or_default(),
        };
        sources.iter().find_map(|source| self.read(|view| view.message(source, id)).flatten())
    }

    /// The message that an event belongs to.
    #[must_use]
    pub fn message_of(&self, event: Seq) -> Option<Message> {
        self.read(|view| view.message_of(event)).flatten()
    }

    // --- what follow-ups are decided by; `None`: it cannot be told just now ---

    /// What may have been said in a conversation among these events, oldest first.
    #[must_use]
    pub fn voices(&self, conversation: u64, events: Range<Seq>) -> Option<Vec<EventHead>> {
        self.read(|view| view.voices(conversation, events))
    }

    /// The events of a message, by its hash, oldest first.
    #[must_use]
    pub fn heads_of_message(&self, message: u64) -> Option<Vec<EventHead>> {
        self.read(|view| view.heads_of_message(message))
    }

    /// The event whose timer of this rule runs in the conversation, or fired there and was not answered.
    #[must_use]
    pub fn follow_up(&self, rule: &HandlerName, conversation: u64) -> Option<Option<Seq>> {
        self.read(|view| view.follow_up(rule, conversation))
    }

    /// The conversation in which this delivery is the only timer of its rule.
    #[must_use]
    pub fn followed(&self, key: &DeliveryKey) -> Option<Option<u64>> {
        self.read(|view| view.followed(key))
    }

    #[must_use]
    pub fn known_delivery(&self, key: &DeliveryKey) -> Option<Option<Delivery>> {
        self.read(|view| view.delivery(key))
    }

    /// Those with the newest event first.
    #[must_use]
    pub fn list_messages(
        &self,
        filter: &MessageFilter,
        cursor: Option<Seq>,
        limit: usize,
    ) -> Page<Message> {
        self.read(|view| view.list_messages(filter, cursor, limit)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{WALL, in_memory, settled};
    use super::*;
    use crate::event::{Envelope, NewEvent, VerifiedBy};

    fn event(id: &str, kind: &str, data: &str, after: u64) -> NewEvent {
        let body = format!(r#"{{"eventId":"{id}","type":"{kind}","data":{data}}}"#);
        NewEvent {
            source: "bluereplies".into(),
            id: id.into(),
            kind: kind.into(),
            received_at: WALL.plus(Duration::from_secs(after)),
            headers: vec![],
            verified_by: VerifiedBy::Raw,
            conversation: Envelope::parse(body.as_bytes()).conversation(),
            body: body.into(),
            imported: false,
        }
    }

    async fn with(events: &[NewEvent]) -> Store {
        let store = in_memory();
        for event in events {
            store.append_event(event.clone()).await.unwrap();
        }
        settled(&store).await;
        store
    }

    #[tokio::test]
    async fn a_message_is_found_by_its_id_and_by_each_of_its_events() {
        let store = with(&[
            event("e1", "message.read", r#"{"messageId":"m1"}"#, 0),
            event("e2", "message.sent", r#"{"messageId":"m1","to":"+1 555","body":"Hi"}"#, 1),
            event("e3", "message.received", r#"{"messageId":"m2","from":"1-555"}"#, 2),
            event("e4", "message.received", r#"{"messageId":"m3","from":"+2"}"#, 3),
            event("e5", "something", "{}", 4),
        ])
        .await;
        let message = store.message(None, "m1").unwrap();
        assert_eq!(message.view.status, Status::Read);
        assert_eq!(message.view.body.as_deref(), Some("Hi"));
        assert_eq!(message.view.last_inbound_at, Some(WALL.plus(Duration::from_secs(2))));
        assert_eq!(
            message.reports.iter().map(|(_, r)| &*r.event_id).collect::<Vec<_>>(),
            ["e1", "e2"]
        );
        for (seq, _) in &message.reports {
            assert_eq!(store.message_of(*seq).as_ref(), Some(&message));
        }
        assert_eq!(store.message(Some("bluereplies"), "m1"), Some(message));
        assert_eq!(store.message(Some("other"), "m1"), None);
        assert_eq!(store.message_of(store.find("e5")[0]), None);
        store.close().await;
    }

    #[tokio::test]
    async fn the_list_has_each_message_once_the_one_with_the_newest_event_first() {
        let store = with(&[
            event("e1", "message.sent", r#"{"messageId":"m1","to":"+1"}"#, 0),
            event("e2", "message.sent", r#"{"messageId":"m2","to":"+2"}"#, 1),
            event("e3", "message.sent", r#"{"messageId":"m3","to":"+1"}"#, 2),
            event("e4", "message.read", r#"{"messageId":"m1"}"#, 3),
        ])
        .await;
        let ids = |filter: &MessageFilter| -> Vec<String> {
            let (mut ids, mut cursor) = (vec![], None);
            loop {
                let page = store.list_messages(filter, cursor, 1);
                ids.extend(page.items.into_iter().map(|m| m.view.id));
                cursor = page.next;
                if cursor.is_none() {
                    return ids;
                }
            }
        };
        assert_eq!(ids(&MessageFilter::default()), ["m1", "m3", "m2"]);
        let read = MessageFilter { status: Some(Status::Read), ..MessageFilter::default() };
        assert_eq!(ids(&read), ["m1"]);
        let with = MessageFilter { conversation: Some("1".into()), ..MessageFilter::default() };
        assert_eq!(ids(&with), ["m1", "m3"]);
        let found = MessageFilter { search: Some("m2".into()), ..MessageFilter::default() };
        assert_eq!(ids(&found), ["m2"]);
        store.close().await;
    }
}
