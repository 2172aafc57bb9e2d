//! Bodies of answers: whole, or streamed through a bounded channel so that a slow reader holds back
//! who writes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

pub type AnswerBody = BoxBody<Bytes, std::io::Error>;
pub type Answer = Response<AnswerBody>;

/// Chunks on their way to a reader.
const CHUNKS_MAX: usize = 4;

#[must_use]
pub fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
    with_type(status, content_type, body)
}

#[must_use]
pub fn json(value: &impl Serialize) -> Answer {
    // Our own types: no maps with other keys than strings, so this cannot fail.
    let text = serde_json::to_vec(value).unwrap_or_default();
    full(StatusCode::OK, "application/json", text)
}

/// An answer that goes on while the sender lives. An error sent cuts the connection, so that a reader
/// can't take a part for the whole.
#[must_use]
pub fn stream(content_type: &'static str) -> (mpsc::Sender<std::io::Result<Bytes>>, Answer) {
    let (tx, rx) = mpsc::channel(CHUNKS_MAX);
    (tx, with_type(StatusCode::OK, content_type, Chunks(rx).boxed()))
}

fn with_type(status: StatusCode, content_type: &'static str, body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

struct Chunks(mpsc::Receiver<std::io::Result<Bytes>>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
