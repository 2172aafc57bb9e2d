//! Where secrets come from, and which are refused.

use super::*;

#[test]
fn secrets_come_from_variables_files_and_credentials() {
    let mut case = case(
        "[[source]]\nname = \"s\"\nsecrets = [{ env = \"OLD\" }, { file = \"new\" }, \
         { credential = \"cred\" }]\n[secrets]\ncrm = { file = \"new\" }\n",
    )
    .env("OLD", "one")
    .file("new", "two\n")
    .file("creds/cred", "three");
    case.options.credentials_dir = Some(case.path("creds"));
    let loaded = case.load();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let secrets: Vec<_> =
        loaded.config.sources[0].signature.secrets.iter().map(Secret::expose).collect();
    assert_eq!(secrets, [b"one".as_slice(), b"two", b"three"]);
    assert_eq!(loaded.config.secrets["crm"].expose(), b"two");
    let new = format!("file {}", case.path("new").display());
    assert_eq!(loaded.secret_origins["s"], ["env OLD", &new, "credential cred"]);
}

#[test]
fn absent_variables_and_credentials_are_skipped_with_a_warning_in_a_source() {
    let case =
        case("[[source]]\nname = \"s\"\nsecrets = [{ env = \"A\" }, { credential = \"b\" }]");
    assert_eq!(
        case.warnings(),
        [
            "bluehook.toml:3: source[0].secrets[0].env: the variable A is not set; this secret is \
             skipped",
            "bluehook.toml:3: source[0].secrets[1].credential: CREDENTIALS_DIRECTORY is not set \
             (systemd sets it for LoadCredential=); this secret is skipped",
        ]
    );
    assert!(case.load().config.sources[0].signature.secrets.is_empty());
}

#[test]
fn missing_and_empty_secrets_are_refused() {
    let case = case(
        "[[source]]\nname = \"s\"\nsecrets = [{ file = \"gone\" }, { file = \"empty\" }]\n\
         [secrets]\na = { env = \"GONE\" }\nb = { env = \"X\", file = \"y\" }\nc = \"hunter2\"\n",
    )
    .file("empty", "\n");
    let problems = case.problems();
    assert_eq!(
        problems,
        [
            "bluehook.toml:3: source[0].secrets[0].file: the secret file gone can't be read: No \
             such file or directory (os error 2); create it (bluehook secret generate prints a \
             secret) or correct the path",
            "bluehook.toml:3: source[0].secrets[1].file: the secret from file empty is empty; \
             write the secret to it",
            "bluehook.toml:5: secrets.a.env: the variable GONE is not set",
            "bluehook.toml:6: secrets.b: a secret has exactly one of env, file and credential",
            "bluehook.toml:7: secrets.c: a secret is not written into the configuration; name \
             where it is: { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }",
        ]
    );
}

#[test]
fn a_secret_file_that_every_user_can_read_or_write_is_refused() {
    for mode in [0o644, 0o602] {
        let case = case("[secrets]\na = { file = \"s\" }\n").file("s", "x");
        fs::set_permissions(case.path("s"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(
            case.problems(),
            [
                "bluehook.toml:2: secrets.a.file: every user can read or write the secret file s; run: \
              chmod o-rwx s"
            ]
        );
    }
}

#[test]
fn webhook_secret_serves_the_default_source_only_when_none_is_named() {
    let loaded = case("").env("WEBHOOK_SECRET", "s3cr3t").load();
    assert_eq!(loaded.config.sources[0].signature.secrets[0].expose(), b"s3cr3t");
    assert_eq!(
        source_of(&loaded, "source[0].secrets"),
        ("***".to_owned(), "env WEBHOOK_SECRET".to_owned())
    );
    let named = case("[[source]]\nname = \"s\"\nsecrets = [{ file = \"f\" }]")
        .env("WEBHOOK_SECRET", "s3cr3t")
        .file("f", "other")
        .load();
    assert_eq!(named.config.sources[0].signature.secrets.len(), 1);
    assert_eq!(named.config.sources[0].signature.secrets[0].expose(), b"other");
}

#[test]
fn no_secret_shows_in_what_is_printed() {
    let loaded = case(
        "[[handler]]\nname = \"a\"\n[handler.http]\nurl = \"https://u:hunter2@x/\"\n\
         headers = { Authorization = \"Bearer hunter2\", Cookie = \"{{ secret('k') }}\", X-Plain = \"seen\" }\n\
         [secrets]\nk = { env = \"K\" }\n",
    )
    .env("K", "hunter2")
    .env("WEBHOOK_SECRET", "hunter2")
    .load();
    let printed = render(&loaded);
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("\"seen\"") && printed.contains("secret('k')"), "{printed}");
    assert!(!format!("{:?}", loaded.config.secrets).contains("hunter2"));
}
