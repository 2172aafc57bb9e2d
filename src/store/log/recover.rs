//! What opening a log does: find its end, cut what was never acknowledged, report what is missing.
//!
//! Only the last segment that holds records is read whole; of sealed ones the first header is enough,
//! unless something is odd about them. Whatever is cut is kept in `aside/` first. Running this again, at
//! any point where it was cut off, gives the same.

use std::path::Path;
use std::sync::Arc;

use super::order::put_in_order;
use super::segment::{self, Item, Walk};
use super::{Damage, LogError, OpenReport};
use crate::clock::Timestamp;
use crate::delivery::Seq;
use crate::store::disk::{Disk, DiskFile, Open};

/// How many cut tails are kept; the oldest go first.
const TAILS_KEPT: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub number: u32,
    pub first: Option<Seq>,
    pub last: Option<Seq>,
    pub bytes: u64,
    pub damaged: bool,
}

pub(super) struct Recovered {
    pub report: OpenReport,
    pub log_id: Option<u32>,
    /// Those that hold records or damage, ascending.
    pub segments: Vec<Segment>,
    /// The last of `segments`, open, where writing may go on behind its last record.
    pub tail: Option<Arc<dyn DiskFile>>,
    /// The highest number ever seen.
    pub highest: u32,
}

/// All that one segment holds.
#[derive(Default)]
struct Survey {
    first: Option<Seq>,
    last: Seq,
    /// Behind the last good frame.
    end: u64,
    damage: Vec<Damage>,
    /// The highest record that any frame here says was durable.
    durable: Seq,
    high_water: Timestamp,
    /// Where the frames begin that no later one says were durable.
    unproven_at: u64,
    log_id: Option<u32>,
}

pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Recovered, LogError> {
    disk.create_dir_all(&segment::aside(dir))?;
    disk.sync_dir(dir)?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(parent)?;
    }
    let reordered = put_in_order(disk, dir)?;
    let numbers = segment::numbers(disk, dir)?;
    let highest = numbers.last().copied().unwrap_or(0);
    let log_id = segment::log_id(disk, dir)?;

    // From the end to the last segment that holds a record.
    let mut holding = numbers.len();
    let mut tail = None;
    while holding > 0 && tail.is_none() {
        holding -= 1;
        let place = At { number: numbers[holding], before: 0, sealed: false, log_id };
        let found = survey(disk, dir, place)?;
        if found.first.is_some() || found.durable > 0 {
            tail = Some(found);
        }
    }
    let Some(mut tail) = tail else {
        return empty(disk, dir, &numbers);
    };
    let log_id = log_id.or(tail.log_id);

    let mut sealed = Sealed::default();
    for number in &numbers[..holding] {
        sealed.add(disk, dir, *number, log_id)?;
    }
    let number = numbers[holding];
    let (begins, _) = head(disk, dir, number, log_id)?;
    let expected = sealed.next(disk, dir, number, begins, log_id)?;
    if let Some(expected) = expected
        && tail.first != Some(expected)
    {
        // What the tail should begin with is gone: whether that is damage, is clear only now.
        tail = survey(disk, dir, At { number, before: expected - 1, sealed: false, log_id })?;
    }

    let file: Arc<dyn DiskFile> =
        Arc::from(disk.open(&segment::path(dir, number), Open::ReadWrite)?);
    let mut torn_bytes = 0;
    // Where records that were durable are missing at the very end, their remains stay where they are.
    if tail.last >= tail.durable {
        torn_bytes += cut(disk, dir, number, &*file, tail.end)?;
    }
    prove(&*file, tail.unproven_at, tail.end)?;
    for later in &numbers[holding + 1..] {
        torn_bytes += drop_empty(disk, dir, *later)?;
    }
    disk.sync_dir(dir)?;

    let mut high_water = tail.high_water.max(sealed.high_water);
    if tail.first.is_none()
        && let Some(before) = sealed.segments.last()
    {
        // Of the sealed ones only the times of the first records are known so far. The tail's are later; but it has
        // nothing but the remains of a write.
        let first = before.first.map_or(0, |first| first - 1);
        let found =
            survey(disk, dir, At { number: before.number, before: first, sealed: true, log_id })?;
        high_water = high_water.max(found.high_water);
    }

    let damaged = !tail.damage.is_empty();
    let next = tail.last.max(tail.durable) + 1;
    let mut segments = sealed.segments;
    segments.push(Segment {
        number,
        first: tail.first,
        last: tail.first.map(|_| tail.last),
        bytes: tail.end,
        damaged,
    });
    let mut damage = sealed.damage;
    damage.extend(tail.damage);
    let report = OpenReport {
        first: segments.iter().find_map(|s| s.first).unwrap_or(next),
        next,
        torn_bytes,
        damage,
        reordered,
        high_water,
    };
    // Nothing is ever appended to a damaged segment: it stays as it was found.
    let tail = (!damaged).then_some(file);
    Ok(Recovered { report, log_id, segments, tail, highest })
}

/// No record anywhere: a new log, or one that lost power during its first write.
fn empty(disk: &dyn Disk, dir: &Path, numbers: &[u32]) -> Result<Recovered, LogError> {
    if let Some(first) = numbers.first().filter(|n| **n > 1) {
        return Err(LogError::Corrupt(format!(
            "the log begins with segment {first} and holds no readable record; \
             restore {} from a copy, or move it away to start an empty log",
            dir.display()
        )));
    }
    let mut torn_bytes = 0;
    // Segment 1 last: a log that seems to begin later has lost something.
    for number in numbers.iter().rev() {
        torn_bytes += drop_empty(disk, dir, *number)?;
        disk.sync_dir(dir)?;
    }
    let report = OpenReport { torn_bytes, first: 1, next: 1, ..OpenReport::default() };
    Ok(Recovered { report, log_id: None, segments: vec![], tail: None, highest: 0 })
}

/// The sealed segments before the tail. Their last records follow from the next one's first.
#[derive(Default)]
struct Sealed {
    segments: Vec<Segment>,
    damage: Vec<Damage>,
    high_water: Timestamp,
}

impl Sealed {
    fn add(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        number: u32,
        log_id: Option<u32>,
    ) -> Result<(), LogError> {
        let (head, time) = head(disk, dir, number, log_id)?;
        let expected = self.next(disk, dir, number, head, log_id)?;
        let bytes = disk.open(&segment::path(dir, number), Open::Read)?.len()?;
        let mut segment = Segment { number, first: head, last: None, bytes, damaged: false };
        if head.is_none() || expected.is_some_and(|e| Some(e) != head) {
            let before = expected.unwrap_or(1) - 1;
            let found = survey(disk, dir, At { number, before, sealed: true, log_id })?;
            segment.first = found.first;
            segment.last = found.first.map(|_| found.last);
            segment.damaged = !found.damage.is_empty();
            self.damage.extend(found.damage);
        }
        self.high_water = self.high_water.max(time);
        self.segments.push(segment);
        Ok(())
    }

    /// What the segment `number`, beginning with record `first`, should begin with; `None`: unknown,
    /// nothing comes before. Completes the one before it.
    fn next(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        number: u32,
        first: Option<Seq>,
        log_id: Option<u32>,
    ) -> Result<Option<Seq>, LogError> {
        let Some(before) = self.segments.iter_mut().rev().find(|s| s.first.is_some()) else {
            return Ok(None);
        };
        let begins = before.first.unwrap_or(1);
        if let Some(first) = first.filter(|f| *f <= begins) {
            return Err(LogError::Corrupt(format!(
                "log segment {number} begins with record {first}, but the one before it with \
                 {begins}; move the one that does not belong out of {}",
                dir.display()
            )));
        }
        if before.last.is_none() {
            if number == before.number + 1
                && let Some(first) = first
            {
                before.last = Some(first - 1);
            } else {
                let place = At { number: before.number, before: begins - 1, sealed: true, log_id };
                let found = survey(disk, dir, place)?;
                before.last = Some(found.last);
                before.damaged |= !found.damage.is_empty();
                self.damage.extend(found.damage);
            }
        }
        Ok(before.last.map(|last| last + 1))
    }
}

/// The record and time that the first header names, where it can be read and is an intact one of this log.
fn head(
    disk: &dyn Disk,
    dir: &Path,
    number: u32,
    log_id: Option<u32>,
) -> Result<(Option<Seq>, Timestamp), LogError> {
    let head = match segment::head(disk, dir, number) {
        Err(LogError::Io(_)) => None,
        head => head?,
    };
    let ours = head.filter(|h| log_id.is_none_or(|id| id == h.log_id));
    Ok((ours.map(|h| h.seq), ours.map_or(Timestamp::ZERO, |h| h.time)))
}

/// Which segment to survey, and what is known about it.
#[derive(Clone, Copy)]
struct At {
    number: u32,
    /// The last record before it; 0: unknown, or none.
    before: Seq,
    /// Records follow in later segments, so that every hole is damage.
    sealed: bool,
    log_id: Option<u32>,
}

/// Of a sealed segment what can't be read is damage: nothing is cut there, and records follow. Where the log
/// ends can't be told from a segment that can't be read.
fn walk<'a>(
    disk: &'a dyn Disk,
    dir: &'a Path,
    file: Arc<dyn DiskFile>,
    at: At,
) -> Result<Walk<'a>, LogError> {
    let walk = Walk::new(file, at.number, 0, at.before, at.log_id)?;
    Ok(if at.sealed { walk.stepping_over(move || segment::answers(disk, dir)) } else { walk })
}

/// Reads a segment whole. Decides for every hole whether it is damage (a later frame says that what is
/// missing was durable) or the beginning of a tail that was never acknowledged.
fn survey(disk: &dyn Disk, dir: &Path, at: At) -> Result<Survey, LogError> {
    let At { number, before, sealed, .. } = at;
    let file: Arc<dyn DiskFile> = Arc::from(disk.open(&segment::path(dir, number), Open::Read)?);
    let durable = highest_durable(walk(disk, dir, file.clone(), at)?)?;
    let mut walk = walk(disk, dir, file, at)?;
    let mut found = Survey { last: before, durable, ..Survey::default() };
    let mut hole: Option<(u64, u64)> = None;
    while let Some(item) = walk.next()? {
        match item {
            Item::Bad { offset, bytes, .. } => {
                let start = hole.map_or(offset, |(start, _)| start);
                hole = Some((start, offset + bytes - start));
            }
            Item::Frame(header, frame) => {
                // A log begins with record 1 in segment 1; where its oldest segments were dropped, with
                // any, and all that is left was durable then.
                let known = found.first.is_some() || before > 0 || number == 1;
                let missing = if known { found.last + 1 } else { frame.seq };
                if hole.is_some() || missing < frame.seq {
                    if known && missing > durable && !sealed {
                        break;
                    }
                    let (offset, bytes) = hole.take().unwrap_or((frame.place.offset.into(), 0));
                    let (first, last) = (missing, frame.seq - 1);
                    found.damage.push(Damage { segment: number, offset, bytes, first, last });
                }
                if frame.seq <= durable {
                    found.unproven_at = walk.at();
                }
                found.first = found.first.or(Some(frame.seq));
                found.last = frame.seq;
                found.end = walk.at();
                found.high_water = found.high_water.max(header.time);
            }
        }
    }
    if hole.is_none() {
        hole = walk.unread_behind(found.end).map(|(start, end)| (start, end - start));
    }
    if let Some((offset, bytes)) = hole {
        if sealed {
            // Which records these were, the beginning of the next segment tells.
            found.damage.push(Damage { segment: number, offset, bytes, first: 1, last: 0 });
        } else if found.last < durable {
            let (first, last) = (found.last + 1, durable);
            found.damage.push(Damage { segment: number, offset, bytes, first, last });
        }
    }
    found.log_id = walk.log_id();
    Ok(found)
}

fn highest_durable(mut walk: Walk<'_>) -> Result<Seq, LogError> {
    let mut durable = 0;
    while let Some(item) = walk.next()? {
        match item {
            Item::Frame(header, _) | Item::Bad { header: Some(header), .. } => {
                durable = durable.max(header.durable());
            }
            Item::Bad { header: None, .. } => {}
        }
    }
    Ok(durable)
}

/// Cuts the segment at `end`, keeping what was there aside. Returns how much that was.
fn cut(
    disk: &dyn Disk,
    dir: &Path,
    number: u32,
    file: &dyn DiskFile,
    end: u64,
) -> Result<u64, LogError> {
    let mut tail = vec![0; usize::try_from(data_end(file, end)? - end).unwrap_or(0)];
    let got = file.read_at(&mut tail, end)?;
    tail.truncate(got);
    if tail.is_empty() {
        return Ok(0);
    }
    // Nobody was promised these bytes: a disk too full to keep them must not keep the log shut.
    if let Err(error) = keep_tail(disk, dir, number, end, &tail) {
        tracing::warn!(segment = number, %error, "could not keep the torn tail aside");
    }
    file.set_len(end)?;
    file.sync_all()?;
    Ok(tail.len() as u64)
}

/// Behind the last byte from `from` on that is not zero.
fn data_end(file: &dyn DiskFile, from: u64) -> Result<u64, LogError> {
    let mut chunk = vec![0; 256 * 1024];
    let (mut at, mut end) = (from, from);
    loop {
        let got = file.read_at(&mut chunk, at)?;
        if got == 0 {
            return Ok(end);
        }
        if let Some(last) = segment::last_nonzero(&chunk[..got]) {
            end = at + last as u64 + 1;
        }
        at += got as u64;
    }
}

fn keep_tail(
    disk: &dyn Disk,
    dir: &Path,
    number: u32,
    end: u64,
    tail: &[u8],
) -> std::io::Result<()> {
    let aside = segment::aside(dir);
    let tails = disk.list(&aside)?;
    let tails: Vec<&String> = tails.iter().filter(|name| name.ends_with(".tail")).collect();
    for old in &tails[..(tails.len() + 1).saturating_sub(TAILS_KEPT)] {
        disk.remove(&aside.join(old))?;
    }
    let path = aside.join(format!("{number:08}-{end:010}.tail"));
    if tails.iter().any(|name| path.ends_with(name)) {
        // From a recovery that was cut off, or an older tail at the same place.
        disk.remove(&path)?;
    }
    let file = disk.open(&path, Open::CreateNew)?;
    file.write_all_at(tail, 0)?;
    file.sync_all()?;
    disk.sync_dir(&aside)
}

/// Makes what was read durable. Written again first: after a failed sync in a process that died, the
/// kernel may hold these bytes as clean though they never reached the disk.
fn prove(file: &dyn DiskFile, from: u64, end: u64) -> Result<(), LogError> {
    let mut bytes = vec![0; usize::try_from(end.saturating_sub(from)).unwrap_or(0)];
    let got = file.read_at(&mut bytes, from)?;
    file.write_all_at(&bytes[..got], from)?;
    file.sync_all()?;
    Ok(())
}

/// Removes a segment behind the last record; bytes that make no record are kept aside.
fn drop_empty(disk: &dyn Disk, dir: &Path, number: u32) -> Result<u64, LogError> {
    let path = segment::path(dir, number);
    let file = disk.open(&path, Open::ReadWrite)?;
    let torn_bytes = cut(disk, dir, number, &*file, 0)?;
    disk.remove(&path)?;
    Ok(torn_bytes)
}
