use std::process::ExitCode;

fn main() -> ExitCode {
    keep_arenas_few();
    ExitCode::from(bluehook::cli::run(std::env::args_os()))
}

/// glibc gives threads arenas of their own, and what is freed in one is no use to another: with the default of
/// eight per core the appliance holds half as much memory again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the one call for which there is no safe wrapper")]
fn keep_arenas_few() {
    // SAFETY: sets a number in the allocator; no other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_arenas_few() {}
