//! Segments whose files have changed places, as after a copy by hand: they are put back by what they hold.

use std::io;
use std::path::{Path, PathBuf};

use super::{LogError, segment};
use crate::delivery::Seq;
use crate::store::disk::Disk;

/// Gives every segment the number that fits its records. Only names change, and one file at a time is out of
/// the way: whenever this is cut off, the next start completes it.
///
/// Tells whether there was anything to do.
///
/// # Errors
/// The disk fails, or a segment has a newer format.
pub fn put_in_order(disk: &dyn Disk, dir: &Path) -> Result<bool, LogError> {
    let put_back = put_back(disk, dir)?;
    let mut now = Vec::new();
    for number in segment::numbers(disk, dir)? {
        match segment::head(disk, dir, number) {
            Ok(Some(header)) => now.push((number, header.seq, header.log_id)),
            // What can't be read stays where it is.
            Ok(None) | Err(LogError::Io(_)) => {}
            Err(e) => return Err(e),
        }
    }
    // What is not this log's, or there twice, can't be sorted by what it holds.
    let one_log = now.windows(2).all(|w| w[0].2 == w[1].2);
    let ordered = now.windows(2).all(|w| w[0].1 < w[1].1);
    let mut sorted: Vec<(Seq, u32)> = now.iter().map(|(number, seq, _)| (*seq, *number)).collect();
    sorted.sort_unstable();
    if ordered || !one_log || sorted.windows(2).any(|w| w[0].0 == w[1].0) {
        return Ok(put_back);
    }
    tracing::error!("segments of the log have changed places; they are put back by what they hold");
    // (number now, number it should have)
    let mut moves: Vec<(u32, u32)> =
        sorted.iter().zip(&now).map(|((_, is), (should, ..))| (*is, *should)).collect();
    moves.retain(|(is, should)| is != should);
    while let Some((aside, last_stop)) = moves.pop() {
        let rename = |from: &Path, to: &Path| -> io::Result<()> {
            disk.rename(from, to)?;
            disk.sync_dir(dir)
        };
        rename(&segment::path(dir, aside), &moved(dir, aside))?;
        let mut hole = aside;
        while let Some(i) = moves.iter().position(|(_, should)| *should == hole) {
            let (is, should) = moves.swap_remove(i);
            rename(&segment::path(dir, is), &segment::path(dir, should))?;
            hole = is;
        }
        debug_assert_eq!(hole, last_stop, "a cycle ends where it began");
        rename(&moved(dir, aside), &segment::path(dir, hole))?;
    }
    Ok(true)
}

fn moved(dir: &Path, number: u32) -> PathBuf {
    segment::path(dir, number).with_extension("moved")
}

/// A file that was out of the way when this was cut off goes where a number is missing.
fn put_back(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
    let mut any = false;
    for name in disk.list(dir)?.iter().filter(|name| name.ends_with(".moved")) {
        let numbers = segment::numbers(disk, dir)?;
        let own = name.strip_suffix(".moved").and_then(|n| n.parse().ok());
        let (first, last) = (numbers.first().copied(), numbers.last().copied());
        let missing = first.zip(last).and_then(|(a, b)| (a..=b).find(|n| !numbers.contains(n)));
        let hole = match own.filter(|n| !numbers.contains(n)).or(missing) {
            Some(hole) => hole,
            None => last.unwrap_or(0) + 1,
        };
        disk.rename(&dir.join(name), &segment::path(dir, hole))?;
        disk.sync_dir(dir)?;
        any = true;
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Timestamp;
    use crate::store::disk::{Call, Fault, FaultDisk, MemDisk};
    use crate::store::log::{LogOptions, LogReader, LogWriter, ScanItem};

    const OPTIONS: LogOptions = LogOptions { segment_bytes: 300 };

    /// The numbers of all records that a start finds, and of its damage.
    fn all(disk: &Arc<dyn Disk>) -> Result<(Vec<Seq>, usize), LogError> {
        let (writer, report) = LogWriter::open(disk.clone(), Path::new("/log"), OPTIONS)?;
        let reader = LogReader::new(disk.clone(), Path::new("/log"));
        let mut scan = reader.scan((1, 0), writer.durable());
        let mut seqs = Vec::new();
        while let Some(item) = scan.next()? {
            if let ScanItem::Frame(frame) = item {
                seqs.push(frame.seq);
            }
        }
        Ok((seqs, report.damage.len()))
    }

    /// A log of several segments, of which some have changed places in a circle.
    fn mixed(memory: &MemDisk, circle: &[u32]) {
        let disk: Arc<dyn Disk> = Arc::new(memory.clone());
        let dir = Path::new("/log");
        let (mut writer, _) = LogWriter::open(disk.clone(), dir, OPTIONS).unwrap();
        for _ in 0..20 {
            writer.append(Timestamp(1), 1, &[7; 50]);
            writer.write().unwrap();
            writer.sync().unwrap();
        }
        drop(writer);
        let aside = dir.join("x");
        disk.rename(&segment::path(dir, circle[0]), &aside).unwrap();
        for pair in circle.windows(2) {
            disk.rename(&segment::path(dir, pair[1]), &segment::path(dir, pair[0])).unwrap();
        }
        disk.rename(&aside, &segment::path(dir, circle[circle.len() - 1])).unwrap();
        disk.sync_dir(dir).unwrap();
    }

    #[test]
    fn segments_that_changed_places_are_put_back_whenever_that_is_cut_off() {
        let whole: (Vec<Seq>, usize) = ((1..=20).collect(), 0);
        for circle in [&[1, 2][..], &[2, 4], &[1, 3, 2], &[3, 1, 5, 2], &[1, 7], &[6, 7]] {
            for nth in 1.. {
                let memory = MemDisk::new();
                mixed(&memory, circle);
                let faults = FaultDisk::new(Arc::new(memory.clone()));
                let error = std::io::ErrorKind::Other;
                faults.fail(Fault { call: Some(Call::Rename), nth, error, sticky: true });
                let faulty: Arc<dyn Disk> = Arc::new(faults.clone());
                let cut_off = all(&faulty).is_err();
                memory.crash(&mut fastrand::Rng::with_seed(nth));
                let disk: Arc<dyn Disk> = Arc::new(memory);
                assert_eq!(all(&disk).unwrap(), whole, "{circle:?} {nth}");
                if !cut_off {
                    break;
                }
            }
        }
    }
}
