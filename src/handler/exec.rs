//! `exec`: a program per event. No shell, a clean environment, the raw event on standard input, and
//! nothing of its process group left when the attempt ends.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::redact::shorten;
use super::template::{self, Engine, Place, Template};
use super::{Call, Common, Handler, Report, seconds};
use crate::clock::BoxFuture;
use crate::config;
use crate::delivery::Outcome;
use crate::event::Envelope;

const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// sysexits aside, qmail's convention: 100 is "don't try again".
const EXIT_REJECT: i32 = 100;
/// How long output is still read after the program itself has ended: what it wrote is in the pipes
/// already, and a child of its own may hold them open for ever.
const OUTPUT_GRACE: Duration = Duration::from_millis(250);
/// How long a killed program gets to be gone; one that hangs in the kernel is left to it.
const REAP_GRACE: Duration = Duration::from_secs(2);

/// The compiled templates.
pub(super) struct Plan {
    command: Vec<Template>,
    env: Vec<(String, Template)>,
    cwd: Option<PathBuf>,
}

impl Plan {
    pub(super) fn compile(exec: &config::Exec, engine: &mut Engine) -> Result<Plan, String> {
        if exec.command.first().is_none_or(String::is_empty) {
            return Err("exec.command: name the program to run".to_owned());
        }
        let mut command = Vec::new();
        for (i, argument) in exec.command.iter().enumerate() {
            command.push(engine.compile(
                &format!("exec.command[{i}]"),
                argument,
                Place::Argument,
            )?);
        }
        let mut env = Vec::new();
        for (name, value) in &exec.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("exec.env: {name:?} cannot be the name of a variable"));
            }
            let field = format!("exec.env.{name}");
            env.push((name.clone(), engine.compile(&field, value, Place::Text)?));
        }
        Ok(Plan { command, env, cwd: exec.cwd.clone() })
    }
}

pub(super) struct Exec {
    plan: Plan,
    common: Common,
}

/// One rendered command.
struct Rendered {
    command: Vec<String>,
    env: Vec<(String, String)>,
}

impl Handler for Exec {
    fn run(&self, call: Call) -> BoxFuture<'_, Report> {
        Box::pin(self.attempt(call))
    }
}

impl Exec {
    pub(super) fn new(plan: Plan, common: Common) -> Exec {
        Exec { plan, common }
    }

    async fn attempt(&self, call: Call) -> Report {
        let rendered = match self.render(&call) {
            Ok(rendered) => rendered,
            Err(why) => return Report::bare(Outcome::reject(self.common.redactor.clean(&why))),
        };
        let request = Some(self.account(&rendered, call.event.new.body.len()));
        let mut command = Command::new(&rendered.command[0]);
        command.args(&rendered.command[1..]).env_clear().env("PATH", PATH).envs(rendered.env);
        if let Some(cwd) = &self.plan.cwd {
            command.current_dir(cwd);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut report = match command.spawn() {
            Ok(child) => {
                let kept = self.common.kept_bytes + self.common.redactor.longest_bytes();
                let ended =
                    supervise(child, call.event.new.body.clone(), call.deadline, kept).await;
                self.report(&ended, call.deadline)
            }
            Err(error) => {
                Report::bare(not_started(&rendered.command[0], self.plan.cwd.as_ref(), &error))
            }
        };
        report.request = request;
        report
    }

    fn render(&self, call: &Call) -> Result<Rendered, String> {
        let event = &call.event.new;
        let engine = &self.common.engine;
        let context = template::context(
            &call.event,
            call.message.as_deref(),
            &self.common.name,
            call.attempt,
        );
        // A NUL cannot be passed on; it means nothing in a message either.
        let plain = |text: String| text.replace('\0', "");
        let mut command = Vec::new();
        for argument in &self.plan.command {
            command.push(plain(engine.render(argument, &context)?));
        }
        let mut env = Vec::new();
        for (name, value) in &self.plan.env {
            env.push((name.clone(), plain(engine.render(value, &context)?)));
        }
        let mut fixed =
            |name: &str, value: String| env.push((format!("BLUEHOOK_{name}"), plain(value)));
        fixed("EVENT_ID", event.id.clone());
        fixed("EVENT_TYPE", event.kind.clone());
        fixed("SOURCE", event.source.clone());
        fixed("ATTEMPT", call.attempt.to_string());
        fixed("HANDLER", self.common.name.clone());
        fixed("RECEIVED_AT", event.received_at.to_rfc3339());
        if let Some(id) = Envelope::parse(&event.body).message_id {
            fixed("MESSAGE_ID", id);
        }
        Ok(Rendered { command, env })
    }

    fn account(&self, rendered: &Rendered, stdin_bytes: usize) -> String {
        let shown = rendered.command.iter().zip(&self.plan.command).map(|(text, template)| {
            if template.private { "***".to_owned() } else { format!("{text:?}") }
        });
        let mut text = self.common.redactor.clean(&shown.collect::<Vec<_>>().join(" "));
        shorten(&mut text, self.common.kept_bytes);
        format!("{text}\nstdin: {stdin_bytes} bytes")
    }

    fn report(&self, ended: &Ended, deadline: Duration) -> Report {
        let (said, outcome) = match ended.status {
            Some(status) => outcome_of(status),
            None => {
                let said = format!("killed: timed out after {}", seconds(deadline));
                (said.clone(), Outcome::retry(said))
            }
        };
        let mut response = said;
        for (name, kept) in [("stdout", &ended.stdout), ("stderr", &ended.stderr)] {
            if kept.total_bytes > 0 {
                let text = self.common.redactor.clean_bytes(&kept.bytes, self.common.kept_bytes);
                response.push_str(&format!("\n{name} ({} bytes):\n{text}", kept.total_bytes));
            }
        }
        Report { outcome, request: None, response: Some(response) }
    }
}

fn outcome_of(status: ExitStatus) -> (String, Outcome) {
    let said = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    };
    let outcome = match status.code() {
        Some(0) => Outcome::Delivered,
        Some(EXIT_REJECT) => Outcome::reject(said.clone()),
        _ => Outcome::retry(said.clone()),
    };
    (said, outcome)
}

fn not_started(program: &str, cwd: Option<&PathBuf>, error: &io::Error) -> Outcome {
    if error.kind() == io::ErrorKind::ArgumentListTooLong {
        return Outcome::reject(
            "the command line is too long for the system; read the event from standard input instead",
        );
    }
    let mut why = format!("cannot run {program}: {error}");
    if let Some(cwd) = cwd.filter(|c| !c.is_dir()) {
        why = format!("cannot run {program}: its directory {} is missing", cwd.display());
    } else if error.kind() == io::ErrorKind::NotFound && !program.contains('/') {
        why = format!("cannot run {program}: not found in {PATH}");
    }
    Outcome::retry(why)
}

/// The first bytes of a stream, and how many there were.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    total_bytes: u64,
}

impl Kept {
    /// Reads to the end, whatever its length, so that the writer never waits.
    async fn drain(&mut self, stream: Option<impl AsyncRead + Unpin>, limit: usize) {
        let Some(mut stream) = stream else { return };
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            let room = limit.saturating_sub(self.bytes.len()).min(n);
            self.bytes.extend_from_slice(&buffer[..room]);
            self.total_bytes += n as u64;
        }
    }
}

struct Ended {
    /// `None`: the deadline came first.
    status: Option<ExitStatus>,
    stdout: Kept,
    stderr: Kept,
}

/// Kills the group when it goes out of scope, which includes the attempt being dropped.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(leader) = self.0 {
            // It fails where nobody is left, which is what is wanted.
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn supervise(mut child: Child, input: Bytes, deadline: Duration, limit: usize) -> Ended {
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group(leader);
    let (mut stdout, mut stderr) = (Kept::default(), Kept::default());
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program need not read its input.
            let _ = stdin.write_all(&input).await;
        }
    };
    let ended_in_time = {
        let pumps = async {
            tokio::join!(
                feed,
                stdout.drain(child.stdout.take(), limit),
                stderr.drain(child.stderr.take(), limit)
            )
        };
        tokio::pin!(pumps);
        let ended = exited(leader);
        tokio::pin!(ended);
        let late = sleep(deadline);
        tokio::pin!(late);
        let mut pumping = true;
        let ended_in_time = loop {
            tokio::select! {
                () = &mut ended => break true,
                () = &mut late => break false,
                _ = &mut pumps, if pumping => pumping = false,
            }
        };
        if ended_in_time && pumping {
            let _ = timeout(OUTPUT_GRACE, &mut pumps).await;
        }
        ended_in_time
    };
    // Before the leader is reaped: until then its id, and so the group's, cannot be taken over.
    group.kill();
    let status = timeout(REAP_GRACE, child.wait()).await.ok().and_then(Result::ok);
    group.0 = None;
    Ended { status: status.filter(|_| ended_in_time), stdout, stderr }
}

/// Returns once the leader has ended, without reaping it.
async fn exited(leader: Option<Pid>) {
    let Some(leader) = leader else { return };
    let Ok(mut children) = signal(SignalKind::child()) else { return std::future::pending().await };
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // Registered before the first look, so no end is missed. An error means that it is gone.
    while let Ok(None) = rustix::process::waitid(WaitId::Pid(leader), look) {
        children.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::*;
    use crate::config::{Action, Exec as Config};
    use crate::handler::testing::{self, BODY, call};

    fn config(command: &[&str]) -> Config {
        let command = command.iter().map(|&s| s.to_owned()).collect();
        Config { command, env: vec![], cwd: None }
    }

    async fn sh(script: &str) -> Report {
        testing::run(Action::Exec(config(&["sh", "-c", script])), call(BODY)).await
    }

    fn response(report: &Report) -> &str {
        report.response.as_deref().unwrap_or_default()
    }

    async fn is_gone(pid_file: &Path) -> bool {
        let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            // A zombie that init has not collected yet is gone for our purpose.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return true;
            }
            sleep(Duration::from_millis(5)).await;
        }
        false
    }

    #[tokio::test]
    async fn the_exit_status_decides() {
        assert_eq!(sh("exit 0").await.outcome, Outcome::Delivered);
        assert_eq!(sh("exit 100").await.outcome, Outcome::reject("exit status 100"));
        assert_eq!(sh("exit 111").await.outcome, Outcome::retry("exit status 111"));
        assert_eq!(sh("kill -9 $$").await.outcome, Outcome::retry("killed by signal 9"));
    }

    #[tokio::test]
    async fn the_event_comes_on_standard_input_and_in_a_clean_environment() {
        let report = sh("cat; echo; env | sort").await;
        let text = response(&report);
        assert!(text.contains(BODY), "{text}");
        let names: Vec<&str> =
            text.lines().skip(3).filter_map(|l| l.split_once('=')).map(|(n, _)| n).collect();
        let expected = [
            "BLUEHOOK_ATTEMPT",
            "BLUEHOOK_EVENT_ID",
            "BLUEHOOK_EVENT_TYPE",
            "BLUEHOOK_HANDLER",
            "BLUEHOOK_MESSAGE_ID",
            "BLUEHOOK_RECEIVED_AT",
            "BLUEHOOK_SOURCE",
            "PATH",
        ];
        // The shell adds variables of its own.
        let ours: Vec<&str> =
            names.into_iter().filter(|n| !["PWD", "SHLVL", "_", "OLDPWD"].contains(n)).collect();
        assert_eq!(ours, expected, "{text}");
        assert!(text.contains("BLUEHOOK_EVENT_ID=e1\n") && text.contains("MESSAGE_ID=m1\n"));
        assert!(text.contains("BLUEHOOK_RECEIVED_AT=2026-09-21T14:13:20.123Z"), "{text}");
    }

    #[tokio::test]
    async fn arguments_are_templates_that_no_shell_reads() {
        let body = r#"{"eventId":"e","type":"t","data":{"x":"$(id) `id`; \u0000'\"","n":7}}"#;
        let mut config =
            config(&["printf", "[%s]", "{{ data.x }}", "{{ data.n }}", "{{ secret('crm') }}"]);
        config.env = vec![("MODE".into(), "{{ event.type }}".into())];
        let report = testing::run(Action::Exec(config), call(body)).await;
        assert_eq!(report.outcome, Outcome::Delivered);
        assert!(response(&report).contains("[$(id) `id`; '\"][7][***]"), "{report:?}");
        let request = report.request.unwrap();
        assert!(request.contains("***") && !request.contains("s3cret"), "{request}");
    }

    #[tokio::test]
    async fn a_missing_value_in_the_command_is_dead_at_once() {
        let report =
            testing::run(Action::Exec(config(&["true", "{{ data.no }}"])), call(BODY)).await;
        let Outcome::Reject { reason } = report.outcome else { panic!("{report:?}") };
        assert!(
            reason.contains("exec.command[1]: line 1") && reason.contains("data.no"),
            "{reason}"
        );
    }

    #[tokio::test]
    async fn a_timeout_kills_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!(
            "sh -c 'echo $$ > {0}.new; mv {0}.new {0}; sleep 600' & wait",
            pid_file.display()
        );
        let mut call = call(BODY);
        call.deadline = Duration::from_millis(700);
        let report = testing::run(Action::Exec(config(&["sh", "-c", &script])), call).await;
        assert_eq!(report.outcome, Outcome::retry("killed: timed out after 0.7 s"));
        assert!(is_gone(&pid_file).await);
    }

    #[tokio::test]
    async fn a_dropped_attempt_kills_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!(
            "sh -c 'echo $$ > {0}.new; mv {0}.new {0}; sleep 600' & wait",
            pid_file.display()
        );
        let handler = testing::ready(Action::Exec(config(&["sh", "-c", &script])));
        let mut run = handler.run(call(BODY));
        while !pid_file.exists() {
            let _ = timeout(Duration::from_millis(5), &mut run).await;
        }
        drop(run);
        assert!(is_gone(&pid_file).await);
    }

    #[tokio::test]
    async fn a_child_left_behind_neither_delays_the_attempt_nor_survives_it() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let started = Instant::now();
        let report = sh(&format!("sleep 600 & echo $! > {}; echo done", pid_file.display())).await;
        assert_eq!(report.outcome, Outcome::Delivered);
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(response(&report).contains("done"));
        assert!(is_gone(&pid_file).await);
    }

    #[tokio::test]
    async fn much_output_is_read_to_the_end_and_kept_in_part() {
        let report = sh("head -c 200000000 /dev/zero | tr '\\0' x; echo bad >&2").await;
        assert_eq!(report.outcome, Outcome::Delivered);
        let text = response(&report);
        assert!(
            text.contains("stdout (200000000 bytes)") && text.ends_with("bad\n"),
            "{}",
            &text[..80]
        );
        assert!(text.len() < (16 << 10) + 200, "{}", text.len());
    }

    #[tokio::test]
    async fn input_that_is_not_read_and_output_in_between_do_not_block() {
        let body = format!(r#"{{"type":"t","data":"{}"}}"#, "x".repeat(1_000_000));
        for script in ["exit 0", "head -c 1000000 /dev/zero; cat > /dev/null", "exec <&-; echo hi"]
        {
            let action = Action::Exec(config(&["sh", "-c", script]));
            let report = testing::run(action, call(&body)).await;
            assert_eq!(report.outcome, Outcome::Delivered, "{script}");
        }
    }

    #[tokio::test]
    async fn programs_that_cannot_be_started_say_why() {
        let run = |config| testing::run(Action::Exec(config), call(BODY));
        let reason = |r: Report| r.outcome.reason().unwrap_or_default().to_owned();
        let missing = run(config(&["no-such-program"])).await;
        assert_eq!(missing.outcome.name(), "retry");
        assert!(reason(missing).contains("not found in /usr/local/bin"));
        let mut elsewhere = config(&["true"]);
        elsewhere.cwd = Some("/no/such/place".into());
        assert!(reason(run(elsewhere).await).contains("/no/such/place is missing"));
        let long = config(&["true", "{{ 'x' * 3000000 }}"]);
        let long = run(long).await;
        assert_eq!(long.outcome.name(), "reject");
        assert!(reason(long).contains("standard input"));
    }

    #[tokio::test]
    async fn many_at_once_each_get_their_own_status() {
        let handler = testing::ready(Action::Exec(config(&["sh", "-c", "exit {{ data.n }}"])));
        let runs = (0..40).map(|n| {
            let handler = handler.clone();
            let body = format!(r#"{{"type":"t","data":{{"n":{n}}}}}"#);
            tokio::spawn(async move { handler.run(call(&body)).await })
        });
        for (n, run) in runs.collect::<Vec<_>>().into_iter().enumerate() {
            let text = run.await.unwrap().response.unwrap();
            assert_eq!(text, format!("exit status {n}"));
        }
    }
}
