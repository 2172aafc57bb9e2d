//! Reading: single records by place, and everything in order. Many readers at once.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::frame::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use super::segment::{self, Item, Walk};
use super::{Damage, Frame, LogError, Place};
use crate::delivery::Seq;
use crate::store::disk::{Disk, DiskFile, Open};

const OPEN_FILES: usize = 8;

/// Cheap to clone; clones share their open files.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Most recently used last. A segment's number is never used for other content while open.
    files: Mutex<Vec<(u32, Arc<dyn DiskFile>)>>,
}

impl LogReader {
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, dir: &Path) -> LogReader {
        let shared = Shared { disk, dir: dir.to_owned(), files: Mutex::default() };
        LogReader { shared: Arc::new(shared) }
    }

    /// # Errors
    /// The disk failed, or what lies there is not that record, whole.
    pub fn read(&self, seq: Seq, place: Place) -> Result<Frame, LogError> {
        let broken = |what: &str| {
            let Place { segment, offset, .. } = place;
            LogError::Corrupt(format!(
                "record {seq} in log segment {segment} at byte {offset}: {what}"
            ))
        };
        if place.len as usize > HEADER_BYTES + PAYLOAD_BYTES_MAX {
            return Err(broken("no record is that large"));
        }
        let mut bytes = vec![0; place.len as usize];
        let got = self.file(place.segment)?.read_at(&mut bytes, place.offset.into())?;
        bytes.truncate(got);
        let header = Header::decode(&bytes).map_err(|_| broken("its header is damaged"))?;
        if header.seq != seq || header.frame_bytes() != place.len as usize {
            return Err(broken("another record lies there"));
        }
        let payload = Bytes::from(bytes).slice(HEADER_BYTES.min(got)..);
        if !header.matches(&payload) {
            return Err(broken("its payload is damaged"));
        }
        Ok(Frame { seq, time: header.time, kind: header.kind, payload, place })
    }

    /// The segment is gone: its space comes back once it is closed.
    pub fn forget(&self, segment: u32) {
        let mut files = self.shared.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|(number, _)| *number != segment);
    }

    /// Where the oldest record lies; `None` in an empty log.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn first_position(&self) -> io::Result<Option<(u32, u32)>> {
        let numbers = segment::numbers(&*self.shared.disk, &self.shared.dir)?;
        Ok(numbers.first().map(|number| (*number, 0)))
    }

    /// Everything from a position on (a record's place, or the end of one), up to record `upto`, which
    /// must be durable.
    #[must_use]
    pub fn scan(&self, from: (u32, u32), upto: Seq) -> Scan {
        Scan {
            reader: self.clone(),
            segment: from.0,
            offset: from.1.into(),
            walk: None,
            log_id: None,
            // Record 1 is the first of segment 1.
            last: (from == (1, 0)).then_some(0),
            upto,
            holes: vec![],
            last_end: (from.0, from.1.into()),
            unread: false,
            ready: VecDeque::new(),
            done: false,
            steps_over: false,
        }
    }

    fn file(&self, number: u32) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.shared.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = files.iter().position(|(n, _)| *n == number) {
            let entry = files.remove(i);
            let file = entry.1.clone();
            files.push(entry);
            return Ok(file);
        }
        let path = segment::path(&self.shared.dir, number);
        let file: Arc<dyn DiskFile> = Arc::from(self.shared.disk.open(&path, Open::Read)?);
        if files.len() == OPEN_FILES {
            files.remove(0);
        }
        files.push((number, file.clone()));
        Ok(file)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanItem {
    Frame(Frame),
    Damage(Damage),
}

pub struct Scan {
    reader: LogReader,
    segment: u32,
    offset: u64,
    walk: Option<Walk<'static>>,
    log_id: Option<u32>,
    /// The last record seen; `None`: not known what comes first.
    last: Option<Seq>,
    upto: Seq,
    /// Unreadable stretches (segment, offset, bytes) since the last record.
    holes: Vec<(u32, u64, u64)>,
    /// Where the last record seen ends: segment and offset.
    last_end: (u32, u64),
    /// Something behind the last record seen couldn't be read.
    unread: bool,
    ready: VecDeque<ScanItem>,
    done: bool,
    steps_over: bool,
}

impl Scan {
    /// What the device can't read is damage, not an error. For those who change nothing by it, or have tried
    /// often enough: a device may well read later what it can't just now.
    #[must_use]
    pub fn stepping_over(self, steps_over: bool) -> Scan {
        Scan { steps_over, ..self }
    }

    /// Behind the last record seen there is something that couldn't be read: perhaps more records.
    #[must_use]
    pub fn is_unread_behind(&self) -> bool {
        self.unread
    }

    /// The records up to `last` are known: if the next one seen is not the one after it, that is damage.
    #[must_use]
    pub fn after(mut self, last: Seq) -> Scan {
        self.last = Some(last);
        self
    }

    /// `None` behind record `upto`. Lost records come as damage, between their neighbours.
    ///
    /// # Errors
    /// The disk failed, or the format is newer. Calling again goes on at the same place.
    #[expect(clippy::should_implement_trait, reason = "fallible, like a streaming reader")]
    pub fn next(&mut self) -> Result<Option<ScanItem>, LogError> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            if self.done || self.last.is_some_and(|last| last >= self.upto) {
                return Ok(None);
            }
            match self.step()? {
                Some(Item::Frame(_, frame)) => self.take(frame),
                Some(Item::Bad { offset, bytes, .. }) => self.hole(offset, bytes),
                None => {
                    if !self.next_segment()? {
                        let end = self.walk.as_ref().map_or(self.offset, Walk::at);
                        self.lost_before(self.upto + 1, end);
                        self.done = true;
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Result<Option<Item>, LogError> {
        let walk = match &mut self.walk {
            Some(walk) => walk,
            None => {
                let shared = &self.reader.shared;
                if self.log_id.is_none() {
                    self.log_id = segment::log_id(&*shared.disk, &shared.dir)?;
                }
                let file = match self.reader.file(self.segment) {
                    // Retention may drop it at any time; what is missing and was not dropped shows as a
                    // gap in the numbers.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    file => file?,
                };
                let last = self.last.unwrap_or(0);
                let walk = Walk::new(file, self.segment, self.offset, last, self.log_id)?;
                self.walk.insert(if self.steps_over {
                    let reader = self.reader.clone();
                    walk.stepping_over(move || {
                        segment::answers(&*reader.shared.disk, &reader.shared.dir)
                    })
                } else {
                    walk
                })
            }
        };
        let item = walk.next()?;
        if item.is_none() {
            let (segment, end) = self.last_end;
            let from = if segment == self.segment { end } else { 0 };
            if let Some((start, end)) = walk.unread_behind(from) {
                self.unread = true;
                self.hole(start, end - start);
            }
        }
        Ok(item)
    }

    fn take(&mut self, frame: Frame) {
        self.lost_before(frame.seq.min(self.upto + 1), frame.place.offset.into());
        if frame.seq > self.upto {
            self.done = true;
            return;
        }
        self.last = Some(frame.seq);
        self.last_end =
            (frame.place.segment, u64::from(frame.place.offset) + u64::from(frame.place.len));
        self.unread = false;
        self.ready.push_back(ScanItem::Frame(frame));
    }

    fn hole(&mut self, offset: u64, bytes: u64) {
        match self.holes.last_mut() {
            Some((segment, start, len)) if *segment == self.segment => {
                *len = (offset + bytes).max(*start + *len) - *start
            }
            _ => self.holes.push((self.segment, offset, bytes)),
        }
    }

    /// Record `seq`, at `offset`, is the next that can be read: tells what is missing before it.
    fn lost_before(&mut self, seq: Seq, offset: u64) {
        let mut first = self.last.map_or(seq, |last| last + 1);
        let last = seq - 1;
        if self.holes.is_empty() && first <= last {
            self.holes.push((self.segment, offset, 0));
        }
        for (segment, offset, bytes) in std::mem::take(&mut self.holes) {
            // The numbers go with the first stretch: nothing tells how they were spread.
            self.ready.push_back(ScanItem::Damage(Damage { segment, offset, bytes, first, last }));
            first = seq;
        }
    }

    fn next_segment(&mut self) -> Result<bool, LogError> {
        let shared = &self.reader.shared;
        let numbers = segment::numbers(&*shared.disk, &shared.dir)?;
        let Some(next) = numbers.into_iter().find(|n| *n > self.segment) else {
            return Ok(false);
        };
        self.segment = next;
        self.offset = 0;
        self.walk = None;
        Ok(true)
    }
}
