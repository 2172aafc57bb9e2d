//! An error as it leaves the API: problem+json (RFC 9457).

use hyper::StatusCode;

use super::body::{Answer, full};
use super::wire::ProblemJson;
use crate::store::AppendError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// One line: what, why, what to do next.
    pub detail: String,
    /// For 405: what is allowed.
    pub allow: Option<&'static str>,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem { status, detail: detail.into(), allow: None }
    }

    pub fn bad(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, detail)
    }

    pub fn unavailable(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    pub fn internal(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    pub fn append(error: AppendError) -> Problem {
        let detail = match error {
            AppendError::Full => {
                "nothing was logged: the disk is full; free some space, then try again"
            }
            AppendError::Failed => {
                "nothing was logged: a write to the log failed and it is being reopened; try again soon"
            }
            AppendError::Busy => "nothing was logged: too much waits for the disk; try again soon",
            AppendError::Closed => {
                "nothing was logged: bluehook is stopping; start it, then try again"
            }
        };
        Problem::unavailable(detail)
    }

    #[must_use]
    pub fn answer(&self) -> Answer {
        let json = ProblemJson {
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
        };
        let text = serde_json::to_vec(&json).unwrap_or_default();
        let mut answer = full(self.status, "application/problem+json", text);
        if let Some(allow) = self.allow {
            let value = hyper::header::HeaderValue::from_static(allow);
            answer.headers_mut().insert(hyper::header::ALLOW, value);
        }
        answer
    }
}
