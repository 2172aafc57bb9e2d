//! Is every record readable?

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::OpenError;
use super::disk::Disk;
use super::files;
use super::log::{Damage, Frame, LogError, LogReader, ScanItem};
use super::record::{self, DecodeError, Record};
use crate::delivery::Seq;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    pub records: u64,
    pub events: u64,
    pub first: Seq,
    pub last: Seq,
    /// Where, and which records are lost with it.
    pub damage: Vec<Damage>,
    /// Records whose checksum is right and whose content is not understood: (number, why).
    pub unknown: Vec<(Seq, String)>,
}

impl CheckReport {
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.unknown.is_empty()
    }
}

/// The name of a segment's file within the log's folder.
#[must_use]
pub fn segment_file(number: u32) -> String {
    format!("{number:08}.seg")
}

/// The number of the last readable record, 0 in an empty log, and what can't be read behind it.
pub(super) fn end(reader: &LogReader) -> Result<(Seq, Option<Damage>), LogError> {
    let (mut last, mut unread) = (0, None);
    walk(reader, |item| match item {
        ScanItem::Frame(frame) => (last, unread) = (frame.seq, None),
        ScanItem::Damage(damage) => unread = Some(damage),
    })?;
    Ok((last, unread))
}

const TO_THE_END: Seq = Seq::MAX - 1;

/// Everything readable, in order. What follows the last record is not reported, for a torn tail is no loss,
/// unless the disk can't read it: there may be records.
pub(super) fn walk(reader: &LogReader, mut visit: impl FnMut(ScanItem)) -> Result<(), LogError> {
    walk_to(reader, TO_THE_END, |item| {
        visit(item);
        ControlFlow::Continue(())
    })
}

fn walk_to(
    reader: &LogReader,
    upto: Seq,
    mut visit: impl FnMut(ScanItem) -> ControlFlow<()>,
) -> Result<(), LogError> {
    let Some(from) = reader.first_position()? else { return Ok(()) };
    let mut scan = reader.scan(from, upto).stepping_over(true);
    while let Some(item) = scan.next()? {
        let item = match item {
            ScanItem::Damage(d) if d.last == TO_THE_END => match scan.is_unread_behind() {
                true => ScanItem::Damage(Damage { first: 1, last: 0, ..d }),
                false => continue,
            },
            item => item,
        };
        if visit(item).is_break() {
            break;
        }
    }
    Ok(())
}

/// Verifies every record up to `upto`; `visit` sees each that is whole, and may end it.
pub(super) fn examine(
    reader: &LogReader,
    upto: Seq,
    mut visit: impl FnMut(&Frame, &Result<Record, DecodeError>) -> ControlFlow<()>,
) -> Result<CheckReport, LogError> {
    let mut report = CheckReport {
        records: 0,
        events: 0,
        first: 0,
        last: 0,
        damage: Vec::new(),
        unknown: Vec::new(),
    };
    walk_to(reader, upto, |item| match item {
        ScanItem::Damage(damage) => {
            report.damage.push(damage);
            ControlFlow::Continue(())
        }
        ScanItem::Frame(frame) => {
            if report.records == 0 {
                report.first = frame.seq;
            }
            report.records += 1;
            report.last = frame.seq;
            let record = record::decode(frame.kind, &frame.payload);
            match &record {
                Ok(Record::Event(_)) => report.events += 1,
                Ok(_) => {}
                Err(why) => report.unknown.push((frame.seq, why.to_string())),
            }
            visit(&frame, &record)
        }
    })?;
    Ok(report)
}

/// Verifies every record's checksums and the sequence of their numbers. Changes nothing.
///
/// # Errors
/// An instance runs on the directory, or the disk cannot be read.
pub fn check(disk: &Arc<dyn Disk>, data_dir: &Path) -> Result<CheckReport, OpenError> {
    let _lock = files::lock_shared(data_dir)?;
    must_exist(&**disk, data_dir)?;
    check_locked(disk, data_dir)
}

pub(super) fn must_exist(disk: &dyn Disk, data_dir: &Path) -> Result<(), OpenError> {
    files::read_version(disk, data_dir)?;
    let log_dir = files::log_dir(data_dir);
    if disk.list(&log_dir).is_err() {
        return Err(OpenError::Other(format!(
            "there is no store in {}; check --data-dir",
            data_dir.display()
        )));
    }
    Ok(())
}

pub(super) fn check_locked(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
) -> Result<CheckReport, OpenError> {
    let reader = LogReader::new(disk.clone(), &files::log_dir(data_dir));
    examine(&reader, TO_THE_END, |_, _| ControlFlow::Continue(()))
        .map_err(|e| OpenError::Other(format!("cannot read the log: {e}")))
}
