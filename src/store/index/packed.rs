//! An event has up to four keys of its own: where it lies, its duplicate key, its message, its conversation. One by
//! one they cost sled more than all else an event costs: each copies a leaf, and each batch wakes its writers. So
//! those families lie in pages of many pairs.
//!
//! What is new is in memory, where reads see it first, and goes into the pages once there is much of it. Until then a
//! crash takes it along: the pages say up to which record they are complete, and what events after it add is brought
//! back from the log when the index is opened. What other records change there (retention's) the log alone would not
//! bring back in order: it goes into a journal too, many pairs to a row, in one batch with the rest of its record. What
//! came from events and what is in the journal are never in memory together.

mod fresh;

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::keys::{self, JOURNAL, META_PACKED, META_POSITION, Position};
use super::page::{self, Builder, Change, Cursor, PAGE_BYTES, Page};
use super::{BATCH_OPS_MAX, Batch, Kv, KvError, Missing, Pair, is_packed};
use fresh::{Fresh, News};

/// With the map that follows them, the pairs of 34,000 events at most, in about 7 MB.
const RUNS_MAX: usize = 16;
/// So much of the log is read once more after a crash, in segments.
const SEGMENTS_MAX: u32 = 3;
/// Operations of the batches that write pages: half of what sled bears, for a page may become several.
const PAGES_PER_BATCH: usize = BATCH_OPS_MAX / 2;
/// Pairs that go into pages at once.
const WINDOW_PAIRS: usize = 1_000;

pub struct Packed<K> {
    kv: K,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    fresh: Fresh,
    /// The rows of the journal that hold what is fresh.
    rows: Range<u64>,
    /// What is fresh is in the log alone.
    is_in_log: bool,
    /// Up to here records are in the index, and up to here they are in the pages.
    position: Option<Position>,
    packed: Option<Position>,
    /// It was closed without [`Kv::settle`]: what lies between the two has yet to come from the log.
    is_missing: bool,
}

impl State {
    fn is_far_ahead(&self) -> bool {
        let segment = |position: Option<Position>| position.map_or(0, |p| p.segment);
        self.fresh.runs() > RUNS_MAX
            || segment(self.position) >= segment(self.packed).saturating_add(SEGMENTS_MAX)
    }
}

fn is_within_packed(from: &[u8], to: &[u8]) -> bool {
    from.first().is_some_and(|family| is_packed(*family) && to <= &[family + 1][..])
}

fn position_under<K: Kv>(kv: &K, key: &[u8]) -> Result<Option<Position>, KvError> {
    kv.get(key)?.as_deref().map(keys::from_value).transpose()
}

/// The packed families' part of a batch, and the rest.
fn split(batch: Batch) -> (Batch, Batch) {
    batch.into_iter().partition(|(key, _)| key.first().is_some_and(|family| is_packed(*family)))
}

impl<K: Kv> Packed<K> {
    /// # Errors
    /// The index is broken.
    pub fn over(kv: K) -> Result<Packed<K>, KvError> {
        let mut state = State {
            position: position_under(&kv, META_POSITION)?,
            packed: position_under(&kv, META_PACKED)?,
            ..State::default()
        };
        let (mut from, to) = keys::family(JOURNAL);
        loop {
            let rows = kv.range(&from, &to, BATCH_OPS_MAX)?;
            let Some((last, _)) = rows.last() else { break };
            from = keys::successor(last.clone());
            for (key, row) in &rows {
                let number = keys::last_number(key).unwrap_or(0);
                if state.rows.is_empty() {
                    state.rows.start = number;
                }
                state.rows.end = number + 1;
                state.fresh.extend(page::changes(row)?)?;
            }
        }
        let applied = |position: Option<Position>| position.map(|p| p.applied);
        if applied(state.packed) > applied(state.position) {
            return Err(KvError("its pages are ahead of it".to_owned()));
        }
        // With rows in the journal, those and the pages are all there is.
        state.is_missing = applied(state.packed) < applied(state.position) && state.rows.is_empty();
        Ok(Packed { kv, state: RwLock::new(state) })
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page that holds this key, if any does.
    fn page_of(&self, key: &[u8]) -> Result<Option<Pair>, KvError> {
        let family = key.get(..1).unwrap_or_default();
        Ok(self.kv.range_back(family, &keys::successor(key.to_vec()), 1)?.pop())
    }

    /// Where the page after this key begins.
    fn next_page(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let (_, end) = keys::family(key.first().copied().unwrap_or(u8::MAX - 1));
        let next = self.kv.range(&keys::successor(key.to_vec()), &end, 1)?.pop();
        Ok(next.map(|(key, _)| key))
    }

    fn write_pages(&self, fresh: &Fresh) -> Result<(), KvError> {
        let mut batch = Batch::new();
        let mut news = fresh.within(&[], &[u8::MAX], Ordering::Less)?;
        while let Some((key, _)) = news.peek() {
            let page = self.page_of(key)?;
            let end = self.next_page(key)?;
            let (row, was_there) = match &page {
                Some((row, _)) => (row.clone(), true),
                None => (key.clone(), false),
            };
            let old = page.map_or(Vec::new(), |(_, bytes)| bytes);
            let end_of_family = keys::family(row.first().copied().unwrap_or_default()).1;
            let end = end.unwrap_or(end_of_family);
            let mut window = Vec::new();
            let goes_on = loop {
                let belongs = news.peek().is_some_and(|(key, _)| key < &end);
                if !belongs || window.len() == WINDOW_PAIRS {
                    break belongs;
                }
                window.extend(news.next()?);
            };
            let (pages, empty) = (merged(&row, &old, &end, &window)?, (row, None));
            let gone = (pages.is_empty() && was_there).then_some(empty);
            for op in pages.into_iter().chain(gone) {
                batch.push(op);
                if batch.len() >= PAGES_PER_BATCH {
                    self.kv.apply(std::mem::take(&mut batch))?;
                }
            }
            // What comes next belongs to one of these pages.
            if goes_on && !batch.is_empty() {
                self.kv.apply(std::mem::take(&mut batch))?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.kv.apply(batch) }
    }

    fn ascending(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let state = self.state();
        let mut news = state.fresh.within(from, to, Ordering::Less)?;
        let (mut found, mut at) = (Vec::new(), from.to_vec());
        while found.len() < limit {
            let page = self.page_of(&at)?;
            // Looked for after the page: pages that come of it meanwhile are there before it shrinks.
            let next = self.next_page(page.as_ref().map_or(&at, |(row, _)| row))?;
            let next = next.filter(|next| next.as_slice() < to);
            let end = next.as_deref().unwrap_or(to);
            let old = page.map_or(Ok(Vec::new()), |(_, bytes)| page::changes(&bytes))?;
            let old = old.into_iter().filter(|(key, _)| at <= *key && key.as_slice() < end);
            merge(old, &mut news, |key| key < end, Ordering::Less, &mut found, limit)?;
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(found)
    }

    fn descending(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let state = self.state();
        let mut news = state.fresh.within(from, to, Ordering::Greater)?;
        let family = from.get(..1).unwrap_or_default();
        let (mut found, mut to) = (Vec::new(), to.to_vec());
        while found.len() < limit && from < to.as_slice() {
            let page = self.kv.range_back(family, &to, 1)?.pop();
            let start = page.as_ref().map_or(family, |(row, _)| row).max(from).to_vec();
            let was_last = page.is_none();
            let old = page.map_or(Ok(Vec::new()), |(_, bytes)| page::changes(&bytes))?;
            let old = old.into_iter().rev().filter(|(key, _)| start <= *key && *key < to);
            let belongs = |key: &[u8]| key >= start.as_slice();
            merge(old, &mut news, belongs, Ordering::Greater, &mut found, limit)?;
            if was_last {
                break;
            }
            to = start;
        }
        Ok(found)
    }

    /// One batch, already seen in memory.
    fn write(&self, ops: Batch) -> Result<(), KvError> {
        let position = ops.iter().rev().find(|(key, _)| key == META_POSITION);
        let position = position.and_then(|(_, value)| value.as_deref()).map(keys::from_value);
        let position = position.transpose()?;
        if !ops.is_empty() {
            self.kv.apply(ops)?;
        }
        let Some(position) = position else { return Ok(()) };
        let mut state = self.state_mut();
        state.position = Some(position);
        let is_far_ahead = state.is_far_ahead();
        drop(state);
        if is_far_ahead { self.settle() } else { Ok(()) }
    }
}

/// Adds the pairs of both, which come in this order, to those found, until there are enough; what is new counts.
fn merge(
    old: impl Iterator<Item = Change>,
    news: &mut News<'_>,
    belongs: impl Fn(&[u8]) -> bool,
    order: Ordering,
    found: &mut Vec<Pair>,
    limit: usize,
) -> Result<(), KvError> {
    let mut old = old.peekable();
    while found.len() < limit {
        let first = match (old.peek(), news.peek().filter(|(key, _)| belongs(key))) {
            (None, None) => break,
            (Some(_), None) => order,
            (None, Some(_)) => order.reverse(),
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        if first == order {
            found.extend(old.next().and_then(|(key, value)| Some((key, value?))));
            continue;
        }
        if first == Ordering::Equal {
            old.next();
        }
        found.extend(news.next()?.and_then(|(key, value)| Some((key, value?))));
    }
    Ok(())
}

/// What the page at `row` becomes with what is new up to `end`: itself, several, or nothing.
fn merged(row: &[u8], page: &[u8], end: &[u8], news: &[Change]) -> Result<Batch, KvError> {
    let bytes_max = bytes_max(page, end, news)?;
    let (mut builder, mut old, mut news) =
        (Builder::default(), Cursor::of(page)?, news.iter().peekable());
    loop {
        // A crash may have left in a page what has got one of its own.
        let kept = old.pair().filter(|(key, _)| *key < end);
        let first = match (kept, news.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        if first == Ordering::Less {
            if let Some((key, value @ Some(_))) = kept {
                builder.add(key, value, bytes_max)?;
            }
            old.advance()?;
            continue;
        }
        if first == Ordering::Equal {
            old.advance()?;
        }
        if let Some((key, Some(value))) = news.next() {
            builder.add(key, Some(value), bytes_max)?;
        }
    }
    let mut pages = builder.pages();
    // A page keeps its row, from which on it is looked for.
    if let Some(page) = pages.first_mut() {
        page.first = row.to_vec();
    }
    // Its own row last: cut off before, what goes elsewhere is still there too.
    Ok(pages.into_iter().rev().map(|Page { first, bytes, .. }| (first, Some(bytes))).collect())
}

/// How full the pages become. What comes in order fills them. Among the keys of a full page there is room for more in
/// two halves.
fn bytes_max(page: &[u8], end: &[u8], news: &[Change]) -> Result<usize, KvError> {
    let (mut bytes, mut comes_in_order, mut old) = (0, true, Cursor::of(page)?);
    while let Some((key, value)) = old.pair().filter(|(key, _)| *key < end) {
        bytes += key.len() + value.map_or(0, <[u8]>::len);
        comes_in_order = news.first().is_some_and(|(new, _)| key < new.as_slice());
        old.advance()?;
    }
    for (key, value) in news {
        bytes += value.as_ref().map_or(0, |value| key.len() + value.len());
    }
    Ok(if comes_in_order {
        PAGE_BYTES
    } else {
        bytes / bytes.div_ceil(PAGE_BYTES).max(1) + PAGE_BYTES / 8
    })
}

impl<K: Kv> Kv for Packed<K> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        if !key.first().is_some_and(|family| is_packed(*family)) {
            return self.kv.get(key);
        }
        let state = self.state();
        if let Some(change) = state.fresh.get(key)? {
            return Ok(change);
        }
        match self.page_of(key)? {
            Some((_, page)) => Ok(page::find(&page, key)?.flatten().map(<[u8]>::to_vec)),
            None => Ok(None),
        }
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        if from < to && is_within_packed(from, to) {
            self.ascending(from, to, limit)
        } else {
            self.kv.range(from, to, limit)
        }
    }

    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        if from < to && is_within_packed(from, to) {
            self.descending(from, to, limit)
        } else {
            self.kv.range_back(from, to, limit)
        }
    }

    /// Changes are seen a moment before the position that tells of them.
    fn apply(&self, batch: Batch) -> Result<(), KvError> {
        let (news, plain) = split(batch);
        if news.is_empty() {
            return self.write(plain);
        }
        let is_in_log = self.state().is_in_log;
        if is_in_log {
            self.settle()?;
        }
        let mut rows = Builder::default();
        for (key, value) in &news {
            rows.add(key, value.as_deref(), PAGE_BYTES)?;
        }
        let mut state = self.state_mut();
        let first = state.rows.end;
        let mut ops: Batch = (first..)
            .zip(rows.pages())
            .map(|(number, row)| (keys::journal(number), Some(row.bytes)))
            .collect();
        state.rows.end += ops.len() as u64;
        state.fresh.extend(news)?;
        drop(state);
        ops.extend(plain);
        self.write(ops)
    }

    fn apply_events(&self, batch: Batch) -> Result<(), KvError> {
        let (news, plain) = split(batch);
        if !news.is_empty() {
            let has_rows = !self.state().rows.is_empty();
            if has_rows {
                self.settle()?;
            }
            let mut state = self.state_mut();
            state.fresh.extend(news)?;
            state.is_in_log = true;
        }
        self.write(plain)
    }

    fn missing(&self) -> Option<Missing> {
        let state = self.state();
        let upto = state.position.filter(|_| state.is_missing)?;
        Some(Missing { after: state.packed, upto })
    }

    fn is_complete_again(&self) {
        self.state_mut().is_missing = false;
    }

    fn flush(&self) -> Result<(), KvError> {
        self.kv.flush()
    }

    fn sync(&self) -> Result<(), KvError> {
        self.kv.sync()
    }

    fn bytes(&self) -> u64 {
        self.kv.bytes()
    }

    fn warm(&self) -> Result<bool, KvError> {
        self.kv.warm()
    }

    /// Only who applies may call it. Cut off anywhere, it is done again.
    fn settle(&self) -> Result<(), KvError> {
        let state = self.state();
        if state.is_missing {
            return Err(KvError("it lacks what only the log has".to_owned()));
        }
        if !state.fresh.is_empty() {
            self.write_pages(&state.fresh)?;
        }
        let (position, rows) = (state.position, state.rows.clone());
        let has_moved = position != state.packed;
        drop(state);
        if let Some(position) = position.filter(|_| has_moved) {
            self.kv.apply(vec![(META_PACKED.to_vec(), Some(keys::to_value(&position)?))])?;
        }
        // The oldest first: of two changes of one key the later one must not go before the earlier.
        let rows: Vec<u64> = rows.collect();
        for rows in rows.chunks(BATCH_OPS_MAX) {
            self.kv.apply(rows.iter().map(|n| (keys::journal(*n), None)).collect())?;
        }
        let mut state = self.state_mut();
        state.fresh = Fresh::default();
        state.rows.start = state.rows.end;
        state.is_in_log = false;
        state.packed = position;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
