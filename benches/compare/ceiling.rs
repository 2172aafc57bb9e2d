//! What the machine can do: hyper and the HMAC alone, and the same with a plain append and one `fdatasync` for all
//! that wait. And the service that handlers post to.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::events::sign;

#[derive(clap::Args)]
pub struct Options {
    port: u16,
    /// Append what is acknowledged to this file
    #[arg(long)]
    file: Option<PathBuf>,
}

type Waiting = (Bytes, oneshot::Sender<()>);

pub fn serve(options: &Options) {
    let log = options.file.as_ref().map(|path| {
        let mut file = std::fs::File::create(path).unwrap();
        let (send, mut receive) = mpsc::unbounded_channel::<Waiting>();
        std::thread::spawn(move || {
            let mut group = Vec::new();
            let mut bytes = Vec::new();
            while receive.blocking_recv_many(&mut group, 1024) > 0 {
                bytes.clear();
                for (body, _) in &group {
                    bytes.extend_from_slice(body);
                }
                file.write_all(&bytes).unwrap();
                file.sync_data().unwrap();
                for (_, done) in group.drain(..) {
                    _ = done.send(());
                }
            }
        });
        send
    });
    run(options.port, move |request| {
        let log = log.clone();
        async move {
            let given = request.headers().get("x-bluereplies-signature").cloned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            if given.is_none_or(|given| given.as_bytes() != sign(&body).as_bytes()) {
                return answer(401);
            }
            if let Some(log) = log {
                let (done, heard) = oneshot::channel();
                log.send((body, done)).unwrap();
                heard.await.unwrap();
            }
            answer(200)
        }
    });
}

/// Answers 200 to whatever comes, and a GET with how many POSTs that were.
pub fn receive(port: u16) {
    static RECEIVED: AtomicU64 = AtomicU64::new(0);
    run(port, |request| async {
        if request.method() == Method::GET {
            let count = RECEIVED.load(Ordering::Relaxed).to_string();
            return Response::new(Full::new(count.into()));
        }
        request.into_body().collect().await.unwrap();
        RECEIVED.fetch_add(1, Ordering::Relaxed);
        answer(200)
    });
}

fn answer(status: u16) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(Bytes::from_static(b"ok"))).unwrap()
}

fn run<F>(port: u16, service: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = TcpListener::bind(address).await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let service = service.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let answered = service(request);
                    async { Ok::<_, Infallible>(answered.await) }
                });
                let http = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                _ = http.await;
            });
        }
    });
}
