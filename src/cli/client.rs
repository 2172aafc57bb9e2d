//! Speaks to the appliance through its admin socket.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Frame;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::Failure;
use crate::admin::wire::ProblemJson;
use crate::admin::{AdminContext, routes};

pub type Body = BoxBody<Bytes, std::io::Error>;

pub struct Client {
    pub socket: PathBuf,
    /// Answers what can be read while nobody listens on the socket.
    pub stopped: Option<Arc<AdminContext>>,
}

impl Client {
    pub async fn is_answered(&self) -> bool {
        tokio::net::UnixStream::connect(&self.socket).await.is_ok()
    }

    /// # Errors
    /// The appliance can't be reached, or answers with a problem.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Body>, Failure> {
        self.answered(self.request(method, path, body)?).await
    }

    /// A stream of server-sent events, after the one with this id.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn stream(&self, path: &str, after: Option<&str>) -> Result<Response<Body>, Failure> {
        let mut request = self.request(Method::GET, path, empty())?;
        if let Some(id) = after.and_then(|id| id.parse().ok()) {
            request.headers_mut().insert("last-event-id", id);
        }
        self.answered(request).await
    }

    async fn answered(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        let answer = match &self.stopped {
            Some(cx) => routes::respond(cx, request).await,
            None => self.ask(request).await?,
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.map_err(|e| self.away(&e))?.to_bytes();
        let detail = match serde_json::from_slice::<ProblemJson>(&text) {
            Ok(problem) => problem.detail,
            Err(_) => format!("bluehook answered {status}; see its log"),
        };
        Err(match status {
            400 => Failure::usage(detail),
            404 => Failure::not_found(detail),
            _ => Failure::failed(detail),
        })
    }

    fn request(&self, method: Method, path: &str, body: Body) -> Result<Request<Body>, Failure> {
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        request.body(body).map_err(|e| Failure::usage(format!("cannot ask for {path}: {e}")))
    }

    fn away(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure::unreachable(format!(
            "cannot reach bluehook at {}: {why}; start it with `bluehook serve`, or give --socket",
            self.socket.display()
        ))
    }

    async fn ask(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        let stream =
            tokio::net::UnixStream::connect(&self.socket).await.map_err(|e| self.away(&e))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(|e| self.away(&e))?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| self.away(&e))?;
        Ok(answer.map(|body| body.map_err(io::Error::other).boxed()))
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        read(self.send(Method::GET, path, empty()).await?).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let text = serde_json::to_vec(body).unwrap_or_default();
        read(self.send(Method::POST, path, whole(text)).await?).await
    }
}

pub fn empty() -> Body {
    whole(Vec::new())
}

fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

pub async fn read<T: DeserializeOwned>(answer: Response<Body>) -> Result<T, Failure> {
    let cut = |e: &dyn std::fmt::Display| {
        Failure::failed(format!("the answer cannot be read: {e}; is it the same version?"))
    };
    let bytes = answer.into_body().collect().await.map_err(|e| cut(&e))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| cut(&e))
}

/// A body fed by [`feed`], no faster than it is taken.
pub fn streamed() -> (mpsc::Sender<Bytes>, Body) {
    let (tx, rx) = mpsc::channel(4);
    (tx, Fed(rx).boxed())
}

/// Reads `path` (`-`: standard input) into the body. Ends early where nobody takes it any more.
pub fn feed(path: &Path, tx: &mpsc::Sender<Bytes>, mut sent: impl FnMut(usize)) -> io::Result<()> {
    let mut from: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(std::fs::File::open(path)?),
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 || tx.blocking_send(Bytes::copy_from_slice(&buffer[..n])).is_err() {
            return Ok(());
        }
        sent(n);
    }
}

struct Fed(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::socket;

    #[tokio::test]
    async fn answers_and_problems_come_through_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let client = Client { socket: path.clone(), stopped: None };
        let nobody = client.get::<String>("/x").await.unwrap_err();
        assert_eq!(nobody.code, super::super::UNREACHABLE);

        let bound = socket::bind(&path).await.unwrap();
        let respond: socket::Respond = Arc::new(|request| {
            let path = request.uri().path().to_owned();
            Box::pin(async move {
                let problem = r#"{"title":"Not Found","status":404,"detail":"no event"}"#;
                let (status, text) =
                    if path == "/ok" { (200, "\"hello\"") } else { (404, problem) };
                let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
                Response::builder().status(status).body(body).unwrap()
            })
        });
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(socket::serve(bound, respond, async {
            let _ = stopped.await;
        }));
        assert_eq!(client.get::<String>("/ok").await, Ok("hello".to_owned()));
        assert_eq!(client.post::<String>("/other", &1).await, Err(Failure::not_found("no event")));
        stop.send(()).unwrap();
        server.await.unwrap();
        assert!(!path.exists());
    }
}
