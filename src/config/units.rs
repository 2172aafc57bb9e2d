//! Durations, sizes and rates as people write them.

use std::time::Duration;

use jiff::SpanRelativeTo;

use super::Rate;

/// `"0s"`, `"4.5s"`, `"10m"`, `"30d"`. A day is 24 hours.
pub fn duration(text: &str) -> Option<Duration> {
    let span: jiff::Span = text.trim().parse().ok()?;
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(signed).ok()
}

/// `"64 MiB"`, `"2 GB"`, `"1024"`.
pub fn bytes(text: &str) -> Option<u64> {
    text.trim().parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
}

/// `"10/s"`, `"5/m"`, `"100/h"`.
pub fn rate(text: &str) -> Option<Rate> {
    let (count, unit) = text.trim().split_once('/')?;
    let per = match unit.trim() {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return None,
    };
    let count = count.trim().parse().ok().filter(|n| (1..=1_000_000).contains(n))?;
    Some(Rate { count, per })
}

/// The shortest exact way to write `d`, for messages.
pub fn show_duration(d: Duration) -> String {
    let (ms, secs) = (d.as_millis(), d.as_secs());
    match secs {
        _ if ms % 1000 != 0 && ms < 1000 => format!("{ms}ms"),
        _ if ms % 1000 != 0 => format!("{}s", d.as_secs_f64()),
        s if s > 0 && s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s > 0 && s % 3600 == 0 => format!("{}h", s / 3600),
        s if s > 0 && s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

pub fn show_bytes(n: u64) -> String {
    for (unit, name) in [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if n >= unit && n.is_multiple_of(unit) {
            return format!("{} {name}", n / unit);
        }
    }
    format!("{n} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        let ms = |text| duration(text).map(|d| d.as_millis());
        assert_eq!(ms("0s"), Some(0));
        assert_eq!(ms("4.5s"), Some(4500));
        assert_eq!(ms("100ms"), Some(100));
        assert_eq!(ms("2m"), Some(120_000));
        assert_eq!(ms("24h"), Some(86_400_000));
        assert_eq!(ms("30d"), Some(30 * 86_400_000));
        for bad in ["", "soon", "5", "-5s", "5 parsecs", "1mo"] {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_as_written() {
        assert_eq!(bytes("1 MiB"), Some(1 << 20));
        assert_eq!(bytes("64MiB"), Some(64 << 20));
        assert_eq!(bytes("2 GiB"), Some(2 << 30));
        assert_eq!(bytes("1000"), Some(1000));
        assert_eq!(bytes("many"), None);
        assert_eq!(bytes("-1"), None);
    }

    #[test]
    fn rates_are_read_as_written() {
        let secs = |text| rate(text).map(|r| (r.count, r.per.as_secs()));
        assert_eq!(secs("10/s"), Some((10, 1)));
        assert_eq!(secs("5/m"), Some((5, 60)));
        assert_eq!(secs("100/h"), Some((100, 3600)));
        assert_eq!(secs("0/s"), None);
        assert_eq!(secs("10"), None);
        assert_eq!(secs("10/d"), None);
    }

    #[test]
    fn units_are_shown_as_people_write_them() {
        let shown = |ms| show_duration(Duration::from_millis(ms));
        assert_eq!(
            [shown(0), shown(100), shown(4500), shown(60_000), shown(86_400_000)],
            ["0s", "100ms", "4.5s", "1m", "1d"]
        );
        assert_eq!([show_bytes(1 << 20), show_bytes(1001)], ["1 MiB", "1001 bytes"]);
    }
}
