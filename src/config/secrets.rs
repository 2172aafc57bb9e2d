//! Secrets: from a variable, a file or a systemd credential; and the one created at first start.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use figment::value::Value;
use zeroize::Zeroizing;

use super::layers;
use super::load::{LoadOptions, Problem};
use super::read::Node;
use crate::files;
use crate::signature::Secret;

/// Where secrets are looked for.
pub struct Places<'a> {
    pub options: &'a LoadOptions,
}

/// A secret and where it came from.
pub struct Found {
    pub secret: Secret,
    pub origin: String,
}

impl Places<'_> {
    pub fn env(&self, name: &str) -> Option<&str> {
        self.options.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Reads `{ env = … }`, `{ file = … }` or `{ credential = … }`. `None`: there is none, which has
    /// been reported. `required`: a secret that is not there is a problem, not a warning.
    pub fn read(&self, node: &Node<'_>, required: bool) -> Option<Found> {
        if node.value.as_dict().is_none() {
            // The text may be the secret itself, so it is not repeated.
            node.problem(
                "a secret is not written into the configuration; name where it is: \
                 { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }",
            );
            return None;
        }
        let table = node.table()?;
        let (env, file) = (table.get("env"), table.get("file"));
        let (credential, create) = (table.get("credential"), table.get("create"));
        table.finish();
        let create_node = create.filter(|create| create.bool() == Some(true));
        if let Some(create) = create_node.as_ref().filter(|_| file.is_none()) {
            create.problem("only a secret from a file can be created");
        }
        match (env, file, credential) {
            (Some(env), None, None) => self.read_env(&env, required),
            (None, Some(file), None) => read_file(&file, &file.path()?, create_node.is_some()),
            (None, None, Some(credential)) => self.read_credential(&credential, required),
            _ => {
                node.problem("a secret has exactly one of env, file and credential");
                None
            }
        }
    }

    fn read_env(&self, node: &Node<'_>, required: bool) -> Option<Found> {
        let name = node.string()?;
        match self.env(&name) {
            Some(value) => {
                found(node, value.as_bytes(), format!("env {name}"), "set it to the secret")
            }
            None => {
                missing(node, &format!("the variable {name} is not set"), required);
                None
            }
        }
    }

    fn read_credential(&self, node: &Node<'_>, required: bool) -> Option<Found> {
        let name = node.string()?;
        if name.contains('/') || name == ".." {
            node.problem("a credential is a name, not a path; for a path use file");
            return None;
        }
        let Some(dir) = &self.options.credentials_dir else {
            let why = "CREDENTIALS_DIRECTORY is not set (systemd sets it for LoadCredential=)";
            missing(node, why, required);
            return None;
        };
        // LoadCredential=bluehook:DIRECTORY puts the word before the colon before each file's name.
        let of_folder = dir.join(format!("bluehook_{name}"));
        let path = if of_folder.exists() { of_folder } else { dir.join(&name) };
        match std::fs::read(&path) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                found(node, &bytes, format!("credential {name}"), "write the secret to it")
            }
            Err(error) => {
                missing(node, &format!("{} can't be read: {error}", path.display()), required);
                None
            }
        }
    }
}

fn missing(node: &Node<'_>, why: &str, required: bool) {
    if required {
        node.problem(why);
    } else {
        node.warn(format_args!("{why}; this secret is skipped"));
    }
}

fn read_file(node: &Node<'_>, path: &Path, create: bool) -> Option<Found> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
            node.warn(format_args!("{} will be created by serve", path.display()));
            return None;
        }
        Err(error) => {
            node.problem(format!(
                "the secret file {} can't be read: {error}; create it (bluehook secret generate \
                 prints a secret) or correct the path",
                path.display()
            ));
            return None;
        }
    };
    if files::is_open_to_all(path) {
        node.problem(format!(
            "every user can read or write the secret file {0}; run: chmod o-rwx {0}",
            path.display()
        ));
        return None;
    }
    found(node, &bytes, format!("file {}", path.display()), "write the secret to it")
}

/// The secret without the newline that editors and `echo` add.
fn found(node: &Node<'_>, bytes: &[u8], origin: String, remedy: &str) -> Option<Found> {
    let trimmed = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let trimmed = trimmed.strip_suffix(b"\r").unwrap_or(trimmed);
    if trimmed.is_empty() {
        node.problem(format!("the secret from {origin} is empty; {remedy}"));
        return None;
    }
    Some(Found { secret: Secret::new(trimmed.to_vec()), origin })
}

/// A fresh random secret: 256 bits as hex.
///
/// # Errors
/// The system has no randomness to give.
pub fn generate() -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(hex::encode(bytes))
}

/// Creates the secret files that a source marks with `create = true` and that are not there yet.
/// For `serve` to call before it loads; `check` changes nothing. Returns those created.
///
/// # Errors
/// A file can't be created. Problems of the configuration itself are left for loading to report.
pub fn create_missing(options: &LoadOptions) -> Result<Vec<PathBuf>, Problem> {
    let merged = layers::merge(options, &mut Vec::new());
    let list = |value: Option<&Value>| {
        value.and_then(Value::as_array).map(<[Value]>::to_vec).unwrap_or_default()
    };
    let mut created = Vec::new();
    for (i, source) in list(merged.root.get("source")).iter().enumerate() {
        let secrets = source.as_dict().and_then(|source| source.get("secrets"));
        for (j, secret) in list(secrets).iter().enumerate() {
            let Some(dict) = secret.as_dict() else { continue };
            let create = dict.get("create").and_then(Value::to_bool) == Some(true);
            let Some(file) = dict.get("file").and_then(Value::as_str).filter(|_| create) else {
                continue;
            };
            let path = options.cwd.join(file.strip_prefix("./").unwrap_or(file));
            match create_one(&path) {
                Ok(true) => created.push(path),
                Ok(false) => {}
                Err(error) => {
                    let key = format!("source[{i}].secrets[{j}].file");
                    let message = format!(
                        "the secret file {} can't be created: {error}; check the folder's permissions",
                        path.display()
                    );
                    return Err(Problem::at(merged.place(secret.tag(), &key), &key, message));
                }
            }
        }
    }
    Ok(created)
}

/// A file with a fresh secret. `false`: it was there already. The file appears under its name only once it is whole, so that a
/// crash leaves no empty secret behind.
pub fn create_one(path: &Path) -> io::Result<bool> {
    if path.try_exists()? {
        return Ok(false);
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    files::replace(path, format!("{}\n", generate()?).as_bytes())?;
    Ok(true)
}
