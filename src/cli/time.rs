//! Points in time on the command line, and how long ago they were.

use crate::clock::{Clock as _, SystemClock, Timestamp};

/// `2h`, `30m`, `1d` ago, or an RFC 3339 time; as RFC 3339.
pub fn arg(text: &str) -> Result<String, String> {
    parse(text, SystemClock::new().now().wall).map(Timestamp::to_rfc3339)
}

fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Some(time) = Timestamp::parse_rfc3339(text) {
        return Ok(time);
    }
    let wrong =
        || "give how long ago (2h, 30m, 1d) or a time such as 2026-11-25T09:34:00Z".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let unit_ms: i64 = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        'w' => 7 * 86_400_000,
        _ => return Err(wrong()),
    };
    let count = text[..text.len() - 1].parse::<u32>().map_err(|_| wrong())?;
    Ok(Timestamp(now.0.saturating_sub(unit_ms.saturating_mul(i64::from(count)))))
}

/// `12s ago`, `in 5m`; the text itself, escaped, where it is no time.
pub fn relative(text: &str, now: Timestamp) -> String {
    let Some(time) = Timestamp::parse_rfc3339(text) else { return super::render::escape(text) };
    let (ms, future) = if time > now { (time.0 - now.0, true) } else { (now.0 - time.0, false) };
    let seconds = ms / 1_000;
    let span = match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    };
    if future { format!("in {span}") } else { format!("{span} ago") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    #[test]
    fn spans_and_times_are_read() {
        assert_eq!(parse("2h", NOW), Ok(Timestamp(NOW.0 - 7_200_000)));
        assert_eq!(parse("1d", NOW), Ok(Timestamp(NOW.0 - 86_400_000)));
        assert_eq!(parse("2026-09-21T14:13:20Z", NOW), Ok(NOW));
        for bad in ["", "2", "h", "-1h", "2y", "1é"] {
            assert!(parse(bad, NOW).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn spans_are_rounded_down_to_one_unit() {
        let ago = |s: i64| relative(&Timestamp(NOW.0 - s * 1_000).to_rfc3339(), NOW);
        assert_eq!(
            [ago(0), ago(59), ago(60), ago(7_199), ago(90_000)],
            ["0s ago", "59s ago", "1m ago", "1h ago", "1d ago"]
        );
        assert_eq!(ago(-300), "in 5m");
    }
}
