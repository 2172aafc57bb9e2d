//! JSON exactly as a JavaScript engine reads and writes it: `JSON.stringify(JSON.parse(body))`.

use std::borrow::Cow;

/// A parsed JSON value. Objects keep JavaScript's property order.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(f64),
    String(JsString),
    Array(Vec<Value>),
    Object(Vec<(JsString, Value)>),
}

/// A JavaScript string: UTF-16 semantics, so lone surrogates are possible. (Representation is free.)
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JsString(String);

impl JsString {
    /// Lone surrogates become U+FFFD.
    #[must_use]
    pub fn to_str(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// In bytes of the input.
    pub offset: usize,
    pub what: &'static str,
}

/// `JSON.parse` of the bytes read as UTF-8 (invalid sequences as U+FFFD).
///
/// # Errors
/// What `JSON.parse` refuses, and nesting deeper than 256.
pub fn parse(_bytes: &[u8]) -> Result<Value, ParseError> {
    todo!()
}

/// `JSON.stringify(JSON.parse(bytes))` as UTF-8.
///
/// # Errors
/// As [`parse`].
pub fn canonical(_bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
    todo!()
}

impl Value {
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self, Value::Object(_))
    }

    #[must_use]
    pub fn get(&self, _name: &str) -> Option<&Value> {
        todo!()
    }

    /// Strings as they are, numbers as JavaScript prints them; nothing else.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        todo!()
    }

    /// For templates and `--json`: lone surrogates become U+FFFD.
    #[must_use]
    pub fn to_serde(&self) -> serde_json::Value {
        todo!()
    }
}
