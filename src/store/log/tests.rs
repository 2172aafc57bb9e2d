//! The log as a whole, over disks that lose power, fail and fill up.

mod model;
mod unreadable;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::frame::HEADER_BYTES;
use super::request::{Done, Request};
use super::*;
use crate::clock::{TestClock, Timeline};
use crate::store::AppendError;
use crate::store::disk::{Call, Disk, Fault, FaultDisk, MemDisk, Open, RealDisk};

const DIR: &str = "/data/log";
const SMALL: LogOptions = LogOptions { segment_bytes: 4096 };
const NO_RESERVE: Limits =
    Limits { queue_requests: 8192, queue_bytes: 1 << 25, reserve_bytes: Some(0) };

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn seg(number: u32) -> PathBuf {
    dir().join(format!("{number:08}.seg"))
}

fn open(disk: &Arc<dyn Disk>) -> (LogWriter, OpenReport) {
    LogWriter::open(disk.clone(), dir(), SMALL).unwrap()
}

fn mem() -> (MemDisk, Arc<dyn Disk>) {
    let disk = MemDisk::new();
    (disk.clone(), Arc::new(disk))
}

/// Appends and syncs one record after the other, so that each says the one before is durable.
fn append_synced(log: &mut LogWriter, payloads: &[&[u8]]) -> Vec<(Seq, Place)> {
    let append = |payload: &&[u8]| {
        let placed = log.append(Timestamp(1), 1, payload);
        log.write().unwrap();
        log.sync().unwrap();
        placed
    };
    payloads.iter().map(append).collect()
}

fn scan_all(disk: &Arc<dyn Disk>, upto: Seq) -> Vec<ScanItem> {
    let reader = LogReader::new(disk.clone(), dir());
    let Some(first) = reader.first_position().unwrap() else { return vec![] };
    let mut scan = reader.scan(first, upto);
    std::iter::from_fn(|| scan.next().unwrap()).collect()
}

fn frames(items: &[ScanItem]) -> Vec<(Seq, Vec<u8>)> {
    let frame = |item: &ScanItem| match item {
        ScanItem::Frame(f) => Some((f.seq, f.payload.to_vec())),
        ScanItem::Damage(_) => None,
    };
    items.iter().filter_map(frame).collect()
}

fn damage(items: &[ScanItem]) -> Vec<Damage> {
    let damage = |item: &ScanItem| match item {
        ScanItem::Damage(d) => Some(*d),
        ScanItem::Frame(_) => None,
    };
    items.iter().filter_map(damage).collect()
}

fn durable(
    payload: Vec<u8>,
    priority: Priority,
) -> (Request, oneshot::Receiver<Result<Receipt, AppendError>>) {
    let (done, result) = oneshot::channel();
    (Request::Append { kind: 1, payload, priority, done: Done::Durable(Box::new(done)) }, result)
}

fn written(payload: Vec<u8>) -> (Request, oneshot::Receiver<Result<Seq, AppendError>>) {
    let (done, result) = oneshot::channel();
    let priority = Priority::Bookkeeping;
    (Request::Append { kind: 2, payload, priority, done: Done::Written(done) }, result)
}

fn written_in(epoch: u64) -> (Request, oneshot::Receiver<Result<Seq, AppendError>>) {
    let (done, result) = oneshot::channel();
    (
        Request::Series {
            epoch,
            records: vec![(2, vec![1]), (2, vec![2])],
            done: Done::Written(done),
        },
        result,
    )
}

#[test]
fn records_read_back_by_place_and_in_order_over_many_segments() {
    let (_, disk) = mem();
    let (mut log, report) = open(&disk);
    assert_eq!((report.first, report.next), (1, 1));
    let big = vec![9; 10_000];
    let payloads: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i; 300]).chain([big]).collect();
    let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
    let placed = append_synced(&mut log, &payloads);
    assert!(log.segments().count() > 3);
    assert_eq!(placed.last().map(|(_, p)| p.offset), Some(0), "a large record has its own segment");
    let reader = LogReader::new(disk.clone(), dir());
    for ((seq, place), payload) in placed.iter().zip(&payloads) {
        assert_eq!(reader.read(*seq, *place).unwrap().payload, payload);
        assert!(matches!(reader.read(seq + 1, *place), Err(LogError::Corrupt(_))));
    }
    let segments: Vec<_> = log.segments().collect();
    drop(log);
    let (log, report) = open(&disk);
    assert_eq!((report.first, report.next, report.torn_bytes), (1, 42, 0));
    assert_eq!(report.high_water, Timestamp(1));
    assert!(log.segments().eq(segments));
    assert_eq!(frames(&scan_all(&disk, 41)).len(), 41);
    assert_eq!(frames(&scan_all(&disk, 7)).len(), 7, "a scan ends where it is told to");
}

/// Found by the simulator: after a write that failed right behind a new segment's beginning, schedule time went back to
/// where the segment before had begun.
#[test]
fn the_high_water_mark_is_the_last_records_also_where_the_tail_holds_none() {
    let (_, disk) = mem();
    let (mut log, _) = open(&disk);
    let mut time = 0;
    while log.segments().count() < 3 {
        time += 1;
        log.append(Timestamp(time), 1, &[7; 300]);
        log.write().unwrap();
        log.sync().unwrap();
    }
    drop(log);
    let file = disk.open(&seg(3), Open::ReadWrite).unwrap();
    file.set_len(u64::try_from(HEADER_BYTES).unwrap() + 10).unwrap();
    drop(file);
    let (_, report) = open(&disk);
    assert_eq!(report.high_water, Timestamp(time - 1));
}

/// Found by reading the code: what a device couldn't read for a moment was taken for damage.
#[test]
fn what_cannot_be_read_for_a_moment_is_no_damage() {
    let (_, inner) = mem();
    append_synced(&mut open(&inner).0, &[&[1; 300][..]; 40]);
    let faults = FaultDisk::new(inner);
    let disk: Arc<dyn Disk> = Arc::new(faults.clone());
    for steps_over in [false, true] {
        for nth in 1..30 {
            let reader = LogReader::new(disk.clone(), dir());
            let mut scan = reader.scan((1, 0), 40).stepping_over(steps_over);
            let (error, sticky) = (io::ErrorKind::Other, true);
            faults.fail(Fault { call: Some(Call::Read), nth, error, sticky });
            let (mut read, mut failed) = (Vec::new(), 0);
            loop {
                match scan.next() {
                    Ok(Some(item)) => read.push(item),
                    Ok(None) => break,
                    Err(_) => {
                        failed += 1;
                        faults.heal();
                    }
                }
            }
            faults.heal();
            // Not even one that steps over: the device gives nothing at all.
            assert_eq!((frames(&read).len(), read.len()), (40, 40), "{steps_over} {nth}");
            assert!(failed == 1 || nth > 4, "{steps_over} {nth}");
        }
    }
}

#[test]
fn the_real_disk_keeps_what_the_memory_disk_keeps() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("log");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    for round in 0..3 {
        let (mut log, report) = LogWriter::open(disk.clone(), &dir, SMALL).unwrap();
        assert_eq!(report.next, 1 + round * 30);
        append_synced(&mut log, &[&[1; 500][..]; 30]);
        log.prepare().unwrap();
    }
    let reader = LogReader::new(disk.clone(), &dir);
    let mut scan = reader.scan(reader.first_position().unwrap().unwrap(), 90);
    let mut n = 0;
    while let Some(item) = scan.next().unwrap() {
        n += 1;
        assert!(matches!(item, ScanItem::Frame(f) if f.seq == n && f.payload[..] == [1; 500]));
    }
    assert_eq!(n, 90);
    assert!(disk.space(&dir).unwrap().free > 0);
}

#[test]
fn damage_in_the_middle_is_located_exactly_and_the_rest_is_kept() {
    for (field, flip) in [("header", 5), ("payload", HEADER_BYTES + 3)] {
        let (memory, disk) = mem();
        let (mut log, _) = open(&disk);
        let placed = append_synced(&mut log, &[&[7; 100][..]; 10]);
        drop(log);
        let hit = placed[4].1;
        memory.corrupt(&seg(1), |b| b[hit.offset as usize + flip] ^= 0x10);
        let before = memory.bytes(&seg(1)).unwrap();
        let lost = Damage {
            segment: 1,
            offset: hit.offset.into(),
            bytes: hit.len.into(),
            first: 5,
            last: 5,
        };
        for _ in 0..2 {
            let (_, report) = open(&disk);
            assert_eq!(report.damage, [lost], "{field}");
            assert_eq!((report.next, report.torn_bytes), (11, 0));
            assert_eq!(memory.bytes(&seg(1)).unwrap(), before, "a damaged segment stays as it is");
        }
        let (mut log, _) = open(&disk);
        let placed = append_synced(&mut log, &[b"next"]);
        assert!(placed[0].1.segment > 1, "nothing is appended to a damaged segment");
        let items = scan_all(&disk, 11);
        assert_eq!(damage(&items), [lost]);
        assert_eq!(frames(&items).len(), 10);
        log.remove_segment(1).unwrap();
        let aside = memory.bytes(&dir().join("aside/00000001.seg"));
        assert_eq!(aside, Some(before), "retention keeps it aside");
    }
}

#[test]
fn damage_in_sealed_segments_and_missing_ones_are_found() {
    let fill = |disk: &Arc<dyn Disk>| {
        let (mut log, _) = open(disk);
        append_synced(&mut log, &[&[7; 956][..]; 18]);
        assert_eq!(log.segments().count(), 5, "four records in each, two in the last");
    };
    let lost = |report: &OpenReport| -> Vec<(Seq, Seq)> {
        report.damage.iter().map(|d| (d.first, d.last)).filter(|(f, l)| f <= l).collect()
    };
    // The head of the third is gone: found on opening.
    let (memory, disk) = mem();
    fill(&disk);
    memory.corrupt(&seg(3), |b| b[..HEADER_BYTES].fill(0));
    assert_eq!(lost(&open(&disk).1), [(9, 9)]);
    assert_eq!(damage(&scan_all(&disk, 18)).len(), 1);
    // All of it is gone.
    memory.corrupt(&seg(3), |b| b.fill(0xaa));
    let (log, report) = open(&disk);
    assert_eq!(lost(&report), [(9, 12)]);
    assert_eq!(report.next, 19);
    assert_eq!(log.segments().nth(1).unwrap().last, Some(8));
    // Even its file.
    disk.remove(&seg(3)).unwrap();
    assert_eq!(lost(&open(&disk).1), [(9, 12)]);
    let items = scan_all(&disk, 18);
    assert_eq!(damage(&items).iter().map(|d| (d.first, d.last)).collect::<Vec<_>>(), [(9, 12)]);
    assert_eq!(frames(&items).len(), 14);
    // Rot deep inside a sealed segment is the scan's to find.
    let (memory, disk) = mem();
    fill(&disk);
    memory.corrupt(&seg(2), |b| b[2100] ^= 1);
    assert_eq!(lost(&open(&disk).1), []);
    let found = damage(&scan_all(&disk, 18));
    assert_eq!((found[0].segment, found[0].offset, found[0].first, found[0].last), (2, 2000, 7, 7));
}

#[test]
fn a_damaged_last_record_is_reported_up_to_the_fence() {
    let (memory, disk) = mem();
    let (mut log, _) = open(&disk);
    let placed = append_synced(&mut log, &[&[7; 100][..]; 3]);
    memory.corrupt(&seg(1), |b| b[placed[2].1.offset as usize + 60] ^= 1);
    let items = scan_all(&disk, 3);
    assert_eq!(frames(&items).len(), 2);
    assert_eq!(damage(&items).iter().map(|d| (d.first, d.last)).collect::<Vec<_>>(), [(3, 3)]);
}

#[test]
fn text_that_looks_like_a_frame_is_none() {
    let (memory, disk) = mem();
    let (mut log, _) = open(&disk);
    let mut forged = vec![];
    let stamp = frame::Stamp { log_id: 12345, seq: 900, time: Timestamp(0), kind: 1, durable: 899 };
    frame::encode(&mut forged, stamp, b"forged");
    let placed = append_synced(&mut log, &[b"one", &forged, b"three", b"four"]);
    memory.corrupt(&seg(1), |b| b[placed[1].1.offset as usize] ^= 1);
    drop(log);
    assert_eq!(open(&disk).1.next, 5);
    let seqs: Vec<Seq> = frames(&scan_all(&disk, 4)).iter().map(|f| f.0).collect();
    assert_eq!(seqs, [1, 3, 4]);
}

/// One durable record, then a batch of five that was written and never synced.
fn with_unsynced_batch() -> (MemDisk, Arc<dyn Disk>, Vec<Place>) {
    let (memory, disk) = mem();
    let (mut log, _) = open(&disk);
    append_synced(&mut log, &[&[1; 100]]);
    let places = (0..5).map(|i| log.append(Timestamp(1), 1, &[i; 100]).1).collect();
    log.write().unwrap();
    (memory, disk, places)
}

#[test]
fn torn_tails_are_cut_and_kept_aside() {
    let aside = |disk: &Arc<dyn Disk>| disk.list(&dir().join("aside")).unwrap().len();
    // What a cut leaves of the batch, and how many records are whole.
    type Change = fn(&mut Vec<u8>, &[Place]);
    let cases: [(&str, Change, Seq, bool); 6] = [
        ("whole", |_, _| {}, 7, false),
        ("clean end", |b, p| b[p[0].offset as usize..].fill(0), 2, false),
        ("cut in a payload", |b, p| b.truncate(p[4].offset as usize + 70), 6, true),
        ("cut in a header", |b, p| b.truncate(p[4].offset as usize + 20), 6, true),
        ("first lost", |b, p| b[p[0].offset as usize..p[1].offset as usize].fill(0), 2, true),
        ("middle lost", |b, p| b[p[2].offset as usize + 50..p[3].offset as usize].fill(0), 4, true),
    ];
    for (name, change, next, kept) in cases {
        let (memory, disk, places) = with_unsynced_batch();
        memory.corrupt(&seg(1), |b| change(b, &places));
        let (mut log, report) = open(&disk);
        assert_eq!(report.next, next, "{name}");
        assert_eq!(report.damage, [], "{name}");
        assert_eq!(report.torn_bytes > 0, kept, "{name}");
        assert_eq!(aside(&disk) > 0, kept, "{name}");
        append_synced(&mut log, &[b"goes on"]);
        drop(log);
        let (_, report) = open(&disk);
        assert_eq!((report.next, report.torn_bytes), (next + 1, 0), "{name}");
        assert_eq!(frames(&scan_all(&disk, next)).len() as u64, next, "{name}");
    }
}

#[test]
fn the_same_hole_is_damage_once_a_later_record_says_it_was_durable() {
    let (memory, disk) = mem();
    let (mut log, _) = open(&disk);
    append_synced(&mut log, &[&[1; 100]]);
    let places: Vec<Place> = (0..5).map(|i| log.append(Timestamp(1), 1, &[i; 100]).1).collect();
    log.write().unwrap();
    log.sync().unwrap();
    append_synced(&mut log, &[b"later"]);
    memory.corrupt(&seg(1), |b| {
        b[places[0].offset as usize..places[2].offset as usize].fill(0);
    });
    drop(log);
    let (_, report) = open(&disk);
    assert_eq!((report.next, report.torn_bytes), (8, 0));
    assert_eq!(report.damage.iter().map(|d| (d.first, d.last)).collect::<Vec<_>>(), [(2, 3)]);
}

#[test]
fn a_later_format_is_refused_not_cut() {
    let (memory, disk) = mem();
    let (mut log, _) = open(&disk);
    append_synced(&mut log, &[b"one", b"two"]);
    drop(log);
    memory.corrupt(&seg(1), |b| {
        b[4] = 2;
        let crc = crc32c::crc32c(&b[..40]);
        b[40..44].copy_from_slice(&crc.to_le_bytes());
    });
    let before = memory.bytes(&seg(1));
    let result = LogWriter::open(disk.clone(), dir(), SMALL);
    assert!(matches!(result, Err(LogError::NewerFormat { segment: 1, version: 2 })));
    assert_eq!(memory.bytes(&seg(1)), before);
}

#[test]
fn only_the_oldest_sealed_segment_goes_and_numbers_go_on() {
    let (_, disk) = mem();
    let (mut log, _) = open(&disk);
    append_synced(&mut log, &[&[7; 956][..]; 9]);
    let refused = |r: io::Result<()>| r.unwrap_err().kind() == io::ErrorKind::InvalidInput;
    assert!(refused(log.remove_segment(2)));
    log.remove_segment(1).unwrap();
    log.remove_segment(2).unwrap();
    assert!(refused(log.remove_segment(3)), "not the active one");
    drop(log);
    let (log, report) = open(&disk);
    assert_eq!((report.first, report.next), (9, 10));
    assert_eq!(log.segments().count(), 1);
}

#[test]
fn many_waiters_share_one_write_and_one_sync() {
    let fault = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(fault.clone());
    let (log, _) = LogWriter::open(disk, dir(), LogOptions::default()).unwrap();
    let mut core = AppenderCore::new(log);
    let (requests, mut results): (Vec<_>, Vec<_>) =
        (0..1000).map(|_| durable(vec![1; 100], Priority::Event)).unzip();
    let before = (fault.count(Some(Call::Write)), fault.count(Some(Call::SyncData)));
    core.run_batch(Timestamp(5), requests);
    let after = (fault.count(Some(Call::Write)), fault.count(Some(Call::SyncData)));
    assert_eq!(after, (before.0 + 1, before.1 + 1));
    for (i, result) in results.iter_mut().enumerate() {
        assert_eq!(result.try_recv().unwrap().unwrap().seq(), i as u64 + 1);
    }
}

#[test]
fn records_that_nobody_waits_for_ride_on_the_next_sync() {
    let fault = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(fault.clone());
    let mut core = AppenderCore::new(open(&disk).0);
    let (request, mut result) = written(vec![1]);
    core.run_batch(Timestamp(1), vec![request]);
    assert_eq!(result.try_recv().unwrap(), Ok(1));
    assert_eq!(fault.count(Some(Call::SyncData)), 0);
    assert_eq!((core.progress().borrow().written, core.progress().borrow().durable), (1, 0));
    assert!(core.wake_after().is_some_and(|d| d.as_secs() <= 1));
    core.wake();
    assert_eq!((fault.count(Some(Call::SyncData)), core.progress().borrow().durable), (1, 1));
    assert_eq!(core.wake_after(), None);
}

#[test]
fn after_a_failed_sync_nothing_counts_until_a_new_segment_is_open() {
    let fault = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(fault.clone());
    let mut core = AppenderCore::new(open(&disk).0);
    let (request, mut first) = durable(b"kept".to_vec(), Priority::Event);
    core.run_batch(Timestamp(1), vec![request]);
    assert!(first.try_recv().unwrap().is_ok());
    let error = io::ErrorKind::Other;
    fault.fail(Fault { call: Some(Call::SyncData), nth: 1, error, sticky: false });
    let (request, mut lost) = durable(b"lost".to_vec(), Priority::Event);
    core.run_batch(Timestamp(1), vec![request]);
    assert_eq!(lost.try_recv().unwrap(), Err(AppendError::Failed));
    let progress = core.progress().borrow().clone();
    assert_eq!((progress.epoch, progress.durable, progress.written), (1, 1, 1));
    let (request, mut again) = durable(b"again".to_vec(), Priority::Event);
    core.run_batch(Timestamp(1), vec![request]);
    assert_eq!(again.try_recv().unwrap().unwrap().seq(), 2);
    assert_eq!(core.writer().active_segment().unwrap().number, 2);
    let expected = [(1, b"kept".to_vec()), (2, b"again".to_vec())];
    assert_eq!(frames(&scan_all(&disk, 2)), expected);
}

#[test]
fn while_the_device_refuses_everything_is_refused_with_growing_pauses() {
    let fault = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(fault.clone());
    let mut core = AppenderCore::new(open(&disk).0);
    fault.fail(Fault { call: None, nth: 1, error: io::ErrorKind::Other, sticky: true });
    let mut pauses = vec![];
    for _ in 0..8 {
        let (request, mut result) = durable(vec![1], Priority::Event);
        core.run_batch(Timestamp(1), vec![request]);
        assert_eq!(result.try_recv().unwrap(), Err(AppendError::Failed));
        assert_eq!(core.progress().borrow().health, LogHealth::Failed);
        pauses.push(core.wake_after().unwrap().as_secs());
        core.wake();
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    fault.heal();
    core.wake();
    let (request, mut result) = durable(vec![1], Priority::Event);
    core.run_batch(Timestamp(1), vec![request]);
    assert_eq!(result.try_recv().unwrap().unwrap().seq(), 1);
    assert_eq!(core.progress().borrow().health, LogHealth::Ok);
}

#[test]
fn a_disk_that_fills_up_refuses_events_first_and_resumes_by_itself() {
    let (memory, disk) = mem();
    let limits = Limits { reserve_bytes: Some(8000), ..NO_RESERVE };
    let mut core = AppenderCore::new(open(&disk).0).with_limits(limits);
    let attempt = |core: &mut AppenderCore, priority| {
        let (request, mut result) = durable(vec![1; 10], priority);
        core.run_batch(Timestamp(1), vec![request]);
        result.try_recv().unwrap().map(|receipt| receipt.seq())
    };
    let used = 4096;
    memory.set_capacity(Some(used + 4000));
    assert_eq!(attempt(&mut core, Priority::Event), Err(AppendError::Full));
    assert_eq!(core.progress().borrow().health, LogHealth::Full);
    assert_eq!(attempt(&mut core, Priority::Bookkeeping), Ok(1));
    memory.set_capacity(Some(used + 1000));
    assert_eq!(attempt(&mut core, Priority::Bookkeeping), Err(AppendError::Full));
    memory.set_capacity(Some(used + 8000));
    assert!(core.wake_after().is_some());
    core.wake();
    assert_eq!(core.progress().borrow().health, LogHealth::Ok, "noticed though nobody appends");
    assert_eq!(attempt(&mut core, Priority::Event), Ok(2));
}

#[test]
fn a_disk_that_is_full_without_warning_loses_nothing_and_goes_on_when_space_returns() {
    let (memory, disk) = mem();
    let mut core = AppenderCore::new(open(&disk).0).with_limits(NO_RESERVE);
    memory.set_capacity(Some(6000));
    let (mut acked, mut full) = (vec![], 0);
    for i in 0..60u8 {
        if i == 30 {
            memory.set_capacity(None);
            core.wake();
        }
        let (request, mut result) = durable(vec![i; 400], Priority::Event);
        core.run_batch(Timestamp(1), vec![request]);
        match result.try_recv().unwrap() {
            Ok(receipt) => acked.push((receipt.seq(), vec![i; 400])),
            Err(error) => {
                assert_eq!(error, AppendError::Full);
                full += 1;
            }
        }
    }
    assert!(full > 5 && acked.len() > 35, "{full} refused, {} taken", acked.len());
    assert_eq!(frames(&scan_all(&disk, acked.len() as u64)), acked);
    drop(core);
    assert_eq!(open(&disk).1.next, acked.len() as u64 + 1);
}

#[tokio::test]
async fn the_thread_acknowledges_refuses_what_is_too_much_and_closes() {
    let (_, disk) = mem();
    let clock = Arc::new(TestClock::new(Timestamp(1_790_000_000_000)));
    let line = Timeline { boot_id: 1, offset_ms: 5 };
    let limits = Limits { queue_bytes: 1 << 20, ..NO_RESERVE };
    let core = AppenderCore::new(open(&disk).0);
    let appender = Appender::spawn(core, clock, line, limits).unwrap();
    let receipt = appender.durable(1, b"one".to_vec()).await.unwrap();
    assert_eq!((receipt.seq(), receipt.is_duplicate()), (1, false));
    assert!(appender.duplicate_of(1).is_some_and(|r| r.is_duplicate() && r.seq() == 1));
    assert_eq!(appender.duplicate_of(2), None);
    // An event that is gone: found by reading, after a repair its copies got 503 for good.
    assert!(appender.duplicate_of(0).is_some_and(|r| r.is_duplicate()));
    let flood: Vec<_> =
        (0..50).map(|_| appender.submit_durable(1, vec![0; 500_000], Priority::Event)).collect();
    let mut last = 1;
    let mut busy = 0;
    for result in flood {
        match result.await.unwrap() {
            Ok(receipt) => {
                assert_eq!(receipt.seq(), last + 1, "in order");
                last = receipt.seq();
            }
            Err(error) => {
                assert_eq!(error, AppendError::Busy);
                busy += 1;
            }
        }
    }
    assert!(busy > 0);
    assert_eq!(appender.written(2, b"two".to_vec()).await, Ok(last + 1));
    assert_eq!(appender.segments().last().and_then(|s| s.last), Some(last + 1));
    assert_eq!(appender.remove_segment(99).await, Err(AppendError::Failed));
    appender.close().await;
    assert_eq!(appender.progress().borrow().durable, last + 1);
    assert_eq!(appender.durable(1, vec![]).await, Err(AppendError::Closed));
    assert_eq!(open(&disk).1.next, last + 2);
}

#[tokio::test]
async fn the_thread_syncs_what_nobody_waits_for() {
    let (_, disk) = mem();
    let clock = Arc::new(TestClock::new(Timestamp(0)));
    let line = Timeline { boot_id: 1, offset_ms: 0 };
    let appender =
        Appender::spawn(AppenderCore::new(open(&disk).0), clock, line, NO_RESERVE).unwrap();
    let mut progress = appender.progress();
    assert_eq!(appender.written(2, vec![1]).await, Ok(1));
    let synced = progress.wait_for(|p| p.durable == 1);
    tokio::time::timeout(std::time::Duration::from_secs(20), synced).await.unwrap().unwrap();
}

/// Found by the simulator: the start of one event was lost with a fault, the start of the next, decided on
/// before, moved the handler's cursor past it, and after a crash nothing knew of the first.
#[test]
fn a_record_that_follows_on_lost_ones_is_refused() {
    let fault = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(fault.clone());
    let (log, _) = open(&disk);
    let mut core = AppenderCore::new(log).with_limits(NO_RESERVE);
    let (before, mut first) = written_in(0);
    core.run_batch(Timestamp(1), vec![before]);
    assert_eq!(first.try_recv().unwrap(), Ok(2));
    let error = io::ErrorKind::Other;
    fault.fail(Fault { call: Some(Call::SyncData), nth: 1, error, sticky: false });
    core.wake();
    assert_eq!((core.progress().borrow().epoch, core.writer().written()), (1, 0));
    let ((old, mut refused), (new, mut taken)) = (written_in(0), written_in(1));
    core.run_batch(Timestamp(1), vec![old, new]);
    assert_eq!(refused.try_recv().unwrap(), Err(AppendError::Failed));
    assert_eq!(taken.try_recv().unwrap(), Ok(2));
}

/// Found by the simulator: a reopening that had removed an empty segment before it failed could never
/// succeed again, until the process was restarted.
#[test]
fn a_reopening_that_failed_half_way_succeeds_later() {
    let fault = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(fault.clone());
    let (mut log, _) = open(&disk);
    append_synced(&mut log, &[&[1; 4000]]);
    // The first record of the second segment is written and never durable.
    log.append(Timestamp(1), 1, &[2; 4000]);
    log.write().unwrap();
    let fail = |call| {
        fault.fail(Fault { call: Some(call), nth: 1, error: io::ErrorKind::Other, sticky: false });
    };
    fail(Call::SyncData);
    assert!(log.sync().is_err());
    fail(Call::SyncDir);
    assert!(log.reopen().is_err());
    log.reopen().unwrap();
    assert_eq!(append_synced(&mut log, &[&[3]])[0].0, 2);
    assert_eq!(frames(&scan_all(&disk, 2)).len(), 2);
}
