//! Connections: accepted up to a limit, served, drained.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use hyper::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::answer::{Answer, HeadProblem, RETRY_AFTER_SECONDS, Reason};
use super::listen::{Bound, Socket};
use super::peer::{Origin, show};
use super::places::{Full, Limits, Place};
use super::rejections::Note;
use super::service::{self, Visit};
use super::{Intake, Tls};
use crate::framing::Framed;

/// hyper has room for so many headers without asking for memory.
const HEADERS_FOR_FREE: usize = 100;
/// Connections over the limit that are being told so at one time; more are closed without a word.
const REFUSALS_MAX: usize = 128;
/// How long and how much is read and thrown away after the last answer, so that the kernel does not
/// reset the connection under an answer that the peer has yet to read.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX_BYTES: usize = 4 << 20;
/// After a failed accept (no file descriptors left): time for some to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Socket {
    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Origin)> {
        match self {
            Socket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are one small write: never wait for more.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Origin::Tcp(address)))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Box::new(stream), Origin::Unix))
            }
        }
    }
}

/// Serves until `shutdown` holds `true` (or its sender is gone), then stops accepting, lets requests
/// in flight end for up to `drain`, and drops the rest.
pub async fn serve(
    bound: Bound,
    tls: Option<Arc<Tls>>,
    intake: Arc<Intake>,
    shutdown: watch::Receiver<bool>,
    drain: Duration,
) {
    let (sockets, _files) = bound.into_parts();
    let mut listeners = JoinSet::new();
    for socket in sockets {
        // A unix socket is for a proxy on this machine.
        let tls = tls.clone().filter(|_| matches!(socket, Socket::Tcp(_)));
        listeners.spawn(accept_loop(socket, tls, Arc::clone(&intake), shutdown.clone(), drain));
    }
    while listeners.join_next().await.is_some() {}
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: that is a stop, too.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn accept_loop(
    socket: Socket,
    tls: Option<Arc<Tls>>,
    intake: Arc<Intake>,
    mut shutdown: watch::Receiver<bool>,
    drain: Duration,
) {
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut shutdown) => break,
            accepted = socket.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Err(error) => {
                if intake.accept_line.lets_through(intake.clock.as_ref()) {
                    tracing::warn!(%error, "cannot accept connections; if files are too many, raise LimitNOFILE or lower intake.connections_max");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Ok((stream, origin)) => match place_for(&intake, origin).await {
                Ok(place) => {
                    let (tls, stopping) = (tls.clone(), shutdown.clone());
                    let intake = Arc::clone(&intake);
                    let visit = Visit { intake, origin, place, requests: AtomicU32::new(0) };
                    connections.spawn(async move {
                        match tls {
                            Some(tls) => secured(&tls, stream, visit, stopping).await,
                            None => connection(stream, visit, stopping).await,
                        }
                    });
                }
                Err(full) => {
                    let reason = match full {
                        Full::InAll => Reason::Busy,
                        Full::Address => Reason::AddressBusy,
                    };
                    let answer = Answer::Refused(reason);
                    intake.counters.note(&answer, Duration::ZERO, intake.clock.now());
                    // A handshake costs more than it is worth here.
                    if tls.is_none()
                        && let Ok(permit) = Arc::clone(&refusals).try_acquire_owned()
                    {
                        connections.spawn(async move {
                            say(stream, reason).await;
                            drop(permit);
                        });
                    }
                }
            },
        }
    }
    drop(socket);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, all).await.is_err() {
        tracing::warn!(left = connections.len(), "dropping connections that did not end in time");
    }
}

async fn place_for(intake: &Arc<Intake>, origin: Origin) -> Result<Place, Full> {
    let live = intake.live();
    let limits = Limits {
        in_all: live.limits.connections_max,
        per_address: live.limits.connections_per_address,
    };
    intake.places.take(origin.counted(&live.limits.trusted_proxies), limits).await
}

/// A handshake has as long as a request's head.
async fn secured(
    tls: &Tls,
    stream: Box<dyn Stream>,
    visit: Visit,
    mut stopping: watch::Receiver<bool>,
) {
    let limit = visit.intake.live().limits.read_timeout;
    let origin = visit.origin;
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(limit, tls.accept(stream)) => handshake,
        () = stopped(&mut stopping) => return,
        () = visit.place.give_way() => return,
    };
    match handshake {
        Ok(Ok(Some(stream))) => connection(Box::new(stream), visit, stopping).await,
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(?origin, %error, "no TLS"),
        Err(_) => tracing::debug!(?origin, "no TLS in time"),
    }
}

async fn connection(stream: Box<dyn Stream>, visit: Visit, mut shutdown: watch::Receiver<bool>) {
    let visit = Arc::new(visit);
    let live = visit.intake.live();
    let limits = &live.limits;
    let service = service_fn(|request| {
        let answer = service::answer(Arc::clone(&visit), request);
        Box::pin(async move { Ok::<_, Infallible>(answer.await) })
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Counts from the end of the previous answer: it is the idle limit of kept connections too.
        .header_read_timeout(limits.read_timeout)
        .max_buf_size(limits.head_max)
        // A sender that closes its half after the request still gets its answer.
        .half_close(true);
    if limits.headers_max != HEADERS_FOR_FREE {
        builder.max_headers(limits.headers_max);
    }
    let framed = Framed::new(stream, limits.head_max);
    let mut http = builder.serve_connection(TokioIo::new(framed), service);
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            // First: an answer that is ready goes out before the place is given up.
            biased;
            ended = poll_fn(|cx| http.poll_without_shutdown(cx)) => break ended,
            () = visit.place.give_way() => return,
            () = stopped(&mut shutdown), if !stopping => {
                stopping = true;
                std::pin::Pin::new(&mut http).graceful_shutdown();
            }
        }
    };
    let framed = http.into_parts().io.into_inner();
    let problem = match &ended {
        Ok(()) => None,
        Err(error) if error.is_timeout() => framed.is_amid_head().then_some(HeadProblem::Timeout),
        Err(error) if error.is_parse_too_large() => Some(HeadProblem::TooLarge),
        Err(error) if error.is_parse() => Some(HeadProblem::Malformed),
        Err(_) => None,
    };
    if let Err(error) = ended {
        tracing::debug!(origin = ?visit.origin, %error, "connection ended");
    }
    if let Some(problem) = problem {
        note_head(&visit, problem);
    }
    let stream = framed.into_inner();
    let farewell = async {
        match problem {
            Some(HeadProblem::Timeout) => say(stream, Reason::Head(HeadProblem::Timeout)).await,
            // Of the others hyper has said so itself.
            _ => linger(stream).await,
        }
    };
    tokio::select! {
        () = farewell => {}
        () = visit.place.give_way() => {}
    }
}

/// Of a request that hyper did not give to anyone.
fn note_head(visit: &Visit, problem: HeadProblem) {
    let Visit { intake, origin, .. } = visit;
    let reason = Reason::Head(problem);
    let now = intake.clock.now();
    intake.counters.note(&Answer::Refused(reason), Duration::ZERO, now);
    let peer = match origin {
        Origin::Tcp(address) => Some(address.ip().to_canonical()),
        Origin::Unix => None,
    };
    intake.rejections.add(Note {
        time: now.wall.to_rfc3339(),
        peer: show(peer),
        method: String::new(),
        path: String::new(),
        status: reason.status().as_u16(),
        reason: reason.name(),
        headers: Vec::new(),
        body: None,
        body_base64: None,
        took_ms: 0,
    });
}

/// Answers without a request that hyper has read: whoever is over a limit costs next to nothing.
async fn say(mut stream: Box<dyn Stream>, reason: Reason) {
    let (status, text) = (reason.status(), reason.text());
    let later = match status {
        StatusCode::SERVICE_UNAVAILABLE => format!("retry-after: {RETRY_AFTER_SECONDS}\r\n"),
        _ => String::new(),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\n{later}connection: close\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, stream.write_all(answer.as_bytes())).await {
        linger(stream).await;
    }
}

async fn linger(mut stream: Box<dyn Stream>) {
    let rest = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut scrap = vec![0; 16 << 10];
        let mut read = 0;
        while read < LINGER_MAX_BYTES {
            match stream.read(&mut scrap).await {
                Ok(0) | Err(_) => return,
                Ok(n) => read += n,
            }
        }
    };
    // Whoever has not closed by then is cut off.
    let _ = tokio::time::timeout(LINGER, rest).await;
}
