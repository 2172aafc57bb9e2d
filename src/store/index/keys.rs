//! The index's keys and values. One tree; the first byte is the family; numbers are big-endian, so
//! that byte order is their order.

use bincode::{Decode, Encode};

use super::KvError;
use crate::clock::{BootId, Timestamp};
use crate::delivery::{Delivery, DeliveryKey, HandlerName, Seq};
use crate::event::{DedupKey, body_hash, dedup_key};
use crate::message::REPORTS;
use crate::store::log::Place;

/// Raised when a key or value changes; an index of another format is rebuilt.
pub const FORMAT: u32 = 6;

/// `l` event → [`EventEntry`]
pub const EVENTS: u8 = b'l';
/// `i` era of the event, duplicate key → [`IdEntry`]
pub const IDS: u8 = b'i';
/// `u` event → [`RepeatEntry`]
pub const REPEATS: u8 = b'u';
/// `d` event, handler → [`DeliveryEntry`]; all but those that succeeded at their first attempt
pub const DELIVERIES: u8 = b'd';
/// `a` event, handler, record → [`PlaceValue`] of an attempt, or of a snapshot with several
pub const ATTEMPTS: u8 = b'a';
/// `t` handler, due, event: the unsettled
pub const DUE: u8 = b't';
/// `o` handler, event: the unsettled that wait for another attempt, by age
pub const WAITING: u8 = b'o';
/// `x` event, handler: the dead
pub const DEAD: u8 = b'x';
/// `c` handler, event / 256 → [`BucketEntry`]: the delivered at once
pub const BUCKETS: u8 = b'c';
/// `h` handler → [`HandlerEntry`]
pub const HANDLERS: u8 = b'h';
/// `s` source: every one ever seen
pub const SOURCES: u8 = b's';
/// `n` era, message, event: the events of a message
pub const MESSAGES: u8 = b'n';
/// `v` era, conversation, event: what may have been said in it (all but reports of how far a message got)
pub const VOICES: u8 = b'v';
/// `w` follow-up rule, conversation → the event whose timer runs there, or whose timer fired unanswered
pub const FOLLOW_UPS: u8 = b'w';
/// `g` segment, event: events carried into a segment
pub const CARRIED: u8 = b'g';
/// `j` number → a page of changes to the packed families that the log's events alone would not bring back
pub const JOURNAL: u8 = b'j';
/// `m`: what the index knows of itself
pub const META: u8 = b'm';

pub const META_POSITION: &[u8] = b"mp";
/// Up to here the pages are complete: a [`Position`].
pub const META_PACKED: &[u8] = b"mpacked";
pub const META_SESSION: &[u8] = b"ms";
pub const META_EVENTS: &[u8] = b"me";
/// How many duplicate keys there are.
pub const META_IDS: &[u8] = b"mi";
/// Bytes on disk when it had been copied last, and what had been expected of it then.
pub const META_DENSE: &[u8] = b"mdense";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PlaceValue {
    pub segment: u32,
    pub offset: u32,
    pub len: u32,
}

impl From<Place> for PlaceValue {
    fn from(p: Place) -> PlaceValue {
        PlaceValue { segment: p.segment, offset: p.offset, len: p.len }
    }
}

impl From<PlaceValue> for Place {
    fn from(p: PlaceValue) -> Place {
        Place { segment: p.segment, offset: p.offset, len: p.len }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EventEntry {
    pub place: PlaceValue,
    /// The record at `place`: the event's own, or the one that carried it forward.
    pub record: Seq,
    /// Schedule time of the first record.
    pub time: Timestamp,
    pub received_at: Timestamp,
    pub kind: String,
    pub source: String,
    pub conversation: Option<u64>,
    /// A hash of source and messageId.
    pub message: Option<u64>,
    pub imported: bool,
}

impl EventEntry {
    /// The conversation, if something may have been said in it.
    #[must_use]
    pub fn voice(&self) -> Option<u64> {
        self.conversation.filter(|_| !REPORTS.contains(&self.kind.as_str()))
    }
}

#[must_use]
pub fn conversation_hash(address: &str) -> u64 {
    u64::from_be_bytes(body_hash(address.as_bytes()))
}

/// Whoever goes by it compares the messages' own ids: two may have the same hash.
#[must_use]
pub fn message_hash(source: &str, id: &str) -> u64 {
    u64::from_be_bytes(body_hash(&dedup_key(source, id)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct IdEntry {
    pub seq: Seq,
    pub body_hash: [u8; 8],
}

/// How many conflicting bodies are kept for one event.
pub const CONFLICTS_MAX: usize = 16;

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RepeatEntry {
    pub count: u32,
    /// Records that hold a conflicting body.
    pub conflicts: Vec<(Seq, PlaceValue)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeliveryEntry {
    pub delivery: Delivery,
    /// The last record that changed it.
    pub changed: Seq,
    /// There may be `a` keys. Not while the very first attempt runs.
    pub has_history: bool,
    /// Of a follow-up: where no other timer of its rule is to be set, as long as nobody answers.
    pub conversation: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BucketEntry {
    /// One bit for each of the 256 events.
    pub delivered: [u8; 32],
    /// The records that say so lie between these two, and from this place on.
    pub first: Seq,
    pub last: Seq,
    pub segment: u32,
    pub offset: u32,
}

impl BucketEntry {
    #[must_use]
    pub fn new(first: Seq, place: Place) -> BucketEntry {
        let Place { segment, offset, .. } = place;
        BucketEntry { delivered: [0; 32], first, last: first, segment, offset }
    }

    #[must_use]
    pub fn has(&self, event: Seq) -> bool {
        let (byte, bit) = bit_of(event);
        self.delivered[byte] & bit != 0
    }

    pub fn set(&mut self, event: Seq) {
        let (byte, bit) = bit_of(event);
        self.delivered[byte] |= bit;
    }
}

fn bit_of(event: Seq) -> (usize, u8) {
    let low = event.to_be_bytes()[7];
    (usize::from(low / 8), 1 << (low % 8))
}

#[must_use]
pub fn bucket_of(event: Seq) -> u64 {
    event / 256
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct HandlerEntry {
    /// The next event to consider; `None` while only deliveries are known (imported ones).
    pub cursor: Option<Seq>,
    pub paused: bool,
    /// The record that last said so.
    pub paused_by: Seq,
    pub scheduled: u64,
    pub dead: u64,
}

/// Everything up to `applied` is in the index; the log goes on at `segment`, `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Position {
    pub format: u32,
    pub applied: Seq,
    pub segment: u32,
    pub offset: u64,
    /// The last record that was applied, to recognise the log by: absent where it was damaged.
    pub last: Option<(PlaceValue, Timestamp)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Session {
    pub boot_id: BootId,
    /// Closed after everything was synced.
    pub clean: bool,
}

/// Values stay far below this; the limit keeps a corrupt length from asking for memory.
const VALUE_BYTES_MAX: usize = 64 * 1024;

fn layout() -> impl bincode::config::Config {
    // Numbers take as many bytes as they need: the index is mostly numbers, and small.
    bincode::config::standard().with_limit::<VALUE_BYTES_MAX>()
}

/// # Errors
/// The value is larger than any should be.
pub fn to_value(value: &impl Encode) -> Result<Vec<u8>, KvError> {
    bincode::encode_to_vec(value, layout()).map_err(|e| KvError(format!("a value: {e}")))
}

/// # Errors
/// The bytes are no such value: the index is damaged.
pub fn from_value<T: Decode<()>>(bytes: &[u8]) -> Result<T, KvError> {
    match bincode::decode_from_slice(bytes, layout()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok(_) => Err(KvError("a value is longer than it should be".to_owned())),
        Err(e) => Err(KvError(format!("a value cannot be read: {e}"))),
    }
}

/// Puts keys together.
struct Key(Vec<u8>);

impl Key {
    fn of(family: u8) -> Key {
        Key(vec![family])
    }

    fn number(mut self, n: u64) -> Key {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    fn segment(mut self, n: u32) -> Key {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    /// Length first, so that no name is another's prefix.
    fn handler(mut self, name: &HandlerName) -> Key {
        let name = name.as_str();
        self.0.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(name.as_bytes());
        self
    }

    fn time(self, t: Timestamp) -> Key {
        // Flipping the sign bit makes byte order the order of signed numbers.
        self.number(t.0.cast_unsigned() ^ (1 << 63))
    }
}

#[must_use]
pub fn event(seq: Seq) -> Vec<u8> {
    Key::of(EVENTS).number(seq).0
}

/// Duplicate keys are hashes: see [`link`].
#[must_use]
pub fn id(event: Seq, key: &DedupKey) -> Vec<u8> {
    id_in(era_of(event), key)
}

#[must_use]
pub fn id_in(era: u64, key: &DedupKey) -> Vec<u8> {
    let mut k = Key::of(IDS).number(era).0;
    k.extend_from_slice(key);
    k
}

#[must_use]
pub fn journal(number: u64) -> Vec<u8> {
    Key::of(JOURNAL).number(number).0
}

#[must_use]
pub fn repeats(seq: Seq) -> Vec<u8> {
    Key::of(REPEATS).number(seq).0
}

#[must_use]
pub fn delivery(key: &DeliveryKey) -> Vec<u8> {
    Key::of(DELIVERIES).number(key.event).handler(&key.handler).0
}

#[must_use]
pub fn attempt(key: &DeliveryKey, record: Seq) -> Vec<u8> {
    Key::of(ATTEMPTS).number(key.event).handler(&key.handler).number(record).0
}

#[must_use]
pub fn due(handler: &HandlerName, due: Timestamp, event: Seq) -> Vec<u8> {
    Key::of(DUE).handler(handler).time(due).number(event).0
}

#[must_use]
pub fn waiting(handler: &HandlerName, event: Seq) -> Vec<u8> {
    Key::of(WAITING).handler(handler).number(event).0
}

#[must_use]
pub fn dead(key: &DeliveryKey) -> Vec<u8> {
    Key::of(DEAD).number(key.event).handler(&key.handler).0
}

#[must_use]
pub fn bucket(handler: &HandlerName, bucket: u64) -> Vec<u8> {
    Key::of(BUCKETS).handler(handler).number(bucket).0
}

#[must_use]
pub fn handler(handler: &HandlerName) -> Vec<u8> {
    Key::of(HANDLERS).handler(handler).0
}

#[must_use]
pub fn source(name: &str) -> Vec<u8> {
    let mut k = vec![SOURCES];
    k.extend_from_slice(name.as_bytes());
    k
}

/// Hashes are written all over a family. By era they fall among the newest keys alone, so that the pages of
/// all older ones stay as they are.
const EVENTS_PER_ERA: u64 = 1 << 16;

/// An event under the hash of its message or conversation.
#[must_use]
pub fn link(family: u8, hash: u64, event: Seq) -> Vec<u8> {
    Key::of(family).number(era_of(event)).number(hash).number(event).0
}

#[must_use]
pub fn era_of(event: Seq) -> u64 {
    event / EVENTS_PER_ERA
}

/// The first event of the next era.
#[must_use]
pub fn era_end(event: Seq) -> Seq {
    (event / EVENTS_PER_ERA + 1).saturating_mul(EVENTS_PER_ERA)
}

/// The first event of its era.
#[must_use]
pub fn era_start(event: Seq) -> Seq {
    event / EVENTS_PER_ERA * EVENTS_PER_ERA
}

#[must_use]
pub fn follow_up(rule: &HandlerName, conversation: u64) -> Vec<u8> {
    Key::of(FOLLOW_UPS).handler(rule).number(conversation).0
}

#[must_use]
pub fn carried(segment: u32, event: Seq) -> Vec<u8> {
    Key::of(CARRIED).segment(segment).number(event).0
}

/// `(from, to)` of all keys that begin with family and this number, of an event.
#[must_use]
pub fn of_number(family: u8, number: u64) -> (Vec<u8>, Vec<u8>) {
    let from = Key::of(family).number(number).0;
    (from.clone(), after_prefix(from))
}

/// All attempts of one delivery.
#[must_use]
pub fn of_delivery(key: &DeliveryKey) -> (Vec<u8>, Vec<u8>) {
    let from = Key::of(ATTEMPTS).number(key.event).handler(&key.handler).0;
    (from.clone(), after_prefix(from))
}

/// All keys of one handler in a family that begins with it.
#[must_use]
pub fn of_handler(family: u8, name: &HandlerName) -> (Vec<u8>, Vec<u8>) {
    let from = Key::of(family).handler(name).0;
    (from.clone(), after_prefix(from))
}

#[must_use]
pub fn of_segment(family: u8, segment: u32) -> (Vec<u8>, Vec<u8>) {
    let from = Key::of(family).segment(segment).0;
    (from.clone(), after_prefix(from))
}

/// A whole family.
#[must_use]
pub fn family(family: u8) -> (Vec<u8>, Vec<u8>) {
    (vec![family], vec![family + 1])
}

/// The least key above every key with this prefix.
fn after_prefix(mut prefix: Vec<u8>) -> Vec<u8> {
    while prefix.last() == Some(&u8::MAX) {
        prefix.pop();
    }
    if let Some(last) = prefix.last_mut() {
        *last += 1;
    }
    prefix
}

/// The least key above `key`.
#[must_use]
pub fn successor(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// The number a key ends with.
#[must_use]
pub fn last_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.last_chunk()?))
}

/// The number after the family byte.
#[must_use]
pub fn first_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.get(1..)?.first_chunk()?))
}

/// The due time in a `t` key.
#[must_use]
pub fn due_of(key: &[u8]) -> Option<Timestamp> {
    let bytes: &[u8; 16] = key.last_chunk()?;
    let time = u64::from_be_bytes(*bytes.first_chunk()?);
    Some(Timestamp((time ^ (1 << 63)).cast_signed()))
}

/// The handler in a key of family, event, handler.
#[must_use]
pub fn handler_after_event(key: &[u8]) -> Option<HandlerName> {
    name_at(key, 9)
}

/// The handler in a key of family, handler, ….
#[must_use]
pub fn handler_after_family(key: &[u8]) -> Option<HandlerName> {
    name_at(key, 1)
}

fn name_at(key: &[u8], at: usize) -> Option<HandlerName> {
    let (len, rest) = key.get(at..)?.split_first()?;
    let name = std::str::from_utf8(rest.get(..usize::from(*len))?).ok()?;
    HandlerName::new(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: &str) -> HandlerName {
        HandlerName::new(n).unwrap()
    }

    #[test]
    fn due_keys_sort_by_time_then_event_also_before_the_epoch() {
        let h = name("crm");
        let mut sorted = vec![];
        for t in [i64::MIN, -5, 0, 5, i64::MAX] {
            for seq in [1, 256, u64::MAX] {
                sorted.push(due(&h, Timestamp(t), seq));
                assert_eq!(due_of(sorted.last().unwrap()), Some(Timestamp(t)));
                assert_eq!(last_number(sorted.last().unwrap()), Some(seq));
            }
        }
        assert!(sorted.is_sorted());
    }

    #[test]
    fn no_handler_is_within_the_range_of_another() {
        let (from, to) = of_handler(DUE, &name("a"));
        for other in ["ab", "b", "aa"] {
            let key = due(&name(other), Timestamp(0), 1);
            assert!(key < from || key >= to, "{other}");
        }
        let key = due(&name("a"), Timestamp::MAX, u64::MAX);
        assert!(from <= key && key < to);
    }

    #[test]
    fn the_range_of_an_event_ends_before_the_next_even_at_byte_boundaries() {
        for seq in [0, 0xff, 0xffff, u64::MAX] {
            let (from, to) = of_number(DELIVERIES, seq);
            let key = delivery(&DeliveryKey { event: seq, handler: name("crm") });
            assert!(from <= key && key < to);
            if seq < u64::MAX {
                let next = delivery(&DeliveryKey { event: seq + 1, handler: name("a") });
                assert!(next >= to);
            }
        }
    }

    #[test]
    fn names_are_read_back_from_keys() {
        let key = DeliveryKey { event: 3, handler: name("crm") };
        assert_eq!(handler_after_event(&delivery(&key)), Some(name("crm")));
        assert_eq!(handler_after_event(&attempt(&key, 9)), Some(name("crm")));
        assert_eq!(handler_after_family(&bucket(&name("crm"), 1)), Some(name("crm")));
    }
}
