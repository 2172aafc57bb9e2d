//! Text for people: escaped, fitted to the terminal.

use std::borrow::Cow;

/// Control characters, and those that reorder or hide text, as visible escapes.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
            | '\u{061c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A table no wider than `width`: the widest column gives way.
pub fn table(head: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let cells = |row: &[String]| -> Vec<String> {
        row.iter().map(|cell| escape(cell).into_owned()).collect()
    };
    let mut lines: Vec<Vec<String>> = vec![head.iter().map(|&h| h.to_owned()).collect()];
    lines.extend(rows.iter().map(|row| cells(row)));
    let column = |i: usize| lines.iter().filter_map(|l| l.get(i)).map(|c| c.chars().count()).max();
    let mut widths: Vec<usize> = (0..head.len()).map(|i| column(i).unwrap_or(0)).collect();
    let gaps = 2 * head.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        match widths.iter_mut().max() {
            Some(widest) if *widest > 4 => *widest -= 1,
            _ => break,
        }
    }
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, &w)| format!("{:w$}", cut(cell, w)));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.chars().count() <= width {
        return Cow::Borrowed(text);
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    Cow::Owned(kept + "…")
}

/// Columns of the terminal, else of `$COLUMNS`, else 100.
pub fn width() -> usize {
    let from_env = || std::env::var("COLUMNS").ok()?.parse::<usize>().ok();
    from_env().filter(|&n| n >= 20).unwrap_or(100)
}

pub fn bytes(n: u64) -> String {
    bytesize::ByteSize::b(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_steer_a_terminal_or_reorder_text_is_shown_as_an_escape() {
        assert_eq!(escape("a\x1b[31m\u{202e}b\n\u{9b}"), "a\\u{1b}[31m\\u{202e}b\\n\\u{9b}");
        assert!(matches!(escape("Grüße, 你好"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_table_fits_the_width_and_the_widest_column_gives_way() {
        let rows = vec![vec!["1".into(), "x".repeat(80)], vec!["22".into(), "short".into()]];
        let text = table(&["SEQ", "ID"], &rows, 40);
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert!(text.contains("xxx…") && text.contains("22   short"), "{text}");
    }
}
