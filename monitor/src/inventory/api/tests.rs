//! The task that asks, against a server that does what a real one does not on demand. Each test compares all that is known.

mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::server::{Mode, Server, pod};
use super::{Cluster, Known, Source, Timing, run};
use crate::status::{KubernetesPod, KubernetesState, KubernetesStatus};

/// Longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

const FAST: Timing = Timing {
    request: Duration::from_millis(700),
    idle: Duration::from_secs(30),
    watch: Duration::from_secs(200),
    settled: Duration::from_millis(1),
    pause_least: Duration::from_millis(5),
    pause_most: Duration::from_millis(40),
};

struct Node {
    server: Server,
    known: Arc<Known>,
    token: PathBuf,
    _asking: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Node {
    /// The task that asks runs; the server may behave badly from the start.
    fn start(timing: Timing, prepare: impl FnOnce(&Server)) -> Self {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        prepare(&server);
        let (token, kubeconfig) = (dir.path().join("token"), dir.path().join("kubeconfig"));
        std::fs::write(&token, "first\n").unwrap();
        std::fs::write(&kubeconfig, server.kubeconfig(&token)).unwrap();
        let (known, stop) = (Arc::new(Known::new(Cluster::default())), CancellationToken::new());
        let source = Source::Kubeconfig(kubeconfig);
        let mut asking = JoinSet::new();
        asking.spawn(run(source, "n1".to_owned(), Arc::clone(&known), timing, stop));
        Self { server, known, token, _asking: asking, _dir: dir }
    }

    /// Waits until it holds.
    async fn until(&self, what: &str, holds: impl Fn(&KubernetesStatus) -> bool) -> KubernetesStatus {
        let mut changes = self.known.changes();
        let waited = async {
            loop {
                changes.borrow_and_update();
                let status = self.known.status();
                if holds(&status) {
                    return status;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, waited).await {
            Ok(status) => status,
            Err(_) => panic!("{what}: {:#?} {:#?}", self.known.status(), self.known.pods()),
        }
    }

    async fn connected(&self) -> KubernetesStatus {
        self.until("connected", |status| status.state == KubernetesState::Connected).await
    }

    async fn lost(&self, kind: &str) -> KubernetesStatus {
        let lost = |status: &KubernetesStatus| {
            status.state == KubernetesState::Lost
                && status.fault.as_ref().is_some_and(|fault| fault.kind == kind)
        };
        self.until(kind, lost).await
    }

    /// Waits until this and nothing else is known of pods.
    async fn pods_are(&self, expected: &[KubernetesPod]) {
        self.until(&format!("{expected:#?}"), |_| self.known.pods() == expected).await;
    }
}

fn known(namespace: &str, name: &str, uid: &str) -> KubernetesPod {
    KubernetesPod {
        uid: uid.to_owned(),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        service_account: Some("default".to_owned()),
        api: true,
        ..KubernetesPod::default()
    }
}

fn owned(mut pod: KubernetesPod, kind: &str, name: &str) -> KubernetesPod {
    pod.owner = Some(crate::model::Owner { kind: kind.to_owned(), name: name.to_owned() });
    pod
}

fn gone(mut pod: KubernetesPod) -> KubernetesPod {
    pod.gone_from_api = true;
    pod
}

/// A status without what differs from run to run, and without what nothing is wrong with.
fn bare(mut status: KubernetesStatus) -> KubernetesStatus {
    let healthy = KubernetesStatus::default();
    (status.since, status.last_sync, status.last_heard) = (healthy.since, None, None);
    status.server = None;
    status
}

fn healthy(pods: u64, lists: u64) -> KubernetesStatus {
    KubernetesStatus {
        state: KubernetesState::Connected,
        pods,
        lists,
        cluster_uid: Some("cluster-1".to_owned()),
        ..KubernetesStatus::default()
    }
}

fn controlled(mut pod: serde_json::Value, kind: &str, name: &str, uid: &str) -> serde_json::Value {
    pod["metadata"]["ownerReferences"] =
        json!([{"kind": kind, "name": name, "uid": uid, "controller": true}]);
    pod
}

const NOTHING: &str = "owners, images by digest and sources of volumes of all pods";

#[tokio::test(flavor = "multi_thread")]
async fn pods_their_owners_cluster_and_node() {
    let node = Node::start(FAST, |server| {
        server.put(controlled(pod("shop", "web-7d-x", "u1"), "ReplicaSet", "web-7d", "rs1"));
        server.put(controlled(pod("shop", "tick-1-y", "u2"), "Job", "tick-1", "job1"));
        server.put(controlled(pod("shop", "log-z", "u3"), "DaemonSet", "log", "ds1"));
        server.put(controlled(pod("shop", "old-z", "u4"), "ReplicaSet", "web-7d", "another"));
        let above =
            |kind: &str, name: &str| json!([{"kind": kind, "name": name, "uid": "up", "controller": true}]);
        server.object(
            "/apis/apps/v1/namespaces/shop/replicasets/web-7d",
            &json!({"uid": "rs1", "ownerReferences": above("Deployment", "web")}),
        );
        server.object(
            "/apis/batch/v1/namespaces/shop/jobs/tick-1",
            &json!({"uid": "job1", "ownerReferences": above("CronJob", "tick")}),
        );
    });
    let expected = [
        owned(known("shop", "web-7d-x", "u1"), "Deployment", "web"),
        owned(known("shop", "tick-1-y", "u2"), "CronJob", "tick"),
        owned(known("shop", "log-z", "u3"), "DaemonSet", "log"),
        // The ReplicaSet of that name is another one than this pod was made by.
        owned(known("shop", "old-z", "u4"), "ReplicaSet", "web-7d"),
    ];
    node.pods_are(&expected).await;
    assert_eq!(bare(node.connected().await), healthy(4, 1));
    let labels = BTreeMap::from([("pool".to_owned(), "edge".to_owned())]);
    let cluster = Cluster { uid: Some("cluster-1".to_owned()), labels: Some(labels) };
    assert_eq!(*node.known.cluster().borrow(), cluster);
    let asked = node.server.requests();
    assert!(
        asked[0].starts_with("/api/v1/pods?") && asked[0].contains("fieldSelector=spec.nodeName%3Dn1"),
        "{asked:?}"
    );

    // A pod of the same ReplicaSet comes by the watch: nothing is asked again.
    node.server.put(controlled(pod("shop", "web-7d-w", "u5"), "ReplicaSet", "web-7d", "rs1"));
    let mut more = expected.to_vec();
    more.push(owned(known("shop", "web-7d-w", "u5"), "Deployment", "web"));
    node.pods_are(&more).await;
    assert_eq!(node.server.requests(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_is_kept_and_a_name_that_comes_again_is_another_pod() {
    let node = Node::start(FAST, |server| server.put(pod("shop", "web", "u1")));
    node.pods_are(&[known("shop", "web", "u1")]).await;
    node.connected().await;
    node.server.delete("u1");
    node.pods_are(&[gone(known("shop", "web", "u1"))]).await;
    node.server.put(pod("shop", "web", "u2"));
    node.pods_are(&[gone(known("shop", "web", "u1")), known("shop", "web", "u2")]).await;
    let mut status = healthy(1, 1);
    status.gone = 1;
    assert_eq!(bare(node.known.status()), status);
    // As long as it is on the disk; and for some time in any case.
    node.known.forget_older(&BTreeSet::from(["u1".to_owned()]), Duration::ZERO);
    assert!(node.known.pod("u1").is_some());
    node.known.forget_gone(&BTreeSet::new());
    assert!(node.known.pod("u1").is_some());
    node.known.forget_older(&BTreeSet::new(), Duration::ZERO);
    assert_eq!(node.known.pods(), [known("shop", "web", "u2")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_watch_is_resumed_where_it_was() {
    let node = Node::start(FAST, |server| server.put(pod("a", "one", "u1")));
    node.connected().await;
    node.server.bookmark();
    node.server.put(pod("a", "two", "u2"));
    node.pods_are(&[known("a", "one", "u1"), known("a", "two", "u2")]).await;
    for abruptly in [true, false] {
        node.server.requests();
        node.server.end_watches(abruptly);
        // While nobody watches.
        let uid = format!("u3-{abruptly}");
        node.server.put(pod("a", "three", &uid));
        node.until("the third", |_| node.known.pod(&uid).is_some()).await;
        let asked = node.server.requests();
        let (watches, lists): (Vec<&String>, Vec<&String>) = asked
            .iter()
            .filter(|one| one.starts_with("/api/v1/pods"))
            .partition(|one| one.contains("watch=true"));
        assert_eq!((watches.len(), lists.len()), (1, 0), "{asked:?}");
    }
    node.connected().await;
    assert_eq!(bare(node.known.status()), healthy(4, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_position_makes_a_new_list() {
    let node = Node::start(FAST, |server| {
        server.put(pod("a", "one", "u1"));
        server.put(pod("a", "two", "u2"));
    });
    node.connected().await;
    node.server.delete_unseen("u1");
    // 410 within the watch.
    node.server.compact();
    node.pods_are(&[gone(known("a", "one", "u1")), known("a", "two", "u2")]).await;
    let status = node.until("a second list", |status| status.lists == 2).await;
    assert_eq!((status.pods, status.gone, status.fault), (1, 1, None));
    // 410 to whoever resumes.
    node.server.end_watches(true);
    node.server.compact();
    node.until("a third list", |status| status.lists == 3).await;
    let mut expected = healthy(1, 3);
    expected.gone = 1;
    assert_eq!(bare(node.connected().await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_drips_or_breaks_off_is_lost_until_it_answers() {
    for (mode, kind) in [(Mode::Hang, "silent"), (Mode::Drip, "silent"), (Mode::Break, "unreachable")] {
        let node = Node::start(FAST, |server| {
            server.put(pod("a", "one", "u1"));
            server.behave(mode.clone());
        });
        let status = node.lost(kind).await;
        assert_eq!(node.known.pods(), [], "{mode:?}");
        assert_eq!((status.last_sync, status.pods), (None, 0));
        assert_eq!(status.unknown, [NOTHING, "uid of the cluster", "labels of the node"]);
        node.server.behave(Mode::Well);
        node.pods_are(&[known("a", "one", "u1")]).await;
        assert_eq!(bare(node.connected().await), healthy(1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_falls_silent_or_drips_is_left_and_what_was_known_stays() {
    let timing = Timing { idle: Duration::from_millis(300), ..FAST };
    let node = Node::start(timing, |server| server.put(pod("a", "one", "u1")));
    // Quiet for longer than a bookmark would take: it is lost, and resumed.
    node.lost("silent").await;
    node.connected().await;
    node.server.behave(Mode::Drip);
    node.server.put(pod("a", "two", "u2"));
    let status = node.lost("silent").await;
    assert_eq!(node.known.pods(), [known("a", "one", "u1")]);
    assert_eq!(status.unknown.len(), 1, "{:?}", status.unknown);
    assert!(status.unknown[0].starts_with("what came of pods since 20"), "{:?}", status.unknown);
    node.server.behave(Mode::Well);
    node.pods_are(&[known("a", "one", "u1"), known("a", "two", "u2")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_is_read_anew_with_each_request() {
    let node = Node::start(FAST, |server| {
        server.put(pod("a", "one", "u1"));
        server.token("second");
    });
    let status = node.lost("unauthorized").await;
    assert_eq!(status.fault.unwrap().message, "it does not accept the credentials (401)");
    assert_eq!(node.known.pods(), []);
    std::fs::write(&node.token, "second\n").unwrap();
    node.pods_are(&[known("a", "one", "u1")]).await;
    assert_eq!(bare(node.connected().await), healthy(1, 1));
    // It is replaced while the watch goes on, which is not disturbed; the next watch comes with the new one.
    node.server.token("third");
    std::fs::write(&node.token, "third").unwrap();
    node.server.end_watches(true);
    node.server.put(pod("a", "two", "u2"));
    node.pods_are(&[known("a", "one", "u1"), known("a", "two", "u2")]).await;
    // Without a token there is no asking.
    std::fs::remove_file(&node.token).unwrap();
    node.server.end_watches(true);
    let status = node.lost("no_access").await;
    assert!(status.fault.unwrap().message.contains("No such file"), "the file is named");
    assert_eq!(node.known.pods(), [known("a", "one", "u1"), known("a", "two", "u2")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_stays_unknown_and_the_rest_is_known() {
    let node = Node::start(FAST, |server| {
        server.put(controlled(pod("a", "one-5", "u1"), "ReplicaSet", "one", "rs1"));
        server.behave(Mode::Refuse("/api/v1/pods", 403));
    });
    let status = node.lost("forbidden").await;
    assert_eq!(status.fault.unwrap().message, "not allowed (403): as the test says");
    assert_eq!(node.known.pods(), []);
    let refused = "not allowed (403): as the test says";
    let all = [known("a", "one-5", "u1")].map(|pod| owned(pod, "ReplicaSet", "one"));
    for (below, unknown) in [
        ("/apis/apps", "what controls the ReplicaSets and Jobs of pods"),
        ("/api/v1/nodes", "labels of the node"),
        ("/api/v1/namespaces", "uid of the cluster"),
    ] {
        let node = Node::start(FAST, |server| {
            server.put(controlled(pod("a", "one-5", "u1"), "ReplicaSet", "one", "rs1"));
            server.behave(Mode::Refuse(below, 403));
        });
        let status = node.connected().await;
        assert_eq!(status.unknown, [format!("{unknown}: {refused}")], "{below}");
        node.pods_are(&all).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_of_the_api_is_not_believed() {
    for text in [
        "{",
        "[]",
        "null",
        "<html>",
        r#"{"metadata": {}, "items": []}"#,
        r#"{"metadata": {"resourceVersion": "1"}, "items": [{"spec": {}}]}"#,
        r#"{"metadata": {"resourceVersion": "1"}, "items": "many"}"#,
        r#"{"metadata": {"resourceVersion": "1", "continue": "again"}, "items": []}"#,
    ] {
        let node = Node::start(FAST, |server| {
            server.put(pod("a", "one", "u1"));
            server.behave(Mode::Say(text));
        });
        node.lost("malformed").await;
        assert_eq!(node.known.pods(), [], "{text}");
        node.server.behave(Mode::Well);
        node.pods_are(&[known("a", "one", "u1")]).await;
    }
    // Within a watch: what it said before stays, and all is listed anew.
    let node = Node::start(FAST, |server| server.put(pod("a", "one", "u1")));
    node.connected().await;
    node.server.say(r#"{"type": "ADDED", "object": {"#);
    node.until("a second list", |status| status.lists == 2).await;
    node.pods_are(&[known("a", "one", "u1")]).await;
    assert_eq!(bare(node.connected().await), healthy(1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_too_large() {
    let timing = Timing { request: Duration::from_secs(20), ..FAST };
    let large = |name: &str, uid: &str, bytes: usize| {
        let mut pod = pod("a", name, uid);
        pod["metadata"]["annotations"] = json!({"x": "y".repeat(bytes)});
        pod
    };
    // Parts of the list that are too large are asked for in smaller ones.
    let node = Node::start(timing, |server| {
        for at in 0..10 {
            server.put(large("big", &format!("u{at}"), 1_500_000));
        }
    });
    let all: Vec<_> = (0..10).map(|at| known("a", "big", &format!("u{at}"))).collect();
    node.pods_are(&all).await;
    node.connected().await;
    // An event that is too large is passed over, and the watch goes on.
    node.server.put(large("huge", "u-huge", 5 << 20));
    node.server.put(pod("a", "small", "v-small"));
    let mut all = all;
    all.push(known("a", "small", "v-small"));
    node.pods_are(&all).await;
    let status = node.known.status();
    assert_eq!((status.state, status.passed_over, status.lists), (KubernetesState::Connected, 1, 1));
    assert_eq!(status.unknown, ["1 events about pods that were too large to be read"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_an_end_to_how_many_are_kept() {
    let timing = Timing { request: Duration::from_secs(20), ..FAST };
    let node = Node::start(timing, |server| {
        for at in 0..super::known::PODS_MAX + 4 {
            server.put(pod("a", "one", &format!("u{at:05}")));
        }
    });
    let status = node.connected().await;
    assert_eq!((status.pods, status.not_kept), (super::known::PODS_MAX as u64, 4));
    assert_eq!(
        status.unknown,
        ["4 pods that are not kept: there are too many, or they cannot be told apart"]
    );
}

#[test]
fn the_way_to_the_server() {
    let of = |pairs: &[(&str, &str)], file: Option<&str>| {
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let get = move |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        Source::find(file.map(std::path::Path::new), &get)
    };
    assert_eq!(of(&[], Some("/k")), Ok(Source::Kubeconfig("/k".into())));
    assert!(of(&[], None).unwrap_err().starts_with("not in a pod"));
    assert!(
        of(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")], None)
            .unwrap_err()
            .starts_with("this pod has no token")
    );
}

#[tokio::test]
async fn kubeconfigs_that_would_run_programs_or_trust_anybody_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("k");
    let told = async |cluster: &str, user: &str| {
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        );
        std::fs::write(&file, text).unwrap();
        super::access::Access::open(&Source::Kubeconfig(file.clone()))
            .await
            .map(drop)
            .map_err(|e| e.to_string())
    };
    let local = "server: \"http://127.0.0.1:1\"";
    assert_eq!(told(local, "token: t").await, Ok(()));
    for (cluster, user, why) in [
        (local, "exec: {command: sh}", "exec: the agent runs no programs"),
        (local, "auth-provider: {name: x}", "auth-provider"),
        (local, "username: x", "username"),
        (local, "as: root", "as"),
        (local, "client-key: /k", "expected both"),
        ("server: \"https://k:1\", insecure-skip-tls-verify: true", "", "the server would not be proven"),
        ("server: \"https://k:1\"", "", "no certificate authority"),
        ("server: \"http://10.0.0.1:1\"", "token: t", "expected https://HOST:PORT"),
        ("server: \"https://k:1\", certificate-authority: /none", "", "/none: No such file"),
        ("server: \"https://k:1\", certificate-authority-data: \"!\"", "", "is not base64"),
    ] {
        let refused = told(cluster, user).await.unwrap_err();
        assert!(refused.contains(why), "{cluster} {user}: {refused}");
    }
}
