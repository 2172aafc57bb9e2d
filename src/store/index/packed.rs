//! An event has up to four keys of its own: where it lies, its duplicate key, its message, its conversation. One by
//! one they cost sled more than all else an event costs: each copies a leaf, and each batch wakes its writers. So
//! those families lie in pages of many pairs.
//!
//! What is new is written as it comes, many pairs in one row of a journal, and is in memory too, where reads see it
//! first. Once there is enough of it, it goes into the pages, and the rows of the journal go. Every batch is as
//! atomic as it would be without: a crash leaves the journal, from which the memory is filled again.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::keys::{self, JOURNAL};
use super::page::{self, Builder, Change, Cursor, PAGE_BYTES};
use super::{BATCH_OPS_MAX, Batch, Kv, KvError, Pair, is_packed};

/// About 8,000 events, 5 MB.
const FRESH_MAX: usize = 32_000;
/// Operations of the batches that write pages: half of what sled bears, for a page may become several.
const PAGES_PER_BATCH: usize = BATCH_OPS_MAX / 2;

pub struct Packed<K> {
    kv: K,
    fresh: RwLock<Fresh>,
}

#[derive(Default)]
struct Fresh {
    pairs: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// The rows of the journal that hold them.
    rows: Range<u64>,
}

fn is_within_packed(from: &[u8], to: &[u8]) -> bool {
    from.first().is_some_and(|family| is_packed(*family) && to <= &[family + 1][..])
}

impl<K: Kv> Packed<K> {
    /// # Errors
    /// The index is broken.
    pub fn over(kv: K) -> Result<Packed<K>, KvError> {
        let mut fresh = Fresh::default();
        let (mut from, to) = keys::family(JOURNAL);
        loop {
            let rows = kv.range(&from, &to, BATCH_OPS_MAX)?;
            let Some((last, _)) = rows.last() else { break };
            from = keys::successor(last.clone());
            for (key, row) in &rows {
                let number = keys::last_number(key).unwrap_or(0);
                if fresh.rows.is_empty() {
                    fresh.rows.start = number;
                }
                fresh.rows.end = number + 1;
                fresh.pairs.extend(page::changes(row)?);
            }
        }
        Ok(Packed { kv, fresh: RwLock::new(fresh) })
    }

    fn fresh(&self) -> RwLockReadGuard<'_, Fresh> {
        self.fresh.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh_mut(&self) -> RwLockWriteGuard<'_, Fresh> {
        self.fresh.write().unwrap_or_else(PoisonError::into_inner)
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
        let mut changes = fresh.pairs.iter().peekable();
        while let Some((key, _)) = changes.peek() {
            let page = self.page_of(key)?;
            let (row, was_there) = match &page {
                Some((row, _)) => (row.clone(), true),
                None => ((*key).clone(), false),
            };
            let end = self.next_page(key)?;
            let old = page.map_or(Vec::new(), |(_, bytes)| bytes);
            let end_of_family = keys::family(row.first().copied().unwrap_or_default()).1;
            let end = end.unwrap_or(end_of_family);
            let (pages, empty) = (merged(&row, &old, &end, &mut changes)?, (row, None));
            let gone = (pages.is_empty() && was_there).then_some(empty);
            for op in pages.into_iter().chain(gone) {
                batch.push(op);
                if batch.len() >= PAGES_PER_BATCH {
                    self.kv.apply(std::mem::take(&mut batch))?;
                }
            }
        }
        if batch.is_empty() { Ok(()) } else { self.kv.apply(batch) }
    }

    fn ascending(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let fresh = self.fresh();
        let mut news = fresh.pairs.range(from.to_vec()..to.to_vec()).peekable();
        let (mut found, mut at) = (Vec::new(), from.to_vec());
        while found.len() < limit {
            let page = self.page_of(&at)?;
            // Looked for after the page: pages that come of it meanwhile are there before it shrinks.
            let next = self.next_page(page.as_ref().map_or(&at, |(row, _)| row))?;
            let next = next.filter(|next| next.as_slice() < to);
            let end = next.as_deref().unwrap_or(to);
            let old = page.map_or(Ok(Vec::new()), |(_, bytes)| page::changes(&bytes))?;
            let old = old.into_iter().filter(|(key, _)| at <= *key && key.as_slice() < end);
            let news = std::iter::from_fn(|| news.next_if(|(key, _)| key.as_slice() < end));
            merge(old, news, Ordering::Less, &mut found, limit);
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(found)
    }

    fn descending(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let fresh = self.fresh();
        let family = from.get(..1).unwrap_or_default();
        let (mut found, mut to) = (Vec::new(), to.to_vec());
        while found.len() < limit && from < to.as_slice() {
            let page = self.kv.range_back(family, &to, 1)?.pop();
            let start = page.as_ref().map_or(family, |(row, _)| row).max(from).to_vec();
            let was_last = page.is_none();
            let old = page.map_or(Ok(Vec::new()), |(_, bytes)| page::changes(&bytes))?;
            let old = old.into_iter().rev().filter(|(key, _)| start <= *key && *key < to);
            let news = fresh.pairs.range(start.clone()..to.clone()).rev();
            merge(old, news, Ordering::Greater, &mut found, limit);
            if was_last {
                break;
            }
            to = start;
        }
        Ok(found)
    }
}

/// Adds the pairs of both, which come in this order, to those found, until there are enough; what is new counts.
fn merge<'a>(
    old: impl Iterator<Item = Change>,
    news: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
    order: Ordering,
    found: &mut Vec<Pair>,
    limit: usize,
) {
    let (mut old, mut news) = (old.peekable(), news.peekable());
    while found.len() < limit {
        let first = match (old.peek(), news.peek()) {
            (None, None) => return,
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
        let new = news.next();
        found.extend(new.and_then(|(key, value)| Some((key.clone(), value.clone()?))));
    }
}

/// What the page at `row` becomes with what is new up to `end`: itself, several, or nothing.
fn merged<'a>(
    row: &[u8],
    page: &[u8],
    end: &[u8],
    news: &mut Peekable<impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)> + Clone>,
) -> Result<Batch, KvError> {
    let bytes_max = bytes_max(page, end, news.clone())?;
    let (mut builder, mut old) = (Builder::default(), Cursor::of(page)?);
    loop {
        // A crash may have left in a page what has got one of its own.
        let kept = old.pair().filter(|(key, _)| *key < end);
        let new = news.peek().filter(|(key, _)| key.as_slice() < end);
        let first = match (kept, new) {
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
    if let Some((first, _)) = pages.first_mut() {
        *first = row.to_vec();
    }
    // Its own row last: cut off before, what goes elsewhere is still there too.
    Ok(pages.into_iter().rev().map(|(row, page)| (row, Some(page))).collect())
}

/// How full the pages become. What comes in order fills them. Among the keys of a full page there is room for more in
/// two halves.
fn bytes_max<'a>(
    page: &[u8],
    end: &[u8],
    mut news: Peekable<impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>>,
) -> Result<usize, KvError> {
    let first_new = news.peek().map(|(key, _)| *key);
    let (mut bytes, mut comes_in_order, mut old) = (0, true, Cursor::of(page)?);
    while let Some((key, value)) = old.pair().filter(|(key, _)| *key < end) {
        bytes += key.len() + value.map_or(0, <[u8]>::len);
        comes_in_order = first_new.is_some_and(|new| key < new.as_slice());
        old.advance()?;
    }
    for (key, value) in news.take_while(|(key, _)| key.as_slice() < end) {
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
        let fresh = self.fresh();
        if let Some(change) = fresh.pairs.get(key) {
            return Ok(change.clone());
        }
        match self.page_of(key)? {
            Some((_, page)) => page::get(&page, key),
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

    /// Events are seen a moment before the position that tells of them.
    fn apply(&self, batch: Batch) -> Result<(), KvError> {
        let (news, plain): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|(key, _)| key.first().is_some_and(|family| is_packed(*family)));
        let mut rows = Builder::default();
        for (key, value) in &news {
            rows.add(key, value.as_deref(), PAGE_BYTES)?;
        }
        let mut fresh = self.fresh_mut();
        let first = fresh.rows.end;
        let mut ops: Batch = (first..)
            .zip(rows.pages())
            .map(|(number, (_, row))| (keys::journal(number), Some(row)))
            .collect();
        fresh.rows.end += ops.len() as u64;
        fresh.pairs.extend(news);
        let full = fresh.pairs.len() >= FRESH_MAX;
        drop(fresh);
        ops.extend(plain);
        self.kv.apply(ops)?;
        if full { self.settle() } else { Ok(()) }
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
        let fresh = self.fresh();
        if fresh.pairs.is_empty() {
            return Ok(());
        }
        self.write_pages(&fresh)?;
        let rows: Vec<u64> = fresh.rows.clone().collect();
        drop(fresh);
        // The oldest first: of two changes of one key the later one must not go before the earlier.
        for rows in rows.chunks(BATCH_OPS_MAX) {
            self.kv.apply(rows.iter().map(|n| (keys::journal(*n), None)).collect())?;
        }
        let mut fresh = self.fresh_mut();
        fresh.pairs = BTreeMap::new();
        fresh.rows.start = fresh.rows.end;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
