//! Every change that the real binary makes to its data directory, in order, as strace saw it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::{Server, eventually};

/// What changes a file system, and what makes it durable.
const CALLS: &str = "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,\
    fallocate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,\
    linkat,copy_file_range,sendfile";

/// Since the epoch, of the wall clock: what strace notes too.
pub type Moment = Duration;

pub fn now() -> Moment {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Opened, and made if it was not there; emptied where the flag is set.
    Create {
        path: PathBuf,
        empty: bool,
    },
    Write {
        path: PathBuf,
        at: u64,
        data: Vec<u8>,
    },
    Cut {
        path: PathBuf,
        len: u64,
    },
    /// At least so long from here on.
    Grow {
        path: PathBuf,
        len: u64,
    },
    Sync {
        path: PathBuf,
    },
    MakeFolder {
        path: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
}

/// A call that succeeded, in the order of completion.
#[derive(Clone, Debug)]
pub struct Traced {
    pub call: Call,
    pub began: Moment,
    /// So many calls were complete when it began.
    pub after: usize,
    /// The process was killed in it: it may have happened or not.
    pub unfinished: bool,
}

/// Makes the server's next start a recorded one.
pub fn record(server: &mut Server, file: &Path) {
    let arguments = ["strace", "-D", "-f", "--seccomp-bpf", "-ttt", "-xx", "-y", "-s", "16777216"];
    let mut through: Vec<String> = arguments.map(str::to_owned).to_vec();
    through.extend(["-e".to_owned(), format!("trace={CALLS}")]);
    through.extend(["-o".to_owned(), file.display().to_string(), "--".to_owned()]);
    server.through = through;
}

/// What a recorded process that has ended did below `root`. `before`: calls of earlier sessions.
pub fn read(file: &Path, root: &Path, pid: u32, before: usize) -> Vec<Traced> {
    let text = eventually("the recorder ends", || {
        let text = std::fs::read_to_string(file).ok()?;
        let last = text.lines().rev().find(|l| l.starts_with(&format!("{pid} ")))?;
        let ended = last.contains("+++ killed") || last.contains("+++ exited");
        (ended && text.ends_with('\n')).then_some(text)
    });
    let mut reader = Reader { root, before, positions: HashMap::new(), calls: Vec::new() };
    let mut begun: HashMap<&str, (Moment, usize, String)> = HashMap::new();
    for line in text.lines() {
        // The number is padded to the width of the longest.
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((time, what)) = rest.trim_start().split_once(' ') else { continue };
        let time = Duration::from_secs_f64(time.parse().unwrap());
        // How a call ends that the kill found in the middle: after one of these marks, or after all it asks for.
        let marked = what.strip_suffix(") = ?").map(str::trim_end);
        let marked =
            marked.filter(|rest| rest.ends_with("resumed>") || rest.ends_with("<unfinished ...>"));
        let what = marked.unwrap_or(what);
        if what.ends_with("resumed>") {
            continue;
        }
        // `= ?`: the process was killed in it, which strace notes in one way or the other.
        let killed = what.strip_suffix(" = ?").map(|call| call.trim_end().trim_end_matches(')'));
        if what.starts_with("<... ") && killed.is_some() {
            continue;
        }
        if let Some(start) = what.strip_suffix(" <unfinished ...>").or(killed) {
            begun.insert(thread, (time, reader.complete(), start.to_owned()));
        } else if what.starts_with("<... ") {
            let rest = what.split_once(" resumed>").unwrap().1;
            let Some((time, after, start)) = begun.remove(thread) else { continue };
            reader.line(&format!("{start}{rest}"), time, after);
        } else {
            let after = reader.complete();
            reader.line(what, time, after);
        }
    }
    for (time, after, start) in begun.into_values() {
        let complete = reader.calls.len();
        // As if it had succeeded in full.
        let asked = start.rsplit(", ").nth(1).unwrap_or("0").to_owned();
        let result = if start.starts_with("pwrite64(") { asked } else { "0".to_owned() };
        reader.line(&format!("{start}) = {result}"), time, after);
        reader.calls[complete..].iter_mut().for_each(|c| c.unfinished = true);
    }
    reader.calls
}

struct Reader<'a> {
    root: &'a Path,
    before: usize,
    /// Where the next `write` of a descriptor goes.
    positions: HashMap<String, u64>,
    calls: Vec<Traced>,
}

impl Reader<'_> {
    fn complete(&self) -> usize {
        self.before + self.calls.len()
    }

    fn line(&mut self, line: &str, began: Moment, after: usize) {
        let Some((call, result)) = line.rsplit_once(" = ") else { return };
        let call = call.trim_end();
        let (Some((name, arguments)), false) = (call.split_once('('), result.starts_with('-'))
        else {
            return;
        };
        let arguments = arguments.strip_suffix(')').unwrap_or(arguments);
        // All text is in hexadecimal: a comma separates.
        let arguments: Vec<&str> = arguments.split(", ").collect();
        let Some(call) = self.call(name, &arguments, result) else { return };
        self.calls.push(Traced { call, began, after, unfinished: false });
    }

    fn call(&mut self, name: &str, a: &[&str], result: &str) -> Option<Call> {
        let number = |text: &str| text.parse::<u64>().unwrap();
        Some(match name {
            "open" | "creat" | "openat" => {
                let (path, flags) = match name {
                    "openat" => (self.at(a[0], a[1])?, a[2]),
                    _ => (self.below(text(a[0]).into())?, a[1]),
                };
                self.positions.insert(descriptor(result).to_owned(), 0);
                if !flags.contains("O_CREAT") && !flags.contains("O_TRUNC") {
                    return None;
                }
                Call::Create { path, empty: flags.contains("O_TRUNC") }
            }
            "pwrite64" => {
                let path = self.open_path(a[0])?;
                let mut data = bytes(a[1]);
                data.truncate(usize::try_from(number(result)).unwrap());
                Call::Write { path, at: number(a[3]), data }
            }
            "write" => {
                let path = self.open_path(a[0])?;
                let mut data = bytes(a[1]);
                data.truncate(usize::try_from(number(result)).unwrap());
                let position = self.positions.entry(descriptor(a[0]).to_owned()).or_insert(0);
                let at = *position;
                *position += data.len() as u64;
                Call::Write { path, at, data }
            }
            "ftruncate" => Call::Cut { path: self.open_path(a[0])?, len: number(a[1]) },
            "fallocate" => {
                let path = self.open_path(a[0])?;
                assert_eq!(a[1], "0", "a mode of fallocate that the model does not know");
                Call::Grow { path, len: number(a[2]) + number(a[3]) }
            }
            "fsync" | "fdatasync" => Call::Sync { path: self.open_path(a[0])? },
            "mkdir" => Call::MakeFolder { path: self.below(text(a[0]).into())? },
            "unlink" | "rmdir" => Call::Remove { path: self.below(text(a[0]).into())? },
            "unlinkat" => Call::Remove { path: self.at(a[0], a[1])? },
            "rename" => {
                let from = self.below(text(a[0]).into())?;
                Call::Rename { from, to: self.below(text(a[1]).into())? }
            }
            other => {
                let inside = a.iter().any(|a| self.open_path(a).is_some());
                assert!(!inside, "a call that the model does not know: {other}");
                return None;
            }
        })
    }

    fn below(&self, path: PathBuf) -> Option<PathBuf> {
        path.starts_with(self.root).then_some(path)
    }

    fn at(&self, folder: &str, path: &str) -> Option<PathBuf> {
        let (_, folder) = folder.split_once('<')?;
        let folder = PathBuf::from(text(folder.strip_suffix('>')?));
        self.below(folder.join(text(path)))
    }

    /// The file behind a descriptor that strace wrote as `7<path>`.
    fn open_path(&self, descriptor: &str) -> Option<PathBuf> {
        let (_, path) = descriptor.split_once('<')?;
        self.below(PathBuf::from(text(path.strip_suffix('>')?)))
    }
}

fn descriptor(text: &str) -> &str {
    text.split('<').next().unwrap_or(text)
}

fn bytes(text: &str) -> Vec<u8> {
    let hex = text.trim_matches('"').as_bytes().chunks_exact(4);
    let digit = |d: u8| (d as char).to_digit(16).unwrap() as u8;
    hex.map(|c| digit(c[2]) << 4 | digit(c[3])).collect()
}

fn text(text: &str) -> String {
    String::from_utf8(bytes(text)).unwrap()
}

/// A call that the kill found in mid-air was overlooked when strace had noted all that it asks for.
#[test]
fn however_the_recorder_notes_a_killed_call_it_is_one_in_mid_air() {
    let hex = |text: &str| text.bytes().map(|b| format!("\\x{b:02x}")).collect::<String>();
    let dir = tempfile::tempdir().unwrap();
    let call = format!(
        "pwrite64(17<{}>, \"{}\", 2, 40",
        hex(&dir.path().join("a").display().to_string()),
        hex("hi")
    );
    for end in [") = ?", ")    = ?", " <unfinished ...>", " <unfinished ...>) = ?"] {
        let file = dir.path().join("trace");
        let text = format!("8 1.5 {call}{end}\n7  1.6 +++ killed by SIGKILL +++\n");
        std::fs::write(&file, text).unwrap();
        let calls = read(&file, dir.path(), 7, 0);
        assert_eq!(calls.len(), 1, "{end}");
        assert!(calls[0].unfinished, "{end}");
        assert!(
            matches!(&calls[0].call, Call::Write { at: 40, data, .. } if data == b"hi"),
            "{end}"
        );
    }
}
