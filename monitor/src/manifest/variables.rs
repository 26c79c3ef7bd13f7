//! Variables in `subPathExpr`: `$(NAME)` stands for a variable of the container, `$$` for a dollar
//! (`third_party/forked/golang/expansion`).

use std::collections::BTreeMap;

use super::api::{Container, EnvVar};
use super::store::Template;
use crate::baseline::anchor::WorkloadKind;

/// Longest text with its variables put in, in bytes: a path cannot be longer, and forty variables that each name the one before
/// twice would fill any memory.
const TEXT_MAX: usize = 4096;

/// The variables of a container that are known before there is a pod, by name; `None` for those that are not.
pub(super) fn environment(template: &Template, container: &Container) -> BTreeMap<String, Option<String>> {
    let mut known: BTreeMap<String, Option<String>> = BTreeMap::new();
    for EnvVar { name, value, value_from } in &container.env {
        let value = match (value, value_from) {
            (_, Some(source)) => {
                source.field_ref.as_ref().and_then(|field| match field.field_path.as_str() {
                    "metadata.namespace" => Some(template.workload.namespace.clone()),
                    "spec.serviceAccountName" => Some(template.workload.service_account.clone()),
                    "metadata.name" if template.workload.kind == WorkloadKind::Pod => {
                        Some(template.workload.name.clone())
                    }
                    _ => None,
                })
            }
            (value, None) => expand(value.as_deref().unwrap_or_default(), &known),
        };
        known.insert(name.clone(), value);
    }
    known
}

/// The text with its variables put in; `None` if one of them is not known, or it is too long for a path. In Kubernetes a name that no variable has
/// stays as it is written; in a subPath that is an error.
pub(super) fn expand(text: &str, known: &BTreeMap<String, Option<String>>) -> Option<String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            out.push_str(known.get(name)?.as_deref()?);
            rest = after;
            if out.len() > TEXT_MAX {
                return None;
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    (out.len() <= TEXT_MAX).then_some(out)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{TEXT_MAX, environment, expand};
    use crate::manifest::document::parse;
    use crate::manifest::store::Manifests;

    #[test]
    fn variables_that_grow_without_end_are_not_known() {
        use std::fmt::Write as _;

        let mut text = "{kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, env: [\
            {name: V0, value: xxxxxxxx}"
            .to_owned();
        for at in 1..64 {
            write!(text, ", {{name: V{at}, value: $(V{0})$(V{0})}}", at - 1).unwrap();
        }
        text.push_str("]}]}}");
        let mut documents = Vec::new();
        parse("m.yaml", text.as_bytes(), &mut documents).unwrap();
        let manifests = Manifests::of(documents, "ns").unwrap();
        let template = manifests.templates().next().unwrap();
        let known = environment(template, &template.pod.spec.containers[0]);
        assert_eq!(known["V9"].as_ref().map(String::len), Some(TEXT_MAX));
        assert_eq!((&known["V10"], &known["V63"]), (&None, &None));
    }

    #[test]
    fn variables_are_put_in_and_unknown_ones_are_not_guessed() {
        let known = BTreeMap::from([("A".to_owned(), Some("x".to_owned())), ("B".to_owned(), None)]);
        for (text, expected) in [
            ("plain", Some("plain")),
            ("$(A)/b", Some("x/b")),
            ("$$(A)", Some("$(A)")),
            ("$A $", Some("$A $")),
            ("$(A", Some("$(A")),
            ("$(B)", None),
            ("$(C)", None),
        ] {
            assert_eq!(expand(text, &known).as_deref(), expected, "{text}");
        }
    }
}
