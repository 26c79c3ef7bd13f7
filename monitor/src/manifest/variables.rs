//! Variables in `subPathExpr`: `$(NAME)` stands for a variable of the container, `$$` for a dollar
//! (`third_party/forked/golang/expansion`).

use std::collections::BTreeMap;

use super::api::{Container, EnvVar};
use super::store::Template;
use crate::baseline::anchor::WorkloadKind;

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

/// The text with its variables put in; `None` if one of them is not known. In Kubernetes a name that no variable has
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
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::expand;

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
