//! What programs take as a password under a name that says nothing of it.

/// Which part of the value is the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Whole,
    /// What follows the user.
    After(char),
    /// All of it if it has `=`: otherwise it is a file.
    Cookies,
}

/// A program that takes one.
#[derive(Debug)]
pub(super) struct Program {
    names: &'static [&'static str],
    /// Letters, and long options with their dashes. The value is glued to a letter, or the next argument.
    options: &'static [(&'static str, Style)],
    /// Letters that may stand before another one behind the same dash.
    flags: &'static str,
    /// Only with the subcommand `login`: `-p` is a port otherwise.
    pub login: bool,
    /// How many arguments come before the password where it has no option.
    pub positional: Option<usize>,
}

const fn whole(names: &'static [&'static str], options: &'static [(&'static str, Style)]) -> Program {
    Program { names, options, flags: "", login: false, positional: None }
}

const P: &[(&str, Style)] = &[("p", Style::Whole)];

static PROGRAMS: [Program; 13] = [
    whole(
        &[
            "mysql",
            "mysqldump",
            "mysqladmin",
            "mysqlimport",
            "mysqlshow",
            "mysqlcheck",
            "mysqlslap",
            "mariadb",
            "mariadb-dump",
            "mariadb-admin",
            "mariadb-import",
            "mycli",
        ],
        P,
    ),
    whole(&["sshpass"], P),
    whole(&["mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport", "mongostat"], P),
    whole(&["redis-cli", "valkey-cli", "keydb-cli"], &[("a", Style::Whole)]),
    whole(
        &["ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami", "ldapcompare"],
        &[("w", Style::Whole)],
    ),
    whole(&["ldappasswd"], &[("w", Style::Whole), ("s", Style::Whole), ("a", Style::Whole)]),
    whole(&["zip", "unzip", "ipmitool"], &[("P", Style::Whole)]),
    whole(&["http", "https", "xh"], &[("a", Style::After(':'))]),
    whole(&["lftp"], &[("u", Style::After(',')), ("--user", Style::After(','))]),
    whole(
        &["smbclient", "rpcclient", "smbget", "smbcacls", "net"],
        &[("U", Style::After('%')), ("--user", Style::After('%'))],
    ),
    Program {
        names: &["curl"],
        options: &[
            ("u", Style::After(':')),
            ("U", Style::After(':')),
            ("--user", Style::After(':')),
            ("--proxy-user", Style::After(':')),
            ("b", Style::Cookies),
        ],
        flags: "sSfLkvigIGNOJRnqZjlpa#012346",
        login: false,
        positional: None,
    },
    Program {
        names: &["docker", "podman", "nerdctl", "buildah", "skopeo", "crane", "helm", "oras", "az", "oc"],
        options: P,
        flags: "",
        login: true,
        positional: None,
    },
    Program { names: &["htpasswd"], options: &[], flags: "", login: false, positional: Some(2) },
];

/// The program of that name, if it takes a password so.
pub(super) fn find(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|program| program.names.contains(&name))
}

/// Whether a word names the program itself.
pub(super) fn is(program: &Program, word: &str) -> bool {
    word.rsplit('/').next().is_some_and(|name| program.names.contains(&name))
}

impl Program {
    /// Where the value of an option begins, if it takes a secret; at the option's end if that is the next argument.
    pub(super) fn value(&self, text: &str) -> Option<(usize, Style)> {
        if text.starts_with("--") {
            return self.options.iter().find_map(|(option, style)| {
                let rest = text.strip_prefix(option).filter(|_| option.starts_with("--"))?;
                match rest.as_bytes().first() {
                    None => Some((text.len(), *style)),
                    Some(b'=') => Some((option.len() + 1, *style)),
                    Some(_) => None,
                }
            });
        }
        let rest = text.strip_prefix('-')?.trim_start_matches(|c| self.flags.contains(c));
        self.options.iter().filter(|(option, _)| !option.starts_with('-')).find_map(|(option, style)| {
            rest.strip_prefix(option).map(|value| (text.len() - value.len(), *style))
        })
    }
}

/// Whether it runs what `-c` gives it.
pub(super) fn is_shell(name: &str) -> bool {
    matches!(
        name.trim_start_matches('-'),
        "sh" | "bash" | "dash" | "ash" | "zsh" | "ksh" | "fish" | "su" | "runuser"
    )
}

/// `-c`, `-ec`, `-lc`.
pub(super) fn is_script_option(text: &str) -> bool {
    let letters = text.strip_prefix('-').unwrap_or_default();
    letters.ends_with('c') && letters.len() <= 5 && letters.bytes().all(|byte| byte.is_ascii_lowercase())
}

pub(super) fn runs_containers(name: &str) -> bool {
    matches!(name, "docker" | "podman" | "nerdctl")
}

/// Whether its arguments may hold the name of another program.
pub(super) fn runs_others(name: &str) -> bool {
    const OTHERS: [&str; 33] = [
        "sudo",
        "doas",
        "env",
        "nice",
        "ionice",
        "timeout",
        "nohup",
        "xargs",
        "exec",
        "time",
        "setsid",
        "chroot",
        "nsenter",
        "unshare",
        "stdbuf",
        "strace",
        "kubectl",
        "oc",
        "crictl",
        "ctr",
        "ssh",
        "watch",
        "flock",
        "find",
        "parallel",
        "busybox",
        "systemd-run",
        "tini",
        "dumb-init",
        "runc",
        "sshpass",
        "script",
        "eval",
    ];
    is_shell(name) || runs_containers(name) || OTHERS.contains(&name)
}

/// After these a program is named.
pub(super) fn is_operator(word: &str) -> bool {
    matches!(
        word,
        "" | "|" | "||" | "&&" | "&" | ";" | "--" | "then" | "do" | "else" | "if" | "while" | "!" | "{" | "("
    )
}
