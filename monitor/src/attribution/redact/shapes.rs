//! Secrets that are known by their form, wherever they stand: private keys, tokens, credentials in URLs.

use std::borrow::Cow;

use super::HIDDEN;

/// Beginnings of tokens. An access key's id (`AKIA...`) is an identifier, and stays.
const PREFIXES: [&str; 18] = [
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxa-",
    "xoxb-",
    "xoxp-",
    "xapp-",
    "sk_live_",
    "rk_live_",
    "hvs.",
    "hvb.",
    "AGE-SECRET-KEY-",
    "npm_",
    "dckr_pat_",
];
/// Characters that must follow: shorter is a name that begins alike.
const TOKEN_MIN: usize = 10;
const JWT_MIN: usize = 40;
/// Longest label of a PEM block, in bytes.
const LABEL_MAX: usize = 40;

/// Schemes whose user without a password is a user. Elsewhere it is a token.
const USERS: [&str; 10] =
    ["ssh", "git+ssh", "svn+ssh", "sftp", "rsync", "git", "postgres", "postgresql", "mysql", "ftp"];

/// A text without private keys. `cut`: its end may be missing.
pub(super) fn keys(text: &str, cut: bool) -> Cow<'_, str> {
    const BEGIN: &str = "-----BEGIN";
    const END: &str = "PRIVATE KEY-----";
    let Some(mut at) = text.find(BEGIN) else { return Cow::Borrowed(text) };
    let mut out = String::new();
    let mut rest = text;
    loop {
        let body = &rest[at + BEGIN.len()..];
        let label_end = body.find("-----");
        let label = &body.as_bytes()[..label_end.unwrap_or(body.len()).min(LABEL_MAX)];
        let private = label.windows(7).any(|word| word == b"PRIVATE") || (label_end.is_none() && cut);
        out.push_str(&rest[..at]);
        if private {
            out.push_str(HIDDEN);
            let after = body.match_indices(END).nth(1);
            rest = after.map_or("", |(end, _)| &body[end + END.len()..]);
        } else {
            out.push_str(BEGIN);
            rest = body;
        }
        match rest.find(BEGIN) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// A word without tokens and credentials in URLs. `cut`: its end may be missing.
pub(super) fn tokens(text: &str, cut: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let length = rest.find(|c| !in_token(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        match token_at(run, cut && after.is_empty()) {
            Some(at) => {
                out.push_str(&run[..at]);
                out.push_str(HIDDEN);
            }
            None => out.push_str(run),
        }
        let other = after.find(in_token).unwrap_or(after.len());
        out.push_str(&after[..other]);
        rest = &after[other..];
    }
    urls(&out, cut)
}

const fn in_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// Where a token begins that goes on to the end of these characters.
fn token_at(run: &str, cut: bool) -> Option<usize> {
    let of_prefix = PREFIXES.iter().filter_map(|prefix| {
        let at = run.find(prefix)?;
        let rest = &run[at + prefix.len()..];
        // A name of a host has dots.
        let length = rest.find('.').unwrap_or(rest.len());
        (length >= TOKEN_MIN || cut).then_some(at)
    });
    let jwt = run.find("eyJ").filter(|at| {
        let token = &run[*at..];
        let dots = token.bytes().filter(|byte| *byte == b'.').count();
        (token.len() > JWT_MIN && (2..=4).contains(&dots)) || (cut && token.len() > "eyJ".len())
    });
    of_prefix.chain(jwt).min()
}

fn urls(text: &str, cut: bool) -> String {
    const SCHEME: &str = "://";
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(SCHEME) {
        let (before, after) = rest.split_at(at + SCHEME.len());
        out.push_str(before);
        // The next one's scheme is not part of this one.
        let whole = after.find(SCHEME).unwrap_or(after.len());
        let end = userinfo_end(&after[..whole], cut && whole == after.len());
        let (userinfo, next) = after.split_at(end.unwrap_or(0));
        if end.is_some() {
            let scheme = before[..at].rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '+')).next();
            let is_user = scheme.is_some_and(|scheme| USERS.contains(&scheme));
            match userinfo.split_once(':') {
                Some((_, "" | "x-oauth-basic")) => out.push_str(HIDDEN),
                Some((user, _)) => out.extend([user, ":", HIDDEN]),
                None if is_user => out.push_str(userinfo),
                None => out.push_str(HIDDEN),
            }
        }
        rest = next;
    }
    out.push_str(rest);
    out
}

/// Where user and password end in what follows the scheme, if there are any.
fn userinfo_end(text: &str, cut: bool) -> Option<usize> {
    let authority = &text[..text.find(['/', '?', '#']).unwrap_or(text.len())];
    if let Some(at) = authority.rfind('@') {
        return Some(at);
    }
    // No port: a password with characters that should have been escaped, or one cut off.
    let (_, port) = authority.split_once(':').filter(|(host, _)| !host.starts_with('['))?;
    let digits = port.trim_end_matches(['"', '\'', ')', ',', ';']).bytes().all(|byte| byte.is_ascii_digit());
    if digits || port.starts_with('$') {
        return None;
    }
    text.find('@').or_else(|| (cut && authority.len() == text.len()).then_some(text.len()))
}
