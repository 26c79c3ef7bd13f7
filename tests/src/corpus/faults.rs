//! A sensor that fails: hooks that somebody detaches, tags that somebody takes away, a reader that stands still, and more
//! than it can carry. What it does not see then must be said.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::XattrFlags;
use rustix::mount::MountFlags;
use rustix::process::Signal;
use serde_json::Value;

use super::acts::SEALED;
use super::load::{Storm, adds_up, bench, gaps_are_reconciled, hashes, last_states_are_told, object, storm};
use super::rung::on_hooks;
use super::{bpf, inject};
use crate::agent::{Agent, Home, PATIENCE, told_of};
use crate::process::Process;

/// How often canaries act.
const PERIOD: Duration = Duration::from_secs(3);
/// Beyond the time that a thing may take: this machine is busy, and slow.
const GRACE: Duration = Duration::from_secs(3);
/// The hook that is detached, and its family.
const HOOK: &str = "inode_setxattr";
const FAMILY: &str = "xattr";
/// The smallest ring there is: some thirty records.
const SMALL_RING: &str = "sensor: { rung: auto, ringBytes: 64KiB, canaryInterval: 1h }\n";

/// Events that fit into a queue of inotify: fewer than there are objects that are written.
const SHORT_QUEUE: u32 = 16;

fn configured(home: &Home, sensor: &str) -> Result<()> {
    home.configure("")?;
    let text = fs::read_to_string(home.config())?;
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("sensor:")).collect();
    lines.push(sensor.trim_end());
    Ok(fs::write(home.config(), lines.join("\n") + "\n")?)
}

fn about(path: &Path) -> impl Fn(&Value) -> bool + use<> {
    let path = path.display().to_string();
    move |record| record["object"]["path"] == path.as_str()
}

fn opened(record: &Value) -> bool {
    record["kind"] == "violation.opened"
}

/// A gap there, and its end.
fn gap_is_reconciled(agent: &mut Agent, at: &str) -> Result<()> {
    let of = |record: &Value, reconciled: bool| {
        record["kind"] == "gap" && record["at"] == at && record["reconciled"] == reconciled
    };
    agent.find(&format!("a gap at {at}"), |record| of(record, false))?;
    agent.find("the gap's end", |record| of(record, true)).map(drop)
}

/// What holds a program where it stands.
struct Attached {
    held: Vec<bpf::Held>,
    pin: Option<PathBuf>,
}

impl Attached {
    /// Looks through all that the agent has open, which takes its time.
    fn of(agent: &Agent, home: &Home, program: &str) -> Result<Self> {
        let note: Value = serde_json::from_slice(&fs::read(home.dir.join("state/kept.json"))?)?;
        let held = bpf::links_of(agent.pid(), program)?;
        let link = held.first().with_context(|| format!("no link of {program}"))?.link;
        ensure!(held.iter().all(|other| other.link == link), "several links of {program}: {held:?}");
        // What ends with the agent anyway is not pinned.
        let pin = if note["links"][program].is_array() {
            ensure!(note["links"][program][0] == link, "link {link} of {program}, noted is {note}");
            let generation = note["generation"].as_str().context("no generation")?;
            Some(Path::new("/sys/fs/bpf/meshseal").join(generation).join(program))
        } else {
            None
        };
        Ok(Self { held, pin })
    }

    /// Detaches it for good: no pin and no descriptor holds its link any more. The answer is the program.
    fn detach(self, agent: &Agent) -> Result<u32> {
        let bpf::Held { link, program, .. } = *self.held.first().context("no link")?;
        let refused = bpf::detach(link);
        ensure!(refused.is_err(), "this kernel detaches what stands on a hook");
        self.pin.map_or(Ok(()), fs::remove_file)?;
        for held in self.held {
            inject::replace_descriptor(agent.pid(), held.descriptor)?;
        }
        // The kernel lets go of what a file held some time after it was closed.
        let until = Instant::now() + PATIENCE;
        while bpf::is_linked(link) {
            ensure!(Instant::now() < until, "link {link} is still there");
            std::thread::yield_now();
        }
        Ok(program)
    }
}

fn detach(agent: &Agent, home: &Home, program: &str) -> Result<()> {
    Attached::of(agent, home, program)?.detach(agent).map(drop)
}

/// A write, which a hook must see.
fn is_seen(agent: &mut Agent, path: &Path) -> Result<()> {
    fs::write(path, "TAMPER")?;
    let is_about = about(path);
    let found = agent.find("a write", |record| opened(record) && is_about(record))?;
    ensure!(found["actor"]["tgid"] == std::process::id(), "{}", told_of([&found]));
    Ok(())
}

/// What somebody takes from the sensor: all tags, then one hook, then programs that no canary proves, then one tag.
pub(super) fn what_is_taken_from_the_sensor_is_missed() -> Result<()> {
    let (scratch, dir, home) = bench(4)?;
    configured(&home, &format!("sensor: {{ rung: auto, canaryInterval: {}s }}\n", PERIOD.as_secs()))?;
    let lone = scratch.path().join("lone");
    fs::write(&lone, SEALED)?;
    home.baseline("lone", 1, &[&lone])?;
    let mut agent = Agent::start(&home, 1)?;
    ensure!(on_hooks(&agent.rung()?), "no programs run");
    is(&agent, "intact", None)?;
    all_tags(&mut agent, &home, &dir, &lone).context("all tags")?;
    a_hook(&mut agent, &home, &dir).context("a hook")?;
    // The others go on, and so does what was tagged anew.
    is_seen(&mut agent, &object(&dir, 1))?;
    is_seen(&mut agent, &dir.join("new"))?;
    what_no_canary_proves(&mut agent, &home, scratch.path(), &dir).context("what no canary proves")?;
    a_tag(&mut agent, &lone).context("a tag")?;
    agent.stop()?;
    home.verify_journal()
}

fn is(agent: &Agent, posture: &str, reason: Option<&str>) -> Result<()> {
    let (status, _) = agent.status()?;
    let reasons = status["reasons"].as_array().context("no reasons")?;
    ensure!(status["posture"] == posture, "{}: {reasons:?}", status["posture"]);
    ensure!(reason.is_none_or(|wanted| reasons.iter().any(|one| one == wanted)), "{reasons:?}");
    Ok(())
}

/// Noticed by the sentinel; they are set anew, and everything is verified.
fn all_tags(agent: &mut Agent, home: &Home, dir: &Path, lone: &Path) -> Result<()> {
    let mut tagged = vec![dir.to_owned(), lone.to_owned(), home.dir.join("state/.meshseal-sentinel")];
    tagged.extend((0..4).map(|at| object(dir, at)));
    let files = tagged.iter().map(File::open).collect::<std::io::Result<Vec<_>>>()?;
    let taken = bpf::tags()?.iter().map(|tags| tags.empty(&files)).sum::<Result<usize>>()?;
    ensure!(taken >= tagged.len(), "{taken} tags taken away of {}", tagged.len());
    gap_is_reconciled(agent, "tags")?;
    is(agent, "intact", None)?;
    sees_everything(agent)
}

fn sees_everything(agent: &Agent) -> Result<()> {
    let blind = &agent.status()?.0["sensor"]["blind_to"];
    ensure!(blind.as_array().is_some_and(Vec::is_empty), "blind to {blind}");
    Ok(())
}

/// Status until the hook's last canary fits.
fn status_when(agent: &Agent, what: &str, fits: impl Fn(&Value, &Value) -> bool) -> Result<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        let (status, _) = agent.status()?;
        let hooks = status["sensor"]["hooks"].as_array().context("no hooks")?;
        let hook =
            hooks.iter().find(|one| one["name"].as_str().is_some_and(|name| name.ends_with("setxattr")));
        if fits(&status, hook.context("the hook is not listed")?) {
            return Ok(status);
        }
        ensure!(Instant::now() < until, "{what}: {hook:?}, {}: {}", status["posture"], status["reasons"]);
    }
}

/// The program on it is detached: its family is blind within two periods of the canaries. It is attached anew by itself, and
/// everything is verified once a canary has come by.
fn a_hook(agent: &mut Agent, home: &Home, dir: &Path) -> Result<()> {
    // Right after a proof, so that the next one comes after what no hook sees.
    let attached = Attached::of(agent, home, HOOK)?;
    let first = status_when(agent, "a canary", |_, hook| hook["live"] == true)?;
    let canary = |status: &Value| status["sensor"]["hooks"][0]["last_canary"].clone();
    status_when(agent, "the next canary", |status, _| canary(status) != canary(&first))?;
    let program = attached.detach(agent)?;
    let begun = Instant::now();
    let set = |file: &Path| rustix::fs::setxattr(file, "trusted.meshseal", b"new", XattrFlags::empty());
    let untold = home.dir.join("work/untold");
    fs::write(&untold, SEALED)?;
    bpf::runs_no_more(program, || Ok(set(&untold)?))?;
    // The pin of the object is a witness of its own: it does not say who.
    set(&object(dir, 0))?;
    let of_it = |list: &Value| {
        let named = |one: &str| one.starts_with(&format!("{FAMILY}: ")) && one.contains("setxattr");
        let list: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        list.len() == 1 && list.iter().all(|one| named(one))
    };
    // Status says the same for as long as it lasts, which may be over before it is asked.
    let told = agent.find("what fell silent", |record| {
        record["kind"] == "sensor.changed" && of_it(&record["families_blind"])
    })?;
    ensure!(begun.elapsed() <= 2 * PERIOD + GRACE, "after {:?}", begun.elapsed());
    ensure!(told["severity"] == "high" && told["coverage"] == "reduced", "{told}");
    ensure!(told["families_blind"].to_string().contains("attached anew"), "{told}");
    let is_about = about(&object(dir, 0));
    let found = agent.find("what no hook saw", |record| opened(record) && is_about(record))?;
    ensure!(found["violation"] == "attributes" && found["actor"].is_null(), "{}", told_of([&found]));

    let again = |hook: &Value| hook["live"] == true && hook["lapse"].is_object();
    let alive = status_when(agent, "it lives again", |_, hook| again(hook))?;
    ensure!(
        alive["sensor"]["blind_to"].as_array().is_some_and(Vec::is_empty),
        "{}",
        alive["sensor"]["blind_to"]
    );
    let (lapse, name) = {
        let hooks = alive["sensor"]["hooks"].as_array().context("no hooks")?;
        let hook = hooks.iter().find(|one| one["lapse"].is_object()).context("no lapse is told")?;
        (hook["lapse"].clone(), hook["name"].as_str().context("no name")?.to_owned())
    };
    ensure!(
        name.ends_with("setxattr") && lapse["dead_since"].as_str() < lapse["live_since"].as_str(),
        "{lapse}"
    );
    let told = agent.find("that it lives again", |record| {
        record["kind"] == "sensor.changed"
            && record["reason"]
                .as_str()
                .is_some_and(|reason| reason.starts_with(&format!("attached anew: {name}: ")))
    })?;
    let since = lapse["live_since"].as_str().context("no time")?;
    ensure!(told["reason"].as_str().is_some_and(|reason| reason.ends_with(since)), "{told}");
    ensure!(told["families_blind"].as_array().is_some_and(Vec::is_empty), "{told}");
    gap_is_reconciled(agent, "hooks")?;
    set(&object(dir, 2))?;
    let is_about = about(&object(dir, 2));
    let found = agent.find("what the hook sees again", |record| opened(record) && is_about(record))?;
    ensure!(found["actor"]["tgid"] == std::process::id(), "{}", told_of([&found]));
    // And once more: it is pinned like the one before it.
    detach(agent, home, HOOK)?;
    agent.wait("that it was attached anew once more", |seen| {
        seen.iter()
            .filter(|record| {
                record["kind"] == "gap" && record["at"] == "hooks" && record["reconciled"] == true
            })
            .count()
            == 2
    })
}

/// The programs that keep the tags, and one on the end of a call: whoever detaches them is noticed as well, and
/// they do again what they are for.
fn what_no_canary_proves(agent: &mut Agent, home: &Home, scratch: &Path, dir: &Path) -> Result<()> {
    let fentry = agent.rung()? == "fentry";
    // Without it nothing can be tagged, a canary neither: all families are blind meanwhile.
    lives_again(agent, home, "path_notify", if fentry { "security_path_notify" } else { "path_notify" })?;
    let later = scratch.join("later");
    fs::write(&later, SEALED)?;
    let objects = |agent: &Agent| Ok::<_, anyhow::Error>(agent.status()?.0["objects"].clone());
    let before = objects(agent)?["total"].as_u64().context("no objects")?;
    home.baseline("later", 1, &[&later])?;
    agent.reload()?;
    let until = Instant::now() + PATIENCE;
    loop {
        let now = objects(agent)?;
        if now["total"].as_u64() > Some(before) && now["unverified"] == 0 {
            break;
        }
        ensure!(Instant::now() < until, "the new object is not verified: {now}");
    }
    is_seen(agent, &later)?;
    if fentry {
        lives_again(agent, home, "inode_free", "security_inode_free")?;
        sees_everything(agent)?;
    }
    lives_again(agent, home, "end_of_mount", "__x64_sys_mount")?;
    // Only at its end it is known that it came to nothing.
    let target = object(dir, 3);
    let no_such = rustix::mount::mount("none", &target, "meshseal", MountFlags::empty(), None);
    ensure!(no_such.is_err(), "a file system that is none was mounted");
    let is_about = about(&target);
    let told =
        agent.find("the mount that failed", |record| record["operation"] == "mount" && is_about(record))?;
    ensure!(told["kind"] == "attempt", "{}", told_of([&told]));
    Ok(())
}

/// A program is detached, which is told by the name of what it stands on; it is attached anew, and all is verified.
fn lives_again(agent: &mut Agent, home: &Home, program: &str, stands_on: &str) -> Result<()> {
    let gaps = |seen: &[Value]| {
        let over = |one: &&Value| one["kind"] == "gap" && one["at"] == "hooks" && one["reconciled"] == true;
        seen.iter().filter(over).count()
    };
    let before = gaps(&agent.seen);
    detach(agent, home, program).with_context(|| format!("detaching {program}"))?;
    let begun = Instant::now();
    let names = |list: &Value| {
        let mut list = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        list.any(|one| one.contains(stands_on) && one.contains("attached anew"))
    };
    let told = agent.find(&format!("that {program} is gone"), |record| {
        record["kind"] == "sensor.changed" && names(&record["families_blind"])
    })?;
    ensure!(begun.elapsed() <= 2 * PERIOD + GRACE, "{program} after {:?}", begun.elapsed());
    ensure!(told["severity"] == "high" && told["coverage"] == "reduced", "{told}");
    agent.find(&format!("that {program} lives again"), |record| {
        let reason = record["reason"].as_str().unwrap_or_default();
        record["kind"] == "sensor.changed"
            && reason.contains(&format!("{stands_on}: "))
            && reason.starts_with("attached anew: ")
    })?;
    agent.wait("the gap's end", |seen| gaps(seen) > before)?;
    sees_everything(agent).with_context(|| format!("after {program}"))
}

/// A write to its object is found by the object's pin, which does not say who; the next one is seen again.
fn a_tag(agent: &mut Agent, lone: &Path) -> Result<()> {
    if agent.rung()? != "lsm" {
        // Where tags are kept by number, whoever takes one away can take any: all of them were.
        return is_seen(agent, lone);
    }
    let gaps = |seen: &[Value]| seen.iter().filter(|one| one["kind"] == "gap" && one["at"] == "tags").count();
    let before = gaps(&agent.seen);
    let file = File::open(lone)?;
    let taken = bpf::tags()?.iter().map(|tags| tags.take(&file)).collect::<Result<Vec<_>>>()?;
    ensure!(taken.contains(&true), "the object has no tag");
    fs::write(lone, "TAMPER")?;
    let is_about = about(lone);
    let found = agent.find("the write", |record| opened(record) && is_about(record))?;
    ensure!(found["violation"] == "content" && found["actor"].is_null(), "{}", told_of([&found]));
    agent.wait("the gap and its end", |seen| gaps(seen) == before + 2)?;
    fs::write(lone, "TAMPER MORE")?;
    let is_about = about(lone);
    let again = agent.find("the next write", |record| {
        is_about(record)
            && record["kind"] == "violation.updated"
            && record["actor"]["tgid"] == std::process::id()
    })?;
    ensure!(again["violation_id"] == found["uid"], "{}", told_of([&again]));
    Ok(())
}

/// The reader stands still while some write, then all the others do, and the ring is small: gaps say so, and in the end
/// each object's state is right.
pub(super) fn what_is_too_much_for_the_sensor_is_named() -> Result<()> {
    let agent = too_much("ring", |home| configured(home, SMALL_RING))?;
    ensure!(agent.lost > 0 && on_hooks(&agent.rung), "{agent:?}");
    Ok(())
}

/// The same where the kernel's queue of inotify is short: it does not say how many events it had no room for.
pub(super) fn what_overflows_the_queue_is_named() -> Result<()> {
    let limit = QueueLimit::set(SHORT_QUEUE)?;
    let agent = too_much("inotify", |_| Ok(()))?;
    drop(limit);
    ensure!(agent.lost == 0 && agent.rung == "inotify", "{agent:?}");
    Ok(())
}

/// How many events may wait in a queue of inotify that is made from now on; as before once this is dropped.
struct QueueLimit(String);

impl QueueLimit {
    const FILE: &str = "/proc/sys/fs/inotify/max_queued_events";

    fn set(limit: u32) -> Result<Self> {
        let before = fs::read_to_string(Self::FILE)?;
        fs::write(Self::FILE, limit.to_string())?;
        Ok(Self(before))
    }
}

impl Drop for QueueLimit {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::FILE, &self.0) {
            eprintln!("cannot restore {}: {error}", Self::FILE);
        }
    }
}

/// What an agent said of itself that was given more than it can carry.
#[derive(Debug)]
struct Overrun {
    rung: String,
    /// Events that were lost, as far as they were counted.
    lost: u64,
}

/// The gap is told to be `at`.
fn too_much(at: &str, configure: impl FnOnce(&Home) -> Result<()>) -> Result<Overrun> {
    const STORM: Storm = Storm { objects: 80, writers: 8, writes: 8000 };
    const WHILE_FROZEN: usize = 2;
    let (_scratch, dir, home) = bench(STORM.objects)?;
    configure(&home)?;
    let mut writers = STORM.gather(&dir)?;
    let mut agent = Agent::start(&home, 1)?;
    let rung = agent.rung()?;
    if on_hooks(&rung) {
        sees_everything(&agent)?;
    }
    let (first, rest) = writers.split_at_mut(WHILE_FROZEN);
    agent.signal(Signal::STOP)?;
    agent.stands_still()?;
    first.iter_mut().try_for_each(|writer| writer.say("go"))?;
    first.iter_mut().try_for_each(|writer| writer.hear("done"))?;
    agent.signal(Signal::CONT)?;
    gap_is_reconciled(&mut agent, at)?;
    rest.iter_mut().try_for_each(|writer| writer.say("go"))?;
    rest.iter_mut().try_for_each(|writer| writer.hear("done"))?;
    let hashes = hashes(&dir, STORM.objects)?;
    last_states_are_told(&mut agent, &hashes)?;
    gaps_are_reconciled(&mut agent)?;
    writers.into_iter().try_for_each(Process::end)?;
    let loss = &agent.status()?.0["loss"];
    ensure!(loss["unreconciled"] == 0, "{loss}");
    let lost = loss["events"].as_u64().context("no count of lost events")?;
    agent.stop()?;
    home.verify_journal()?;
    adds_up(&home.records()?, &rung, &hashes, STORM.writes)?;
    Ok(Overrun { rung, lost })
}

/// As many as the contract asks: for the full lane.
pub(super) fn a_hundred_thousand_writes_are_counted() -> Result<()> {
    storm(Storm { objects: 1000, writers: 8, writes: 100_000 })
}
