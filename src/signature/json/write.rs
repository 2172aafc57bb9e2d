//! `JSON.stringify`. Iterative, like the parser.

use std::slice;

use super::{JsString, Text, Value};

/// What is left of a container that has been opened.
enum Rest<'a> {
    Array(slice::Iter<'a, Value>),
    Object(slice::Iter<'a, (JsString, Value)>),
}

pub(super) fn stringify(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let mut open = Vec::new();
    let mut next = Some(document);
    while let Some(value) = next {
        match value {
            Value::Null => out.extend_from_slice(b"null"),
            Value::Bool(true) => out.extend_from_slice(b"true"),
            Value::Bool(false) => out.extend_from_slice(b"false"),
            Value::Number(number) if number.is_finite() => {
                out.extend_from_slice(ryu_js::Buffer::new().format_finite(*number).as_bytes());
            }
            Value::Number(_) => out.extend_from_slice(b"null"),
            Value::String(text) => write_string(text, &mut out),
            Value::Array(items) => {
                out.push(b'[');
                open.push(Rest::Array(items.iter()));
            }
            Value::Object(entries) => {
                out.push(b'{');
                open.push(Rest::Object(entries.iter()));
            }
        }
        next = next_value(&mut open, &mut out);
    }
    out
}

/// Writes what stands between two values, closing what ends there.
fn next_value<'a>(open: &mut Vec<Rest<'a>>, out: &mut Vec<u8>) -> Option<&'a Value> {
    loop {
        match open.last_mut()? {
            Rest::Array(items) => {
                if let Some(value) = items.next() {
                    separate(out);
                    return Some(value);
                }
                out.push(b']');
            }
            Rest::Object(entries) => {
                if let Some((key, value)) = entries.next() {
                    separate(out);
                    write_string(key, out);
                    out.push(b':');
                    return Some(value);
                }
                out.push(b'}');
            }
        }
        open.pop();
    }
}

/// No value ends in an opening bracket, so one at the end means that the first is yet to come.
fn separate(out: &mut Vec<u8>) {
    if !matches!(out.last(), Some(b'[' | b'{')) {
        out.push(b',');
    }
}

fn write_string(string: &JsString, out: &mut Vec<u8>) {
    out.push(b'"');
    match &string.0 {
        Text::WellFormed(text) => write_escaped(text, out),
        Text::IllFormed(units) => {
            for decoded in char::decode_utf16(units.iter().copied()) {
                match decoded {
                    Ok(char) => write_escaped(char.encode_utf8(&mut [0; 4]), out),
                    Err(lone) => write_unicode_escape(lone.unpaired_surrogate(), out),
                }
            }
        }
    }
    out.push(b'"');
}

fn write_escaped(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut written = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if !matches!(byte, b'"' | b'\\' | 0..=0x1f) {
            continue;
        }
        out.extend_from_slice(&bytes[written..at]);
        written = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            control => write_unicode_escape(control.into(), out),
        }
    }
    out.extend_from_slice(&bytes[written..]);
}

fn write_unicode_escape(unit: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
}
