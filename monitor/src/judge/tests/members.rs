//! Files of one volume, each with acts of its own.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use super::{Bench, actor};
use crate::model::{Actor, InodeKey, Operation};

const STAMP: &str = "..2026_01";

/// A volume of `a`, `b` and `sub/c`, as the kubelet lays it out.
fn volume(root: &Path) {
    let volume = root.join("pods/v");
    std::fs::create_dir_all(volume.join(STAMP).join("sub")).unwrap();
    for file in ["a", "b", "sub/c"] {
        std::fs::write(volume.join(STAMP).join(file), "one").unwrap();
    }
    symlink(STAMP, volume.join("..data")).unwrap();
    for name in ["a", "b", "sub"] {
        symlink(format!("..data/{name}"), volume.join(name)).unwrap();
    }
}

async fn bench() -> Bench {
    Bench::new(volume, &["/pods/v"]).await
}

impl Bench {
    /// Writes a member, as what stands in the publication's directory.
    async fn writes(&self, comm: &str, member: &str, bytes: &str) {
        let real = format!("/pods/v/{STAMP}/{member}");
        let file = self.path(&real);
        // Each writing has a time of its own.
        let before = std::fs::metadata(&file).unwrap().ctime_nsec();
        while std::fs::metadata(&file).unwrap().ctime_nsec() == before {
            std::fs::write(&file, bytes).unwrap();
        }
        let meta = std::fs::metadata(&file).unwrap();
        let name = file.file_name().unwrap().as_encoded_bytes().to_vec();
        let dev = crate::inventory::procs::kernel_dev(meta.dev());
        self.see(comm, Operation::Write, &real, |o| {
            (o.name, o.inode) = (Some(name), Some(InodeKey { dev, ino: meta.ino() }));
            // Each name is that of another process.
            let number = comm.bytes().map(u32::from).sum();
            o.actor = Ok(Box::new(Actor { pid: number, tgid: number, ..actor(comm) }));
        })
        .await;
    }
}

#[tokio::test]
async fn each_member_is_by_whoever_wrote_it() {
    let mut bench = bench().await;
    bench.writes("first", "a", "two").await;
    assert_eq!(bench.next().await, "opened Content /pods/v/a Write first");
    bench.writes("second", "b", "two").await;
    assert_eq!(bench.next().await, "opened Content /pods/v/b Write second");
    bench.writes("third", "sub/c", "two").await;
    assert_eq!(bench.next().await, "opened Content /pods/v/sub/c Write third");
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_wrong_with_one_member_hides_nothing_of_another() {
    let mut bench = bench().await;
    bench.writes("first", "a", "two").await;
    assert_eq!(bench.next().await, "opened Content /pods/v/a Write first");
    bench.writes("second", "sub/c", "one").await;
    assert_eq!(bench.next().await, "opened Reverted /pods/v/sub/c Write second");
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn two_that_write_one_member_are_both_named() {
    let bench = bench().await;
    bench.writes("first", "a", "two").await;
    bench.writes("second", "a", "three").await;
    assert_eq!(
        bench.verdicts().await,
        ["opened Content /pods/v/a Write first", "updated Content /pods/v/a Write second"]
    );
}
