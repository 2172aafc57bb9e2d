//! `file`: one JSON line per event, synced before the attempt counts.
//!
//! Attempts that wait at the same time share one write and one sync. The path is looked at before
//! each write, so a file that logrotate moved away is let go of.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::mem;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Call, Handler, Report, seconds};
use crate::clock::BoxFuture;
use crate::config::FileSink;
use crate::delivery::Outcome;
use crate::event::Event;

/// Bytes that share one sync at most.
const BATCH_MAX_BYTES: usize = 4 << 20;

pub(super) struct File {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    queue: Mutex<Queue>,
    writer: Mutex<Writer>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Line>,
    /// Somebody is at work who looks at the queue again before leaving.
    busy: bool,
}

struct Line {
    text: String,
    done: oneshot::Sender<Result<u64, String>>,
}

impl File {
    pub(super) fn new(sink: &FileSink) -> File {
        let writer = Writer {
            path: sink.path.clone(),
            rotate_bytes: sink.rotate,
            keep: sink.keep,
            open: None,
        };
        let shared =
            Shared { path: sink.path.clone(), queue: Mutex::default(), writer: Mutex::new(writer) };
        File { shared: Arc::new(shared) }
    }

    async fn attempt(&self, call: Call) -> Report {
        let text = line_of(&call.event);
        let request = format!("append {} bytes to {}", text.len(), self.shared.path.display());
        let outcome = match timeout(call.deadline, self.append(text)).await {
            Ok(Ok(_)) => Outcome::Delivered,
            Ok(Err(why)) => Outcome::retry(why),
            Err(_) => Outcome::retry(format!(
                "{} not synced after {}; is the disk overloaded?",
                self.shared.path.display(),
                seconds(call.deadline)
            )),
        };
        Report { outcome, request: Some(request), response: None }
    }

    async fn append(&self, text: String) -> Result<u64, String> {
        let (done, result) = oneshot::channel();
        let start = {
            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.waiting.push_back(Line { text, done });
            !mem::replace(&mut queue.busy, true)
        };
        if start {
            let shared = Arc::clone(&self.shared);
            tokio::task::spawn_blocking(move || shared.work());
        }
        result.await.unwrap_or_else(|_| Err("the writer ended before the line was synced".into()))
    }
}

impl Handler for File {
    fn run(&self, call: Call) -> BoxFuture<'_, Report> {
        Box::pin(self.attempt(call))
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let batch = self.next_batch();
            if batch.is_empty() {
                return;
            }
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let result = writer.append(batch.iter().map(|line| line.text.as_str()));
            let result = result.map_err(|e| format!("cannot write {}: {e}", self.path.display()));
            for line in batch {
                // Nobody may be listening any more: the attempt timed out.
                let _ = line.done.send(result.clone());
            }
        }
    }

    /// An empty batch ends the work, decided under the same lock under which lines are added.
    fn next_batch(&self) -> Vec<Line> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_MAX_BYTES {
            let Some(line) = queue.waiting.pop_front() else { break };
            // An attempt that gave up, or was dropped, runs again: its line is not wanted now.
            if !line.done.is_closed() {
                bytes += line.text.len();
                batch.push(line);
            }
        }
        queue.busy = !batch.is_empty();
        batch
    }
}

fn line_of(event: &Event) -> String {
    let new = &event.new;
    let mut line = serde_json::json!({
        "eventId": new.id,
        "type": new.kind,
        "source": new.source,
        "receivedAt": new.received_at.to_rfc3339(),
    });
    match std::str::from_utf8(&new.body) {
        Ok(text) => line["payload"] = text.into(),
        Err(_) => {
            line["payloadBase64"] =
                base64::engine::general_purpose::STANDARD.encode(&new.body).into();
        }
    }
    format!("{line}\n")
}

struct Writer {
    path: PathBuf,
    rotate_bytes: Option<u64>,
    keep: u32,
    open: Option<fs::File>,
}

impl Writer {
    /// Appends all lines and syncs; returns the file's length. After an error the file is opened
    /// anew, and lines of this call may be in it or not.
    fn append<'a>(&mut self, lines: impl Iterator<Item = &'a str>) -> io::Result<u64> {
        let result = self.try_append(lines);
        if result.is_err() {
            self.open = None;
        }
        result
    }

    fn try_append<'a>(&mut self, lines: impl Iterator<Item = &'a str>) -> io::Result<u64> {
        let mut length = self.reopen()?;
        let mut block = String::new();
        for line in lines {
            let next = length + block.len() as u64;
            let is_full = |max: u64| next > 0 && next + line.len() as u64 > max;
            if self.rotate_bytes.is_some_and(is_full) {
                self.write(length, &mem::take(&mut block))?;
                self.rotate()?;
                length = self.reopen()?;
            }
            block.push_str(line);
        }
        self.write(length, &block)
    }

    /// Writes and syncs a block at the end, where `length` bytes are. A block that does not fit on
    /// the disk is taken back whole.
    fn write(&mut self, length: u64, block: &str) -> io::Result<u64> {
        let file = self.open.as_mut().ok_or_else(|| io::Error::other("not open"))?;
        if let Err(error) = file.write_all(block.as_bytes()) {
            let _ = file.set_len(length);
            return Err(error);
        }
        file.sync_data()?;
        Ok(length + block.len() as u64)
    }

    /// Makes sure that the open file is the one at the path, and ends in a whole line. Returns its
    /// length.
    fn reopen(&mut self) -> io::Result<u64> {
        let there = match fs::metadata(&self.path) {
            Ok(meta) if !meta.is_file() => return Err(io::Error::other("not a regular file")),
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        if let (Some(file), Some(there)) = (&self.open, &there) {
            let ours = file.metadata()?;
            if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
                return Ok(ours.len());
            }
        }
        let folder = folder_of(&self.path);
        if there.is_none() {
            fs::create_dir_all(folder)?;
        }
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(&self.path)?;
        if there.is_none() {
            sync_folder(folder)?;
        }
        let mut length = file.metadata()?.len();
        // A crash in the middle of a write left half a line: end it, so that the next one is whole.
        if length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                length += 1;
            }
        }
        self.open = Some(file);
        Ok(length)
    }

    /// `path` becomes `path.1`, that `path.2`, and so on; the one after the last goes.
    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        for number in (1..self.keep).rev() {
            if_there(fs::rename(self.numbered(number), self.numbered(number + 1)))?;
        }
        if self.keep == 0 {
            if_there(fs::remove_file(&self.path))?;
        } else {
            if_there(fs::rename(&self.path, self.numbered(1)))?;
        }
        sync_folder(folder_of(&self.path))
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn if_there(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Action;
    use crate::handler::testing::{self, BODY, call};

    fn sink(path: &Path) -> FileSink {
        FileSink { path: path.to_owned(), rotate: None, keep: 2 }
    }

    fn event_body(n: usize) -> String {
        format!(r#"{{"eventId":"e{n}","type":"t"}}"#)
    }

    fn ids(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let id = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["eventId"].as_str().unwrap().to_owned()
        };
        text.lines().map(id).collect()
    }

    #[tokio::test]
    async fn a_line_holds_the_event_and_its_exact_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/folder/events.jsonl");
        let report = testing::run(Action::File(sink(&path)), call(BODY)).await;
        assert_eq!(report.outcome, Outcome::Delivered);
        let text = fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "eventId": "e1", "type": "message.read", "source": "bluereplies",
            "receivedAt": "2026-09-21T14:13:20.123Z", "payload": BODY,
        });
        assert_eq!(line, expected);
        assert!(text.ends_with('\n'));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o007, 0);
    }

    #[test]
    fn bytes_that_are_no_text_are_base64() {
        let mut event = testing::event("x");
        event.new.body = vec![0xff, 0xfe].into();
        let line: serde_json::Value = serde_json::from_str(&line_of(&event)).unwrap();
        assert_eq!(line["payloadBase64"], "//4=");
        assert!(line.get("payload").is_none());
    }

    #[tokio::test]
    async fn many_at_once_are_each_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let handler = testing::ready(Action::File(sink(&path)));
        let run = |n| {
            let handler = handler.clone();
            tokio::spawn(async move { handler.run(call(&event_body(n))).await.outcome })
        };
        for run in (0..200).map(run).collect::<Vec<_>>() {
            assert_eq!(run.await.unwrap(), Outcome::Delivered);
        }
        let mut found = ids(&path);
        found.sort();
        let mut expected: Vec<String> = (0..200).map(|n| format!("e{n}")).collect();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn a_torn_last_line_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "{\"eventId\":\"old\"}\n{\"eventId\":\"to").unwrap();
        testing::run(Action::File(sink(&path)), call(BODY)).await;
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["{\"eventId\":\"old\"}", "{\"eventId\":\"to"]);
        assert!(lines[2].contains("\"e1\"") && lines.len() == 3);
    }

    #[tokio::test]
    async fn a_file_that_was_moved_or_deleted_is_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("x"), dir.path().join("moved"));
        let handler = testing::ready(Action::File(sink(&path)));
        handler.run(call(&event_body(1))).await;
        fs::rename(&path, &moved).unwrap();
        handler.run(call(&event_body(2))).await;
        fs::remove_file(&path).unwrap();
        handler.run(call(&event_body(3))).await;
        assert_eq!(ids(&moved), ["e1"]);
        assert_eq!(ids(&path), ["e3"]);
    }

    #[tokio::test]
    async fn rotation_keeps_the_newest_and_loses_no_line_between_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let line = line_of(&testing::event(&event_body(1))).len() as u64;
        let config = FileSink { rotate: Some(2 * line), ..sink(&path) };
        let handler = testing::ready(Action::File(config));
        for n in 1..=9 {
            assert_eq!(handler.run(call(&event_body(n))).await.outcome, Outcome::Delivered);
        }
        assert_eq!(ids(&path), ["e9"]);
        assert_eq!(ids(&dir.path().join("x.1")), ["e7", "e8"]);
        assert_eq!(ids(&dir.path().join("x.2")), ["e5", "e6"]);
        assert!(!dir.path().join("x.3").exists());
    }

    #[test]
    fn one_batch_may_rotate_in_the_middle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut writer = Writer { path: path.clone(), rotate_bytes: Some(10), keep: 9, open: None };
        writer
            .append(["aaaa\n", "bbbb\n", "cccc\n", "a long line of its own\n"].into_iter())
            .unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("x.2")).unwrap(), "aaaa\nbbbb\n");
        assert_eq!(fs::read_to_string(dir.path().join("x.1")).unwrap(), "cccc\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a long line of its own\n");
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for path in [dir.path().to_owned(), dir.path().join("file/x"), "/dev/full".into()] {
            let report = testing::run(Action::File(sink(&path)), call(BODY)).await;
            let Outcome::Retry { reason, .. } = report.outcome else { panic!("{path:?}") };
            assert!(reason.starts_with("cannot write ") && !reason.contains('\n'), "{reason}");
        }
    }
}
