//! Every route of the admin port, asked for by those who may not: a page of another site, a name that was made to
//! resolve to loopback, somebody with a guess. None gets through, whatever the method.

use serde_json::Value;

use crate::admin::Api;
use crate::support::{Client, Server, event_body, eventually};

const HANDLER: &str =
    "[[handler]]\nname = \"fails\"\nevents = [\"*\"]\nexec = { command = [\"/bin/false\"] }\n";
/// `{own}` is where the page is, `{token}` and `{cookie}` what opens it.
const FORBIDDEN: &[(&str, &[(&str, &str)])] = &[
    ("nothing shown", &[]),
    ("a wrong token", &[("authorization", "Bearer 0000000000000000000000000000000000000000")]),
    ("no token", &[("authorization", "Bearer ")]),
    ("the token in another scheme", &[("authorization", "Basic {token}")]),
    ("the token without a scheme", &[("authorization", "{token}")]),
    ("the token and more", &[("authorization", "Bearer {token}0")]),
    ("half the token", &[("authorization", "Bearer {half}")]),
    ("the token as a cookie", &[("cookie", "bluehook_session={token}")]),
    ("a session that was made up", &[("cookie", "bluehook_session=9999999999999.00")]),
    ("a session made longer", &[("cookie", "bluehook_session=9{cookie}")]),
    ("a session by another name", &[("cookie", "session={cookie}")]),
    (
        "another site's page",
        &[("authorization", "Bearer {token}"), ("origin", "http://evil.example")],
    ),
    ("no site's page", &[("authorization", "Bearer {token}"), ("origin", "null")]),
    (
        "a page on another port",
        &[("authorization", "Bearer {token}"), ("origin", "http://127.0.0.1:1")],
    ),
    (
        "two origins",
        &[
            ("authorization", "Bearer {token}"),
            ("origin", "http://{own}"),
            ("origin", "http://evil.example"),
        ],
    ),
    (
        "the browser says another site",
        &[("authorization", "Bearer {token}"), ("sec-fetch-site", "cross-site")],
    ),
    (
        "the browser says a sibling",
        &[("authorization", "Bearer {token}"), ("sec-fetch-site", "same-site")],
    ),
    (
        "another site's page with the cookie",
        &[("cookie", "bluehook_session={cookie}"), ("origin", "http://evil.example")],
    ),
    (
        "a link from another site",
        &[("cookie", "bluehook_session={cookie}"), ("sec-fetch-site", "cross-site")],
    ),
];
/// Names that somebody else made resolve to loopback, and what is no name.
const HOSTS: &[&str] = &[
    "evil.example",
    "evil.example:3001",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1@evil.example",
    "evil.example/127.0.0.1",
    "10.0.0.1",
    "0.0.0.0",
    "",
    "localhost:x",
    "[::1",
    "localhost,evil.example",
];

fn routes(api: &Api) -> Vec<(&'static str, String)> {
    let document: Value =
        serde_json::from_str(&api.ask("GET", "/api/v1/openapi.json", "").body).unwrap();
    let paths = document["paths"].as_object().unwrap().keys();
    let paths = paths.map(|path| path.replace("{id}", "seq:1").replace("{name}", "fails"));
    let page = ["/", "/assets/app.js", "/nothing"].map(str::to_owned);
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
    let all: Vec<String> = paths.chain(page).collect();
    all.iter().flat_map(|path| methods.map(|method| (method, path.clone()))).collect()
}

#[test]
fn none_of_the_forbidden_requests_to_the_admin_port_gets_through() {
    let server = Server::start(HANDLER);
    let body = event_body("evt_1", "message.read", 1);
    assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
    let (api, own, token) = (Api::of(&server), server.page(), server.token());
    let link = server.cli_ok(&["debugger"]);
    let path = link.trim().split_once(&own.to_string()).unwrap().1.to_owned();
    // A link does not work for a stranger's name either, and is not used up by it.
    let opened = Client::new(own).request("GET", &path, &[], b"").unwrap();
    assert_eq!(opened.status, 403);
    let signed_in = Client::on_loopback(own).request("GET", &path, &[], b"").unwrap();
    let cookie = signed_in.header("set-cookie").unwrap();
    let cookie = cookie.strip_prefix("bluehook_session=").unwrap().split(';').next().unwrap();
    let fill = |text: &str| {
        text.replace("{half}", &token[..token.len() / 2])
            .replace("{token}", &token)
            .replace("{cookie}", cookie)
            .replace("{own}", &own.to_string())
    };
    let mut asked = 0;
    let mut refused = |method: &str,
                       path: &str,
                       host: &str,
                       headers: &[(String, String)],
                       why: &str| {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let content = "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        let answer = Client::new(own).raw(format!("{head}{content}").as_bytes(), method == "HEAD");
        let answer = answer.unwrap();
        assert!(
            matches!(answer.status, 400 | 401 | 403),
            "{why}: {method} {path}: {}",
            answer.status
        );
        for header in ["access-control-allow-origin", "set-cookie", "location"] {
            assert_eq!(answer.header(header), None, "{why}: {method} {path}");
        }
        assert!(!answer.body.contains("evt_1") && !answer.body.contains(&token), "{why}: {path}");
        asked += 1;
    };
    let routes = routes(&api);
    for (method, path) in &routes {
        for (why, headers) in FORBIDDEN {
            let headers: Vec<_> =
                headers.iter().map(|(name, value)| ((*name).to_owned(), fill(value))).collect();
            refused(method, path, &own.to_string(), &headers, why);
        }
        // A cookie alone changes nothing, whatever the browser is.
        if !matches!(*method, "GET" | "HEAD") {
            let cookie = [("cookie".to_owned(), fill("bluehook_session={cookie}"))];
            refused(method, path, &own.to_string(), &cookie, "a cookie alone");
            let form = [cookie[0].clone(), ("x-http-method-override".to_owned(), "GET".to_owned())];
            refused(method, path, &own.to_string(), &form, "a method over the method");
        }
        for host in HOSTS {
            let token = [("authorization".to_owned(), fill("Bearer {token}"))];
            refused(method, path, host, &token, host);
        }
    }
    println!("{asked} forbidden requests to {} routes", routes.len());
    assert!(asked > 4_000, "{asked}");
    // Nothing changed, and whoever may come in still does.
    let status: Value = serde_json::from_str(&api.ask("GET", "/api/v1/status", "").body).unwrap();
    assert_eq!(status["handlers"][0]["paused"], false, "{status}");
    assert_eq!(
        eventually("the event is there", || server.cli_json(&["events", "list"]).pop())["eventId"],
        "evt_1"
    );
    assert_eq!(server.cli_json(&["events", "list"]).len(), 1);
}
