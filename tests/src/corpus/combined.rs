//! Several acts of one process, within one look of the agent.

use std::fs::{self, File};

use super::acts::{Act, act, prepared, v};
use super::raw::ask_by_ioctl;

/// All acts of this file.
pub(super) const ACTS: &[Act] = &[
    act(
        "take_away_and_put_back_by_a_link",
        |site, _| {
            let alias = site.out().join("alias");
            fs::hard_link(site.f(), &alias)?;
            fs::remove_file(site.f())?;
            Ok(fs::rename(&alias, site.f())?)
        },
        &[v("f", "linked", "link"), v("f", "reverted", "unlink")],
    ),
    act(
        "rename_into_a_directory_made_just_now",
        |site, _| {
            let sub = site.dir().join("sub");
            fs::create_dir(&sub)?;
            Ok(fs::rename(site.f(), sub.join("f"))?)
        },
        &[v("f", "renamed", "rename"), v("sub", "unexpected", "mkdir")],
    ),
    prepared(
        "rename_a_directory_over_an_empty_one",
        |site| {
            fs::create_dir(site.dir().join("sub"))?;
            fs::create_dir(site.out().join("other"))?;
            Ok(fs::write(site.out().join("other/new"), b"dropped")?)
        },
        |site, _| Ok(fs::rename(site.out().join("other"), site.dir().join("sub"))?),
        &[v("sub", "replaced", "rename"), v("sub/new", "unexpected", "rename")],
    ),
    act("ask_by_ioctl", |site, _| ask_by_ioctl(&File::open(site.f())?), &[]),
];
