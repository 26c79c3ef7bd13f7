//! A real agent under test, and what it says.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use monitor::journal::Reader;
use serde_json::Value;

use crate::meshseal;

/// Ed25519 keys made for these tests, and used nowhere else.
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEII7P0jOC3nSp+VcL+FxYWO4r808xnhnh9KiLaxFhU4uL
-----END PRIVATE KEY-----
";
const KEY_PUB: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAHotAjRd8ostY0L6z0e8kJhR8IWmeJL+/CmjzUdTVFxs=
-----END PUBLIC KEY-----
";
const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEICoUTKv6TlqdPnsi+OEgQcyZa+vzr+mfuehLL8DzG4Fe
-----END PRIVATE KEY-----
";

/// Longest that anything is waited for; a guest without hardware virtualisation is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Longest that a start is waited for. Loading all hooks takes some 25 s where the guest's processor is interpreted and little else
/// runs on the machine; a minute was too short beside other work.
const START_PATIENCE: Duration = Duration::from_secs(300);

/// Which key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signer {
    Trusted,
    Stranger,
}

/// A directory with config, keys, baselines and state of one agent.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) dir: PathBuf,
}

impl Home {
    /// Makes it, with an empty set of baselines.
    pub(crate) fn new(dir: PathBuf) -> Result<Self> {
        for sub in ["baselines", "keys", "work"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("keys/trusted.pem"), KEY)?;
        fs::write(dir.join("keys/trusted.pub"), KEY_PUB)?;
        fs::write(dir.join("keys/stranger.pem"), OTHER_KEY)?;
        let home = Self { dir };
        home.configure("")?;
        Ok(home)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.join("state/journal")
    }

    /// Writes the config, with these lines more.
    pub(crate) fn configure(&self, more: &str) -> Result<()> {
        let (dir, rung) = (self.dir.display(), crate::corpus::rung::highest());
        let text = format!(
            "apiVersion: meshseal/v1\nnode: corpus\nsensor: {{ rung: {rung} }}\nstateDir: {dir}/state\nsocket: {dir}/agent.sock\n\
             baselines:\n  files: [{dir}/baselines]\n  trustedKeys: [{dir}/keys/trusted.pub]\n{more}"
        );
        Ok(fs::write(self.config(), text)?)
    }

    /// Seals these paths; the answer is the statement's file.
    pub(crate) fn seal(&self, name: &str, revision: u64, paths: &[&Path], more: &[&str]) -> Result<PathBuf> {
        let file = self.dir.join(format!("work/{name}-{revision}.json"));
        let mut command = Command::new(meshseal());
        command.args(["seal", "--name", name, "--revision", &revision.to_string()]).args(more);
        command.arg("--path").args(paths).arg("-o").arg(&file);
        told(&mut command)?;
        Ok(file)
    }

    /// Signs a statement; the answer is the envelope.
    pub(crate) fn sign(&self, statement: &Path, signer: Signer) -> Result<Vec<u8>> {
        let key = match signer {
            Signer::Trusted => "keys/trusted.pem",
            Signer::Stranger => "keys/stranger.pem",
        };
        let file = self.dir.join("work/envelope");
        let mut command = Command::new(meshseal());
        command.args(["sign", "--key"]).arg(self.dir.join(key)).arg(statement).arg("-o").arg(&file);
        told(&mut command)?;
        Ok(fs::read(file)?)
    }

    /// Puts an envelope where the agent takes baselines from, whole or not at all.
    pub(crate) fn offer(&self, name: &str, envelope: &[u8]) -> Result<()> {
        let work = self.dir.join("work/offered");
        fs::write(&work, envelope)?;
        Ok(fs::rename(work, self.dir.join(format!("baselines/{name}.dsse.json")))?)
    }

    /// Seals, signs and offers.
    pub(crate) fn baseline(&self, name: &str, revision: u64, paths: &[&Path]) -> Result<()> {
        let statement = self.seal(name, revision, paths, &[])?;
        self.offer(name, &self.sign(&statement, Signer::Trusted)?)
    }

    /// All records on disk, also those that no follower heard of.
    pub(crate) fn records(&self) -> Result<Vec<Value>> {
        let mut reader = Reader::open(&self.journal())?;
        let stored = reader.read_from(1, usize::MAX, usize::MAX)?;
        stored.iter().map(|one| Ok(serde_json::from_slice(&one.payload)?)).collect()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// `meshseal journal verify` on the agent's journal.
    pub(crate) fn verify_journal(&self) -> Result<()> {
        told(Command::new(meshseal()).args(["journal", "verify"]).arg(self.journal())).map(drop)
    }
}

/// Runs to success; the answer is its stdout.
pub(crate) fn told(command: &mut Command) -> Result<Vec<u8>> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(
        out.status.success(),
        "{command:?}: {}: {}",
        out.status,
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(out.stdout)
}

/// Lets time go by between two questions, or keeps a pace. Nothing is taken for done by it.
#[expect(clippy::disallowed_methods, reason = "whoever waits for a condition asks again")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks until the answer, a status and its exit code, is as wanted.
pub(crate) fn answers(
    what: &str,
    ask: impl Fn() -> Result<(Value, i32)>,
    fits: impl Fn(&Value, i32) -> bool,
) -> Result<(Value, i32)> {
    let until = Instant::now() + PATIENCE;
    loop {
        let (status, code) = ask()?;
        if fits(&status, code) {
            return Ok((status, code));
        }
        if Instant::now() > until {
            bail!("never {what}: {} {} ({code})", status["posture"], status["reasons"]);
        }
        pause(Duration::from_millis(50));
    }
}

/// Lines of a child's output, read by a thread of their own.
fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            if tx.send(line).is_err() {
                return;
            }
        }
    });
    rx
}

/// A running agent.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    follower: Child,
    records: Receiver<String>,
    /// All records up to now, from the first.
    pub(crate) seen: Vec<Value>,
    socket: PathBuf,
}

impl Agent {
    /// Starts it and waits for `ready`. `since` is the first record wanted.
    pub(crate) fn start(home: &Home, since: u64) -> Result<Self> {
        Self::start_with(home, since, &[])
    }

    /// As [`Agent::start`], with these environment variables.
    pub(crate) fn start_with(home: &Home, since: u64, variables: &[(&str, String)]) -> Result<Self> {
        Self::start_while(home, since, variables, || Ok(()))
    }

    /// As [`Agent::start_with`]; `meanwhile` runs while the agent starts.
    pub(crate) fn start_while(
        home: &Home,
        since: u64,
        variables: &[(&str, String)],
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(home.dir.join("agent.log"))?;
        let mut command = Command::new(meshseal());
        command.args(["agent", "--config"]).arg(home.config()).envs(variables.iter().cloned());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let out = lines(child.stdout.take().context("stdout")?);
        if let Err(error) = meanwhile() {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
        match out.recv_timeout(START_PATIENCE) {
            Ok(line) if line == "ready" => {}
            other => {
                let log = fs::read_to_string(home.dir.join("agent.log")).unwrap_or_default();
                let log = format!("{log}{}", standing(child.id()));
                child.kill()?;
                child.wait()?;
                bail!("the agent said {other:?} instead of `ready`: {}", tail(&log));
            }
        }
        let socket = home.socket();
        let mut events = Command::new(meshseal());
        events.args(["events", "--format", "json", "--follow", "--since", &since.to_string(), "--socket"]);
        let mut follower =
            events.arg(&socket).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let records = lines(follower.stdout.take().context("stdout")?);
        Ok(Self { child, follower, records, seen: Vec::new(), socket })
    }

    /// Waits until the records so far are enough; at most [`PATIENCE`].
    pub(crate) fn wait(&mut self, what: &str, enough: impl Fn(&[Value]) -> bool) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !enough(&self.seen) {
            let left = until.saturating_duration_since(Instant::now());
            match self.records.recv_timeout(left) {
                Ok(line) => self.seen.push(serde_json::from_str(&line)?),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no {what} in time; {}", told_of(self.seen.iter().rev().take(12)))
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the agent's events ended, waiting for {what}"),
            }
        }
        Ok(())
    }

    /// The next record, as it comes; it is among those seen then.
    pub(crate) fn next(&mut self, patience: Duration) -> Result<Value> {
        let line = self.records.recv_timeout(patience).context("no record in time")?;
        let record: Value = serde_json::from_str(&line)?;
        self.seen.push(record.clone());
        Ok(record)
    }

    /// The first record of that kind that fits, waited for.
    pub(crate) fn find(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        self.wait(what, |seen| seen.iter().any(&fits))?;
        self.seen.iter().find(|record| fits(record)).cloned().context("gone")
    }

    /// `meshseal status`, and its exit code.
    pub(crate) fn status(&self) -> Result<(Value, i32)> {
        Self::status_at(&self.socket)
    }

    /// As [`Agent::status`], of the agent that listens there.
    pub(crate) fn status_at(socket: &Path) -> Result<(Value, i32)> {
        let out =
            Command::new(meshseal()).args(["status", "--format", "json", "--socket"]).arg(socket).output()?;
        let code = out.status.code().context("killed")?;
        let status = serde_json::from_slice(&out.stdout)
            .with_context(|| format!("status: {}", String::from_utf8_lossy(&out.stdout)))?;
        Ok((status, code))
    }

    /// `meshseal objects`.
    pub(crate) fn objects(&self) -> Result<Vec<Value>> {
        let mut ask = Command::new(meshseal());
        Ok(serde_json::from_slice(&told(
            ask.args(["objects", "--format", "json", "--socket"]).arg(&self.socket),
        )?)?)
    }

    /// Asks for the objects until nothing is wrong with them; what is wrong is told if that stays so.
    pub(crate) fn until_objects(&self, wrong: impl Fn(&[Value]) -> Option<String>) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while let Some(wrong) = wrong(&self.objects()?) {
            if Instant::now() > until {
                bail!("{wrong}");
            }
            pause(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The rung it runs on.
    pub(crate) fn rung(&self) -> Result<String> {
        Ok(self.status()?.0["sensor"]["rung"].as_str().context("no rung")?.to_owned())
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits until it is stopped, all of its threads.
    pub(crate) fn stands_still(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut runs = false;
            for thread in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                // The name before it may hold anything, spaces and brackets too.
                runs |= !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
            }
            if !runs {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the agent does not stop");
            std::thread::yield_now();
        }
    }

    /// Reads its config and baselines again.
    pub(crate) fn reload(&self) -> Result<()> {
        self.signal(rustix::process::Signal::HUP)
    }

    fn end(mut self, signal: rustix::process::Signal) -> Result<(ExitStatus, Vec<Value>)> {
        self.signal(signal)?;
        let status = self.child.wait()?;
        while let Ok(line) = self.records.recv_timeout(Duration::from_secs(5)) {
            let record: Value = serde_json::from_str(&line)?;
            // Last it may say that the agent is gone.
            if record["seq"].is_u64() {
                self.seen.push(record);
            }
        }
        Ok((status, std::mem::take(&mut self.seen)))
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Stops it, and starts another in its place, which tells all records anew.
    pub(crate) fn restart(&mut self, home: &Home) -> Result<()> {
        self.signal(rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent ended with {status}");
        *self = Self::start(home, 1)?;
        Ok(())
    }

    /// SIGTERM; the answer is all records seen.
    pub(crate) fn stop(self) -> Result<Vec<Value>> {
        let (status, seen) = self.end(rustix::process::Signal::TERM)?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(seen)
    }

    /// kill -9; the answer is all records seen.
    pub(crate) fn kill(self) -> Result<Vec<Value>> {
        let (status, seen) = self.end(rustix::process::Signal::KILL)?;
        ensure!(status.signal() == Some(9), "the agent ended with {status}");
        Ok(seen)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Already gone, as a rule.
        let _gone = (self.child.kill(), self.child.wait(), self.follower.kill(), self.follower.wait());
    }
}

/// The last lines, each cut short: the resolved config alone would fill a screen.
fn tail(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| line.chars().take(400).collect()).collect();
    lines[lines.len().saturating_sub(24)..].join(" | ")
}

/// What each thread of a process waits for in the kernel, a line each.
fn standing(pid: u32) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return String::new() };
    let of = |task: &Path, name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
    let line = |task: &Path| {
        let stack = of(task, "stack")
            .split_whitespace()
            .filter(|word| word.contains('+'))
            .collect::<Vec<_>>()
            .join(" ");
        format!("{}: syscall {} at {stack}\n", of(task, "comm").trim(), of(task, "syscall").trim())
    };
    tasks.flatten().map(|task| line(&task.path())).collect()
}

/// One line per record, for failures.
#[expect(single_use_lifetimes, reason = "an anonymous lifetime is not allowed in an impl Trait's binding")]
pub(crate) fn told_of<'a>(records: impl IntoIterator<Item = &'a Value>) -> String {
    let each = |record: &Value| {
        let field = |name: &str| record[name].as_str().unwrap_or("").to_owned();
        let path = record["object"]["path"].as_str().unwrap_or("");
        let name =
            path.rsplit('/').take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("/");
        let (kind, violation, operation) = (field("kind"), field("violation"), field("operation"));
        let actor = record["actor"]["comm"].as_str().unwrap_or("nobody");
        // Minutes and seconds.
        let at = |name: &str| field(name).get(14..23).unwrap_or("").to_owned();
        format!(
            "[{kind} {violation} {operation} x{} {name} by {actor} {}-{} {}{}{}{}]",
            record["count"],
            at("first_time"),
            at("last_time"),
            field("detail"),
            field("reason"),
            field("actor_unknown_because"),
            match &record["objects"] {
                Value::Array(all) => format!("{} objects", all.len()),
                other => other.to_string(),
            }
        )
    };
    let all: Vec<String> = records.into_iter().map(each).collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(" ") }
}
