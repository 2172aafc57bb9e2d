//! Connections: accepted up to a limit, served, drained.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::Intake;
use super::answer::{Answer, RETRY_AFTER_SECONDS, Reason};
use super::listen::{Bound, Socket};
use super::peer::Origin;
use super::{Tls, service};

const HEAD_MAX_BYTES: usize = 64 << 10;
const HEADERS_MAX: usize = 100;
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
            Ok((stream, origin)) => match Slot::take(&intake) {
                Some(slot) => {
                    let (tls, stopping) = (tls.clone(), shutdown.clone());
                    connections.spawn(async move {
                        match tls {
                            Some(tls) => secured(&tls, stream, origin, slot, stopping).await,
                            None => connection(stream, origin, slot, stopping).await,
                        }
                    });
                }
                None => {
                    let busy = Answer::Refused(Reason::Busy);
                    intake.counters.note(&busy, Duration::ZERO, intake.clock.now());
                    // A handshake costs more than it is worth here.
                    if tls.is_none()
                        && let Ok(permit) = Arc::clone(&refusals).try_acquire_owned()
                    {
                        connections.spawn(async move {
                            refuse(stream).await;
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

/// One of `connections_max`.
struct Slot(Arc<Intake>);

impl Slot {
    fn take(intake: &Arc<Intake>) -> Option<Slot> {
        let max = intake.live().limits.connections_max;
        let slot = Slot(Arc::clone(intake));
        (intake.connections.fetch_add(1, Ordering::Relaxed) < max).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A handshake has as long as a request's head.
async fn secured(
    tls: &Tls,
    stream: Box<dyn Stream>,
    origin: Origin,
    slot: Slot,
    mut stopping: watch::Receiver<bool>,
) {
    let limit = slot.0.live().limits.read_timeout;
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(limit, tls.accept(stream)) => handshake,
        () = stopped(&mut stopping) => return,
    };
    match handshake {
        Ok(Ok(Some(stream))) => connection(Box::new(stream), origin, slot, stopping).await,
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(?origin, %error, "no TLS"),
        Err(_) => tracing::debug!(?origin, "no TLS in time"),
    }
}

async fn connection(
    stream: Box<dyn Stream>,
    origin: Origin,
    slot: Slot,
    mut shutdown: watch::Receiver<bool>,
) {
    let intake = Arc::clone(&slot.0);
    let read_timeout = intake.live().limits.read_timeout;
    let service = service_fn(|request| {
        let answer = service::answer(Arc::clone(&intake), origin, request);
        Box::pin(async move { Ok::<_, Infallible>(answer.await) })
    });
    let mut http = http1::Builder::new()
        .timer(TokioTimer::new())
        // Counts from the end of the previous answer: it is the idle limit of kept connections too.
        .header_read_timeout(read_timeout)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        // A sender that closes its half after the request still gets its answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|cx| http.poll_without_shutdown(cx)) => break ended,
            () = stopped(&mut shutdown), if !stopping => {
                stopping = true;
                std::pin::Pin::new(&mut http).graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(?origin, %error, "connection ended");
    }
    linger(http.into_parts().io.into_inner()).await;
}

/// Says 503 without reading the request: whoever is over the limit costs next to nothing.
async fn refuse(mut stream: Box<dyn Stream>) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: {RETRY_AFTER_SECONDS}\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: 19\r\n\r\nService Unavailable"
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
