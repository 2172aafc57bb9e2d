//! HMAC-SHA256 under a policy's keys.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, Mac as _};
use sha2::{Digest, Sha256};

use super::{Policy, Scheme};

pub(super) type Tag = [u8; 32];

/// Writes padding and reads with or without it: senders differ.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const BLOCK_BYTES: usize = 64;

/// The keys that the policy's secrets stand for. An empty key, which anyone could sign with, is
/// none.
pub(super) fn keys(policy: &Policy) -> impl Iterator<Item = Cow<'_, [u8]>> {
    policy
        .secrets
        .iter()
        .map(|secret| key(policy.scheme, secret.expose()))
        .filter(|k| !k.is_empty())
}

/// Standard Webhooks' secrets are `whsec_` and base64 of the key; others are the key itself.
fn key(scheme: Scheme, secret: &[u8]) -> Cow<'_, [u8]> {
    if let Scheme::StandardWebhooks { .. } = scheme
        && let Some(encoded) = secret.strip_prefix(b"whsec_")
        && let Ok(decoded) = BASE64.decode(encoded)
    {
        return Cow::Owned(decoded);
    }
    Cow::Borrowed(secret)
}

/// The MAC over the parts, one after the other.
pub(super) fn tag(key: &[u8], parts: &[&[u8]]) -> Tag {
    // RFC 2104's own first step. A key of exactly one block is the form that cannot be refused.
    let mut block = [0; BLOCK_BYTES];
    if key.len() > BLOCK_BYTES {
        let hashed = Sha256::digest(key);
        block[..hashed.len()].copy_from_slice(&hashed);
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_those_of_rfc_4231() {
        let hex = |key: &[u8], parts: &[&[u8]]| hex::encode(tag(key, parts));
        assert_eq!(
            hex(&[0x0b; 20], &[b"Hi There"]),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hex(b"Jefe", &[b"what do ya want ", b"for nothing?"]),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"]),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }
}
