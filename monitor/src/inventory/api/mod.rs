//! The Kubernetes API, as far as the agent asks it: the one place that knows it.
//!
//! What it tells is information, for attribution and for finding workloads. It never makes a change lawful and never takes an object
//! out of what is watched: whoever has rights on the API must not be able to blind the sensor. Where it contradicts what the kubelet
//! and the runtime left on the node's disk, the disk is believed. Nothing waits for it: all of it happens in one task of its own,
//! and what it has learned is read from memory.

mod access;
mod backoff;
mod fault;
mod known;
mod kubeconfig;
pub(crate) mod remembered;
mod sync;
mod transport;
mod wire;

#[cfg(test)]
mod tests;

pub use access::Source;
pub use fault::Fault;
pub use known::{Cluster, Known};
pub use remembered::Remembered;
pub use sync::{Timing, probe, run};
pub use wire::{ContainerFacts, Item, PodFacts, VolumeFacts, VolumeSource};

/// An event of a watch, a list, a refusal, a kubeconfig.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    use kube::core::{ObjectList, WatchEvent};

    let known = Known::new(Cluster::default());
    match serde_json::from_slice(bytes) {
        Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) => {
            if let Some(facts) = PodFacts::of(pod) {
                known.changed(facts);
            }
        }
        Ok(WatchEvent::Deleted(pod)) => {
            if let Some(facts) = PodFacts::of(pod) {
                known.deleted(facts);
            }
        }
        _ => {}
    }
    if let Ok(list) = serde_json::from_slice::<ObjectList<wire::Pod>>(bytes) {
        known.listed(list.items.into_iter().filter_map(PodFacts::of).collect(), 0);
    }
    crate::fuzz::used((known.pods(), known.status(), Fault::of_status(500, bytes)));
    if let Ok(text) = std::str::from_utf8(bytes) {
        crate::fuzz::used(kubeconfig::parse(text, std::path::Path::new("/")).is_ok());
    }
}

/// What the API would have told of these pods.
#[cfg(test)]
pub(crate) fn telling(pods: &[serde_json::Value]) -> std::sync::Arc<Known> {
    let known = Known::new(Cluster::default());
    for pod in pods {
        let pod: wire::Pod = serde_json::from_value(pod.clone()).unwrap();
        known.changed(PodFacts::of(pod).unwrap());
    }
    std::sync::Arc::new(known)
}
