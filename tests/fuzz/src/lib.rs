//! libFuzzer targets; each is a program in `src/bin`, run by `tests/fuzz/run`.

pub mod targets;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use bluehook::config::LoadOptions;
use bluehook::server::{self, ServeOptions};

/// The appliance in this process: its intake, its page, and what opens that.
pub struct Appliance {
    pub intake: SocketAddr,
    pub page: SocketAddr,
    pub token: String,
}

pub fn appliance() -> &'static Appliance {
    static ONE: OnceLock<Appliance> = OnceLock::new();
    ONE.get_or_init(|| {
        let dir = tempfile::tempdir_in("/dev/shm").expect("there is memory").keep();
        let [intake, page] = [0; 2].map(|_| {
            TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
        });
        let shown = dir.display();
        let file = dir.join("bluehook.toml");
        let config = format!(
            "data_dir = \"{shown}/data\"\n[intake]\nlisten = \"{intake}\"\nread_timeout = \"1s\"\n\
             failed_signatures = \"1000000/s\"\n[admin]\nlisten = \"{page}\"\n[log]\nlevel = \"error\"\n\
             [retention]\ndisk_max = \"64 MiB\"\n[[handler]]\nname = \"crm\"\nevents = [\"*\"]\n\
             file = {{ path = \"{shown}/events.jsonl\", rotate = \"1 MiB\", keep = 1 }}\n"
        );
        std::fs::write(&file, config).unwrap();
        let env = vec![("WEBHOOK_SECRET".to_owned(), "fuzz".to_owned())];
        let load = LoadOptions { file: Some(file), env, cwd: dir.clone(), ..LoadOptions::default() };
        std::thread::spawn(move || {
            let code = server::serve(&ServeOptions { load, virtual_clock: None });
            eprintln!("serve ended with {code}");
            std::process::abort();
        });
        let token = loop {
            let token = std::fs::read_to_string(dir.join("data/admin.token")).unwrap_or_default();
            if !token.is_empty() && TcpStream::connect(page).is_ok() {
                break token.trim().to_owned();
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        Appliance { intake, page, token }
    })
}

/// As strangers come: raw bytes, one connection.
pub fn ask(address: SocketAddr, data: &[u8]) -> Vec<u16> {
    let stream = TcpStream::connect(address).expect("it accepts");
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let half = stream.try_clone().unwrap();
    targets::converse(Both(stream), || drop(half.shutdown(Shutdown::Write)), data)
}

struct Both(TcpStream);

impl Read for Both {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Both {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
