//! A day in the life of a node, compressed: thirty pods of four meshes, and everything lawful that befalls them; then the
//! scenarios of an attacker among it, in an order that follows from a seed. What the agent tells is compared with what
//! a model of the run says, both ways.

mod api;
mod chance;
mod churn;
mod installer;
mod lawful;
mod mesh;
mod model;
mod node;
mod place;
mod pod;
mod seal;
mod tamper;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::chance::Chance;
use self::churn::pods_that_come_and_go_leave_nothing;
use self::mesh::MESHES;
use self::model::{Expected, Model};
use self::node::Node;
use self::place::Place;
use crate::agent::{Agent, Home, PATIENCE, pause, told_of};
use crate::corpus::rung;
use crate::pods::container;
use crate::process::Process;

/// Lawful acts before the first that is not.
const LAWFUL: usize = 30;
/// Lawful acts after each that is not, at most.
const BETWEEN: usize = 3;

/// Chosen on the command line: `--seed N`.
static SEED: OnceLock<u64> = OnceLock::new();

/// What a test program's `main` returns, on that rung at most. `--seed N` repeats a run; without it the seed is `fixed`, and in the
/// full lane whatever chance says.
pub fn main(rung: &'static str, fixed: u64) -> ExitCode {
    rung::at_most(rung);
    if let Some(played) = crate::process::played(container::play) {
        return played;
    }
    match run(fixed) {
        Ok(code) => code,
        Err(error) => {
            println!("FAIL day: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(fixed: u64) -> Result<ExitCode> {
    if let Some(code) = place::enter()? {
        return Ok(code);
    }
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut seed = Some(fixed).filter(|_| !crate::corpus::full());
    if let Some(at) = arguments.iter().position(|one| one == "--seed") {
        let given = arguments.get(at + 1).context("--seed: expected a number")?;
        seed = Some(given.parse().context("--seed: expected a number")?);
        arguments.drain(at..at + 2);
    }
    let seed = match seed {
        Some(seed) => seed,
        None => {
            u64::from(std::process::id()) ^ u64::from(std::time::UNIX_EPOCH.elapsed()?.subsec_nanos()) << 20
        }
    };
    SEED.get_or_init(|| seed);
    // The second takes long: in the full lane, and where it is asked for.
    let all = crate::cases![a_day_is_told_as_it_was, pods_that_come_and_go_leave_nothing];
    let cases = if crate::corpus::full() || !arguments.is_empty() { &all[..] } else { &all[..1] };
    Ok(if crate::run(cases, &arguments, &mut std::io::stdout().lock())? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn seed() -> u64 {
    SEED.get().copied().unwrap_or_default()
}

/// A node with an agent, and what must have been told so far.
#[derive(Debug)]
struct Day {
    chance: Chance,
    node: Node,
    home: Home,
    agent: Agent,
    model: Model,
    /// Number of the act that is under way, and its name.
    act: usize,
    name: String,
    /// Acts on pods.
    log: Vec<String>,
    /// The first pod of each mesh: it stays all day, and what it fills itself is sealed.
    residents: Vec<String>,
    /// Of the baseline that is made of manifests.
    revision: u64,
    /// Volumes that the kubelet has to publish yet, since their objects were changed: pod and number.
    pending: Vec<(String, usize)>,
    /// Volumes that were tampered with, and not healed.
    dirty: Vec<PathBuf>,
    /// Lawful writes to files of the pods' own, for texts that differ.
    written: u64,
    /// Of the agent, so far.
    restarts: usize,
    /// It awaits the baseline of what the kubelet publishes.
    patient: bool,
    /// Somebody on the host.
    intruder: Process,
    started: Instant,
}

fn a_day_is_told_as_it_was() -> Result<()> {
    println!("note: seed {}", seed());
    let place = Place::new()?;
    let mut day = Day::begin(&place)?;
    let outcome = day.live();
    let (seed, act, name) = (seed(), day.act, day.name.clone());
    let log = day.home.dir.join("agent.log");
    outcome
        .and_then(|()| day.end())
        .inspect_err(|_| {
            // Why a writer was not taken for a lawful one is said there alone.
            let log = std::fs::read_to_string(log).unwrap_or_default();
            log.lines()
                .filter(|line| line.contains("lawful writer"))
                .for_each(|line| println!("note: {line}"));
        })
        .with_context(|| format!("seed {seed}, act {act} ({name}); again: --seed {seed}"))
}

impl Day {
    /// Thirty pods, sealed, and an agent that has looked at all of it.
    fn begin(place: &Place) -> Result<Self> {
        let started = Instant::now();
        let mut chance = Chance::new(seed());
        let mut node = Node::new(place.path(), &mut chance)?;
        let mut residents = Vec::new();
        for (mesh, of) in MESHES.iter().enumerate() {
            for at in 0..of.pods {
                let pod = node.start(mesh, at % 2, &mut chance)?;
                if at == 0 {
                    residents.push(node.pods[pod].uid.clone());
                }
            }
        }
        node.network()?;
        for uid in &residents {
            node.fill(uid)?;
        }
        let home = Home::new(place.path().join("home"))?;
        seal::prepare(&home)?;
        seal::residents(&home, &node, &residents)?;
        seal::cni(&home, std::path::Path::new("/"), 1)?;
        seal::images(&home, &node)?;
        seal::manifests(&home, &node, 1)?;
        println!("note: {} pods after {} s", node.pods.len(), started.elapsed().as_secs());
        let agent = Agent::start(&home, 1)?;
        let model = Model::new(&agent.rung()?);
        let intruder = container::called("intruder")?;
        let mut day = Self {
            chance,
            node,
            home,
            agent,
            model,
            act: 0,
            name: "the start".to_owned(),
            log: Vec::new(),
            residents,
            revision: 1,
            pending: Vec::new(),
            dirty: Vec::new(),
            written: 0,
            restarts: 0,
            patient: true,
            intruder,
            started,
        };
        for at in 0..day.node.pods.len() {
            day.taken_up(at)?;
        }
        println!("note: all is watched after {} s", day.started.elapsed().as_secs());
        Ok(day)
    }

    /// Lawful acts first, and then the others among them.
    fn live(&mut self) -> Result<()> {
        for _ in 0..LAWFUL {
            self.lawful()?;
        }
        let seen = self.agent.seen.iter().filter(|record| record["kind"] == "violation.opened");
        let seen: Vec<&Value> = seen.collect();
        ensure!(seen.is_empty(), "violations where all was lawful: {}", told_of(seen));
        println!("note: {} lawful acts after {} s", self.act, self.started.elapsed().as_secs());
        // From now on nothing is awaited.
        seal::configure(&self.home, "0s")?;
        self.patient = false;
        self.agent.restart(&self.home)?;
        for at in 0..self.node.pods.len() {
            self.taken_up(at)?;
        }
        self.baseline_comes_too_late()?;
        let mut scenarios = tamper::all();
        self.chance.shuffle(&mut scenarios);
        for scenario in scenarios {
            self.begin_act(scenario.name);
            (scenario.act)(self)?;
            self.told()?;
            for _ in 0..self.chance.below(BETWEEN + 1) {
                self.lawful()?;
            }
        }
        Ok(())
    }

    fn begin_act(&mut self, name: &str) {
        self.act += 1;
        name.clone_into(&mut self.name);
    }

    /// The pod that the act under way is about, for whoever reads of a failure.
    fn about(&mut self, pod: usize) {
        let (act, name, uid) = (self.act, &self.name, &self.node.pods[pod].uid);
        self.log.push(format!("act {act}: {name}: pod {uid}"));
    }

    /// Waits for the violations of this act.
    fn told(&mut self) -> Result<()> {
        for one in self.model.of_act(self.act).cloned().collect::<Vec<Expected>>() {
            let is_it = |record: &Value| {
                record["kind"] == "violation.opened"
                    && record["violation"] == one.violation
                    && record["object"]["path"] == one.path.as_str()
            };
            self.agent.find(&one.to_string(), is_it)?;
        }
        Ok(())
    }

    /// Waits until a lawful change has been told of, as often as the model says.
    fn accepted(&mut self, kind: &'static str, path: &std::path::Path) -> Result<()> {
        let count = self.model.accept(kind, path);
        let shown = path.display().to_string();
        self.agent.wait(&format!("{kind} of {shown}"), |seen| {
            let of = |record: &&Value| record["kind"] == kind && record["object"]["path"] == shown.as_str();
            seen.iter().filter(of).count() >= count
        })
    }

    fn at(&self, uid: &str) -> Result<usize> {
        self.node.pods.iter().position(|pod| pod.uid == uid).context("the pod is gone")
    }

    /// Waits until all that is sealed of a pod is watched, and as sealed.
    fn taken_up(&mut self, at: usize) -> Result<()> {
        let pod = &self.node.pods[at];
        let whole = pod.published.iter().filter(|volume| !self.is_dirty(&volume.path));
        let mut wanted: Vec<String> = whole.map(|volume| volume.path.display().to_string()).collect();
        if seal::is_sealed(pod.mesh()) {
            let exe = pod.root()?.join(pod.mesh().exe.trim_start_matches('/'));
            // One that was tampered with stays violated.
            wanted.extend(self.model.below(&exe).is_empty().then(|| exe.display().to_string()));
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let objects = self.agent.objects()?;
            let state = |path: &String| {
                objects.iter().find(|one| one["path"] == path.as_str()).map(|one| one["state"].clone())
            };
            let missing: Vec<_> = wanted
                .iter()
                .map(|path| (path, state(path)))
                .filter(
                    |(_, state)| !matches!(state, Some(state) if state == "intact" || state == "superseded"),
                )
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                let records = self.home.records()?;
                let opened = records.iter().filter(|record| record["kind"] == "violation.opened");
                bail!("not taken up: {missing:?}; {}", told_of(opened));
            }
            pause(std::time::Duration::from_millis(50));
        }
    }

    /// The last word: what was told is what was done.
    fn end(mut self) -> Result<()> {
        self.begin_act("the end");
        // What came before is judged by then.
        let last = PathBuf::from(node::CNI_CONF).join("99-last.conflist");
        tamper::sentinel(&mut self, &last)?;
        self.told()?;
        println!("note: {} acts after {} s", self.act, self.started.elapsed().as_secs());
        for what in &self.model.unseen {
            println!("note: not seen, as docs/coverage.md says: {what}");
        }
        self.agent.stop()?;
        self.intruder.end()?;
        self.home.verify_journal()?;
        self.model.compare(&self.home.records()?, &self.log)
    }
}
