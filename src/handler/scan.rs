//! Finds at start what the template engine would only find while it renders: unknown filters and
//! tests, and the names that `secret()` and `env()` ask for.

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind};

/// Pieces of code within a template, each with its offset.
type Code<'a> = Vec<(usize, &'a str)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Name,
    Text,
    Mark,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    at: usize,
    kind: Kind,
    text: &'a str,
}

/// What is wrong, at an offset of the source.
#[derive(Debug)]
pub struct Fault {
    at: usize,
    what: String,
}

impl Fault {
    #[must_use]
    pub fn within(&self, field: &str, source: &str) -> String {
        format!("{field}: {}: {}", position(source, self.at), self.what)
    }
}

/// `line 1, column 7`.
#[must_use]
pub fn position(source: &str, offset: usize) -> String {
    let before = source.get(..offset).unwrap_or(source);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}")
}

/// The insides of `{{ … }}` and `{% … %}`.
#[must_use]
pub fn template_code(source: &str) -> Code<'_> {
    let mut code = Vec::new();
    let mut at = 0;
    while let Some(open) = source[at..].find('{').map(|i| at + i) {
        let (close, is_code) = match source.as_bytes().get(open + 1) {
            Some(b'{') => ("}}", true),
            Some(b'%') => ("%}", true),
            Some(b'#') => ("#}", false),
            _ => {
                at = open + 1;
                continue;
            }
        };
        let start = open + 2;
        let end = end_of(source, start, close, is_code);
        let inside = &source[start..end];
        if is_code {
            code.push((start, inside));
        }
        at = (end + close.len()).min(source.len());
        if is_code && inside.trim_matches(['-', '+', ' ', '\t', '\n', '\r']) == "raw" {
            at = source[at..].find("endraw").map_or(source.len(), |i| at + i);
            at = source[at..].find("%}").map_or(source.len(), |i| at + i + 2);
        }
    }
    code
}

/// Whether the whole text is the inside of one `{{ }}`. The engine panics on an expression that
/// closes a block it is not in, so this is asked first.
#[must_use]
pub fn is_one_expression(text: &str) -> bool {
    end_of(text, 0, "}}", true) == text.len()
}

/// Where `close` stands, not counting strings of code and what is within brackets.
fn end_of(source: &str, start: usize, close: &str, is_code: bool) -> usize {
    let mut at = start;
    let mut depth = 0;
    while let Some(first) = source[at..].chars().next() {
        let rest = &source[at..];
        if depth == 0 && rest.starts_with(close) {
            return at;
        }
        at += match first {
            '\'' | '"' if is_code => string_length(rest),
            _ => first.len_utf8(),
        };
        match first {
            '(' | '[' | '{' if is_code => depth += 1,
            ')' | ']' | '}' if is_code => depth -= 1,
            _ => {}
        }
    }
    source.len()
}

/// The length of the string literal that `text` begins with, quotes included.
fn string_length(text: &str) -> usize {
    let mut chars = text.char_indices();
    let Some((_, quote)) = chars.next() else { return 0 };
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    text.len()
}

fn tokens<'a>(code: &[(usize, &'a str)]) -> Vec<Token<'a>> {
    let mut out = Vec::new();
    for (offset, text) in code {
        let mut at = 0;
        while let Some(first) = text[at..].chars().next() {
            let rest = &text[at..];
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let (kind, length) = if first == '\'' || first == '"' {
                (Kind::Text, string_length(rest))
            } else if is_name(first) {
                (Kind::Name, rest.find(|c| !is_name(c)).unwrap_or(rest.len()))
            } else {
                (Kind::Mark, first.len_utf8())
            };
            if !first.is_whitespace() {
                out.push(Token { at: offset + at, kind, text: &rest[..length] });
            }
            at += length;
        }
        // Keeps the last token of one piece from being read together with the first of the next.
        out.push(Token { at: offset + text.len(), kind: Kind::Mark, text: ";" });
    }
    out
}

/// Calls of `function` with what stands in the parentheses, where that is one string.
fn calls<'a>(tokens: &[Token<'a>], function: &str) -> Vec<(usize, Option<&'a str>)> {
    let mut found = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let is_field = i > 0 && tokens[i - 1].text == ".";
        if token.kind != Kind::Name || token.text != function || is_field {
            continue;
        }
        let argument = match tokens.get(i + 1..i + 4) {
            Some([open, name, close])
                if open.text == "(" && close.text == ")" && name.kind == Kind::Text =>
            {
                name.text.get(1..name.text.len() - 1)
            }
            _ => None,
        };
        found.push((token.at, argument));
    }
    found
}

/// Whether the code calls `secret()` or `env()`.
#[must_use]
pub fn calls_private(code: &[(usize, &str)]) -> bool {
    let tokens = tokens(code);
    ["secret", "env"].iter().any(|function| !calls(&tokens, function).is_empty())
}

/// The variables that the code reads with `env('NAME')`.
#[must_use]
pub fn variables<'a>(code: &[(usize, &'a str)]) -> Vec<&'a str> {
    calls(&tokens(code), "env").into_iter().filter_map(|(_, name)| name).collect()
}

/// # Errors
/// The first unknown filter, test, secret or variable.
pub fn check(environment: &Environment<'_>, code: &[(usize, &str)]) -> Result<(), Fault> {
    let tokens = tokens(code);
    for (i, token) in tokens.iter().enumerate() {
        let name_at = |i: usize| tokens.get(i).filter(|t| t.kind == Kind::Name);
        if token.kind == Kind::Mark && token.text == "|" {
            let Some(name) = name_at(i + 1) else { continue };
            if is_unknown(environment.empty_state().apply_filter(name.text, &[Value::from("")])) {
                return Err(Fault { at: name.at, what: format!("unknown filter {:?}", name.text) });
            }
        }
        if token.kind == Kind::Name && token.text == "is" {
            let after = name_at(i + 1);
            let name = if after.is_some_and(|t| t.text == "not") { name_at(i + 2) } else { after };
            let Some(name) = name else { continue };
            if is_unknown(environment.empty_state().perform_test(name.text, &[Value::from("")])) {
                return Err(Fault { at: name.at, what: format!("unknown test {:?}", name.text) });
            }
        }
    }
    for function in ["secret", "env"] {
        for (at, name) in calls(&tokens, function) {
            let Some(name) = name else {
                let what = format!("{function}() takes one name, written out: {function}('name')");
                return Err(Fault { at, what });
            };
            let call = format!("{function}({name:?})");
            let known = environment.compile_expression(&call).and_then(|e| e.eval(()));
            if known.is_err() {
                let what = match function {
                    "secret" => format!("unknown secret {name:?}; add it to [secrets]"),
                    _ => format!("environment variable {name:?} is not set"),
                };
                return Err(Fault { at, what });
            }
        }
    }
    Ok(())
}

fn is_unknown<T>(result: Result<T, minijinja::Error>) -> bool {
    result.is_err_and(|e| matches!(e.kind(), ErrorKind::UnknownFilter | ErrorKind::UnknownTest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_between_text_strings_and_comments() {
        let code = template_code("a {{ '}}' }} {# {{ no }} #} {% if x %}{ {{y}}");
        let texts: Vec<&str> = code.iter().map(|(_, t)| t.trim()).collect();
        assert_eq!(texts, ["'}}'", "if x", "y"]);
    }

    #[test]
    fn raw_blocks_hold_no_code() {
        let code = template_code("{%- raw -%}{{ secret('x') }}{% endraw %}{{ y }}");
        assert!(!calls_private(&code));
        assert_eq!(code.last().map(|(_, t)| t.trim()), Some("y"));
    }

    #[test]
    fn braces_of_a_map_do_not_end_the_code() {
        let code = template_code("{{ {'a': {'b': 1}} }}{{ y }}");
        let texts: Vec<&str> = code.iter().map(|(_, t)| t.trim()).collect();
        assert_eq!(texts, ["{'a': {'b': 1}}", "y"]);
        assert!(is_one_expression("{'a': {'b': '}}'}}") && !is_one_expression(" a }} {{ b "));
    }

    #[test]
    fn an_unfinished_template_ends_the_scan() {
        for source in ["{{", "{{ 'a", "{% raw %}", "{# x", "{", "ä{{ \"\\", "{{ secret("] {
            let _ = tokens(&template_code(source));
        }
    }

    #[test]
    fn variables_are_those_called_by_literal_name() {
        let code = template_code("{{ env('A') }}{{ data.env('B') }}{{ env(\"C\") }}");
        assert_eq!(variables(&code), ["A", "C"]);
    }
}
