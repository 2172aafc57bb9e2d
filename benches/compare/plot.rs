//! A picture for README: acknowledgements a second at 64 connections, on a logarithmic scale.

use std::fmt::Write as _;

use crate::contestants::Contestant;
use crate::rounds::{Cell, Sample, median_of};

const WIDTH: f64 = 760.0;
const ROW: f64 = 30.0;
const LEFT: f64 = 260.0;
const LOW: f64 = 10.0;

pub fn bars(samples: &[Sample]) -> String {
    let cell = Cell::closed(64, 700);
    let rows: Vec<(Contestant, f64, f64)> = Contestant::ALL
        .into_iter()
        .map(|who| {
            let rate = median_of(samples, who, cell, |s| s.outcome.per_second());
            (who, rate, median_of(samples, who, cell, |s| s.outcome.percentile(0.99)))
        })
        .filter(|(_, rate, _)| rate.is_finite())
        .collect();
    let high = rows.iter().map(|(_, rate, _)| *rate).fold(LOW * 10.0, f64::max);
    let x = |rate: f64| (rate.max(LOW) / LOW).ln() / (high / LOW).ln() * (WIDTH - LEFT - 170.0);
    let height = ROW * (rows.len() as f64 + 1.5);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <title>Acknowledged events a second, 64 connections, 700 bytes, logarithmic scale</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (n, (who, rate, p99)) in rows.iter().enumerate() {
        let y = ROW * (n as f64 + 0.5);
        let fill = match who {
            Contestant::Bluehook | Contestant::Bluehook1 | Contestant::Bluehook3 => "#2f6fde",
            Contestant::CeilingA | Contestant::CeilingB => "#b8bec8",
            _ => "#d08a3c",
        };
        let (text, bar) = (y + 15.0, x(*rate));
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\" fill=\"#222\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{bar:.1}\" height=\"20\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"{text}\" fill=\"#222\">{rate:.0}/s, p99 {p99:.1} ms</text>",
            LEFT - 8.0,
            who.name(),
            LEFT + bar + 6.0,
        )
        .unwrap();
    }
    let y = ROW * (rows.len() as f64 + 1.0);
    writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{y}\" fill=\"#555\">acknowledged events a second, 64 connections, 700 bytes; logarithmic</text>\n</svg>"
    )
    .unwrap();
    svg
}
