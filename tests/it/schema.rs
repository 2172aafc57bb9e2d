//! The admin API against `openapi.json`, by schemathesis: requests as the description allows them, and others.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use crate::support::{Server, event_body, eventually, full_run};

/// Pinned, so that a new release's checks come with a change of ours.
const PACKAGE: &str = "schemathesis==4.32.5";

fn schemathesis() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("schemathesis");
    let complete = folder.join("complete");
    if !complete.exists() {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program} {arguments:?}: {error}");
        };
        run("python3", &["-m", "venv", "--clear", folder.to_str().unwrap()]);
        let pip = folder.join("bin/pip");
        run(pip.to_str().unwrap(), &["install", "--quiet", PACKAGE]);
        std::fs::write(complete, "").unwrap();
    }
    folder.join("bin/schemathesis")
}

#[test]
fn the_api_does_what_its_description_says_and_answers_nothing_else() {
    let program = schemathesis();
    let server = Server::start(
        "[schedule]\ndelays = [\"0s\"]\n[[handler]]\nname = \"fails\"\nevents = [\"message.read\"]\n\
         exec = { command = [\"/bin/false\"] }\n[[handler]]\nname = \"archive\"\nevents = [\"*\"]\n\
         file = { path = \"{dir}/events\" }\n[notify]\nfile = { path = \"{dir}/notices\" }\n",
    );
    let mut client = server.client();
    for (n, kind) in
        ["message.sent", "message.read", "message.failed"].iter().cycle().take(30).enumerate()
    {
        let body = event_body(&format!("evt_{n}"), kind, n as u64);
        assert_eq!(client.post_signed(&body).unwrap().status, 200);
    }
    assert_eq!(client.request("GET", "/none", &[], b"").unwrap().status, 404);
    eventually("dead letters", || (server.cli_json(&["dead", "list"]).len() == 10).then_some(()));
    let output = Command::new(program)
        .args(["run", &format!("http://{}/api/v1/openapi.json", server.page())])
        .args(["--header", &format!("Authorization: Bearer {}", server.token())])
        // One does not end; the other takes lines of JSON, which the program cannot make.
        .args(["--exclude-path", "/api/v1/events/stream", "--exclude-path", "/api/v1/import"])
        // A description can't say that ids and filters exclude each other. That no token is no entry is seen elsewhere.
        .args(["--checks", "all", "--exclude-checks", "positive_data_acceptance,ignored_auth"])
        .args(["--max-examples", if full_run() { "300" } else { "10" }])
        .args(["--continue-on-failure", "--no-color", "--request-timeout", "60"])
        .current_dir(server.dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let tested = said.lines().find_map(|line| line.trim().strip_prefix("Tested: "));
    assert_eq!(tested, Some("23"), "{said}");
    server.cli_ok(&["events", "list"]);
}
