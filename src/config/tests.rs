//! What is refused and how it is said; what is accepted and what it becomes.

mod secrets;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::signature::Scheme;

/// A folder with a configuration and an environment of its own.
struct Case {
    dir: tempfile::TempDir,
    options: LoadOptions,
}

fn case(text: &str) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let cwd = dir.path().to_owned();
    fs::write(cwd.join("bluehook.toml"), text).unwrap();
    Case { dir, options: LoadOptions { cwd, ..LoadOptions::default() } }
}

impl Case {
    fn env(mut self, key: &str, value: &str) -> Case {
        self.options.env.push((key.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, name: &str, key: &str, value: &str) -> Case {
        let (name, key, value) = (name.to_owned(), key.to_owned(), value.to_owned());
        self.options.flags.push(Flag { name, key, value });
        self
    }

    fn file(self, name: &str, text: &str) -> Case {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self) -> Loaded {
        Config::load(&self.options).unwrap_or_else(|problems| panic!("{problems:#?}"))
    }

    /// The problems as printed, without the folder.
    fn problems(&self) -> Vec<String> {
        let here = format!("{}/", self.dir.path().display());
        let problems = Config::load(&self.options).expect_err("it must be refused");
        problems.iter().map(|p| p.to_string().replace(&here, "")).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let here = format!("{}/", self.dir.path().display());
        self.load().warnings.iter().map(|w| w.replace(&here, "")).collect()
    }
}

fn problems(text: &str) -> Vec<String> {
    case(text).problems()
}

fn source_of(loaded: &Loaded, key: &str) -> (String, String) {
    let value = loaded.values.iter().find(|v| v.key == key).unwrap();
    (value.value.clone(), value.source.clone())
}

const FILE_HANDLER: &str = "[[handler]]\nname = \"a\"\nfile = { path = \"a.jsonl\" }\n";

#[test]
fn the_documented_defaults_are_those_promised() {
    let loaded = case("").load();
    let c = loaded.config;
    assert_eq!(c.data_dir, Path::new("/var/lib/bluehook"));
    assert_eq!(c.intake.listen, [Listen::Tcp("127.0.0.1:3000".parse().unwrap())]);
    assert_eq!(c.intake.body_max, 1 << 20);
    assert_eq!(c.intake.read_timeout, Duration::from_secs(5));
    assert_eq!(c.intake.ack_deadline, Duration::from_millis(4500));
    assert_eq!(c.intake.connections_max, 1024);
    assert_eq!(c.limits, Limits::default());
    assert_eq!(c.intake.trusted_proxies, ["127.0.0.1/8".parse().unwrap()]);
    assert_eq!(c.schedule, Schedule::default());
    let retention = Retention {
        delivered: Some(Duration::from_secs(30 * 86_400)),
        dead: None,
        dedup: Duration::from_secs(180 * 86_400),
        disk_max: 2 << 30,
    };
    assert_eq!(c.retention, retention);
    assert_eq!(c.admin.socket, Path::new("/var/lib/bluehook/admin.sock"));
    assert_eq!(c.admin.listen, Some("127.0.0.1:3001".parse().unwrap()));
    assert_eq!(c.log.level, tracing::Level::INFO);
    assert_eq!(c.log.format, LogFormat::Auto);
    assert!(c.handlers.is_empty() && c.secrets.is_empty());
    let [source] = c.sources.as_slice() else { panic!("one source") };
    assert_eq!((&*source.name, &*source.path), ("bluereplies", "/webhooks/bluereplies"));
    assert_eq!(source.signature.header, "x-bluereplies-signature");
    assert_eq!(source.signature.scheme, Scheme::Hex);
    assert!(source.signature.canonical_json && source.signature.secrets.is_empty());
    assert_eq!(source.events, ["*"]);
    assert_eq!(source.ping_types, ["ping", "webhook.ping", "webhook.test", "webhook.verification"]);
}

#[test]
fn a_source_and_a_handler_that_say_little_get_the_documented_defaults() {
    let c = case(&format!("[[source]]\nname = \"two\"\n{FILE_HANDLER}")).load().config;
    assert_eq!(c.sources.len(), 1);
    assert_eq!(c.sources[0].path, "/webhooks/two");
    assert_eq!(c.sources[0].events, ["*"]);
    let h = &c.handlers[0];
    assert_eq!((h.order, h.start, h.concurrency), (Order::None, Start::Now, 4));
    assert_eq!(h.timeout, Duration::from_secs(30));
    assert_eq!(h.schedule, Schedule::default());
    assert_eq!((&h.rate, &h.when, &*h.events), (&None, &None, ["*".to_owned()].as_slice()));
    let Action::File(file) = &h.action else { panic!("a file handler") };
    assert_eq!((file.rotate, file.keep), (None, 5));
}

#[test]
fn a_circuit_takes_from_the_defaults_what_it_does_not_set() {
    let seconds = Duration::from_secs;
    for (written, failures, first, longest) in [
        ("", 10, 30, 600),
        ("circuit = { failures = 3 }\n", 3, 30, 600),
        ("circuit = { failures = 0, probe = \"2m\" }\n", 0, 120, 600),
        ("circuit = { probe = \"1s\", probe_max = \"1s\" }\n", 10, 1, 1),
    ] {
        let c = case(&format!("{FILE_HANDLER}{written}")).load().config;
        let wanted = Circuit { failures, first: seconds(first), longest: seconds(longest) };
        assert_eq!(c.handlers[0].circuit, wanted, "{written}");
    }
    let said = problems(&format!("{FILE_HANDLER}circuit = {{ probe = \"20m\", failures = -1 }}\n"));
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains("circuit.failures: expected a whole number from 0"), "{said:#?}");
    assert!(said[1].contains("probe_max is the longest gap"), "{said:#?}");
}

#[test]
fn a_handler_takes_the_part_of_the_schedule_that_it_does_not_set() {
    let text = format!(
        "[schedule]\ndelays = [\"0s\", \"1s\"]\njitter = 0.25\n{FILE_HANDLER}schedule = {{ delays = [\"5s\"] }}\n"
    );
    let c = case(&text).load().config;
    let expected = Schedule::new(vec![Duration::from_secs(5)], 0.25).unwrap();
    assert_eq!(c.handlers[0].schedule, expected);
}

#[test]
fn later_layers_win_and_each_value_knows_its_source() {
    let loaded = case("data_dir = \"one\"\n[intake]\nbody_max = 2048\n[log]\nlevel = \"warn\"\n")
        .env("BLUEHOOK_DATA_DIR", "two")
        .env("BLUEHOOK_INTAKE__LISTEN", "[\"[::1]:1\", \"unix:/x\"]")
        .env("BLUEHOOK_INTAKE__CONNECTIONS_MAX", "7")
        .flag("--socket", "admin.socket", "/run/s")
        .load();
    let intake = &loaded.config.intake;
    assert!(loaded.config.data_dir.ends_with("two"));
    assert_eq!(intake.listen, [Listen::Tcp("[::1]:1".parse().unwrap()), Listen::Unix("/x".into())]);
    assert_eq!((intake.body_max, intake.connections_max), (2048, 7));
    assert_eq!(loaded.config.admin.socket, Path::new("/run/s"));
    let source = |key| source_of(&loaded, key).1;
    assert_eq!(source("data_dir"), "env BLUEHOOK_DATA_DIR");
    assert_eq!(source("intake.listen"), "env BLUEHOOK_INTAKE__LISTEN");
    assert_eq!(source("admin.socket"), "flag --socket");
    assert_eq!(source("log.level"), format!("file {}", loaded.files[0].display()));
    assert_eq!(source("log.format"), "default");
}

#[test]
fn a_variable_may_give_a_list_as_its_single_value() {
    let case = case("").env("BLUEHOOK_INTAKE__TRUSTED_PROXIES", "10.0.0.0/8");
    assert_eq!(case.load().config.intake.trusted_proxies, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn handler_files_add_to_the_main_file_in_order_of_name() {
    let loaded = case(FILE_HANDLER)
        .file("handlers.d/2.toml", &FILE_HANDLER.replace("\"a\"", "\"c\""))
        .file("handlers.d/1.toml", &FILE_HANDLER.replace("\"a\"", "\"b\""))
        .file("handlers.d/notes.txt", "not TOML")
        .file("handlers.d/.#1.toml", "an editor's lock")
        .load();
    let names: Vec<_> = loaded.config.handlers.iter().map(|h| h.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(loaded.files.len(), 3);
    let origins: Vec<_> = loaded.handler_origins.values().map(String::as_str).collect();
    assert!(origins[2].ends_with("handlers.d/2.toml:1: handler[2]"), "{origins:?}");
}

#[test]
fn a_problem_in_a_handler_file_names_that_file_and_line() {
    let case = case(FILE_HANDLER)
        .file("handlers.d/x.toml", "[[handler]]\nname = \"b\"\nfile = { pth = \"b\" }\n")
        .file("handlers.d/y.toml", "\ndata_dir = \"x\"\n");
    assert_eq!(
        case.problems(),
        [
            "handlers.d/y.toml:2: data_dir: a file in handlers.d may hold only [[handler]], \
             [[followup]] and [secrets]; move this to the main file",
            "handlers.d/x.toml:3: handler[1].file: needs path",
            "handlers.d/x.toml:3: handler[1].file.pth: unknown key; did you mean \"path\"?",
        ]
    );
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_valid_one() {
    assert_eq!(
        problems("[intake]\nlisten = \"[::1]:3\"\nbody_mx = 1\n"),
        ["bluehook.toml:3: intake.body_mx: unknown key; did you mean \"body_max\"?"]
    );
    assert_eq!(
        problems("[intak]\nbody_max = 4000\n"),
        ["bluehook.toml:1: intak: unknown key; did you mean \"intake\"?"]
    );
    assert_eq!(
        problems("[log]\nzzz = 1\n"),
        ["bluehook.toml:2: log.zzz: unknown key; the keys here are format, level"]
    );
}

#[test]
fn an_unknown_variable_is_refused_but_not_those_that_handlers_are_given() {
    assert_eq!(
        case("").env("BLUEHOOK_DATADIR", "x").problems(),
        ["env BLUEHOOK_DATADIR: datadir: unknown key; did you mean \"data_dir\"?"]
    );
    case("")
        .env("BLUEHOOK_SEED", "1")
        .env("BLUEHOOK_EVENT_ID", "e")
        .env("BLUEHOOK_SOURCE", "bluereplies")
        .env("BLUEHOOK_HANDLER", "a")
        .load();
}

#[test]
fn a_wrong_type_is_refused() {
    assert_eq!(
        problems("data_dir = 5\n[intake]\nread_timeout = 5\nconnections_max = \"many\"\n"),
        [
            "bluehook.toml:1: data_dir: expected a text, found a number",
            "bluehook.toml:3: intake.read_timeout: expected a duration such as \"30s\", found a \
             number",
            "bluehook.toml:4: intake.connections_max: expected a whole number from 1 to 65536, \
             found a text",
        ]
    );
}

#[test]
fn bad_durations_sizes_and_ranges_are_refused() {
    assert_eq!(
        problems(
            "[intake]\nread_timeout = \"soon\"\nack_deadline = \"6s\"\nbody_max = \"17 MiB\"\n\
             connections_max = 0\n[schedule]\njitter = 0.9\n[retention]\ndisk_max = \"1 MiB\"\n\
             delivered = \"never\"\n"
        ),
        [
            "bluehook.toml:4: intake.body_max: must be from 1 KiB to 16 MiB, not 17 MiB",
            "bluehook.toml:2: intake.read_timeout: \"soon\" is not a duration; write a number and \
             a unit, such as \"30s\", \"10m\", \"24h\" or \"30d\"",
            "bluehook.toml:3: intake.ack_deadline: must be from 100ms to 4.9s, not 6s",
            "bluehook.toml:5: intake.connections_max: expected a whole number from 1 to 65536, not 0",
            "bluehook.toml:7: schedule.jitter: expected a number from 0.0 to 0.5, not 0.9",
            "bluehook.toml:10: retention.delivered: \"never\" is not a duration; write a number \
             and a unit, such as \"30s\", \"10m\", \"24h\" or \"30d\"",
            "bluehook.toml:9: retention.disk_max: must be at least 32 MiB, not 1 MiB",
        ]
    );
}

#[test]
fn bad_toml_is_refused_with_its_line() {
    let problems = problems("data_dir = \"x\"\n[intake\n");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("bluehook.toml:2: not valid TOML: "), "{problems:?}");
    assert!(!problems[0].contains('\n'));
}

#[test]
fn a_handler_has_exactly_one_kind() {
    assert_eq!(
        problems("\n[[handler]]\nname = \"a\"\n"),
        ["bluehook.toml:2: handler[0]: a handler has exactly one of http, exec and file; add one"]
    );
    assert_eq!(
        problems(&format!("{FILE_HANDLER}exec = {{ command = [\"x\"] }}\n")),
        [
            "bluehook.toml:1: handler[0]: a handler has exactly one of http, exec and file, not exec \
          and file; make each a handler of its own"
        ]
    );
}

#[test]
fn names_and_paths_are_unique() {
    assert_eq!(
        problems(&format!("{FILE_HANDLER}{FILE_HANDLER}")),
        ["bluehook.toml:5: handler[1].name: another handler is named \"a\", at bluehook.toml:1: \
          handler[0]"]
    );
    assert_eq!(
        problems(
            "[[source]]\nname = \"a\"\n[[source]]\nname = \"a\"\npath = \"/b\"\n[[source]]\nname = \"c\"\npath = \"/b\"\n"
        ),
        [
            "bluehook.toml:4: source[1].name: another source is named \"a\"; names are unique",
            "bluehook.toml:8: source[2].path: another source has the path \"/b\"; paths are unique",
        ]
    );
}

#[test]
fn handler_values_are_checked() {
    let text = "[[handler]]\nname = \"a b\"\norder = \"logs\"\nrate = \"fast\"\nconcurrency = 2000\n\
                http = { url = \"ftp://x\", json = {}, body = \"\", sign = \"bluereply\" }\n";
    assert_eq!(
        problems(text),
        [
            "bluehook.toml:2: handler[0].name: a handler's name is 1 to 64 letters, digits, '_' or \
             '-', not \"a b\"",
            "bluehook.toml:3: handler[0].order: expected one of \"none\", \"conversation\", \
             \"log\", not \"logs\"; did you mean \"log\"?",
            "bluehook.toml:5: handler[0].concurrency: expected a whole number from 1 to 1024, not \
             2000",
            "bluehook.toml:4: handler[0].rate: \"fast\" is not a rate; write \"10/s\", \"5/m\" or \
             \"100/h\", with a count from 1 to 1000000",
            "bluehook.toml:6: handler[0].http.url: a URL starts with http:// or https:// and a host",
            "bluehook.toml:6: handler[0].http: at most one of json, form and body; without, the \
             raw event is sent",
            "bluehook.toml:6: handler[0].http.sign: expected one of \"bluereplies\", \
             \"standard-webhooks\", not \"bluereply\"; did you mean \"bluereplies\"?",
        ]
    );
}

#[test]
fn addresses_are_checked() {
    assert_eq!(
        problems(
            "[intake]\nlisten = \"localhost\"\ntrusted_proxies = [\"10.0.0.0/40\"]\n\
             [admin]\nlisten = \"0.0.0.0:3001\"\n"
        ),
        [
            "bluehook.toml:2: intake.listen: \"localhost\" is not an address; write IP:PORT such \
             as \"127.0.0.1:3000\" or \"[::1]:3000\"",
            "bluehook.toml:3: intake.trusted_proxies[0]: \"10.0.0.0/40\" is not a network; write \
             for example \"10.0.0.0/8\"",
            "bluehook.toml:5: admin.listen: 0.0.0.0:3001 is not a loopback address; use 127.0.0.1 \
             or [::1] and reach it through an SSH tunnel or a proxy",
        ]
    );
    assert_eq!(case("admin.listen = \"\"").load().config.admin.listen, None);
}

#[test]
fn notices_are_off_by_default_and_have_the_documented_limits_where_they_are_on() {
    assert!(case("").load().config.notify.is_none());
    let text = "[schedule]\ndelays = [\"1s\"]\n[notify]\nfile = { path = \"notices\" }\n";
    let notify = case(text).load().config.notify.unwrap();
    let hour = Duration::from_secs(3600);
    assert_eq!((notify.interval, notify.backlog_age), (hour, hour * 2));
    assert_eq!(notify.disk_free, 512 << 20);
    let handler = notify.handler;
    assert_eq!((&*handler.events, handler.timeout), (&["*".to_owned()][..], hour / 120));
    assert_eq!(handler.schedule, Schedule::new(vec![Duration::from_secs(1)], 0.0).unwrap());
    let Action::File(file) = handler.action else { panic!("a file handler") };
    assert_eq!(file.keep, 5);
}

#[test]
fn a_notice_needs_a_way_and_sensible_limits() {
    let text = "[notify]\ninterval = \"1s\"\nbacklog = \"1h\"\n";
    let said = problems(text);
    for part in
        ["notify.interval: ", "notify.backlog: unknown key; did you mean", "exactly one of http"]
    {
        assert!(said.iter().any(|line| line.contains(part)), "{part}: {said:#?}");
    }
    assert_eq!(said.len(), 3, "{said:#?}");
}

#[test]
fn a_certificate_comes_from_two_files_or_from_an_authority() {
    let text = "[intake.tls]\nacme = { domains = [\"Hooks.example.com\"], contact = \"you@example.com\" }\n";
    let acme = Acme {
        domains: vec!["hooks.example.com".into()],
        contact: vec!["mailto:you@example.com".into()],
        directory: "https://acme-v02.api.letsencrypt.org/directory".into(),
        ca: None,
    };
    assert_eq!(case(text).load().config.intake.tls, Some(Tls::Acme(acme)));
    for (text, named) in [
        ("cert = \"bluehook.toml\"", "needs either cert and key"),
        ("", "needs either cert and key"),
        ("cert = \"bluehook.toml\"\nkey = \"nowhere\"", "intake.tls.key: cannot read"),
        ("cert = \"a\"\nkey = \"b\"\nacme = { domains = [\"a.example\"] }", "needs either"),
        ("acme = {}", "needs domains"),
        ("acme = { domains = [] }", "names no domain"),
        ("acme = { domains = [\"192.0.2.1\"] }", "no domain name"),
        ("acme = { domains = [\"*.example.com\"] }", "no domain name"),
        ("acme = { domains = [\"a.example\"], contact = \"you\" }", "no e-mail address"),
        ("acme = { domains = [\"a.example\"], directory = \"http://a\" }", "https://"),
        ("acme = { domains = [\"a.example\"], contcat = \"a@b\" }", "contact"),
    ] {
        let said = problems(&format!("[intake.tls]\n{text}\n"));
        assert!(said.iter().any(|line| line.contains(named)), "{text}: {said:#?}");
    }
}

#[test]
fn a_credential_is_found_by_its_name_in_a_folder_of_them_too() {
    let text = "[[source]]\nname = \"a\"\nsecrets = [{ credential = \"secret\" }]\n";
    let mut case = case(text);
    let credentials = case.options.cwd.join("credentials");
    fs::create_dir(&credentials).unwrap();
    let secret = credentials.join("bluehook_secret");
    fs::write(&secret, "s3cret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o400)).unwrap();
    case.options.credentials_dir = Some(credentials);
    assert_eq!(case.load().config.sources[0].signature.secrets.len(), 1);
    assert!(case.warnings().is_empty());
}

#[test]
fn a_follow_up_has_a_name_a_start_and_a_delay() {
    let text = "[[followup]]\nname = \"no-reply\"\nstart = \"message.read\"\nafter = \"24h\"\n";
    let rule = case(text).load().config.followups.remove(0);
    assert_eq!(rule.name.follow_up_rule(), Some("no-reply"));
    assert_eq!(
        (rule.start, rule.cancel),
        (vec!["message.read".into()], vec!["message.received".into()])
    );
    assert_eq!((rule.after, rule.repeat), (Duration::from_secs(24 * 3600), false));
    for (text, named) in [
        ("start = \"a\"\nafter = \"1h\"", "needs name"),
        ("name = \"a b\"\nstart = \"a\"\nafter = \"1h\"", "a b"),
        ("name = \"a\"\nafter = \"1h\"", "needs start"),
        ("name = \"a\"\nstart = []\nafter = \"1h\"", "matches nothing"),
        ("name = \"a\"\nstart = \"a\"\nafter = \"0s\"", "after"),
        ("name = \"a\"\nstart = \"a\"\nafter = \"1h\"\ncancle = \"b\"", "cancel"),
    ] {
        let problems = problems(&format!("[[followup]]\n{text}\n"));
        assert!(problems[0].contains(named) && problems.len() == 1, "{text}: {problems:?}");
    }
}

#[test]
fn a_missing_configuration_file_that_was_named_is_refused() {
    let mut case = case("");
    case.options.file = Some("other.toml".into());
    assert_eq!(
        case.problems(),
        ["other.toml: can't be read: No such file or directory (os error 2); check the path and \
          its permissions"]
    );
}

#[test]
fn printed_lines_name_value_and_source() {
    let printed = render(&case("").env("BLUEHOOK_LOG__LEVEL", "debug").load());
    let line = |key: &str| {
        let line = printed.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("log.level"), "log.level = \"debug\" # env BLUEHOOK_LOG__LEVEL");
    assert_eq!(line("admin.socket"), "admin.socket = \"/var/lib/bluehook/admin.sock\" # default");
}

#[test]
fn the_quick_start_creates_its_secret_once_and_cannot_loop() {
    let case = case(include_str!("../../config/quickstart.toml"));
    let before = case.load();
    assert_eq!(before.warnings.len(), 2, "{:?}", before.warnings);
    assert!(!case.path("bluehook-data").exists(), "loading creates nothing");

    let created = super::secrets::create_missing(&case.options).unwrap();
    assert_eq!(created, [case.path("bluehook-data/secret")]);
    assert_eq!(fs::metadata(&created[0]).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&created[0]).unwrap();
    assert_eq!(text.trim_end().len(), 64);
    assert!(super::secrets::create_missing(&case.options).unwrap().is_empty());
    assert_eq!(fs::read_to_string(&created[0]).unwrap(), text);

    let loaded = case.load();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    for source in &loaded.config.sources {
        assert_eq!(source.signature.secrets[0].expose(), text.trim_end().as_bytes());
    }
    let kinds: Vec<_> = loaded
        .config
        .handlers
        .iter()
        .map(|h| {
            assert_eq!(h.when.as_deref(), Some("event.source == 'bluereplies'"));
            std::mem::discriminant(&h.action)
        })
        .collect();
    assert_eq!(kinds.len(), 3);
    assert!(kinds[0] != kinds[1] && kinds[1] != kinds[2] && kinds[0] != kinds[2]);
}

#[test]
fn only_what_a_reload_cannot_change_needs_a_restart() {
    let load = |text: &str| case(text).load().config;
    let old = load("data_dir = \"/a\"");
    let new = load("data_dir = \"/b\"\n[intake]\nlisten = \"[::1]:1\"\nbody_max = 2048\n");
    let changed = Config::changes_needing_restart(&old, &new);
    assert_eq!(changed, ["data_dir", "intake.listen", "admin.socket"]);
    assert!(Config::changes_needing_restart(&old, &old).is_empty());
}
