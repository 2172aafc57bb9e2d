//! What has no place in the pages yet, in memory. The newest pairs are a map; whatever it grows out of becomes a run of
//! small pages, which takes a quarter of the memory.

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;
use std::vec;

use super::super::KvError;
use super::super::page::{self, Builder, Change, Cursor, Page};

type Bounds = (Vec<u8>, Vec<u8>);

/// The pairs of about 2,000 events.
const RUN_PAIRS: usize = 8_000;
/// Of a page in memory: it is read from its beginning for each look-up.
const RUN_PAGE_BYTES: usize = 1_000;

#[derive(Default)]
pub struct Fresh {
    newest: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Oldest first.
    runs: Vec<Vec<Page>>,
}

impl Fresh {
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty() && self.runs.is_empty()
    }

    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// # Errors
    /// A key is longer than any can be.
    pub fn extend(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), KvError> {
        self.newest.extend(changes);
        if self.newest.len() >= RUN_PAIRS {
            let mut run = Builder::default();
            for (key, value) in std::mem::take(&mut self.newest) {
                run.add(&key, value.as_deref(), RUN_PAGE_BYTES)?;
            }
            self.runs.push(run.pages());
        }
        Ok(())
    }

    /// What became of a key, if it is in here.
    ///
    /// # Errors
    /// As [`Cursor::of`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Option<Vec<u8>>>, KvError> {
        if let Some(value) = self.newest.get(key) {
            return Ok(Some(value.clone()));
        }
        for run in self.runs.iter().rev() {
            let at = run.partition_point(|page| page.last.as_slice() < key);
            if let Some(page) = run.get(at).filter(|page| page.first.as_slice() <= key)
                && let Some(value) = page::find(&page.bytes, key)?
            {
                return Ok(Some(value.map(<[u8]>::to_vec)));
            }
        }
        Ok(None)
    }

    /// In this order, from both ends of `from..to`: `Less` ascends.
    ///
    /// # Errors
    /// As [`Cursor::of`].
    pub fn within(&self, from: &[u8], to: &[u8], order: Ordering) -> Result<News<'_>, KvError> {
        let bounds = (from.to_vec(), to.to_vec());
        let mut sources = Vec::with_capacity(1 + self.runs.len());
        if from < to {
            let newest = self.newest.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
            sources.push(Source { next: None, rest: Rest::Map(newest) });
        }
        for run in self.runs.iter().rev() {
            let first = run.partition_point(|page| page.last.as_slice() < from);
            let end = run.partition_point(|page| page.first.as_slice() < to).max(first);
            let pages = run.get(first..end).unwrap_or_default();
            if !pages.is_empty() {
                let rest = Rest::Run { pages, loaded: Vec::new().into_iter() };
                sources.push(Source { next: None, rest });
            }
        }
        for source in &mut sources {
            source.advance(&bounds, order)?;
        }
        let mut news = News { sources, bounds, order, first: None };
        news.look_for_first();
        Ok(news)
    }
}

/// Goes through what is fresh; of several changes of one key there is the newest.
pub struct News<'a> {
    /// Newest first.
    sources: Vec<Source<'a>>,
    bounds: Bounds,
    order: Ordering,
    /// Which source has what comes next.
    first: Option<usize>,
}

struct Source<'a> {
    next: Option<Change>,
    rest: Rest<'a>,
}

enum Rest<'a> {
    Map(btree_map::Range<'a, Vec<u8>, Option<Vec<u8>>>),
    Run { pages: &'a [Page], loaded: vec::IntoIter<Change> },
}

impl Source<'_> {
    fn advance(&mut self, bounds: &Bounds, order: Ordering) -> Result<(), KvError> {
        let ascends = order == Ordering::Less;
        self.next = match &mut self.rest {
            Rest::Map(range) => {
                let next = if ascends { range.next() } else { range.next_back() };
                next.map(|(key, value)| (key.clone(), value.clone()))
            }
            Rest::Run { pages, loaded } => loop {
                let next = if ascends { loaded.next() } else { loaded.next_back() };
                if next.is_some() {
                    break next;
                }
                let page = if ascends { pages.split_first() } else { pages.split_last() };
                let Some((page, others)) = page else { break None };
                *pages = others;
                *loaded = pairs_within(page, bounds)?.into_iter();
            },
        };
        Ok(())
    }
}

fn pairs_within(page: &Page, (from, to): &Bounds) -> Result<Vec<Change>, KvError> {
    let (mut found, mut cursor) = (Vec::new(), Cursor::of(&page.bytes)?);
    while let Some((key, value)) = cursor.pair().filter(|(key, _)| *key < to.as_slice()) {
        if key >= from.as_slice() {
            found.push((key.to_vec(), value.map(<[u8]>::to_vec)));
        }
        cursor.advance()?;
    }
    Ok(found)
}

impl News<'_> {
    fn look_for_first(&mut self) {
        let mut first: Option<(usize, &[u8])> = None;
        for (at, source) in self.sources.iter().enumerate() {
            if let Some((key, _)) = &source.next
                && first.is_none_or(|(_, before)| key.as_slice().cmp(before) == self.order)
            {
                first = Some((at, key));
            }
        }
        self.first = first.map(|(at, _)| at);
    }

    pub fn peek(&self) -> Option<&Change> {
        self.first.and_then(|at| self.sources.get(at)?.next.as_ref())
    }

    /// # Errors
    /// As [`Cursor::of`].
    pub fn next(&mut self) -> Result<Option<Change>, KvError> {
        let source = self.first.and_then(|at| self.sources.get_mut(at));
        let Some(change) = source.and_then(|source| source.next.take()) else { return Ok(None) };
        for (at, source) in self.sources.iter_mut().enumerate() {
            let is_older = source.next.as_ref().is_some_and(|(key, _)| *key == change.0);
            if is_older || self.first == Some(at) {
                source.advance(&self.bounds, self.order)?;
            }
        }
        self.look_for_first();
        Ok(Some(change))
    }
}
