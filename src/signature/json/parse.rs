//! `JSON.parse`. Iterative: containers that are still open wait on a stack of our own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;

use super::{DEPTH_MAX, JsString, ParseError, Text, Value};

/// `JSON.parse` of the bytes read as UTF-8 (invalid sequences as U+FFFD).
///
/// # Errors
/// What `JSON.parse` refuses (a byte order mark too), and nesting deeper than [`DEPTH_MAX`].
pub fn parse(bytes: &[u8]) -> Result<Value, ParseError> {
    match str::from_utf8(bytes) {
        Ok(text) => Parser { text, at: 0 }.document(),
        Err(_) => Parser { text: &String::from_utf8_lossy(bytes), at: 0 }.document(),
    }
}

/// A container whose end has not been read yet.
enum Open {
    Array(Vec<Value>),
    /// `key` waits for its value.
    Object {
        entries: Vec<(JsString, Value)>,
        key: JsString,
    },
}

struct Parser<'a> {
    text: &'a str,
    /// Always on a character boundary.
    at: usize,
}

impl<'a> Parser<'a> {
    fn document(mut self) -> Result<Value, ParseError> {
        let mut open = Vec::new();
        loop {
            if let Some(value) = self.start_value(&mut open)?
                && let Some(document) = self.end_value(value, &mut open)?
            {
                return Ok(document);
            }
        }
    }

    /// Reads a whole scalar or empty container, or opens a container and gives `None`.
    fn start_value(&mut self, open: &mut Vec<Open>) -> Result<Option<Value>, ParseError> {
        self.skip_whitespace();
        let value = match self.peek() {
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            Some(b't') => self.literal("true", Value::Bool(true))?,
            Some(b'f') => self.literal("false", Value::Bool(false))?,
            Some(b'n') => self.literal("null", Value::Null)?,
            Some(b'[' | b'{') if open.len() == DEPTH_MAX => {
                return Err(self.error("nested deeper than 256"));
            }
            Some(b'[') => {
                self.at += 1;
                self.skip_whitespace();
                if !self.eat(b']') {
                    open.push(Open::Array(Vec::new()));
                    return Ok(None);
                }
                Value::Array(Vec::new())
            }
            Some(b'{') => {
                self.at += 1;
                self.skip_whitespace();
                if !self.eat(b'}') {
                    open.push(Open::Object { entries: Vec::new(), key: self.key()? });
                    return Ok(None);
                }
                Value::Object(Vec::new())
            }
            _ => return Err(self.error("no value")),
        };
        Ok(Some(value))
    }

    /// Puts a finished value where it belongs and closes what ends with it. Gives the document when
    /// that is what ended.
    fn end_value(
        &mut self,
        mut value: Value,
        open: &mut Vec<Open>,
    ) -> Result<Option<Value>, ParseError> {
        loop {
            self.skip_whitespace();
            value = match open.pop() {
                None if self.at == self.text.len() => return Ok(Some(value)),
                None => return Err(self.error("something after the value")),
                Some(Open::Array(mut items)) => {
                    items.push(value);
                    if self.eat(b',') {
                        open.push(Open::Array(items));
                        return Ok(None);
                    }
                    if !self.eat(b']') {
                        return Err(self.error("no ',' or ']' after an array element"));
                    }
                    Value::Array(without_much_room(items))
                }
                Some(Open::Object { mut entries, key }) => {
                    entries.push((key, value));
                    if self.eat(b',') {
                        self.skip_whitespace();
                        open.push(Open::Object { entries, key: self.key()? });
                        return Ok(None);
                    }
                    if !self.eat(b'}') {
                        return Err(self.error("no ',' or '}' after a property"));
                    }
                    Value::Object(in_property_order(entries))
                }
            };
        }
    }

    /// `"name" :`
    fn key(&mut self) -> Result<JsString, ParseError> {
        if self.peek() != Some(b'"') {
            return Err(self.error("no property name"));
        }
        let key = self.string()?;
        self.skip_whitespace();
        if self.eat(b':') { Ok(key) } else { Err(self.error("no ':' after a property name")) }
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, ParseError> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.error("no value"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn number(&mut self) -> Result<f64, ParseError> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        to_double(&self.text[start..self.at]).ok_or_else(|| self.error("no number"))
    }

    fn digits(&mut self) -> Result<(), ParseError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.error("no digit")) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<JsString, ParseError> {
        self.at += 1;
        let first = self.plain_run();
        if self.eat(b'"') {
            return Ok(JsString::from(first));
        }
        let mut built = Builder { text: first.to_owned(), units: None };
        loop {
            if self.eat(b'"') {
                return Ok(built.finish());
            }
            if !self.eat(b'\\') {
                return Err(self.error("unfinished string or control character in it"));
            }
            self.escape(&mut built)?;
            built.push_str(self.plain_run());
        }
    }

    /// What needs no decoding, up to a quote, a backslash or a control character.
    fn plain_run(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let run = memchr::memchr2(b'"', b'\\', rest.as_bytes()).map_or(rest, |len| &rest[..len]);
        let is_control = |b: u8| b <= 0x1f;
        // All bytes at once is quicker than one after the other up to the first.
        let any_control = run.bytes().fold(false, |any, b| any | is_control(b));
        let end = if any_control { run.bytes().position(is_control) } else { None };
        let len = end.unwrap_or(run.len());
        self.at += len;
        &rest[..len]
    }

    fn escape(&mut self, built: &mut Builder) -> Result<(), ParseError> {
        let char = match self.peek() {
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(built),
            _ => return Err(self.error("unknown escape")),
        };
        self.at += 1;
        built.push(char);
        Ok(())
    }

    /// From the `u` on. A high surrogate takes the low one that follows with it.
    fn unicode_escape(&mut self, built: &mut Builder) -> Result<(), ParseError> {
        let Some(unit) = self.hex4(self.at + 1) else {
            return Err(self.error("no four hexadecimal digits after \\u"));
        };
        self.at += 5;
        if let Some(char) = char::from_u32(unit.into()) {
            built.push(char);
            return Ok(());
        }
        if self.text[self.at..].starts_with("\\u")
            && let Some(low) = self.hex4(self.at + 2)
            && let Some(Ok(char)) = char::decode_utf16([unit, low]).next()
        {
            self.at += 6;
            built.push(char);
        } else {
            built.push_lone_surrogate(unit);
        }
        Ok(())
    }

    fn hex4(&self, at: usize) -> Option<u16> {
        let digits = self.text.as_bytes().get(at..at + 4)?;
        digits.iter().try_fold(0, |unit, &digit| {
            let value = char::from(digit).to_digit(16)?;
            Some(unit << 4 | u16::try_from(value).ok()?)
        })
    }

    fn skip_whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn error(&self, what: &'static str) -> ParseError {
        ParseError { offset: self.at, what }
    }
}

/// A string that has escapes. UTF-8 until the first lone surrogate, UTF-16 from then on.
struct Builder {
    text: String,
    units: Option<Vec<u16>>,
}

impl Builder {
    fn push(&mut self, char: char) {
        self.push_str(char.encode_utf8(&mut [0; 4]));
    }

    fn push_str(&mut self, text: &str) {
        match &mut self.units {
            None => self.text.push_str(text),
            Some(units) => units.extend(text.encode_utf16()),
        }
    }

    fn push_lone_surrogate(&mut self, unit: u16) {
        self.units.get_or_insert_with(|| self.text.encode_utf16().collect()).push(unit);
    }

    fn finish(self) -> JsString {
        JsString(match self.units {
            None => Text::WellFormed(self.text.into()),
            Some(units) => Text::IllFormed(units.into()),
        })
    }
}

/// `token` follows JSON's grammar for numbers.
fn to_double(token: &str) -> Option<f64> {
    // The standard library stops counting an exponent at 65,536, which only shows when as many
    // digits undo it.
    if token.len() < 60_000 { token.parse().ok() } else { normalised(token)?.parse().ok() }
}

/// The same number as `0.<digits>e<exponent>` without leading zeros.
fn normalised(token: &str) -> Option<String> {
    let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0');
    let zeros = digits.len() - significant.len();
    // An exponent too long to count decides alone: no body is large enough to undo it.
    let exponent = exponent.parse().unwrap_or(if exponent.starts_with('-') {
        i64::MIN / 2
    } else {
        i64::MAX / 2
    });
    let point = i64::try_from(whole.len()).ok()? - i64::try_from(zeros).ok()?;
    Some(format!("{sign}0.{significant}0e{}", (exponent + point).clamp(-10_000, 10_000)))
}

/// What a JavaScript object makes of its properties in the order of the text: the last value of a
/// key at the key's first position, then integer-like keys to the front, ascending.
fn in_property_order(mut entries: Vec<(JsString, Value)>) -> Vec<(JsString, Value)> {
    if entries.len() > 1 {
        drop_duplicates(&mut entries);
        if entries.iter().any(|(key, _)| key.array_index().is_some()) {
            // Stable, so the other keys stay as they are.
            entries.sort_by_key(|(key, _)| key.array_index().unwrap_or(u32::MAX));
        }
    }
    without_much_room(entries)
}

/// Values may be many and small.
fn without_much_room<T>(mut items: Vec<T>) -> Vec<T> {
    if items.capacity() > items.len() * 2 {
        items.shrink_to_fit();
    }
    items
}

/// So few properties are quicker compared with each other than hashed.
const FEW: usize = 16;

fn drop_duplicates(entries: &mut Vec<(JsString, Value)>) {
    let is_again = |(at, (key, _)): (usize, &(JsString, Value))| {
        entries.iter().take(at).any(|(before, _)| before == key)
    };
    if entries.len() <= FEW && !entries.iter().enumerate().any(is_again) {
        return;
    }
    let mut first_at = HashMap::with_capacity(entries.len());
    let mut repeats = Vec::new();
    for (at, (key, _)) in entries.iter().enumerate() {
        match first_at.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(at);
            }
            Entry::Occupied(first) => repeats.push((at, *first.get())),
        }
    }
    for &(at, first) in &repeats {
        entries[first].1 = mem::replace(&mut entries[at].1, Value::Null);
    }
    let mut repeats = repeats.iter().map(|&(at, _)| at).peekable();
    let mut at = 0;
    entries.retain(|_| {
        let repeat = repeats.next_if_eq(&at).is_some();
        at += 1;
        !repeat
    });
}
