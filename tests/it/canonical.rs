//! The canonical form against the machine's Node: whatever `JSON.stringify(JSON.parse(body))` gives
//! there, byte for byte, and a refusal where that throws.
//!
//! `BLUEHOOK_SEED=<number>` repeats a run.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use bluehook::signature::json;
use fastrand::Rng;

const BODIES: usize = 20_000;

/// Bodies on standard input and results on standard output, each after its length; a result of
/// length 2^32 - 1 is a refusal.
const ORACLE: &str = r"
const input = require('fs').readFileSync(0);
const output = [];
for (let at = 0; at < input.length;) {
  const start = at + 4, end = start + input.readUInt32LE(at), length = Buffer.alloc(4);
  let result = Buffer.alloc(0);
  try {
    result = Buffer.from(JSON.stringify(JSON.parse(input.subarray(start, end).toString('utf8'))));
    length.writeUInt32LE(result.length);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    length.writeUInt32LE(0xffffffff);
  }
  output.push(length, result);
  at = end;
}
process.stdout.write(Buffer.concat(output));
";

#[test]
fn the_canonical_form_is_what_node_makes_of_it() {
    let seed = match std::env::var("BLUEHOOK_SEED") {
        Ok(seed) => seed.parse().expect("BLUEHOOK_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("BLUEHOOK_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let bodies: Vec<Vec<u8>> = (0..BODIES).map(|_| body(&mut rng)).collect();

    let mut accepted = 0;
    let mut too_deep = 0;
    for (body, expected) in bodies.iter().zip(node(&bodies)) {
        let ours = json::canonical(body);
        if ours.as_ref().is_err_and(|e| e.what.starts_with("nested")) {
            too_deep += 1;
            continue;
        }
        accepted += usize::from(expected.is_some());
        assert_eq!(
            ours.as_ref().ok().map(|text| text.escape_ascii().to_string()),
            expected.map(|text| text.escape_ascii().to_string()),
            "BLUEHOOK_SEED={seed}, body b\"{}\", ours {ours:?}",
            body.escape_ascii()
        );
    }
    // The generator has to exercise both answers, and hardly ever what cannot be compared.
    assert!(accepted > BODIES / 4 && accepted < BODIES * 9 / 10, "{accepted} accepted");
    assert!(too_deep < BODIES / 100, "{too_deep} nested too deep to compare");
}

fn node(bodies: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
    let mut child = Command::new("node")
        .args(["-e", ORACLE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test compares with Node: install node");
    let mut input = Vec::new();
    for body in bodies {
        input.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        input.extend_from_slice(body);
    }
    // Node reads everything before it writes anything, so the pipes cannot block each other.
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert!(child.wait().unwrap().success());

    let mut rest = output.as_slice();
    let results: Vec<_> = bodies.iter().map(|_| take_result(&mut rest)).collect();
    assert!(rest.is_empty());
    results
}

fn take_result(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let (length, tail) = rest.split_first_chunk().unwrap();
    *rest = tail;
    let length = u32::from_le_bytes(*length);
    if length == u32::MAX {
        return None;
    }
    let (result, tail) = rest.split_at(length as usize);
    *rest = tail;
    Some(result.to_vec())
}

fn body(rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    if rng.u8(..) == 0 {
        let depth = rng.usize(1..=200);
        out.resize(depth, b'[');
        value(rng, 3, &mut out);
        out.resize(out.len() + depth, b']');
    } else {
        value(rng, 5, &mut out);
    }
    if rng.u8(..) < 100 {
        for _ in 0..rng.usize(1..=4) {
            mutate(rng, &mut out);
        }
    }
    out
}

fn value(rng: &mut Rng, depth: u32, out: &mut Vec<u8>) {
    space(rng, out);
    match rng.u8(0..if depth == 0 { 6 } else { 12 }) {
        0 => out.extend_from_slice(pick(rng, &["null", "true", "false"]).as_bytes()),
        1..=3 => out.extend_from_slice(number(rng).as_bytes()),
        4..=5 => string(rng, out),
        6..=8 => list(rng, out, *b"[]", |rng, out| value(rng, depth - 1, out)),
        _ => list(rng, out, *b"{}", |rng, out| {
            space(rng, out);
            key(rng, out);
            space(rng, out);
            out.push(b':');
            value(rng, depth - 1, out);
        }),
    }
    space(rng, out);
}

fn list(rng: &mut Rng, out: &mut Vec<u8>, ends: [u8; 2], item: impl Fn(&mut Rng, &mut Vec<u8>)) {
    out.push(ends[0]);
    let count = if rng.u8(..) == 0 { rng.usize(20..200) } else { rng.usize(0..6) };
    for i in 0..count {
        if i > 0 {
            out.push(b',');
        }
        item(rng, out);
        if out.len() > 20_000 {
            break;
        }
    }
    space(rng, out);
    out.push(ends[1]);
}

fn space(rng: &mut Rng, out: &mut Vec<u8>) {
    if rng.u8(0..8) == 0 {
        let all = ["\u{a0}", "\u{feff}", "\u{2028}", "\u{b}", "\u{c}", "\0", "//", "\u{85}"];
        let usual = [" ", "\t", "\n", "\r", "  ", "\r\n"];
        let space = if rng.u16(0..2000) == 0 { pick(rng, &all) } else { pick(rng, &usual) };
        out.extend_from_slice(space.as_bytes());
    }
}

fn key(rng: &mut Rng, out: &mut Vec<u8>) {
    const NAMES: &[&str] = &[
        "a",
        "b",
        "__proto__",
        "constructor",
        "toJSON",
        "length",
        "hasOwnProperty",
        "",
        "0",
        "1",
        "2",
        "10",
        "-1",
        "-0",
        "00",
        "01",
        "1.0",
        "1e3",
        "+1",
        " 1",
        "4294967293",
        "4294967294",
        "4294967295",
        "4294967296",
        "9007199254740991",
        "9007199254740993",
        "18446744073709551616",
        "\\u0061",
        "\\u0031",
        "\\u005f_proto__",
        "\\ud800",
        "\\uD800",
        "\\ud83d\\ude00",
        "😀",
        "é",
        "e\u{301}",
        "\\u00e9",
    ];
    match rng.u8(0..6) {
        0 => string(rng, out),
        1 => out.extend_from_slice(format!("\"{}\"", rng.u32(0..40)).as_bytes()),
        2 => out.extend_from_slice(format!("\"{}\"", rng.u64(..) >> rng.u32(0..64)).as_bytes()),
        _ => out.extend_from_slice(format!("\"{}\"", pick(rng, NAMES)).as_bytes()),
    }
}

fn number(rng: &mut Rng) -> String {
    const SPECIAL: &[&str] = &[
        "-0",
        "-0.0",
        "0e5",
        "-0e-5",
        "1e400",
        "-1e400",
        "1e-400",
        "1e21",
        "1e20",
        "999999999999999999999",
        "123456789012345680000",
        "1e-6",
        "1e-7",
        "0.000001",
        "5e-324",
        "2e-324",
        "3e-324",
        "2.4703282292062327208e-324",
        "2.2250738585072011e-308",
        "1.7976931348623157e308",
        "1.7976931348623158e308",
        "1.7976931348623159e308",
        "9007199254740991",
        "9007199254740992",
        "9007199254740993",
        "-9007199254740993",
        "18446744073709551615",
        "4294967295",
        "1073741824",
        "2147483648",
        "-2147483649",
        "1E+05",
        "1e+00000000000000000005",
        "1e99999999999999999999",
        "1e-99999999999999999999",
        "0.1",
        "1.005",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "1e+",
        "+1",
        "NaN",
        "-Infinity",
        "0x10",
        "1_0",
        "1n",
    ];
    match rng.u8(0..8) {
        0 => pick(rng, SPECIAL).to_owned(),
        1 => rng.i32(-100..100).to_string(),
        2 => (rng.i64(..) >> rng.u32(0..64)).to_string(),
        3 | 4 => {
            let double = f64::from_bits(rng.u64(..));
            if double.is_finite() { format!("{double:e}") } else { "0".to_owned() }
        }
        5 => {
            // Half way between two neighbouring doubles, or nearly.
            let double = f64::from_bits(rng.u64(0x3f00_0000_0000_0000..0x4800_0000_0000_0000));
            let mut exact = format!("{double:.60}");
            exact.push_str(pick(rng, &["", "0", "1", "5", "e10", "e-300"]));
            exact
        }
        6 => format!("{}.{}e{}", rng.u32(0..1000), digits(rng, 40), rng.i32(-350..350)),
        _ => {
            let sign = pick(rng, &["", "-"]);
            format!("{sign}{}{}.{}", rng.u8(1..10), digits(rng, 30), digits(rng, 900))
        }
    }
}

fn digits(rng: &mut Rng, max: usize) -> String {
    let longest = rng.usize(1..=max);
    let len = rng.usize(1..=longest);
    (0..len).map(|_| if rng.bool() { '0' } else { rng.digit(10) }).collect()
}

fn string(rng: &mut Rng, out: &mut Vec<u8>) {
    out.push(b'"');
    for _ in 0..rng.usize(0..8) {
        match rng.u16(0..1000) {
            0..250 => out.push(rng.u8(b' '..=b'~').max(b'#')),
            250..400 => out.extend_from_slice(
                pick(rng, &["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t", "/"])
                    .as_bytes(),
            ),
            400..600 => {
                let unit = match rng.u8(0..6) {
                    0 => rng.u16(0..0x80),
                    1 | 2 => rng.u16(0xd800..0xdc00),
                    3 | 4 => rng.u16(0xdc00..0xe000),
                    _ => rng.u16(..),
                };
                let escape =
                    if rng.bool() { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") };
                out.extend_from_slice(escape.as_bytes());
            }
            600..700 => {
                let pair = rng.u32(0x1_0000..0x11_0000) - 0x1_0000;
                let (high, low) = (0xd800 + (pair >> 10), 0xdc00 + (pair & 0x3ff));
                out.extend_from_slice(format!("\\u{high:04x}\\u{low:04X}").as_bytes());
            }
            700..900 => {
                out.extend_from_slice(rng.char(..).to_string().replace(['"', '\\'], "x").as_bytes())
            }
            900..985 => invalid_utf8(rng, out),
            985..998 => out.extend_from_slice("\u{2028}\u{2029}\u{7f}\u{feff}\u{ffff}".as_bytes()),
            _ => out.extend_from_slice(
                pick(rng, &["\\x41", "\\u12", "\\u{41}", "\\", "\n", "\0", "\\u+123", "\\U0041"])
                    .as_bytes(),
            ),
        }
    }
    out.push(b'"');
}

fn invalid_utf8(rng: &mut Rng, out: &mut Vec<u8>) {
    const SEQUENCES: &[&[u8]] = &[
        b"\xff",
        b"\xfe",
        b"\x80",
        b"\xbf",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xc2",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xe0\xa0",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xef\xbf",
        b"\xf0\x80\x80\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xf0\x9f\x98",
        b"\xf0\x9f",
        b"\xf0",
        b"\xf4\x90\x80\x80",
        b"\xf4\x8f\xbf",
        b"\xf5\x80\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xef\xbb\xbf",
    ];
    if rng.bool() {
        out.extend_from_slice(SEQUENCES[rng.usize(0..SEQUENCES.len())]);
    } else {
        for _ in 0..rng.usize(1..5) {
            out.push(rng.u8(0x80..));
        }
    }
}

fn mutate(rng: &mut Rng, body: &mut Vec<u8>) {
    if body.is_empty() {
        return;
    }
    let at = rng.usize(0..body.len());
    match rng.u8(0..7) {
        0 => body[at] = rng.u8(..),
        1 => body[at] ^= 1 << rng.u8(0..8),
        2 => {
            body.remove(at);
        }
        3 => {
            let tokens = b"{}[]\",:\\0-.eEu \n\xff/'";
            body.insert(at, tokens[rng.usize(0..tokens.len())]);
        }
        4 => body.truncate(at),
        5 => {
            let end = rng.usize(at..body.len().min(at + 40)) + 1;
            let slice = body[at..end].to_vec();
            let to = rng.usize(0..=body.len());
            body.splice(to..to, slice);
        }
        _ => {
            body.splice(0..0, *b"\xef\xbb\xbf");
        }
    }
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(0..from.len())]
}
