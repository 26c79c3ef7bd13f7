//! Bad input, at each command of the binary: exit status 2, one line on stderr, and the same as JSON where JSON was
//! asked for. Nothing is written.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

fn meshseal(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshseal"))
        .args(arguments)
        .current_dir(dir)
        .env_remove("MESHSEAL_SOCKET")
        .output()
        .expect("the binary runs")
}

fn refused(dir: &Path, arguments: &[&str]) -> String {
    let plain = meshseal(dir, arguments);
    let stderr = String::from_utf8(plain.stderr).unwrap();
    assert_eq!(plain.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert_eq!(plain.stdout, b"", "{arguments:?}");
    assert!(stderr.starts_with("meshseal: "), "{arguments:?}: {stderr}");
    assert_eq!(stderr.matches('\n').count(), 1, "{arguments:?}: {stderr}");
    assert!(stderr.ends_with('\n'), "{arguments:?}: {stderr}");

    let json = meshseal(dir, &[arguments, &["--format", "json"]].concat());
    assert_eq!(json.status.code(), Some(2), "{arguments:?}");
    assert_eq!(String::from_utf8(json.stderr).unwrap(), stderr, "{arguments:?}");
    let answer: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap_or_else(|error| {
        panic!("{arguments:?}: {error}: {:?}", String::from_utf8_lossy(&json.stdout))
    });
    let error = |field: &str| answer["error"][field].as_str().unwrap().to_owned();
    let line = format!("meshseal: {}: {}: {}\n", error("what"), error("where"), error("expected"));
    assert_eq!(line, stderr, "{arguments:?}");
    stderr
}

/// A directory with one of each: `dir`, `garbage` (binary), `empty`; `missing` is not there.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("dir")).unwrap();
    let garbage: Vec<u8> = (0..=255_u8).cycle().take(4096).collect();
    std::fs::write(place.path().join("garbage"), garbage).unwrap();
    std::fs::write(place.path().join("empty"), b"").unwrap();
    place
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_that_are_not_what_is_expected() {
    let place = place();
    let dir = place.path();
    for bad in ["missing", "dir", "garbage", "empty"] {
        refused(dir, &["check-config", bad]);
        refused(dir, &["doctor", "--config", bad]);
        refused(dir, &["sign", "--key", bad, "garbage", "-o", "out"]);
        refused(dir, &["sign", "--key", "garbage", bad, "-o", "out"]);
        refused(dir, &["verify", "--baseline", bad, "--trusted-key", "garbage"]);
        refused(dir, &["verify", "--baseline", "garbage", "--trusted-key", bad]);
        refused(dir, &["baseline", "show", bad]);
        refused(dir, &["baseline", "diff", bad, "garbage"]);
        // Random bytes are what a secret key is.
        if bad != "garbage" {
            refused(dir, &["seal", "--path", "/etc/hostname", "--secret-key", bad, "-o", "out"]);
        }
    }
    for bad in ["missing", "garbage", "empty"] {
        refused(dir, &["seal", "--path", "/etc", "--root", bad, "-o", "out"]);
        refused(dir, &["journal", "verify", bad]);
    }
    refused(dir, &["seal", "--path", "/no/such/file", "-o", "out"]);
    refused(dir, &["seal", "--path", "/etc/hostname", "-o", "dir"]);
    refused(dir, &["seal", "--path", "/etc/hostname", "-o", "missing/out"]);
    assert_eq!(names(dir), ["dir", "empty", "garbage"]);
}

#[test]
fn no_agent() {
    let place = place();
    let dir = place.path();
    let commands: [&[&str]; 7] = [
        &["status"],
        &["objects"],
        &["violations"],
        &["violations", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        &["events"],
        &["ready"],
        &["propose", "-o", "out"],
    ];
    for command in commands {
        let asked = |socket| refused(dir, &[command, &["--socket", socket]].concat());
        assert_eq!(asked("missing"), "meshseal: agent: missing: no such socket, expected a running agent\n");
        for other in ["dir", "garbage"] {
            let expected = format!("meshseal: agent: {other}: is no socket, expected the agent's socket\n");
            assert_eq!(asked(other), expected);
        }
    }
    assert_eq!(names(dir), ["dir", "empty", "garbage"]);
}

#[test]
fn a_left_over_socket_is_no_agent() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(
        refused(place.path(), &["status", "--socket", "s"]),
        "meshseal: agent: s: nobody listens, expected a running agent\n"
    );
}

#[test]
fn unknown_options_and_commands() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let commands: [&[&str]; 16] = [
        &["agent"],
        &["check-config"],
        &["status"],
        &["objects"],
        &["violations"],
        &["violations", "show"],
        &["events"],
        &["ready"],
        &["doctor"],
        &["journal", "verify"],
        &["propose"],
        &["seal"],
        &["sign"],
        &["verify"],
        &["baseline", "show"],
        &["version"],
    ];
    for command in commands {
        assert_eq!(
            refused(dir, &[command, &["--nonsense-option"]].concat()),
            "meshseal: arguments: --nonsense-option: unknown argument, see meshseal --help\n",
            "{command:?}"
        );
    }
    refused(dir, &["nonsense"]);
    refused(dir, &["events", "--since", "many"]);
    refused(dir, &["events", "--since-time", "yesterday"]);
    refused(dir, &["propose", "-o", "out", "--revision", "0"]);
}

/// `doctor` needs no agent, and its exit status says what its answer says.
#[test]
fn doctor_answers_without_an_agent() {
    let place = tempfile::tempdir().unwrap();
    let answer = meshseal(place.path(), &["doctor", "--socket", "missing", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let expected = match (report["rung"].as_str().unwrap(), report["coverage"].as_str().unwrap()) {
        ("lsm", "full") => 0,
        ("none", "reduced") => 4,
        (_, "reduced") => 3,
        other => panic!("{other:?}"),
    };
    assert_eq!(answer.status.code(), Some(expected));
    for check in report["checks"].as_array().unwrap() {
        assert_eq!(check["ok"].as_bool().unwrap(), check["fix"].is_null(), "{check}");
    }
    assert_eq!(names(place.path()), Vec::<String>::new());
}

/// A place with `key.pem`, `key.pub`, a tree below `root`, its statement `s.json` and its envelope `b.json`.
fn sealed_place() -> tempfile::TempDir {
    let place = place();
    let dir = place.path();
    let openssl = |args: &[&str]| {
        assert!(Command::new("openssl").args(args).current_dir(dir).output().unwrap().status.success());
    };
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "key.pem"]);
    openssl(&["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"]);
    std::fs::create_dir_all(dir.join("root/etc")).unwrap();
    std::fs::write(dir.join("root/etc/conf"), "one\n").unwrap();
    for command in [
        &["seal", "--root", "root", "--path", "/etc", "-o", "s.json"][..],
        &["sign", "--key", "key.pem", "s.json", "-o", "b.json"],
    ] {
        assert_eq!(meshseal(dir, command).status.code(), Some(0), "{command:?}");
    }
    place
}

const VERIFY: [&str; 7] = ["verify", "--root", "root", "--trusted-key", "key.pub", "--baseline", "b.json"];

#[test]
fn configs_that_are_refused() {
    let place = place();
    let dir = place.path();
    let anchors =
        (1..40).map(|at| format!("a{at}: &a{at} [*a{}, *a{}, *a{}, *a{}]\n", at - 1, at - 1, at - 1, at - 1));
    let bomb: String = std::iter::once("a0: &a0 [x, x, x, x]\n".to_owned()).chain(anchors).collect();
    let nested = "[".repeat(200_000);
    let good = "apiVersion: meshseal/v1\n";
    let cases: [(&str, String, &str); 9] = [
        ("unknown", format!("{good}nonsense: 1\n"), "meshseal: config: unknown:2: "),
        ("type", format!("{good}scrub: 7\n"), "meshseal: config: type:2: "),
        ("number", format!("{good}baselines: {{requireSignatures: many}}\n"), "meshseal: config: number:2: "),
        ("zero", format!("{good}baselines: {{requireSignatures: 0}}\n"), "meshseal: config: zero:2: "),
        ("bomb", format!("{good}{bomb}"), "meshseal: config: bomb"),
        ("nested", format!("{good}profiles: {nested}"), "meshseal: config: nested"),
        ("mapped", format!("{good}profiles: {}", "{a: ".repeat(100_000)), "meshseal: config: mapped"),
        ("twice", format!("{good}{good}"), "meshseal: config: twice"),
        ("version", "apiVersion: meshseal/v2\n".to_owned(), "meshseal: config: version:1: "),
    ];
    for (name, text, expected) in cases {
        std::fs::write(dir.join(name), text).unwrap();
        let told = refused(dir, &["check-config", name]);
        assert!(told.starts_with(expected), "{told}");
        assert!(told.len() < 1000, "{name}: {} bytes", told.len());
    }
}

#[test]
fn statements_and_envelopes_that_are_refused() {
    let place = sealed_place();
    let dir = place.path();
    let envelope = std::fs::read(dir.join("b.json")).unwrap();
    let nested = "[".repeat(1_000_000);
    let with = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    with("cut", &envelope[..envelope.len() - 40]);
    with("nested", nested.as_bytes());
    with("nested-statement", format!(r#"{{"_type": {nested}"#).as_bytes());
    with(
        "nested-envelope",
        format!(r#"{{"payloadType": "application/vnd.in-toto+json", "payload": {nested}"#).as_bytes(),
    );
    let text = String::from_utf8(envelope.clone()).unwrap();
    let signature = text.find("\"sig\":\"").unwrap() + 20;
    for (at, bit) in [(0, 1), (envelope.len() / 3, 4), (envelope.len() / 2, 1), (signature, 1)] {
        let mut flipped = envelope.clone();
        flipped[at] ^= 1 << bit;
        with(&format!("flipped-{at}"), &flipped);
    }
    let before = names(dir);
    for bad in
        before.iter().filter(|name| ["cut", "nested", "flipped"].iter().any(|bad| name.starts_with(bad)))
    {
        let told = refused(dir, &["verify", "--root", "root", "--trusted-key", "key.pub", "--baseline", bad]);
        assert!(told.len() < 1000 && told.contains(bad.as_str()), "{told}");
        if !bad.starts_with("flipped") {
            refused(dir, &["sign", "--key", "key.pem", bad, "-o", "out"]);
            refused(dir, &["baseline", "show", bad]);
            refused(dir, &["baseline", "diff", "b.json", bad]);
        }
    }
    for bad in ["garbage", "empty", "dir", "missing", "nested"] {
        refused(dir, &[&VERIFY[..], &["--signature", bad]].concat());
        refused(dir, &[&VERIFY[..], &["--rotation", bad]].concat());
        refused(dir, &["sign", "--attach", bad, "s.json", "-o", "out"]);
        refused(dir, &["baseline", "keys", "--trusted-key", bad, "key.pem", "-o", "out"]);
    }
    refused(dir, &["baseline", "keys", "--trusted-key", "key.pub", "--require-signatures", "2", "-o", "out"]);
    assert_eq!(names(dir), before);
}

#[test]
fn what_may_not_be_read_or_written() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;

    let place = sealed_place();
    let dir = place.path();
    let mode = |path: &str, mode| {
        std::fs::set_permissions(dir.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Root may read everything: then the binary runs as somebody else, from where they may run it.
    let root = rustix::process::geteuid().is_root();
    // By another process: a child that another test starts would hold a file that this one writes, and so keep it from being run.
    let copied =
        Command::new("cp").arg(env!("CARGO_BIN_EXE_meshseal")).arg(dir.join("meshseal")).status().unwrap();
    assert!(copied.success());
    mode("", 0o755);
    mode("meshseal", 0o755);
    let run = |args: &[&str]| {
        let mut command = Command::new(dir.join("meshseal"));
        command.args(args).current_dir(dir);
        if root {
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let refused = |args: &[&str]| {
        let (status, stdout, stderr) = run(args);
        assert_eq!((status, stdout.as_str(), stderr.lines().count()), (Some(2), "", 1), "{args:?}: {stderr}");
        assert!(stderr.to_lowercase().contains("permission denied"), "{args:?}: {stderr}");
    };
    assert_eq!(run(&VERIFY).0, Some(0));
    for (file, args) in [
        ("s.json", &["sign", "--key", "key.pem", "s.json", "-o", "/dev/null"][..]),
        ("b.json", &VERIFY),
        ("key.pub", &VERIFY),
        ("b.json", &["baseline", "show", "b.json"]),
        ("garbage", &["check-config", "garbage"]),
        ("root/etc/conf", &["seal", "--root", "root", "--path", "/etc", "-o", "/dev/null"]),
    ] {
        mode("key.pem", 0o644);
        mode(file, 0);
        refused(args);
        mode(file, 0o644);
    }
    mode("key.pem", 0);
    refused(&["sign", "--key", "key.pem", "s.json", "-o", "/dev/null"]);
    refused(&["seal", "--root", "root", "--path", "/etc", "-o", "root/out"]);
    // One object that cannot be told is no reason to keep quiet about the rest: it is said, and the exit status says it too.
    mode("root/etc/conf", 0);
    let (status, stdout, stderr) = run(&VERIFY);
    assert_eq!((status, stderr.lines().count()), (Some(2), 1), "{stdout}{stderr}");
    assert!(stdout.contains("cannot tell: /etc/conf: cannot read"), "{stdout}");
    mode("root/etc/conf", 0o644);
}

#[test]
fn paths_that_are_hostile_stay_on_one_line() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let place = sealed_place();
    let dir = place.path();
    for name in
        [&b"a\nmeshseal: forged: all is well"[..], b"\xff\xfe", b"\x1b[2J", "\u{202e}gnp.exe".as_bytes()]
    {
        let name = OsStr::from_bytes(name);
        for args in [
            [OsStr::new("check-config"), name].to_vec(),
            [OsStr::new("baseline"), OsStr::new("show"), name].to_vec(),
            ["verify", "--trusted-key", "key.pub", "--baseline"]
                .map(OsStr::new)
                .into_iter()
                .chain([name])
                .collect(),
            ["seal", "--root", "root", "-o", "out", "--path"]
                .map(OsStr::new)
                .into_iter()
                .chain([name])
                .collect(),
            ["sign", "--key", "key.pem", "-o", "out"].map(OsStr::new).into_iter().chain([name]).collect(),
        ] {
            let output =
                Command::new(env!("CARGO_BIN_EXE_meshseal")).args(&args).current_dir(dir).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{args:?}: {stderr}");
            assert!(!stderr.contains(['\u{1b}', '\u{202e}']), "{args:?}: {stderr:?}");
        }
        // As the name of a file it is sealed, and found when it is gone.
        let file = dir.join("root/etc").join(name);
        std::fs::write(&file, "x").unwrap();
        for command in [
            &["seal", "--root", "root", "--path", "/etc", "-o", "s.json"][..],
            &["sign", "--key", "key.pem", "s.json", "-o", "b.json"],
            &VERIFY,
        ] {
            assert_eq!(meshseal(dir, command).status.code(), Some(0), "{name:?} {command:?}");
        }
        std::fs::remove_file(file).unwrap();
        let told = String::from_utf8(meshseal(dir, &VERIFY).stdout).unwrap();
        assert!(told.starts_with("DIFFERS: 2 of 3 objects are not as sealed\n"), "{told}");
        assert!(!told.contains(['\u{1b}', '\u{202e}']) && !told.contains("\nmeshseal: forged"), "{told:?}");
        let sarif = meshseal(dir, &[&VERIFY[..], &["--format", "sarif"]].concat());
        let log: serde_json::Value = serde_json::from_slice(&sarif.stdout).unwrap();
        assert_eq!(log["runs"][0]["results"].as_array().unwrap().len(), 2, "{log}");
        assert_eq!(
            (sarif.status.code(), &log["runs"][0]["invocations"][0]["exitCode"]),
            (Some(1), &1.into())
        );
    }
}

/// A tree that changes all the time is not judged by a half-read file: what cannot be told is said so.
#[test]
fn a_file_that_grows_while_it_is_hashed() {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    let place = sealed_place();
    let dir = place.path();
    let stop = AtomicBool::new(false);
    let (began, begins) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let mut file = std::fs::OpenOptions::new().append(true).open(dir.join("root/etc/conf")).unwrap();
            file.write_all(b"x").unwrap();
            began.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.write_all(b"x").unwrap();
            }
        });
        begins.recv().unwrap();
        let answer = meshseal(dir, &VERIFY);
        stop.store(true, Ordering::Relaxed);
        let told = String::from_utf8(answer.stdout).unwrap();
        // A busy machine may hold the writer up: then the bytes of one moment are told.
        match answer.status.code() {
            Some(1) => assert!(told.contains("CONTENT"), "{told}"),
            Some(2) => assert!(told.contains("/etc/conf: keeps changing while it is read"), "{told}"),
            other => panic!("{other:?}: {told}"),
        }
    });
}

/// On a disk that is full nothing is left of what could not be written whole, and what was there stays.
#[test]
fn a_full_disk() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    let place = sealed_place();
    let dir = place.path();
    let small = dir.join("small");
    std::fs::create_dir(&small).unwrap();
    let size = std::ffi::CString::new("size=16k").unwrap();
    if mount("tmpfs", &small, "tmpfs", MountFlags::empty(), Some(size.as_c_str())).is_err() {
        eprintln!("skipped: mounting takes a privilege");
        return;
    }
    std::fs::write(small.join("out"), "before").unwrap();
    std::fs::write(small.join("filler"), [0; 8192]).unwrap();
    for at in 0..200 {
        std::fs::write(dir.join(format!("root/etc/{at:03}")), "").unwrap();
    }
    let told = refused(dir, &["seal", "--root", "root", "--path", "/etc", "-o", "small/out"]);
    assert_eq!(
        told,
        "meshseal: cannot write: small/out: a file that can be written (No space left on device (os error 28))\n"
    );
    assert_eq!(
        (names(&small), std::fs::read(small.join("out")).unwrap()),
        (["filler", "out"].map(Into::into).to_vec(), b"before".to_vec())
    );
    unmount(&small, UnmountFlags::DETACH).unwrap();
}

#[test]
fn ctrl_c_ends_with_130_and_leaves_nothing() {
    use std::io::Read as _;
    use std::process::Stdio;

    let place = sealed_place();
    let dir = place.path();
    // Enough to be busy with until the signal comes, however fast the machine: it is sent as soon as reading has begun.
    let large = std::fs::File::create(dir.join("root/etc/large")).unwrap();
    large.set_len(8 << 30).unwrap();
    let mut statement: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("s.json")).unwrap()).unwrap();
    let objects = statement["predicate"]["objects"].as_array_mut().unwrap();
    let mut object = objects[1].clone();
    object["path"] = "/etc/large".into();
    object["size"] = (8_u64 << 30).into();
    objects.push(object);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(statement["predicate"]["objects"].to_string());
    statement["subject"][0]["digest"]["sha256"] = hex::encode(digest).into();
    std::fs::write(dir.join("s.json"), statement.to_string()).unwrap();
    assert_eq!(meshseal(dir, &["sign", "--key", "key.pem", "s.json", "-o", "b.json"]).status.code(), Some(0));
    let before = names(dir);

    let mut child = Command::new(env!("CARGO_BIN_EXE_meshseal"))
        .args(VERIFY)
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let reads = |pid: u32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
            .any(|target| target.ends_with("etc/large"))
    };
    while !reads(child.id()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before the signal");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    // The first asks it to stop at the next object, the second ends it at once: this object is long.
    while child.try_wait().unwrap().is_none() {
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        std::thread::yield_now();
    }
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{status}");
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(stdout, "");
    assert_eq!(names(dir), before);
}
