//! Names that went and came back within one look, and names that came with their directory.

use std::path::Path;

use super::{Bench, bench, short};
use crate::model::{Observation, Operation, RenamedTo, Rung, Slot};

fn named(name: &str) -> impl FnOnce(&mut Observation) {
    move |seen| seen.name = Some(name.as_bytes().to_vec())
}

fn moved(slot: Slot, from: &str, to: &str) -> impl FnOnce(&mut Observation) {
    move |seen| {
        seen.name = Some(from.as_bytes().to_vec());
        seen.renamed_to = Some(RenamedTo::new(slot, to.as_bytes().to_vec()));
    }
}

/// `/x/lone` gets another name, loses its own, and gets it back from there.
async fn see_a_link_take_its_place(bench: &mut Bench, sensor: Rung, linked: impl AsyncFnOnce(&mut Bench)) {
    let at = |path: &str| bench.path(path);
    std::fs::hard_link(at("/x/lone"), at("/x/alias")).unwrap();
    std::fs::remove_file(at("/x/lone")).unwrap();
    std::fs::rename(at("/x/alias"), at("/x/lone")).unwrap();
    let (dir, own) = (bench.slot("/x"), bench.slot("/x/lone"));
    bench
        .see("sh", Operation::Link, "/x/lone", |seen| {
            (seen.sensor, seen.path_in_fs) = (sensor, Some("/x/alias".into()));
        })
        .await;
    linked(bench).await;
    bench
        .see("sh", Operation::Unlink, "/x", |seen| {
            named("lone")(seen);
            (seen.sensor, seen.child_slot) = (sensor, Some(own));
        })
        .await;
    bench
        .see("sh", Operation::Rename, "/x", |seen| {
            moved(dir, "alias", "lone")(seen);
            (seen.sensor, seen.child_slot) = (sensor, Some(own));
        })
        .await;
}

#[tokio::test]
async fn a_name_that_a_link_kept_was_away_and_is_back() {
    let mut bench = bench().await;
    see_a_link_take_its_place(&mut bench, Rung::Lsm, async |_| {}).await;
    let expected = ["opened Linked /x/lone Link sh", "opened Reverted /x/lone Unlink sh"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn a_name_that_was_back_before_it_was_told_to_be_away_was_away() {
    let mut bench = bench().await;
    see_a_link_take_its_place(&mut bench, Rung::Fanotify, async |bench| {
        assert_eq!(bench.next().await, "opened Linked /x/lone Link sh");
    })
    .await;
    assert_eq!(bench.next().await, "opened Reverted /x/lone Unlink sh");
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_came_with_a_directory_is_of_whoever_moved_that() {
    let make = |root: &Path| {
        std::fs::create_dir_all(root.join("x/d")).unwrap();
        std::fs::create_dir(root.join("x/other")).unwrap();
        std::fs::write(root.join("x/other/evil"), "").unwrap();
    };
    let bench = Bench::new(make, &["/x/d"]).await;
    std::fs::rename(bench.path("/x/other"), bench.path("/x/d")).unwrap();
    let (above, own) = (bench.slot("/x"), bench.slot("/x/d"));
    bench
        .see("mv", Operation::Rename, "/x", |seen| {
            moved(above, "other", "d")(seen);
            seen.replaced_slot = Some(own);
        })
        .await;
    let expected = ["opened Replaced /x/d Rename mv", "opened Unexpected /x/d/evil Rename mv"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn what_is_moved_into_a_directory_made_just_now_is_renamed() {
    let bench = bench().await;
    std::fs::create_dir(bench.path("/d/sub")).unwrap();
    std::fs::rename(bench.path("/d/a"), bench.path("/d/sub/a")).unwrap();
    let (dir, own) = (bench.slot("/d"), bench.slot("/d/a"));
    bench.see("sh", Operation::Mkdir, "/d", named("sub")).await;
    bench
        .see("sh", Operation::Rename, "/d", |seen| {
            moved(dir, "a", "a")(seen);
            seen.child_slot = Some(own);
            seen.path_in_fs = Some("/d/a".into());
            seen.renamed_to.as_mut().unwrap().path_in_fs = Some("/d/sub/a".into());
        })
        .await;
    let mut told = bench.verdicts().await;
    told.sort();
    assert_eq!(told, ["opened Renamed /d/a Rename sh", "opened Unexpected /d/sub Mkdir sh"]);
}

#[tokio::test]
async fn a_name_that_came_without_an_act_is_of_the_ioctl_on_its_directory_and_of_no_later_one() {
    let mut bench = bench().await;
    std::fs::create_dir(bench.path("/d/sub")).unwrap();
    bench.see("btrfs", Operation::Ioctl, "/d", |_| ()).await;
    let mut first: Vec<String> = Vec::new();
    while first.is_empty() {
        first = bench.drafts.recv().await.unwrap().iter().filter_map(|draft| short(&draft.body)).collect();
    }
    assert_eq!(first, ["opened Unexpected /d/sub Ioctl btrfs"]);
    bench.see("chattr", Operation::Ioctl, "/d", |_| ()).await;
    assert_eq!(bench.verdicts().await, ["attempt /d Ioctl chattr"]);
}
