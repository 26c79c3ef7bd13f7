//! Command lines as they may be kept: arguments joined by blanks, secrets taken out, at most 4 KiB.
//!
//! What is taken out: the value of any option, variable or header whose name speaks of a secret (`--password=x`,
//! `--token x`, `PASSWORD=x`, `Authorization: Bearer x`, `-H 'X-Api-Key: x'`), credentials in URLs
//! (`https://user:x@host`), and anything that looks like a JWT or a PEM private key.

/// Longest command line that is kept, in bytes.
pub const MAX: usize = 4096;
const HIDDEN: &str = "[redacted]";
/// Names that speak of a secret when they are a word of an option's or header's name.
const SECRETS: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "pass",
    "secret",
    "token",
    "apikey",
    "authorization",
    "credential",
    "credentials",
    "cookie",
    "bearer",
    "auth",
    "pwd",
];

/// Joins, redacts and bounds arguments.
#[must_use]
pub fn cmdline(args: &[Vec<u8>]) -> String {
    let mut out = String::new();
    let mut hide_next = false;
    for arg in args {
        if out.len() >= MAX {
            break;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        let text = String::from_utf8_lossy(arg);
        if hide_next && !text.starts_with("--") {
            out.push_str(HIDDEN);
            hide_next = false;
            continue;
        }
        hide_next = is_secret_option(&text);
        out.push_str(&argument(&text));
    }
    bound(out)
}

/// The same for a command line that was joined already (by the kernel side, which keeps the first bytes only).
#[must_use]
pub fn joined(line: &str) -> String {
    cmdline(&line.split(' ').map(|arg| arg.as_bytes().to_vec()).collect::<Vec<_>>())
}

fn bound(mut text: String) -> String {
    if text.len() > MAX {
        let end = (0..=MAX - 3).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// `--token`, `-password`: its value is the next argument.
fn is_secret_option(text: &str) -> bool {
    let header = text.ends_with(':');
    (text.starts_with('-') || header) && !text.contains('=') && speaks_of_secret(text)
        || matches!(text, "Bearer" | "Basic")
}

fn argument(text: &str) -> String {
    if text.contains("PRIVATE KEY-----") || looks_like_jwt(text) {
        return HIDDEN.to_owned();
    }
    if let Some((name, _)) = text.split_once('=')
        && speaks_of_secret(name)
    {
        return format!("{name}={HIDDEN}");
    }
    if let Some((name, value)) = text.split_once(':')
        && !value.trim_start().is_empty()
        && !value.starts_with("//")
        && speaks_of_secret(name)
    {
        return format!("{name}: {HIDDEN}");
    }
    url_credentials(text)
}

fn speaks_of_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric()).peekable();
    while let Some(word) = words.next() {
        let key = word == "key" && words.peek().is_none() && name.contains("api");
        let apart = matches!(word, "private" | "access") && words.peek() == Some(&"key");
        if key || apart || SECRETS.contains(&word) || word.ends_with("password") || word.ends_with("token") {
            return true;
        }
    }
    false
}

fn looks_like_jwt(text: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')))
        .any(|part| part.starts_with("eyJ") && part.len() > 40 && part.matches('.').count() == 2)
}

fn url_credentials(text: &str) -> String {
    let Some(start) = text.find("://").map(|at| at + 3) else { return text.to_owned() };
    let authority_end = text[start..].find('/').map_or(text.len(), |at| start + at);
    let Some(at_sign) = text[start..authority_end].rfind('@').map(|at| start + at) else {
        return text.to_owned();
    };
    match text[start..at_sign].find(':') {
        Some(colon) => format!("{}{HIDDEN}{}", &text[..=start + colon], &text[at_sign..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX, cmdline};

    fn shown(args: &[&str]) -> String {
        cmdline(&args.iter().map(|arg| arg.as_bytes().to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn secrets_go_and_the_rest_stays() {
        let jwt = format!("eyJhbGciOiJSUzI1NiJ9.{}.{}", "a".repeat(30), "b".repeat(30));
        let cases: &[(&[&str], &str)] = &[
            (&["sed", "-i", "s/a/b/", "/etc/x"], "sed -i s/a/b/ /etc/x"),
            (&["app", "--password=hunter2", "-v"], "app --password=[redacted] -v"),
            (&["app", "--db-password", "hunter2", "-v"], "app --db-password [redacted] -v"),
            (&["app", "--token", "--verbose"], "app --token --verbose"),
            (&["curl", "-H", "Authorization: Bearer abc", "u"], "curl -H Authorization: [redacted] u"),
            (&["curl", "-H", "X-Api-Key: abc"], "curl -H X-Api-Key: [redacted]"),
            (&["env", "AWS_SECRET_ACCESS_KEY=abc", "x"], "env AWS_SECRET_ACCESS_KEY=[redacted] x"),
            (&["git", "clone", "https://me:pw@host/x"], "git clone https://me:[redacted]@host/x"),
            (&["kubelet", "--kubeconfig=/etc/k", "--config=/x"], "kubelet --kubeconfig=/etc/k --config=/x"),
            (&["x", &jwt], "x [redacted]"),
            (&["x", "-----BEGIN PRIVATE KEY-----\nabc"], "x [redacted]"),
            (&[], ""),
        ];
        for (args, expected) in cases {
            assert_eq!(shown(args), *expected);
        }
    }

    #[test]
    fn long_lines_are_cut_at_a_character() {
        let line = shown(&["x", &"\u{e4}".repeat(5000)]);
        assert!(line.len() <= MAX && line.ends_with("..."));
        assert_eq!(shown(&["x"; 10_000]).len(), MAX);
    }

    #[test]
    fn bytes_that_are_no_text_do_not_stop_it() {
        assert_eq!(cmdline(&[b"a\xff".to_vec(), b"--token=\xfe".to_vec()]), "a\u{fffd} --token=[redacted]");
    }
}
