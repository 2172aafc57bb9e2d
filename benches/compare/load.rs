//! Sends requests and notes how long each answer took. One thread, so that it takes the same from every contestant.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than any contestant is let think. The sender of the real events waits 5 s.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default, Clone)]
pub struct Outcome {
    /// Microseconds until each 200, in ascending order.
    pub latencies: Vec<u64>,
    /// Other statuses.
    pub refused: u64,
    /// Refused with 503 and `Retry-After`.
    pub shed: u64,
    /// No answer at all.
    pub failed: u64,
    pub took: Duration,
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// In milliseconds; `share` of all acknowledgements took at most this.
    pub fn percentile(&self, share: f64) -> f64 {
        let Some(last) = self.latencies.len().checked_sub(1) else { return f64::NAN };
        self.latencies[(last as f64 * share).round() as usize] as f64 / 1000.0
    }
}

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// The next one on a connection goes out when the last one is answered.
    Closed,
    /// So many a second, whatever the answers do. Latency counts from when a request was due: what waits for a
    /// free connection has begun to wait.
    PerSecond(u64),
}

/// Ends after `length`, or when there are no more requests.
pub fn run(
    to: SocketAddr,
    requests: &[Box<[u8]>],
    connections: usize,
    pace: Pace,
    length: Duration,
) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let next = Cell::new(0);
    let outcome = RefCell::new(Outcome::default());
    let local = tokio::task::LocalSet::new();
    // The tasks live no longer than this function; the set wants them to own what they use.
    let requests: Rc<[Box<[u8]>]> = requests.to_vec().into();
    let shared = Rc::new((next, outcome));
    let begun = Instant::now();
    local.block_on(&runtime, async {
        let tasks: Vec<_> = (0..connections)
            .map(|_| {
                let (requests, shared) = (Rc::clone(&requests), Rc::clone(&shared));
                tokio::task::spawn_local(async move {
                    connection(to, &requests, &shared.0, &shared.1, pace, begun, length).await;
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let mut outcome = shared.1.take();
    outcome.took = begun.elapsed();
    outcome.latencies.sort_unstable();
    outcome
}

async fn connection(
    to: SocketAddr,
    requests: &[Box<[u8]>],
    next: &Cell<usize>,
    outcome: &RefCell<Outcome>,
    pace: Pace,
    begun: Instant,
    length: Duration,
) {
    let mut stream = None;
    let mut buffer = Vec::with_capacity(4096);
    while begun.elapsed() < length {
        let n = next.replace(next.get() + 1);
        let Some(request) = requests.get(n) else { return };
        let due = match pace {
            Pace::Closed => Instant::now(),
            Pace::PerSecond(rate) => {
                let due = begun + Duration::from_secs_f64(n as f64 / rate as f64);
                tokio::time::sleep_until(due.into()).await;
                due
            }
        };
        let answer =
            tokio::time::timeout(PATIENCE, exchange(&mut stream, to, request, &mut buffer));
        let answer = answer.await.unwrap_or(Err(std::io::ErrorKind::TimedOut.into()));
        let waited = u64::try_from(due.elapsed().as_micros()).unwrap();
        let mut outcome = outcome.borrow_mut();
        match answer {
            Ok((200, _)) => outcome.latencies.push(waited),
            Ok((status, retry_after)) => {
                outcome.refused += 1;
                outcome.shed += u64::from(status == 503 && retry_after);
            }
            Err(_) => {
                outcome.failed += 1;
                stream = None;
            }
        }
    }
}

/// The status, and whether there is a `Retry-After`.
async fn exchange(
    stream: &mut Option<TcpStream>,
    to: SocketAddr,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> std::io::Result<(u16, bool)> {
    let open = match stream {
        Some(open) => open,
        None => {
            let new = TcpStream::connect(to).await?;
            new.set_nodelay(true)?;
            stream.insert(new)
        }
    };
    open.write_all(request).await?;
    buffer.clear();
    loop {
        if open.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let Some(head) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head]).map_err(std::io::Error::other)?;
        let text = text.to_ascii_lowercase();
        let header = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim())
        };
        let length: usize = header("content-length").map_or(0, |v| v.parse().unwrap());
        if buffer.len() < head + 4 + length {
            continue;
        }
        let status = text.get(9..12).and_then(|s| s.parse().ok());
        let found = (status.unwrap_or(0), header("retry-after").is_some());
        if header("connection") == Some("close") {
            *stream = None;
        }
        return Ok(found);
    }
}
