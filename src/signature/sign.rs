//! Signing as the sender would: for `sign = …` of handlers, for test events, for the emulator.

use base64::Engine as _;

use super::mac::{BASE64, keys, tag};
use super::{Policy, STANDARD_ID, STANDARD_SIGNATURE, STANDARD_TIMESTAMP, Scheme, Secret};
use crate::clock::Timestamp;

/// The value of Blue Replies' signature header for `body`: lower-case hex.
#[must_use]
pub fn sign_hex(secret: &Secret, body: &[u8]) -> String {
    hex::encode(tag(secret.expose(), &[body]))
}

/// The headers that sign `body` under the policy's scheme and first secret: (name, value). `None`
/// where the policy has no secret.
#[must_use]
pub fn sign(
    policy: &Policy,
    id: &str,
    body: &[u8],
    now: Timestamp,
) -> Option<Vec<(String, String)>> {
    let key = keys(policy).next()?;
    let seconds = now.0.div_euclid(1000).to_string();
    Some(match policy.scheme {
        Scheme::Hex => vec![(policy.header.clone(), hex::encode(tag(&key, &[body])))],
        Scheme::Timestamped { .. } => {
            let tag = tag(&key, &[seconds.as_bytes(), b".", body]);
            vec![(policy.header.clone(), format!("t={seconds},v1={}", hex::encode(tag)))]
        }
        Scheme::StandardWebhooks { .. } => {
            let tag = tag(&key, &[id.as_bytes(), b".", seconds.as_bytes(), b".", body]);
            vec![
                (STANDARD_ID.to_owned(), id.to_owned()),
                (STANDARD_TIMESTAMP.to_owned(), seconds),
                (STANDARD_SIGNATURE.to_owned(), format!("v1,{}", BASE64.encode(tag))),
            ]
        }
    })
}
