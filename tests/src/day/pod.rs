//! A pod, as it lies and runs on the node.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::mesh::{MESHES, Mesh, Source, TOKEN_AT};
use crate::pods::container::{About, Container, join};
use crate::process::Process;

/// A pod.
#[derive(Debug)]
pub(super) struct Pod {
    /// In [`MESHES`].
    pub(super) mesh: usize,
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) dir: PathBuf,
    /// What the kubelet publishes: the mesh's volumes, then the API server's own.
    pub(super) published: Vec<Published>,
    pub(super) container: Option<Container>,
    /// The first process of that.
    pub(super) first: Option<Process>,
    pub(super) log: PathBuf,
}

/// A volume that the kubelet publishes.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub(super) path: PathBuf,
    pub(super) source: Source,
    /// A tmpfs of its own.
    pub(super) memory: bool,
}

impl Published {
    pub(super) fn new(pod: &Path, name: &str, source: Source) -> Self {
        let plugin = match source {
            Source::ConfigMap(_) => "configmap",
            Source::Secret(_) => "secret",
            Source::Token(..) => "projected",
        };
        let path = pod.join(format!("volumes/kubernetes.io~{plugin}")).join(name);
        Self { path, source, memory: plugin != "configmap" }
    }
}

impl Pod {
    pub(super) fn mesh(&self) -> &'static Mesh {
        &MESHES[self.mesh]
    }

    /// A volume that the pod fills itself.
    pub(super) fn scratch(&self, name: &str) -> PathBuf {
        self.dir.join("volumes/kubernetes.io~empty-dir").join(name)
    }

    /// The volume of that name that the kubelet publishes.
    pub(super) fn volume(&self, name: &str) -> Result<&Path> {
        let ends = |volume: &&Published| volume.path.ends_with(name);
        Ok(&self.published.iter().find(ends).with_context(|| format!("no volume {name}"))?.path)
    }

    /// Runs a container of it.
    pub(super) fn run(&mut self, work: &Path, layer: &Path, id: &str) -> Result<()> {
        let mesh = self.mesh();
        let mut mounts: Vec<(PathBuf, &str)> = Vec::new();
        for volume in mesh.volumes {
            mounts.push((self.volume(volume.name)?.to_owned(), volume.at));
        }
        let own = self.published.last().context("no token")?;
        mounts.push((own.path.clone(), TOKEN_AT));
        mounts.extend(mesh.scratch.iter().map(|scratch| (self.scratch(scratch.name), scratch.at)));
        mounts.extend(mesh.host.iter().map(|(from, at)| (PathBuf::from(from), *at)));
        let about = About {
            id,
            name: mesh.container,
            pod_uid: &self.uid,
            namespace: mesh.namespace,
            pod: &self.name,
            image: mesh.image,
        };
        let container = Container::make(work, layer, &mounts, &about)?;
        self.first = Some(container.start(mesh.exe)?);
        self.container = Some(container);
        Ok(())
    }

    /// Ends its container, if it runs.
    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(first) = self.first.take() {
            first.end()?;
        }
        self.container = None;
        Ok(())
    }

    pub(super) fn running(&self) -> Result<&Container> {
        self.container.as_ref().context("the pod does not run")
    }

    /// Tells its agent to do something.
    pub(super) fn tell(&mut self, words: &str) -> Result<()> {
        self.first.as_mut().context("the pod does not run")?.tell(words)
    }

    /// `kubectl exec`: another process in its container, that runs this.
    pub(super) fn exec(&self, exe: &str) -> Result<Process> {
        join(self.pid()?, self.running()?.cgroup()?, exe)
    }

    /// The agent's process, as the host numbers it.
    pub(super) fn pid(&self) -> Result<u32> {
        Ok(self.first.as_ref().context("the pod does not run")?.pid())
    }

    /// Where the host sees a file of its container.
    pub(super) fn root(&self) -> Result<&Path> {
        Ok(&self.running()?.root)
    }

    /// Lets its memory go.
    pub(super) fn unmount(&self) {
        let memory = self.published.iter().filter(|volume| volume.memory).map(|volume| volume.path.clone());
        let own = self.mesh().scratch.iter().filter(|scratch| scratch.memory);
        for path in memory.chain(own.map(|scratch| self.scratch(scratch.name))) {
            let _gone = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
