//! Neighbours that take all there is of something: connections, files, processes, turns. Acknowledgements go on.

use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::soak::resident_mib;
use crate::support::{PATIENCE, Program, Receiver, Server, event_body, eventually, lines_of, rng};

/// The sender gives up after this long.
const SENDER_WAITS: Duration = Duration::from_secs(5);

/// Posts events, each on a connection of its own, until told to stop; gives how long each answer took.
fn post_until(server: &Server, name: &str, stop: &AtomicBool) -> Vec<Duration> {
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let n = took.len();
        let body = event_body(&format!("evt_{name}_{n}"), "message.sent", n as u64);
        let asked = Instant::now();
        let answer = server.client().post_signed(&body).unwrap();
        let waited = asked.elapsed();
        assert_eq!(answer.status, 200, "{name} {n}, after {waited:?}\n{}", server.log());
        assert!(waited < SENDER_WAITS, "{name} {n}: {waited:?}");
        took.push(waited);
        std::thread::sleep(Duration::from_millis(10));
    }
    took
}

/// While `during` runs, a sender posts; all of it must be acknowledged.
fn acknowledged_during(server: &Server, name: &str, during: impl FnOnce()) -> usize {
    let stop = AtomicBool::new(false);
    let mut took = std::thread::scope(|scope| {
        let posting = scope.spawn(|| post_until(server, name, &stop));
        during();
        stop.store(true, Ordering::Relaxed);
        posting.join().unwrap()
    });
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    println!(
        "{name}: {} acknowledged, p99 {p99:?}, {} MiB",
        took.len(),
        resident_mib(server.pid())
    );
    took.len()
}

fn slowhttptest(server: &Server, mode: &[&str]) -> Child {
    Command::new("slowhttptest")
        .args(["-c", "1500", "-r", "500", "-l", "8", "-i", "1", "-p", "2"])
        .args(mode)
        .args(["-u", &format!("http://{}{}", server.addr, crate::support::PATH)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn slow_and_idle_connections_keep_nobody_out() {
    let _most = bluehook::process::allow_open_files(8_192);
    let server = Server::start("");
    assert!(
        acknowledged_during(&server, "warm", || std::thread::sleep(Duration::from_secs(1))) > 10
    );
    let before = resident_mib(server.pid());
    for (name, mode) in [
        ("slow headers", &["-H", "-x", "24"][..]),
        ("slow bodies", &["-B", "-s", "8192", "-x", "10"]),
        ("ranges", &["-R", "-a", "1", "-b", "3000"]),
        ("slow reading", &["-X", "-w", "1", "-y", "2", "-z", "1"]),
    ] {
        let mut attack = slowhttptest(&server, mode);
        let posted = acknowledged_during(&server, name, || {
            assert!(attack.wait().unwrap().code().is_some(), "{name}");
        });
        assert!(posted > 50, "{name}: {posted}");
    }
    let mut idle = Vec::new();
    let posted = acknowledged_during(&server, "2,000 idle", || {
        for _ in 0..2_000 {
            idle.push(TcpStream::connect(server.addr).unwrap());
        }
        std::thread::sleep(Duration::from_secs(3));
    });
    assert!(posted > 50, "{posted}");
    let after = resident_mib(server.pid());
    assert!(after <= before + 32, "{before} MiB before, {after} MiB after");
    assert!(server.metric("bluehook_connections_gave_way_total") >= 1_000.0);
    assert!(server.metric("bluehook_connections") <= 1_025.0);
    drop(idle);
}

const THREE_KINDS: &str = r#"
[[handler]]
name = "http"
events = ["*"]
concurrency = 64
http = { url = "{url}" }
[[handler]]
name = "exec"
events = ["*"]
concurrency = 64
exec = { command = ["/bin/sh", "-c", 'cat > /dev/null; echo "$BLUEHOOK_EVENT_ID" >> {dir}/exec.log'] }
[[handler]]
name = "file"
events = ["*"]
concurrency = 64
file = { path = "{dir}/events.jsonl" }
"#;

#[test]
fn with_64_open_files_everything_is_stored_and_handled() {
    let remote = Receiver::start_counting();
    let mut server = Server::stopped(&THREE_KINDS.replace("{url}", &remote.url("/")));
    server.through = ["prlimit", "--nofile=64"].map(str::to_owned).to_vec();
    server.spawn();
    assert!(server.log().contains("64 open files are allowed"), "{}", server.log());
    assert_eq!(server.metric("process_max_fds"), 64.0);
    let idle: Vec<_> = (0..100).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    // Large enough for the log to need new segments meanwhile.
    let filler = "x".repeat(200_000);
    let events = 200;
    for n in 0..events {
        let body = serde_json::json!({ "eventId": format!("evt_{n}"), "type": "t", "data": { "body": filler } });
        let answer = server.client().post_signed(&body.to_string()).unwrap();
        assert_eq!(answer.status, 200, "{n}: {}", server.log());
    }
    drop(idle);
    assert!(server.metric("process_open_fds") <= 64.0);
    let exec_log = server.dir.path().join("exec.log");
    eventually("every handler has run for every event", || {
        let counts = [
            remote.count(),
            lines_of(&exec_log).len(),
            lines_of(&server.dir.path().join("events.jsonl")).len(),
        ];
        (counts == [events; 3]).then_some(())
    });
    assert!(server.cli(&["status"]).status.success(), "{}", server.log());
    server.stop();
    // Started by the same, it reads what it wrote.
    server.spawn();
    assert_eq!(server.cli_json(&["events", "list", "--limit", "1000"]).len(), events);
}

/// Through `through` besides. Gives the user's number, which nobody else has.
pub fn run_by_a_user_of_its_own(server: &mut Server, through: &[&str]) -> String {
    let user = 200_000 + rng("user").u32(..100_000);
    let dir = server.dir.path().to_owned();
    // The build may lie where only root can look.
    let program = dir.join("bluehook");
    std::fs::copy(env!("CARGO_BIN_EXE_bluehook"), &program).unwrap();
    server.program = Program::at(program);
    for path in [dir.clone(), dir.join("secret"), server.config()] {
        std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap();
    }
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let user = user.to_string();
    let who = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"];
    // A limit on processes is one of the user that sets it.
    server.through = through.iter().chain(&who).map(|word| (*word).to_owned()).collect();
    user
}

#[test]
fn a_command_that_forks_without_end_takes_processes_and_no_acknowledgement() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can give a process a user of its own: nothing tested");
        return;
    }
    let bomb = r#"
        [[handler]]
        name = "bomb"
        events = ["*"]
        timeout = "1s"
        circuit = { failures = 0 }
        exec = { command = ["/usr/bin/python3", "-c", """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""] }
        [[handler]]
        name = "file"
        events = ["*"]
        file = { path = "{dir}/data/events.jsonl" }
    "#;
    let mut server = Server::stopped(bomb);
    let user = run_by_a_user_of_its_own(&mut server, &["prlimit", "--nproc=100"]);
    server.spawn();
    let mut most = 0;
    let posted = acknowledged_during(&server, "fork bomb", || {
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end {
            most = most.max(processes_of(&user));
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(posted > 50, "{posted}");
    assert!(most > 50, "only {most} processes: no bomb went off");
    // The other handler gets on as well.
    eventually("the file has them all", || {
        (lines_of(&server.data().join("events.jsonl")).len() == posted).then_some(())
    });
    server.stop();
    eventually("no process is left", || (processes_of(&user) == 0).then_some(()));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn processes_of(user: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let uid = format!("Uid:\t{user}\t");
    let of_user = |entry: &std::fs::DirEntry| {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        status.contains(&uid) && !status.contains("State:\tZ")
    };
    processes.filter(of_user).count()
}

#[test]
fn ten_thousand_handlers_that_fail_delay_no_acknowledgement() {
    const HANDLERS: usize = 10_000;
    // Takes the connection, and never answers.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", mute.local_addr().unwrap());
    let mut config = String::new();
    for n in 0..HANDLERS {
        config += &format!(
            "[[handler]]\nname = \"h{n}\"\nevents = [\"*\"]\ntimeout = \"1s\"\nhttp = {{ url = \"{url}\" }}\n"
        );
    }
    let server = Server::start(&config);
    println!("{} MiB with {HANDLERS} handlers", resident_mib(server.pid()));
    let posted = acknowledged_during(&server, "10,000 handlers", || {
        std::thread::sleep(Duration::from_secs(10));
    });
    assert!(posted > 50, "{posted}");
    // Its answer may take a while; it comes.
    let running = eventually("attempts run", || {
        let status = server.status();
        let handlers = status["handlers"].as_array().unwrap();
        assert_eq!(handlers.len(), HANDLERS);
        let running: u64 = handlers.iter().map(|h| h["running"].as_u64().unwrap()).sum();
        (running > 0).then_some(running)
    });
    assert!(running <= 256, "{running} at once");
    let mut first = mute.accept().unwrap().0;
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(first.read(&mut [0; 64]).unwrap() > 0);
}
