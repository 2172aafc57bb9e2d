//! The bytes of HTTP/1 requests, before hyper: whatever two readers could take for different requests is refused.
//!
//! hyper, as RFC 9112 lets it, reads a bare LF as the end of a line, prefers `Transfer-Encoding` where both lengths are
//! given, and asks for no `Host`. Where a proxy before us decides otherwise, one request becomes two. Here such a head
//! is never complete: in place of its last byte hyper gets bytes that no request may hold, and answers 400 and closes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A line that hyper refuses wherever in a head it comes; the empty line makes it look.
const REFUSED: &[u8] = b"\0\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Head,
    Body {
        left_bytes: u64,
    },
    /// After a chunked body, whose end only hyper sees, nothing else comes: its answer closes.
    Chunked,
    Refused,
}

/// Where in the requests of a connection its bytes are.
struct Framing {
    next: Next,
    head: Vec<u8>,
    head_max_bytes: usize,
}

impl Framing {
    /// # Errors
    /// How many of `bytes` come before what is refused.
    fn pass(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.next {
                Next::Head => match memchr::memchr(b'\n', rest) {
                    Some(end) => {
                        self.head.extend_from_slice(&rest[..=end]);
                        if !self.end_of_line() {
                            self.next = Next::Refused;
                            return Err(at + end);
                        }
                        at += end + 1;
                    }
                    None => {
                        self.head.extend_from_slice(rest);
                        at = bytes.len();
                    }
                },
                Next::Body { left_bytes } => {
                    let taken = left_bytes.min(rest.len() as u64);
                    at += usize::try_from(taken).unwrap_or(rest.len());
                    self.next = match left_bytes - taken {
                        0 => Next::Head,
                        left_bytes => Next::Body { left_bytes },
                    };
                }
                Next::Chunked => return Ok(()),
                Next::Refused => return Err(at),
            }
            // hyper has refused a head that is as long as this, its own buffer being smaller.
            if self.head.len() > self.head_max_bytes {
                self.next = Next::Refused;
                return Err(at);
            }
        }
        Ok(())
    }

    /// A line of the head has ended. Is all well so far?
    fn end_of_line(&mut self) -> bool {
        if !self.head.ends_with(b"\r\n") {
            return false;
        }
        if self.head == b"\r\n" {
            // Some clients end a body with an empty line (RFC 9112 §2.2).
            self.head.clear();
            return true;
        }
        if !self.head.ends_with(b"\r\n\r\n") {
            return true;
        }
        let Some(next) = after(&self.head) else { return false };
        self.next = next;
        self.head.clear();
        true
    }
}

/// What a whole head announces; `None` where it could be read in two ways.
fn after(head: &[u8]) -> Option<Next> {
    let text = &head[..head.len() - 4];
    let mut lines =
        text.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request = lines.next()?;
    let (mut hosts, mut length, mut chunked) = (0, None, false);
    for line in std::iter::once(request).chain(lines.clone()) {
        if line.contains(&b'\r') || line.contains(&0) {
            return None;
        }
    }
    for line in lines {
        let colon = line.iter().position(|&b| b == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()?;
            if length.replace(number).is_some() {
                return None;
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // What is coded otherwise is not for us, and two readers may differ about it.
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return None;
            }
            chunked = true;
        }
    }
    // RFC 9112 §3.2: exactly one, but for clients that know only HTTP/1.0.
    let old = request.ends_with(b" HTTP/1.0");
    if hosts > 1 || (hosts == 0 && !old) {
        return None;
    }
    match (chunked, length) {
        (true, Some(_)) => None,
        (true, None) => Some(Next::Chunked),
        (false, None | Some(0)) => Some(Next::Head),
        (false, Some(left_bytes)) => Some(Next::Body { left_bytes }),
    }
}

/// A connection of which hyper sees only what is framed beyond doubt.
pub struct Framed<S> {
    stream: S,
    framing: Framing,
    /// Of [`REFUSED`], once something is.
    refused: Option<&'static [u8]>,
}

impl<S> Framed<S> {
    /// `head_max_bytes` is what hyper takes.
    pub fn new(stream: S, head_max_bytes: usize) -> Framed<S> {
        // One more read may come before hyper looks at what it has.
        let framing =
            Framing { next: Next::Head, head: Vec::new(), head_max_bytes: 2 * head_max_bytes };
        Framed { stream, framing, refused: None }
    }

    /// Has a head begun that is not complete?
    pub fn is_amid_head(&self) -> bool {
        !self.framing.head.is_empty()
    }

    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.refused.is_none() {
            let before = buffer.filled().len();
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            match this.framing.pass(&buffer.filled()[before..]) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(good) => {
                    buffer.set_filled(before + good);
                    this.refused = Some(REFUSED);
                }
            }
        }
        if let Some(rest) = &mut this.refused {
            let (now, later) = rest.split_at(rest.len().min(buffer.remaining()));
            buffer.put_slice(now);
            *rest = later;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

    fn framing() -> Framing {
        Framing { next: Next::Head, head: Vec::new(), head_max_bytes: 1 << 16 }
    }

    /// How far the bytes get, whether they come at once or one by one.
    fn passed(text: &str) -> Result<Next, usize> {
        let mut whole = framing();
        let at_once = whole.pass(text.as_bytes()).map(|()| whole.next);
        let mut parts = framing();
        let bytes = text.as_bytes();
        let one_by_one = (0..bytes.len())
            .try_for_each(|at| parts.pass(&bytes[at..=at]).map_err(|good| at + good));
        assert_eq!(one_by_one.map(|()| parts.next), at_once, "{text:?}");
        at_once
    }

    #[test]
    fn what_can_be_read_in_one_way_passes() {
        for (text, next) in [
            (GET.to_owned(), Next::Head),
            (format!("\r\n{GET}\r\n{GET}"), Next::Head),
            ("GET / HTTP/1.0\r\n\r\n".to_owned(), Next::Head),
            (
                format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n\n\r\n{GET}"),
                Next::Head,
            ),
            (
                "POST / HTTP/1.1\r\nhost:h\r\ncontent-length: 9 \r\n\r\n123".to_owned(),
                Next::Body { left_bytes: 6 },
            ),
            (
                "POST / HTTP/1.1\r\nhost: h\r\nTransfer-Encoding: Chunked\r\n\r\n5\nwhatever"
                    .to_owned(),
                Next::Chunked,
            ),
        ] {
            assert_eq!(passed(&text), Ok(next), "{text:?}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_never_becomes_a_whole_head() {
        for more in [
            "content-length: 1\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 1",
            "content-length: 1\r\ncontent-length: 1",
            "content-length: 1\r\nContent-Length: 2",
            "content-length: 1, 1",
            "content-length: +1",
            "content-length: 0x1",
            "content-length: 1 1",
            "content-length: -0",
            "content-length:",
            "content-length: 18446744073709551616",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: identity",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked, identity",
            "transfer-encoding: xchunked",
            "transfer-encoding: \u{b}chunked",
            "transfer-encoding:",
            "Host: other",
            "no colon",
            "x: a\rb",
            "x: a\0b",
        ] {
            let head = format!("POST / HTTP/1.1\r\nhost: h\r\n{more}\r\n\r\n");
            assert_eq!(passed(&format!("{head}{GET}")), Err(head.len() - 1), "{more:?}");
        }
        assert_eq!(passed("GET / HTTP/1.1\r\n\r\n"), Err(17));
        assert_eq!(passed("GET / HTTP/1.1\nhost: h\r\n\r\n"), Err(14));
        assert_eq!(passed("GET / HTTP/1.1\r\nhost: h\n\n"), Err(23));
        assert_eq!(passed("GET / HTTP/1.1\r\nhost: h\r\n\n"), Err(25));
        assert_eq!(passed("\n"), Err(0));
    }

    #[test]
    fn a_head_without_end_is_refused() {
        let mut framing = framing();
        let passed = (0..).find(|_| framing.pass(&[b'x'; 1_000]).is_err());
        assert_eq!((passed, framing.next), (Some(65), Next::Refused));
    }

    #[tokio::test]
    async fn a_reader_gets_what_passes_and_then_what_nobody_takes() {
        let text = format!("{GET}GET / HTTP/1.1\nhost: h\r\n\r\n{GET}");
        for room in [1, 2, 7, 4_096] {
            let mut framed = Framed::new(text.as_bytes(), 1 << 16);
            let (mut all, mut part) = (Vec::new(), vec![0; room]);
            loop {
                match framed.read(&mut part).await.unwrap() {
                    0 => break,
                    n => all.extend_from_slice(&part[..n]),
                }
            }
            let expected = format!("{GET}GET / HTTP/1.1\0\r\n\r\n");
            assert_eq!(str::from_utf8(&all), Ok(&*expected), "{room}");
        }
    }
}
