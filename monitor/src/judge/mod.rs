//! The judge: decides, from what is sealed, what is there, and what was seen being done.
//!
//! One task owns all state. Observations are routed to units ([`route`]), folded ([`acts`]), and left to settle
//! ([`schedule`]); then the unit is looked at ([`look`], on a blocking worker) and the two looks and the acts between
//! them become a verdict ([`verdict`], [`directory`], [`volume`]), which opens, updates or resolves violations
//! ([`violations`]). Nothing here knows which sensor runs or where records go.

mod acts;
mod awaited;
mod away;
mod beside;
mod budget;
mod conclude;
mod covered;
mod decide;
mod directory;
mod earlier;
mod held;
mod incarnation;
mod layers;
mod look;
mod losses;
mod nameless;
mod parts;
mod proof;
mod report;
mod route;
mod schedule;
mod slots;
mod subvolumes;
mod sweep;
mod take_up;
mod tell;
#[cfg(test)]
mod tests;
mod topology;
mod twins;
mod unit;
mod units;
mod unsealed;
mod verdict;
mod violations;
mod volume;
mod waits;
mod watches;
mod world;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::baseline::secret::SecretKey;
use crate::baseline::{AcceptedBaseline, Context, ObserveError, Root, SealedObject};
use crate::config::settings::Relaxation;
use crate::inventory::handles::Handles;
use crate::model::{Draft, ExeHash, HostPath, Observation, Record, Target, Time};
use crate::sensor::{Sensor, SensorEvent};
use crate::status::Query;

use self::acts::{Act, Acts};
use self::beside::Beside;
use self::budget::Budget;
use self::look::{Job, Look};
use self::losses::Losses;
use self::proof::Proofs;
pub use self::schedule::SETTLE;
use self::schedule::Schedule;
use self::slots::{Ix, Slots};
use self::subvolumes::Ioctls;
use self::sweep::Sweep;
use self::topology::Ways;
use self::twins::Twins;
use self::unit::Unit;
use self::units::Units;
use self::violations::Book;
pub use self::world::{AgentFacts, MeshFiles, World};

/// How the judge is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The host's root.
    pub root: Root,
    /// What hashing needs to know.
    pub context: Context,
    /// Looks at a time.
    pub workers: usize,
    /// Slots the sensor has for watched inodes.
    pub slots: u32,
    /// How often everything is verified again.
    pub scrub: Duration,
    /// Bytes a second that this may read.
    pub io_budget: u64,
    /// How often the sensor is proven by canaries.
    pub canary: Duration,
    /// How long what the kubelet publishes may wait for the baseline that approves it.
    pub await_approval: Duration,
    /// How long what an installer took away when it ended may be away before that is told: one that is restarted or replaced puts it back when
    /// it has come again.
    pub await_installer: Duration,
}

/// What the agent tells the judge.
#[derive(Debug)]
pub enum Command {
    /// The baselines in force, or what they are on this node, changed: these are all of them.
    Baselines(Vec<Arc<AcceptedBaseline>>, Vec<Resolved>),
    /// Facts of posture that are not the judge's: reasons for `uncertain`.
    Uncertain(Vec<String>),
    /// Verify everything again, and record why.
    VerifyAll(String),
    /// Mesh files of this node came or went.
    Inventory,
    /// The cluster's key for secrets came, changed or went.
    SecretKey(Option<Arc<SecretKey>>),
    /// The agent itself was started on less than it ran on before, by the config at this path.
    Relaxed(HostPath, Vec<Relaxation>),
}

/// Objects of a baseline that have a place of their own on each node: those of one pod or container of it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Name of the baseline.
    pub baseline: String,
    /// Its revision.
    pub revision: u64,
    /// The objects, with paths of the host.
    pub objects: Arc<[SealedObject]>,
    /// The container whose files they are.
    pub container: Option<Arc<Container>>,
}

/// A container that runs. It takes its files along when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What is there as long as it is.
    pub lives_by: HostPath,
    /// What it is, for records.
    pub target: Target,
}

/// The judge's inputs.
#[derive(Debug)]
pub struct Inputs {
    /// From the sensor.
    pub events: mpsc::Receiver<SensorEvent>,
    /// From the agent.
    pub commands: mpsc::Receiver<Command>,
    /// From status.
    pub queries: mpsc::Receiver<Query>,
}

type Done = (Ix, Job, Result<Look, ObserveError>);

/// Owns everything that is known of this node's objects.
#[derive(Debug)]
pub struct Judge {
    options: Options,
    world: Arc<dyn World>,
    sensor: Box<dyn Sensor>,
    records: mpsc::Sender<Vec<Draft>>,
    units: Units,
    slots: Slots,
    schedule: Schedule,
    /// Units to look at when nothing else presses: after a new baseline, a loss.
    backlog: VecDeque<Ix>,
    /// Units to look at again though nothing happened to them: within the budget, and after all others.
    scrub: VecDeque<Ix>,
    budget: Budget,
    /// Whose turn it is to be looked at.
    turn: u8,
    /// When the budget allows the next.
    scrub_at: Instant,
    looks: JoinSet<Done>,
    in_flight: std::collections::HashMap<Ix, Acts>,
    book: Book,
    losses: Losses,
    unsealed: unsealed::Unsealed,
    handles: Arc<Handles>,
    ways: Ways,
    ioctls: Ioctls,
    twins: Twins,
    beside: Beside,
    mount_tables: layers::MountTables,
    baselines: Vec<Arc<AcceptedBaseline>>,
    uncertain: Vec<String>,
    /// A verification of everything under way: why, since when, units left.
    sweep: Option<Sweep>,
    /// The same for a scrub, which takes its time.
    scrubbing: Option<Sweep>,
    next_scrub: Instant,
    proofs: Proofs,
    earlier: Vec<(HostPath, Act)>,
    /// Acts beyond those, counted only.
    earlier_more: u64,
    out: Vec<Draft>,
    first_done: Option<tokio::sync::oneshot::Sender<()>>,
    /// Answers that read the disk.
    answers: JoinSet<()>,
    posture_since: (crate::status::Posture, Time),
    /// Not looked at again before.
    posture_due: Instant,
    /// Something happened since it was last looked at.
    posture_stale: bool,
}

/// Looks without an explanation before the finding is told without one.
const WAITS_FOR_ACTS: u8 = 3;
/// How long each such wait is.
const WAIT_FOR_ACTS: Duration = Duration::from_millis(60);
/// How long an object that cannot be read or keeps changing is left alone.
const RETRY: Duration = Duration::from_millis(250);
/// After how many looks a directory that changes all the time is taken as it is at that moment.
const RESTLESS: u8 = 2;
/// Events taken in one go before looks are dispatched.
const BATCH: usize = 4096;
/// Queries answered in one go.
const QUERIES: usize = 16;
/// Of so many looks that are begun one is the scrub's, and every second one the backlog's, where these have one: what is touched all the
/// time does not keep all others from being looked at.
const TURNS: u8 = 16;

impl Judge {
    /// Makes a judge. `live` is resolved once the first verification of the first baselines is done.
    #[must_use]
    pub fn new(
        options: Options,
        world: Arc<dyn World>,
        sensor: Box<dyn Sensor>,
        records: mpsc::Sender<Vec<Draft>>,
        live: tokio::sync::oneshot::Sender<()>,
    ) -> Self {
        let now = Instant::now();
        let next_scrub = now + options.scrub;
        let budget = Budget::new(options.io_budget, now);
        let slots = Slots::new(options.slots);
        let proofs = Proofs::new(options.canary, sensor.health());
        Self {
            proofs,
            earlier: Vec::new(),
            earlier_more: 0,
            options,
            world,
            sensor,
            records,
            units: Units::default(),
            slots,
            schedule: Schedule::default(),
            backlog: VecDeque::new(),
            scrub: VecDeque::new(),
            budget,
            turn: 0,
            scrub_at: now,
            looks: JoinSet::new(),
            in_flight: std::collections::HashMap::new(),
            book: Book::default(),
            losses: Losses::default(),
            unsealed: unsealed::Unsealed::default(),
            handles: Arc::default(),
            ways: Ways::default(),
            ioctls: Ioctls::default(),
            twins: Twins::default(),
            beside: Beside::default(),
            mount_tables: layers::MountTables::default(),
            baselines: Vec::new(),
            uncertain: Vec::new(),
            sweep: None,
            scrubbing: None,
            answers: JoinSet::new(),
            next_scrub,
            out: Vec::new(),
            first_done: Some(live),
            posture_since: (crate::status::Posture::Uncertain, Time::now()),
            posture_due: now,
            posture_stale: true,
        }
    }

    /// Takes up a record of an earlier run; call for each record of a violation or of what is unsealed before [`Judge::run`].
    pub fn replay(&mut self, record: &Record) {
        use crate::status::Posture;

        self.book.replay(record);
        self.unsealed.replay(record);
        // What was violated when the agent ended is so since then.
        match (self.book.open_count(), self.posture_since.0) {
            (0, Posture::Violated) => self.posture_since = (Posture::Uncertain, Time::now()),
            (1.., Posture::Uncertain) => self.posture_since = (Posture::Violated, record.time),
            _ => {}
        }
    }

    /// Runs until `stop`, then looks once more at what has not settled.
    pub async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        loop {
            self.prove();
            self.dispatch();
            self.settle_sweep();
            self.tell_unsealed();
            self.note_posture();
            self.flush(&mut inputs.queries).await;
            let due = self.wake_at();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.looks.join_next() => self.done(done),
                Some(command) = inputs.commands.recv() => self.command(command),
                Some(event) = inputs.events.recv() => {
                    self.event(event);
                    for _ in 0..BATCH {
                        let Ok(event) = inputs.events.try_recv() else { break };
                        self.event(event);
                    }
                }
                Some(query) = inputs.queries.recv() => self.answer(query),
                () = tokio::time::sleep_until(due.into()) => {}
            }
            self.keep_up(&mut inputs.queries);
            self.posture_stale = true;
        }
        self.finish(&mut inputs).await;
    }

    /// What was seen before the stop is still judged, for a bounded time.
    async fn finish(&mut self, inputs: &mut Inputs) {
        let until = Instant::now() + Duration::from_secs(5);
        while let Ok(command) = inputs.commands.try_recv() {
            self.command(command);
        }
        while let Ok(event) = inputs.events.try_recv() {
            self.event(event);
        }
        self.backlog.clear();
        self.scrub.clear();
        self.await_no_longer();
        while Instant::now() < until && (self.schedule.len() > 0 || !self.looks.is_empty()) {
            self.dispatch();
            let due = self.wake_at().min(until);
            tokio::select! {
                Some(done) = self.looks.join_next() => self.done(done),
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
        self.flush(&mut inputs.queries).await;
    }

    fn wake_at(&self) -> Instant {
        let far = self.next_scrub.min(self.proofs.due()).min(self.posture_again());
        let far = self.ways.due.map_or(far, |due| due.min(far));
        if self.looks.len() >= self.options.workers {
            // The next look to end wakes us.
            return far;
        }
        let far = if self.may_scrub() { self.scrub_at.min(far) } else { far };
        self.schedule.next().map_or(far, |due| due.min(far))
    }

    /// Hands on what is to be recorded. Waits while the journal cannot take it; whoever asks is answered meanwhile.
    async fn flush(&mut self, queries: &mut mpsc::Receiver<Query>) {
        if self.out.is_empty() {
            return;
        }
        let records = self.records.clone();
        let mut room = std::pin::pin!(records.reserve());
        loop {
            tokio::select! {
                biased;
                free = &mut room => {
                    match free {
                        Ok(free) => free.send(std::mem::take(&mut self.out)),
                        Err(_) => {
                            self.out.clear();
                            tracing::error!("the journal's writer is gone: records are lost");
                        }
                    }
                    return;
                }
                Some(query) = queries.recv() => self.answer(query),
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Baselines(baselines, resolved) => self.take_up(baselines, &resolved),
            Command::Uncertain(reasons) => self.uncertain = reasons,
            Command::Inventory => self.unsealed.due = true,
            Command::VerifyAll(reason) => self.verify_all(&reason),
            Command::Relaxed(config, relaxations) => self.relaxed(config, &relaxations),
            Command::SecretKey(key) => {
                self.options.context.secret_key = key;
                self.verify_all("the cluster's key for secrets changed");
            }
        }
    }

    /// What does not wait until there are no events: who asks, and what is due by the clock.
    fn keep_up(&mut self, queries: &mut mpsc::Receiver<Query>) {
        for _ in 0..QUERIES {
            let Ok(query) = queries.try_recv() else { break };
            self.answer(query);
        }
        if Instant::now() >= self.next_scrub {
            self.next_scrub = Instant::now() + self.options.scrub;
            self.verify_all("scrub");
        }
        if self.ways.due.is_some_and(|due| due <= Instant::now()) {
            self.follow_ways();
        }
    }

    fn event(&mut self, event: SensorEvent) {
        match event {
            SensorEvent::Observed(mut observation) => {
                self.enrich(&mut observation);
                let now = Instant::now();
                let mut concerned = route::route(&observation, &self.slots, &self.units);
                if observation.operation.runs_code() {
                    match self.world.foreign_code(&observation) {
                        Some(foreign) => concerned.iter_mut().for_each(|(_, act)| act.of_code(&foreign)),
                        None => concerned.clear(),
                    }
                }
                let twins: Vec<(Ix, Act)> =
                    concerned.iter().flat_map(|(ix, act)| self.twins.of(*ix, act, &self.units)).collect();
                let known = |ix: Ix| concerned.iter().any(|(one, _)| *one == ix);
                let twins: Vec<(Ix, Act)> = twins.into_iter().filter(|(ix, _)| !known(*ix)).collect();
                concerned.extend(twins);
                let told: Vec<Ix> = concerned.iter().map(|(ix, _)| *ix).collect();
                for (ix, act) in concerned {
                    self.acted(ix, act, now);
                }
                self.may_take_a_subvolume(&observation);
                self.on_ways(&observation, &told);
            }
            SensorEvent::Earlier { mut observation, path, to } => {
                self.enrich(&mut observation);
                self.earlier(&observation, path, to);
            }
            SensorEvent::Dirty { slot, events } => self.dirty(slot, events),
            SensorEvent::Closed { slot } => self.closed(slot),
            SensorEvent::Lost { at, lost, reason, slots, time } => self.lost(at, lost, &reason, slots, time),
            SensorEvent::Health(health) => self.health_changed(health),
        }
    }

    fn enrich(&self, observation: &mut Observation) {
        if let Ok(actor) = &mut observation.actor {
            self.world.enrich(actor);
        }
    }

    fn acted(&mut self, ix: Ix, mut act: Act, now: Instant) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        let apart = unit.apart_mut();
        act.is_for_whoever_opened(&apart.lately);
        let acts = &mut apart.acts;
        acts.push(act, now);
        let first = acts.since.unwrap_or(now);
        if acts.are_many() {
            return self.schedule.set(ix, now);
        }
        let open = unit.standing == unit::Standing::Violated;
        self.schedule.set(ix, schedule::settles(first, now, open));
    }

    /// Starts looks while there are workers.
    fn dispatch(&mut self) {
        let now = Instant::now();
        while self.looks.len() < self.options.workers {
            let Some(ix) = self.next_to_look_at(now) else { break };
            self.look_at(ix);
        }
    }

    /// What was touched first, then the backlog, then the scrub; now and then the other way round.
    fn next_to_look_at(&mut self, now: Instant) -> Option<Ix> {
        self.turn = (self.turn + 1) % TURNS;
        let first = match self.turn {
            0 => self.next_scrubbed(now),
            turn if turn % 2 == 0 => self.backlog.pop_front(),
            _ => None,
        };
        first
            .or_else(|| self.schedule.pop(now))
            .or_else(|| self.backlog.pop_front())
            .or_else(|| self.next_scrubbed(now))
    }

    fn look_at(&mut self, ix: Ix) {
        let Some(unit) = self.units.get(ix) else { return };
        if unit.running {
            self.schedule.at_latest(ix, Instant::now() + WAIT_FOR_ACTS);
            return;
        }
        // Tag, then hash: what is written after this is seen.
        self.follow_ways();
        self.watch(ix);
        let Some(unit) = self.units.get_mut(ix) else { return };
        unit.running = true;
        unit.dirty = false;
        let (acts, closed) = (unit.take_acts(), unit.take_closed());
        let apart = unit.apart();
        let before = apart.before.as_ref().filter(|(_, until)| *until > Instant::now());
        let before = before.map(|(seal, _)| seal.clone());
        let ask = held::ask(unit, &acts);
        let from_disk = closed && !acts.touch_content() || acts.are_opens();
        let (object, last) = (unit.sealed(), apart.right.clone().or_else(|| apart.found.clone()));
        let restless = unit.waited >= RESTLESS;
        let job = Job { ix, object, before, last, ask, closed, from_disk, restless };
        let hashes = acts.hashes_in_the_making();
        self.in_flight.insert(ix, acts);
        let (root, context) = (self.options.root.clone(), self.options.context.clone());
        let handles = Arc::clone(&self.handles);
        self.looks.spawn_blocking(move || {
            let begun = Instant::now();
            // Tag, then who holds it, then the hash: in this order no writer is overlooked.
            let mut holders = held::find(&root, &handles, &job);
            let seen = look::look(&root, &context, &job).map(|look| {
                holders.took = begun.elapsed();
                Look { holders, ..look }
            });
            // What it was done with is told too.
            hashes.iter().for_each(ExeHash::make);
            (job.ix, job, seen)
        });
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok((ix, job, seen)) => {
                let acts = self.in_flight.remove(&ix).unwrap_or_default();
                if let Some(unit) = self.units.get_mut(ix) {
                    unit.running = false;
                    self.conclude(ix, &job, seen, acts);
                }
            }
            Err(e) => {
                // A worker panicked: which unit it had is not told, so all that are in flight are looked at again.
                tracing::error!(error = %e, "a look failed");
                for (ix, acts) in std::mem::take(&mut self.in_flight) {
                    if let Some(unit) = self.units.get_mut(ix) {
                        unit.running = false;
                        unit.apart_mut().acts.put_back(acts, Instant::now());
                        self.schedule.set(ix, Instant::now() + RETRY);
                    }
                }
            }
        }
    }
}
