//! Baselines from rendered Kubernetes manifests: what the kubelet will lay down, worked out before it does.
//!
//! - [`document`]: files to documents, bounded; `plain`: what they say, as kubectl reads it; [`api`]: the parts of Kubernetes objects that count here;
//!   [`store`]: all objects of a set of manifests, by kind, namespace and name.
//! - [`mod@payload`]: which files a volume holds, as the kubelet's volume plugins collect them; [`layout`]: with which
//!   modes and owners, as `AtomicWriter` and `SetVolumeOwnership` leave them.
//! - [`mod@seal`]: the same as objects of a statement.
//!
//! What cannot be worked out is listed in the statement (`unresolved`), never left out in silence.
//! Facts: kubernetes `pkg/volume/{configmap,secret,projected,downwardapi,emptydir}`, `pkg/volume/util`
//! (`atomic_writer.go`, `volume_linux.go`), `plugin/pkg/admission/serviceaccount`.

pub mod api;
pub mod document;
pub mod layout;
pub mod payload;
mod plain;
mod resources;
pub mod seal;
pub mod store;
mod variables;

pub use seal::{Options, seal};
pub use store::Manifests;
