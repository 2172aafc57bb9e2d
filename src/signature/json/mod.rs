//! JSON exactly as a JavaScript engine reads and writes it: `JSON.stringify(JSON.parse(body))`.
//!
//! The vendor's own sample signs that form, so it has to be the same to the byte. That rules out a
//! general JSON crate: property order, number notation and lone surrogates all differ.
//!
//! Nesting is bounded to [`DEPTH_MAX`] at the door, by an iterative parser. What recurses over a
//! [`Value`] afterwards (dropping, cloning, comparing, [`Value::to_serde`]) is bounded by it.

mod parse;
mod write;

use std::borrow::Cow;

pub use parse::parse;

/// Arrays and objects inside each other; more is refused.
pub const DEPTH_MAX: usize = 256;

/// 2^53 - 1: up to here every integer has a double of its own.
const SAFE_INTEGER_MAX: f64 = 9_007_199_254_740_991.0;

/// A parsed JSON value. Objects keep JavaScript's property order: integer-like keys first,
/// ascending, then the others as they first appeared. No key appears twice: the last value counts.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// Infinite where the text names a number too large for a double.
    Number(f64),
    String(JsString),
    Array(Vec<Value>),
    Object(Vec<(JsString, Value)>),
}

/// A JavaScript string: UTF-16 semantics, so lone surrogates are possible.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JsString(Text);

/// Each string has one representation only, so that the derived comparison is the right one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Text {
    WellFormed(Box<str>),
    /// UTF-16 with at least one lone surrogate.
    IllFormed(Box<[u16]>),
}

impl JsString {
    /// Lone surrogates become U+FFFD.
    #[must_use]
    pub fn to_str(&self) -> Cow<'_, str> {
        match &self.0 {
            Text::WellFormed(text) => Cow::Borrowed(text),
            Text::IllFormed(units) => Cow::Owned(String::from_utf16_lossy(units)),
        }
    }

    /// The number that JavaScript sorts this key by: a canonical decimal from 0 to 2^32 - 2.
    fn array_index(&self) -> Option<u32> {
        let Text::WellFormed(text) = &self.0 else { return None };
        let canonical = matches!(text.as_bytes(), [b'0'] | [b'1'..=b'9', ..])
            && text.bytes().all(|b| b.is_ascii_digit());
        if !canonical {
            return None;
        }
        text.parse().ok().filter(|&index| index != u32::MAX)
    }
}

impl From<&str> for JsString {
    fn from(text: &str) -> JsString {
        JsString(Text::WellFormed(text.into()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// In bytes of the input, an invalid UTF-8 sequence counted as the three bytes of U+FFFD.
    pub offset: usize,
    pub what: &'static str,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}", self.what, self.offset)
    }
}

impl std::error::Error for ParseError {}

/// `JSON.stringify(JSON.parse(bytes))` as UTF-8.
///
/// # Errors
/// As [`parse()`].
pub fn canonical(bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
    Ok(write::stringify(&parse(bytes)?))
}

impl Value {
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self, Value::Object(_))
    }

    /// The value under `name`, if this is an object that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        let Value::Object(entries) = self else { return None };
        entries
            .iter()
            .find(|(key, _)| matches!(&key.0, Text::WellFormed(text) if **text == *name))
            .map(|(_, value)| value)
    }

    /// Strings as they are (lone surrogates as U+FFFD), numbers as JavaScript prints them; nothing
    /// else.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        match self {
            Value::String(text) => Some(text.to_str().into_owned()),
            Value::Number(number) => Some(ryu_js::Buffer::new().format(*number).to_owned()),
            _ => None,
        }
    }

    /// As [`Value::to_text`], where no two values that differ in the text give the same: not for numbers
    /// that a double cannot hold exactly, nor for strings that are not well-formed.
    #[must_use]
    pub fn to_exact_text(&self) -> Option<String> {
        match self {
            Value::String(JsString(Text::IllFormed(_))) => None,
            Value::Number(n) if n.fract() != 0.0 || n.abs() > SAFE_INTEGER_MAX => None,
            other => other.to_text(),
        }
    }

    /// For templates and `--json`: lone surrogates become U+FFFD, integers that a double holds
    /// exactly become integers (so that a template prints `5`, not `5.0`), infinities null.
    #[must_use]
    pub fn to_serde(&self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Bool(bool) => (*bool).into(),
            Value::Number(number) => serde_number(*number),
            Value::String(text) => text.to_str().into(),
            Value::Array(items) => items.iter().map(Value::to_serde).collect(),
            Value::Object(entries) => entries
                .iter()
                .map(|(key, value)| (key.to_str().into_owned(), value.to_serde()))
                .collect(),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a whole number within 2^53 fits an i64")]
fn serde_number(number: f64) -> serde_json::Value {
    if number.fract() == 0.0 && number.abs() <= SAFE_INTEGER_MAX {
        (number as i64).into()
    } else {
        number.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn js(body: &[u8]) -> String {
        String::from_utf8(canonical(body).unwrap()).unwrap()
    }

    fn refused(body: &[u8]) -> ParseError {
        match canonical(body) {
            Err(error) => error,
            Ok(text) => panic!("accepted {body:?} as {:?}", String::from_utf8_lossy(&text)),
        }
    }

    #[test]
    fn whitespace_between_tokens_disappears() {
        assert_eq!(
            js(b" \t\r\n{ \"a\" : [ 1 , true , null ] , \"b\" : { } }\n"),
            r#"{"a":[1,true,null],"b":{}}"#
        );
        for space in ["\u{a0}", "\u{feff}", "\u{2028}", "\u{b}", "\u{c}"] {
            refused(format!("{space}1").as_bytes());
            refused(format!("1{space}").as_bytes());
        }
    }

    #[test]
    fn integer_like_keys_come_first_and_ascend() {
        assert_eq!(
            js(br#"{"b":1,"10":2,"2":3,"a":4,"0":5,"01":6,"-1":7,"1.5":8,"":9}"#),
            r#"{"0":5,"2":3,"10":2,"b":1,"a":4,"01":6,"-1":7,"1.5":8,"":9}"#
        );
    }

    #[test]
    fn integer_like_ends_at_two_to_the_32_minus_2() {
        assert_eq!(
            js(br#"{"4294967296":1,"4294967295":2,"4294967294":3,"99999999999999999999":4,"7":5}"#),
            r#"{"7":5,"4294967294":3,"4294967296":1,"4294967295":2,"99999999999999999999":4}"#
        );
    }

    #[test]
    fn the_last_of_duplicate_keys_counts_at_the_first_position() {
        assert_eq!(js(br#"{"a":1,"b":2,"a":{"c":3},"\u0061":4}"#), r#"{"a":4,"b":2}"#);
        let value = parse(br#"{"a":1,"b":2,"a":3}"#).unwrap();
        assert_eq!(value.get("a"), Some(&Value::Number(3.0)));
        assert_eq!(value.get("c"), None);
    }

    #[test]
    fn proto_is_an_ordinary_key() {
        assert_eq!(
            js(br#"{"__proto__":{"x":1},"constructor":2,"toJSON":3}"#),
            r#"{"__proto__":{"x":1},"constructor":2,"toJSON":3}"#
        );
    }

    #[test]
    fn numbers_are_doubles_in_ecmascript_notation() {
        for (text, expected) in [
            ("-0", "0"),
            ("1.0", "1"),
            ("1e400", "null"),
            ("-1e400", "null"),
            ("1e-400", "0"),
            ("1E21", "1e+21"),
            ("1e20", "100000000000000000000"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1e-7"),
            ("9007199254740993", "9007199254740992"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("0e99999999999999999999", "0"),
            ("1e99999999999999999999", "null"),
            ("12345678901234567890123", "1.2345678901234568e+22"),
        ] {
            assert_eq!(js(text.as_bytes()), expected, "{text}");
        }
        for text in [
            "01", "-", "+1", "1.", ".5", "1e", "1e+", "-01", "0x1", "NaN", "Infinity", "--1", "1_0",
        ] {
            refused(text.as_bytes());
        }
    }

    #[test]
    fn an_exponent_may_undo_a_hundred_thousand_zeros() {
        let small = format!("0.{}25e100001", "0".repeat(100_000));
        assert_eq!(js(small.as_bytes()), "2.5");
        let large = format!("25{}e-100000", "0".repeat(100_000));
        assert_eq!(js(large.as_bytes()), "25");
    }

    #[test]
    fn strings_are_escaped_only_where_they_must_be() {
        assert_eq!(
            js(r#""\u0000\b\t\n\u000b\f\r\u001F\u007f\"\\\/\u2028\u2029\u00e9""#.as_bytes()),
            "\"\\u0000\\b\\t\\n\\u000b\\f\\r\\u001f\u{7f}\\\"\\\\/\u{2028}\u{2029}é\""
        );
        for text in [
            "\"\n\"",
            "\"\0\"",
            "\"\x1f\"",
            r#""\x""#,
            r#""\u12""#,
            r#""\u12g4""#,
            r#""\u+123""#,
            r#"""#,
            r#""\"#,
            r#""\""#,
            "'a'",
        ] {
            refused(text.as_bytes());
        }
    }

    #[test]
    fn surrogates_pair_up_or_stay_escaped() {
        assert_eq!(js(br#""\uD83D\uDE00""#), "\"😀\"");
        assert_eq!(js(br#""\uD83D""#), r#""\ud83d""#);
        assert_eq!(js(br#""x\uDE00\uD83Dy""#), r#""x\ude00\ud83dy""#);
        assert_eq!(js(br#""\uD83D\uD83D\uDE00\n""#), "\"\\ud83d😀\\n\"");
        assert_eq!(js(br#""\uD83D\u0041""#), r#""\ud83dA""#);
        assert_eq!(
            js("{\"\\ud800\":1,\"😀\":2,\"\\uD800\":3}".as_bytes()),
            "{\"\\ud800\":3,\"😀\":2}"
        );
    }

    #[test]
    fn invalid_utf8_is_read_as_replacement_characters() {
        assert_eq!(js(b"\"\xff\""), "\"\u{fffd}\"");
        assert_eq!(js(b"\"\xe2\x82\""), "\"\u{fffd}\"");
        assert_eq!(js(b"\"\xed\xa0\x80\""), "\"\u{fffd}\u{fffd}\u{fffd}\"");
        assert_eq!(js(b"\"\xf0\x9f\x98x\""), "\"\u{fffd}x\"");
        assert_eq!(refused(b"\xef\xbb\xbf{}").offset, 0);
    }

    #[test]
    fn what_is_no_json_is_refused_where_it_goes_wrong() {
        for (body, offset) in [
            ("", 0),
            ("{", 1),
            ("[", 1),
            ("[1", 2),
            ("[1,]", 3),
            ("[,1]", 1),
            ("{\"a\"}", 4),
            ("{\"a\":}", 5),
            ("{\"a\":1,}", 7),
            ("{a:1}", 1),
            ("[1}", 2),
            ("{\"a\":1]", 6),
            ("nul", 0),
            ("true1", 4),
            ("1 2", 2),
            ("]", 0),
        ] {
            assert_eq!(refused(body.as_bytes()).offset, offset, "{body}");
        }
    }

    #[test]
    fn nesting_ends_at_256() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(js(nested(256).as_bytes()), nested(256));
        assert_eq!(refused(nested(257).as_bytes()).offset, 256);
        let objects = format!("{}1{}", "{\"a\":".repeat(256), "}".repeat(256));
        assert_eq!(js(objects.as_bytes()), objects);
        refused("[".repeat(1_000_000).as_bytes());
        let siblings = format!("[{}[]]", "[],".repeat(1000));
        assert_eq!(js(siblings.as_bytes()), siblings);
    }

    #[test]
    fn many_keys_take_no_quadratic_time() {
        let keys = |key: &dyn Fn(usize) -> String| {
            let entries: Vec<String> =
                (0..100_000).map(|i| format!("\"{}\":{i}", key(i))).collect();
            format!("{{{}}}", entries.join(","))
        };
        let started = std::time::Instant::now();
        assert_eq!(js(keys(&|_| "same".into()).as_bytes()), r#"{"same":99999}"#);
        let descending = js(keys(&|i| (100_000 - i).to_string()).as_bytes());
        assert!(descending.starts_with(r#"{"1":99999,"2":99998,"#));
        let distinct = keys(&|i| format!("k{i}"));
        assert_eq!(js(distinct.as_bytes()), distinct);
        // Far under a second; comparing every key with every other takes minutes in this build.
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn text_is_given_for_strings_and_numbers_only() {
        let text = |body: &str| parse(body.as_bytes()).unwrap().to_text();
        assert_eq!(text(r#""hi\uD800""#).as_deref(), Some("hi\u{fffd}"));
        assert_eq!(text("12.50").as_deref(), Some("12.5"));
        assert_eq!(text("1e21").as_deref(), Some("1e+21"));
        for body in ["true", "null", "[]", "{}"] {
            assert_eq!(text(body), None);
        }
    }

    #[test]
    fn whole_numbers_reach_templates_as_integers() {
        let value =
            parse(br#"{"b":5.0,"1":-0,"c":[1.5,1e400,9007199254740993,"\udc00",false,null]}"#);
        assert_eq!(
            value.unwrap().to_serde().to_string(),
            "{\"1\":0,\"b\":5,\"c\":[1.5,null,9007199254740992.0,\"\u{fffd}\",false,null]}"
        );
    }
}
