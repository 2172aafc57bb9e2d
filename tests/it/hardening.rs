//! What is ours stays ours: memory, files, and where handlers may connect to.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use crate::neighbours::run_by_a_user_of_its_own;
use crate::support::{Server, event_body, eventually, lines_of};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("only root can do this: nothing tested");
    }
    root
}

#[test]
fn nobody_looks_into_the_memory_and_a_crash_leaves_no_core() {
    if !is_root() {
        return;
    }
    let mut server = Server::stopped(
        r#"
        [[handler]]
        name = "nosy"
        events = ["*"]
        exec = { command = ["/bin/sh", "-c", """
            for file in environ mem maps; do cat /proc/$PPID/$file > /dev/null 2>&1 && echo "$file"; done
            tr '\\0' '\\n' < /proc/self/environ | grep -c SECRET
            ulimit -c
            echo done"""] }
        "#,
    );
    run_by_a_user_of_its_own(
        &mut server,
        &["prlimit", "--core=unlimited", "env", "WEBHOOK_SECRET=hush"],
    );
    server.spawn();
    let post = |id: &str| server.client().post_signed(&event_body(id, "message.sent", 1)).unwrap();
    assert_eq!(post("evt_1").status, 200);
    let attempt = eventually("the handler has run", || {
        let event = server.cli_json(&["events", "show", "evt_1"]).remove(0);
        let attempts = event["deliveries"][0]["attempts"].as_array()?.clone();
        attempts.first().filter(|attempt| attempt["outcome"] == "delivered").cloned()
    });
    let response = attempt["response"].as_str().unwrap();
    let said: Vec<&str> =
        response.lines().skip_while(|line| !line.starts_with("stdout")).skip(1).collect();
    assert_eq!(said, ["0", "0", "done"], "{response}");
    server.signal("-ABRT");
    let status = eventually("it crashed", || server.ended());
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}

#[test]
fn what_is_stored_is_its_owners_alone() {
    let mut server = Server::stopped("");
    std::fs::create_dir(server.data()).unwrap();
    std::fs::set_permissions(server.data(), std::fs::Permissions::from_mode(0o755)).unwrap();
    server.spawn();
    assert_eq!(server.client().post_signed(&event_body("evt_1", "t", 1)).unwrap().status, 200);
    let socket = server.dir.path().join("admin.sock");
    assert_eq!((mode(&server.data()), mode(&socket)), (0o700, 0o600));
    for name in ["lock", "store-version", "timeline", "admin.token", "log/00000001.seg"] {
        assert_eq!(mode(&server.data().join(name)), 0o600, "{name}");
    }
}

#[test]
fn links_in_the_data_directory_are_refused_and_what_they_lead_to_is_untouched() {
    let mut server = Server::start("");
    assert_eq!(server.client().post_signed(&event_body("evt_1", "t", 1)).unwrap().status, 200);
    server.stop();
    let elsewhere = server.dir.path().join("elsewhere");
    std::fs::write(&elsewhere, "precious").unwrap();
    let data = server.data();
    let mut refused = |link: &Path, says: &str| {
        let status = server.try_spawn().unwrap_err();
        let log = server.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(&link.display().to_string()) && log.contains(says), "{log}");
    };
    // One in the place of a file of ours, one of a name that will be made, one in the index, one to a folder.
    let timeline = data.join("timeline");
    std::fs::rename(&timeline, data.join("kept")).unwrap();
    symlink(&elsewhere, &timeline).unwrap();
    refused(&timeline, "is a symbolic link");
    std::fs::remove_file(&timeline).unwrap();
    std::fs::rename(data.join("kept"), &timeline).unwrap();
    for name in ["timeline.new", "log/00000002.seg", "index/conf.new"] {
        symlink(&elsewhere, data.join(name)).unwrap();
        refused(&data.join(name), "is a symbolic link");
        std::fs::remove_file(data.join(name)).unwrap();
    }
    let (log, moved) = (data.join("log"), server.dir.path().join("log"));
    std::fs::rename(&log, &moved).unwrap();
    symlink(&moved, &log).unwrap();
    let status = server.try_spawn().unwrap_err();
    assert_eq!(status.code(), Some(1));
    assert!(server.log().contains("is a symbolic link"), "{}", server.log());
    std::fs::remove_file(&log).unwrap();
    std::fs::rename(&moved, &log).unwrap();

    std::fs::hard_link(log.join("00000001.seg"), server.dir.path().join("second-name")).unwrap();
    assert!(server.try_spawn().is_err());
    assert!(server.log().contains("00000001.seg is a hard link"), "{}", server.log());
    std::fs::remove_file(server.dir.path().join("second-name")).unwrap();
    server.spawn();
    assert_eq!(server.cli_json(&["events", "list"]).len(), 1);
    assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "precious");
    // The folder itself may be one: its owner chose where it lies.
    server.stop();
    let real = server.dir.path().join("real");
    std::fs::rename(&data, &real).unwrap();
    symlink(&real, &data).unwrap();
    server.spawn();
    assert_eq!(server.cli_json(&["events", "list"]).len(), 1);
}

#[test]
fn of_outputs_and_responses_so_much_is_kept_as_is_configured() {
    let talks =
        crate::support::Receiver::start(|_| (200, "x-long: abcdefghijklmnopqrstuvwxyz\r\n"));
    let server = Server::start(&format!(
        "[limits]\nkept = \"2 KiB\"\n[[handler]]\nname = \"talks\"\nevents = [\"*\"]\n\
         exec = {{ command = [\"/usr/bin/head\", \"-c\", \"100000\", \"/dev/zero\"] }}\n\
         [[handler]]\nname = \"web\"\nevents = [\"*\"]\nhttp = {{ url = \"{}\" }}\n",
        talks.url(&format!("/{}", "p".repeat(5_000)))
    ));
    assert_eq!(server.client().post_signed(&event_body("evt_1", "t", 1)).unwrap().status, 200);
    let kept = |handler: &str, what: &str| {
        eventually(&format!("{handler} has run"), || {
            let event = server.cli_json(&["events", "show", "evt_1"]).remove(0);
            let of =
                event["deliveries"].as_array()?.iter().find(|d| d["handler"] == handler)?.clone();
            Some(of["attempts"][0][what].as_str()?.len())
        })
    };
    let lengths = [kept("talks", "response"), kept("web", "request")];
    assert!(lengths.iter().all(|n| (2_048..2_200).contains(n)), "{lengths:?}");
}

#[test]
fn a_template_that_comes_to_too_much_is_a_dead_delivery() {
    let server = Server::start(
        "[limits]\nrendered_max = \"1 KiB\"\n[[handler]]\nname = \"big\"\nevents = [\"*\"]\n\
         exec = { command = [\"/bin/true\", \"{{ data.body }}{{ data.body }}\"] }\n",
    );
    for (id, length) in [("evt_small", 512), ("evt_big", 513)] {
        let body = serde_json::json!({ "eventId": id, "type": "t", "data": { "body": "x".repeat(length) } });
        assert_eq!(server.client().post_signed(&body.to_string()).unwrap().status, 200);
    }
    let dead = eventually("the dead letter", || server.cli_json(&["dead", "list"]).pop());
    assert_eq!(dead["eventId"], "evt_big");
    assert!(dead["reason"].as_str().unwrap().contains("limits.rendered_max"), "{dead}");
    let count = |outcome: &str| {
        server.metric(&format!("bluehook_attempts_total{{handler=\"big\",outcome=\"{outcome}\"}}"))
    };
    eventually("both have ended", || {
        ((count("delivered"), count("reject")) == (1.0, 1.0)).then_some(())
    });
}

/// A resolver that first gives a public address and then one of this machine, and web servers on both, in a network of
/// their own.
const REBINDING: &str = r#"
import http.server, socket, struct, sys, threading
public, folder = sys.argv[1], sys.argv[2]
log = lambda name, line: open(f"{folder}/{name}", "a").write(line + "\n")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        log("reached", self.connection.getsockname()[0])
        self.send_response(200)
        # The name is looked up anew for each request.
        self.send_header("connection", "close")
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *a): pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dns.bind(("127.0.0.1", 53))
log("ready", "yes")
asked = 0
while True:
    query, peer = dns.recvfrom(512)
    end = query.index(b"\0", 12) + 5
    kind = struct.unpack("!H", query[end - 4:end - 2])[0]
    name = query[13:13 + query[12]].decode()
    answers = b""
    if kind == 1:
        if name == "rebind":
            asked += 1
            address = public if asked == 1 else "127.0.0.1"
        else:
            address = {"meta": "169.254.169.254", "inner": "127.0.0.1"}[name]
        answers = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
    log("asked", f"{name} {kind}")
    head = query[:2] + b"\x81\x80" + struct.pack("!HHHH", 1, 1 if answers else 0, 0, 0)
    dns.sendto(head + query[12:end] + answers, peer)
"#;

#[test]
fn a_name_that_turns_into_an_inner_address_is_not_connected_to() {
    if !is_root() {
        return;
    }
    let handler = |name: &str, host: &str, more: &str| {
        format!(
            "[[handler]]\nname = \"{name}\"\nevents = [\"{name}\"]\nhttp = {{ url = \"http://{host}:8080/\"{more} }}\n"
        )
    };
    let config = format!(
        "[schedule]\ndelays = [\"0s\"]\n{}{}{}{}",
        handler("rebind", "rebind.test", ""),
        handler("inner", "inner.test", ", allow_private = true"),
        handler("meta", "meta.test", ", allow_private = true"),
        handler("literal", "169.254.169.254", ", allow_private = true"),
    );
    let mut server = Server::stopped(&config);
    let dir = server.dir.path().to_owned();
    std::fs::write(dir.join("rebinding.py"), REBINDING).unwrap();
    std::fs::write(dir.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        .unwrap();
    let script = format!(
        "set -e; cd '{dir}'; mount --bind resolv.conf /etc/resolv.conf; ip link set lo up\n\
         ip address add 203.0.114.9/32 dev lo; ip address add 169.254.169.254/32 dev lo\n\
         setpriv --pdeathsig KILL python3 rebinding.py 203.0.114.9 . & \n\
         while [ ! -e ready ]; do sleep 0.05; done; exec \"$@\"",
        dir = dir.display()
    );
    let through = ["unshare", "--net", "--mount", "sh", "-c", &script, "sh"];
    server.through = through.map(str::to_owned).to_vec();
    // A proxy that the environment names is not asked.
    server.through.extend(
        ["env", "http_proxy=http://127.0.0.1:8080", "HTTP_PROXY=http://127.0.0.1:8080"]
            .map(str::to_owned),
    );
    server.spawn();
    let trigger = |kind: &str| {
        server.cli_ok(&["trigger", kind, "--quiet"]);
    };
    trigger("rebind");
    let reached = dir.join("reached");
    eventually("the public address is reached", || {
        (lines_of(&reached) == ["203.0.114.9"]).then_some(())
    });
    trigger("rebind");
    let reason = |handler: &str| {
        eventually(&format!("{handler} is refused"), || {
            let dead = server.cli_json(&["dead", "list", "--handler", handler]).pop()?;
            dead["reason"].as_str().map(str::to_owned)
        })
    };
    let said = reason("rebind");
    assert!(said.contains("rebind.test is 127.0.0.1") && said.contains("allow_private"), "{said}");
    trigger("meta");
    let said = reason("meta");
    assert!(said.contains("169.254.169.254") && said.contains("nothing allows it"), "{said}");
    trigger("literal");
    let said = reason("literal");
    assert!(said.contains("nothing allows it"), "{said}");
    trigger("inner");
    eventually("what is allowed is reached", || {
        (lines_of(&reached) == ["203.0.114.9", "127.0.0.1"]).then_some(())
    });
}
