//! Command lines, without the secrets that people put there.

/// Words that name a secret; what stands after `=`, `:` or in the next argument is left out.
const SECRETS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "token",
    "secret",
    "api-key",
    "apikey",
    "api_key",
    "credential",
    "private-key",
];

/// What stands in place of a secret.
const REDACTED: &str = "[redacted]";

/// Joins arguments by blanks. `argv` is as it lies in memory: each ends with NUL.
pub(super) fn render(argv: &[u8], truncated: bool) -> String {
    let argv = argv.strip_suffix(b"\0").unwrap_or(argv);
    let mut out = String::new();
    let mut hide_next = false;
    for (index, arg) in argv.split(|byte| *byte == 0).enumerate() {
        if index > 0 {
            out.push(' ');
        }
        let arg = String::from_utf8_lossy(arg);
        if std::mem::take(&mut hide_next) && !arg.starts_with('-') {
            out.push_str(REDACTED);
            continue;
        }
        hide_next = index > 0 && arg.starts_with('-') && !arg.contains('=') && names_secret(&arg);
        out.push_str(&redact(&arg, index));
    }
    if truncated {
        out.push('…');
    }
    out
}

fn names_secret(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    SECRETS.iter().any(|secret| text.contains(secret))
}

fn redact(arg: &str, index: usize) -> String {
    if index > 0
        && let Some(at) = arg.find(['=', ':'])
        && names_secret(&arg[..at])
    {
        return format!("{}{REDACTED}", &arg[..=at]);
    }
    // user:secret@host in a URL
    if let Some(scheme) = arg.find("://")
        && let Some(at) = arg[scheme + 3..].find('@')
        && let Some(colon) = arg[scheme + 3..scheme + 3 + at].find(':')
    {
        let (start, end) = (scheme + 3 + colon + 1, scheme + 3 + at);
        return format!("{}{REDACTED}{}", &arg[..start], &arg[end..]);
    }
    arg.to_owned()
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn secrets_are_left_out() {
        for (argv, expected) in [
            ("sed\0-i\0s/a/b/\0/etc/x\0", "sed -i s/a/b/ /etc/x"),
            ("mysql\0--password=hunter2\0-h\0db\0", "mysql --password=[redacted] -h db"),
            ("x\0--token\0abc\0--quiet\0", "x --token [redacted] --quiet"),
            ("curl\0-H\0X-Api-Key: 5\0", "curl -H X-Api-Key:[redacted]"),
            ("git\0clone\0https://u:pw@h/r\0", "git clone https://u:[redacted]@h/r"),
            ("/usr/bin/token=1\0a\0", "/usr/bin/token=1 a"),
            ("", ""),
        ] {
            assert_eq!(render(argv.as_bytes(), false), expected);
        }
    }

    #[test]
    fn odd_bytes_do_no_harm() {
        assert_eq!(render(b"a\xff\0\0b\nc", true), "a\u{fffd}  b\nc…");
    }
}
