//! Salvage: what is readable goes into a fresh store, the damaged one is kept whole beside it.
//!
//! The numbers of lost records would leave holes, so records are numbered anew and what refers to them
//! follows. Event ids, times and history stay.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::{self, CheckReport, walk};
use super::disk::{Disk, RealDisk};
use super::log::{Damage, LogError, LogOptions, LogReader, LogWriter, ScanItem, put_in_order};
use super::record::{self, Record, RepeatRecord};
use super::{OpenError, files};
use crate::delivery::{DeliveryKey, Seq};

/// Records that wait for one write and sync.
const BATCH_RECORDS: u64 = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairReport {
    /// What was wrong, and with it what was lost.
    pub found: CheckReport,
    /// Segments had changed places; now they are where they belong.
    pub reordered: bool,
    /// Where the damaged store is kept; `None`: no record was damaged, the store stayed where it is.
    pub kept: Option<PathBuf>,
    pub records: u64,
    /// Readable records about events that are lost.
    pub orphans: u64,
}

/// Puts a sound store in the place of a damaged one.
///
/// # Errors
/// An instance runs on the directory, it cannot be read, or there is no room for the copy. The damaged
/// store is then where it was.
pub fn repair(data_dir: &Path) -> Result<RepairReport, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    check::must_exist(&*disk, data_dir)?;
    // Held until the end: it goes along with the damaged store.
    let _lock = files::lock(data_dir)?;
    let failed = |e: &dyn std::fmt::Display| {
        OpenError::Other(format!("cannot repair the store in {}: {e}", data_dir.display()))
    };
    let reordered = put_in_order(&*disk, &files::log_dir(data_dir)).map_err(|e| failed(&e))?;
    let mut found = check::check_locked(&disk, data_dir)?;
    if found.is_sound() {
        let records = found.records;
        return Ok(RepairReport { records, found, reordered, kept: None, orphans: 0 });
    }
    let fresh = beside(data_dir, "repaired").map_err(|e| failed(&e))?;
    let kept = beside(data_dir, "damaged").map_err(|e| failed(&e))?;
    drop(files::lock(&fresh)?);
    files::check_version(&*disk, &fresh)?;
    if let Some(timeline) = files::read_timeline(&*disk, data_dir)? {
        files::write_timeline(&*disk, &fresh, timeline)?;
    }
    let reader = LogReader::new(disk.clone(), &files::log_dir(data_dir));
    let Salvaged { records, orphans, damage } =
        salvage(&reader, disk.clone(), &files::log_dir(&fresh)).map_err(|e| failed(&e))?;
    // A disk that fails may have read less this time.
    found.damage = damage;
    // Whatever else lies there (the generated secret, the socket) belongs to the user: it is copied along.
    copy_others(data_dir, &fresh).map_err(|e| failed(&e))?;
    fs::rename(data_dir, &kept).map_err(|e| failed(&e))?;
    fs::rename(&fresh, data_dir).map_err(|e| failed(&e))?;
    if let Some(parent) = data_dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(|e| failed(&e))?;
    }
    Ok(RepairReport { found, reordered, kept: Some(kept), records, orphans })
}

/// `<data_dir>.<what>-<n>`, the first that is free.
fn beside(data_dir: &Path, what: &str) -> io::Result<PathBuf> {
    let name = data_dir.file_name().ok_or_else(|| io::Error::other("it has no name"))?;
    let name = name.to_string_lossy();
    (1..1000)
        .map(|n| data_dir.with_file_name(format!("{name}.{what}-{n}")))
        .find(|path| !path.exists())
        .ok_or_else(|| io::Error::other(format!("too many {name}.{what}-n")))
}

fn copy_others(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, target) = (entry.file_name(), to.join(entry.file_name()));
        let ours = name.to_str().is_some_and(|n| n == "index" || n == "index.aside");
        if entry.file_type()?.is_file() && !ours && !target.exists() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

struct Salvaged {
    records: u64,
    orphans: u64,
    damage: Vec<Damage>,
}

fn salvage(reader: &LogReader, disk: Arc<dyn Disk>, log_dir: &Path) -> Result<Salvaged, LogError> {
    let (mut writer, _) = LogWriter::open(disk, log_dir, LogOptions::default())?;
    let mut numbers = Numbers::default();
    let (mut records, mut orphans, mut damage, mut error) = (0, 0, Vec::new(), None);
    walk(reader, |item| {
        let frame = match item {
            ScanItem::Frame(frame) => frame,
            ScanItem::Damage(d) => return damage.push(d),
        };
        let Ok(record) = record::decode(frame.kind, &frame.payload) else { return };
        let next = writer.next_seq();
        let time = match &record {
            Record::Carried { time, .. } => *time,
            _ => frame.time,
        };
        if next == 1 {
            // Number 1 is no event, so it can stand for one that is gone.
            let (kind, payload) = record::encode(&Record::Stopped);
            writer.append(time, kind, &payload);
        }
        let next = writer.next_seq();
        let Some(record) = numbers.renumbered(record, frame.seq, next) else {
            orphans += 1;
            return;
        };
        let (kind, payload) = record::encode(&record);
        writer.append(time, kind, &payload);
        records += 1;
        if next % BATCH_RECORDS == 0 && error.is_none() {
            error = writer.write().and_then(|()| writer.sync()).err();
        }
    })?;
    if let Some(error) = error {
        return Err(error.into());
    }
    writer.write()?;
    writer.sync()?;
    Ok(Salvaged { records, orphans, damage })
}

/// Which number an event had, and has now.
#[derive(Default)]
struct Numbers {
    events: BTreeMap<Seq, Seq>,
}

impl Numbers {
    /// The record as number `next`; `None` where it is about an event that is lost or no longer kept.
    fn renumbered(&mut self, record: Record, seq: Seq, next: Seq) -> Option<Record> {
        let key = |k: DeliveryKey, events: &BTreeMap<Seq, Seq>| {
            let event = *events.get(&k.event)?;
            Some(DeliveryKey { event, ..k })
        };
        let events = &mut self.events;
        Some(match record {
            Record::Event(event) => {
                events.insert(seq, next);
                Record::Event(event)
            }
            Record::Carried { seq, event, .. } => {
                if events.contains_key(&seq) {
                    return None;
                }
                events.insert(seq, next);
                Record::Event(event)
            }
            Record::Repeat(r) => {
                Record::Repeat(RepeatRecord { of: *events.get(&r.of)?, carried_from: None, ..r })
            }
            Record::AttemptStarted { key: k, generation, number } => {
                Record::AttemptStarted { key: key(k, events)?, generation, number }
            }
            Record::AttemptFinished { key: k, attempt, next } => {
                Record::AttemptFinished { key: key(k, events)?, attempt, next }
            }
            Record::Discarded { key: k } => Record::Discarded { key: key(k, events)? },
            Record::Replayed { key: k, due } => Record::Replayed { key: key(k, events)?, due },
            Record::Snapshot { mut delivery, attempts, conversation, .. } => {
                delivery.key = key(delivery.key, events)?;
                Record::Snapshot { delivery, attempts, as_of: next - 1, conversation }
            }
            Record::Answered { key: k } => Record::Answered { key: key(k, events)? },
            Record::HandlerSeen { handler, from } => {
                Record::HandlerSeen { handler, from: at_or_after(events, from, next) }
            }
            Record::HandlerMoved { handler, to } => {
                Record::HandlerMoved { handler, to: at_or_after(events, to, next) }
            }
            Record::HandlerCarried { handler, cursor, paused, .. } => Record::HandlerCarried {
                handler,
                cursor: cursor.map(|c| at_or_after(events, c, next)),
                paused,
                as_of: next - 1,
            },
            Record::Forgotten { keys } => Record::Forgotten { keys },
            Record::Keys { dropped_at, keys } => {
                // No event has number 0.
                let gone = keys.into_iter().filter(|(_, _, seq)| !events.contains_key(seq));
                let keys = gone.map(|(key, hash, _)| (key, hash, 0)).collect();
                Record::Keys { dropped_at, keys }
            }
            Record::Dropped { .. } => return None,
            same @ (Record::HandlerPaused { .. } | Record::Boot { .. } | Record::Stopped) => same,
        })
    }
}

/// The new number of the first event that was at or after `seq`.
fn at_or_after(events: &BTreeMap<Seq, Seq>, seq: Seq, next: Seq) -> Seq {
    events.range(seq..).next().map_or(next, |(_, new)| *new)
}
