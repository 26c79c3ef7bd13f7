//! How bad a violation is: what is wrong × how the object may change × what it is to the mesh.

use super::attack::Role;
use crate::model::{Class, Severity, ViolationKind};

/// Severity of a violation.
///
/// `critical` is what breaks the mesh's own trust (anchors, keys, what runs in or as a proxy, the plugin chain) or the
/// monitor; `high` any other change of content, name or place; attributes and extra names are `medium` where they
/// give nobody trust.
#[must_use]
pub const fn of(kind: ViolationKind, class: Class, role: Role) -> Severity {
    use ViolationKind as V;
    let trust = matches!(
        role,
        Role::TrustRoot
            | Role::Credential
            | Role::Binary
            | Role::CniBinary
            | Role::ProxyModule
            | Role::ImageLayer
    );
    match kind {
        V::Itself | V::Memory | V::Executed | V::Identity => Severity::Critical,
        V::Content | V::Replaced | V::Reverted | V::MountedOver | V::Structure | V::HeldHandle => {
            if trust && !matches!(class, Class::Opaque) { Severity::Critical } else { Severity::High }
        }
        V::Removed | V::Renamed => Severity::High,
        V::Unexpected => {
            if matches!(role, Role::CniConfig | Role::CniBinary | Role::Credential | Role::TrustRoot) {
                Severity::High
            } else {
                Severity::Medium
            }
        }
        V::Attributes => {
            if trust {
                Severity::High
            } else {
                Severity::Medium
            }
        }
        V::Linked => Severity::Medium,
    }
}

#[cfg(test)]
mod tests {
    use super::of;
    use crate::attribution::attack::Role;
    use crate::model::{Class, Severity, ViolationKind};

    #[test]
    fn trust_is_worse_than_names() {
        let cases = [
            (ViolationKind::Content, Class::Sealed, Role::TrustRoot, Severity::Critical),
            (ViolationKind::Content, Class::Sealed, Role::CniConfig, Severity::High),
            (ViolationKind::Replaced, Class::Opaque, Role::Socket, Severity::High),
            (ViolationKind::Attributes, Class::Sealed, Role::Credential, Severity::High),
            (ViolationKind::Attributes, Class::Sealed, Role::Other, Severity::Medium),
            (ViolationKind::Unexpected, Class::Sealed, Role::CniConfig, Severity::High),
            (ViolationKind::Linked, Class::Sealed, Role::Other, Severity::Medium),
            (ViolationKind::Itself, Class::Sealed, Role::Other, Severity::Critical),
        ];
        for (kind, class, role, severity) in cases {
            assert_eq!(of(kind, class, role), severity, "{kind:?} {class:?} {role:?}");
        }
    }
}
