//! The admin API over TCP, as a browser, a script and Prometheus meet it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::Value;

use crate::support::{Answer, Client, Server, event_body, eventually};

const HANDLER: &str = "[schedule]\ndelays = [\"0s\"]\n[[handler]]\nname = \"fails\"\nevents = [\"*\"]\nexec = { command = [\"/bin/false\"] }\n";

impl Server {
    /// Where the page is.
    pub fn page(&self) -> SocketAddr {
        eventually("the page is announced", || {
            self.log().lines().find_map(|line| {
                let rest = line.split("debugger page on http://").nth(1)?;
                rest.split('/').next()?.parse().ok()
            })
        })
    }

    /// The metric's value; `name` with its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = Api::of(self).ask("GET", "/metrics", "").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        assert!(line.is_some(), "{name} is not in\n{text}");
        line.unwrap().parse().unwrap()
    }

    pub fn token(&self) -> String {
        let text = std::fs::read_to_string(self.data().join("admin.token")).unwrap();
        text.trim().to_owned()
    }
}

/// A client that comes with the token.
pub struct Api {
    page: SocketAddr,
    bearer: String,
}

impl Api {
    pub fn of(server: &Server) -> Api {
        Api { page: server.page(), bearer: format!("Bearer {}", server.token()) }
    }

    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let headers =
            [("authorization", self.bearer.as_str()), ("content-type", "application/json")];
        Client::on_loopback(self.page).request(method, path, &headers, body.as_bytes()).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }
}

/// A careless chmod, and somebody else on the machine.
#[test]
fn another_user_is_refused_on_the_socket_whatever_its_file_mode_and_root_is_not() {
    use std::os::unix::fs::PermissionsExt as _;
    if std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap()
        != 0
    {
        println!("only root can be somebody else: nothing tested");
        return;
    }
    let server = Server::start(HANDLER);
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(server.dir.path(), 0o755);
    open(&server.dir.path().join("admin.sock"), 0o666);
    let program = server.dir.path().join("bluehook");
    std::fs::copy(env!("CARGO_BIN_EXE_bluehook"), &program).unwrap();
    let as_nobody = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&program)
        .args(["status", "--socket"])
        .arg(server.dir.path().join("admin.sock"))
        // For the tests, not for the program.
        .env_remove("BLUEHOOK_FULL")
        .env_remove("BLUEHOOK_SEED")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&as_nobody.stderr).into_owned();
    assert!(!as_nobody.status.success() && said.contains("is for user 0 and root"), "{said}");
    assert!(server.log().contains("refused on the admin socket"), "{}", server.log());
    server.cli_ok(&["status"]);
}

#[test]
fn a_sign_in_link_works_once_and_its_cookie_opens_the_page_and_the_api() {
    let server = Server::start(HANDLER);
    let link = server.cli_ok(&["debugger"]);
    let path = link.trim().split_once(&server.page().to_string()).unwrap().1.to_owned();
    let mut browser = Client::on_loopback(server.page());
    let signed_in = browser.request("GET", &path, &[], b"").unwrap();
    assert_eq!((signed_in.status, signed_in.header("location")), (303, Some("/")));
    let cookie = signed_in.header("set-cookie").unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    assert_eq!(browser.request("GET", &path, &[], b"").unwrap().status, 401, "once");

    let signed = [("cookie", cookie.as_str())];
    let page = browser.request("GET", "/", &signed, b"").unwrap();
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("access-control-allow-origin"), None);
    // All that the page loads is there.
    let text = page.body;
    let assets = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/page")).unwrap();
    for asset in assets.map(|f| f.unwrap().file_name().into_string().unwrap()) {
        let path = format!("/assets/{asset}");
        let status = browser.request("GET", &path, &signed, b"").unwrap().status;
        assert_eq!(status, if asset == "index.html" { 404 } else { 200 }, "{path}");
    }
    assert!(text.contains("/assets/app.js") && !text.contains("<script>"), "{text}");
    assert_eq!(browser.request("GET", "/api/v1/status", &signed, b"").unwrap().status, 200);

    // A change needs more than a cookie; and a restart ends no session.
    let change = ("/api/v1/handlers/fails/pause", b"{}");
    assert_eq!(browser.request("POST", change.0, &signed, change.1).unwrap().status, 403);
    let own = [signed[0], ("sec-fetch-site", "same-origin")];
    assert_eq!(browser.request("POST", change.0, &own, change.1).unwrap().status, 200);
    let foreign = [signed[0], ("origin", "http://evil.example")];
    assert_eq!(browser.request("POST", change.0, &foreign, change.1).unwrap().status, 403);
    let mut server = server;
    server.stop();
    server.spawn();
    let again =
        Client::on_loopback(server.page()).request("GET", "/api/v1/status", &signed, b"").unwrap();
    assert_eq!(again.status, 200);
}

#[test]
fn whoever_shows_nothing_learns_nothing() {
    let server = Server::start("");
    let mut stranger = Client::on_loopback(server.page());
    for path in [
        "/",
        "/metrics",
        "/healthz",
        "/api/v1/status",
        "/api/v1/nothing",
        "/nothing",
        "/assets/app.js",
    ] {
        let answer = stranger.request("GET", path, &[], b"").unwrap();
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.header("www-authenticate").is_some());
        let post = stranger.request("POST", path, &[], b"{}").unwrap();
        assert_eq!(post.status, 401, "{path}");
    }
}

#[test]
fn what_an_event_was_answered_and_what_came_besides_it_is_shown() {
    let server = Server::start(HANDLER);
    let api = Api::of(&server);
    let (first, other) = (event_body("18", "message.read", 1), event_body("18", "message.read", 2));
    for body in [&first, &other] {
        assert_eq!(server.client().post_signed(body).unwrap().status, 200);
    }
    let event = eventually("the other body is there", || {
        let event = api.get("/api/v1/events/18");
        (event["conflicts"].as_array().map_or(0, Vec::len) == 1).then_some(event)
    });
    assert_eq!(event["payload"], first);
    assert_eq!(event["conflicts"][0]["payload"], other);
    assert!(event["conflicts"][0]["receivedAt"].as_str() >= event["receivedAt"].as_str());
    assert_eq!(event["answer"]["status"], 200);
    let seq = event["seq"].as_u64().unwrap();
    assert_eq!(api.get(&format!("/api/v1/events/seq:{seq}"))["eventId"], "18");

    let brief = &api.get("/api/v1/events?brief=true")["items"][0];
    assert_eq!((brief.get("payload"), &brief["payloadBytes"]), (None, &first.len().into()));
    assert!(first.starts_with(brief["preview"].as_str().unwrap()));
    assert_eq!(api.ask("GET", "/api/v1/events?brief=perhaps", "").status, 400);
    let minutes = api.get("/api/v1/activity")["minutes"].clone();
    let last: u64 =
        minutes.as_array().unwrap().iter().map(|m| m["acknowledged"].as_u64().unwrap()).sum();
    assert_eq!((minutes.as_array().unwrap().len(), last), (60, 2));
}

/// Every route is described, and what is described is there.
#[test]
fn the_description_of_the_api_is_true() {
    let server = Server::start(HANDLER);
    let api = Api::of(&server);
    let document = api.get("/api/v1/openapi.json");
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        let real = path.replace("{id}", "nothing").replace("{name}", "fails");
        let get = methods.get("get").is_some();
        // The other method is refused with the one that is described.
        let answer = api.ask(if get { "POST" } else { "GET" }, &real, "");
        assert_eq!(answer.status, 405, "{path}");
        assert_eq!(answer.header("allow"), Some(if get { "GET" } else { "POST" }), "{path}");
    }
    // As interface.md §5 lists them.
    let described: BTreeSet<&str> =
        paths.keys().map(|p| p.trim_start_matches("/api/v1/")).collect();
    for path in [
        "events",
        "events/{id}",
        "events/stream",
        "deliveries",
        "dead",
        "rejections",
        "handlers",
        "status",
        "replay",
        "dead/replay",
        "dead/discard",
        "trigger",
        "handlers/{name}/pause",
        "handlers/{name}/resume",
        "openapi.json",
        "/metrics",
        "/healthz",
        "/readyz",
    ] {
        assert!(described.contains(path), "{path}");
    }
}

#[test]
fn the_metrics_count_what_happened_and_read_as_prometheus_reads_them() {
    let server = Server::start(HANDLER);
    let api = Api::of(&server);
    for n in 0..3 {
        server.client().post_signed(&event_body(&format!("evt_{n}"), "message.read", 1)).unwrap();
    }
    server.client().post_signed(&event_body("evt_0", "message.read", 1)).unwrap();
    let unsigned = event_body("evt_x", "message.read", 1);
    server.client().request("POST", "/webhooks/bluereplies", &[], unsigned.as_bytes()).unwrap();
    let value = |text: &str, name: &str| -> Option<f64> {
        let line =
            text.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    let text = eventually("all three are dead", || {
        let text = api.ask("GET", "/metrics", "").body;
        let dead = value(&text, "bluehook_handler_dead_letters{handler=\"fails\"}");
        (dead == Some(3.0)).then_some(text)
    });
    for (name, wanted) in [
        ("bluehook_requests_received_total", 5.0),
        ("bluehook_requests_acknowledged_total", 4.0),
        ("bluehook_duplicates_total", 1.0),
        ("bluehook_requests_refused_total{reason=\"signature missing\"}", 1.0),
        ("bluehook_attempts_total{handler=\"fails\",outcome=\"retry\"}", 3.0),
        ("bluehook_ack_duration_seconds_count", 4.0),
        ("bluehook_ack_duration_seconds_bucket{le=\"+Inf\"}", 4.0),
        ("bluehook_handler_backlog{handler=\"fails\"}", 0.0),
        ("bluehook_events", 3.0),
        ("bluehook_store_health{state=\"ok\"}", 1.0),
    ] {
        assert_eq!(value(&text, name), Some(wanted), "{name} in\n{text}");
    }
    assert!(value(&text, "bluehook_log_sync_duration_seconds_count") > Some(0.0));
    lint(&text);
}

/// The rules that promtool checks, on the text itself.
fn lint(text: &str) {
    let mut kinds: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && kinds.iter().all(|(n, _)| n != name), "{line}");
            kinds.push((name.to_owned(), String::new()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let last = kinds.last_mut().unwrap();
            assert_eq!(last.0, name, "HELP comes first");
            last.1 = kind.to_owned();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(
                !name.contains("_ms") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            );
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            let (family, kind) = kinds.last().unwrap();
            let bare = name.split('{').next().unwrap();
            let own = match kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .map(|s| format!("{family}{s}"))
                    .iter()
                    .any(|n| n == bare),
                _ => bare == family,
            };
            assert!(own, "{line} stands below {family}");
        }
    }
}

#[test]
fn a_stream_that_broke_off_goes_on_where_it_was() {
    let server = Server::start("");
    let api = Api::of(&server);
    let send = |id: &str| {
        let body = event_body(id, "message.read", 1);
        assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
    };
    send("evt_a");
    let first =
        eventually("it is listed", || api.get("/api/v1/events")["items"][0]["seq"].as_u64());
    send("evt_b");
    send("evt_c");
    let request = format!(
        "GET /api/v1/events/stream?brief=true HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\nlast-event-id: {first}\r\n\r\n",
        api.bearer
    );
    let mut stream = crate::support::connect(api.page);
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut seen = String::new();
    eventually("both came", || {
        let mut chunk = [0; 4096];
        let n = std::io::Read::read(&mut stream, &mut chunk).unwrap();
        seen.push_str(&String::from_utf8_lossy(&chunk[..n]));
        (seen.contains("evt_b") && seen.contains("evt_c")).then_some(())
    });
    assert!(!seen.contains("evt_a"), "{seen}");
}

#[test]
fn a_taken_port_costs_the_page_and_no_event() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Server::stopped("");
    let config = std::fs::read_to_string(server.config()).unwrap();
    let taken = format!("listen = \"{}\"", holder.local_addr().unwrap());
    let config = config.replacen("listen = \"127.0.0.1:0\"", &taken, 1);
    std::fs::write(server.config(), config).unwrap();
    server.spawn();
    assert_eq!(
        server.client().post_signed(&event_body("evt_1", "message.read", 1)).unwrap().status,
        200
    );
    assert!(server.log().contains("no debugger page"), "{}", server.log());
    let refused = server.cli(&["debugger"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("admin.listen"));
}
