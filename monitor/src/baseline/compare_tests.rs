//! What a comparison tells of files, directories, links and volumes.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;

use super::*;
use crate::baseline::object::{Hashed, Publish, Rule, VolumeEntry};
use crate::model::Class;

fn seal_of(found: &Found) -> Seal {
    match &found.kind {
        FoundKind::File { size, content } => {
            Seal::File(Content::Sha256(Hashed::new(content.sha256, *size).unwrap()))
        }
        FoundKind::Symlink { target } => Seal::Symlink { target: target.clone() },
        FoundKind::Directory { names } => Seal::Directory { names: Some(Names::of(names)) },
        FoundKind::Volume { entries, .. } => Seal::Volume {
            entries: entries
                .iter()
                .map(|(path, found)| VolumeEntry {
                    path: path.clone(),
                    class: Class::Sealed,
                    file: match &found.kind {
                        FoundKind::File { size, content } => {
                            Some(Content::Sha256(Hashed::new(content.sha256, *size).unwrap()))
                        }
                        _ => None,
                    },
                    source: None,
                    attributes: found.attributes.clone(),
                })
                .collect(),
        },
        FoundKind::Special(_) => panic!("special"),
    }
}

fn sealed(root: &Root, path: &str) -> SealedObject {
    let found = observe::observe(root, &path.into(), &Context::default()).unwrap();
    SealedObject {
        seal: seal_of(&found),
        rule: Arc::new(Rule {
            anchor: crate::baseline::Anchor::Host,
            mounts: Vec::new(),
            class: Class::Sealed,
            publish: Publish::InPlace,
            attributes: found.attributes,
            writers: Vec::new(),
        }),
        path: found.path,
    }
}

fn differences(root: &Root, sealed: &SealedObject) -> Vec<(Aspect, Option<Vec<u8>>, State, State)> {
    let (_, differences) = check(root, sealed, &Context::default(), None).unwrap();
    differences.into_iter().map(|d| (d.aspect, d.entry, d.expected, d.actual)).collect()
}

fn state<const N: usize>(pairs: [(&str, &str); N]) -> State {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[test]
fn a_file_tells_content_size_and_mode() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "one").unwrap();
    fs::set_permissions(dir.path().join("f"), fs::Permissions::from_mode(0o640)).unwrap();
    let root = Root::open(dir.path()).unwrap();
    let object = sealed(&root, "/f");
    assert_eq!(differences(&root, &object), []);

    fs::write(dir.path().join("f"), "four").unwrap();
    fs::set_permissions(dir.path().join("f"), fs::Permissions::from_mode(0o4666)).unwrap();
    let (one, four) = (
        "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        "04efaf080f5a3e74e1c29d1ca6a48569382cbbcd324e8d59d2b83ef21c039f00",
    );
    assert_eq!(
        differences(&root, &object),
        [
            (
                Aspect::Content,
                None,
                state([("sha256", one), ("size", "3")]),
                state([("sha256", four), ("size", "4")])
            ),
            (Aspect::Attributes, None, state([("mode", "0640")]), state([("mode", "4666")])),
        ]
    );

    fs::remove_file(dir.path().join("f")).unwrap();
    assert_eq!(
        differences(&root, &object),
        [(Aspect::Missing, None, state([("type", "file")]), state([("type", "none")]))]
    );
}

#[test]
fn what_would_block_is_told_by_type_and_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "one").unwrap();
    let root = Root::open(dir.path()).unwrap();
    let object = sealed(&root, "/f");
    fs::remove_file(dir.path().join("f")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("f"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(
        differences(&root, &object),
        [(Aspect::Type, None, state([("type", "file")]), state([("type", "fifo")]))]
    );
    fs::remove_file(dir.path().join("f")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("f")).unwrap();
    assert_eq!(
        differences(&root, &object),
        [(Aspect::Type, None, state([("type", "file")]), state([("type", "socket")]))]
    );
}

#[test]
fn a_closed_directory_names_each_intruder_by_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "").unwrap();
    fs::write(dir.path().join("b"), "").unwrap();
    let root = Root::open(dir.path()).unwrap();
    let object = sealed(&root, "/");
    fs::remove_file(dir.path().join("a")).unwrap();
    let hostile = b"x\n\xff";
    symlink("/", dir.path().join(std::ffi::OsStr::from_bytes(hostile))).unwrap();
    assert_eq!(
        differences(&root, &object),
        [
            (Aspect::Names, Some(b"a".to_vec()), state([("name.a", "file")]), state([("name.a", "none")])),
            (
                Aspect::Names,
                Some(hostile.to_vec()),
                state([("name.x\n\\xff", "none")]),
                state([("name.x\n\\xff", "symlink")])
            ),
        ]
    );
}

#[test]
fn links_stay_below_the_root() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(dir.path().join("etc/hostname"), "inside").unwrap();
    symlink("/etc", dir.path().join("out")).unwrap();
    symlink("../../../../../../etc", dir.path().join("up")).unwrap();
    let root = Root::open(dir.path()).unwrap();
    for path in ["/out/hostname", "/up/hostname", "/../etc/hostname"] {
        assert_eq!(root.read(&path.into(), 10).unwrap(), b"inside", "{path}");
    }
    let object = sealed(&root, "/out");
    fs::remove_file(dir.path().join("out")).unwrap();
    symlink("/evil", dir.path().join("out")).unwrap();
    assert_eq!(
        differences(&root, &object),
        [(Aspect::Target, None, state([("target", "/etc")]), state([("target", "/evil")]))]
    );
}

fn volume_at(dir: &std::path::Path) {
    fs::create_dir_all(dir.join("..2026_01_01/nested")).unwrap();
    fs::write(dir.join("..2026_01_01/root-cert.pem"), "cert").unwrap();
    fs::write(dir.join("..2026_01_01/nested/key"), "value").unwrap();
    symlink("..2026_01_01", dir.join("..data")).unwrap();
    symlink("..data/root-cert.pem", dir.join("root-cert.pem")).unwrap();
    symlink("..data/nested", dir.join("nested")).unwrap();
}

#[test]
fn a_publish_of_the_same_files_leaves_a_volume_intact() {
    let dir = tempfile::tempdir().unwrap();
    volume_at(dir.path());
    let root = Root::open(dir.path()).unwrap();
    let object = sealed(&root, "/");
    assert!(matches!(&object.seal, Seal::Volume { entries } if entries.len() == 4), "{object:?}");

    fs::create_dir_all(dir.path().join("..2026_01_02/nested")).unwrap();
    fs::write(dir.path().join("..2026_01_02/root-cert.pem"), "cert").unwrap();
    fs::write(dir.path().join("..2026_01_02/nested/key"), "value").unwrap();
    symlink("..2026_01_02", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    assert_eq!(differences(&root, &object), []);
    let (found, _) = check(&root, &object, &Context::default(), None).unwrap();
    let Some(Found { kind: FoundKind::Volume { shape, .. }, .. }) = found else { panic!("no volume") };
    assert_eq!(shape.litter, [b"..2026_01_01".as_slice().into()]);
}

#[test]
fn a_runtimes_mount_point_in_a_volume_is_no_break_while_it_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    volume_at(dir.path());
    fs::create_dir(dir.path().join("crl")).unwrap();
    let root = Root::open(dir.path()).unwrap();
    let object = sealed(&root, "/");
    assert!(matches!(&object.seal, Seal::Volume { entries } if entries.len() == 4), "{object:?}");
    assert_eq!(differences(&root, &object), []);
    // The kubelet makes all directories on the way to it (`kubernetes.io/serviceaccount` in what is mounted at `/var/run/secrets`).
    fs::create_dir_all(dir.path().join("crl/of/one")).unwrap();
    assert_eq!(differences(&root, &object), []);
    fs::write(dir.path().join("crl/of/one/dropped"), "x").unwrap();
    assert_eq!(differences(&root, &object).len(), 1);
    fs::remove_dir_all(dir.path().join("crl/of")).unwrap();

    fs::write(dir.path().join("crl/dropped"), "x").unwrap();
    let told = |name: &str, expected: &str| {
        let key = format!("name.{name}");
        let (expected, actual) = (state([(key.as_str(), expected)]), state([(key.as_str(), "directory")]));
        (Aspect::Structure, Some(name.as_bytes().to_vec()), expected, actual)
    };
    assert_eq!(differences(&root, &object), [told("crl", "link to ..data/crl")]);

    // In the place of a name of its own it is one, even empty.
    fs::remove_file(dir.path().join("crl/dropped")).unwrap();
    fs::remove_file(dir.path().join("nested")).unwrap();
    fs::create_dir(dir.path().join("nested")).unwrap();
    assert_eq!(
        differences(&root, &object).iter().map(|one| (&one.0, one.1.as_deref())).collect::<Vec<_>>(),
        [(&Aspect::Structure, Some(b"nested".as_slice()))]
    );
}

#[test]
fn a_volume_tells_each_break_of_its_grammar() {
    let dir = tempfile::tempdir().unwrap();
    volume_at(dir.path());
    let root = Root::open(dir.path()).unwrap();
    let object = sealed(&root, "/");

    fs::remove_file(dir.path().join("root-cert.pem")).unwrap();
    fs::write(dir.path().join("root-cert.pem"), "cert").unwrap();
    fs::remove_file(dir.path().join("nested")).unwrap();
    symlink("..2026_01_01/nested", dir.path().join("nested")).unwrap();
    fs::write(dir.path().join("..data_tmp"), "").unwrap();
    let structure = |name: &str, expected: &str, actual: &str| {
        let key = format!("name.{name}");
        (
            Aspect::Structure,
            Some(name.as_bytes().to_vec()),
            state([(key.as_str(), expected)]),
            state([(key.as_str(), actual)]),
        )
    };
    assert_eq!(
        differences(&root, &object),
        [
            structure("..data_tmp", "nothing, or a link while a publish runs", "file"),
            structure("nested", "link to ..data/nested", "link to ..2026_01_01/nested"),
            structure("root-cert.pem", "link to ..data/root-cert.pem", "file"),
        ]
    );
}

#[test]
fn a_volume_whose_data_is_a_directory_has_no_content_to_compare() {
    let dir = tempfile::tempdir().unwrap();
    volume_at(dir.path());
    let root = Root::open(dir.path()).unwrap();
    let object = sealed(&root, "/");
    fs::rename(dir.path().join("..2026_01_01"), dir.path().join("keep")).unwrap();
    fs::remove_file(dir.path().join("..data")).unwrap();
    fs::rename(dir.path().join("keep"), dir.path().join("..data")).unwrap();
    assert_eq!(
        differences(&root, &object),
        [(
            Aspect::Structure,
            Some(b"..data".to_vec()),
            state([("name...data", "link to ..<timestamp>")]),
            state([("name...data", "directory")])
        )]
    );
}
