//! Who sent this? HMAC-SHA256 over the raw bytes, then over JavaScript's canonical form.

pub mod json;

use std::time::Duration;

use crate::clock::Timestamp;
use crate::event::VerifiedBy;

/// A signing secret. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(bytes)
    }

    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Blue Replies': hex of the MAC over the body, optionally after `sha256=`.
    Hex,
    /// `t=<unix seconds>,v1=<hex of the MAC over "t.body">`.
    Timestamped { tolerance: Duration },
    /// Standard Webhooks 1.0: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    StandardWebhooks { tolerance: Duration },
}

#[derive(Clone, Debug)]
pub struct Policy {
    /// Lower case. Not used by [`Scheme::StandardWebhooks`], whose header names are fixed.
    pub header: String,
    pub scheme: Scheme,
    pub secrets: Vec<Secret>,
    pub canonical_json: bool,
}

/// Which form matched, and the bytes that the signature covers: those are stored and forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub by: VerifiedBy,
    /// `None`: the body as it arrived. `Some`: the canonical bytes.
    pub canonical: Option<Vec<u8>>,
}

/// Why a request was refused. Goes to the rejections ring, never into the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    Missing,
    Repeated,
    Malformed,
    Mismatch,
    Expired,
}

/// `headers` yields (lower-case name, value) of every header of the request.
///
/// # Errors
/// Why the request is not from the sender.
pub fn verify<'a>(
    _policy: &Policy,
    _headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    _body: &[u8],
    _now: Timestamp,
) -> Result<Verified, Rejection> {
    todo!()
}

/// The value of Blue Replies' signature header for `body`: lower-case hex.
#[must_use]
pub fn sign_hex(_secret: &Secret, _body: &[u8]) -> String {
    todo!()
}

/// The headers that sign `body` under `scheme`: (name, value).
#[must_use]
pub fn sign(
    _policy: &Policy,
    _id: &str,
    _body: &[u8],
    _now: Timestamp,
) -> Option<Vec<(String, String)>> {
    todo!()
}
