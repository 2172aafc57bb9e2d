//! Who may come in over TCP: whoever has the token, or a session that a sign-in link opened.
//!
//! The token lies in the data directory for its owner alone; scripts send it as a bearer token. A link holds a
//! code that works once and soon; it is exchanged for a session cookie, which a restart doesn't end. Deleting
//! the token's file and restarting ends all sessions.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::clock::Clock;

const TOKEN_FILE: &str = "admin.token";
const TOKEN_BYTES: usize = 32;
/// How long a sign-in link works.
pub const CODE_LIFE: Duration = Duration::from_secs(5 * 60);
/// Links that wait to be opened.
const CODES_MAX: usize = 64;
/// How long a session lasts.
pub const SESSION_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

pub struct Door {
    /// Where the page is served.
    pub address: SocketAddr,
    token: String,
    /// Codes that were given out, and until when they work, by the boot clock.
    codes: Mutex<HashMap<String, i64>>,
    clock: Arc<dyn Clock>,
}

impl Door {
    /// Reads the token, or makes one on the first start.
    ///
    /// # Errors
    /// One line: what, why, what to do next.
    pub fn open(
        data_dir: &Path,
        address: SocketAddr,
        clock: Arc<dyn Clock>,
    ) -> Result<Door, String> {
        let path = token_path(data_dir);
        let token = read_or_create(&path).map_err(|e| {
            format!(
                "cannot read or make the admin token {}: {e}; check the folder, or delete that file to get a new one",
                path.display()
            )
        })?;
        Ok(Door { address, token, codes: Mutex::default(), clock })
    }

    /// A link that signs in once, within [`CODE_LIFE`].
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn link(&self) -> Result<String, String> {
        let code = random_hex().map_err(|e| format!("cannot make a sign-in link: {e}"))?;
        let now = self.clock.now().boot_ms;
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        codes.retain(|_, until| *until > now);
        if codes.len() >= CODES_MAX
            && let Some(oldest) = codes.iter().min_by_key(|(_, until)| **until)
        {
            let oldest = oldest.0.clone();
            codes.remove(&oldest);
        }
        codes.insert(code.clone(), now.saturating_add(ms(CODE_LIFE)));
        Ok(format!("http://{}/signin?code={code}", self.address))
    }

    /// The session that a link's code opens, as the cookie's value; a second time, or too late, none.
    pub(super) fn redeem(&self, code: &str) -> Option<String> {
        let now = self.clock.now();
        let until = self.codes.lock().unwrap_or_else(PoisonError::into_inner).remove(code)?;
        if until <= now.boot_ms {
            return None;
        }
        let expires = now.wall.plus(SESSION_LIFE).0;
        Some(format!("{expires}.{}", hex::encode(self.sealed(expires))))
    }

    pub(super) fn knows_token(&self, token: &str) -> bool {
        token.as_bytes().ct_eq(self.token.as_bytes()).into()
    }

    pub(super) fn knows_session(&self, cookie: &str) -> bool {
        let Some((expires, seal)) = cookie.split_once('.') else { return false };
        let (Ok(expires), Ok(seal)) = (expires.parse::<i64>(), hex::decode(seal)) else {
            return false;
        };
        expires > self.clock.now().wall.0 && bool::from(seal.ct_eq(&self.sealed(expires)))
    }

    fn sealed(&self, expires: i64) -> Vec<u8> {
        // A key of any length will do.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.token.as_bytes()) else {
            return Vec::new();
        };
        mac.update(b"bluehook session until ");
        mac.update(&expires.to_be_bytes());
        mac.finalize().into_bytes().to_vec()
    }
}

/// Where the token lies.
#[must_use]
pub fn token_path(data_dir: &Path) -> PathBuf {
    data_dir.join(TOKEN_FILE)
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn random_hex() -> io::Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(hex::encode(bytes))
}

fn is_token(text: &str) -> bool {
    text.len() >= TOKEN_BYTES && text.bytes().all(|b| b.is_ascii_graphic())
}

fn read_or_create(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if is_token(text.trim()) => return Ok(text.trim().to_owned()),
        // Of a crash while it was made, or of a disk that rots.
        Ok(_) => std::fs::remove_file(path)?,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => std::fs::remove_file(path)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let token = random_hex()?;
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(token.as_bytes())?;
    file.write_all(b"\n")?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::clock::{TestClock, Timestamp};

    fn door(dir: &Path, clock: &Arc<TestClock>) -> Door {
        Door::open(dir, ([127, 0, 0, 1], 3001).into(), clock.clone()).unwrap()
    }

    fn code(door: &Door) -> String {
        door.link().unwrap().split_once("code=").unwrap().1.to_owned()
    }

    #[test]
    fn a_link_signs_in_once_and_soon() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::new(Timestamp(1_790_000_000_000)));
        let door = door(dir.path(), &clock);
        let first = code(&door);
        let session = door.redeem(&first).unwrap();
        assert!(door.knows_session(&session));
        assert_eq!(door.redeem(&first), None, "once");
        let late = code(&door);
        clock.advance(CODE_LIFE);
        assert_eq!(door.redeem(&late), None, "soon");
        assert_eq!(door.redeem(""), None);
    }

    #[test]
    fn a_session_outlives_a_restart_and_ends_in_a_week_or_with_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::new(Timestamp(1_790_000_000_000)));
        let first = door(dir.path(), &clock);
        let session = first.redeem(&code(&first)).unwrap();
        let again = door(dir.path(), &clock);
        assert!(again.knows_session(&session));
        let (expires, seal) = session.split_once('.').unwrap();
        let longer = expires.parse::<i64>().unwrap() + 1;
        for forged in [format!("{longer}.{seal}"), format!("{expires}."), expires.to_owned()] {
            assert!(!again.knows_session(&forged), "{forged}");
        }
        clock.advance(SESSION_LIFE);
        assert!(!again.knows_session(&session));
        clock.set_wall(Timestamp(1_790_000_000_000));
        std::fs::remove_file(token_path(dir.path())).unwrap();
        assert!(!door(dir.path(), &clock).knows_session(&session));
    }

    #[test]
    fn the_token_is_private_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::new(Timestamp(0)));
        drop(door(dir.path(), &clock));
        let path = token_path(dir.path());
        let token = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let door = door(dir.path(), &clock);
        assert!(door.knows_token(token.trim()));
        assert!(!door.knows_token("") && !door.knows_token(&token.trim()[1..]));
        for rotten in [&b""[..], b"short", &[0; 64], &[0xff; 64]] {
            std::fs::write(&path, rotten).unwrap();
            drop(self::door(dir.path(), &clock));
            assert_eq!(std::fs::read(&path).unwrap().len(), 65, "a new one");
        }
    }
}
