//! The parsers, with seeds.

use std::path::Path;

use serde_json::json;

use super::{Target, used};
use crate::baseline::{
    Form, Meaning, Signed, SigningKey, TrustedKey, identity, openssh, review, secret, statement, store,
    trust, uninstall,
};
use crate::image::glob::Glob;
use crate::model::{HostPath, Record, Time};
use crate::profile::{Layout, Nowhere, Pattern, Place, Profiles};
use crate::{
    agent, attribution, cli, config, export, image, inventory, journal, manifest, profile, sensor, status,
};

macro_rules! vector {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/vectors/", $name))
    };
}

const STATEMENT: &[u8] = vector!("statement.json");
const VIOLATION: &[u8] = br#"{"seq":1,"time":"2026-01-01T00:00:00Z","node":"n","severity":"high","uid":"01J00000000000000000000000","coverage":"full","kind":"violation.opened","violation":"content","operation":"write","sensor":"lsm","count":1,"object":{"id":"x","path":"/x","class":"sealed","baseline":"b","revision":1},"first_time":"2026-01-01T00:00:00Z","last_time":"2026-01-01T00:00:00Z","fingerprint":"f","action":"observed","expected":{"sha256":"00"},"actual":{"sha256":"01"},"actor":{"pid":1,"tgid":1,"ppid":0,"uid":0,"comm":"sh","exe":"/bin/sh","cmdline":"sh -c x","start_time":"2026-01-01T00:00:00Z","cgroup":"/a","mount_ns":1},"target":{"namespace":"n","pod":"p","pod_uid":"u","container":"c","owner":{"kind":"Deployment","name":"d"},"source":{"kind":"ConfigMap","name":"m"}},"attack":["T1565.001"]}"#;
const KEYS: &[&[u8]] = &[
    vector!("cosign.pub"),
    vector!("openssl-ed25519.pub"),
    vector!("ssh-ed25519.pub"),
    vector!("ssh-ecdsa.pub"),
    vector!("allowed_signers"),
    b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n",
];

/// Nothing beside [`Target::seeds`].
const NONE: fn() -> Vec<Vec<u8>> = Vec::new;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "dsse",
        seeds: &[vector!("securesystemslib.dsse.json"), vector!("cosign2-attest.dsse.json")],
        made: NONE, run: |bytes| {
            if let Ok(signed) = Signed::read(bytes) {
                let again = signed.to_envelope().and_then(|envelope| Signed::read(&envelope));
                assert_eq!(again.ok(), Some(signed), "what was read must be written and read the same");
            }
        },
    },
    Target {
        name: "bundle",
        seeds: &[
            vector!("cosign2-attest.json"),
            vector!("cosign2-blob-old.json"),
            vector!("cosign2-blob.json"),
            vector!("cosign3-blob.json"),
            vector!("cosign3-statement.json"),
        ],
        made: NONE, run: |bytes| {
            used(Signed::read(bytes));
            used(Signed::bare(STATEMENT.to_vec()).map(|mut signed| signed.attach(bytes)));
        },
    },
    Target {
        name: "sshsig",
        seeds: &[vector!("ssh-ed25519.sig"), vector!("ssh-ecdsa.sig"), vector!("ssh-wrong-namespace.sig")],
        made: NONE, run: |bytes| {
            let blob = std::str::from_utf8(bytes).ok().and_then(openssh::SshSignature::dearmour);
            for blob in [Some(bytes.to_vec()), blob].into_iter().flatten() {
                used(openssh::SshSignature::parse(&blob).map(|ssh| (ssh.key_id(), ssh.foreign_namespace())));
            }
        },
    },
    Target {
        name: "keys",
        seeds: KEYS,
        made: NONE, run: |bytes| {
            used(TrustedKey::parse(bytes).map(|keys| keys.iter().map(TrustedKey::label).collect::<Vec<_>>()));
            used(SigningKey::from_pem(bytes));
            used(secret::public_key_of(bytes));
            used(identity::extract(bytes));
            used(identity::certificates(bytes));
        },
    },
    Target {
        name: "statement",
        seeds: &[STATEMENT],
        made: NONE, run: |bytes| {
            used(statement::parse(bytes));
            used(trust::Rotation::parse(bytes));
            used(uninstall::Uninstall::parse(bytes));
            if let (Ok(old), Ok(new)) = (statement::parse(STATEMENT), statement::parse(bytes)) {
                used(review::Review::between(&old, &new));
                assert!(review::Review::between(&new, &new).is_empty(), "it is as itself");
            }
        },
    },
    Target {
        name: "config",
        seeds: &[
            b"apiVersion: meshseal/v1\nmode: observe\nnode: n\nbaselines: {files: [/a], trustedKeys: [/k], requireSignatures: 2}\n",
            b"apiVersion: meshseal/v1\nnode: n\nscrub: { interval: 24h, ioBudget: 10MiB/s }\nexport:\n  otlp:\n    - { endpoint: \"http://127.0.0.1:4317\", protocol: grpc }\n",
        ],
        made: NONE, run: |bytes| {
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Err(error) = config::parse(Path::new("/c.yaml"), text)
            {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        },
    },
    Target {
        name: "meaning",
        seeds: &[
            br#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge", "mtu": 1}, {"type": "istio-cni"}]}"#,
            b"a: [1, y, 0777, {b: c}]\n",
            vector!("openssl-ed25519.pub"),
            b"-----BEGIN CERTIFICATE-----\nMAEB\n-----END CERTIFICATE-----\n",
        ],
        made: NONE, run: |bytes| {
            for form in [Form::Pem, Form::Cni, Form::Json, Form::Yaml] {
                if let Ok(meaning) = Meaning::read(form, bytes) {
                    assert_eq!(meaning.differs(Ok(&meaning), Profiles::built_in()), None, "it is as itself");
                    used((meaning.state(), meaning.without_it(Profiles::built_in())));
                    used(meaning.differs(Err("why"), Profiles::built_in()));
                }
            }
        },
    },
    Target {
        name: "profile",
        seeds: &[
            include_bytes!("../../profiles/istio-proxy.yaml"),
            include_bytes!("../../profiles/cilium.yaml"),
            include_bytes!("../../profiles/cert-manager-csi.yaml"),
        ],
        made: NONE, run: |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            match profile::parse("p.yaml", text) {
                Ok(profile) => used(serde_json::to_string(&profile)),
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
        },
    },
    Target {
        name: "manifest",
        seeds: &[include_bytes!("../../../tests/fixtures/manifests/every-kind.yaml")],
        made: NONE, run: |bytes| {
            let mut documents = Vec::new();
            if manifest::document::parse("m.yaml", bytes, &mut documents).is_ok()
                && let Ok(manifests) = manifest::Manifests::of(documents, "default")
                && let Ok(sealed) = manifest::seal(&manifests, &with_profiles())
            {
                let predicate = json!({ "name": "n", "revision": 1, "objects": sealed.objects });
                let text = serde_json::from_value(predicate).map(statement::Statement::of);
                let text = text.ok().and_then(Result::ok).and_then(|statement| statement.to_json().ok());
                let read = text.as_deref().map(statement::parse);
                assert!(read.as_ref().is_some_and(Result::is_ok), "what was sealed must be read: {read:?}");
            }
        },
    },
    Target { name: "layer", seeds: &[include_bytes!("../../../fuzz/seeds/layer.tar"), include_bytes!("../../../fuzz/seeds/sparse.tar")], made: NONE, run: image::fuzz_layer },
    Target { name: "archive", seeds: &[include_bytes!("../../../fuzz/seeds/saved.tar")], made: NONE, run: image::fuzz_archive },
    Target { name: "journal", seeds: &[], made: journal::fuzz_seeds, run: journal::fuzz },
    Target {
        name: "checkpoint",
        seeds: &[b"meshseal/n/x\n12\nqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=\n\n\xe2\x80\x94 meshseal/n/x AAAAAAAAAAAAAAAAAAAA\n"],
        made: journal::fuzz_checkpoint_seeds, run: journal::fuzz_checkpoint,
    },
    Target { name: "kernel_record", seeds: &[], made: sensor::hooks::decode::fuzz_seeds, run: sensor::hooks::decode::fuzz },
    Target { name: "fanotify", seeds: &[], made: sensor::fanotify::fuzz_seeds, run: sensor::fanotify::fuzz },
    Target {
        name: "btf",
        seeds: &[&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 8, 0, 0, 0]],
        made: || vec![sensor::btf::sample()], run: |bytes| {
            used(sensor::btf::Btf::parse(bytes).map(|btf| (btf.layout(sensor::btf::LSM_PREFIX), btf.argument("f", "a"))));
        },
    },
    Target {
        name: "mountinfo",
        seeds: &[b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"],
        made: NONE, run: |bytes| {
            let mounts = inventory::mounts::Mounts::parse(bytes);
            let path = HostPath::new(bytes);
            // Each is looked for among all of them.
            for mount in mounts.all().iter().take(8) {
                used(mounts.host_path(mount.dev, &path));
                used(mounts.path_in_fs(mount.id, &path));
            }
        },
    },
    Target {
        name: "proc",
        seeds: &[
            b"42 (a) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3",
            b"Name:\tx\nTgid:\t9\nPid:\t9\nTracerPid:\t3\nUid:\t1000\t0\t0\t0\n",
            b"12:memory:/kubepods/burstable/pod1\n1:name=systemd:/system.slice/x.service\n0::/\n",
        ],
        made: NONE, run: inventory::procs::fuzz,
    },
    Target {
        name: "kubernetes",
        seeds: &[
            br#"{"type":"ADDED","object":{"metadata":{"name":"p","namespace":"n","uid":"u","resourceVersion":"1","ownerReferences":[{"kind":"ReplicaSet","name":"r","uid":"o","controller":true}]},"spec":{"containers":[{"name":"c","image":"i","volumeMounts":[{"name":"v"}]}],"volumes":[{"name":"v","projected":{"sources":[{"configMap":{"name":"m","items":[{"path":"a"}]}}]}}]},"status":{"containerStatuses":[{"name":"c","containerID":"containerd://1","imageID":"i@sha256:0"}]}}}"#,
            br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"m"}}"#,
            br#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"p","namespace":"n","uid":"u"}}]}"#,
            b"current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nclusters: [{name: k, cluster: {server: \"https://k\"}}]\nusers: [{name: u, user: {token: t}}]\n",
        ],
        made: NONE, run: inventory::api::fuzz,
    },
    Target {
        name: "cgroup",
        seeds: &[
            b"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice/cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope",
            b"/kubepods/besteffort/pod01234567-89ab-cdef-0123-456789abcdef/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ],
        made: NONE, run: |bytes| {
            let text = String::from_utf8_lossy(bytes);
            used(attribution::cgroup::parse(&text));
            used(attribution::cgroup::in_kubepods(&text));
            used(attribution::redact::cmdline(&[bytes.to_vec()]));
            assert_eq!(
                HostPath::from_text(&HostPath::new(bytes).to_string()).as_bytes(),
                bytes,
                "a path's text must lead back to it"
            );
        },
    },
    Target { name: "journal_files", seeds: &[], made: journal::fuzz_files_seeds, run: journal::fuzz_files },
    Target { name: "evidence", seeds: &[], made: journal::evidence::fuzz_seeds, run: journal::evidence::fuzz },
    Target {
        name: "record",
        seeds: &[VIOLATION, br#"{"seq":1,"time":"2026-01-01T00:00:00Z","node":"n","severity":"info","uid":"01J00000000000000000000000","coverage":"full","kind":"agent.stopped","reason":"test"}"#],
        made: NONE,
        run: |bytes| {
            if let Ok(record) = serde_json::from_slice::<Record>(bytes) {
                let sent = export::log_record(&record, Time(0));
                assert!(!format!("{:?}", sent.body).contains("\\n"), "a record's sentence is one line");
                let again = serde_json::to_vec(&record).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
                assert_eq!(again, Some(record), "what was read must be written and read the same");
            }
            used(Time::parse(&String::from_utf8_lossy(bytes)));
        },
    },
    Target {
        name: "request",
        seeds: &[
            b"GET /v1/events?since=1&limit=2&since_time=2026-01-01T00:00:00Z HTTP/1.1\r\nhost: n\r\naccept: text/event-stream\r\nlast-event-id: 3\r\n\r\n",
            b"POST /v1/violations/01J00000000000000000000000/acknowledge HTTP/1.1\r\nhost: n\r\ncontent-length: 14\r\n\r\n{\"reason\":\"r\"}",
            b"GET /v1/journal/proof?seq=1 HTTP/1.1\r\nhost: n\r\n\r\nGET /v1/violations/x/evidence HTTP/1.0\r\n\r\n",
            b"POST /v1/violations/01J00000000000000000000000/acknowledge HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        ],
        made: NONE,
        run: status::fuzz::fuzz,
    },
    Target {
        name: "answer",
        seeds: &[
            include_bytes!("../../../fuzz/seeds/status.json"),
            include_bytes!("../../../fuzz/seeds/story.json"),
            br#"[{"id":"x","path":"/x","class":"sealed","type":"file","state":"violated","baseline":"b","revision":1,"last_verified":"2026-01-01T00:00:00Z"}]"#,
            br#"[{"uid":"u","namespace":"n","name":"p","service_account":"a","owner":{"kind":"Deployment","name":"d"},"disk":true,"api":true,"gone_from_api":false,"contradictory":false,"images":{}}]"#,
        ],
        made: NONE,
        run: cli::fuzz,
    },
    Target {
        name: "overlay",
        seeds: &[
            b"70 22 0:50 / /run/b/1/rootfs rw - overlay overlay rw,lowerdir=/s/2/fs:/s/1/fs,upperdir=/s/3/fs,workdir=/s/3/work,xino=off\n",
            b"71 22 0:51 / /m rw - overlay overlay rw,lowerdir=2/fs:1/fs,upperdir=/s/4/fs,workdir=/s/4/work\n",
            b"72 22 0:52 /etc /m\\040n rw - overlay o rw,lowerdir+=/a\\072b,lowerdir+=/c\n",
        ],
        made: NONE,
        run: inventory::layers::fuzz,
    },
    Target {
        name: "container",
        seeds: &[
            br#"{"root": {"path": "rootfs"}, "annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "proxy", "io.kubernetes.cri.sandbox-namespace": "n", "io.kubernetes.cri.sandbox-name": "p", "io.kubernetes.cri.sandbox-uid": "u", "io.kubernetes.cri.image-name": "docker.io/a/b:1"}}"#,
            br#"{"root": {"path": "/var/lib/x/merged"}, "annotations": {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.container.name": "proxy", "io.kubernetes.pod.namespace": "n", "io.kubernetes.pod.name": "p", "io.kubernetes.pod.uid": "u", "io.kubernetes.cri-o.ImageName": "docker.io/a/b:1"}}"#,
            b"r.example:5000/a/b:1@sha256:00",
        ],
        made: NONE,
        run: inventory::containers::fuzz,
    },
    Target {
        name: "pod",
        seeds: &[
            // {"alg":"RS256"} . {"iss":"i","sub":"s","kubernetes.io":{"namespace":"n","pod":{"name":"p","uid":"u"},"serviceaccount":{"name":"a"}}}
            b"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJpIiwic3ViIjoicyIsImt1YmVybmV0ZXMuaW8iOnsibmFtZXNwYWNlIjoibiIsInBvZCI6eyJuYW1lIjoicCIsInVpZCI6InUifSwic2VydmljZWFjY291bnQiOnsibmFtZSI6ImEifX19.c2ln",
            b"# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\nfe00::0\tip6-localnet\n10.0.0.1\tname.sub.ns.svc\tname\n",
            b"/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~configmap/c/..data/k",
            b"/var/lib/kubelet/pods/u-1/volume-subpaths/v/c/0",
            b"n_p_0123",
        ],
        made: NONE,
        run: |bytes| {
            inventory::pods::fuzz(bytes);
            attribution::pods::fuzz(bytes);
            let path = HostPath::new(bytes);
            used(Place::of(&path, &Layout::default()));
            used(Profiles::built_in().role_of(&path, &Layout::default(), &Nowhere));
        },
    },
    Target {
        name: "pattern",
        seeds: &[
            b"/usr/**/envoy*\n/usr/local/bin/envoy",
            b"/**/a/**/b/**/c\n/a/a/a/a/b/b/b/b",
            b"{ConfigMap|Secret}/istio-*/**\n/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/istio-x/..data/k",
        ],
        made: NONE,
        run: |bytes| {
            let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
            let (Some(pattern), path) = (lines.next(), lines.next().unwrap_or_default()) else { return };
            let Ok(pattern) = std::str::from_utf8(pattern) else { return };
            // Of any image: no deeper, and no longer.
            let path = path.get(..4096).unwrap_or(path);
            used(Glob::new(pattern).map(|glob| glob.matches(path)));
            used(Pattern::new(pattern).map(|pattern| pattern.is_volume(&String::from_utf8_lossy(path))));
        },
    },
    Target {
        name: "state",
        seeds: &[
            br#"{"boot_id":"b","generation":"01J","rung":"lsm","records":[1,2],"links":{"file_open":[1,2]},"maps":{"EVENTS":3}}"#,
            b"{\"slot\":1,\"directory\":true,\"path\":\"/etc\"}\n{\"slot\":2,\"directory\":false,\"path\":\"/etc/x\"}\n",
            br#"{"baselines":{"n":{"revision":3,"sha256":"00","accepted_at":"2026-01-01T00:00:00Z"}},"keys":{"1":"00"}}"#,
            br#"{"journal":"j","endpoint":"http://u:p@h/p?q","violations":1,"rest":2,"dead_letters":0}"#,
            br#"{"node":"n","cluster_uid":"u","node_labels":{"a":"b"}}"#,
            STATEMENT,
        ],
        made: NONE,
        run: |bytes| {
            sensor::hooks::kept::fuzz(bytes);
            store::fuzz(bytes);
            export::fuzz_cursor(bytes);
            inventory::api::remembered::fuzz(bytes);
            agent::fuzz_first_use(bytes);
        },
    },
    Target {
        name: "variables",
        seeds: &[
            b"ENDPOINT=http://127.0.0.1:4318\nPROTOCOL=http/protobuf\nHEADERS=a=b,authorization=Bearer%20x\nTIMEOUT=1000\nCOMPRESSION=gzip\nCERTIFICATE=/c\n",
            b"10MiB/s",
            b"24h",
            b"1 GiB",
        ],
        made: NONE,
        run: |bytes| config::fuzz_variables(&String::from_utf8_lossy(bytes)),
    },
];

fn with_profiles() -> manifest::Options {
    let profiles = std::sync::Arc::clone(Profiles::built_in());
    manifest::Options { profiles, ..manifest::Options::default() }
}
