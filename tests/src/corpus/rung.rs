//! What differs from rung to rung.

use std::sync::OnceLock;

static HIGHEST: OnceLock<&'static str> = OnceLock::new();

/// Agents of this program run on that rung at most.
pub(crate) fn at_most(rung: &'static str) {
    HIGHEST.get_or_init(|| rung);
}

/// The config's `sensor.rung`.
pub(crate) fn highest() -> &'static str {
    HIGHEST.get_or_init(|| "auto")
}

/// It sees each act by itself, and who it is by at that moment.
pub(crate) fn on_hooks(rung: &str) -> bool {
    matches!(rung, "lsm" | "fentry")
}

/// It knows who acted.
pub(super) fn names_actors(rung: &str) -> bool {
    rung != "inotify"
}

/// How a rung tells of an operation.
pub(crate) fn told_by<'a>(rung: &str, operation: &'a str) -> &'a str {
    match (rung, operation) {
        ("lsm" | "fentry", operation) => operation,
        (_, "truncate") => "write",
        // Only the close is seen.
        (_, "mmap") => "open",
        (_, "setxattr" | "removexattr") => "setattr",
        (_, operation) => operation,
    }
}

/// It sees what is done to a directory above an object, and a link that is gone again, rather than the outcome.
pub(super) fn tells_the_act(rung: &str, act: &str) -> bool {
    let unseen = [
        "rename_an_ancestor",
        "replace_an_ancestor_by_a_link_to_it",
        "exchange_an_ancestor",
        "exchange_an_ancestor_and_back",
        "take_away_and_put_back_by_a_link",
    ];
    rung != "inotify" || !unseen.contains(&act)
}
