//! What came back: read within bounds, kept for history, and what it means for the delivery.

use std::error::Error;
use std::io;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::super::address::Refused;
use super::super::redact::{Redactor, shorten};
use crate::clock::Timestamp;
use crate::delivery::Outcome;

/// Read to the end up to here, so that the connection can be used again; a longer body costs it.
const DRAINED_BYTES: usize = 256 << 10;
/// The status decides. A body that trickles in after it is not waited for longer than this.
const BODY_GRACE: Duration = Duration::from_secs(5);

pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    pub(super) account: String,
}

impl Answer {
    pub(super) async fn read(
        response: Response<Incoming>,
        left: Duration,
        redactor: &Redactor,
        kept_bytes: usize,
    ) -> Answer {
        let (head, body) = response.into_parts();
        let mut bytes = Vec::new();
        let keep = kept_bytes + redactor.longest_bytes();
        let reading = read_body(body, &mut bytes, keep);
        let ended = tokio::time::timeout(left.min(BODY_GRACE), reading).await;
        let mut account = format!("{:?} {}", head.version, head.status);
        for (name, value) in &head.headers {
            let shown = match name.as_str() {
                "set-cookie" => "***".into(),
                _ => String::from_utf8_lossy(value.as_bytes()),
            };
            account.push_str(&format!("\n{name}: {shown}"));
        }
        account = redactor.clean(&account);
        shorten(&mut account, kept_bytes);
        account.push_str("\n\n");
        account.push_str(&redactor.clean_bytes(&bytes, kept_bytes));
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(why)) => account.push_str(&format!("\n[the body was cut off: {why}]")),
            Err(_) => account.push_str("\n[the body did not end in time]"),
        }
        Answer { status: head.status, headers: head.headers, account }
    }

    pub(super) fn outcome(&self, permanent: &[u16], now: Timestamp) -> Outcome {
        let status = self.status;
        if status.is_success() {
            return Outcome::Delivered;
        }
        if status == StatusCode::GONE || permanent.contains(&status.as_u16()) {
            return Outcome::reject(status.to_string());
        }
        let mut reason = status.to_string();
        if status.is_redirection() {
            let to = self.headers.get(LOCATION).map(|v| String::from_utf8_lossy(v.as_bytes()));
            let to = to.map(|to| format!(" to {to}")).unwrap_or_default();
            reason =
                format!("{status}{to}: redirects are not followed; put the final address in url");
        }
        let after = self.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok());
        Outcome::Retry { reason, after_ms: after.and_then(|text| retry_after_ms(text, now)) }
    }
}

/// Keeps the first `keep` bytes; stops at [`DRAINED_BYTES`], which closes the connection.
async fn read_body(mut body: Incoming, kept: &mut Vec<u8>, keep: usize) -> Result<(), String> {
    let mut total_bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| deepest(&e))?;
        let Some(data) = frame.data_ref() else { continue };
        let room = keep.saturating_sub(kept.len()).min(data.len());
        kept.extend_from_slice(&data[..room]);
        total_bytes += data.len();
        if total_bytes > DRAINED_BYTES {
            break;
        }
    }
    Ok(())
}

/// `Retry-After`: seconds, or an HTTP date.
fn retry_after_ms(text: &str, now: Timestamp) -> Option<u64> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1000));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let left = Timestamp(date.as_millisecond()).since(now);
    u64::try_from(left.as_millis()).ok()
}

/// Why no answer came.
pub(super) fn failure(error: &hyper_util::client::legacy::Error, authority: &str) -> String {
    if let Some(refused) = find::<Refused>(error) {
        return refused.to_string();
    }
    if let Some(tls) = find::<rustls::Error>(error) {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let hint = if *tls == unknown { "; if the authority is your own, set ca" } else { "" };
        return format!("tls with {authority}: {tls}{hint}");
    }
    let last = deepest(error);
    if last.starts_with("dns: ") {
        last
    } else if error.is_connect() {
        format!("cannot connect to {authority}: {last}")
    } else {
        format!("connection to {authority} failed: {last}")
    }
}

/// The error, what it came from, and so on down.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut found = vec![error];
    let mut at = error;
    loop {
        let next: Option<&'a (dyn Error + 'static)> = match at.downcast_ref::<io::Error>() {
            // Its `source` would skip the very error that it carries.
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => at.source(),
        };
        let Some(next) = next else { return found };
        found.push(next);
        at = next;
    }
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).into_iter().find_map(|e| e.downcast_ref::<T>())
}

fn deepest(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(|e| e.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Timestamp::parse_rfc3339("1994-11-06T08:49:07Z").unwrap();
        assert_eq!(retry_after_ms("120", now), Some(120_000));
        assert_eq!(retry_after_ms(" 0 ", now), Some(0));
        assert_eq!(retry_after_ms("99999999999999999999999", now), Some(u64::MAX));
        assert_eq!(retry_after_ms("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(30_000));
        assert_eq!(retry_after_ms("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(0));
        for bad in ["", "soon", "-5", "1.5"] {
            assert_eq!(retry_after_ms(bad, now), None, "{bad}");
        }
    }
}
