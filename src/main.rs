use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    memory::keep_small();
    ExitCode::from(bluehook::cli::run(std::env::args_os()))
}

/// glibc's allocator keeps what was freed, for speed; a small machine wants it back. Measured with 300,000
/// events: half as much memory again without this.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
mod memory {
    use std::time::Duration;

    use bluehook::process::resident_bytes;

    const LOOK_EVERY: Duration = Duration::from_millis(250);
    const GROWN_BYTES: u64 = 4 * 1024 * 1024;
    /// What is freed shows nowhere: so many looks later there may be some.
    const LOOKS_MAX: u32 = 40;

    pub fn keep_small() {
        // SAFETY: sets numbers in the allocator; no other thread runs yet.
        unsafe {
            // What is freed in one arena is no use to another. Measured: as fast with one as with two.
            libc::mallopt(libc::M_ARENA_MAX, 1);
            // Else, once a large buffer has been freed, the next ones come from the heap and stay there.
            libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024);
        }
        // Without the thread there is only more memory in use.
        _ = std::thread::Builder::new().name("memory".to_owned()).spawn(give_back);
    }

    /// After the index was compacted, say, much is free between what is in use.
    fn give_back() {
        let (mut before, mut looks) = (u64::MAX, 0);
        loop {
            std::thread::sleep(LOOK_EVERY);
            let Some(bytes) = resident_bytes() else { return };
            before = before.min(bytes);
            looks += 1;
            if looks == LOOKS_MAX || bytes > before + GROWN_BYTES {
                // SAFETY: the allocator's own call, from any thread at any time.
                unsafe { libc::malloc_trim(0) };
                before = resident_bytes().unwrap_or(bytes);
                looks = 0;
            }
        }
    }
}
