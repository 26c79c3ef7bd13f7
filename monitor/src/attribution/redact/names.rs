//! Names that speak of a secret, and those that only sound so.

/// Words that make a name one of a secret. In the plural too.
const SECRETS: [&str; 16] = [
    "password",
    "passwd",
    "passphrase",
    "pass",
    "secret",
    "token",
    "apikey",
    "authorization",
    "credential",
    "cookie",
    "bearer",
    "pwd",
    "pw",
    "sig",
    "sessionid",
    "jsessionid",
];

/// Endings of words that do, for what people write as one word (`PGPASSWORD`, `-HAuthorization`).
const ENDINGS: [&str; 8] =
    ["password", "passwd", "passphrase", "token", "secret", "apikey", "authorization", "cookie"];

/// Words before `key` that tell it from a key of a table.
const KEYS: [&str; 9] =
    ["api", "private", "access", "secret", "auth", "account", "encryption", "signing", "master"];

/// Last words of names of something about a secret: a file name of a secret is no secret.
const ABOUT: [&str; 36] = [
    "file",
    "files",
    "path",
    "paths",
    "dir",
    "directory",
    "name",
    "names",
    "username",
    "user",
    "ttl",
    "url",
    "uri",
    "urls",
    "type",
    "mode",
    "policy",
    "expiry",
    "expiration",
    "lifetime",
    "duration",
    "timeout",
    "length",
    "size",
    "stdin",
    "config",
    "kubeconfig",
    "audience",
    "audiences",
    "issuer",
    "database",
    "host",
    "port",
    "endpoint",
    "namespace",
    "prompt",
];

/// First words of names of switches and limits.
const SWITCHES: [&str; 10] =
    ["no", "enable", "disable", "max", "min", "require", "ask", "without", "skip", "allow"];

/// Whether the value of what has this name is a secret. `--db-password`, `DB_PASSWORD`, `dbPassword`, `"password"`.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.strip_prefix("-D").unwrap_or(name);
    if matches!(name, "PWD" | "OLDPWD") {
        return false;
    }
    let words = words(name);
    let (Some(first), Some(last)) = (words.first(), words.last()) else { return false };
    if ABOUT.contains(&last.as_str()) || (words.len() > 1 && SWITCHES.contains(&first.as_str())) {
        return false;
    }
    let is_id = last == "id" && !words.iter().any(|word| word == "secret");
    let key = words.windows(2).any(|pair| pair[1] == "key" && KEYS.contains(&pair[0].as_str()));
    // In the middle of a name it is what a thing is for: `auth.database`.
    let auth = last == "auth";
    !is_id && (key || auth || words.iter().any(|word| is_secret_word(word)))
}

fn is_secret_word(word: &str) -> bool {
    let one = word.strip_suffix('s').unwrap_or(word);
    SECRETS.iter().any(|secret| *secret == word || *secret == one)
        || ENDINGS.iter().any(|ending| word.ends_with(ending) || one.ends_with(ending))
}

/// Words in lower case: apart by anything that is no letter or digit, and by capitals after small ones.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut small = false;
    for c in name.chars() {
        let apart = !c.is_ascii_alphanumeric();
        if (apart || (small && c.is_ascii_uppercase())) && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        small = c.is_ascii_lowercase();
        if !apart && let Some(word) = words.last_mut() {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// `--token`, `-password`: its value is the next argument.
pub(super) fn is_secret_option(text: &str) -> bool {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.starts_with('-') && text.chars().all(named) && is_secret(text)
}

/// Stands between `Authorization:` and what is secret.
pub(super) fn is_scheme(text: &str) -> bool {
    const SCHEMES: [&str; 8] =
        ["bearer", "basic", "digest", "token", "negotiate", "apikey", "splunk", "aws4-hmac-sha256"];
    let text = text.trim_matches(['"', '\'']);
    SCHEMES.iter().any(|scheme| text.eq_ignore_ascii_case(scheme))
}

/// The same, where it says by itself that a secret follows.
pub(super) fn is_bare_scheme(text: &str) -> bool {
    matches!(text, "Bearer" | "bearer" | "BEARER" | "Basic")
}
