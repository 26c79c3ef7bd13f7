//! Command lines as they may be kept: arguments joined by blanks, secrets taken out, at most 4 KiB.
//!
//! What is taken out:
//! - the value of any option, variable, header or pair whose name speaks of a secret ([`names`], [`pairs`]);
//! - what a program is known to take as a password under a name that says nothing ([`programs`]): `mysql -pX`;
//! - credentials in URLs, private keys, and tokens that are known by their form ([`shapes`]).
//!
//! An argument that has blanks in it may be a command line itself (`sh -c '...'`): its words are looked at as arguments.
//! It is a guess by names and forms: a secret that has neither (`echo X | chpasswd`) stays.

mod names;
mod pairs;
mod programs;
mod quotes;
mod shapes;
#[cfg(test)]
mod tests;

use programs::{Program, Style};
use quotes::Quotes;

/// Longest command line that is kept, in bytes.
pub const MAX: usize = 4096;
/// What stands in place of a secret.
const HIDDEN: &str = "[redacted]";
/// What stands at the end of a command line that went on.
const CUT: &str = "…";
/// How deep quotes within quotes are followed; each level is one more pass over the text. Below, only blanks count.
const DEPTH: usize = 4;

/// Joins, redacts and bounds arguments of which none is missing.
#[must_use]
pub fn cmdline<A: AsRef<[u8]>>(args: &[A]) -> String {
    render(args, false)
}

/// Joins, redacts and bounds arguments. `truncated`: there were more, and the last one may be cut off in its middle.
#[must_use]
pub fn render<A: AsRef<[u8]>>(args: &[A], truncated: bool) -> String {
    let mut line = Line { first: true, command: true, ..Line::default() };
    for (index, arg) in args.iter().enumerate() {
        if line.out.len() > MAX {
            break;
        }
        if index > 0 {
            line.out.push(' ');
        }
        line.cut = truncated && index + 1 == args.len();
        line.argument(&String::from_utf8_lossy(arg.as_ref()), 0);
    }
    bound(line.out, truncated)
}

fn bound(mut text: String, truncated: bool) -> String {
    if text.len() > MAX || (truncated && text.len() + CUT.len() > MAX) {
        let end = (0..=MAX - CUT.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(CUT);
    } else if truncated {
        text.push_str(CUT);
    }
    text
}

/// What the word before says of the next one.
#[derive(Debug, Default, Clone, Copy)]
enum Next {
    #[default]
    Nothing,
    /// The value of an option that names a secret.
    Secret,
    /// The value of a header: a scheme may come first, and it may go on.
    Header,
    /// What the program takes under the option before.
    Given(Style),
    /// What a PEM block is, unquoted.
    Label,
    /// A private key that is taken apart by blanks, to its end.
    Key,
}

/// A command line on its way out.
#[derive(Debug, Default)]
struct Line {
    out: String,
    next: Next,
    /// Nothing was looked at yet: this is `argv[0]`.
    first: bool,
    /// The argument may be cut off.
    cut: bool,
    /// A shell was named, and the argument is what it shall run.
    script: bool,
    shell: bool,
    /// The next word is the name of a program.
    command: bool,
    /// Something that runs other programs was named: any word may be the name of one.
    anywhere: bool,
    /// A runtime of containers was named: what looks like ports under `-p` is ports.
    containers: bool,
    login: bool,
    program: Option<&'static Program>,
    /// Arguments that are no options until the password, where it has no option. Counts only with `batch`.
    until_password: Option<usize>,
    batch: bool,
}

impl Line {
    fn argument(&mut self, text: &str, depth: usize) {
        if self.expected(text, depth) {
            return;
        }
        let script = std::mem::take(&mut self.script);
        self.command |= script;
        let quote = text.chars().next().filter(|quote| matches!(quote, '"' | '\''));
        if depth < DEPTH
            && let Some(quote) = quote
            && let Some(inner) = text.get(1..).and_then(|text| text.strip_suffix(quote))
            && !inner.contains(quote)
        {
            self.out.push(quote);
            self.script = script;
            self.argument(inner, depth + 1);
            self.out.push(quote);
            return;
        }
        let text = shapes::keys(text, self.cut);
        if !text.contains(is_blank) {
            self.word(&text);
        } else if script || self.first || !self.assignment(&text) {
            self.words(&text, depth);
        }
    }

    /// Writes what the word before announced, if this is it.
    fn expected(&mut self, text: &str, depth: usize) -> bool {
        let next = std::mem::take(&mut self.next);
        let flag = text.starts_with("--") || (text.len() == 2 && text.starts_with('-'));
        let flag = flag && !matches!(next, Next::Key);
        if matches!(next, Next::Nothing) || flag || (depth > 0 && programs::is_operator(text)) {
            return false;
        }
        match next {
            Next::Given(style) => self.given(text, style),
            // `Authorization: Bearer x`, unquoted.
            Next::Header if names::is_scheme(text) => {
                self.out.push_str(text);
                self.next = Next::Secret;
            }
            Next::Header => {
                self.hide(text);
                if text.ends_with([',', ';']) && text.contains('=') {
                    self.next = Next::Header;
                }
            }
            Next::Label if !matches!(text, "RSA" | "EC" | "DSA" | "OPENSSH" | "ENCRYPTED" | "PRIVATE") => {
                return false;
            }
            Next::Label | Next::Key => {
                self.hide(text);
                if !text.ends_with("-----END") {
                    self.next = Next::Key;
                }
            }
            Next::Secret | Next::Nothing => self.hide(text),
        }
        true
    }

    /// `Authorization: Bearer x`, `PASSWORD=a b`: in an argument of its own the value goes on to the argument's end.
    fn assignment(&mut self, text: &str) -> bool {
        let word = text.split(is_blank).next().unwrap_or_default();
        let judged = shapes::tokens(word, self.cut);
        let mut shown = String::new();
        let Some(value) = pairs::redact(&judged, &mut shown) else { return false };
        self.out.push_str(&shown);
        if value.is_empty() {
            let rest = &text[word.len()..];
            let blanks = rest.len() - rest.trim_start_matches(is_blank).len();
            self.out.push_str(&rest[..blanks]);
            self.hide(&rest[blanks..]);
        } else {
            self.out.push_str(closing_quote(text));
        }
        true
    }

    fn words(&mut self, text: &str, depth: usize) {
        let mut quotes = Quotes { double: depth < DEPTH, single: depth < DEPTH };
        if quotes.clone().word_end(text) == text.len() {
            // `--x='a b'`: quotes that do not take it apart would be met again and again.
            quotes = Quotes { double: false, single: false };
        }
        let mut rest = text;
        while self.out.len() <= MAX {
            let word = rest.trim_start_matches(is_blank);
            self.out.push_str(&rest[..rest.len() - word.len()]);
            if word.is_empty() {
                break;
            }
            let (word, after) = word.split_at(quotes.word_end(word));
            self.argument(word, depth + 1);
            rest = after;
        }
    }

    /// One word without blanks.
    fn word(&mut self, text: &str) {
        let bare = text.trim_matches(|c| matches!(c, '"' | '\'' | '(' | ')' | '`' | '$'));
        let option = bare.len() > 1 && bare.starts_with('-');
        if !option {
            self.enter(bare);
        }
        if std::mem::take(&mut self.first) && text.contains('/') {
            // The program's own path, whatever it is called.
            self.out.push_str(&shapes::tokens(text, self.cut));
            return;
        }
        if let Some(program) = self.program {
            if self.is_positional_password(program, bare, option) {
                self.hide(text);
                return;
            }
            if option
                && (!program.login || self.login)
                && let Some((at, style)) = program.value(text)
            {
                self.out.push_str(&text[..at]);
                match &text[at..] {
                    "" => self.next = Next::Given(style),
                    value => self.given(value, style),
                }
                return;
            }
        }
        self.script = self.shell && option && programs::is_script_option(bare);
        self.plain(text);
        if names::is_secret_option(bare) || names::is_bare_scheme(bare) {
            self.next = Next::Secret;
        }
        if bare.ends_with("-----BEGIN") {
            self.next = Next::Label;
        }
        if text.ends_with([';', '|', '&']) {
            self.command = true;
        }
    }

    /// A word of which nothing is known but what it says itself.
    fn plain(&mut self, text: &str) {
        let text = shapes::tokens(text, self.cut);
        match pairs::redact(&text, &mut self.out) {
            Some("") => self.next = Next::Header,
            Some(value) if names::is_scheme(value) => self.next = Next::Secret,
            _ => {}
        }
    }

    /// The value of an option of a known program.
    fn given(&mut self, value: &str, style: Style) {
        match style {
            Style::Whole if self.containers && is_port(value) => self.out.push_str(value),
            Style::Whole => self.hide(value),
            Style::Cookies if value.contains('=') => self.hide(value),
            Style::Cookies => self.plain(value),
            Style::After(separator) => match value.split_once(separator) {
                Some((user, secret)) => {
                    self.out.push_str(&shapes::tokens(user, self.cut));
                    self.out.push(separator);
                    self.hide(secret);
                }
                None => self.plain(value),
            },
        }
    }

    /// Keeps account of which program runs.
    fn enter(&mut self, bare: &str) {
        if programs::is_operator(bare) {
            self.command = true;
            return;
        }
        if self.command && bare.contains('=') && !bare.contains('/') {
            return; // `A=b program`
        }
        let name = bare.rsplit('/').next().unwrap_or_default();
        let named = self.command || (self.anywhere && (!bare.contains('/') || bare.contains("bin/")));
        if named {
            let program = programs::find(name);
            if self.command || program.is_some() {
                self.program = program;
                self.login = false;
                self.batch = false;
                self.until_password = None;
            }
            self.shell |= programs::is_shell(name);
            self.containers |= programs::runs_containers(name);
            self.anywhere |= programs::runs_others(name);
            self.command = self.command && name == "sshpass";
        }
        self.login |= name == "login";
    }

    /// `htpasswd -b file user X`, `htpasswd -nb user X`.
    fn is_positional_password(&mut self, program: &Program, bare: &str, option: bool) -> bool {
        let Some(before) = program.positional else { return false };
        if option {
            let letters = bare.trim_start_matches('-');
            self.batch |= letters.contains('b');
            if letters.contains('n') {
                self.until_password = Some(before.saturating_sub(1));
            }
            return false;
        }
        let left = self.until_password.unwrap_or(before + usize::from(programs::is(program, bare)));
        self.until_password = Some(left.saturating_sub(1));
        self.batch && left == 0
    }

    /// In place of a secret. The quote at its end belongs to what is around it.
    fn hide(&mut self, secret: &str) {
        self.out.push_str(HIDDEN);
        self.out.push_str(closing_quote(secret));
    }
}

fn closing_quote(value: &str) -> &str {
    value.get(value.len().saturating_sub(1)..).filter(|end| matches!(*end, "'" | "\"")).unwrap_or_default()
}

/// `8080`, `127.0.0.1:80:80`. More digits than a port has are a password.
fn is_port(text: &str) -> bool {
    text.split([':', '.', '-']).all(|part| part.len() <= 5 && part.bytes().all(|byte| byte.is_ascii_digit()))
}

const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}
