use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(bluehook::cli::run(std::env::args_os()))
}
