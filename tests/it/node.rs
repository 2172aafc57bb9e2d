//! A sender in Node, signing as the vendor's article does: over the text that it sends, and over
//! re-serialised JSON while it sends it pretty-printed.

use std::process::Command;

use crate::support::{Receiver, SECRET, Server, eventually, lines_of};

const SENDER: &str = r"
const crypto = require('crypto');
const [url, secret] = process.argv.slice(1);
const sign = text => crypto.createHmac('sha256', secret).update(text).digest('hex');
const post = (body, signature) => fetch(url, {
  method: 'POST', body,
  headers: { 'content-type': 'application/json', 'x-bluereplies-signature': signature },
}).then(async r => `${r.status} ${await r.text()}`);
const event = id => ({ eventId: id, type: 'message.received', 10: 'ten', 2: 'two',
  data: { messageId: 'm-' + id, from: '+15550001', body: 'h\u00e9llo \u{1f600} / \u2028', price: 1.50 } });
(async () => {
  const compact = JSON.stringify(event('evt_raw'));
  const pretty = JSON.stringify(event('evt_pretty'), null, 2);
  console.log(await post(compact, sign(compact)));
  console.log(await post(pretty, sign(JSON.stringify(JSON.parse(pretty)))));
  console.log(await post(compact, sign(compact + ' ')));
  console.log(await post(compact, 'nonsense'));
  console.log(await fetch(url, { method: 'POST' }).then(r => r.status));
  console.log(await fetch(url, { method: 'POST', body: '{&quot;type&quot;:&quot;ping&quot;}'.replaceAll('&quot;', '\u0022') }).then(r => r.status));
  console.log(await fetch(url).then(r => r.status));
  console.log(await fetch(url, { method: 'HEAD' }).then(r => r.status));
})();
";

#[test]
fn a_node_sender_is_acknowledged_in_both_forms_and_all_three_handlers_run() {
    let receiver = Receiver::start(|_| (200, ""));
    let server = Server::start(
        &r#"
[[handler]]
name = "http"
events = ["message.received"]
http = { url = "{url}" }

[[handler]]
name = "exec"
events = ["message.received"]
exec = { command = ["/bin/sh", "-c", 'cat >> {dir}/stdin.log; echo "$1" >> {dir}/from.log', "sh", "{{ data.from }}"] }

[[handler]]
name = "file"
events = ["*"]
file = { path = "{dir}/events.jsonl" }
"#
        .replace("{url}", &receiver.url("/hook")),
    );
    let url = format!("http://{}/webhooks/bluereplies", server.addr);
    let output = Command::new("node").args(["-e", SENDER, &url, SECRET]).output().unwrap();
    let answers = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        answers.lines().collect::<Vec<_>>(),
        [
            "200 OK",
            "200 OK",
            "401 Invalid signature",
            "401 Invalid signature",
            "200",
            "200",
            "200",
            "200"
        ],
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let dir = server.dir.path();
    eventually("all three handlers ran for both events", || {
        let ran = receiver.count() == 2
            && lines_of(&dir.join("from.log")).len() == 2
            && lines_of(&dir.join("events.jsonl")).len() == 2;
        ran.then_some(())
    });
    assert_eq!(lines_of(&dir.join("from.log")), ["+15550001", "+15550001"]);

    let forms: Vec<(String, String)> = server
        .cli_json(&["events", "list"])
        .iter()
        .map(|e| (e["eventId"].as_str().unwrap().into(), e["verifiedBy"].as_str().unwrap().into()))
        .collect();
    assert!(forms.contains(&("evt_raw".into(), "raw".into())), "{forms:?}");
    assert!(forms.contains(&("evt_pretty".into(), "canonical".into())), "{forms:?}");

    // What is forwarded is what the signature covered: keys in JavaScript's order, no spaces.
    let pretty = receiver
        .requests()
        .into_iter()
        .find(|r| r.headers["idempotency-key"] == "evt_pretty")
        .unwrap();
    let text = String::from_utf8(pretty.body).unwrap();
    assert!(text.starts_with(r#"{"2":"two","10":"ten","eventId":"evt_pretty""#), "{text}");
    assert!(text.contains(r#""price":1.5}"#), "{text}");
}
