//! What the service manager hears, on a socket like its own. Under a real one: packaging/test.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Client, Server, event_body, eventually};

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn of(server: &Server) -> Manager {
        let path = server.dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Manager { socket, path }
    }

    /// For what the process is started through.
    fn environment(&self) -> Vec<String> {
        ["env", &format!("NOTIFY_SOCKET={}", self.path.display()), "WATCHDOG_USEC=200000"]
            .map(str::to_owned)
            .to_vec()
    }

    fn said(&self) -> String {
        let mut buffer = [0; 4096];
        let got = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..got].to_vec()).unwrap()
    }

    /// What is said next, the watchdog's food left out.
    fn next(&self) -> String {
        eventually("another message", || Some(self.said()).filter(|m| !m.contains("WATCHDOG=1")))
    }

    fn await_food(&self) {
        eventually("the watchdog is fed", || self.said().contains("WATCHDOG=1").then_some(()));
    }
}

/// A disk that takes long to sync; the process as such is alive.
#[test]
fn the_watchdog_is_not_fed_while_the_log_stands_still() {
    let mut server = Server::stopped("");
    let manager = Manager::of(&server);
    server.through = manager.environment();
    let slow = "inject=fdatasync:delay_enter=1500000";
    let strace = ["strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e"];
    server
        .through
        .extend(strace.into_iter().chain(["trace=fdatasync", "-e", slow]).map(str::to_owned));
    server.spawn();
    manager.await_food();
    let addr = server.addr;
    let sender = std::thread::spawn(move || {
        Client::new(addr).post_signed(&event_body("evt_1", "message.read", 1)).unwrap().status
    });
    eventually("it is noticed", || server.log().contains("no progress").then_some(()));
    assert_eq!(sender.join().unwrap(), 200);
    manager.await_food();
}

#[test]
fn the_service_manager_hears_of_start_life_reload_and_stop() {
    let mut server = Server::stopped("");
    let manager = Manager::of(&server);
    server.through = manager.environment();
    server.spawn();
    let ready = manager.next();
    assert!(ready.contains("READY=1\n"), "{ready}");
    assert!(ready.contains(&format!("STATUS=accepting events on {}", server.addr)), "{ready}");
    for _ in 0..3 {
        manager.await_food();
    }
    server.signal("-HUP");
    let reloading = manager.next();
    assert!(reloading.contains("RELOADING=1\n"), "{reloading}");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert!(manager.next().contains("READY=1\n"));
    server.signal("-TERM");
    assert!(manager.next().contains("STOPPING=1\n"));
    server.wait_for_the_end();
    assert!(!server.log().contains("no progress"), "{}", server.log());
}
