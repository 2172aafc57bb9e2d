use std::collections::BTreeMap;
use std::sync::Mutex;

use super::super::memory::MemoryKv;
use super::*;

fn key(family: u8, n: u64) -> Vec<u8> {
    let mut key = vec![family];
    key.extend_from_slice(&n.to_be_bytes());
    key
}

fn all(kv: &dyn Kv) -> Vec<Pair> {
    let families = (0..u8::MAX).filter(|family| ![JOURNAL, keys::META].contains(family));
    families.flat_map(|family| kv.range(&[family], &[family + 1], usize::MAX).unwrap()).collect()
}

/// Below which the world ends after some batches.
struct Fragile {
    kv: MemoryKv,
    batches_left: Mutex<usize>,
}

impl Kv for Fragile {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.kv.get(key)
    }
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        self.kv.range(from, to, limit)
    }
    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        self.kv.range_back(from, to, limit)
    }
    fn apply(&self, batch: Batch) -> Result<(), KvError> {
        assert!(batch.len() <= BATCH_OPS_MAX, "{}", batch.len());
        let mut left = self.batches_left.lock().unwrap();
        *left = left.checked_sub(1).ok_or_else(|| KvError("the end".to_owned()))?;
        self.kv.apply(batch)
    }
    fn flush(&self) -> Result<(), KvError> {
        Ok(())
    }
    fn sync(&self) -> Result<(), KvError> {
        Ok(())
    }
    fn bytes(&self) -> u64 {
        0
    }
}

fn position(applied: u64) -> (Vec<u8>, Option<Vec<u8>>) {
    let position = Position { format: keys::FORMAT, applied, segment: 1, offset: 0, last: None };
    (META_POSITION.to_vec(), Some(keys::to_value(&position).unwrap()))
}

/// What the log would bring back.
fn refill(kv: &dyn Kv, log: &[(u64, Batch)]) -> bool {
    let Some(Missing { after, upto }) = kv.missing() else { return false };
    let after = after.map_or(0, |position| position.applied);
    for (_, batch) in log.iter().filter(|(at, _)| (after + 1..=upto.applied).contains(at)) {
        kv.apply_events(split(batch.clone()).0).unwrap();
    }
    kv.is_complete_again();
    true
}

/// Against a plain map: changes of all kinds, cut off anywhere and opened again, read in all ways.
#[test]
fn it_holds_what_a_plain_map_holds_wherever_it_is_cut_off() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut refills = 0;
    for _ in 0..60 {
        let below = MemoryKv::new();
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let numbers = [20, 400, 4_000][random.usize(0..3)];
        let (mut next, mut applied, mut log) = (0, 0, Vec::new());
        for _ in 0..random.usize(1..8) {
            let batches_left = Mutex::new(random.usize(0..80));
            let kv = Packed::over(Fragile { kv: below.clone(), batches_left }).unwrap();
            refills += usize::from(refill(&kv, &log));
            assert_eq!(all(&kv), model.clone().into_iter().collect::<Vec<_>>());
            loop {
                let mut changed = model.clone();
                let mut batch = BTreeMap::new();
                for _ in 0..random.usize(1..60) {
                    let family = [keys::EVENTS, keys::IDS, keys::DUE][random.usize(0..3)];
                    let n = if family == keys::EVENTS && random.u8(..) < 200 {
                        next += 1;
                        next
                    } else {
                        random.u64(0..numbers)
                    };
                    let value =
                        (random.u8(..) < 200).then(|| vec![random.u8(..); random.usize(0..200)]);
                    batch.insert(key(family, n), value);
                }
                for (key, value) in &batch {
                    match value {
                        Some(value) => changed.insert(key.clone(), value.clone()),
                        None => changed.remove(key),
                    };
                }
                let mut batch: Batch = batch.into_iter().collect();
                batch.push(position(applied + 1));
                let of_events = random.u8(..) < 150;
                if of_events {
                    log.push((applied + 1, batch.clone()));
                }
                if if of_events { kv.apply_events(batch) } else { kv.apply(batch) }.is_err() {
                    let is_there = position_under(&below, META_POSITION).unwrap();
                    // Written, and then cut off while the pages were.
                    if is_there.is_some_and(|position| position.applied == applied + 1) {
                        (applied, model) = (applied + 1, changed);
                    }
                    log.retain(|(at, _)| *at <= applied);
                    break;
                }
                (applied, model) = (applied + 1, changed);
                if random.u8(..) < 60 && kv.settle().is_err() {
                    assert_eq!(all(&kv), model.clone().into_iter().collect::<Vec<_>>());
                    break;
                }
                for _ in 0..4 {
                    reads_agree(&kv, &model, &mut random, numbers);
                }
            }
        }
    }
    assert!(refills > 5, "{refills} refills");
}

fn reads_agree(
    kv: &dyn Kv,
    model: &BTreeMap<Vec<u8>, Vec<u8>>,
    random: &mut fastrand::Rng,
    numbers: u64,
) {
    let family = [keys::EVENTS, keys::IDS, keys::DUE][random.usize(0..3)];
    let mut bound = || match random.u8(0..4) {
        0 => vec![family],
        1 => vec![family + 1],
        _ => key(family, random.u64(0..numbers)),
    };
    let (from, to) = (bound(), bound());
    assert_eq!(kv.get(&from).unwrap(), model.get(&from).cloned());
    let limit = [1, 7, usize::MAX][random.usize(0..3)];
    let mut wanted: Vec<Pair> = model
        .iter()
        .filter(|(key, _)| from <= **key && **key < to)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let cut = |pairs: &[Pair]| pairs[..limit.min(pairs.len())].to_vec();
    assert_eq!(kv.range(&from, &to, limit).unwrap(), cut(&wanted));
    wanted.reverse();
    assert_eq!(kv.range_back(&from, &to, limit).unwrap(), cut(&wanted));
}

#[test]
fn events_in_order_fill_their_pages_and_random_keys_do_not_leave_them_empty() {
    let below = MemoryKv::new();
    let kv = Packed::over(below.clone()).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for n in 0..20_000 {
        let event = (key(keys::EVENTS, n), Some(vec![0; 50]));
        let id = (key(keys::IDS, random.u64(..)), Some(vec![0; 12]));
        kv.apply(vec![id, event]).unwrap();
        if n % 2_000 == 0 {
            kv.settle().unwrap();
        }
    }
    kv.settle().unwrap();
    let pages = |family: u8| {
        let pages: Vec<usize> = below
            .dump()
            .iter()
            .filter(|(k, _)| k[0] == family)
            .map(|(_, page)| page.len())
            .collect();
        assert!(pages.iter().all(|len| *len <= PAGE_BYTES + PAGE_BYTES / 4));
        pages.iter().sum::<usize>() / pages.len()
    };
    assert!(pages(keys::EVENTS) > PAGE_BYTES / 10 * 9, "{}", pages(keys::EVENTS));
    assert!(pages(keys::IDS) > PAGE_BYTES / 2, "{}", pages(keys::IDS));
    assert_eq!(below.dump().iter().filter(|(k, _)| k[0] == JOURNAL).count(), 0);
}

/// Found by reading: a crash may leave a page that holds nothing any more but what has got a page of its own. Where it
/// stayed, that came back once the other page went.
#[test]
fn a_page_of_which_all_has_moved_away_goes_and_nothing_comes_back_from_it() {
    let below = MemoryKv::new();
    let [first, second, moved] = [1, 2, 7].map(|n| key(keys::EVENTS, n));
    let mut builder = Builder::default();
    builder.add(&moved, Some(b"old"), PAGE_BYTES).unwrap();
    let page = builder.pages().remove(0).bytes;
    below.apply(vec![(first, Some(page.clone())), (moved.clone(), Some(page))]).unwrap();
    let kv = Packed::over(below).unwrap();
    for gone in [second, moved.clone()] {
        kv.apply(vec![(gone, None)]).unwrap();
        kv.settle().unwrap();
    }
    assert_eq!(kv.get(&moved).unwrap(), None);
    assert!(all(&kv).is_empty());
}

/// In runs and out of them, in the order of all of them together, whichever holds the newest change.
#[test]
fn what_is_fresh_is_what_a_map_would_hold() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut fresh, mut model) = (Fresh::default(), BTreeMap::new());
    for _ in 0..60 {
        let changes: Vec<Change> = (0..1_000)
            .map(|_| {
                let value = (random.u8(..) < 200).then(|| vec![random.u8(..); random.usize(0..50)]);
                (key(keys::IDS, random.u64(0..20_000)), value)
            })
            .collect();
        model.extend(changes.clone());
        fresh.extend(changes).unwrap();
        let mut bound = || key(keys::IDS, random.u64(0..20_001));
        let (from, to) = (bound(), bound());
        assert_eq!(fresh.get(&from).unwrap(), model.get(&from).cloned());
        let all = |order| {
            let mut news = fresh.within(&from, &to, order).unwrap();
            std::iter::from_fn(move || news.next().unwrap()).collect::<Vec<_>>()
        };
        let within = |(key, _): &(&Vec<u8>, &Option<Vec<u8>>)| from <= **key && **key < to;
        let mut wanted: Vec<Change> =
            model.iter().filter(within).map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(all(Ordering::Less), wanted);
        wanted.reverse();
        assert_eq!(all(Ordering::Greater), wanted);
    }
    assert!(fresh.runs() > 3);
}

/// What only the log has must not be taken for complete.
#[test]
fn an_index_that_lacks_something_is_not_settled() {
    let below = MemoryKv::new();
    let event = (key(keys::EVENTS, 7), Some(vec![1]));
    let kv = Packed::over(below.clone()).unwrap();
    kv.apply_events(vec![event.clone(), position(7)]).unwrap();
    drop(kv);
    let kv = Packed::over(below.clone()).unwrap();
    assert!(kv.settle().is_err());
    assert!(refill(&kv, &[(7, vec![event.clone()])]));
    kv.settle().unwrap();
    let kv = Packed::over(below).unwrap();
    assert_eq!(kv.missing(), None);
    assert_eq!(kv.get(&event.0).unwrap(), event.1);
}
