//! A profile's text → a profile: bounded, and every refusal with file, line and key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::de::value::{Error as WordError, StrDeserializer};

use super::written::{self, Text, Written};
use super::{Compare, Executable, FileRule, Pattern, PodWriter, Profile, ProfileError, Rate, Status};
use crate::attribution::attack::Role;
use crate::baseline::{Publish, Writer};
use crate::config::units;
use crate::model::{Class, Severity, ViolationKind};
use crate::yaml;

const API_VERSION: &str = "meshseal/v1";
/// What a profile file is called in refusals.
pub(super) const NOUN: &str = "profile";
/// Longest text for people, in bytes.
const TEXT_MAX: usize = 512;
/// Most files, executables, writers or containers of a profile.
const LIST_MAX: usize = 256;
/// A container's runtime, which sets up what a pod mounts.
const RUNTIME: &str = "runtime";

/// Reads one profile.
///
/// # Errors
/// The text or a value in it is refused.
pub fn parse(file: &str, text: &str) -> Result<Profile, ProfileError> {
    let written: Written =
        yaml::parse(text, NOUN).map_err(|refusal| ProfileError::new(file, refusal.line, refusal.message))?;
    Checker { file }.profile(&written)
}

struct Checker<'f> {
    file: &'f str,
}

impl Checker<'_> {
    fn refuse(&self, value: &Text, key: &str, why: &str) -> ProfileError {
        let line = value.referenced.line();
        ProfileError::new(self.file, (line > 0).then_some(line), format!("{key}: {why}"))
    }

    fn profile(&self, written: &Written) -> Result<Profile, ProfileError> {
        if written.api_version.value != API_VERSION {
            let why = format!("'{}' is not supported, expected {API_VERSION}", shown(&written.api_version));
            return Err(self.refuse(&written.api_version, "apiVersion", &why));
        }
        let containers = self.names(&written.containers, "containers", &written.profile)?;
        if written.only_with_container && containers.is_empty() {
            let why = "names no containers, expected one at least beside onlyWithContainer";
            return Err(self.refuse(&written.profile, "containers", why));
        }
        self.few(written.executables.len(), "executables", &written.profile)?;
        self.few(written.writers.len(), "writers", &written.profile)?;
        self.few(written.files.len(), "files", &written.profile)?;
        let executables = written.executables.iter().enumerate().map(|(at, executable)| {
            Ok(Executable {
                path: self.absolute(&executable.path, &format!("executables[{at}].path"))?,
                about: self.text(&executable.about, &format!("executables[{at}].about"))?,
                anywhere: executable.anywhere.unwrap_or(true),
            })
        });
        let executables = executables.collect::<Result<Vec<_>, _>>()?;
        let mut profile = Profile {
            name: self.name(&written.profile, "profile")?,
            mesh: self.name(&written.mesh, "mesh")?,
            about: self.text(&written.about, "about")?,
            read_from: self.text(&written.read_from, "readFrom")?,
            status: self.word(&written.status, "status", &[("run", Status::Run), ("read", Status::Read)])?,
            containers,
            only_with_container: written.only_with_container,
            identity: written.identity.as_ref().map(|text| self.text(text, "identity")).transpose()?,
            executables,
            writers: Vec::new(),
            files: Vec::new(),
            origin: self.file.to_owned(),
        };
        for (at, writer) in written.writers.iter().enumerate() {
            let writer = self.writer(writer, &format!("writers[{at}]"), &profile)?;
            profile.writers.push(writer);
        }
        for (at, file) in written.files.iter().enumerate() {
            let rule = self.rule(file, &format!("files[{at}]"), &profile)?;
            profile.files.push(rule);
        }
        for (at, rule) in profile.files.iter().enumerate().filter(|(_, rule)| rule.path.is_in_volume()) {
            if !profile.files.iter().any(|other| rule.path.is_in(&other.path)) {
                let why =
                    "lies in a volume without an entry of its own, expected one with the same placeholder";
                return Err(self.refuse(&written.files[at].path, &format!("files[{at}].path"), why));
            }
        }
        Ok(profile)
    }

    fn writer(
        &self,
        written: &written::Writer,
        at: &str,
        profile: &Profile,
    ) -> Result<PodWriter, ProfileError> {
        let key = |name: &str| format!("{at}.{name}");
        let name = self.name(&written.name, &key("name"))?;
        if name == Writer::KUBELET
            || name == RUNTIME
            || profile.writers.iter().any(|known| known.name == name)
        {
            let why =
                format!("'{name}' is taken, expected another name than kubelet, runtime and those before");
            return Err(self.refuse(&written.name, &key("name"), &why));
        }
        let exe = self.absolute(&written.exe, &key("exe"))?;
        if !profile.executables.iter().any(|executable| executable.path == exe) {
            return Err(self.refuse(&written.exe, &key("exe"), &format!("'{exe}' is not in executables")));
        }
        let containers = self.names(&written.containers, &key("containers"), &written.name)?;
        if let Some(strange) = containers.iter().find(|name| !profile.containers.contains(name)) {
            let why = format!("'{strange}' is not in the profile's containers");
            return Err(self.refuse(&written.name, &key("containers"), &why));
        }
        if containers.is_empty() {
            let why = "names none, expected the containers it runs in";
            return Err(self.refuse(&written.name, &key("containers"), why));
        }
        Ok(PodWriter { name, exe, containers })
    }

    fn rule(&self, written: &written::File, at: &str, profile: &Profile) -> Result<FileRule, ProfileError> {
        let key = |name: &str| format!("{at}.{name}");
        let path = Pattern::new(&written.path.value);
        let path = path.map_err(|why| self.refuse(&written.path, &key("path"), &why))?;
        if profile.files.iter().any(|known| known.path == path) {
            return Err(self.refuse(&written.path, &key("path"), "is given twice, expected it once"));
        }
        let mut writers = Vec::new();
        for (n, name) in written.writers.iter().enumerate() {
            let known = name.value == Writer::KUBELET
                || name.value == RUNTIME
                || profile.writers.iter().any(|writer| writer.name == name.value);
            if !known || writers.contains(&name.value) {
                let why =
                    format!("'{}' is no writer, expected kubelet, runtime or one of writers", shown(name));
                return Err(self.refuse(name, &key(&format!("writers[{n}]")), &why));
            }
            writers.push(name.value.clone());
        }
        let mut severity = BTreeMap::new();
        for (kind, text) in &written.severity {
            let at = key(&format!("severity.{}", kind.chars().take(40).collect::<String>()));
            let kind = word_of::<ViolationKind>(kind).ok_or_else(|| {
                self.refuse(text, &at, "is no kind of violation, expected one such as content or identity")
            })?;
            let value = word_of::<Severity>(&text.value).ok_or_else(|| {
                let why = "is no severity, expected one of info, low, medium, high, critical";
                self.refuse(text, &at, &format!("'{}' {why}", shown(text)))
            })?;
            severity.insert(kind, value);
        }
        Ok(FileRule {
            path,
            about: self.text(&written.about, &key("about"))?,
            class: self.word(
                &written.class,
                &key("class"),
                &[
                    ("sealed", Class::Sealed),
                    ("generated", Class::Generated),
                    ("rotated", Class::Rotated),
                    ("opaque", Class::Opaque),
                ],
            )?,
            role: self.word(&written.role, &key("role"), &Role::WORDS)?,
            writers,
            rate: self.rate(written.rate.as_ref(), &key("rate"))?,
            publish: match &written.publish {
                None => Publish::default(),
                Some(text) => self.word(
                    text,
                    &key("publish"),
                    &[("in-place", Publish::InPlace), ("redeploy", Publish::Redeploy)],
                )?,
            },
            compare: match &written.compare {
                None => Compare::Bytes,
                Some(text) => {
                    let all = [Compare::Bytes, Compare::Pem, Compare::Cni, Compare::Json, Compare::Yaml];
                    self.word(text, &key("compare"), &all.map(|one| (one.as_str(), one)))?
                }
            },
            severity,
        })
    }

    fn rate(&self, text: Option<&Text>, key: &str) -> Result<Rate, ProfileError> {
        let Some(text) = text else { return Ok(Rate::OnChange) };
        match text.value.as_str() {
            "never" => Ok(Rate::Never),
            "at-start" => Ok(Rate::AtStart),
            "on-change" => Ok(Rate::OnChange),
            other => match units::duration(other) {
                Ok(every) if every >= Duration::from_secs(1) => Ok(Rate::Every(every)),
                _ => {
                    let why = "is no rate, expected never, at-start, on-change or a duration such as 48m";
                    Err(self.refuse(text, key, &format!("'{}' {why}", shown(text))))
                }
            },
        }
    }

    fn word<T: Copy>(&self, text: &Text, key: &str, words: &[(&str, T)]) -> Result<T, ProfileError> {
        let found = words.iter().find(|(word, _)| *word == text.value).map(|&(_, value)| value);
        found.ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|&(word, _)| word).collect();
            let why = format!("'{}' is no valid value, expected one of {}", shown(text), words.join(", "));
            self.refuse(text, key, &why)
        })
    }

    fn few(&self, count: usize, key: &str, near: &Text) -> Result<(), ProfileError> {
        if count > LIST_MAX {
            let why = format!("has {count} entries, expected at most {LIST_MAX}");
            return Err(self.refuse(near, key, &why));
        }
        Ok(())
    }

    fn names(&self, list: &[Text], key: &str, near: &Text) -> Result<Vec<String>, ProfileError> {
        self.few(list.len(), key, near)?;
        let mut seen = BTreeSet::new();
        let mut names = Vec::new();
        for (at, text) in list.iter().enumerate() {
            let key = format!("{key}[{at}]");
            let name = self.name(text, &key)?;
            if !seen.insert(name.clone()) {
                return Err(self.refuse(text, &key, &format!("'{name}' is given twice, expected it once")));
            }
            names.push(name);
        }
        Ok(names)
    }

    fn name(&self, text: &Text, key: &str) -> Result<String, ProfileError> {
        let fits = (1..=63).contains(&text.value.len())
            && text.value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits {
            return Ok(text.value.clone());
        }
        let why = "is no name, expected 1 to 63 of a to z, 0 to 9 and -";
        Err(self.refuse(text, key, &format!("'{}' {why}", shown(text))))
    }

    fn text(&self, text: &Text, key: &str) -> Result<String, ProfileError> {
        let one_line = !text.value.chars().any(char::is_control);
        if (1..=TEXT_MAX).contains(&text.value.len()) && one_line {
            return Ok(text.value.clone());
        }
        Err(self.refuse(text, key, &format!("expected one line of 1 to {TEXT_MAX} bytes")))
    }

    fn absolute(&self, text: &Text, key: &str) -> Result<String, ProfileError> {
        let path = Path::new(&text.value);
        let plain = path.components().skip(1).all(|part| matches!(part, std::path::Component::Normal(_)));
        let fits = path.is_absolute()
            && plain
            && text.value.len() <= Pattern::MAX
            && !text.value.ends_with('/')
            && !text.value.chars().any(char::is_control);
        if fits {
            return Ok(text.value.clone());
        }
        let why = "is no valid path, expected an absolute path without `.` and `..`";
        Err(self.refuse(text, key, &format!("'{}' {why}", shown(text))))
    }
}

/// A word as records write it.
fn word_of<T: DeserializeOwned>(word: &str) -> Option<T> {
    T::deserialize(StrDeserializer::<'_, WordError>::new(word)).ok()
}

/// The beginning of a value.
fn shown(text: &Text) -> String {
    text.value.chars().take(80).collect()
}
