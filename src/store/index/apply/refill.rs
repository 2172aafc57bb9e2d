//! What a crash took along of the packed families comes back from the log.

use std::sync::Arc;

use super::{Applier, At, RECORD_OPS_MAX, event_entry};
use crate::event;
use crate::store::index::keys::{IdEntry, Position};
use crate::store::index::{Kv, KvError};
use crate::store::log::{LogReader, ScanItem};
use crate::store::record::{self, EventRecord, Record};

/// Events after `after` and up to `upto`. Before and after them the index is right already: whatever else those records
/// say is in it, and may have been changed by later ones.
///
/// # Errors
/// The log cannot be read there any more: the index has to be built anew.
pub fn refill(
    kv: Arc<dyn Kv>,
    reader: &LogReader,
    after: Position,
    upto: Position,
) -> Result<(), KvError> {
    let offset = u32::try_from(after.offset).unwrap_or(u32::MAX);
    let mut scan = reader.scan((after.segment, offset), upto.applied).after(after.applied);
    let unread = |why: String| KvError(format!("what it lacks cannot be read from the log: {why}"));
    let records = std::iter::from_fn(|| match scan.next().map_err(|e| unread(e.to_string())) {
        Ok(None) => None,
        Ok(Some(ScanItem::Damage(_))) => Some(Err(unread("records are damaged".to_owned()))),
        Ok(Some(ScanItem::Frame(frame))) => {
            let at = At { seq: frame.seq, time: frame.time, place: frame.place };
            // What could not be understood then was passed over, too.
            Some(Ok((at, record::decode(frame.kind, &frame.payload).ok())))
        }
        Err(error) => Some(Err(error)),
    });
    refill_with(kv, after, records)
}

/// Errors are those of `records`, and of the index.
pub(in crate::store::index) fn refill_with(
    kv: Arc<dyn Kv>,
    after: Position,
    records: impl Iterator<Item = Result<(At, Option<Record>), KvError>>,
) -> Result<(), KvError> {
    let mut applier = Applier::new(kv.clone(), after);
    for record in records {
        if let (at, Some(Record::Event(event))) = record? {
            applier.event_again(at, &event)?;
        }
    }
    applier.overlay.write_out(None)?;
    kv.is_complete_again();
    Ok(())
}

impl Applier {
    fn event_again(&mut self, at: At, event: &EventRecord) -> Result<(), KvError> {
        if !self.overlay.has_room(RECORD_OPS_MAX) {
            self.overlay.write_out(None)?;
        }
        let key = event::dedup_key(&event.source, &event.id);
        // A later one of the same key has counted as a repeat.
        if self.overlay.id(&key)?.is_some_and(|known| known.seq != at.seq) {
            return Ok(());
        }
        let id = IdEntry { seq: at.seq, body_hash: event::body_hash(&event.body) };
        self.pack(&event_entry(at, at.time, event), &key, &id)
    }
}
