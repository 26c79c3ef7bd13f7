//! What happens when the configuration, a baseline or a key changes under a running agent: noticing it ([`Watcher`]),
//! and telling what a reload cannot do ([`needs_restart`]). What it must not do is told by [`super::settings`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep};

use super::Config;

/// A publish is several events; looked at once, when it is over.
const SETTLE: Duration = Duration::from_millis(250);
/// Network file systems and an exhausted watch limit give no events.
const POLL: Duration = Duration::from_secs(30);
/// More entries than this in one directory are not looked at.
const MAX_ENTRIES: usize = 4_096;

/// Why to reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// SIGHUP: reload whatever has changed or not.
    Hangup,
    /// A watched file is another than before.
    Changed,
}

/// Device, inode, size, mtime and ctime of a file; `None` where there is none.
type Identity = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// Notices changes of files, of the files in directories, and of what symlinks among them lead to (a ConfigMap's
/// publish is a rename of `..data`, with no event on the files).
pub struct Watcher {
    paths: Vec<PathBuf>,
    seen: BTreeMap<PathBuf, Identity>,
    events: Option<EventStream<Vec<u8>>>,
    watches: Option<inotify::Watches>,
    hangup: Signal,
    poll: Interval,
    /// Something happened that has not been looked at: survives a cancelled wait.
    stirred: bool,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("paths", &self.paths)
            .field("stirred", &self.stirred)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Every path whose change asks for a reload: config files, baselines, keys, profiles.
    #[must_use]
    pub fn watched_paths(&self) -> Vec<PathBuf> {
        let baselines = &self.baselines;
        let lists = self.candidates.iter().chain(&baselines.files).chain(&baselines.trusted_keys);
        let lists = lists.chain(&self.profile_files);
        // Certificates and keys of receivers are read anew with each connection.
        lists.chain(&baselines.secret_key).cloned().collect()
    }
}

impl Watcher {
    /// Watches these files and directories, which need not exist yet. What changes after this returns is noticed.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The handler for SIGHUP cannot be installed. Without inotify (limit reached) it polls.
    pub fn new(paths: Vec<PathBuf>) -> std::io::Result<Self> {
        let started = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            Ok((inotify.into_event_stream(vec![0; 8 << 10])?, watches))
        });
        let (events, watches) = match started {
            Ok((events, watches)) => (Some(events), Some(watches)),
            Err(error) => {
                tracing::warn!("reload: inotify: {error}; files are looked at every {} s", POLL.as_secs());
                (None, None)
            }
        };
        let mut poll = interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let hangup = signal(SignalKind::hangup())?;
        let seen = BTreeMap::new();
        let mut watcher = Self { paths, seen, events, watches, hangup, poll, stirred: false };
        watcher.watch();
        watcher.seen = look(&watcher.paths);
        Ok(watcher)
    }

    /// Watches other paths from now on (after a reload). What changed between is noticed at the next wait.
    pub fn set_paths(&mut self, paths: Vec<PathBuf>) {
        let known = std::mem::take(&mut self.seen);
        self.paths = paths;
        self.watch();
        let now = look(&self.paths);
        // New paths count as seen: the reload that brought them has read them. For old ones the last look stands.
        self.seen = now
            .into_iter()
            .map(|(path, new)| {
                let old = known.get(&path).copied().unwrap_or(new);
                (path, old)
            })
            .collect();
        self.stirred = true;
    }

    /// Waits for the next reason to reload. May be cancelled; nothing is lost by that.
    pub async fn changed(&mut self) -> Trigger {
        loop {
            if self.stirred {
                sleep(SETTLE).await;
                self.stirred = false;
                // Directories that came since, before the look: a change after it makes an event.
                self.watch();
                let now = look(&self.paths);
                if now != self.seen {
                    self.seen = now;
                    return Trigger::Changed;
                }
            }
            tokio::select! {
                received = self.hangup.recv() => {
                    if received.is_some() {
                        self.seen = look(&self.paths);
                        return Trigger::Hangup;
                    }
                }
                event = next(&mut self.events) => match event {
                    Some(Ok(_)) => self.stirred = true,
                    ended => {
                        tracing::warn!("reload: inotify: {ended:?}; files are looked at every {} s", POLL.as_secs());
                        self.events = None;
                        self.watches = None;
                    }
                },
                _ = self.poll.tick() => self.stirred = true,
            }
        }
    }

    /// Puts a watch on each path that is a directory and on the nearest directory above each that exists.
    fn watch(&mut self) {
        let Some(watches) = &mut self.watches else { return };
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let above = |path: &Path| path.ancestors().skip(1).find(|dir| dir.is_dir()).map(Path::to_owned);
        let dirs: BTreeSet<PathBuf> = self
            .paths
            .iter()
            .flat_map(|path| [path.is_dir().then(|| path.clone()), above(path)])
            .flatten()
            .collect();
        for dir in dirs {
            if let Err(error) = watches.add(&dir, mask) {
                tracing::debug!(
                    "reload: {} is looked at every {} s only: {error}",
                    dir.display(),
                    POLL.as_secs()
                );
            }
        }
    }
}

/// The next event; waits for ever without inotify.
async fn next(events: &mut Option<EventStream<Vec<u8>>>) -> Option<std::io::Result<()>> {
    match events {
        Some(events) => events.next().await.map(|event| event.map(|_| ())),
        None => std::future::pending().await,
    }
}

fn identity(found: &Metadata) -> Identity {
    let (mtime, ctime) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
    Some((found.dev(), found.ino(), found.size(), mtime.0, mtime.1, ctime.0, ctime.1))
}

/// What stands at these paths now, symlinks followed, and in them where they are directories.
fn look(paths: &[PathBuf]) -> BTreeMap<PathBuf, Identity> {
    let mut seen = BTreeMap::new();
    for path in paths {
        let Ok(found) = fs::metadata(path) else {
            seen.insert(path.clone(), None);
            continue;
        };
        if !found.is_dir() {
            seen.insert(path.clone(), identity(&found));
            continue;
        }
        // The directory's own times change with names we do not care for; that it is there is what counts.
        seen.insert(path.clone(), Some((0, 0, 0, 0, 0, 0, 0)));
        for entry in fs::read_dir(path).into_iter().flatten().flatten().take(MAX_ENTRIES) {
            let entry = entry.path();
            let found = fs::metadata(&entry).ok().filter(Metadata::is_file);
            seen.insert(entry, found.as_ref().and_then(identity));
        }
    }
    seen
}

/// The keys that differ and are read at start only.
#[must_use]
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("stateDir", old.state_dir != new.state_dir),
        ("socket", old.socket != new.socket),
        ("hostRoot", old.host_root != new.host_root),
        ("node", old.node != new.node),
        ("profiles", old.profiles != new.profiles),
        ("sensor", old.sensor != new.sensor),
        ("kubernetes", old.kubernetes != new.kubernetes),
        ("journal", old.journal != new.journal),
        ("scrub", old.scrub != new.scrub),
        ("baselines.awaitApproval", old.baselines.await_approval != new.baselines.await_approval),
        ("baselines.awaitInstaller", old.baselines.await_installer != new.baselines.await_installer),
        ("baselines.trustOnFirstUse", old.baselines.trust_on_first_use != new.baselines.trust_on_first_use),
    ];
    changed.into_iter().filter(|&(_, changed)| changed).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::Duration;

    use super::{Trigger, Watcher, needs_restart};
    use crate::config::{Config, parse};

    fn config() -> Config {
        parse(Path::new("/c.yaml"), "apiVersion: meshseal/v1\nnode: n\nbaselines: {requireSignatures: 2}\n")
            .unwrap()
    }

    #[test]
    fn what_is_read_at_start_is_named() {
        let (old, mut new) = (config(), config());
        assert_eq!(needs_restart(&old, &new), Vec::<&str>::new());
        new.socket = "/other".into();
        new.sensor.max_slots = 99;
        assert_eq!(needs_restart(&old, &new), ["socket", "sensor"]);
    }

    /// A hangup reaches every watcher of the process, which takes what it finds then as known.
    static SIGNALS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    async fn told(watcher: &mut Watcher) {
        let changed = async { while watcher.changed().await != Trigger::Changed {} };
        tokio::time::timeout(Duration::from_secs(20), changed).await.expect("the change is noticed");
    }

    /// As the kubelet publishes a ConfigMap: a new directory, and `..data` renamed onto it.
    fn publish(dir: &Path, revision: &str, text: &str) {
        let data = dir.join(revision);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("config.yaml"), text).unwrap();
        symlink(revision, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    }

    #[tokio::test]
    async fn files_config_maps_and_new_directories_are_noticed() {
        let _no_hangup = SIGNALS.lock().await;
        let dir = tempfile::tempdir().unwrap();
        let map = dir.path().join("map");
        fs::create_dir(&map).unwrap();
        publish(&map, "..1", "one");
        symlink("..data/config.yaml", map.join("config.yaml")).unwrap();
        let (file, late) = (dir.path().join("plain"), dir.path().join("a/b/keys"));
        fs::write(&file, "one").unwrap();
        let paths = vec![map.join("config.yaml"), file.clone(), late.clone()];
        let mut watcher = Watcher::new(paths).unwrap();

        publish(&map, "..2", "two");
        told(&mut watcher).await;
        fs::write(&file, "another length").unwrap();
        told(&mut watcher).await;
        fs::create_dir_all(&late).unwrap();
        told(&mut watcher).await;
        fs::write(late.join("release.pub"), "key").unwrap();
        told(&mut watcher).await;
        fs::remove_file(late.join("release.pub")).unwrap();
        told(&mut watcher).await;
    }

    #[tokio::test]
    async fn a_hangup_reloads() {
        let _alone = SIGNALS.lock().await;
        let mut watcher = Watcher::new(Vec::new()).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
        let trigger = tokio::time::timeout(Duration::from_secs(20), watcher.changed()).await.unwrap();
        assert_eq!(trigger, Trigger::Hangup);
    }
}
