//! Opens the sockets that requests come in on.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use crate::config::Listen;

pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Sockets that accept from now on (the kernel queues), served by [`super::serve()`].
pub struct Bound {
    pub(super) sockets: Vec<Socket>,
    addresses: Vec<Listen>,
    /// Removed when the sockets are.
    files: SocketFiles,
}

impl Bound {
    /// Where they are, with the real port in place of port 0.
    #[must_use]
    pub fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    pub(super) fn into_parts(self) -> (Vec<Socket>, SocketFiles) {
        (self.sockets, self.files)
    }
}

#[derive(Default)]
pub(super) struct SocketFiles(Vec<PathBuf>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            // Someone else may have tidied up already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opens `listen`; or, where systemd has passed sockets, takes those instead.
///
/// # Errors
/// One line: which address, why, what to do.
pub async fn bind(listen: &[Listen], passed: &mut ListenFd) -> Result<Bound, String> {
    let mut bound =
        Bound { sockets: Vec::new(), addresses: Vec::new(), files: SocketFiles::default() };
    for index in 0..passed.len() {
        let (socket, address) = take_passed(passed, index).map_err(|e| {
            format!("cannot use socket {index} passed by the service manager: {e}; pass stream sockets (ListenStream=)")
        })?;
        bound.sockets.push(socket);
        bound.addresses.push(address);
    }
    if !bound.sockets.is_empty() {
        // No warning: who listens on port 443 by a socket unit leaves intake.listen as it is.
        if bound.addresses != listen {
            tracing::info!(
                "the service manager passed {} instead of intake.listen ({}); change its socket unit for another address",
                Listen::list(&bound.addresses),
                Listen::list(listen)
            );
        }
        return Ok(bound);
    }
    for address in listen {
        match address {
            Listen::Tcp(address) => {
                let listener =
                    TcpListener::bind(address).await.map_err(|e| tcp_error(*address, &e))?;
                bound.addresses.push(Listen::Tcp(listener.local_addr().unwrap_or(*address)));
                bound.sockets.push(Socket::Tcp(listener));
            }
            Listen::Unix(path) => {
                bound.sockets.push(Socket::Unix(bind_unix(path)?));
                bound.files.0.push(path.clone());
                bound.addresses.push(Listen::Unix(path.clone()));
            }
        }
    }
    Ok(bound)
}

fn take_passed(passed: &mut ListenFd, index: usize) -> io::Result<(Socket, Listen)> {
    if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        return Ok((Socket::Tcp(TcpListener::from_std(listener)?), Listen::Tcp(address)));
    }
    let listener = passed
        .take_unix_listener(index)?
        .ok_or_else(|| io::Error::other("it has been taken already"))?;
    listener.set_nonblocking(true)?;
    let path = listener.local_addr()?.as_pathname().unwrap_or(Path::new("@")).to_owned();
    Ok((Socket::Unix(UnixListener::from_std(listener)?), Listen::Unix(path)))
}

fn tcp_error(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "cannot listen on {address}: another program uses the port; stop it (ss -ltnp 'sport = :{port}' shows it) or change intake.listen"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "cannot listen on {address}: not permitted; use a port above 1023, a proxy, or a socket passed by systemd"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "cannot listen on {address}: this machine has no such address; set intake.listen to one of its own, or 0.0.0.0"
        ),
        _ => format!("cannot listen on {address}: {error}; change intake.listen"),
    }
}

fn bind_unix(path: &Path) -> Result<UnixListener, String> {
    let shown = path.display();
    let fail = |e: io::Error| {
        format!("cannot listen on unix:{shown}: {e}; check its folder or change intake.listen")
    };
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
    .map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(fail)?;
    Ok(listener)
}

/// A socket file that nobody answers on was left by a process that died.
fn remove_stale(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if !is_socket {
        return Err(format!(
            "cannot listen on unix:{shown}: a file that is no socket is there; move it or change intake.listen"
        ));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|e| {
                format!("cannot listen on unix:{shown}: cannot remove the stale socket: {e}; remove it by hand")
            })
        }
        _ => Err(format!(
            "cannot listen on unix:{shown}: another program answers there; stop it or change intake.listen"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bind_one(listen: Listen) -> Result<Bound, String> {
        bind(&[listen], &mut ListenFd::empty()).await
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_what_to_do() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let first = bind_one(Listen::Tcp(any)).await.unwrap();
        let Listen::Tcp(address) = first.addresses()[0] else { panic!("not tcp") };
        assert_ne!(address.port(), 0);
        let error = bind_one(Listen::Tcp(address)).await.err().unwrap();
        assert!(error.contains(&address.to_string()) && error.contains("intake.listen"), "{error}");
        assert!(!error.contains('\n'));
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let bound = bind_one(Listen::Unix(path.clone())).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let error = bind_one(Listen::Unix(path.clone())).await.err().unwrap();
        assert!(error.contains("another program answers"), "{error}");
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(bind_one(Listen::Unix(path.clone())).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }
}
