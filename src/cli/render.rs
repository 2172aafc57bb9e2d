//! Text for people: escaped, fitted to the terminal, coloured there.

use std::borrow::Cow;
use std::io::IsTerminal as _;

use super::args::Common;

/// Control characters, and those that reorder or hide text, as visible escapes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// How standard output wants its text.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub width: usize,
    pub colour: bool,
}

impl Style {
    pub fn of(common: &Common) -> Style {
        let terminal = std::io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Style { width: width(), colour: terminal && !common.no_color && !refused }
    }

    /// `text`, which is escaped already, in the colour of a state.
    pub fn paint(self, state: &str, text: &str) -> String {
        let code = match state {
            "delivered" | "ok" | "active" => "32",
            "scheduled" | "running" | "retry" | "uncounted" | "rebuilding" | "paused"
            | "failing" => "33",
            "dead" | "reject" | "full" | "failed" => "31",
            "discarded" | "parked" => "2",
            _ => return text.to_owned(),
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// One field of a table; one with a state has its colour.
pub struct Cell {
    text: String,
    state: Option<String>,
}

impl Cell {
    pub fn in_state(text: impl AsRef<str>, state: &str) -> Cell {
        Cell { text: escape(text.as_ref()), state: Some(state.to_owned()) }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell { text: escape(text.as_ref()), state: None }
    }
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
            | '\u{061c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A table no wider than the terminal: the widest column gives way.
pub fn table(head: &[&str], rows: Vec<Vec<Cell>>, style: Style) -> String {
    let mut lines: Vec<Vec<Cell>> = vec![head.iter().map(Cell::from).collect()];
    lines.extend(rows);
    let column = |i: usize| lines.iter().filter_map(|l| l.get(i)).map(|c| columns(&c.text)).max();
    let mut widths: Vec<usize> = (0..head.len()).map(|i| column(i).unwrap_or(0)).collect();
    let gaps = 2 * head.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > style.width {
        match widths.iter_mut().max() {
            Some(widest) if *widest > 4 => *widest -= 1,
            _ => break,
        }
    }
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        // Colours and padding come after the cut, spaces only before another field.
        let mut padding = 0;
        for (cell, &width) in line.iter().zip(&widths) {
            let shown = cut(&cell.text, width);
            if !shown.is_empty() {
                text.extend(std::iter::repeat_n(' ', padding));
                padding = 0;
            }
            padding += width.saturating_sub(columns(&shown)) + 2;
            match &cell.state {
                Some(state) => text.push_str(&style.paint(state, &shown)),
                None => text.push_str(&shown),
            }
        }
        out.push_str(&text);
        out.push('\n');
    }
    out
}

fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if columns(text) <= width {
        return Cow::Borrowed(text);
    }
    let mut left = width.saturating_sub(1);
    let fits = |c: &char| {
        let fits = columns_of(*c) <= left;
        left = left.saturating_sub(columns_of(*c));
        fits
    };
    let kept: String = text.chars().take_while(fits).collect();
    Cow::Owned(kept + "…")
}

fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// East Asian wide characters and emoji take two columns, combining marks none.
fn columns_of(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' | '\u{fe00}'..='\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// Columns of the terminal, else of `$COLUMNS`, else 100.
fn width() -> usize {
    let of_terminal =
        || Some(usize::from(rustix::termios::tcgetwinsize(std::io::stdout()).ok()?.ws_col));
    let of_env = || std::env::var("COLUMNS").ok()?.parse::<usize>().ok();
    let usable = |n: &usize| *n >= 20;
    of_terminal().filter(usable).or_else(|| of_env().filter(usable)).unwrap_or(100)
}

pub fn bytes(n: u64) -> String {
    bytesize::ByteSize::b(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { width: 40, colour: false };

    #[test]
    fn what_could_steer_a_terminal_or_reorder_text_is_shown_as_an_escape() {
        assert_eq!(escape("a\x1b[31m\u{202e}b\n\u{9b}"), "a\\u{1b}[31m\\u{202e}b\\n\\u{9b}");
        assert_eq!(escape("Grüße, 你好"), "Grüße, 你好");
    }

    #[test]
    fn a_table_fits_the_width_and_the_widest_column_gives_way() {
        let rows = vec![
            vec![Cell::from("1"), Cell::from("x".repeat(80))],
            vec!["22".into(), "short".into()],
            vec!["3".into(), "你好".repeat(30).into()],
        ];
        let text = table(&["SEQ", "ID"], rows, PLAIN);
        assert!(text.lines().all(|line| columns(line) <= 40), "{text}");
        assert!(text.contains("xxx…") && text.contains("22   short"), "{text}");
    }

    #[test]
    fn colour_takes_no_columns_and_only_where_it_is_wanted() {
        let rows = |state: &str| vec![vec![Cell::in_state("crm", state), "b".into()]];
        let coloured = table(&["H", "X"], rows("dead"), Style { colour: true, ..PLAIN });
        assert_eq!(coloured, "H    X\n\x1b[31mcrm\x1b[0m  b\n");
        assert_eq!(table(&["H", "X"], rows("dead"), PLAIN), "H    X\ncrm  b\n");
    }
}
