//! Many pairs as one value: sorted, each key without what it shares with the one before.

use bincode::{BorrowDecode, Encode};

use super::KvError;

/// sled copies, rewrites and keeps in memory whole leaves of up to 16 values: larger pages cost memory, smaller ones
/// time. Measured with a million events: 3,500 bytes 15 MiB more, 1,200 bytes 30 % slower.
pub const PAGE_BYTES: usize = 2_000;
const BYTES_MAX: usize = 1024 * 1024;

/// A key and its value; `None`: deleted.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

#[derive(Encode, BorrowDecode)]
struct Entry<'a> {
    shared: u16,
    rest: &'a [u8],
    value: Option<&'a [u8]>,
}

fn layout() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<BYTES_MAX>()
}

/// With its first and its last key.
pub struct Page {
    pub first: Vec<u8>,
    pub last: Vec<u8>,
    pub bytes: Vec<u8>,
}

/// Puts pages together from pairs in order.
#[derive(Default)]
pub struct Builder {
    pages: Vec<Page>,
    bytes: Vec<u8>,
    first: Vec<u8>,
    last: Vec<u8>,
}

impl Builder {
    /// A page ends where the next pair would make it larger than `bytes_max`.
    ///
    /// # Errors
    /// A key is longer than any can be.
    pub fn add(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        bytes_max: usize,
    ) -> Result<(), KvError> {
        let len = key.len() + value.map_or(0, <[u8]>::len);
        if !self.bytes.is_empty() && self.bytes.len() + len > bytes_max {
            self.end_page();
        }
        if self.bytes.is_empty() {
            self.first = key.to_vec();
            self.last.clear();
        }
        let shared = self.last.iter().zip(key).take_while(|(a, b)| a == b).count();
        let entry = Entry {
            shared: u16::try_from(shared).map_err(|e| KvError(format!("a key: {e}")))?,
            rest: key.get(shared..).unwrap_or_default(),
            value,
        };
        bincode::encode_into_std_write(entry, &mut self.bytes, layout())
            .map_err(|e| KvError(format!("a page: {e}")))?;
        self.last.clear();
        self.last.extend_from_slice(key);
        Ok(())
    }

    fn end_page(&mut self) {
        self.pages.push(Page {
            first: std::mem::take(&mut self.first),
            last: self.last.clone(),
            bytes: self.bytes.as_slice().into(),
        });
        self.bytes.clear();
    }

    #[must_use]
    pub fn pages(mut self) -> Vec<Page> {
        if !self.bytes.is_empty() {
            self.end_page();
        }
        self.pages
    }
}

/// Goes through a page with one pair at a time.
pub struct Cursor<'a> {
    key: Vec<u8>,
    value: Option<&'a [u8]>,
    rest: &'a [u8],
    is_at_end: bool,
}

impl<'a> Cursor<'a> {
    /// At its first pair.
    ///
    /// # Errors
    /// The bytes are no page: the index is damaged.
    pub fn of(page: &'a [u8]) -> Result<Cursor<'a>, KvError> {
        let mut cursor =
            Cursor { key: Vec::with_capacity(32), value: None, rest: page, is_at_end: false };
        cursor.advance()?;
        Ok(cursor)
    }

    #[must_use]
    pub fn pair(&self) -> Option<(&[u8], Option<&'a [u8]>)> {
        (!self.is_at_end).then_some((&self.key, self.value))
    }

    /// # Errors
    /// As [`Cursor::of`].
    pub fn advance(&mut self) -> Result<(), KvError> {
        if self.rest.is_empty() {
            self.is_at_end = true;
            return Ok(());
        }
        let damaged = || KvError("a page cannot be read".to_owned());
        let (entry, used) = bincode::borrow_decode_from_slice::<Entry<'_>, _>(self.rest, layout())
            .map_err(|_| damaged())?;
        if usize::from(entry.shared) > self.key.len() {
            return Err(damaged());
        }
        self.key.truncate(entry.shared.into());
        self.key.extend_from_slice(entry.rest);
        self.value = entry.value;
        self.rest = self.rest.get(used..).ok_or_else(damaged)?;
        Ok(())
    }
}

/// # Errors
/// As [`Cursor::of`].
pub fn changes(page: &[u8]) -> Result<Vec<Change>, KvError> {
    let (mut found, mut cursor) = (Vec::new(), Cursor::of(page)?);
    while let Some((key, value)) = cursor.pair() {
        found.push((key.to_vec(), value.map(<[u8]>::to_vec)));
        cursor.advance()?;
    }
    Ok(found)
}

/// What became of a key, if it is in the page.
///
/// # Errors
/// As [`Cursor::of`].
pub fn find<'a>(page: &'a [u8], wanted: &[u8]) -> Result<Option<Option<&'a [u8]>>, KvError> {
    let mut cursor = Cursor::of(page)?;
    while let Some((key, value)) = cursor.pair().filter(|(key, _)| *key <= wanted) {
        if key == wanted {
            return Ok(Some(value));
        }
        cursor.advance()?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(n: u32) -> Vec<Change> {
        (0..n).map(|n| (n.to_be_bytes().to_vec(), Some(vec![7; 20]))).collect()
    }

    fn pages(pairs: &[Change], bytes_max: usize) -> Vec<Page> {
        let mut builder = Builder::default();
        for (key, value) in pairs {
            builder.add(key, value.as_deref(), bytes_max).unwrap();
        }
        builder.pages()
    }

    #[test]
    fn pages_hold_the_pairs_in_order_and_within_their_size() {
        let mut pairs = pairs(1_000);
        pairs[3].1 = None;
        let pages = pages(&pairs, 500);
        assert!(pages.len() > 40);
        let mut read = Vec::new();
        for Page { first, last, bytes } in &pages {
            assert!(bytes.len() <= 500);
            let held = changes(bytes).unwrap();
            assert_eq!((&held[0].0, &held[held.len() - 1].0), (first, last));
            assert_eq!(find(bytes, first).unwrap(), Some(held[0].1.as_deref()));
            read.extend(held);
        }
        assert_eq!(read, pairs);
        assert_eq!(find(&pages[0].bytes, b"absent").unwrap(), None);
    }

    #[test]
    fn a_pair_larger_than_a_page_gets_one_of_its_own() {
        let large = vec![(vec![1], Some(vec![0; 900])), (vec![2], Some(vec![0; 900]))];
        assert_eq!(pages(&large, 500).len(), 2);
    }

    #[test]
    fn garbage_is_an_error_and_no_panic() {
        let page = pages(&pairs(20), 4_000).remove(0).bytes;
        for cut in 1..page.len() {
            let _ = changes(&page[..cut]);
            let mut flipped = page.clone();
            flipped[cut] ^= 0x81;
            let _ = changes(&flipped);
        }
        assert!(changes(&page[..page.len() - 1]).is_err());
    }
}
