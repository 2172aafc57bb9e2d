//! Segment files: their names, and a walk over one that survives damage.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{FIRST_BYTE, HEADER_BYTES, Header, NoFrame};
use super::{Frame, LogError, Place};
use crate::delivery::Seq;
use crate::store::disk::{Disk, DiskFile, Open};

const CHUNK_BYTES: usize = 256 * 1024;
/// What a file system reads at once at least.
const PAGE_BYTES: usize = 4096;

pub(super) fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.seg"))
}

/// Where damaged segments and cut tails are kept.
pub(super) fn aside(dir: &Path) -> PathBuf {
    dir.join("aside")
}

/// The numbers of the segments that exist, ascending.
pub(super) fn numbers(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<u32>> {
    let names = disk.list(dir)?;
    let number = |name: &String| name.strip_suffix(".seg").filter(|n| n.len() == 8)?.parse().ok();
    let mut numbers: Vec<u32> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The first header of a segment, where that is intact.
pub(super) fn head(disk: &dyn Disk, dir: &Path, number: u32) -> Result<Option<Header>, LogError> {
    let file = disk.open(&path(dir, number), Open::Read)?;
    let mut bytes = [0; HEADER_BYTES];
    let got = file.read_at(&mut bytes, 0)?;
    match Header::decode(&bytes[..got]) {
        Ok(header) => Ok(Some(header)),
        Err(NoFrame::Newer(version)) => Err(LogError::NewerFormat { segment: number, version }),
        Err(NoFrame::Invalid) => Ok(None),
    }
}

/// As the first intact head of a segment tells it. What can't be read tells nothing.
pub(super) fn log_id(disk: &dyn Disk, dir: &Path) -> Result<Option<u32>, LogError> {
    for number in numbers(disk, dir)? {
        match head(disk, dir, number) {
            Ok(Some(header)) => return Ok(Some(header.log_id)),
            // Nor what retention has dropped since it was listed.
            Ok(None) | Err(LogError::Io(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// How many places are asked at most, and how far apart they lie in a file.
const ASKED_MAX: usize = 16;
const ASKED_EVERY: u64 = 1024 * 1024;

/// Does the device answer at all? If so, what can't be read is damage; else the device itself is gone,
/// perhaps for a moment. Asked in several places of the log, none of them from memory.
pub(super) fn answers(disk: &dyn Disk, dir: &Path) -> bool {
    let Ok(numbers) = numbers(disk, dir) else { return false };
    let files = numbers.iter().filter_map(|n| disk.open(&path(dir, *n), Open::Read).ok());
    // The first page of every file, then the second place in each, and so on.
    let files: Vec<_> = files.filter_map(|file| Some((file.len().ok()?, file))).collect();
    let longest = files.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
    let places = (0..longest).step_by(ASKED_EVERY as usize).flat_map(|at| {
        files.iter().filter(move |(bytes, _)| at < *bytes).map(move |(_, file)| (file, at))
    });
    let mut page = [0; PAGE_BYTES];
    places.take(ASKED_MAX).any(|(file, at)| {
        file.read_afresh();
        file.read_at(&mut page, at).is_ok()
    })
}

pub(super) enum Item {
    Frame(Header, Frame),
    /// Not a frame. `header` where one is intact and only its payload is not.
    Bad {
        offset: u64,
        bytes: u64,
        header: Option<Header>,
    },
}

/// Walks a segment frame by frame. After damage it goes on at the next valid header.
pub(super) struct Walk<'a> {
    file: Arc<dyn DiskFile>,
    number: u32,
    file_bytes: u64,
    at: u64,
    last: Seq,
    /// Frames of another log are no frames; the first valid one sets it where it is not known.
    log_id: Option<u32>,
    buffer: Vec<u8>,
    buffer_at: u64,
    /// What the device can't read is damage, as if zeros lay there, if this says that the device answers.
    steps_over: Option<Box<dyn Fn() -> bool + Send + 'a>>,
    /// Where that was so: (begin, end).
    unread: Vec<(u64, u64)>,
}

impl<'a> Walk<'a> {
    /// Only frames numbered higher than `last` count.
    pub(super) fn new(
        file: Arc<dyn DiskFile>,
        number: u32,
        from: u64,
        last: Seq,
        log_id: Option<u32>,
    ) -> io::Result<Walk<'a>> {
        let file_bytes = file.len()?;
        let (buffer, buffer_at, unread) = (vec![], 0, vec![]);
        let at = from;
        let steps_over = None;
        Ok(Walk {
            file,
            number,
            file_bytes,
            at,
            last,
            log_id,
            buffer,
            buffer_at,
            steps_over,
            unread,
        })
    }

    /// For a reader: an unreadable sector costs the records in it. Never to find the log's end by, since what
    /// is cut there is gone for good.
    pub(super) fn stepping_over(self, answers: impl Fn() -> bool + Send + 'a) -> Walk<'a> {
        Walk { steps_over: Some(Box::new(answers)), ..self }
    }

    /// From where to where in the file there is something, behind `from`, that could not be read.
    pub(super) fn unread_behind(&self, from: u64) -> Option<(u64, u64)> {
        let mut behind = self.unread.iter().filter(|(_, end)| *end > from);
        let (start, end) = *behind.next()?;
        Some((start.max(from), behind.next_back().map_or(end, |(_, end)| *end)))
    }

    /// The end of what has been walked over.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn log_id(&self) -> Option<u32> {
        self.log_id
    }

    /// `None` at the end: nothing but zeros follows [`Walk::at`].
    pub(super) fn next(&mut self) -> Result<Option<Item>, LogError> {
        let at = self.at;
        let head = self.fill(at, HEADER_BYTES)?;
        if head.is_empty() {
            return Ok(None);
        }
        match self.peek()? {
            Some(header) => self.frame(at, header).map(Some),
            None => self.resync(at),
        }
    }

    fn frame(&mut self, at: u64, header: Header) -> Result<Item, LogError> {
        let frame_bytes = header.frame_bytes();
        let bytes = self.fill(at, frame_bytes)?;
        let payload = bytes.get(HEADER_BYTES..frame_bytes);
        let payload = payload.filter(|p| header.matches(p)).map(Bytes::copy_from_slice);
        let bytes = (frame_bytes as u64).min(self.file_bytes - at);
        self.last = header.seq;
        self.log_id = Some(header.log_id);
        self.at = at + bytes;
        Ok(match payload {
            Some(payload) => {
                let place = Place {
                    segment: self.number,
                    offset: u32::try_from(at).unwrap_or(u32::MAX),
                    len: u32::try_from(frame_bytes).unwrap_or(u32::MAX),
                };
                let (seq, time, kind) = (header.seq, header.time, header.kind);
                Item::Frame(header, Frame { seq, time, kind, payload, place })
            }
            None => Item::Bad { offset: at, bytes, header: Some(header) },
        })
    }

    /// The header that is to be read next, where it is intact.
    fn peek(&mut self) -> Result<Option<Header>, LogError> {
        let (number, known) = (self.number, self.known());
        let head = self.fill(self.at, HEADER_BYTES)?;
        match known.header(head) {
            Ok(header) => Ok(Some(header)),
            Err(NoFrame::Newer(version)) => Err(LogError::NewerFormat { segment: number, version }),
            Err(NoFrame::Invalid) => Ok(None),
        }
    }

    /// The next valid header after `at`, at any byte; else all that is left, less its trailing zeros.
    fn resync(&mut self, at: u64) -> Result<Option<Item>, LogError> {
        let known = self.known();
        let mut look = at + 1;
        // Behind the last byte that is not zero.
        let mut end = if self.fill(at, 1)?.first() == Some(&0) { at } else { at + 1 };
        loop {
            let window = self.fill(look, HEADER_BYTES)?;
            if let Some(last) = last_nonzero(window) {
                end = look + last as u64 + 1;
            }
            if window.len() < HEADER_BYTES {
                break;
            }
            let starts = window.len() - HEADER_BYTES + 1;
            // Nearly always these are the zeros of reserved space: quick to see.
            let found = if window.contains(&FIRST_BYTE) {
                (0..starts)
                    .find(|i| window[*i] == FIRST_BYTE && known.header(&window[*i..]).is_ok())
            } else {
                None
            };
            if let Some(i) = found {
                self.at = look + i as u64;
                return Ok(Some(Item::Bad { offset: at, bytes: self.at - at, header: None }));
            }
            look += starts as u64;
        }
        if end == at {
            return Ok(None);
        }
        self.at = end;
        Ok(Some(Item::Bad { offset: at, bytes: end - at, header: None }))
    }

    fn known(&self) -> Known {
        Known { last: self.last, log_id: self.log_id }
    }

    /// What the file holds from `offset` on: at least `need` bytes, fewer only at its end.
    fn fill(&mut self, offset: u64, need: usize) -> io::Result<&[u8]> {
        let have_until = self.buffer_at + self.buffer.len() as u64;
        let want_until = (offset + need as u64).min(self.file_bytes);
        if offset < self.buffer_at || want_until > have_until {
            let kept = usize::try_from(offset.saturating_sub(self.buffer_at)).unwrap_or(0);
            if offset >= self.buffer_at && kept <= self.buffer.len() {
                self.buffer.drain(..kept);
            } else {
                self.buffer.clear();
            }
            self.buffer_at = offset;
            let have = self.buffer.len();
            let left = usize::try_from(self.file_bytes.saturating_sub(offset)).unwrap_or(0);
            self.buffer.resize(need.max(CHUNK_BYTES).min(left).max(have), 0);
            let at = offset + have as u64;
            let buffer = &mut self.buffer[have..];
            let read = match (self.file.read_at(buffer, at), &self.steps_over) {
                (Err(error), Some(answers)) => read_pages(&*self.file, buffer, at, error, answers)
                    .map(|(got, unread)| {
                        self.unread.extend(unread);
                        got
                    }),
                (read, _) => read,
            };
            // After an error nothing was read: what is asked again must be read again.
            self.buffer.truncate(have + read.as_ref().unwrap_or(&0));
            read?;
        }
        let start = usize::try_from(offset - self.buffer_at).unwrap_or(0);
        Ok(self.buffer.get(start..).unwrap_or(&[]))
    }
}

/// What a failed read of `buf` leaves: pages that can't be read alone either are zeros, and are told. Where
/// none can and the device doesn't answer elsewhere, that is no damage.
fn read_pages(
    file: &dyn DiskFile,
    buf: &mut [u8],
    at: u64,
    error: io::Error,
    answers: impl Fn() -> bool,
) -> io::Result<(usize, Vec<(u64, u64)>)> {
    let mut done = 0;
    let mut readable = false;
    let mut unread = Vec::new();
    file.read_afresh();
    while done < buf.len() {
        let from = at + done as u64;
        let to_boundary = PAGE_BYTES - usize::try_from(from % PAGE_BYTES as u64).unwrap_or(0);
        let end = buf.len().min(done + to_boundary);
        match file.read_at(&mut buf[done..end], from) {
            Ok(got) => {
                readable |= got > 0;
                done += got;
                if done < end {
                    break;
                }
            }
            Err(_) => {
                buf[done..end].fill(0);
                unread.push((from, at + end as u64));
                done = end;
            }
        }
    }
    if readable || answers() { Ok((done, unread)) } else { Err(error) }
}

pub(super) fn last_nonzero(bytes: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let chunk = bytes.chunks(ZEROS.len()).rposition(|chunk| chunk != &ZEROS[..chunk.len()])?;
    let end = bytes.len().min((chunk + 1) * ZEROS.len());
    bytes[..end].iter().rposition(|b| *b != 0)
}

/// What a header must agree with.
struct Known {
    last: Seq,
    log_id: Option<u32>,
}

impl Known {
    fn header(&self, bytes: &[u8]) -> Result<Header, NoFrame> {
        let header = Header::decode(bytes)?;
        let ours = self.log_id.is_none_or(|id| id == header.log_id);
        if ours && header.seq > self.last { Ok(header) } else { Err(NoFrame::Invalid) }
    }
}
