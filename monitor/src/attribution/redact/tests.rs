use proptest::prelude::*;

use super::{MAX, cmdline, render};

/// Command lines with `X` where a secret is, arguments apart by `|`, and what is kept of them.
const SECRET: &[(&str, &str)] = &[
    // Options, variables, headers.
    ("app|--password=X|-v", "app --password=* -v"),
    ("app|--db-password|X|-v", "app --db-password * -v"),
    ("app|--pw|X", "app --pw *"),
    ("app|-password|X", "app -password *"),
    ("app|--password|X y", "app --password *"),
    ("app|--password=X y,z=1", "app --password=*"),
    ("app|--clientSecret=X", "app --clientSecret=*"),
    ("java|-Dpass=X|-DtrustStorePassword=X", "java -Dpass=* -DtrustStorePassword=*"),
    ("env|AWS_SECRET_ACCESS_KEY=X|x", "env AWS_SECRET_ACCESS_KEY=* x"),
    ("env|PGPASSWORD=X|MYSQL_PWD=X|psql", "env PGPASSWORD=* MYSQL_PWD=* psql"),
    ("wget|--password|X|--http-password=X|u", "wget --password * --http-password=* u"),
    ("openssl|rsa|-passin|pass:X", "openssl rsa -passin pass:*"),
    ("curl|-H|Authorization: Bearer X|u", "curl -H Authorization: * u"),
    ("curl|-H|Authorization: Basic X|u", "curl -H Authorization: * u"),
    ("curl|-HAuthorization: Basic X|u", "curl -HAuthorization: * u"),
    ("curl|--header=Authorization: Bearer X", "curl --header=Authorization: *"),
    ("curl|-H|Proxy-Authorization: Basic X", "curl -H Proxy-Authorization: *"),
    ("curl|-H|Cookie: session=X; a=X", "curl -H Cookie: *"),
    ("curl|-H|X-Vault-Token: X", "curl -H X-Vault-Token: *"),
    ("curl|-H|X-Api-Key:X", "curl -H X-Api-Key:*"),
    ("curl|-H|Authorization:|Bearer|X|u", "curl -H Authorization: Bearer * u"),
    ("curl|-H|Authorization:Bearer|X|u", "curl -H Authorization:* * u"),
    ("curl|-H|Authorization:|X|u", "curl -H Authorization: * u"),
    ("curl|-H|Cookie:|a=X;|b=X|u", "curl -H Cookie: * * u"),
    // Pairs.
    ("kubectl|create|--from-literal=password=X", "kubectl create --from-literal=password=*"),
    ("helm|--set|a=b,auth.token=X,c=d", "helm --set a=b,auth.token=*,c=d"),
    ("helm|--set=a=b,auth.token=X,y", "helm --set=a=b,auth.token=*"),
    ("curl|-d|user=a&password=X", "curl -d user=a&password=*"),
    ("curl|-d|user=a&password=X y", "curl -d user=a&password=*"),
    ("curl|https://h/p?y=1&token=X&z=2", "curl https://h/p?y=1&token=*&z=2"),
    (
        "app|--connection-string=Server=h;User=u;Password=X;Db=d",
        "app --connection-string=Server=h;User=u;Password=*;Db=d",
    ),
    (r#"curl|-d|{"user":"u","password":"X"}"#, r#"curl -d {"user":"u","password":*"#),
    (r#"curl|-d|{"a": {"password": "X"}, "b": 1}"#, r#"curl -d {"a": {"password": * "b": 1}"#),
    // URLs.
    ("git|clone|https://me:X@host/x", "git clone https://me:*@host/x"),
    ("git|clone|https://X@github.com/a/b", "git clone https://*@github.com/a/b"),
    ("git|clone|https://X:x-oauth-basic@github.com", "git clone https://*@github.com"),
    ("app|redis://:X@h:1/0", "app redis://:*@h:1/0"),
    ("app|postgres://u:a/X@h/d", "app postgres://u:*@h/d"),
    ("app|http://u:X@a,http://v:X@b/c", "app http://u:*@a,http://v:*@b/c"),
    ("app|DATABASE_URL=mysql://u:X@h/d?password=X", "app DATABASE_URL=mysql://u:*@h/d?password=*"),
    // Programs.
    ("curl|-u|user:X|u", "curl -u user:* u"),
    ("curl|--user|user:X|u", "curl --user user:* u"),
    ("curl|--user=user:X|u", "curl --user=user:* u"),
    ("curl|-uuser:X|u", "curl -uuser:* u"),
    ("/usr/bin/curl|-sSu|user:X|-sU|p:X", "/usr/bin/curl -sSu user:* -sU p:*"),
    ("curl|-b|session=X", "curl -b *"),
    ("mysql|-u|root|-pX|db", "mysql -u root -p* db"),
    ("mysqldump|-p|X|db", "mysqldump -p * db"),
    ("mysqladmin|--pw|X", "mysqladmin --pw *"),
    ("/usr/bin/mariadb|-pX", "/usr/bin/mariadb -p*"),
    ("sudo|-u|root|mysql|-pX", "sudo -u root mysql -p*"),
    ("kubectl|exec|p|--|mysql|-pX", "kubectl exec p -- mysql -p*"),
    ("docker|exec|db|mysql|-pX", "docker exec db mysql -p*"),
    ("sshpass|-pX|ssh|-p|22|h", "sshpass -p* ssh -p 22 h"),
    ("sshpass|-p|X|ssh|-p|22|h", "sshpass -p * ssh -p 22 h"),
    ("docker|login|-u|me|-p|X|reg", "docker login -u me -p * reg"),
    ("podman|login|-pX", "podman login -p*"),
    ("redis-cli|-a|X|get|k", "redis-cli -a * get k"),
    ("mongo|-u|u|-p|X", "mongo -u u -p *"),
    ("mongosh|-pX", "mongosh -p*"),
    ("ldapsearch|-x|-w|X|-b|dc=x", "ldapsearch -x -w * -b dc=x"),
    ("htpasswd|-b|/etc/f|user|X", "htpasswd -b /etc/f user *"),
    ("htpasswd|-nbB|user|X", "htpasswd -nbB user *"),
    ("smbclient|-U|user%X|//h/s", "smbclient -U user%* //h/s"),
    ("smbclient|-Uuser%X", "smbclient -Uuser%*"),
    // Shells.
    ("sh|-c|app --token X run", "sh -c app --token * run"),
    ("sh|-c|app --password X", "sh -c app --password *"),
    ("sh|-c|PASSWORD=X cmd -v", "sh -c PASSWORD=* cmd -v"),
    ("sh|-c|PASSWORD='X y' cmd", "sh -c PASSWORD=*' cmd"),
    ("sh|-c|A=b mysql -pX", "sh -c A=b mysql -p*"),
    ("sh|-c|cd /x && mysql -pX", "sh -c cd /x && mysql -p*"),
    ("bash|-c|curl -H 'Authorization: Bearer X' u", "bash -c curl -H 'Authorization: *' u"),
    ("bash|-c|curl --header='Authorization: Bearer X' u", "bash -c curl --header='Authorization: *' u"),
    (r#"bash|-ec|curl -H \"Authorization: Bearer X\" u"#, r#"bash -ec curl -H \"Authorization: Bearer *" u"#),
    ("sh|-c|curl -H Authorization: Bearer X u", "sh -c curl -H Authorization: Bearer * u"),
    ("sh|-c|sudo sh -c 'PASSWORD=X cmd'", "sh -c sudo sh -c 'PASSWORD=* cmd'"),
    ("sh|-c|x --a='b --token X'", "sh -c x --a='b --token *'"),
    ("ssh|h|mysql -pX", "ssh h mysql -p*"),
    ("app --token X", "app --token *"),
    // Forms.
    ("x|ghp_X", "x *"),
    ("x|a=gho_X,b", "x a=*,b"),
    ("x|ghs_X", "x *"),
    ("x|github_pat_X", "x *"),
    ("x|glpat-X", "x *"),
    ("x|xoxb-1-X|xoxa-X|xoxp-X", "x * * *"),
    ("x|sk_live_X", "x *"),
    ("x|hvs.X", "x *"),
    ("x|AGE-SECRET-KEY-X", "x *"),
    ("sh|-c|echo 'ghp_X' > f", "sh -c echo '*' > f"),
    ("x|eyJhbGciOiJSUzI1NiJ9.abcdefghijklmn.X", "x *"),
    ("x|-----BEGIN PRIVATE KEY-----\nX", "x *"),
    ("x|a -----BEGIN RSA PRIVATE KEY-----\nX\n-----END RSA PRIVATE KEY----- b", "x a * b"),
    ("x|-----BEGIN|RSA|PRIVATE|KEY-----|X|X", "x -----BEGIN * * * * *"),
];

/// Command lines that stay as they are.
const PLAIN: &[&str] = &[
    "",
    "sed|-i|s/a/b/|/etc/x",
    "sed|-e|s/token/x/|/etc/token",
    "/bin/sh|-ec|echo y >> old; sleep 0.3",
    "/usr/bin/token=1|a",
    "kubelet|--kubeconfig=/etc/k|--token-auth-file=/x|--anonymous-auth=false",
    "kube-apiserver|--authorization-mode=Node,RBAC|--tls-private-key-file=/x|--enable-bootstrap-token-auth=true",
    "app|--password-file=/x|--token-path|/x|--secret-name|db|--token-ttl=5m|--tokenUrl|http://h/token",
    "app|--token|--verbose",
    "app|--token|-v",
    "app|--author=me|--key=value|a=b,c=d|authority=x",
    "tar|-cf|x|--exclude=passwords|/etc",
    "mkdir|-p|/a/b",
    "cp|-p|/var/lib/mysql|/x",
    "ssh|-p|2222|me@host",
    "ssh|-p|2222|mysql",
    "docker|run|--name|mysql|-p|127.0.0.1:3306:3306|-v|token:/x|reg/auth-token:1.2",
    "docker|exec|-u|1000:1000|c|id",
    "docker|login|--password-stdin|reg",
    "psql|-p|5432|--no-password|db",
    "curl|-u|user|-H|Accept: text/html|https://h:8443/a@b?x=1",
    "curl|-b|/cookies|http://[::1]:80/@x",
    "git|clone|ssh://git@github.com/a",
    "git|commit|-m|don't drop the token support",
    "aws|AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE|AKIAIOSFODNN7EXAMPLE",
    "helm|--set|auth.enabled=true,auth.database=d,auth.username=u",
    "sh|-c|cd /x; cat < /etc/shadow | grep -v 'a b' && echo \"$HOME\"",
    "env|PWD=/x|OLDPWD=/y|make",
    "htpasswd|-c|/etc/f|user",
    "cat|/var/run/secrets/kubernetes.io/serviceaccount/token",
    "kubectl|get|secrets|-n|x",
    "x|hvs.example.com|ghp_|-----BEGIN CERTIFICATE-----\nabc",
    "nginx: worker process",
];

fn args(line: &str) -> Vec<&str> {
    line.split('|').collect()
}

/// `X-` begins the name of a header.
fn with(line: &str, secret: &str) -> String {
    line.replace("X-", "\0").replace('X', secret).replace('\0', "X-")
}

#[test]
fn secrets_go() {
    let secret = "hunter2hunter2";
    let mut wrong = Vec::new();
    for (line, expected) in SECRET {
        let shown = cmdline(&args(&with(line, secret)));
        let expected = with(expected, secret).replace('*', "[redacted]");
        if shown != expected {
            wrong.push((shown, expected));
        }
    }
    assert_eq!(wrong, []);
}

#[test]
fn the_rest_stays() {
    let plain = PLAIN.iter().map(|line| line.replace('|', " "));
    let wrong: Vec<_> =
        PLAIN.iter().map(|line| cmdline(&args(line))).zip(plain).filter(|(a, b)| a != b).collect();
    assert_eq!(wrong, []);
    assert_eq!(cmdline::<&str>(&[]), "");
}

#[test]
fn what_is_cut_off_in_its_middle_is_judged_by_its_beginning() {
    for (line, expected) in [
        ("x|ghp_ab", "x [redacted]…"),
        ("x|eyJhb", "x [redacted]…"),
        ("x|-----BEGIN PRIV", "x [redacted]…"),
        ("x|-----BEGIN OPENSSH PRIVATE KEY-----\nab", "x [redacted]…"),
        ("curl|-H|Authorization: Bearer ab", "curl -H Authorization: [redacted]…"),
        ("x|https://u:ab", "x https://u:[redacted]…"),
        ("x|https://host:80", "x https://host:80…"),
        ("x|--password=ab", "x --password=[redacted]…"),
        ("x|/etc/pass", "x /etc/pass…"),
    ] {
        assert_eq!(render(&args(line), true), expected);
    }
}

#[test]
fn long_lines_are_cut_at_a_character() {
    let line = cmdline(&["x", &"\u{e4}".repeat(5000)]);
    assert!(line.len() <= MAX && line.ends_with('…'));
    assert_eq!(cmdline(&["x"; 10_000]).len(), MAX);
    assert_eq!(render(&["x".repeat(MAX)], true).len(), MAX);
}

#[test]
fn bytes_that_are_no_text_do_not_stop_it() {
    assert_eq!(cmdline(&[b"a\xff".to_vec(), b"--token=\xfe".to_vec()]), "a\u{fffd} --token=[redacted]");
}

/// Whatever makes one look start over again at each byte takes minutes for these.
#[test]
fn time_is_linear_in_the_input() {
    let start = std::time::Instant::now();
    let pieces = [
        "'",
        "\"",
        "' \"",
        "\\\"",
        "'\"a ",
        "=",
        "a=",
        "a:",
        "token=",
        ",token",
        "://",
        "://a:b",
        "eyJ.",
        "ghp_",
        "-----BEGIN",
        "-----BEGIN PRIVATE KEY-----",
        "a,",
        "{\"",
        "--x='",
        " ",
        "$(",
        "&token=a&",
        "-",
    ];
    for piece in pieces {
        let text = piece.repeat(64 * 1024 / piece.len());
        for args in [vec!["sh", "-c", &text], vec!["x", &text], vec![text.as_str()]] {
            assert!(render(&args, true).len() <= MAX);
        }
    }
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

proptest! {
    #[test]
    fn no_secret_is_shown(secret in "[A-Za-z0-9]{12,40}", truncated: bool) {
        for secret in [secret, "1234567890123".to_owned()] {
            for (line, _) in SECRET {
                let line = with(line, &secret);
                let shown = render(&args(&line), truncated);
                prop_assert!(!shown.contains(&secret), "{}: {}", line, shown);
                prop_assert!(shown.len() <= MAX);
            }
        }
    }

    #[test]
    fn any_bytes_give_something_bounded(
        args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 0..20),
        truncated: bool,
    ) {
        prop_assert!(render(&args, truncated).len() <= MAX);
    }

    #[test]
    fn what_looks_like_a_command_line_gives_something_bounded(
        args in proptest::collection::vec("([a\u{e4}'\"\\\\ =:,;&?@/-]|--token|://|-c|sh|mysql|Bearer){0,40}", 0..8),
        truncated: bool,
    ) {
        prop_assert!(render(&args, truncated).len() <= MAX);
    }
}
