//! Patterns of paths: `?` and `*` within a component, `**` across them.

use crate::text::wildcard;

/// A pattern over the whole of an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Longest pattern, in bytes.
    pub const MAX: usize = 1024;

    /// Takes a pattern.
    ///
    /// # Errors
    /// It is not absolute, too long, or has more than eight `**`.
    pub fn new(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') || text.len() > Self::MAX || text.matches("**").count() > 8 {
            return Err("a pattern that begins with `/`, of at most 1024 bytes and eight `**`".into());
        }
        Ok(Self(text.to_owned()))
    }

    /// The pattern as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path is one it means.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        let pattern: Vec<&[u8]> = self.0.as_bytes().split(|b| *b == b'/').collect();
        let path: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        components(&pattern, &path)
    }
}

/// As [`wildcard`] goes through bytes: on a mismatch the last `**` takes one component more. To try all of them for each
/// `**` took as long as there are ways to spread the path over them.
fn components(pattern: &[&[u8]], path: &[&[u8]]) -> bool {
    let (mut p, mut n, mut stars) = (0, 0, None);
    while n < path.len() {
        match pattern.get(p) {
            Some(&b"**") => {
                stars = Some((p, n));
                p += 1;
            }
            Some(part) if wildcard(part, path[n]) => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = stars else { return false };
                stars = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|rest| rest == b"**")
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn patterns_mean_whole_paths() {
        for (pattern, path, expected) in [
            ("/usr/local/bin/*", "/usr/local/bin/envoy", true),
            ("/usr/local/bin/*", "/usr/local/bin/a/b", false),
            ("/usr/**", "/usr/local/bin/envoy", true),
            ("/usr/**/envoy", "/usr/envoy", true),
            ("/**/*.json", "/var/lib/x/y.json", true),
            ("/etc/?.conf", "/etc/a.conf", true),
            ("/etc/?.conf", "/etc/.conf", false),
            ("/a*b*c", "/axxbyyc", true),
            ("/a*b*c", "/axxbyy", false),
            ("/a", "/ab", false),
        ] {
            assert_eq!(Glob::new(pattern).unwrap().matches(path.as_bytes()), expected, "{pattern} {path}");
        }
        assert!(Glob::new("etc/*").is_err() && Glob::new(&"/**".repeat(9)).is_err());
    }

    #[test]
    fn a_hostile_pattern_does_not_blow_up() {
        let pattern = format!("/{}b", "*a".repeat(200));
        assert!(!Glob::new(&pattern).unwrap().matches(format!("/{}", "a".repeat(4000)).as_bytes()));
    }
}
