//! The unix socket: made, guarded by its file mode and by who connects, and served.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::serve::Accept;
pub use super::serve::Respond;

/// How long a refused client may take to hear it.
const REFUSAL_MAX: Duration = Duration::from_secs(2);

/// A bound socket; its file goes when this is dropped.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Best effort: one that stays is found stale at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds `path` with mode 0600. A socket that is there already is removed only if nobody answers on it.
///
/// # Errors
/// One line: what, why, what to do next.
pub async fn bind(path: &Path) -> Result<Socket, String> {
    let shown = path.display();
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(format!(
                "cannot make the admin socket {shown}: another file is there; move it, or set admin.socket"
            ));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(format!(
                "cannot make the admin socket {shown}: another bluehook answers there; stop it, or set \
                 admin.socket"
            ));
        }
        std::fs::remove_file(path).map_err(|e| {
            format!("cannot remove the stale admin socket {shown}: {e}; remove it by hand")
        })?;
    }
    bind_private(path).map_err(|e| {
        format!("cannot make the admin socket {shown}: {e}; check the folder, or set admin.socket")
    })
}

/// The socket gets its name only once its mode is right, so that nobody can connect in between.
fn bind_private(path: &Path) -> io::Result<Socket> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder)?;
    }
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(hidden);
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden)?;
    let ready = std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&hidden, path));
    if let Err(e) = ready {
        let _ = std::fs::remove_file(&hidden);
        return Err(e);
    }
    Ok(Socket { listener, path: path.to_owned() })
}

impl Accept for Socket {
    type Stream = UnixStream;

    /// Whoever the file mode lets in, by a careless chmod or a folder that others may look into, is asked again: only
    /// the user that bluehook runs as, and root, may steer it.
    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let own = rustix::process::geteuid().as_raw();
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == own || peer.uid() == 0 => return Ok(stream),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "refused on the admin socket: another user");
                    tokio::spawn(refuse(stream, own));
                }
                Err(error) => tracing::warn!(%error, "refused on the admin socket: nobody known"),
            }
        }
    }
}

/// Says why, as the routes would.
async fn refuse(mut stream: UnixStream, own: u32) {
    let body = serde_json::json!({
        "title": "Forbidden",
        "status": 403,
        "detail": format!(
            "the admin socket is for user {own} and root; run the command as one of them, with sudo say"
        ),
    })
    .to_string();
    let head = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    // Who has gone needs no answer.
    let told = async {
        // An answer before the question is none to most clients.
        let _ = stream.read(&mut [0; 1024]).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(REFUSAL_MAX, told).await;
}

/// Serves until `stop` is ready.
pub async fn serve(socket: Socket, respond: Respond, stop: impl Future<Output = ()>) {
    super::serve::serve("admin socket", socket, respond, stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_a_stale_one_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/admin.sock");
        let first = bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = bind(&path).await.err().unwrap();
        assert!(refused.contains("another bluehook answers"), "{refused}");

        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a stale socket file is there");
        assert!(bind(&path).await.is_ok());
    }

    #[tokio::test]
    async fn a_plain_file_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(bind(&path).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
