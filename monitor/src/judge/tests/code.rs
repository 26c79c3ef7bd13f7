//! What a process that runs a sealed program makes its code.

use super::{Bench, bench};
use crate::model::{HostPath, InodeKey, Operation, RecordBody, ViolationBody};

impl Bench {
    /// A process that runs `/x/lone` made code of a file.
    async fn runs(&self, operation: Operation, path: &str) {
        self.see("envoy", operation, "/x/lone", |seen| {
            let path = HostPath::from(path);
            seen.inode = Some(InodeKey { dev: 1, ino: 2 });
            seen.name = Some(path.name().to_vec());
            seen.path_in_fs = Some(path);
        })
        .await;
    }

    async fn next_violation(&mut self) -> (&'static str, ViolationBody) {
        loop {
            for draft in self.drafts.recv().await.unwrap() {
                match draft.body {
                    RecordBody::ViolationOpened(body) => return ("opened", *body),
                    RecordBody::ViolationUpdated(update) => return ("updated", update.now),
                    _ => {}
                }
            }
        }
    }
}

#[tokio::test]
async fn what_did_not_come_with_the_program_is_told_by_its_own_path_once() {
    let mut bench = bench().await;
    bench.runs(Operation::MmapCode, "/lib/libc.so").await;
    bench.runs(Operation::MmapCode, "/tmp/evil.so").await;
    let (told, body) = bench.next_violation().await;
    assert_eq!(told, "opened");
    assert_eq!(body.object.path.to_string(), "/tmp/evil.so");
    assert_eq!((body.operation, body.operations, body.count), (Operation::Mmap, vec![Operation::Mmap], 1));
    assert_eq!(body.detail.unwrap(), "by a process that runs /x/lone; it is a test");
    assert_eq!(body.object.baseline.unwrap(), "test");
    assert_eq!(body.actual.get("sha256").unwrap(), "5a");
    let (id, uid) = (body.object.id, body.fingerprint);
    bench.runs(Operation::MmapCode, "/tmp/evil.so").await;
    let (told, body) = bench.next_violation().await;
    assert_eq!((told, body.count, body.object.id, body.fingerprint), ("updated", 2, id, uid));
    bench.runs(Operation::Execve, "/tmp/tool").await;
    let (told, body) = bench.next_violation().await;
    assert_eq!((told, body.operation), ("opened", Operation::Execve));
    assert_eq!(body.object.path.to_string(), "/tmp/tool");
    assert!(body.actual.is_empty(), "{:?}", body.actual);
    // The program itself is as sealed.
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}
