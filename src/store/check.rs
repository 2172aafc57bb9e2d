//! Offline: is every record readable?

use std::path::Path;
use std::sync::Arc;

use super::OpenError;
use super::disk::Disk;
use super::log::{Damage, LogError, LogReader, ScanItem};
use super::{files, record};
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

/// The number of the last readable record, 0 in an empty log.
pub(super) fn last_record(reader: &LogReader) -> Result<Seq, LogError> {
    let mut last = 0;
    walk(reader, |item| {
        if let ScanItem::Frame(frame) = item {
            last = frame.seq;
        }
    })?;
    Ok(last)
}

/// Everything readable, in order. What follows the last record is not reported: a torn tail is no loss.
pub(super) fn walk(reader: &LogReader, mut visit: impl FnMut(ScanItem)) -> Result<(), LogError> {
    let Some(from) = reader.first_position()? else { return Ok(()) };
    let upto = Seq::MAX - 1;
    let mut scan = reader.scan(from, upto);
    while let Some(item) = scan.next()? {
        match item {
            ScanItem::Damage(d) if d.last == upto => {}
            item => visit(item),
        }
    }
    Ok(())
}

/// Verifies every record's checksums and the sequence of their numbers. Changes nothing.
///
/// # Errors
/// An instance runs on the directory, or the disk cannot be read.
pub fn check(disk: &Arc<dyn Disk>, data_dir: &Path) -> Result<CheckReport, OpenError> {
    let _lock = files::lock_shared(data_dir)?;
    files::read_version(&**disk, data_dir)?;
    let log_dir = files::log_dir(data_dir);
    if disk.list(&log_dir).is_err() {
        return Err(OpenError::Other(format!(
            "there is no store in {}; check --data-dir",
            data_dir.display()
        )));
    }
    let reader = LogReader::new(disk.clone(), &log_dir);
    let mut report = CheckReport {
        records: 0,
        events: 0,
        first: 0,
        last: 0,
        damage: Vec::new(),
        unknown: Vec::new(),
    };
    walk(&reader, |item| match item {
        ScanItem::Damage(damage) => report.damage.push(damage),
        ScanItem::Frame(frame) => {
            if report.records == 0 {
                report.first = frame.seq;
            }
            report.records += 1;
            report.last = frame.seq;
            match record::decode(frame.kind, &frame.payload) {
                Ok(record::Record::Event(_)) => report.events += 1,
                Ok(_) => {}
                Err(why) => report.unknown.push((frame.seq, why.to_string())),
            }
        }
    })
    .map_err(|e| OpenError::Other(format!("cannot read the log: {e}")))?;
    Ok(report)
}
