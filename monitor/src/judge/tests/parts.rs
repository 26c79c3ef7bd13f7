//! Who had a part in it: several processes, several names, and more than can be kept apart.

use std::os::unix::fs::PermissionsExt as _;

use super::{Bench, bench};
use crate::model::{InodeKey, Observation, Operation, RenamedTo, Slot, Time};

const SECOND: i64 = 1_000_000_000;

/// As a process of its own does it, at that moment.
fn by(pid: u32, uid: u32, time: Time) -> impl FnOnce(&mut Observation) {
    move |seen| {
        seen.time = time;
        let actor = seen.actor.as_mut().unwrap();
        (actor.pid, actor.tgid, actor.uid) = (pid, pid, uid);
    }
}

/// A name in `/d` that a process makes or takes away.
async fn name(bench: &Bench, operation: Operation, name: &str, time: Time) {
    let on = |seen: &mut Observation| {
        seen.time = time;
        seen.name = Some(name.as_bytes().to_vec());
    };
    bench.see("sh", operation, "/d", on).await;
}

/// One file in `/x` that a process moves onto another name there.
async fn rename(bench: &Bench, who: &str, pid: u32, [from, to]: [&str; 2], time: Time) {
    let on = |seen: &mut Observation| {
        by(pid, 0, time)(seen);
        (seen.inode, seen.name) = (None, Some(from.as_bytes().to_vec()));
        seen.renamed_to = Some(RenamedTo::new(seen.slot, to.as_bytes().to_vec()));
    };
    bench.see(who, Operation::Rename, "/x", on).await;
}

#[tokio::test]
async fn whoever_wrote_first_is_named_and_the_others_after() {
    let bench = bench().await;
    let before = Time::now();
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("a", Operation::Truncate, "/x/lone", by(1, 0, before)).await;
    bench.see("b", Operation::Write, "/x/lone", by(2, 0, Time(before.0 + 1))).await;
    let expected = ["opened Content /x/lone Truncate a", "updated Content /x/lone Write b"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn what_came_after_the_last_change_changed_nothing() {
    let bench = bench().await;
    let before = Time::now();
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("late", Operation::Write, "/x/lone", by(2, 0, Time(before.0 + 3600 * SECOND))).await;
    bench.see("a", Operation::Truncate, "/x/lone", by(1, 0, before)).await;
    let expected = ["attempt /x/lone Write late", "opened Content /x/lone Truncate a"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn what_one_process_does_is_not_taken_apart_by_a_clock_whose_ticks_are_late() {
    let bench = bench().await;
    let before = Time::now();
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("sh", Operation::Truncate, "/x/lone", by(1, 0, before)).await;
    bench.see("sh", Operation::Write, "/x/lone", by(1, 0, Time(before.0 + 3600 * SECOND))).await;
    assert_eq!(bench.verdicts().await, ["opened Content /x/lone Write sh"]);
}

#[tokio::test]
async fn who_may_not_change_a_mode_has_not() {
    let bench = bench().await;
    let before = Time::now();
    std::fs::set_permissions(bench.path("/x/lone"), std::fs::Permissions::from_mode(0o600)).unwrap();
    bench.see("nobody", Operation::Setattr, "/x/lone", by(1, 65534, before)).await;
    bench.see("setfattr", Operation::Setxattr, "/x/lone", by(2, 0, before)).await;
    bench.see("chmod", Operation::Setattr, "/x/lone", by(3, 0, Time(before.0 + 1))).await;
    let told = bench.verdicts().await;
    let expected =
        ["opened Attributes /x/lone Setattr chmod", "updated Attributes /x/lone Setxattr setfattr"];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn what_is_moved_in_from_where_nothing_is_watched_is_unexpected() {
    let bench = bench().await;
    std::fs::write(bench.path("/d/new"), "dropped").unwrap();
    let slot = bench.slot("/d");
    bench
        .see("mv", Operation::Rename, "/d", |seen| {
            // It has its slot from the directory already, and is not that directory.
            (seen.slot, seen.child_slot) = (Slot(0), Some(slot));
            seen.inode = Some(InodeKey { dev: 1, ino: u64::MAX });
            seen.name = Some(b"old".to_vec());
            seen.renamed_to = Some(RenamedTo::new(slot, b"new".to_vec()));
        })
        .await;
    assert_eq!(bench.verdicts().await, ["opened Unexpected /d/new Rename mv"]);
}

#[tokio::test]
async fn each_of_many_names_is_told_and_what_cannot_be_kept_apart_is_a_gap() {
    const NAMES: usize = 1100;
    let bench = bench().await;
    let before = Time::now();
    // The judge is asked for nothing meanwhile: all of it waits.
    std::fs::write(bench.path("/d/n"), "").unwrap();
    std::fs::remove_file(bench.path("/d/n")).unwrap();
    for at in 0..NAMES {
        let one = format!("n{at:04}");
        name(&bench, Operation::Create, &one, before).await;
        name(&bench, Operation::Unlink, &one, before).await;
    }
    let told = bench.verdicts().await;
    let passed = told.iter().filter(|one| one.starts_with("opened Unexpected /d/n")).count();
    let lost = told.iter().filter(|one| *one == "gap judge reconciled=false").count();
    assert!(passed == NAMES || lost > 0, "{passed} of {NAMES} names, and nothing is said to be lost");
    assert!(passed >= 512, "{passed}");
}

#[tokio::test]
async fn what_is_done_to_an_inode_is_done_to_each_sealed_name_of_it() {
    let make = |root: &std::path::Path| {
        std::fs::create_dir(root.join("x")).unwrap();
        std::fs::write(root.join("x/one"), "one").unwrap();
        std::fs::hard_link(root.join("x/one"), root.join("x/two")).unwrap();
    };
    let bench = Bench::new(make, &["/x/one", "/x/two"]).await;
    std::fs::write(bench.path("/x/one"), "two").unwrap();
    bench.see("sed", Operation::Write, "/x/two", |_| {}).await;
    let mut told = bench.verdicts().await;
    told.sort();
    assert_eq!(told, ["opened Content /x/one Write sed", "opened Content /x/two Write sed"]);
}

#[tokio::test]
async fn what_is_made_anew_is_replaced_whatever_number_it_gets() {
    let bench = bench().await;
    let lone = bench.path("/x/lone");
    std::fs::remove_file(&lone).unwrap();
    std::fs::write(&lone, "two").unwrap();
    let named = |seen: &mut Observation| seen.name = Some(b"lone".to_vec());
    bench.see("sh", Operation::Unlink, "/x/lone", |_| {}).await;
    bench.see("sh", Operation::Create, "/x", named).await;
    assert_eq!(bench.verdicts().await, ["opened Replaced /x/lone Create sh"]);
}

#[tokio::test]
async fn whoever_wrote_what_another_then_replaced_is_named_too() {
    let bench = bench().await;
    let before = Time::now();
    let (lone, other) = (bench.path("/x/lone"), bench.path("/x/other"));
    std::fs::write(&lone, "two").unwrap();
    std::fs::write(&other, "three").unwrap();
    std::fs::rename(&other, &lone).unwrap();
    bench.see("a", Operation::Write, "/x/lone", by(1, 0, before)).await;
    rename(&bench, "b", 2, ["other", "lone"], Time(before.0 + 1)).await;
    let expected = ["opened Replaced /x/lone Rename b", "updated Replaced /x/lone Write a"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn whoever_wrote_what_another_then_took_away_is_named_too() {
    let bench = bench().await;
    let before = Time::now();
    std::fs::remove_file(bench.path("/x/lone")).unwrap();
    bench.see("a", Operation::Write, "/x/lone", by(1, 0, before)).await;
    bench.see("b", Operation::Unlink, "/x/lone", by(2, 0, Time(before.0 + 1))).await;
    let expected = ["opened Removed /x/lone Unlink b", "updated Removed /x/lone Write a"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn whoever_put_it_back_is_named_too() {
    let bench = bench().await;
    let before = Time::now();
    let lone = bench.path("/x/lone");
    let sealed = std::fs::read(&lone).unwrap();
    std::fs::write(&lone, "two").unwrap();
    std::fs::write(&lone, sealed).unwrap();
    bench.see("a", Operation::Write, "/x/lone", by(1, 0, before)).await;
    bench.see("b", Operation::Write, "/x/lone", by(2, 0, Time(before.0 + 1))).await;
    // Of no part: it only looked.
    bench.see("c", Operation::Open, "/x/lone", by(3, 0, Time(before.0 + 2))).await;
    let expected = ["opened Reverted /x/lone Write a", "updated Reverted /x/lone Write b"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn whoever_moves_away_and_back_what_another_writes_is_told_of_that() {
    let bench = bench().await;
    let before = Time::now();
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("a", Operation::Write, "/x/lone", by(1, 0, before)).await;
    rename(&bench, "b", 2, ["lone", "away"], Time(before.0 + 1)).await;
    rename(&bench, "c", 3, ["away", "lone"], Time(before.0 + 2)).await;
    let expected = [
        "opened Content /x/lone Write a",
        "opened Reverted /x/lone Rename b",
        "updated Reverted /x/lone Rename c",
    ];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn what_was_replaced_by_its_like_is_not_said_to_be_restored() {
    let mut bench = bench().await;
    let (lone, other) = (bench.path("/x/lone"), bench.path("/x/other"));
    std::fs::copy(&lone, &other).unwrap();
    std::fs::rename(&other, &lone).unwrap();
    rename(&bench, "mv", 1, ["other", "lone"], Time::now()).await;
    assert_eq!(bench.next().await, "opened Replaced /x/lone Rename mv");
    // It is looked at once more, for whatever reason.
    bench.see("cat", Operation::Open, "/x/lone", |_| {}).await;
    let told = bench.verdicts().await;
    assert_eq!(told, ["attempt /x/lone Open cat", "updated Replaced /x/lone Rename mv"]);
}
