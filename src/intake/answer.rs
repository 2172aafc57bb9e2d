//! What a request is answered with.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use crate::signature::Rejection;
use crate::store::{AppendError, Receipt};

/// Told to senders with every 503: Blue Replies' own first retry comes after 30 s anyway.
pub(super) const RETRY_AFTER_SECONDS: &str = "5";

#[derive(Debug)]
pub(super) enum Answer {
    /// Durable: the receipt proves it.
    Stored(Receipt),
    Ping,
    /// Signed, but of a type that the source's `events` leave out.
    NotWanted,
    Refused(Reason),
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    UnknownPath,
    Method,
    ContentEncoding,
    BodyTooLarge,
    BodyTimeout,
    BodyBroken,
    Signature(Rejection),
    /// The address has sent too many wrong signatures; seconds until it may send another.
    FailedTooOften(u64),
    NoSecret,
    /// Connections or bodies in memory are at their limit.
    Busy,
    /// Connections of one address are at their limit.
    AddressBusy,
    /// Refused before there was a request to answer.
    Head(HeadProblem),
    Store(AppendError),
    AckDeadline,
    /// The task that appended died.
    Crashed,
}

/// What is wrong with the head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadProblem {
    /// It is no HTTP, or could be read in two ways.
    Malformed,
    TooLarge,
    Timeout,
}

impl Reason {
    /// For metrics: one name per counter, in the order of [`Reason::index`].
    pub const NAMES: [&str; 23] = [
        "unknown path",
        "method not allowed",
        "content-encoding not supported",
        "body too large",
        "body not complete in time",
        "body cut off",
        "signature missing",
        "signature repeated",
        "signature malformed",
        "signature wrong",
        "signature expired",
        "no secret configured",
        "too busy",
        "store full",
        "store failed",
        "store closing",
        "not durable in time",
        "internal error",
        "too many wrong signatures from one address",
        "too many connections from one address",
        "request malformed",
        "head too large",
        "head not complete in time",
    ];

    pub(super) fn index(self) -> usize {
        match self {
            Reason::UnknownPath => 0,
            Reason::Method => 1,
            Reason::ContentEncoding => 2,
            Reason::BodyTooLarge => 3,
            Reason::BodyTimeout => 4,
            Reason::BodyBroken => 5,
            Reason::Signature(Rejection::Missing) => 6,
            Reason::Signature(Rejection::Repeated) => 7,
            Reason::Signature(Rejection::Malformed) => 8,
            Reason::Signature(Rejection::Mismatch) => 9,
            Reason::Signature(Rejection::Expired) => 10,
            Reason::NoSecret => 11,
            Reason::Busy | Reason::Store(AppendError::Busy) => 12,
            Reason::Store(AppendError::Full) => 13,
            Reason::Store(AppendError::Failed) => 14,
            Reason::Store(AppendError::Closed) => 15,
            Reason::AckDeadline => 16,
            Reason::Crashed => 17,
            Reason::FailedTooOften(_) => 18,
            Reason::AddressBusy => 19,
            Reason::Head(HeadProblem::Malformed) => 20,
            Reason::Head(HeadProblem::TooLarge) => 21,
            Reason::Head(HeadProblem::Timeout) => 22,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Reason::UnknownPath => StatusCode::NOT_FOUND,
            Reason::Method => StatusCode::METHOD_NOT_ALLOWED,
            Reason::ContentEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::BodyTimeout | Reason::Head(HeadProblem::Timeout) => StatusCode::REQUEST_TIMEOUT,
            Reason::BodyBroken | Reason::Head(HeadProblem::Malformed) => StatusCode::BAD_REQUEST,
            Reason::Head(HeadProblem::TooLarge) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Reason::Signature(_) => StatusCode::UNAUTHORIZED,
            Reason::FailedTooOften(_) => StatusCode::TOO_MANY_REQUESTS,
            Reason::NoSecret
            | Reason::Busy
            | Reason::AddressBusy
            | Reason::Store(_)
            | Reason::AckDeadline
            | Reason::Crashed => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Deliberately says nothing about why: that is in the rejections ring.
    pub(super) fn text(self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "Invalid signature",
            status => status.canonical_reason().unwrap_or("Refused"),
        }
    }

    /// Where the rest of the body is still on its way, the connection cannot be used again.
    fn closes(self) -> bool {
        matches!(
            self,
            Reason::BodyTooLarge | Reason::BodyTimeout | Reason::BodyBroken | Reason::Busy
        )
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Answer::Stored(_) | Answer::Ping | Answer::NotWanted => StatusCode::OK,
            Answer::Refused(reason) => reason.status(),
        }
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let status = self.status();
        let text = match &self {
            Answer::Refused(reason) => reason.text(),
            _ => "OK",
        };
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        if let Answer::Refused(Reason::FailedTooOften(seconds)) = &self {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
        }
        if matches!(self, Answer::Refused(reason) if reason.closes()) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: Reason) -> Response<Full<Bytes>> {
        Answer::Refused(reason).into_response()
    }

    #[test]
    fn every_503_says_when_to_come_back() {
        for reason in [
            Reason::NoSecret,
            Reason::Busy,
            Reason::AckDeadline,
            Reason::Crashed,
            Reason::Store(AppendError::Full),
            Reason::Store(AppendError::Failed),
            Reason::Store(AppendError::Busy),
            Reason::Store(AppendError::Closed),
        ] {
            let response = refused(reason);
            assert_eq!(response.status(), 503, "{reason:?}");
            assert!(response.headers().contains_key("retry-after"), "{reason:?}");
        }
    }

    #[test]
    fn a_429_says_when_to_come_back() {
        let response = refused(Reason::FailedTooOften(17));
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (429, &"17".parse().unwrap())
        );
    }

    #[test]
    fn a_405_names_the_methods_and_a_413_closes() {
        assert_eq!(refused(Reason::Method).headers()["allow"], "GET, HEAD, POST");
        assert_eq!(refused(Reason::BodyTooLarge).headers()["connection"], "close");
        assert!(!refused(Reason::UnknownPath).headers().contains_key("connection"));
    }

    #[test]
    fn no_two_kinds_of_signature_failure_answer_differently() {
        for rejection in [
            Rejection::Missing,
            Rejection::Repeated,
            Rejection::Malformed,
            Rejection::Mismatch,
            Rejection::Expired,
        ] {
            let reason = Reason::Signature(rejection);
            assert_eq!((reason.status().as_u16(), reason.text()), (401, "Invalid signature"));
        }
    }
}
