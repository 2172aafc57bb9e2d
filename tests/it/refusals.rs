//! Bad configuration and bad surroundings: one line that says what, where and what to do.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::support::{Server, binary};

/// Runs `serve` with this configuration; it must end by itself.
fn serve(config: &str) -> (tempfile::TempDir, Output) {
    let dir = tempfile::tempdir().unwrap();
    let text = config.replace("{dir}", &dir.path().display().to_string());
    let file = dir.path().join("bluehook.toml");
    std::fs::write(&file, text).unwrap();
    let output = binary().args(["serve", "--config"]).arg(&file).output().unwrap();
    (dir, output)
}

fn assert_refused(config: &str, code: i32, says: &[&str]) {
    let (_dir, output) = serve(config);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    // Where it listens comes after the log: that may have had something to say.
    let refusals = error.lines().filter(|line| line.starts_with("bluehook: ")).count();
    assert_eq!(refusals, 1, "not one line:\n{error}");
    for word in says {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
}

const BASIC: &str = "data_dir = \"{dir}/data\"\n[intake]\nlisten = [\"127.0.0.1:0\"]\n";

#[test]
fn an_unknown_key_names_the_nearest_one() {
    let config = "data_dir = \"{dir}/data\"\n[intake]\nlisten = [\"127.0.0.1:0\"]\nbody_maxx = 3\n";
    assert_refused(config, 2, &["bluehook.toml", "body_maxx", "body_max"]);
}

#[test]
fn a_wrong_type_is_named() {
    let config = "data_dir = \"{dir}/data\"\n[intake]\nconnections_max = \"many\"\n";
    assert_refused(config, 2, &["bluehook.toml", "intake.connections_max"]);
}

#[test]
fn a_missing_secret_file_is_named() {
    let config = format!(
        "{BASIC}[[source]]\nname = \"bluereplies\"\npath = \"/w\"\nsecrets = [{{ file = \"{{dir}}/nowhere\" }}]\n"
    );
    assert_refused(&config, 2, &["nowhere", "secrets"]);
}

#[test]
fn a_handler_of_two_kinds_is_refused() {
    let config = format!(
        "{BASIC}[[handler]]\nname = \"two\"\nevents = [\"*\"]\nfile = {{ path = \"/x\" }}\nexec = {{ command = [\"/bin/true\"] }}\n"
    );
    assert_refused(&config, 2, &["bluehook.toml:4", "handler[0]", "http", "exec", "file"]);
}

#[test]
fn a_template_that_does_not_compile_is_refused() {
    let config = format!(
        "{BASIC}[[handler]]\nname = \"crm\"\nevents = [\"*\"]\nexec = {{ command = [\"/bin/true\", \"{{{{ data.from\"] }}\n"
    );
    assert_refused(&config, 2, &["bluehook.toml", "crm", "command"]);
}

#[test]
fn a_template_that_names_an_unknown_secret_is_refused() {
    let config = format!(
        "{BASIC}[[handler]]\nname = \"crm\"\nevents = [\"*\"]\nhttp = {{ url = \"http://127.0.0.1:1/\", headers = {{ Authorization = \"{{{{ secret('crmm') }}}}\" }} }}\n"
    );
    assert_refused(&config, 2, &["crm", "crmm"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let config = format!("data_dir = \"{{dir}}/data\"\n[intake]\nlisten = [\"{addr}\"]\n");
    assert_refused(&config, 1, &[&addr, "another program uses the port", "intake.listen"]);
}

#[test]
fn a_data_directory_of_a_running_instance_is_refused() {
    let server = Server::start("");
    let config = format!(
        "data_dir = \"{}\"\n[intake]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nsocket = \"{{dir}}/other.sock\"\n",
        server.data().display()
    );
    assert_refused(&config, 1, &[&server.data().display().to_string(), &server.pid().to_string()]);
}

#[test]
fn an_unwritable_directory_is_refused() {
    // Root may write anywhere but below a file and on a read-only file system.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let config =
        format!("data_dir = \"{}/data\"\n[intake]\nlisten = [\"127.0.0.1:0\"]\n", file.display());
    assert_refused(&config, 1, &[&file.display().to_string()]);
}

#[test]
fn an_appliance_that_does_not_run_is_exit_code_4() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let output = binary().arg("status").arg("--socket").arg(&socket).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(&socket.display().to_string()), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
}

#[test]
fn what_is_not_there_is_exit_code_3_and_bad_usage_is_2() {
    let server = Server::start("");
    assert_eq!(server.cli(&["events", "show", "evt_none"]).status.code(), Some(3));
    assert_eq!(server.cli(&["events", "list", "--limit", "x"]).status.code(), Some(2));
    assert_eq!(server.cli(&["no-such-verb"]).status.code(), Some(2));
}

#[test]
fn a_bad_new_configuration_is_refused_at_reload_and_the_running_one_stays() {
    let server = Server::start("");
    let good = std::fs::read_to_string(server.config()).unwrap();
    std::fs::write(server.config(), format!("{good}\n[nonsense]\nx = 1\n")).unwrap();
    server.signal("-HUP");
    crate::support::eventually("the refusal is in the log", || {
        server.log().contains("nonsense").then_some(())
    });
    let body = crate::support::event_body("evt_1", "message.sent", 1);
    assert_eq!(server.client().post_signed(&body).unwrap().status, 200);
}

#[test]
fn a_reload_brings_a_new_handler_that_starts_with_new_events() {
    let server = Server::start("");
    let mut client = server.client();
    let post = |client: &mut crate::support::Client, id: &str| {
        client.post_signed(&crate::support::event_body(id, "message.sent", 1)).unwrap().status
    };
    assert_eq!(post(&mut client, "evt_before"), 200);
    server.write_config(
        "[[handler]]\nname = \"late\"\nevents = [\"*\"]\nfile = { path = \"{dir}/late.jsonl\" }\n[[handler]]\nname = \"all\"\nevents = [\"*\"]\nstart = \"beginning\"\nfile = { path = \"{dir}/all.jsonl\" }\n",
    );
    server.signal("-HUP");
    let late = server.dir.path().join("late.jsonl");
    crate::support::eventually(
        "the whole log reached the handler that starts at the beginning",
        || {
            (crate::support::lines_of(&server.dir.path().join("all.jsonl")).len() == 1)
                .then_some(())
        },
    );
    assert_eq!(post(&mut client, "evt_after"), 200);
    crate::support::eventually("the new event reached the late handler", || {
        let lines = crate::support::lines_of(&late);
        assert!(!lines.iter().any(|l| l.contains("evt_before")), "{lines:?}");
        (lines.len() == 1).then_some(())
    });
}
