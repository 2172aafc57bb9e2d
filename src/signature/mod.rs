//! Who sent this? HMAC-SHA256 over the raw bytes, then over JavaScript's canonical form.

pub mod json;
mod mac;
mod sign;
mod verify;

use std::time::Duration;

use zeroize::Zeroizing;

pub use sign::{sign, sign_hex};
pub use verify::{Rejection, Verified, tried_canonical, verify};

/// A signing secret. Never printed, and wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    /// A fresh one: 32 random bytes as 64 hexadecimal digits, so that it can be printed and pasted.
    ///
    /// # Errors
    /// Where the system has no randomness to give.
    pub fn generate() -> Result<Secret, getrandom::Error> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        Ok(Secret::new(hex::encode(random).into_bytes()))
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
    /// Any of them verifies, the first one signs. An empty one does neither.
    pub secrets: Vec<Secret>,
    /// Only [`Scheme::Hex`] has a sender that signs the canonical form.
    pub canonical_json: bool,
}

const STANDARD_ID: &str = "webhook-id";
const STANDARD_TIMESTAMP: &str = "webhook-timestamp";
const STANDARD_SIGNATURE: &str = "webhook-signature";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_secret_is_new_and_printable() {
        let (a, b) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.expose().len(), 64);
        assert!(a.expose().iter().all(u8::is_ascii_hexdigit));
    }

    #[test]
    fn debug_output_hides_the_secret() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "***");
    }
}
