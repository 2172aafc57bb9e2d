//! A file system as a crash may leave it: of what was not synced anything may be there, or nothing, or half.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::trace::{Call, Traced};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const ROOT: usize = 0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    File(usize),
    Folder(usize),
}

/// What one call changed in folders: all of it or nothing is there after a crash.
#[derive(Clone, Debug)]
struct Naming {
    call: usize,
    changes: Vec<(usize, String, Option<Node>)>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, data: Vec<u8> },
    Cut { len: usize },
    Grow { len: usize },
}

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<(usize, Change)>,
}

type Folder = BTreeMap<String, Node>;

/// How names get durable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Names {
    /// Only by a sync of their folder: all that is promised.
    Strict,
    /// In order, by any sync: ext4's journal.
    Journal,
}

pub struct FileSystem {
    root: PathBuf,
    names: Names,
    calls: usize,
    files: Vec<File>,
    /// As processes see them.
    current: Vec<Folder>,
    durable: Vec<Folder>,
    pending: Vec<Naming>,
}

impl FileSystem {
    pub fn new(root: &Path, names: Names) -> FileSystem {
        FileSystem {
            root: root.to_owned(),
            names,
            calls: 0,
            files: Vec::new(),
            current: vec![Folder::new()],
            durable: vec![Folder::new()],
            pending: Vec::new(),
        }
    }

    fn find(&self, path: &Path) -> Option<Node> {
        let mut node = Node::Folder(ROOT);
        for part in path.strip_prefix(&self.root).unwrap().components() {
            let (Component::Normal(name), Node::Folder(folder)) = (part, node) else { return None };
            node = *self.current[folder].get(name.to_str().unwrap())?;
        }
        Some(node)
    }

    fn file(&mut self, path: &Path) -> Option<&mut File> {
        match self.find(path)? {
            Node::File(file) => Some(&mut self.files[file]),
            Node::Folder(_) => None,
        }
    }

    /// The folder a path lies in, and its name there.
    fn place(&self, path: &Path) -> (usize, String) {
        let folder = match self.find(path.parent().unwrap()) {
            Some(Node::Folder(folder)) => Some(folder),
            _ => None,
        };
        let folder = folder.expect("the folder of a path is there");
        (folder, path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn name(&mut self, changes: Vec<(usize, String, Option<Node>)>) {
        for (folder, name, node) in &changes {
            set(&mut self.current[*folder], name, *node);
        }
        self.pending.push(Naming { call: self.calls, changes });
    }

    /// The next call. Those of a descriptor whose file is gone by now are of no consequence.
    pub fn apply(&mut self, traced: &Traced) {
        let n = self.calls;
        match &traced.call {
            Call::MakeFolder { path } if path == &self.root => {}
            Call::MakeFolder { path } => {
                self.current.push(Folder::new());
                self.durable.push(Folder::new());
                let (folder, name) = self.place(path);
                self.name(vec![(folder, name, Some(Node::Folder(self.current.len() - 1)))]);
            }
            Call::Create { path, empty } => {
                if let Some(file) = self.file(path) {
                    if *empty {
                        file.pending.push((n, Change::Cut { len: 0 }));
                    }
                } else {
                    self.files.push(File::default());
                    let (folder, name) = self.place(path);
                    self.name(vec![(folder, name, Some(Node::File(self.files.len() - 1)))]);
                }
            }
            Call::Remove { path } => {
                let (folder, name) = self.place(path);
                self.name(vec![(folder, name, None)]);
            }
            Call::Rename { from, to } => {
                let node = self.find(from);
                let ((from, old), (to, new)) = (self.place(from), self.place(to));
                self.name(vec![(from, old, None), (to, new, node)]);
            }
            Call::Write { path, at, data } => {
                let (at, data) = (usize::try_from(*at).unwrap(), data.clone());
                self.change(path, Change::Write { at, data });
            }
            Call::Cut { path, len } => {
                self.change(path, Change::Cut { len: usize::try_from(*len).unwrap() });
            }
            Call::Grow { path, len } => {
                self.change(path, Change::Grow { len: usize::try_from(*len).unwrap() });
            }
            Call::Sync { path } => self.sync(path, traced.after),
        }
        self.calls += 1;
    }

    fn change(&mut self, path: &Path, change: Change) {
        let n = self.calls;
        if let Some(file) = self.file(path) {
            file.pending.push((n, change));
        }
    }

    /// `before`: what was called later need not be covered.
    fn sync(&mut self, path: &Path, before: usize) {
        let synced = self.find(path);
        if let Some(Node::File(file)) = synced {
            let file = &mut self.files[file];
            let covered = file.pending.iter().take_while(|(call, _)| *call < before).count();
            for (_, change) in file.pending.drain(..covered) {
                make(&mut file.durable, &change, 0..usize::MAX);
            }
        }
        let names = self.names;
        let durable = &mut self.durable;
        self.pending.retain(|naming| {
            let journal = names == Names::Journal;
            let in_folder = |f: &usize| synced == Some(Node::Folder(*f));
            let covered = journal || naming.changes.iter().any(|(f, ..)| in_folder(f));
            if !covered || naming.call >= before {
                return true;
            }
            for (folder, name, node) in &naming.changes {
                set(&mut durable[*folder], name, *node);
            }
            false
        });
    }

    /// Everything that is not durable comes to be, as when the machine is left alone.
    pub fn settle(&mut self) {
        for file in &mut self.files {
            for (_, change) in std::mem::take(&mut file.pending) {
                make(&mut file.durable, &change, 0..usize::MAX);
            }
        }
        self.durable.clone_from(&self.current);
        self.pending.clear();
    }

    /// Writes what a crash leaves here and now to `into`; tells how it was chosen.
    pub fn crash(&self, into: &Path, rng: &mut fastrand::Rng) -> String {
        let fate = Fate::random(rng);
        let mut folders = self.durable.clone();
        let cut = rng.usize(0..=self.pending.len());
        for (i, naming) in self.pending.iter().enumerate() {
            let there = match fate {
                Fate::Nothing => false,
                Fate::Everything => true,
                // A journal keeps the order.
                _ if self.names == Names::Journal => i < cut,
                _ => rng.bool(),
            };
            if there {
                for (folder, name, node) in &naming.changes {
                    set(&mut folders[*folder], name, *node);
                }
            }
        }
        self.write(&folders, ROOT, into, fate, rng);
        format!("{:?} after {} calls, {fate:?}", self.names, self.calls)
    }

    fn write(
        &self,
        folders: &[Folder],
        folder: usize,
        into: &Path,
        fate: Fate,
        rng: &mut fastrand::Rng,
    ) {
        std::fs::create_dir_all(into).unwrap();
        for (name, node) in &folders[folder] {
            let path = into.join(name);
            match node {
                Node::Folder(folder) => self.write(folders, *folder, &path, fate, rng),
                Node::File(file) => {
                    let file = &self.files[*file];
                    let mut bytes = file.durable.clone();
                    fate.of_file(&mut bytes, &file.pending, rng);
                    std::fs::write(path, bytes).unwrap();
                }
            }
        }
    }
}

fn set(folder: &mut Folder, name: &str, node: Option<Node>) {
    match node {
        Some(node) => _ = folder.insert(name.to_owned(), node),
        None => _ = folder.remove(name),
    }
}

/// Makes the part of a change that lies in `range` of the file.
fn make(bytes: &mut Vec<u8>, change: &Change, range: std::ops::Range<usize>) {
    match change {
        Change::Write { at, data } => {
            let (from, to) = (range.start.max(*at), range.end.min(at + data.len()));
            if from < to {
                bytes.resize(bytes.len().max(to), 0);
                bytes[from..to].copy_from_slice(&data[from - at..to - at]);
            }
        }
        Change::Cut { len } => bytes.resize(*len, 0),
        Change::Grow { len } => bytes.resize(bytes.len().max(*len), 0),
    }
}

/// What becomes of changes to one file that were not synced.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Nothing,
    Everything,
    /// In order up to some point, the last one torn.
    Beginning,
    /// Each change by itself.
    Some(f64),
    /// Each piece of so many bytes by itself.
    Pieces(usize, f64),
    OnlyOne,
    AllButOne,
    /// The newest ones.
    End,
}

impl Fate {
    fn random(rng: &mut fastrand::Rng) -> Fate {
        let part = [0.1, 0.5, 0.9, 0.98][rng.usize(0..4)];
        match rng.u32(0..10) {
            0 => Fate::Nothing,
            1 => Fate::Everything,
            2 | 3 => Fate::Beginning,
            4 => Fate::Some(part),
            5 | 6 => Fate::Pieces(PAGE, part),
            7 => Fate::Pieces(SECTOR, part),
            8 => [Fate::OnlyOne, Fate::AllButOne][rng.usize(0..2)],
            _ => Fate::End,
        }
    }

    fn of_file(self, bytes: &mut Vec<u8>, pending: &[(usize, Change)], rng: &mut fastrand::Rng) {
        let point = rng.usize(0..=pending.len());
        for (i, (_, change)) in pending.iter().enumerate() {
            let whole = match self {
                Fate::Nothing => false,
                Fate::Everything => true,
                Fate::Beginning if i == point => {
                    let len = if let Change::Write { data, .. } = change { data.len() } else { 0 };
                    tear(bytes, change, rng.usize(0..=len));
                    false
                }
                Fate::Beginning => i < point,
                Fate::Some(part) => rng.f64() < part,
                Fate::Pieces(size, part) => {
                    pieces(bytes, change, size, || rng.f64() < part);
                    false
                }
                Fate::OnlyOne => i == point,
                Fate::AllButOne => i != point,
                Fate::End => i >= point,
            };
            if whole {
                make(bytes, change, 0..usize::MAX);
            }
        }
    }
}

/// The first sectors of a write.
fn tear(bytes: &mut Vec<u8>, change: &Change, len: usize) {
    if let Change::Write { at, .. } = change {
        make(bytes, change, 0..(at + len) / SECTOR * SECTOR);
    }
}

fn pieces(bytes: &mut Vec<u8>, change: &Change, size: usize, mut keep: impl FnMut() -> bool) {
    if let Change::Write { at, data } = change {
        let first = at / size * size;
        for start in (first..at + data.len()).step_by(size).filter(|_| keep()) {
            make(bytes, change, start..start + size);
        }
    } else if keep() {
        make(bytes, change, 0..usize::MAX);
    }
}
