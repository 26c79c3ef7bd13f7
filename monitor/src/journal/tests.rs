//! Behaviour of the journal as a whole: restarts, crashes, failing disks, eviction, tampering.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;
use tlog_tiles::tlog::{self, Hash};

use super::{
    Against, Exported, Faults, Journal, JournalError, Op, Options, Reader, Recovered, Report, evidence,
    verify,
};
use crate::model::{Draft, GapBody, Record, RecordBody, Severity};

fn draft(text: &str) -> Draft {
    Draft::now(Severity::Info, RecordBody::Breakglass { statement: text.to_owned() })
}

fn violation(text: &str) -> Draft {
    let body = serde_json::json!({
        "kind": "violation.opened", "violation": "content", "operation": "write", "sensor": "lsm", "count": 1,
        "object": {"id": "x", "path": text, "class": "sealed", "baseline": null, "revision": null},
        "first_time": "2026-01-01T00:00:00Z", "last_time": "2026-01-01T00:00:00Z", "fingerprint": "f",
        "action": "observed", "expected": {}, "actual": {}, "actor": null, "target": null, "attack": [],
    });
    Draft::now(Severity::High, serde_json::from_value(body).unwrap())
}

fn records(dir: &Path) -> Vec<Record> {
    let stored = Reader::open(dir).unwrap().read_from(1, usize::MAX, usize::MAX).unwrap();
    stored.iter().map(|r| serde_json::from_slice(&r.payload).unwrap()).collect()
}

fn small() -> Options {
    Options { max_bytes: 256 << 10, checkpoint_records: 20, ..Options::new("n") }
}

async fn fill(journal: &Journal, from: u32, to: u32) {
    for i in from..to {
        let text = format!("record {i} {}", "x".repeat(200));
        let one = if i % 10 == 0 { violation(&text) } else { draft(&text) };
        journal.handle().append(vec![one]).await.unwrap();
    }
}

fn check(dir: &Path) -> Report {
    verify(dir, Against::default()).unwrap()
}

fn refuse(dir: &Path) -> Result<Recovered, JournalError> {
    Journal::open(dir, Options { set_aside_tampered: false, ..small() }).map(|(_, recovered)| recovered)
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    files(dir).into_iter().filter(|p| p.to_string_lossy().contains("/log-")).collect()
}

/// Cuts a segment into its head and its frames.
fn frames(bytes: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut at = super::frame::SEGMENT_HEAD;
    let mut out = Vec::new();
    while at < bytes.len() {
        let size = 16 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        out.push(bytes[at..at + size].to_vec());
        at += size;
    }
    (bytes[..super::frame::SEGMENT_HEAD].to_vec(), out)
}

#[tokio::test]
async fn records_come_back_in_order_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    let (journal, recovered) = Journal::open(&dir, Options::new("n")).unwrap();
    assert!(recovered.fresh && recovered.clean_stop);
    assert!(matches!(Journal::open(&dir, Options::new("n")), Err(JournalError::Locked(_))));
    let handle = journal.handle();
    let one = handle.append(vec![draft("a"), draft("b")]).await.unwrap();
    assert_eq!(*handle.durable().borrow(), 2);
    journal.shutdown().await.unwrap();
    assert!(matches!(handle.append(vec![draft("x")]).await, Err(JournalError::Closed)));

    let (journal, recovered) = Journal::open(&dir, Options::new("n")).unwrap();
    assert_eq!((recovered.next_seq, recovered.clean_stop, recovered.repaired), (4, true, None));
    let two = journal.handle().append(vec![draft("c")]).await.unwrap();
    let all = records(&dir);
    assert_eq!(all.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(all[..2], one);
    assert_eq!(all[2].body.kind(), "checkpoint");
    assert_eq!(all[3..], two);
    journal.shutdown().await.unwrap();
    assert!(check(&dir).sound);
}

#[tokio::test]
async fn modes_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    let (journal, _) = Journal::open(&dir, small()).unwrap();
    fill(&journal, 0, 100).await;
    journal.shutdown().await.unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    for file in files(&dir) {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_to_the_last_whole_record_at_any_offset() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 5).await;
    let before = copy(dir.path());
    fill(&journal, 5, 6).await;
    drop(journal);
    let whole = fs::read(&segments(dir.path())[0]).unwrap();
    let kept = fs::read(&segments(before.path())[0]).unwrap().len();
    for len in kept..whole.len() {
        let torn = copy(before.path());
        fs::write(&segments(torn.path())[0], &whole[..len]).unwrap();
        let report = check(torn.path());
        assert!(report.sound, "{report:?}");
        assert_eq!(report.records, 5);
        let recovered = refuse(torn.path()).unwrap();
        assert_eq!((recovered.next_seq, recovered.torn_bytes), (6, (len - kept) as u64));
        assert_eq!(recovered.repaired.is_some(), len > kept);
        assert!(!recovered.clean_stop);
        // The writer signs what the crash left unsigned.
        assert_eq!(records(torn.path())[..5], records(before.path()));
    }
    // Blocks of one write reach the disk in any order: zeros, then the right end.
    let torn = copy(before.path());
    let mut bytes = whole.clone();
    bytes[kept..kept + 20].fill(0);
    fs::write(&segments(torn.path())[0], bytes).unwrap();
    assert!(check(torn.path()).sound);
    assert_eq!(refuse(torn.path()).unwrap().next_seq, 6);
}

#[tokio::test]
async fn a_cut_that_the_tree_knows_of_is_repaired_and_counted_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 5).await;
    journal.handle().checkpoint().await.unwrap();
    fill(&journal, 6, 9).await;
    drop(journal);
    let path = &segments(dir.path())[0];
    let (head, all) = frames(&fs::read(path).unwrap());
    assert_eq!(all.len(), 9);

    let cut = copy(dir.path());
    let mut bytes = [&head[..], &all.concat()].concat();
    bytes.truncate(bytes.len() - 5);
    fs::write(&segments(cut.path())[0], bytes).unwrap();
    assert_eq!(
        check(cut.path()).findings,
        ["log-00000000000000000001.seg: ends inside record 9", "records 9 to 9: cut off, the tree has them"]
    );
    let recovered = refuse(cut.path()).unwrap();
    assert_eq!((recovered.next_seq, recovered.lost_records), (9, 1));
    assert!(recovered.repaired.is_some());
    assert!(check(cut.path()).sound);

    let cut = copy(dir.path());
    fs::write(&segments(cut.path())[0], [&head[..], &all[..4].concat()].concat()).unwrap();
    assert!(!check(cut.path()).sound);
    assert!(matches!(refuse(cut.path()), Err(JournalError::Tampered(_))));
    let (journal, recovered) = Journal::open(cut.path(), small()).unwrap();
    let (what, aside) = recovered.tampered.unwrap();
    assert_eq!(what, "records 5 to 5 were cut off: checkpoint covers them");
    assert!(aside.join("meta.json").exists());
    assert_eq!((recovered.next_seq, recovered.clean_stop), (1, false));
    journal.shutdown().await.unwrap();
    fs::remove_dir_all(aside).unwrap();
}

#[tokio::test]
async fn any_flip_swap_or_removal_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) =
        Journal::open(dir.path(), Options { max_bytes: 128 << 10, checkpoint_records: 1000, ..small() })
            .unwrap();
    fill(&journal, 0, 500).await;
    journal.shutdown().await.unwrap();
    let report = check(dir.path());
    assert!(report.sound && report.evicted.is_some() && report.kept > 0, "{report:?}");
    assert_eq!(report.signed + 1, report.records);
    let names: Vec<_> = files(dir.path()).into_iter().filter(|p| !p.ends_with("lock")).collect();
    let contents: BTreeMap<_, _> = names.iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect();

    let mut runner = TestRunner::deterministic();
    let place = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_u8..8);
    for _ in 0..40 {
        let (file, at, bit) = place.new_tree(&mut runner).unwrap().current();
        let path = &names[file.index(names.len())];
        let mut bad = contents[path].clone();
        let at = at.index(bad.len());
        bad[at] ^= 1 << bit;
        fs::write(path, bad).unwrap();
        assert!(!check(dir.path()).sound, "{} byte {at} bit {bit}", path.display());
        fs::write(path, &contents[path]).unwrap();
    }
    for path in segments(dir.path()) {
        let (head, all) = frames(&contents[&path]);
        for act in 0..4 {
            let i = runner.rng().random_range(0..all.len() - 1);
            let mut bad = all.clone();
            match act {
                0 => bad.swap(i, i + 1),
                1 => drop(bad.remove(i)),
                2 => bad.insert(i, all[i].clone()),
                _ => {
                    // As one would who knows the format: same length, right CRC, other content.
                    let payload = String::from_utf8(all[i][16..].to_vec()).unwrap().replace("\"n\"", "\"m\"");
                    let seq = u64::from_le_bytes(all[i][8..16].try_into().unwrap());
                    bad[i].clear();
                    super::frame::encode(&mut bad[i], seq, payload.as_bytes()).unwrap();
                }
            }
            fs::write(&path, [&head[..], &bad.concat()].concat()).unwrap();
            assert!(!check(dir.path()).sound, "{} act {act} record {i}", path.display());
        }
        fs::write(&path, &contents[&path]).unwrap();
    }
    for path in &names {
        fs::remove_file(path).unwrap();
        // The private key need not be where a journal is checked.
        assert_eq!(check(dir.path()).sound, path.ends_with("node.key"), "{} removed", path.display());
        fs::write(path, &contents[path]).unwrap();
    }
    assert!(check(dir.path()).sound);
}

/// A journal with closed segments, kept violations, and a clean stop.
async fn journal_of_many_segments(dir: &Path) {
    let (journal, _) = Journal::open(dir, Options { max_bytes: 128 << 10, ..small() }).unwrap();
    fill(&journal, 0, 400).await;
    journal.shutdown().await.unwrap();
    let report = check(dir);
    assert!(report.sound && report.kept > 0 && segments(dir).len() > 2, "{report:?}");
}

/// A state directory with a copy of the journal.
fn copy_of_state(journal: &Path) -> TempDir {
    let state = tempfile::tempdir().unwrap();
    fs::rename(copy(journal).keep(), state.path().join("journal")).unwrap();
    state
}

/// Opens a journal as the agent does, and reads it through; tells why the one before was set aside.
async fn set_aside(state: &Path) -> String {
    let dir = state.join("journal");
    let key = fs::read(dir.join("node.key")).unwrap();
    let (journal, recovered) = Journal::open(&dir, small()).unwrap();
    let (what, aside) = recovered.tampered.unwrap();
    assert_eq!((recovered.fresh, recovered.clean_stop, recovered.next_seq), (true, false, 1), "{what}");
    assert_eq!(fs::read(aside.join("node.key")).unwrap(), key);
    assert_eq!(fs::read(dir.join("node.key")).unwrap(), key);
    journal.handle().append(vec![draft("a new one")]).await.unwrap();
    assert_eq!(records(&dir).len(), 1);
    journal.shutdown().await.unwrap();
    assert!(check(&dir).sound);
    what
}

#[tokio::test]
async fn damage_in_any_segment_sets_the_journal_aside() {
    let whole = tempfile::tempdir().unwrap();
    journal_of_many_segments(whole.path()).await;
    let all = files(whole.path()).into_iter().filter(|path| path.extension().is_some_and(|e| e == "seg"));
    for path in all {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_last = segments(whole.path()).last() == Some(&path);
        let bytes = fs::read(&path).unwrap();
        let (head, frames) = frames(&bytes);
        let frame_at = |n: usize| head.len() + frames[..n].iter().map(Vec::len).sum::<usize>();
        let (first, middle, last) = (0, frame_at(frames.len() / 2), frame_at(frames.len() - 1));
        for at in [first, head.len() - 1, head.len() + 20, middle + 4, middle + 9, last + 20, bytes.len() - 1]
        {
            let state = copy_of_state(whole.path());
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            fs::write(state.path().join("journal").join(&name), bad).unwrap();
            let what = set_aside(state.path()).await;
            // Of the last one it is said first that it does not reach as far as the checkpoint.
            let cut = what.starts_with("records ") && what.ends_with(" were cut off: checkpoint covers them");
            assert!(what.starts_with(&format!("{name}: ")) || (is_last && cut), "{name} byte {at}: {what}");
        }
        // Another content of the same length under a right CRC.
        let state = copy_of_state(whole.path());
        let seq = u64::from_le_bytes(frames[0][8..16].try_into().unwrap());
        let payload = String::from_utf8(frames[0][16..].to_vec()).unwrap().replace("\"n\"", "\"m\"");
        let mut bad = head.clone();
        super::frame::encode(&mut bad, seq, payload.as_bytes()).unwrap();
        bad.extend(frames[1..].concat());
        fs::write(state.path().join("journal").join(&name), bad).unwrap();
        assert_eq!(set_aside(state.path()).await, format!("record {seq}: is not the one in the tree"));
    }
}

#[tokio::test]
async fn a_damaged_file_beside_the_segments_sets_the_journal_aside() {
    let whole = tempfile::tempdir().unwrap();
    journal_of_many_segments(whole.path()).await;
    for (name, at) in [("meta.json", 4), ("node.pub", 30), ("checkpoint", 30), ("tree", 40)] {
        let state = copy_of_state(whole.path());
        let dir = state.path().join("journal");
        // In the tree: the leaf of a record that is still there.
        let kept = records(&dir)[0].seq - 1;
        let at = if name == "tree" { tlog::stored_hash_index(0, kept) as usize * 32 + 1 } else { at };
        let mut bad = fs::read(dir.join(name)).unwrap();
        bad[at] ^= 1;
        fs::write(dir.join(name), bad).unwrap();
        let what = set_aside(state.path()).await;
        let expected = if name == "tree" { "record " } else { name };
        assert!(what.starts_with(expected), "{name}: {what}");
    }
}

#[tokio::test]
async fn a_number_far_away_is_one_finding() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 2).await;
    journal.shutdown().await.unwrap();
    let name = "log-01099511627776000000.seg";
    fs::copy(&segments(dir.path())[0], dir.path().join(name)).unwrap();
    let report = check(dir.path());
    assert_eq!(
        report.findings,
        [
            format!("{name}: its head belongs to another segment"),
            "record 1 stands where 4 should be".to_owned(),
            "record 2 stands where 4 should be".to_owned(),
            "record 3 stands where 4 should be".to_owned(),
            "records 4 to 1099511627775999999: missing, and nothing declares it".to_owned(),
        ]
    );
    assert_eq!((report.sound, report.records, report.more_findings), (false, 3, 0));
}

#[test]
fn what_is_no_directory_is_said_to_be_none() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("journal");
    fs::write(&dir, "x").unwrap();
    assert_eq!(
        Journal::open(&dir, small()).unwrap_err().to_string(),
        format!("journal: {}: not a directory, expected one", dir.display())
    );
}

/// Puts something that is no regular file under a name.
fn odd(path: &Path, what: &str) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    drop(fs::remove_file(path));
    match what {
        "FIFO" => mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "link" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        _ => fs::create_dir(path).unwrap(),
    }
}

#[tokio::test]
async fn what_is_no_file_is_tampering_and_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    let (journal, _) = Journal::open(&dir, small()).unwrap();
    fill(&journal, 0, 60).await;
    journal.shutdown().await.unwrap();
    let first = segments(&dir)[0].file_name().unwrap().to_string_lossy().into_owned();
    for name in ["meta.json", "node.key", "node.pub", "checkpoint", "tree", "lock", &first] {
        for what in ["FIFO", "socket", "link", "directory"] {
            let copy = copy(&dir);
            odd(&copy.path().join(name), what);
            let finding = format!("{name}: a {what}, expected a regular file");
            let report = check(copy.path());
            assert!(!report.sound && report.findings.contains(&finding), "{finding}: {report:?}");
            assert_eq!(
                refuse(copy.path()).unwrap_err().to_string(),
                format!("journal was tampered with: {finding}")
            );
            // Whoever reads it meanwhile is refused too, or does not need the file.
            if let Ok(mut reader) = Reader::open(copy.path()) {
                drop((reader.read_from(1, 9, 1 << 20), reader.inclusion_proof(1), reader.last_seq()));
            }
            drop(evidence::gather(copy.path(), "v", &[1]));
            let state = tempfile::tempdir().unwrap();
            let moved = state.path().join("journal");
            fs::rename(copy.path(), &moved).unwrap();
            fs::create_dir(copy.path()).unwrap();
            let (journal, recovered) = Journal::open(&moved, small()).unwrap();
            assert_eq!(recovered.tampered.unwrap().0, finding);
            journal.shutdown().await.unwrap();
            assert!(check(&moved).sound);
        }
    }
    let copy = copy(&dir);
    odd(&copy.path().join("keys"), "FIFO");
    let finding = "keys: expected a directory".to_owned();
    assert!(check(copy.path()).findings.contains(&finding));
    assert_eq!(refuse(copy.path()).unwrap_err().to_string(), format!("journal was tampered with: {finding}"));
}

#[tokio::test]
async fn a_lock_that_is_not_empty_is_tampering_to_the_agent_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    Journal::open(&dir, small()).unwrap().0.shutdown().await.unwrap();
    let finding = "lock: expected an empty file".to_owned();
    for text in ["1234", &"x".repeat(8192)] {
        fs::write(dir.join("lock"), text).unwrap();
        assert_eq!(check(&dir).findings, std::slice::from_ref(&finding));
        assert_eq!(refuse(&dir).unwrap_err().to_string(), format!("journal was tampered with: {finding}"));
        let (journal, recovered) = Journal::open(&dir, small()).unwrap();
        assert_eq!(recovered.tampered.unwrap().0, finding);
        // Whoever has it open is told of before what is written in it.
        fs::write(dir.join("lock"), text).unwrap();
        assert!(matches!(Journal::open(&dir, small()), Err(JournalError::Locked(_))));
        fs::write(dir.join("lock"), "").unwrap();
        journal.shutdown().await.unwrap();
        assert!(check(&dir).sound);
    }
}

#[tokio::test]
async fn a_checkpoint_kept_elsewhere_finds_a_cut_tail_and_a_fork() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 5).await;
    journal.handle().checkpoint().await.unwrap();
    let early = copy(dir.path());
    fill(&journal, 5, 12).await;
    journal.shutdown().await.unwrap();
    let note = fs::read(dir.path().join("checkpoint")).unwrap();
    let key = fs::read_to_string(dir.path().join("node.pub")).unwrap();
    let against = Against { checkpoint: Some(&note), key: Some(&key) };
    assert!(verify(dir.path(), against).unwrap().sound);
    // The log as it was before: whole and sound by itself.
    assert!(check(early.path()).sound);
    assert_eq!(
        verify(early.path(), against).unwrap().findings,
        ["records 7 to 13: cut off, the given checkpoint covers them"]
    );
    let (fork, _) = Journal::open(early.path(), small()).unwrap();
    fill(&fork, 5, 20).await;
    fork.shutdown().await.unwrap();
    assert!(check(early.path()).sound);
    assert_eq!(
        verify(early.path(), against).unwrap().findings,
        ["the given checkpoint does not have the root of this log at 13 records"]
    );
    let other = super::keys::NodeKey::generate(&check(dir.path()).origin).vkey();
    let report = verify(dir.path(), Against { checkpoint: None, key: Some(&other) }).unwrap();
    assert_eq!(report.findings[0], "the given key is not the one this journal was signed with");
}

#[tokio::test]
async fn proofs_verify() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 37).await;
    journal.handle().checkpoint().await.unwrap();
    let mut reader = Reader::open(dir.path()).unwrap();
    let head = reader.tree_head().unwrap();
    let lines: Vec<_> = head.note.lines().collect();
    let root = Hash::parse_hash(lines[2]).unwrap();
    let hashes = |texts: &[String]| texts.iter().map(|t| Hash::parse_hash(t).unwrap()).collect::<Vec<_>>();
    for seq in [1, 2, 20, 37] {
        let record = reader.read_from(seq, 1, 1).unwrap().remove(0);
        let proof = reader.inclusion_proof(seq).unwrap();
        let leaf = tlog::record_hash(&record.payload);
        assert_eq!((proof.leaf, &proof.checkpoint), (leaf.to_string(), &head.note));
        tlog::check_record(&hashes(&proof.hashes), head.tree_size, root, seq - 1, leaf).unwrap();
    }
    assert!(reader.inclusion_proof(head.tree_size + 1).is_err());
    assert!(reader.inclusion_proof(0).is_err());
    let proof = reader.consistency_proof(9, head.tree_size).unwrap();
    let old = super::tree::Tree::new(fs::File::open(dir.path().join("tree")).unwrap(), 38).root(9).unwrap();
    tlog::check_tree(&hashes(&proof), head.tree_size, root, 9, old).unwrap();
    assert!(reader.consistency_proof(9, 1000).is_err());
    journal.shutdown().await.unwrap();
}

#[tokio::test]
async fn eviction_keeps_violations_nobody_received_and_names_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 1000).await;
    let size: u64 = files(dir.path()).iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    assert!(size < (256 << 10) + (40 << 10), "{size}");
    let all = records(dir.path());
    let opened = all.iter().filter(|r| r.body.kind() == "violation.opened").count();
    assert_eq!(opened, 100);
    let gaps: Vec<&GapBody> = all
        .iter()
        .filter_map(|r| match &r.body {
            RecordBody::Gap(gap) => Some(gap),
            _ => None,
        })
        .collect();
    assert!(gaps.iter().all(|g| g.at == "journal" && g.lost > 0 && !g.reconciled));
    let first = gaps[0];
    assert!(first.from_seq.unwrap() > 1 && first.to_seq.unwrap() > first.lost);

    // Delivered now: the kept violations go, and so does all the rest, without a loss.
    journal.handle().set_exported(Exported::ALL);
    fill(&journal, 1000, 2000).await;
    journal.shutdown().await.unwrap();
    let report = check(dir.path());
    assert!(report.sound && report.kept == 0, "{report:?}");
    assert!(!files(dir.path()).iter().any(|p| p.to_string_lossy().contains("kept")));
    let last = records(dir.path()).into_iter().rev().find_map(|r| match r.body {
        RecordBody::Gap(gap) => Some(gap),
        _ => None,
    });
    assert_eq!(last.map(|g| (g.lost, g.reconciled)), Some((0, true)));
    assert_eq!(refuse(dir.path()).unwrap().next_seq, report.records + 1);
}

#[tokio::test]
async fn one_append_fills_many_segments_and_of_it_the_oldest_is_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { checkpoint_records: 1000, ..small() };
    let (max, segment) = (options.max_bytes, options.segment_bytes());
    let (journal, _) = Journal::open(dir.path(), options).unwrap();
    let drafts: Vec<_> = (0..900).map(|i| violation(&format!("violation {i} {}", "x".repeat(200)))).collect();
    let appended = journal.handle().append(drafts).await.unwrap();
    assert!(*journal.handle().durable().borrow() >= appended.last().unwrap().seq);
    journal.shutdown().await.unwrap();
    let report = check(dir.path());
    assert!(report.sound, "{report:?}");

    let all = records(dir.path());
    let gaps: Vec<_> = all
        .iter()
        .filter_map(|r| match &r.body {
            RecordBody::Gap(gap) => Some((gap, r.severity)),
            _ => None,
        })
        .collect();
    let [(gap, severity)] = gaps[..] else { panic!("{gaps:?}") };
    let evicted = report.evicted.unwrap();
    assert_eq!(
        (gap.reason.clone(), gap.reconciled, severity),
        (
            format!(
                "evicted before delivery: the journal reached its bound of {max} bytes; {} violations are kept",
                report.kept
            ),
            false,
            Severity::High
        )
    );
    // What is not lost is there: the evicted violations that are kept are the newest of those evicted.
    assert_eq!(gap.lost, report.records - all.len() as u64);
    assert_eq!(report.kept + gap.lost, evicted.to);
    let there: Vec<_> = all.iter().filter(|r| r.body.kind() == "violation.opened").cloned().collect();
    let kept: Vec<_> = there.iter().filter(|r| r.seq <= evicted.to).collect();
    assert_eq!(kept.len() as u64, report.kept);
    assert_eq!(there, appended[appended.len() - there.len()..]);

    let len = |path: &PathBuf| fs::metadata(path).unwrap().len();
    let kept: u64 =
        files(dir.path()).iter().filter(|p| p.to_string_lossy().contains("/kept-")).map(len).sum();
    assert!(kept <= max / 4 && kept > max / 4 - 2048, "{kept}");
    let total: u64 = files(dir.path()).iter().map(len).sum::<u64>() - kept;
    assert!(total <= max / 8 * 7 + 4096 && total > max / 8 * 7 - 2 * segment, "{total}");
    let longest = segments(dir.path()).iter().map(len).max();
    assert!(longest.unwrap() < segment + 4096, "{longest:?}");
    assert_eq!(refuse(dir.path()).unwrap().next_seq, report.records + 1);
}

#[tokio::test]
async fn a_segment_whose_head_is_damaged_is_evicted_too_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 100).await;
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::write(&path, bytes).unwrap();
    fill(&journal, 100, 600).await;
    assert_eq!(*journal.handle().health().borrow(), super::JournalHealth::default());
    journal.shutdown().await.unwrap();
    let gap = records(dir.path()).into_iter().find_map(|r| match r.body {
        RecordBody::Gap(gap) => Some(gap),
        _ => None,
    });
    let (reason, from) = gap.map(|gap| (gap.reason, gap.from_seq)).unwrap();
    assert!(reason.ends_with("; log-00000000000000000001.seg: its head is damaged"), "{reason}");
    assert_eq!(from, Some(1));
    assert!(!path.exists());
}

#[tokio::test]
async fn an_append_refused_behind_the_end_of_a_segment_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    let mut drafts: Vec<_> = (0..200).map(|_| draft(&"x".repeat(200))).collect();
    drafts.push(draft(&"x".repeat(super::MAX_PAYLOAD)));
    let error = journal.handle().append(drafts).await.unwrap_err();
    assert!(matches!(error, JournalError::TooLarge { kind: "breakglass", .. }));
    assert_eq!(journal.handle().append(vec![draft("b")]).await.unwrap()[0].seq, 1);
    journal.shutdown().await.unwrap();
    let report = check(dir.path());
    assert_eq!((report.sound, report.records, segments(dir.path()).len()), (true, 2, 1), "{report:?}");
}

/// Fails an operation as long as it is set, after so many bytes of it.
#[derive(Debug, Default)]
struct Failing(Mutex<Option<(Op, Option<usize>)>>);

impl Faults for Failing {
    fn before(&self, op: Op) -> Result<(), (io::Error, Option<usize>)> {
        match *self.0.lock().unwrap() {
            Some((fails, part)) if fails == op => Err((io::Error::from_raw_os_error(libc::ENOSPC), part)),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn a_failing_disk_holds_records_back_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Failing::default());
    let (journal, _) =
        Journal::open(dir.path(), Options { faults: Some(faults.clone()), ..small() }).unwrap();
    let handle = journal.handle();
    for (op, part) in [
        (Op::WriteLog, None),
        (Op::WriteLog, Some(7)),
        (Op::SyncLog, None),
        (Op::WriteTree, None),
        (Op::Create, None),
    ] {
        *faults.0.lock().unwrap() = Some((op, part));
        let holds_back = matches!(op, Op::WriteLog | Op::SyncLog);
        if !holds_back {
            fill(&journal, 0, 50).await;
        }
        let mut health = handle.health();
        let failing = async {
            let seen = health.wait_for(|h| h.failing_since.is_some()).await.unwrap().error.clone().unwrap();
            *faults.0.lock().unwrap() = None;
            seen
        };
        let (error, ()) = tokio::join!(failing, fill(&journal, 0, if holds_back { 50 } else { 0 }));
        assert!(error.contains("No space left on device"), "{error}");
        fill(&journal, 0, 1).await;
        handle.checkpoint().await.unwrap();
        assert_eq!(*handle.health().borrow(), super::JournalHealth::default());
    }
    drop(handle);
    journal.shutdown().await.unwrap();
    let report = check(dir.path());
    assert!(report.sound, "{report:?}");
    let all = records(dir.path());
    assert_eq!(all.iter().filter(|r| r.body.kind() != "checkpoint").count(), 255);
    assert!(all.iter().enumerate().all(|(i, r)| r.seq == i as u64 + 1));
}

#[tokio::test]
async fn a_record_too_large_is_refused_and_leaves_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    let huge = draft(&"x".repeat(super::MAX_PAYLOAD));
    let error = journal.handle().append(vec![draft("a"), huge]).await.unwrap_err();
    assert!(matches!(error, JournalError::TooLarge { kind: "breakglass", .. }));
    assert_eq!(journal.handle().append(vec![draft("b")]).await.unwrap()[0].seq, 1);
    journal.shutdown().await.unwrap();
    assert!(check(dir.path()).sound);
}

#[tokio::test]
async fn a_rotated_key_signs_on_and_both_are_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 30).await;
    let old = fs::read_to_string(dir.path().join("node.pub")).unwrap();
    journal.shutdown().await.unwrap();
    let (journal, recovered) = Journal::open(dir.path(), Options { rotate_key: true, ..small() }).unwrap();
    assert!(recovered.clean_stop);
    fill(&journal, 30, 60).await;
    journal.shutdown().await.unwrap();
    let new = fs::read_to_string(dir.path().join("node.pub")).unwrap();
    assert_ne!(old, new);
    for key in [&old, &new] {
        let report = verify(dir.path(), Against { checkpoint: None, key: Some(key) }).unwrap();
        assert!(report.sound, "{report:?}");
    }
    refuse(dir.path()).unwrap();
}

#[tokio::test]
async fn a_reader_follows_the_writer_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    journal.handle().set_exported(Exported::ALL);
    let mut reader = Reader::open(dir.path()).unwrap();
    let mut next = 1;
    for round in 0..40 {
        fill(&journal, round * 10, round * 10 + 10).await;
        loop {
            let some = reader.read_from(next, 7, 1 << 20).unwrap();
            let Some(last) = some.last() else { break };
            assert!(some.iter().enumerate().all(|(i, r)| r.seq == next + i as u64));
            next = last.seq + 1;
        }
        assert_eq!(next - 1, *journal.handle().durable().borrow());
        assert_eq!(Reader::open(dir.path()).unwrap().last_seq().unwrap(), next - 1);
    }
    let all = records(dir.path());
    assert!(all.len() > 400 && segments(dir.path()).len() > 3);
    let middle = &all[250];
    assert_eq!(reader.seq_since(middle.time).unwrap(), middle.seq);
    journal.shutdown().await.unwrap();
}

#[test]
fn no_journal_is_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(verify(dir.path(), Against::default()), Err(JournalError::Missing(_))));
    assert!(matches!(Reader::open(dir.path()), Err(JournalError::Missing(_))));
}

#[tokio::test]
async fn evidence_is_checked_offline_and_any_change_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 30).await;
    journal.shutdown().await.unwrap();
    // Under a second key, so that the first one is only known by its rotation.
    let first_key = fs::read_to_string(dir.path().join("node.pub")).unwrap();
    let (journal, _) = Journal::open(dir.path(), Options { rotate_key: true, ..small() }).unwrap();
    fill(&journal, 30, 60).await;
    journal.handle().checkpoint().await.unwrap();
    let opened = records(dir.path()).into_iter().find(|r| r.body.kind() == "violation.opened").unwrap();
    let made = evidence::gather(dir.path(), &opened.uid, &[opened.seq]).unwrap().unwrap();
    let pub_key = fs::read_to_string(dir.path().join("node.pub")).unwrap();
    let checked = evidence::check(&made, Some(&pub_key));
    assert!(checked.sound, "{checked:?}");
    assert_eq!(checked.records, std::slice::from_ref(&opened));
    assert!(evidence::check(&made, None).notes[0].contains("the bundle's own"));
    let text = serde_json::to_string(&made).unwrap();
    assert_eq!(serde_json::from_str::<evidence::Evidence>(&text).unwrap(), made);

    let sound = |change: &dyn Fn(&mut evidence::Evidence)| {
        let mut bad = made.clone();
        change(&mut bad);
        evidence::check(&bad, Some(&pub_key)).sound
    };
    assert!(sound(&|_| {}));
    assert!(!sound(&|bad| bad.records[0].payload = bad.records[0].payload.replace("\"n\"", "\"m\"")));
    assert!(!sound(&|bad| bad.records[0].seq += 1));
    assert!(!sound(&|bad| drop(bad.records[0].hashes.pop())));
    assert!(!sound(&|bad| bad.records.clear()));
    assert!(!sound(&|bad| bad.records.push(bad.records[0].clone())));
    assert!(!sound(&|bad| bad.violation = "01J00000000000000000000000".to_owned()));
    // The rotation is what ties it to the first key.
    assert!(evidence::check(&made, Some(&first_key)).sound);
    let untied = evidence::Evidence { rotations: Vec::new(), ..made.clone() };
    assert!(!evidence::check(&untied, Some(&first_key)).sound);
    assert!(!sound(&|bad| bad.rotations[0] = bad.rotations[0].replacen(char::is_numeric, "x", 1)));
    assert!(!sound(&|bad| bad.checkpoint = bad.checkpoint.replacen(char::is_numeric, "9", 1)));
    assert!(!sound(&|bad| bad.format = "meshseal-evidence/2".to_owned()));
    let other = super::keys::NodeKey::generate(&made.origin).vkey();
    assert_eq!(
        evidence::check(&made, Some(&other)).findings,
        ["the given key is not the one this was signed with"]
    );
    // What no checkpoint covers yet cannot be proven.
    fill(&journal, 60, 61).await;
    let last = records(dir.path()).last().unwrap().seq;
    assert_eq!(evidence::gather(dir.path(), "x", &[last]).unwrap(), None);
    journal.shutdown().await.unwrap();
}

/// RFC 9162 §2.1.3.2, by the letter and with none of the code that made the proof.
fn is_included(index: u64, size: u64, leaf: [u8; 32], path: &[[u8; 32]], root: [u8; 32]) -> bool {
    use sha2::{Digest as _, Sha256};

    let node = |left: &[u8; 32], right: &[u8; 32]| -> [u8; 32] {
        Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
    };
    let (mut fnode, mut snode, mut hash) = (index, size - 1, leaf);
    for sibling in path {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            hash = node(sibling, &hash);
            while fnode & 1 == 0 && fnode != 0 {
                fnode >>= 1;
                snode >>= 1;
            }
        } else {
            hash = node(&hash, sibling);
        }
        fnode >>= 1;
        snode >>= 1;
    }
    snode == 0 && hash == root
}

#[tokio::test]
async fn proofs_hold_by_another_verifier() {
    use base64::Engine as _;
    use sha2::{Digest as _, Sha256};

    let decoded = |text: &str| -> [u8; 32] {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        bytes.try_into().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small()).unwrap();
    fill(&journal, 0, 37).await;
    journal.handle().checkpoint().await.unwrap();
    let mut reader = Reader::open(dir.path()).unwrap();
    let mut proven = 0;
    for stored in reader.read_from(1, 1000, usize::MAX).unwrap() {
        let Ok(proof) = reader.inclusion_proof(stored.seq) else { continue };
        let root = decoded(proof.checkpoint.lines().nth(2).unwrap());
        let leaf: [u8; 32] = Sha256::new().chain_update([0]).chain_update(&stored.payload).finalize().into();
        let path: Vec<[u8; 32]> = proof.hashes.iter().map(|hash| decoded(hash)).collect();
        assert!(is_included(stored.seq - 1, proof.tree_size, leaf, &path, root), "{}", stored.seq);
        assert!(!is_included(stored.seq, proof.tree_size, leaf, &path, root), "{}", stored.seq);
        let mut other = leaf;
        other[0] ^= 1;
        assert!(!is_included(stored.seq - 1, proof.tree_size, other, &path, root), "{}", stored.seq);
        proven += 1;
    }
    assert!(proven >= 37, "{proven}");
    journal.shutdown().await.unwrap();
}
