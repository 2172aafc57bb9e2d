//! A device that can't read some of its sectors, or nothing at all.

use super::*;

/// Several segments on a disk that can be spoiled: the faults, the disk, and where each record lies.
fn several(
    segment_bytes: u32,
    payload_bytes: usize,
    count: usize,
) -> (FaultDisk, Arc<dyn Disk>, Vec<Place>) {
    let faults = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(faults.clone());
    let (mut log, _) = LogWriter::open(disk.clone(), dir(), LogOptions { segment_bytes }).unwrap();
    let placed = append_synced(&mut log, &vec![&vec![7; payload_bytes][..]; count]);
    assert!(placed.last().unwrap().1.segment > 2);
    (faults, disk, placed.into_iter().map(|(_, place)| place).collect())
}

fn scan(disk: &Arc<dyn Disk>, upto: Seq) -> Result<Vec<ScanItem>, LogError> {
    let mut scan = LogReader::new(disk.clone(), dir()).scan((1, 0), upto).stepping_over(true);
    std::iter::from_fn(|| scan.next().transpose()).collect()
}

fn seqs(items: &[ScanItem]) -> Vec<Seq> {
    frames(items).into_iter().map(|(seq, _)| seq).collect()
}

/// The numbers of those not in segment `gone`, or not in its bytes.
fn outside(places: &[Place], gone: u32, bytes: std::ops::Range<u64>) -> Vec<Seq> {
    let apart = |p: &Place| {
        let start = u64::from(p.offset);
        p.segment != gone || start >= bytes.end || start + u64::from(p.len) <= bytes.start
    };
    (1..).zip(places).filter(|(_, p)| apart(p)).map(|(seq, _)| seq).collect()
}

fn file_bytes(disk: &Arc<dyn Disk>, number: u32) -> u64 {
    disk.open(&seg(number), Open::Read).unwrap().len().unwrap()
}

/// Found by reading the code: one whose first page can't be read kept the whole log shut.
#[test]
fn a_segment_whose_first_page_cannot_be_read_costs_what_lies_there() {
    for number in [1, 2] {
        let (faults, disk, places) = several(16_384, 300, 120);
        faults.spoil(&seg(number), 0..4096);
        let left = outside(&places, number, 0..4096);
        assert_eq!(seqs(&scan(&disk, 120).unwrap()), left);
        let (mut log, report) = open(&disk);
        assert_eq!((report.next, report.damage.is_empty()), (121, false), "{report:?}");
        append_synced(&mut log, &[b"more"]);
        let items = scan(&disk, 121).unwrap();
        assert_eq!(seqs(&items), [&left[..], &[121]].concat());
        let lost: u64 =
            damage(&items).iter().filter(|d| d.first <= d.last).map(|d| d.last - d.first + 1).sum();
        assert_eq!(lost as usize, 120 - left.len(), "{items:?}");
    }
}

/// Found by reading the code: it was taken for a device that is gone, for ever.
#[test]
fn stretches_larger_than_what_is_read_at_once_and_ends_of_segments_cost_what_lies_there() {
    let (_, disk, _) = several(1 << 20, 9_000, 400);
    let end = file_bytes(&disk, 2);
    for bytes in [0..300_000, 300_000..900_000, end - 4096..end, 0..end] {
        let (faults, disk, places) = several(1 << 20, 9_000, 400);
        faults.spoil(&seg(2), bytes.clone());
        // Whole pages can't be read.
        let pages = bytes.start / 4096 * 4096..bytes.end.div_ceil(4096) * 4096;
        let left = outside(&places, 2, pages);
        let items = scan(&disk, 400).unwrap();
        assert_eq!(seqs(&items), left, "{bytes:?}");
        let damage = damage(&items);
        assert!(damage.iter().any(|d| d.segment == 2 && d.bytes > 0), "{bytes:?}: {damage:?}");
        assert_eq!(open(&disk).1.next, 401, "{bytes:?}");
    }
}

#[test]
fn what_lies_behind_the_last_readable_record_is_told() {
    let (faults, disk, places) = several(16_384, 300, 120);
    let upto = Seq::MAX - 1;
    let is_unread = |disk: &Arc<dyn Disk>| {
        let mut scan = LogReader::new(disk.clone(), dir()).scan((1, 0), upto).stepping_over(true);
        while scan.next().unwrap().is_some() {}
        scan.is_unread_behind()
    };
    assert!(!is_unread(&disk));
    faults.spoil(&seg(2), 4096..8192);
    assert!(!is_unread(&disk), "records follow");
    let last = places.last().unwrap();
    let behind = u64::from(last.offset + last.len);
    faults.spoil(&seg(last.segment), behind..behind + 1);
    assert!(is_unread(&disk));
    // Where it ends can't be told from it: nothing is cut, and a person has to know.
    let refused = LogWriter::open(disk.clone(), dir(), SMALL);
    assert!(matches!(refused, Err(LogError::Io(_))));
}

#[test]
fn a_device_that_reads_nothing_has_no_damage() {
    let (faults, disk, _) = several(16_384, 300, 120);
    let error = io::ErrorKind::Other;
    faults.fail(Fault { call: Some(Call::Read), nth: 1, error, sticky: true });
    assert!(matches!(scan(&disk, 120), Err(LogError::Io(_))));
    assert!(LogWriter::open(disk.clone(), dir(), SMALL).is_err());
    faults.heal();
    assert_eq!(scan(&disk, 120).unwrap().len(), 120);
}
