//! The tamper corpus: the agent as its users see it, on the highest rung this kernel and the program allow.
//!
//! Each act is done once by a process of its own; the records it gives are compared whole. What lower rungs tell with other
//! words is in [`rung::told_by`]; what they cannot see at all is said at the case.

mod actor;
mod acts;
mod bpf;
mod code;
mod combined;
mod contained;
mod faults;
mod filesystems;
mod first_use;
pub(crate) mod image;
mod inject;
mod load;
mod mapping;
mod memory;
mod overlay;
mod rare;
mod raw;
mod restart;
pub(crate) mod rung;
mod secret;
mod subvolumes;
mod topology;
mod uninstalled;
mod volume;
mod waiting;
mod ways;
mod world;
mod writes;

use std::process::ExitCode;

use self::contained::a_container_runs_what_its_image_brought;
use self::faults::{
    a_hundred_thousand_writes_are_counted, what_is_taken_from_the_sensor_is_missed,
    what_is_too_much_for_the_sensor_is_named, what_overflows_the_queue_is_named,
};
use self::first_use::what_nobody_signed_is_held_to_what_it_was_at_first;
use self::image::a_proxy_is_sealed_from_its_image;
use self::load::{
    a_burst_on_one_object_is_counted, a_store_through_a_held_mapping_is_not_denied,
    a_storm_leaves_each_object_right, anonymous_and_segment_mappings_do_no_harm,
};
pub(crate) use self::load::{bench, object};
use self::overlay::{
    a_layer_of_two_containers_is_a_violation_of_each, what_is_done_to_a_container_is_one_violation,
};
use self::restart::{
    a_bad_config_is_rejected_and_the_old_one_holds, bad_baselines_are_rejected_and_the_old_one_holds,
    killed_while_violated_it_goes_on, started_on_less_it_says_so, without_a_baseline_it_is_uncertain,
};
use self::secret::a_secret_waits_for_the_clusters_key;
use self::topology::{
    a_directory_above_is_moved_and_comes_back, a_directory_above_that_is_mounted_over_itself_covers_nothing,
    a_mount_over_a_directory_above_is_seen_and_its_end_too,
    a_mount_that_carries_the_object_is_moved_and_taken_away,
    what_is_written_under_a_mount_is_seen_when_that_is_gone,
};
use self::uninstalled::uninstalled_it_leaves_nothing_in_the_kernel;
use self::volume::volumes_are_published_by_their_writer_alone;
use self::waiting::a_write_from_memory_that_keeps_it_waiting_is_told;
use crate::Case;

/// What is not one act on one object, in an order in which each finds no other agent running.
const OTHERS: &[Case] = crate::cases![
    volumes_are_published_by_their_writer_alone,
    a_directory_above_is_moved_and_comes_back,
    a_mount_over_a_directory_above_is_seen_and_its_end_too,
    a_directory_above_that_is_mounted_over_itself_covers_nothing,
    a_mount_that_carries_the_object_is_moved_and_taken_away,
    what_is_written_under_a_mount_is_seen_when_that_is_gone,
    anonymous_and_segment_mappings_do_no_harm,
    a_store_through_a_held_mapping_is_not_denied,
    a_write_from_memory_that_keeps_it_waiting_is_told,
    a_burst_on_one_object_is_counted,
    a_storm_leaves_each_object_right,
    killed_while_violated_it_goes_on,
    started_on_less_it_says_so,
    without_a_baseline_it_is_uncertain,
    bad_baselines_are_rejected_and_the_old_one_holds,
    a_bad_config_is_rejected_and_the_old_one_holds,
    a_secret_waits_for_the_clusters_key,
    what_nobody_signed_is_held_to_what_it_was_at_first,
];

/// A sensor on hooks that fails, or is overrun.
const FAULTS: &[Case] = crate::cases![
    what_is_taken_from_the_sensor_is_missed,
    what_is_too_much_for_the_sensor_is_named,
    uninstalled_it_leaves_nothing_in_the_kernel,
];
/// On the lowest rung alone: the queue of fanotify has no end.
const QUEUE: &[Case] = crate::cases![what_overflows_the_queue_is_named];
/// What takes long.
const STORMS: &[Case] = crate::cases![a_hundred_thousand_writes_are_counted];

/// Containers whose root is an overlay.
const OVERLAYS: &[Case] = crate::cases![
    what_is_done_to_a_container_is_one_violation,
    a_layer_of_two_containers_is_a_violation_of_each,
];
/// One that was sealed from its image's layout: seen on 6.12 only. Kernels before 6 let whoever opens a program that runs for writing copy it up.
const IMAGES: &[Case] =
    crate::cases![a_proxy_is_sealed_from_its_image, a_container_runs_what_its_image_brought];

/// A share of the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Each act by itself, all of them under one agent.
    Acts,
    /// Volumes, mounts, bursts and restarts, each under an agent of its own.
    Others,
    /// A sensor that fails; on hooks only.
    Faults,
    /// What is done to containers and their layers; on hooks only.
    Overlays,
    /// Each act by itself, on xfs and btrfs.
    FileSystems,
    All,
}

/// Whether this is the full lane, or somebody who asks for what takes long.
pub(crate) fn full() -> bool {
    std::env::var_os("MESHSEAL_TESTS_FULL").is_some()
}

/// What a test program's `main` returns, for that part, on that rung at most. `--table` tells what came of each act instead of judging it: `cargo xtask coverage`
/// makes the table of the docs from that.
pub fn main(part: Part, rung: &'static str) -> ExitCode {
    rung::at_most(rung);
    if let Some(played) = crate::process::played(actor::play) {
        return played;
    }
    if part == Part::FileSystems
        && let Err(error) = filesystems::choose()
    {
        println!("FAIL file systems: {error:#}");
        return ExitCode::FAILURE;
    }
    if std::env::args_os().any(|argument| argument == "--table") {
        return match world::table() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let cases = match part {
        Part::Acts | Part::FileSystems => world::CASES.to_vec(),
        Part::Others => OTHERS.to_vec(),
        Part::Faults if full() => [FAULTS, STORMS].concat(),
        Part::Faults => FAULTS.to_vec(),
        Part::Overlays if full() => [OVERLAYS, IMAGES].concat(),
        Part::Overlays => OVERLAYS.to_vec(),
        Part::All if rung == "inotify" => [world::CASES, OTHERS, QUEUE].concat(),
        Part::All => [world::CASES, OTHERS].concat(),
    };
    crate::main(&cases)
}
