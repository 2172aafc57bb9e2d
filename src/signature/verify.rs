//! Verifying what came in.

use std::time::Duration;

use base64::Engine as _;
use subtle::{Choice, ConstantTimeEq};

use super::mac::{BASE64, Tag, keys, tag};
use super::{Policy, STANDARD_ID, STANDARD_SIGNATURE, STANDARD_TIMESTAMP, Scheme, json};
use crate::clock::Timestamp;
use crate::event::VerifiedBy;

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
    /// Rightly signed, at a time too far from now.
    Expired,
}

impl Rejection {
    /// For people.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Rejection::Missing => "no signature header",
            Rejection::Repeated => "more than one signature header",
            Rejection::Malformed => {
                "the signature header is not in the form that the scheme asks for"
            }
            Rejection::Mismatch => "the signature matches no configured secret",
            Rejection::Expired => {
                "signed too long ago or too far in the future: compare the clocks"
            }
        }
    }
}

/// `headers` yields (name, value) of every header of the request.
///
/// # Errors
/// Why the request is not from the sender.
pub fn verify<'a>(
    policy: &Policy,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    body: &[u8],
    now: Timestamp,
) -> Result<Verified, Rejection> {
    match policy.scheme {
        Scheme::Hex => {
            let [value] = find(headers, [&policy.header])?;
            verify_hex(policy, value, body)
        }
        Scheme::Timestamped { tolerance } => {
            let [value] = find(headers, [&policy.header])?;
            let (seconds, tags) = parse_timestamped(value).ok_or(Rejection::Malformed)?;
            require(any_key_matches(policy, &tags, &[seconds.as_bytes(), b".", body]))?;
            require_recent(seconds, tolerance, now)
        }
        Scheme::StandardWebhooks { tolerance } => {
            let [id, seconds, signature] =
                find(headers, [STANDARD_ID, STANDARD_TIMESTAMP, STANDARD_SIGNATURE])?;
            let seconds = str::from_utf8(seconds).map_err(|_| Rejection::Malformed)?;
            let tags = parse_standard(signature).ok_or(Rejection::Malformed)?;
            require(any_key_matches(policy, &tags, &[id, b".", seconds.as_bytes(), b".", body]))?;
            require_recent(seconds, tolerance, now)
        }
    }
}

/// Whether [`verify`] made the canonical form, which costs more than all else: only for signatures that could be one.
#[must_use]
pub fn tried_canonical(policy: &Policy, verified: &Result<Verified, Rejection>) -> bool {
    let could = policy.scheme == Scheme::Hex && policy.canonical_json;
    match verified {
        Ok(verified) => verified.canonical.is_some(),
        Err(rejection) => could && *rejection == Rejection::Mismatch,
    }
}

fn verify_hex(policy: &Policy, value: &[u8], body: &[u8]) -> Result<Verified, Rejection> {
    let value = value.trim_ascii();
    let tags =
        [parse_hex(value.strip_prefix(b"sha256=").unwrap_or(value)).ok_or(Rejection::Malformed)?];
    if any_key_matches(policy, &tags, &[body]) {
        return Ok(Verified { by: VerifiedBy::Raw, canonical: None });
    }
    if policy.canonical_json
        && let Ok(canonical) = json::canonical(body)
        && canonical != body
        && any_key_matches(policy, &tags, &[&canonical])
    {
        return Ok(Verified { by: VerifiedBy::Canonical, canonical: Some(canonical) });
    }
    Err(Rejection::Mismatch)
}

/// The values of the named headers, each of which must be there exactly once.
fn find<'a, const N: usize>(
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    names: [&str; N],
) -> Result<[&'a [u8]; N], Rejection> {
    let mut found = [None; N];
    for (name, value) in headers {
        if let Some(at) = names.iter().position(|wanted| name.eq_ignore_ascii_case(wanted))
            && found[at].replace(value).is_some()
        {
            return Err(Rejection::Repeated);
        }
    }
    let mut values: [&[u8]; N] = [b""; N];
    for (value, found) in values.iter_mut().zip(found) {
        *value = found.ok_or(Rejection::Missing)?;
    }
    Ok(values)
}

/// Tries every key on every tag whatever matched before, so that the time tells nothing.
fn any_key_matches(policy: &Policy, tags: &[Tag], parts: &[&[u8]]) -> bool {
    let mut matched = Choice::from(0);
    for key in keys(policy) {
        let expected = tag(&key, parts);
        for tag in tags {
            matched |= expected.ct_eq(tag);
        }
    }
    matched.into()
}

fn require(matched: bool) -> Result<(), Rejection> {
    if matched { Ok(()) } else { Err(Rejection::Mismatch) }
}

fn require_recent(
    seconds: &str,
    tolerance: Duration,
    now: Timestamp,
) -> Result<Verified, Rejection> {
    let seconds: i64 = seconds.parse().map_err(|_| Rejection::Malformed)?;
    let signed_at = Timestamp(seconds.saturating_mul(1000));
    if now.since(signed_at).max(signed_at.since(now)) > tolerance {
        return Err(Rejection::Expired);
    }
    Ok(Verified { by: VerifiedBy::Raw, canonical: None })
}

/// `t=…,v1=…`; there may be several `v1`, and other versions beside them.
fn parse_timestamped(value: &[u8]) -> Option<(&str, Vec<Tag>)> {
    let mut seconds = None;
    let mut tags = Vec::new();
    for field in str::from_utf8(value).ok()?.split(',') {
        match field.trim().split_once('=')? {
            ("t", _) if seconds.is_some() => return None,
            ("t", value) => seconds = Some(value),
            ("v1", value) => tags.push(parse_hex(value.as_bytes())?),
            _ => {}
        }
    }
    if tags.is_empty() { None } else { Some((seconds?, tags)) }
}

/// `v1,<base64>` one or more times, other versions beside them.
fn parse_standard(value: &[u8]) -> Option<Vec<Tag>> {
    let mut tags = Vec::new();
    for signature in str::from_utf8(value).ok()?.split_ascii_whitespace() {
        if let Some(encoded) = signature.strip_prefix("v1,") {
            tags.push(BASE64.decode(encoded).ok()?.try_into().ok()?);
        }
    }
    if tags.is_empty() { None } else { Some(tags) }
}

fn parse_hex(digits: &[u8]) -> Option<Tag> {
    let mut tag = Tag::default();
    hex::decode_to_slice(digits, &mut tag).ok()?;
    Some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::{Secret, sign, sign_hex};

    const TOLERANCE: Duration = Duration::from_secs(300);
    const HEADER: &str = "x-bluereplies-signature";
    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    // Made with Node: createHmac('sha256', 'test-secret').update(…).digest('hex').
    const PRETTY: &str = "{\n  \"eventId\": \"evt_1\",\n  \"type\": \"message.received\",\n  \"data\": {\n    \"2\": 0,\n    \"10\": 1,\n    \"body\": \"café / 😀\"\n  }\n}";
    const COMPACT: &str =
        r#"{"eventId":"evt_1","type":"message.received","data":{"2":0,"10":1,"body":"café / 😀"}}"#;
    const OVER_PRETTY: &str = "76b52c69cc69693bc28578069f57cb79452925d3bde5da97cd6199388029b708";
    const OVER_COMPACT: &str = "869924281c59afa5c3af455d661ebe7ad239bd22348765aba8ae263a426c9121";

    fn policy(scheme: Scheme, secrets: &[&str]) -> Policy {
        Policy {
            header: HEADER.to_owned(),
            scheme,
            secrets: secrets.iter().map(|s| Secret::new(s.as_bytes().to_vec())).collect(),
            canonical_json: true,
        }
    }

    fn check(policy: &Policy, headers: &[(&str, &str)], body: &str) -> Result<Verified, Rejection> {
        verify(policy, headers.iter().map(|&(n, v)| (n, v.as_bytes())), body.as_bytes(), NOW)
    }

    fn hex(value: &str, body: &str) -> Result<Verified, Rejection> {
        check(&policy(Scheme::Hex, &["other", "test-secret"]), &[(HEADER, value)], body)
    }

    fn raw() -> Result<Verified, Rejection> {
        Ok(Verified { by: VerifiedBy::Raw, canonical: None })
    }

    #[test]
    fn the_raw_body_is_tried_first() {
        assert_eq!(hex(OVER_PRETTY, PRETTY), raw());
        assert_eq!(hex(OVER_COMPACT, COMPACT), raw());
    }

    #[test]
    fn the_form_that_the_vendors_sample_signs_is_tried_next_and_kept() {
        let by_sample =
            Verified { by: VerifiedBy::Canonical, canonical: Some(COMPACT.as_bytes().to_vec()) };
        assert_eq!(hex(OVER_COMPACT, PRETTY), Ok(by_sample));

        let mut raw_only = policy(Scheme::Hex, &["test-secret"]);
        raw_only.canonical_json = false;
        let headers = [(HEADER, OVER_COMPACT)];
        assert_eq!(check(&raw_only, &headers, PRETTY), Err(Rejection::Mismatch));
    }

    #[test]
    fn what_is_no_json_can_be_signed_raw() {
        let signature = sign_hex(&Secret::new(b"test-secret".to_vec()), b"{nope");
        assert_eq!(hex(&signature, "{nope"), raw());
        assert_eq!(hex(&signature, "{nopf"), Err(Rejection::Mismatch));
    }

    #[test]
    fn hex_may_be_in_any_case_prefixed_and_surrounded_by_space() {
        let upper = OVER_PRETTY.to_uppercase();
        for value in [upper.clone(), format!("sha256={upper}"), format!(" sha256={OVER_PRETTY}\t")]
        {
            assert_eq!(hex(&value, PRETTY), raw(), "{value:?}");
        }
    }

    #[test]
    fn anything_but_64_hex_digits_is_malformed() {
        let longer = format!("{OVER_PRETTY}00");
        let twice = format!("{OVER_PRETTY}, {OVER_PRETTY}");
        let inside = format!("sha256= {OVER_PRETTY}");
        let sha1 = format!("sha1={OVER_PRETTY}");
        let letter = OVER_PRETTY.replace('7', "g");
        for value in [
            "",
            "sha256=",
            &OVER_PRETTY[1..],
            &OVER_PRETTY[2..],
            &longer,
            &twice,
            &inside,
            &sha1,
            &letter,
        ] {
            assert_eq!(hex(value, PRETTY), Err(Rejection::Malformed), "{value:?}");
        }
    }

    #[test]
    fn the_header_is_there_exactly_once_in_any_case() {
        let policy = policy(Scheme::Hex, &["test-secret"]);
        let named = |names: &[&str]| {
            let headers: Vec<_> = names.iter().map(|name| (*name, OVER_PRETTY)).collect();
            check(&policy, &headers, PRETTY)
        };
        assert_eq!(named(&["host", "X-BlueReplies-Signature"]), raw());
        assert_eq!(named(&["host", "x-signature"]), Err(Rejection::Missing));
        assert_eq!(named(&[HEADER, "host", HEADER]), Err(Rejection::Repeated));
    }

    #[test]
    fn any_configured_secret_will_do_and_an_empty_one_never() {
        let headers = [(HEADER, OVER_PRETTY)];
        for secrets in [&["test-secret", "b"], &["a", "test-secret"]] {
            assert_eq!(check(&policy(Scheme::Hex, secrets), &headers, PRETTY), raw());
        }
        for secrets in [&[][..], &["a", "b"]] {
            let result = check(&policy(Scheme::Hex, secrets), &headers, PRETTY);
            assert_eq!(result, Err(Rejection::Mismatch));
        }
        let unkeyed = sign_hex(&Secret::new(Vec::new()), PRETTY.as_bytes());
        let result = check(&policy(Scheme::Hex, &[""]), &[(HEADER, &unkeyed)], PRETTY);
        assert_eq!(result, Err(Rejection::Mismatch));
    }

    #[test]
    fn a_timestamped_signature_covers_its_time() {
        let policy = policy(Scheme::Timestamped { tolerance: TOLERANCE }, &["test-secret"]);
        let tag = "8cb2c3355fca388e9ac2caec004f4d5d7045d74937ab5faad61dc11682247a9f";
        let other = "0".repeat(64);
        let try_value = |value: &str| check(&policy, &[(HEADER, value)], "{\"a\":1}");
        assert_eq!(try_value(&format!("t=1700000000,v1={tag}")), raw());
        assert_eq!(try_value(&format!("v1={other}, v0=x, v1={tag}, t=1700000000")), raw());
        let moved = format!("t=1700000001,v1={tag}");
        assert_eq!(try_value(&moved), Err(Rejection::Mismatch));
        for value in [
            format!("v1={tag}"),
            format!("t=1700000000,t=1700000000,v1={tag}"),
            "t=1700000000".to_owned(),
            "t=1700000000,v1=00".to_owned(),
            tag.to_owned(),
            String::new(),
        ] {
            assert_eq!(try_value(&value), Err(Rejection::Malformed), "{value:?}");
        }
    }

    #[test]
    fn a_standard_webhook_verifies_as_its_specification_shows() {
        // The example of the Standard Webhooks reference libraries.
        let policy = policy(
            Scheme::StandardWebhooks { tolerance: TOLERANCE },
            &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        );
        let body = r#"{"test": 2432232314}"#;
        let with = |id: &str, signature: &str| {
            let headers = [
                (STANDARD_ID, id),
                (STANDARD_TIMESTAMP, "1614265330"),
                (STANDARD_SIGNATURE, signature),
            ];
            let headers = headers.iter().map(|&(n, v)| (n, v.as_bytes()));
            verify(&policy, headers, body.as_bytes(), Timestamp(1_614_265_330_000))
        };
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let right = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let wrong = "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=";
        assert_eq!(with(id, right), raw());
        assert_eq!(with(id, &format!("v2,x {wrong} {right}")), raw());
        assert_eq!(with(id, right.trim_end_matches('=')), raw());
        assert_eq!(with("msg_other", right), Err(Rejection::Mismatch));
        assert_eq!(with(id, wrong), Err(Rejection::Mismatch));
        for malformed in ["", "v1", "v1,", "v1,AAAA", "v2,x", "v1,*"] {
            assert_eq!(with(id, malformed), Err(Rejection::Malformed), "{malformed}");
        }
    }

    #[test]
    fn a_standard_webhook_needs_its_three_headers() {
        let policy = policy(Scheme::StandardWebhooks { tolerance: TOLERANCE }, &["plain"]);
        let signature = "v1,ES5UgSfAtqT7PKHpUBgKw52E0rWH6S37Wv5yHiACL+g=";
        let headers = [
            (STANDARD_ID, "id"),
            (STANDARD_TIMESTAMP, "1700000000"),
            (STANDARD_SIGNATURE, signature),
        ];
        assert_eq!(check(&policy, &headers, "{}"), raw());
        for missing in 0..3 {
            let mut some = headers.to_vec();
            let repeated = some.remove(missing);
            assert_eq!(check(&policy, &some, "{}"), Err(Rejection::Missing));
            let more = [&headers[..], &[repeated]].concat();
            assert_eq!(check(&policy, &more, "{}"), Err(Rejection::Repeated));
        }
    }

    #[test]
    fn a_time_beyond_the_tolerance_has_expired_in_both_directions() {
        for scheme in [
            Scheme::Timestamped { tolerance: TOLERANCE },
            Scheme::StandardWebhooks { tolerance: TOLERANCE },
        ] {
            let policy = policy(scheme, &["test-secret"]);
            for (offset_ms, expected) in [
                (-300_000, raw()),
                (300_000, raw()),
                (-301_000, Err(Rejection::Expired)),
                (301_000, Err(Rejection::Expired)),
            ] {
                let headers = sign(&policy, "id", b"{}", Timestamp(NOW.0 + offset_ms)).unwrap();
                let headers: Vec<_> =
                    headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                assert_eq!(check(&policy, &headers, "{}"), expected, "{scheme:?} {offset_ms}");
            }
        }
    }

    #[test]
    fn the_first_secret_signs_what_any_policy_with_it_accepts() {
        for scheme in [
            Scheme::Hex,
            Scheme::Timestamped { tolerance: TOLERANCE },
            Scheme::StandardWebhooks { tolerance: TOLERANCE },
        ] {
            let secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "second"];
            let headers = sign(&policy(scheme, &secrets), "evt_1", b"{}", NOW).unwrap();
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(check(&policy(scheme, &secrets[..1]), &headers, "{}"), raw());
            let second = check(&policy(scheme, &secrets[1..]), &headers, "{}");
            assert_eq!(second, Err(Rejection::Mismatch));
            assert_eq!(sign(&policy(scheme, &[]), "evt_1", b"{}", NOW), None);
        }
    }
}
