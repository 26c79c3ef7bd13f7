//! Files of manifests to documents: YAML with several documents, JSON with several values, bounded.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::plain::Plain;
use crate::baseline::{Error, read_bounded};

/// Longest file, in bytes.
const FILE_MAX: u64 = 64 << 20;
/// Most bytes of all files.
const TOTAL_MAX: u64 = 256 << 20;
/// Most files and directories.
const ENTRIES_MAX: usize = 100_000;
/// Deepest directory.
const DEPTH_MAX: usize = 32;
/// Endings of files that are read; others in a directory are not manifests.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// A document, and where it stands.
#[derive(Debug, Clone)]
pub struct Document {
    /// File and number of the document in it, from 1.
    pub place: String,
    /// What it says.
    pub value: Value,
}

/// Reads files and directories (with all below them; links to files are followed, links to directories are not).
///
/// # Errors
/// One cannot be read, is no manifest, or is beyond the bounds; a directory has no manifests.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Document>, Error> {
    let (mut documents, mut total) = (Vec::new(), 0);
    for path in paths {
        let files = if path.is_dir() { files_below(path)? } else { vec![path.clone()] };
        if files.is_empty() {
            return Err(Error::new("no manifests", path.display(), "files that end in .yaml, .yml or .json"));
        }
        for file in files {
            let bytes = read_bounded(&file, FILE_MAX)?;
            total += bytes.len() as u64;
            if total > TOTAL_MAX {
                let expected = format!("at most {TOTAL_MAX} bytes of manifests in all");
                return Err(Error::new("too many manifests", file.display(), expected));
            }
            parse(&file.display().to_string(), &bytes, &mut documents)?;
        }
    }
    Ok(documents)
}

fn files_below(top: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |path: &Path, expected: String| Error::new("cannot read manifests", path.display(), expected);
    let (mut files, mut pending, mut seen) = (Vec::new(), vec![(top.to_owned(), 0)], 0);
    while let Some((dir, depth)) = pending.pop() {
        if depth > DEPTH_MAX {
            return Err(fail(&dir, format!("directories at most {DEPTH_MAX} deep")));
        }
        let entries =
            std::fs::read_dir(&dir).map_err(|e| fail(&dir, format!("a readable directory ({e})")))?;
        for entry in entries {
            let entry = entry.map_err(|e| fail(&dir, format!("a readable directory ({e})")))?;
            seen += 1;
            if seen > ENTRIES_MAX {
                return Err(fail(top, format!("at most {ENTRIES_MAX} files")));
            }
            let (path, kind) = (entry.path(), entry.file_type());
            let kind = kind.map_err(|e| fail(&path, format!("a file ({e})")))?;
            if kind.is_dir() {
                // What version control keeps is no manifest.
                if entry.file_name() != ".git" {
                    pending.push((path, depth + 1));
                }
                continue;
            }
            let ending = path.extension().and_then(|ending| ending.to_str());
            let named = ending.is_some_and(|ending| ENDINGS.contains(&ending));
            if named && (kind.is_file() || (kind.is_symlink() && !path.is_dir())) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Parses the bytes of one file, and appends its documents.
///
/// # Errors
/// It is neither YAML nor JSON in UTF-8, a key comes twice, or it is beyond the bounds.
pub fn parse(place: &str, bytes: &[u8], documents: &mut Vec<Document>) -> Result<(), Error> {
    let bad = |expected: &str| Error::new("bad manifest", place, expected);
    let text = std::str::from_utf8(bytes).map_err(|_| bad("text in UTF-8"))?;
    let text = text.trim_start_matches('\u{feff}');
    if text.contains('\0') {
        return Err(bad("text without NUL"));
    }
    let values = if text.trim_start().starts_with(['{', '[']) { json(text) } else { yaml(text) };
    let values = values.map_err(|expected| bad(&expected))?;
    let numbered = values.into_iter().zip(1_u32..).filter(|(value, _)| !value.is_null());
    documents.extend(numbered.map(|(value, at)| Document { place: format!("{place}#{at}"), value }));
    Ok(())
}

fn json(text: &str) -> Result<Vec<Value>, String> {
    let mut values = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Plain>();
    for value in stream.by_ref() {
        match value {
            Ok(Plain(value)) => values.push(value),
            // A flow mapping of YAML looks like JSON at first, and so does a document before others.
            Err(e) if e.is_syntax() => {
                return yaml(text).map_err(|_| format!("JSON or YAML ({e})"));
            }
            Err(e) => return Err(format!("JSON ({e})")),
        }
    }
    Ok(values)
}

fn yaml(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4_000_000,
            max_nodes: 2_000_000,
            max_depth: 128,
            flow_nesting_limit: 128,
            max_aliases: 10_000,
            max_anchors: 10_000,
            max_recorded_anchor_events: 100_000,
            max_documents: 100_000,
            max_total_scalar_bytes: 128 << 20,
            max_total_comment_bytes: 64 << 20,
        },
        // kubectl reads YAML 1.1: `defaultMode: 0444` is octal.
        legacy_octal_numbers: true,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        // `Plain` merges, as kubectl does.
        merge_keys: serde_saphyr::options::MergeKeyPolicy::AsOrdinary,
        with_snippet: false,
    };
    let values = serde_saphyr::from_multiple_with_options::<Plain>(text, options);
    values.map(|values| values.into_iter().map(|Plain(value)| value).collect()).map_err(|e| {
        let at = e.location().map(|at| format!("line {}: ", at.line())).unwrap_or_default();
        format!("YAML ({at}{})", crate::yaml::describe(&e, "", "manifest"))
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn what_is_wrong_is_said_to_who_wrote_the_manifest() {
        let said = |text: &str| parse("m.yaml", text.as_bytes(), &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(
            said("kind: X\nkind: Y\n"),
            "bad manifest: m.yaml: YAML (line 2: key 'kind' is given twice, expected it once)"
        );
    }
}
