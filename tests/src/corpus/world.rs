//! All acts under one agent, on a disk and in memory; each case then looks at its own records.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::actor;
use super::acts::{Act, Begins, By, Expected, IN_MEMORY, SEALED, Site, all};
use super::rung::{names_actors, on_hooks, tells_the_act, told_by};
use crate::Case;
use crate::agent::{Agent, Home, answers, told_of};

/// Directories of the file systems to test, disk first.
pub(super) fn places() -> Vec<PathBuf> {
    if let Some(chosen) = super::filesystems::chosen() {
        return chosen.to_vec();
    }
    let disk = if Path::new("/data").is_dir() { "/data" } else { "/var/tmp" };
    let memory = if is_tmpfs(Path::new("/tmp")) { "/tmp" } else { "/dev/shm" };
    vec![PathBuf::from(disk), PathBuf::from(memory)]
}

fn is_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC)
}

/// A directory of this run, removed with its owner.
pub(super) fn scratch(place: &Path) -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("corpus-").tempdir_in(place)?)
}

/// How often all is done again where the kernel skipped programs, or the machine stood still.
const ATTEMPTS: usize = 4;
/// An act that takes longer than this was kept waiting in the middle: its parts may then be told as two acts.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// What came of all acts.
#[derive(Debug)]
struct World {
    rung: String,
    roots: Vec<PathBuf>,
    records: Vec<Value>,
    /// By file system and act.
    pids: HashMap<(usize, &'static str), u32>,
    /// Acts that were kept waiting.
    slow: HashSet<&'static str>,
    /// Records after a restart.
    later: Vec<Value>,
    status: (Value, i32),
    after: (Value, i32),
}

fn world() -> Result<&'static World> {
    static WORLD: OnceLock<Result<World, String>> = OnceLock::new();
    match WORLD.get_or_init(|| whole().map_err(|error| format!("{error:#}"))) {
        Ok(world) => Ok(world),
        Err(why) => bail!("the acts could not be run: {why}"),
    }
}

/// On the `fentry` rung a kernel that preempts itself skips a program that another task is in: who acted cannot be known then. What
/// a process does seconds after it replaced a file is another act of it. All is done again where something was not told as it
/// should, and one of these came to pass.
fn whole() -> Result<World> {
    for _ in 1..ATTEMPTS {
        let world = run()?;
        let skipped = world.skips().next().is_some();
        let wrong = all().find_map(|act| {
            let excused = skipped || world.slow.contains(act.name);
            check_in(&world, act.name).err().filter(|_| excused)
        });
        let Some(wrong) = wrong else { return Ok(world) };
        let why = if skipped { "the kernel skipped programs" } else { "the machine stood still" };
        println!("note: all over again, {why}: {wrong:#}");
    }
    run()
}

impl World {
    /// What the agent says of programs that the kernel skipped.
    fn skips(&self) -> impl Iterator<Item = &Value> {
        let fentry = self.rung == "fentry";
        self.records
            .iter()
            .filter(move |record| fentry && record["kind"] == "gap" && record["at"] == "programs")
    }
}

fn prepare(site: &Site, act: &Act) -> Result<()> {
    for dir in [site.dir(), site.out(), site.lone()] {
        fs::create_dir_all(dir)?;
    }
    for file in [site.f(), site.dir().join("g"), site.lone().join("f")] {
        fs::write(file, SEALED)?;
    }
    if !(act.can)(site) {
        return Ok(());
    }
    (act.prepare)(site).with_context(|| format!("{}: preparing", act.name))
}

fn comm(at: usize, act: &Act) -> String {
    let mut comm = format!("{at:02}-{}", act.name);
    comm.truncate(15);
    comm
}

fn run() -> Result<World> {
    let scratches = places().iter().map(|place| scratch(place)).collect::<Result<Vec<_>>>()?;
    let roots: Vec<PathBuf> = scratches.iter().map(|scratch| scratch.path().join("tree")).collect();
    let site = |fs: usize, act: &Act| Site { root: roots[fs].clone(), name: act.name };
    let home = Home::new(scratches[0].path().join("home"))?;
    let mut sealed = Vec::new();
    for (fs, root) in roots.iter().enumerate() {
        for act in all() {
            prepare(&site(fs, act), act)?;
            sealed.push(site(fs, act).lone().join("f"));
        }
        fs::write(root.join("sentinel"), SEALED)?;
        let program = root.join("program");
        fs::copy(std::env::current_exe()?, &program)?;
        sealed.extend([root.join("t"), root.join("sentinel"), program]);
    }
    let sealed: Vec<&Path> = sealed.iter().map(PathBuf::as_path).collect();
    home.baseline("corpus", 1, &sealed)?;

    let start = |fs: usize, at: usize, act: &Act| actor::act(&site(fs, act), &comm(at, act));
    let (mut pids, mut actors, mut early) = (HashMap::new(), Vec::new(), HashMap::new());
    let mut slow = HashSet::new();
    for (at, act) in all().enumerate().filter(|(_, act)| act.begins == Begins::Before) {
        for fs in (0..roots.len()).filter(|fs| (act.can)(&site(*fs, act))) {
            let mut actor = start(fs, at, act)?;
            actor.hear("held")?;
            early.insert((fs, at), actor);
        }
    }
    let mut agent = Agent::start(&home, 1)?;
    let rung = agent.rung()?;
    let lingers = !on_hooks(&rung);
    std::thread::scope(|scope| -> Result<()> {
        let (begin, begun) = std::sync::mpsc::sync_channel(1);
        let noise = scope.spawn(|| noise(&roots, begun));
        let mut acting = || -> Result<()> {
            for (at, act) in all().enumerate() {
                for fs in (0..roots.len()).filter(|fs| (act.can)(&site(*fs, act))) {
                    // One that is still under way will do.
                    let _busy = begin.try_send(());
                    let mut actor = match early.remove(&(fs, at)) {
                        Some(mut actor) => {
                            actor.say("go")?;
                            actor
                        }
                        None => start(fs, at, act)?,
                    };
                    pids.insert((fs, act.name), actor.pid());
                    let begun = Instant::now();
                    actor.hear("done").with_context(|| act.name)?;
                    if begun.elapsed() > STOOD_STILL {
                        slow.insert(act.name);
                    }
                    if lingers {
                        actors.push(actor);
                    } else {
                        actor.end()?;
                    }
                }
            }
            Ok(())
        };
        let acted = acting();
        drop(begin);
        noise.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        acted
    })?;
    let expected: usize = all()
        .flat_map(|act| (0..roots.len()).map(move |fs| (fs, act)))
        .filter(|(fs, act)| (act.can)(&site(*fs, act)))
        .map(|(_, act)| expected_of(act, &rung).count())
        .sum();
    let told = |seen: &[Value]| seen.iter().filter(|record| is_finding(record)).count();
    // If some do not come, the cases say which.
    let _late = agent.wait("records of all acts", |seen| told(seen) >= expected);
    for root in &roots {
        let sentinel = root.join("sentinel");
        fs::write(&sentinel, b"TAMPER")?;
        let path = sentinel.display().to_string();
        agent.find("the record of the last act", |record| {
            is_finding(record) && record["object"]["path"] == path.as_str()
        })?;
    }
    let status = reconciled(&agent)?;
    for actor in actors {
        actor.end()?;
    }
    let records = agent.stop()?;
    let last = records.last().and_then(|record| record["seq"].as_u64()).context("no record")?;
    let again = Agent::start(&home, last + 1)?;
    let after = reconciled(&again)?;
    let later = again.stop()?;
    home.verify_journal()?;
    Ok(World { rung, roots, records, pids, slow, later, status, after })
}

/// Its status once all that it missed is verified: on fentry the kernel skips a program that interrupts itself, at any time.
fn reconciled(agent: &Agent) -> Result<(Value, i32)> {
    answers("reconciled", || agent.status(), |status, _| status["loss"]["unreconciled"] == 0)
}

/// Reads everything and works beside it, once for each act, until all is over.
fn noise(roots: &[PathBuf], begun: Receiver<()>) -> Result<()> {
    for () in begun {
        for root in roots {
            let beside = root.join("noise");
            fs::write(&beside, b"neighbour")?;
            fs::rename(&beside, root.join("noises"))?;
            fs::remove_file(root.join("noises"))?;
            for act in all() {
                let dir = root.join("t").join(act.name);
                // What is tampered with may be gone.
                if let Ok(list) = fs::read_dir(&dir) {
                    list.filter_map(Result::ok).for_each(|entry| drop(entry.metadata()));
                }
                drop(fs::read(dir.join("f")));
            }
        }
    }
    Ok(())
}

fn is_finding(record: &Value) -> bool {
    record["kind"].as_str().is_some_and(|kind| kind == "attempt" || kind.starts_with("violation."))
}

/// The records that this rung gives of an act.
fn expected_of(act: &Act, rung: &str) -> impl Iterator<Item = &'static Expected> {
    let hooks = on_hooks(rung);
    act.expected.iter().filter(move |one| hooks || !one.hooks_only)
}

/// What is compared of a record.
type Line = (String, String, String, String);

fn line_of(record: &Value) -> Line {
    let field = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let path = record["object"]["path"].as_str().unwrap_or_default().to_owned();
    (path, field("kind"), field("violation"), field("operation"))
}

fn expected_line(site: &Site, rung: &str, expected: &Expected) -> Line {
    let dir = if expected.path.starts_with('/') { site.lone() } else { site.dir() };
    let name = expected.path.trim_start_matches('/');
    let dir = dir.display().to_string();
    let path = match name {
        "" => dir,
        IN_MEMORY => format!("/{}", site.in_memory()),
        name => format!("{dir}/{name}"),
    };
    let kind = if expected.violation.is_some() { "violation.opened" } else { "attempt" };
    let violation = expected.violation.unwrap_or_default().to_owned();
    let lower = expected.lower.filter(|_| !on_hooks(rung));
    let operation = lower.unwrap_or_else(|| told_by(rung, expected.operation));
    (path, kind.to_owned(), violation, operation.to_owned())
}

/// A record of an act as it is expected, where it is so in the word of some kernels.
fn line_in(act: &Act, record: &Value) -> Line {
    let mut line = line_of(record);
    if let Some(one) = act.expected.iter().find(|one| one.instead == Some(line.3.as_str())) {
        one.operation.clone_into(&mut line.3);
    }
    line
}

/// The records of one act are those expected, and no more.
fn check(name: &'static str) -> Result<()> {
    check_in(world()?, name)
}

fn check_in(world: &World, name: &'static str) -> Result<()> {
    let (at, act) = all().enumerate().find(|(_, act)| act.name == name).context("no such act")?;
    for (fs, root) in world.roots.iter().enumerate() {
        let site = Site { root: root.clone(), name: act.name };
        if !world.pids.contains_key(&(fs, act.name)) {
            println!("note: {name} could not be done on {}", root.display());
            continue;
        }
        if !tells_the_act(&world.rung, name) {
            println!("note: {name} is found by comparing alone");
            continue;
        }
        let mine: Vec<&Value> = world.records.iter().filter(|record| belongs(record, &site)).collect();
        // Whoever acts in two steps may be looked at in between: the second is more of what was told.
        let (more, mine): (Vec<&Value>, Vec<&Value>) = mine
            .iter()
            .copied()
            .partition(|record| is_more_of_one(record, &mine) || came_to_pass(record, &mine));
        let mut lines: Vec<Line> = mine.iter().map(|record| line_in(act, record)).collect();
        let mut expected: Vec<Line> =
            expected_of(act, &world.rung).map(|one| expected_line(&site, &world.rung, one)).collect();
        lines.sort();
        expected.sort();
        let told = || told_of(mine.iter().copied());
        ensure!(lines == expected, "on {}: expected {:?}, found {}", root.display(), act.expected, told());
        for record in &mine {
            let line = line_in(act, record);
            let one = act.expected.iter().find(|one| expected_line(&site, &world.rung, one) == line);
            let by = one.map_or(By::It, |one| one.by);
            who(record, &comm(at, act), world.pids.get(&(fs, act.name)).copied(), (by, &site), &world.rung)
                .with_context(told)?;
            let in_parts = more.iter().any(|more| more["violation_id"] == record["uid"]);
            let count = one.and_then(|one| one.count).filter(|_| on_hooks(&world.rung) && !in_parts);
            if let Some(count) = count {
                ensure!(
                    record["count"] == count,
                    "counted {}, expected {count}: {}",
                    record["count"],
                    told()
                );
            }
            let shown = act.begins == Begins::Before && record["sensor"] == "proc";
            ensure!(shown || record["sensor"] == world.rung.as_str(), "seen by {}", record["sensor"]);
        }
    }
    Ok(())
}

/// Whether a record tells as an attempt what the same process had come to pass only after the look at it.
fn came_to_pass(record: &Value, all: &[&Value]) -> bool {
    let same = |other: &Value, field: &str| record[field] == other[field];
    record["kind"] == "attempt"
        && record["operation"] == "open"
        && all.iter().any(|other| {
            let one = same(other, "operation") && record["object"]["path"] == other["object"]["path"];
            let by_one =
                record["actor"]["tgid"].is_u64() && record["actor"]["tgid"] == other["actor"]["tgid"];
            other["kind"] == "violation.opened" && one && by_one
        })
}

/// Whether a record tells more of a violation that another one opened, by the same process.
fn is_more_of_one(record: &Value, all: &[&Value]) -> bool {
    let who = |record: &Value| record["actor"]["tgid"].as_u64();
    record["kind"] == "violation.updated"
        && who(record).is_some()
        && all.iter().any(|opened| opened["uid"] == record["violation_id"] && who(opened) == who(record))
}

/// The actor is the process that did it.
fn who(record: &Value, comm: &str, pid: Option<u32>, (by, site): (By, &Site), rung: &str) -> Result<()> {
    let actor = &record["actor"];
    if !names_actors(rung) && record["sensor"] != "proc" {
        let why = record["actor_unknown_because"].as_str().unwrap_or_default();
        ensure!(actor.is_null() && why == "inotify does not tell who acted", "by {actor}: {why}");
        return Ok(());
    }
    if by == By::TheKernel && !on_hooks(rung) {
        return Ok(());
    }
    let momentary = by == By::Momentary;
    if momentary && !on_hooks(rung) && actor.is_null() {
        let why = record["actor_unknown_because"].as_str().unwrap_or_default();
        ensure!(!why.is_empty(), "nobody is named, and no reason is given");
        return Ok(());
    }
    ensure!(actor["comm"] == comm, "by {}, expected {comm}", actor["comm"]);
    if momentary && !on_hooks(rung) {
        // It was gone when it was asked.
        return Ok(());
    }
    if !momentary {
        ensure!(actor["tgid"].as_u64() == pid.map(u64::from), "by {}, expected {pid:?}", actor["tgid"]);
    }
    ensure!(actor["uid"] == 0, "uid {}", actor["uid"]);
    let own = std::env::current_exe()?;
    let exe = if record["violation"] == "executed" { site.program() } else { own };
    let exe = exe.display().to_string();
    ensure!(actor["exe"] == exe.as_str(), "exe {}, expected {exe}", actor["exe"]);
    let code = PathBuf::from(record["object"]["path"].as_str().unwrap_or_default());
    if record["violation"] == "executed" && code.exists() {
        let (told, hash) = (&record["actual"]["sha256"], super::load::hash_of(&code)?);
        ensure!(*told == hash.as_str(), "it is said to hold {told}, and holds {hash}");
    }
    Ok(())
}

fn belongs(record: &Value, site: &Site) -> bool {
    let Some(path) = record["object"]["path"].as_str() else { return false };
    if path.strip_prefix('/') == Some(&site.in_memory()) {
        return true;
    }
    [site.dir(), site.lone(), site.out()].iter().any(|dir| {
        let dir = dir.display().to_string();
        path.strip_prefix(&dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// No record speaks of anything but the acts.
fn nothing_else_is_recorded() -> Result<()> {
    let world = world()?;
    let sites: Vec<Site> = world
        .roots
        .iter()
        .flat_map(|root| all().map(|act| Site { root: root.clone(), name: act.name }))
        .collect();
    let sentinel = |record: &Value| {
        record["object"]["path"].as_str().is_some_and(|path| path.ends_with("/tree/sentinel"))
    };
    let stray: Vec<&Value> = world
        .records
        .iter()
        .filter(|record| is_finding(record) && !sentinel(record))
        .filter(|record| !sites.iter().any(|site| belongs(record, site)))
        .collect();
    ensure!(stray.is_empty(), "also recorded: {}", told_of(stray));
    // Each skip is told, and the last word of it is that everything was verified.
    let skips: Vec<&Value> = world.skips().collect();
    let settled = skips.last().is_none_or(|record| record["reconciled"] == true);
    ensure!(settled, "not verified after what was skipped: {}", told_of(skips));
    let skip = |record: &Value| world.skips().any(|skip| skip["seq"] == record["seq"]);
    let lost: Vec<&Value> =
        world.records.iter().filter(|record| record["kind"] == "gap" && !skip(record)).collect();
    ensure!(lost.is_empty(), "losses: {}", told_of(lost));
    let numbers: Vec<Option<u64>> = world.records.iter().map(|record| record["seq"].as_u64()).collect();
    let wanted: Vec<Option<u64>> = (1..=world.records.len() as u64).map(Some).collect();
    ensure!(numbers == wanted, "sequence numbers are not 1 to {}", wanted.len());
    Ok(())
}

/// Status and its exit code say what the records say, before and after a restart, which finds nothing new.
fn a_restart_finds_nothing_new() -> Result<()> {
    let world = world()?;
    let opened = world.records.iter().filter(|record| record["kind"] == "violation.opened").count();
    let new: Vec<&Value> = world.later.iter().filter(|record| is_finding(record)).collect();
    let now: Vec<&Value> = new.iter().map(|record| &record["actual"]).collect();
    ensure!(new.is_empty(), "found anew: {}; now {now:?}", told_of(new.iter().copied()));
    for (status, code) in [&world.status, &world.after] {
        ensure!(status["posture"] == "violated" && *code == 1, "posture {} ({code})", status["posture"]);
        ensure!(status["violations"]["open"] == opened, "{} of {opened} open", status["violations"]);
        ensure!(status["loss"]["unreconciled"] == 0, "losses: {}", status["loss"]);
        let coverage = if world.rung == "lsm" { "full" } else { "reduced" };
        ensure!(status["coverage"] == coverage, "{}: {}", status["coverage"], status["sensor"]["blind_to"]);
    }
    Ok(())
}

/// One line for each act: its name, and what was told of it on the disk, parted by tabs. The first line names the rung.
pub(super) fn table() -> Result<()> {
    let world = world()?;
    println!("rung\t{}", world.rung);
    for act in all().filter(|act| world.pids.contains_key(&(0, act.name))) {
        let site = Site { root: world.roots[0].clone(), name: act.name };
        let mut told: Vec<String> =
            world.records.iter().filter(|one| belongs(one, &site)).map(in_words).collect();
        told.sort();
        told.dedup();
        let told = if told.is_empty() { "nothing".to_owned() } else { told.join("; ") };
        println!("act\t{}\t{told}", act.name);
    }
    Ok(())
}

fn in_words(record: &Value) -> String {
    let field = |name: &str| record[name].as_str().unwrap_or("?");
    let what = record["violation"].as_str().unwrap_or_else(|| field("kind"));
    let by = if record["actor"].is_null() { ", actor unknown" } else { "" };
    format!("{what} by {}{by}", field("operation"))
}

/// What a rung tells with other words, or without the actor, is in `blind_to` of its status.
fn blind_to_says_what_is_not_seen() -> Result<()> {
    let world = world()?;
    let listed = world.status.0["sensor"]["blind_to"].as_array().context("no list")?;
    let blind = |family: &str| {
        listed.iter().filter_map(Value::as_str).any(|one| one.split(':').next() == Some(family))
    };
    for one in all().flat_map(|act| act.expected) {
        let family = family_of(one.operation);
        if told_by(&world.rung, one.operation) != one.operation {
            ensure!(blind(family), "{} is told with another word, and {listed:?}", one.operation);
        }
        if one.hooks_only && !on_hooks(&world.rung) {
            ensure!(blind(family), "{} is not seen, and {listed:?}", one.operation);
        }
    }
    ensure!(names_actors(&world.rung) || blind("actor"), "no actors, and {listed:?}");
    ensure!(!on_hooks(&world.rung) || listed.is_empty(), "everything is seen, and {listed:?}");
    Ok(())
}

fn family_of(operation: &str) -> &str {
    match operation {
        "setxattr" | "removexattr" => "xattr",
        "setattr" => "attributes",
        "open" | "write" | "truncate" | "mmap" => operation,
        "mount" | "pivot_root" => "mounts",
        "ioctl" => "ioctl",
        "ptrace" => "memory",
        "execve" => "execute",
        _ => "names",
    }
}

macro_rules! acts {
    ($($name:ident)+) => {
        /// One case per act, and those about all of them.
        pub(super) const CASES: &[Case] = &[
            $(Case { name: stringify!($name), run: || check(stringify!($name)) },)+
            Case { name: "nothing_else_is_recorded", run: nothing_else_is_recorded },
            Case { name: "a_restart_finds_nothing_new", run: a_restart_finds_nothing_new },
            Case { name: "blind_to_says_what_is_not_seen", run: blind_to_says_what_is_not_seen },
            Case { name: "each_act_is_a_case", run: || {
                let cases = [$(stringify!($name)),+];
                ensure!(all().map(|act| act.name).eq(cases), "acts and cases differ");
                Ok(())
            } },
        ];
    };
}

acts! {
    open_for_write_only write pwrite writev open_truncating truncate ftruncate append store_through_a_mapping chmod
    fchmod chown utimensat setxattr removexattr chmod_of_the_directory link_outside symlink mkdir mkfifo create unlink
    rmdir rename_away rename_over move_in move_a_directory_in rename_within rename_exchange write_the_same_bytes change_and_put_back
    write_through_a_hard_link write_through_a_bind_mount write_through_proc_root write_through_a_held_handle
    store_through_a_held_mapping sendfile
    copy_file_range splice fallocate sed_in_place write_as_an_editor_does drop_and_remove write_to_hostile_names
    drop_hostile_names replace_a_fifo by_a_child_that_lives_a_moment write_by_threads_of_one_process write_after_the_first_thread_ended write_to_a_lone_file unlink_a_lone_file
    make_a_lone_file_anew rename_over_a_lone_file write_beside_a_lone_file read_list_and_execute

    pwritev2 write_by_aio write_by_io_uring write_by_io_uring_that_is_put_off write_direct punch_a_hole zero_a_range
    collapse_a_range insert_a_range store_after_mprotect write_through_a_descriptor_of_proc write_by_handle write_with_the_cursor_of_another set_acl
    chattr chattr_of_the_directory clone_range clone_range_that_is_shared

    link_an_unnamed_file rename_leaving_a_whiteout chown_of_a_link rename_over_a_link move_extents unlink_by_io_uring
    rename_by_io_uring truncate_by_io_uring write_through_a_loop_device account_processes_to_it fchmodat2 setxattrat file_setattr
    write_after_the_generation_was_set

    rename_an_ancestor replace_an_ancestor_by_a_link_to_it exchange_an_ancestor exchange_an_ancestor_and_back rename_the_directory_away_and_back
    remove_all_of_an_ancestor mount_over_the_file mount_over_the_directory
    move_mount_over_the_file mount_over_an_ancestor pivot_root_over_the_directory mount_that_fails
    remount_in_a_namespace service_in_a_sandbox service_in_a_sandbox_that_is_moved service_in_a_sandbox_that_is_moved_anew umount_in_a_namespace

    take_away_and_put_back_by_a_link rename_into_a_directory_made_just_now rename_a_directory_over_an_empty_one ask_by_ioctl

    delete_the_subvolume_of_a_lone_file delete_a_subvolume_in_a_sealed_directory make_a_subvolume_in_a_sealed_directory

    attach_to_a_sealed_program write_into_a_sealed_program open_the_memory_of_a_sealed_program

    load_code_of_a_file make_code_of_what_is_mapped load_code_from_memory load_code_that_is_deleted execute_a_file
    load_what_is_sealed
}
