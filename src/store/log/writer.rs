//! The synchronous core of the log: one owner appends, writes, syncs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, HEADER_BYTES, PAYLOAD_BYTES_MAX, Stamp};
use super::recover::{self, Segment};
use super::segment::{self, Item, Walk};
use super::{LogError, LogOptions, OpenReport, Place, SegmentInfo};
use crate::clock::Timestamp;
use crate::delivery::Seq;
use crate::store::disk::{Disk, DiskFile, Open};

pub struct LogWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: LogOptions,
    log_id: u32,
    /// Oldest first.
    sealed: Vec<Segment>,
    active: Option<Active>,
    /// The next segment, ready ahead of need. Its number is `next_number`.
    spare: Option<Arc<dyn DiskFile>>,
    next_number: u32,
    /// Encoded and not yet written; one chunk for each segment.
    pending: Vec<Chunk>,
    next_seq: Seq,
    written: Seq,
    durable: Seq,
    /// A write or sync failed: only `reopen` helps.
    broken: bool,
}

struct Active {
    segment: Segment,
    file: Arc<dyn DiskFile>,
    capacity: u64,
    durable_end: u64,
    /// The last durable record in this segment.
    durable_last: Option<Seq>,
}

struct Chunk {
    segment: u32,
    at: u64,
    capacity: u64,
    first: Seq,
    last: Seq,
    bytes: Vec<u8>,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

impl LogWriter {
    /// Recovers the log in `dir`, or begins one. Everything the report counts is durable on return.
    ///
    /// # Errors
    /// The disk fails, or what is there is not a log that this release can go on with.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
    ) -> Result<(LogWriter, OpenReport), LogError> {
        disk.create_dir_all(dir)?;
        let found = recover::recover(&*disk, dir)?;
        let log_id = match found.log_id {
            Some(id) => id,
            None => random_id()?,
        };
        let last = found.report.next - 1;
        let mut sealed = found.segments;
        let mut active = None;
        if let Some(file) = found.tail
            && let Some(segment) = sealed.pop()
        {
            let capacity = u64::from(options.segment_bytes);
            // Only a matter of speed, and recovery may have cut it.
            if let Err(error) = file.allocate(capacity) {
                tracing::debug!(segment = segment.number, %error, "could not reserve space");
            }
            active = Some(Active {
                capacity,
                durable_end: segment.bytes,
                durable_last: segment.last,
                segment,
                file,
            });
        }
        let mut writer = LogWriter {
            disk,
            dir: dir.to_owned(),
            options,
            log_id,
            sealed,
            active,
            spare: None,
            next_number: found.highest + 1,
            pending: vec![],
            next_seq: last + 1,
            written: last,
            durable: last,
            broken: false,
        };
        if writer.active.is_none() {
            match writer.prepare() {
                // What is in the log can still be read and delivered.
                Err(error) if is_full(&error) => {}
                other => other?,
            }
        }
        Ok((writer, found.report))
    }

    /// Encodes a record; `write` writes it. The payload is at most [`PAYLOAD_BYTES_MAX`].
    pub fn append(&mut self, time: Timestamp, kind: u8, payload: &[u8]) -> (Seq, Place) {
        debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX, "a record that could not be read back");
        let seq = self.next_seq;
        let frame_bytes = HEADER_BYTES + payload.len();
        let durable = self.durable;
        let log_id = self.log_id;
        let chunk = self.chunk_for(seq, frame_bytes as u64);
        let offset = chunk.end();
        frame::encode(&mut chunk.bytes, Stamp { log_id, seq, time, kind, durable }, payload);
        chunk.last = seq;
        let place = Place {
            segment: chunk.segment,
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            len: u32::try_from(frame_bytes).unwrap_or(u32::MAX),
        };
        self.next_seq += 1;
        (seq, place)
    }

    /// The chunk that a frame of this size goes to: a frame never straddles segments, and one larger
    /// than a segment gets a segment of its own size.
    fn chunk_for(&mut self, seq: Seq, frame_bytes: u64) -> &mut Chunk {
        let segment_bytes = u64::from(self.options.segment_bytes);
        let (segment, at, capacity) = match (self.pending.last(), &self.active) {
            (Some(c), _) => (c.segment, c.end(), c.capacity),
            (None, Some(a)) => (a.segment.number, a.segment.bytes, a.capacity),
            (None, None) => (self.next_number, 0, segment_bytes),
        };
        let rolls = at > 0 && at + frame_bytes > capacity;
        if rolls || self.pending.is_empty() {
            let (segment, at) = if rolls {
                // The active segment's number may lie further back than the next free one.
                ((segment + 1).max(self.next_number), 0)
            } else {
                (segment, at)
            };
            let capacity = segment_bytes.max(at + frame_bytes);
            let (first, last, bytes) = (seq, seq, Vec::new());
            self.pending.push(Chunk { segment, at, capacity, first, last, bytes });
        }
        let last = self.pending.len() - 1;
        &mut self.pending[last]
    }

    /// Writes everything appended, with one write for each segment.
    ///
    /// # Errors
    /// The disk failed: nothing more can be written until `reopen`.
    pub fn write(&mut self) -> io::Result<()> {
        self.check()?;
        for chunk in std::mem::take(&mut self.pending) {
            let result = self.write_chunk(&chunk);
            self.note(result)?;
        }
        Ok(())
    }

    fn write_chunk(&mut self, chunk: &Chunk) -> io::Result<()> {
        if self.active.as_ref().is_none_or(|a| a.segment.number != chunk.segment) {
            self.seal()?;
            self.activate(chunk.capacity)?;
        }
        let Some(active) = &mut self.active else {
            return Err(io::Error::other("no segment to write to"));
        };
        active.file.write_all_at(&chunk.bytes, chunk.at)?;
        active.segment.first = active.segment.first.or(Some(chunk.first));
        active.segment.last = Some(chunk.last);
        active.segment.bytes = chunk.end();
        self.written = chunk.last;
        Ok(())
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// The disk failed: what was not durable before never counts as durable, and nothing more can be
    /// written until `reopen`.
    pub fn sync(&mut self) -> io::Result<()> {
        self.check()?;
        if self.durable == self.written {
            return Ok(());
        }
        if let Some(active) = &mut self.active {
            let result = active.file.sync_data();
            if result.is_ok() {
                active.durable_end = active.segment.bytes;
                active.durable_last = active.segment.last;
            }
            self.note(result)?;
        }
        self.durable = self.written;
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the log is closed after a failed write"));
        }
        Ok(())
    }

    fn note(&mut self, result: io::Result<()>) -> io::Result<()> {
        self.broken |= result.is_err();
        result
    }

    /// Ends the active segment: everything in it is durable then, and its unused space is given back.
    fn seal(&mut self) -> io::Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        active.file.set_len(active.segment.bytes)?;
        active.file.sync_all()?;
        self.durable = self.written;
        if let Some(active) = self.active.take() {
            self.sealed.push(active.segment);
        }
        Ok(())
    }

    fn activate(&mut self, capacity: u64) -> io::Result<()> {
        let file = match self.spare.take() {
            Some(file) => file,
            None => self.create()?,
        };
        let number = self.next_number;
        self.next_number += 1;
        let segment = Segment { number, first: None, last: None, bytes: 0, damaged: false };
        self.active = Some(Active { segment, file, capacity, durable_end: 0, durable_last: None });
        Ok(())
    }

    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        self.active.as_ref().is_some_and(|a| a.segment.bytes > a.capacity / 4 * 3)
    }

    /// Makes the next segment ready where it will soon be needed. To be called when nobody waits.
    ///
    /// # Errors
    /// The disk failed. Nothing is lost by it: the segment is made when it is needed.
    pub fn prepare(&mut self) -> io::Result<()> {
        let room = self.active.as_ref().is_some_and(|a| a.segment.bytes < a.capacity / 2);
        if room || self.spare.is_some() || self.broken {
            return Ok(());
        }
        self.spare = Some(self.create()?);
        Ok(())
    }

    fn create(&self) -> io::Result<Arc<dyn DiskFile>> {
        let path = segment::path(&self.dir, self.next_number);
        let file = match self.disk.open(&path, Open::CreateNew) {
            // Left by an attempt that failed half-way; a number this high holds no record.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(&path)?;
                self.disk.open(&path, Open::CreateNew)?
            }
            other => other?,
        };
        match file.allocate(u64::from(self.options.segment_bytes)) {
            Err(error) if is_full(&error) => {}
            other => other?,
        }
        file.sync_all()?;
        self.disk.sync_dir(&self.dir)?;
        Ok(Arc::from(file))
    }

    /// After a failed write or sync: cuts what is not known to be durable, ends the segment there and
    /// goes on in a new one. Records above `durable` are gone and their numbers used again.
    ///
    /// # Errors
    /// The device still fails; try again later.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.broken = true;
        self.pending.clear();
        if self.durable == 0 {
            self.begin_again()?;
        }
        if let Some(active) = self.active.take() {
            // The old handle may hold pages that the kernel no longer knows to be unwritten.
            let verified = match self.cut_back(&active) {
                Ok(verified) => verified,
                Err(error) => {
                    self.active = Some(active);
                    return Err(error);
                }
            };
            let Active { mut segment, durable_end, durable_last, .. } = active;
            if durable_end > 0 {
                segment.damaged |= !verified;
                segment.bytes = durable_end;
                segment.last = durable_last;
                self.sealed.push(segment);
            }
        }
        self.written = self.durable;
        self.next_seq = self.durable + 1;
        if self.spare.is_none() {
            self.spare = Some(self.create()?);
        }
        self.broken = false;
        Ok(())
    }

    /// Nothing was ever durable: the log still begins with segment 1. The spare goes first, so that
    /// segment 1 never misses while a later one is there.
    fn begin_again(&mut self) -> io::Result<()> {
        self.spare = None;
        for number in segment::numbers(&*self.disk, &self.dir)?.into_iter().filter(|n| *n > 1) {
            self.disk.remove(&segment::path(&self.dir, number))?;
        }
        self.disk.sync_dir(&self.dir)?;
        self.next_number = 1;
        Ok(())
    }

    /// Tells whether all that was durable still reads well.
    fn cut_back(&self, active: &Active) -> Result<bool, LogError> {
        let number = active.segment.number;
        let path = segment::path(&self.dir, number);
        let file: Arc<dyn DiskFile> = match self.disk.open(&path, Open::ReadWrite) {
            // An earlier try removed it, and then the folder's sync failed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && active.durable_end == 0 => {
                self.disk.sync_dir(&self.dir)?;
                return Ok(true);
            }
            file => Arc::from(file?),
        };
        file.set_len(active.durable_end)?;
        file.sync_all()?;
        if active.durable_end == 0 {
            self.disk.remove(&path)?;
            self.disk.sync_dir(&self.dir)?;
        }
        let mut walk = Walk::new(file, number, 0, 0, Some(self.log_id))?;
        let mut last = None;
        let mut whole = true;
        while let Some(item) = walk.next()? {
            match item {
                Item::Frame(header, _) => last = Some(header.seq),
                Item::Bad { .. } => whole = false,
            }
        }
        let verified = whole && last == active.durable_last;
        if !verified {
            tracing::error!(segment = number, "durable records no longer read well after a fault");
        }
        Ok(verified)
    }

    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    #[must_use]
    pub fn written(&self) -> Seq {
        self.written
    }

    #[must_use]
    pub fn durable(&self) -> Seq {
        self.durable
    }

    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Oldest first.
    pub fn segments(&self) -> impl Iterator<Item = SegmentInfo> {
        let sealed = self.sealed.iter().map(|s| info(s, true));
        sealed.chain(self.active_segment())
    }

    /// The one that is being written to.
    #[must_use]
    pub fn active_segment(&self) -> Option<SegmentInfo> {
        self.active.as_ref().map(|a| info(&a.segment, false))
    }

    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |a| a.segment.bytes);
        self.sealed.iter().map(|s| s.bytes).sum::<u64>() + active
    }

    /// A reader found the segment damaged: `remove_segment` will keep it aside.
    pub fn mark_damaged(&mut self, number: u32) {
        let active = self.active.as_mut().map(|a| &mut a.segment);
        for segment in self.sealed.iter_mut().chain(active).filter(|s| s.number == number) {
            segment.damaged = true;
        }
    }

    /// Drops the oldest segment; a damaged one moves to `aside/`.
    ///
    /// # Errors
    /// It is not the oldest, or not sealed, or no later record is durable, or the disk failed.
    pub fn remove_segment(&mut self, number: u32) -> io::Result<()> {
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let Some(oldest) = self.sealed.first().filter(|s| s.number == number) else {
            return refuse("only the oldest sealed segment can be removed");
        };
        // Without a later record the next start would count from 1 again.
        let later = self.sealed.iter().skip(1).any(|s| s.last.is_some())
            || self.active.as_ref().is_some_and(|a| a.durable_last.is_some());
        if !later {
            return refuse("no later record is durable yet");
        }
        let path = segment::path(&self.dir, number);
        let aside = segment::aside(&self.dir);
        let gone = match oldest.damaged {
            true => self.disk.rename(&path, &segment::path(&aside, number)),
            false => self.disk.remove(&path),
        };
        match gone {
            // An earlier try got that far.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        if oldest.damaged {
            self.disk.sync_dir(&aside)?;
        }
        // From here on it is no longer there, whether or not the folder's sync succeeds.
        self.sealed.remove(0);
        self.disk.sync_dir(&self.dir)
    }

    pub(super) fn free_space(&self) -> io::Result<crate::store::disk::Space> {
        self.disk.space(&self.dir)
    }
}

fn info(segment: &Segment, sealed: bool) -> SegmentInfo {
    let Segment { number, first, last, bytes, .. } = *segment;
    SegmentInfo { number, first, last, bytes, sealed }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn random_id() -> io::Result<u32> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(u32::from_le_bytes(bytes))
}
