//! A verification as SARIF 2.1.0, for code scanning and other viewers of findings.
//!
//! <https://docs.oasis-open.org/sarif/sarif/v2.1.0/>

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::output;
use super::tree::Tree;
use crate::baseline::signed::Report;
use crate::baseline::verify::Outcome;
use crate::baseline::{Aspect, Baseline, Difference};
use crate::model::HostPath;

/// The root that paths are relative to.
const ROOT: &str = "HOSTROOT";

/// The whole log.
pub(super) fn log(
    baseline: &Baseline,
    tree: &Tree,
    report: &Report,
    outcome: &Outcome,
    root: &Path,
    exit: u8,
) -> Value {
    let rules: Vec<Value> = Aspect::ALL.iter().map(|aspect| rule(*aspect)).collect();
    let mut results = Vec::new();
    for differs in &outcome.differs {
        let Some(object) = baseline.objects.get(differs.at) else { continue };
        for difference in &differs.differences {
            results.push(result(&tree.id(baseline, object).to_string(), &object.path, difference));
        }
    }
    let untold: Vec<Value> = outcome
        .unknown
        .iter()
        .filter_map(|(at, error)| {
            let object = baseline.objects.get(*at)?;
            Some(json!({
                "level": "error",
                "message": { "text": output::one_line(&format!("cannot tell: {error}")) },
                "locations": [location(&object.path)],
            }))
        })
        .collect();
    let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "meshseal",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": rules,
            }},
            "originalUriBaseIds": { ROOT: { "uri": directory(&root) } },
            "invocations": [{
                "executionSuccessful": exit < 2,
                "exitCode": exit,
                "toolExecutionNotifications": untold,
            }],
            "results": results,
            "properties": {
                "baseline": baseline.name,
                "revision": baseline.revision,
                "sha256": hex::encode(baseline.sha256),
                "sourceCommit": baseline.source_commit,
                "signers": report.ids(),
                "objects": baseline.objects.len(),
            },
        }],
    })
}

fn rule(aspect: Aspect) -> Value {
    let text = match aspect {
        Aspect::Missing => "A sealed object is not there.",
        Aspect::Type => "Another type of inode stands where an object is sealed.",
        Aspect::Content => "The bytes of a file are not as sealed.",
        Aspect::Target => "A link leads elsewhere than sealed.",
        Aspect::Names => "A closed directory or volume has a name too many, too few, or of another type.",
        Aspect::Structure => "A volume is not laid out as its publisher lays it out.",
        Aspect::Identity => "A rotated certificate or token does not keep the sealed identity.",
        Aspect::Attributes => "Mode, owner or extended attributes are not as sealed.",
    };
    json!({
        "id": format!("meshseal/{}", aspect.as_str()),
        "name": aspect.as_str(),
        "shortDescription": { "text": text },
        "defaultConfiguration": { "level": "error" },
    })
}

fn result(id: &str, path: &HostPath, difference: &Difference) -> Value {
    let entry = difference.entry.clone().map(HostPath::new);
    let aspect = difference.aspect.as_str();
    let mut text = format!("{path} is not as sealed: {aspect}");
    // Writing to a string cannot fail.
    if let Some(entry) = &entry {
        _ = write!(text, " of {entry}");
    }
    if let Some(detail) = &difference.detail {
        _ = write!(text, ": {detail}");
    }
    for key in difference.keys() {
        let of = |state: &crate::model::State| state.get(key).map_or("none", String::as_str).to_owned();
        _ = write!(text, "; {key} {} expected, {} found", of(&difference.expected), of(&difference.actual));
    }
    let mut print = Sha256::new();
    for part in [id.as_bytes(), aspect.as_bytes(), difference.entry.as_deref().unwrap_or_default()] {
        print.update((part.len() as u64).to_le_bytes());
        print.update(part);
    }
    let print = hex::encode(print.finalize().get(..16).unwrap_or_default());
    json!({
        "ruleId": format!("meshseal/{aspect}"),
        "level": "error",
        "kind": "fail",
        "message": { "text": output::one_line(&text) },
        "locations": [location(path)],
        "partialFingerprints": { "meshsealObject/v1": print },
        "properties": {
            "object": id,
            "entry": entry,
            "expected": difference.expected,
            "actual": difference.actual,
        },
    })
}

fn location(path: &HostPath) -> Value {
    let relative = path.as_bytes().strip_prefix(b"/").unwrap_or(path.as_bytes());
    json!({ "physicalLocation": {
        "artifactLocation": { "uri": escaped(relative), "uriBaseId": ROOT },
    }})
}

/// A `file` URI with a slash at its end, as a base must have one.
fn directory(path: &Path) -> String {
    let mut uri = format!("file://{}", escaped(path.as_os_str().as_bytes()));
    if !uri.ends_with('/') {
        uri.push('/');
    }
    uri
}

/// RFC 3986: all but unreserved characters and slashes as `%NN`.
fn escaped(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{directory, escaped};

    #[test]
    fn any_path_makes_a_uri() {
        assert_eq!(escaped(b"etc/a b\n\xff:#"), "etc/a%20b%0A%FF%3A%23");
        assert_eq!(directory("/".as_ref()), "file:///");
        assert_eq!(directory("/host root".as_ref()), "file:///host%20root/");
    }
}
