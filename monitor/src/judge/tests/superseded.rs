//! Objects that are still as the revision before sealed them, while its transition lasts.

use super::{Bench, Root, bench, sealed};
use crate::model::{HostPath, Operation};
use crate::status::Posture;

impl Bench {
    /// A baseline in which the lone file holds `after`, where the one before had what it holds now.
    async fn change_lone(&self, after: &str, kept: bool) {
        let root = Root::open(self.dir.path()).unwrap();
        let paths = ["/d", "/d/a", "/x/lone"].map(HostPath::from);
        let all = || {
            let mut objects: Vec<_> = paths.iter().map(|path| sealed(&root, path)).collect();
            objects.sort_by(|a, b| a.path.cmp(&b.path));
            objects
        };
        let before = all();
        let now = std::fs::read(self.path("/x/lone")).unwrap();
        std::fs::write(self.path("/x/lone"), after).unwrap();
        let objects = all();
        std::fs::write(self.path("/x/lone"), now).unwrap();
        self.offer(objects, 2, kept.then_some(before)).await;
    }

    /// Waits until one object is superseded; the answer is the node's posture.
    async fn superseded(&mut self) -> Posture {
        loop {
            let status = self.status().await;
            if status.objects.superseded == 1 {
                return status.posture;
            }
            self.drafts.recv().await.unwrap();
        }
    }
}

#[tokio::test]
async fn as_the_revision_before_it_is_superseded_and_as_neither_it_is_violated() {
    let mut bench = bench().await;
    bench.change_lone("two", true).await;
    assert_eq!(bench.superseded().await, Posture::Intact);
    std::fs::write(bench.path("/x/lone"), "neither").unwrap();
    bench.see("dd", Operation::Write, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "opened Content /x/lone Write dd");
}

#[tokio::test]
async fn it_does_not_go_back_though_the_baselines_are_told_again() {
    let mut bench = bench().await;
    bench.change_lone("two", true).await;
    bench.superseded().await;
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("dd", Operation::Write, "/x/lone", |_| {}).await;
    // Nobody may write it in place, the right bytes neither.
    assert_eq!(bench.next().await, "opened Reverted /x/lone Write dd");
    bench.change_lone("two", true).await;
    std::fs::write(bench.path("/x/lone"), "one").unwrap();
    bench.see("dd", Operation::Write, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "opened Content /x/lone Write dd");
}

#[tokio::test]
async fn without_the_revision_before_it_is_violated() {
    let mut bench = bench().await;
    bench.change_lone("two", false).await;
    assert_eq!(bench.next().await, "opened Content /x/lone Scrub ?");
}
