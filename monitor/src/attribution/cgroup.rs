//! cgroup path → pod uid and container id, for the shapes kubelet, containerd and CRI-O produce.
//!
//! Searched anywhere in the path (nested nodes put prefixes before it); the outermost match counts, because what
//! lies below a container's cgroup is made by the container.

/// What a cgroup path tells of its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    /// Pod uid with dashes, or 32 hex digits for a static pod.
    pub pod_uid: String,
    /// 64 hex digits; `None` for the pod's own cgroup.
    pub container_id: Option<String>,
}

/// Prefixes runtimes put before a container id.
const RUNTIMES: [&str; 5] = ["cri-containerd-", "crio-", "docker-", "nerdctl-", "libpod-"];

/// Finds pod and container. `None` for what runs outside pods, `crio-conmon` scopes among them.
#[must_use]
pub fn parse(path: &str) -> Option<PodCgroup> {
    let mut below_kubepods = false;
    let mut components = path.split('/');
    while let Some(component) = components.next() {
        below_kubepods |= component.contains("kubepods");
        if !below_kubepods {
            continue;
        }
        let Some((pod_uid, rest)) = pod_in(component) else { continue };
        // A kubelet with the systemd driver over a runtime with the other: `<pod>.slice:cri-containerd:<id>`.
        let leaf = match rest.strip_prefix(".slice").unwrap_or(rest) {
            "" => components.next(),
            tail => Some(tail.strip_prefix(":cri-containerd:")?),
        };
        if leaf.is_some_and(|leaf| leaf.starts_with("crio-conmon-")) {
            return None;
        }
        return Some(PodCgroup { pod_uid, container_id: leaf.and_then(container_in) });
    }
    None
}

/// Whether a path lies below the kubelet's cgroups for pods, whichever shape it has.
#[must_use]
pub fn in_kubepods(path: &str) -> bool {
    path.split('/').any(|component| component.contains("kubepods"))
}

fn pod_in(component: &str) -> Option<(String, &str)> {
    let after = if let Some(rest) = component.strip_prefix("pod") {
        rest
    } else {
        &component[component.find("-pod")? + 4..]
    };
    [36, 32].into_iter().find_map(|length| {
        let (uid, rest) = after.split_at_checked(length)?;
        let ends = rest.is_empty() || rest.starts_with(".slice") || rest.starts_with(':');
        (ends && is_uid(uid)).then(|| (uid.replace('_', "-"), rest))
    })
}

fn is_uid(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match text.len() {
        32 => text.bytes().all(digit),
        36 => text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-' || byte == b'_',
            _ => digit(byte),
        }),
        _ => false,
    }
}

fn container_in(leaf: &str) -> Option<String> {
    let leaf = leaf.strip_suffix(".scope").unwrap_or(leaf);
    let id = RUNTIMES.iter().find_map(|prefix| leaf.strip_prefix(prefix)).unwrap_or(leaf);
    let hex = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{PodCgroup, in_kubepods, parse};

    const DASHED: &str = "0123abcd-4567-89ab-cdef-0123456789ab";
    const SCORED: &str = "0123abcd_4567_89ab_cdef_0123456789ab";
    const STATIC: &str = "0123abcd456789abcdef0123456789ab";

    fn id() -> String {
        "0123456789abcdef".repeat(4)
    }

    fn found(path: &str) -> Option<(String, Option<String>)> {
        parse(path).map(|PodCgroup { pod_uid, container_id }| (pod_uid, container_id))
    }

    #[test]
    fn every_shape_is_known() {
        let id = id();
        let shapes = [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SCORED}.slice/cri-containerd-{id}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{SCORED}.slice/cri-containerd-{id}.scope"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SCORED}.slice/crio-{id}.scope"
            ),
            format!("/kubepods/burstable/pod{DASHED}/{id}"),
            format!("/kubepods/pod{DASHED}/{id}"),
            format!("/kubepods/besteffort/pod{DASHED}/crio-{id}"),
            format!("/kubepods/besteffort/pod{DASHED}/docker-{id}.scope"),
            format!(
                "/system.slice/containerd.service/kubepods-besteffort-pod{SCORED}.slice:cri-containerd:{id}"
            ),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SCORED}.slice/cri-containerd-{id}.scope"
            ),
            format!("/kubelet/kubepods/burstable/pod{DASHED}/{id}"),
            format!("/docker/{id}/kubelet/kubepods/burstable/pod{DASHED}/{id}/init.scope"),
            format!("/../../kubepods-burstable-pod{SCORED}.slice/cri-containerd-{id}.scope"),
        ];
        for shape in shapes {
            assert_eq!(found(&shape), Some((DASHED.into(), Some(id.clone()))), "{shape}");
        }
        let path = format!("/kubepods/burstable/pod{STATIC}/{id}");
        assert_eq!(found(&path), Some((STATIC.into(), Some(id))));
    }

    #[test]
    fn a_pod_without_container_is_a_pod() {
        let path = format!("/kubepods.slice/kubepods-pod{SCORED}.slice");
        assert_eq!(found(&path), Some((DASHED.into(), None)));
        assert_eq!(found(&format!("/kubepods/pod{DASHED}/short")), Some((DASHED.into(), None)));
    }

    #[test]
    fn what_is_no_pod_is_none() {
        let id = id();
        let none = [
            "/".to_owned(),
            String::new(),
            "/system.slice/kubelet.service".to_owned(),
            "/kubepods.slice".to_owned(),
            format!("/kubepods.slice/kubepods-pod{SCORED}.slice/crio-conmon-{id}.scope"),
            format!("/machine.slice/pod{DASHED}/{id}"),
            format!("/kubepods/pod{}/{id}", DASHED.to_uppercase()),
            format!("/kubepods/pod{DASHED}x/{id}"),
            "/kubepods/pod\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}x/y".to_owned(),
        ];
        for path in none {
            assert_eq!(found(&path), None, "{path}");
        }
        assert!(in_kubepods("/kubepods.slice") && !in_kubepods("/system.slice/kubelet.service"));
    }

    #[test]
    fn a_container_cannot_name_another_pod() {
        let (id, other) = (id(), "ffffffff-4567-89ab-cdef-0123456789ab");
        let path = format!("/kubepods/pod{DASHED}/{id}/kubepods/pod{other}/{id}");
        assert_eq!(found(&path), Some((DASHED.into(), Some(id))));
    }
}
