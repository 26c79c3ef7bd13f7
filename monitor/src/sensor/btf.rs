//! A small reader of BTF (Documentation/bpf/btf.rst): where the running kernel has its fields and arguments.
//!
//! Bounded: it never follows a reference without a limit on how often, and never reads beyond what it was given.

use std::collections::{HashMap, HashSet};

use monitor_ebpf::Layout;
use monitor_ebpf::layout::{MISSING, Source};

/// What LSM programs stand on, before the name of the hook.
pub const LSM_PREFIX: &str = "bpf_lsm_";

/// What fentry programs stand on, likewise.
pub const FENTRY_PREFIX: &str = "security_";

/// Where the kernel shows its own.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// More than any kernel's (10 MiB in 2026).
const MAX_BYTES: usize = 64 << 20;
/// Typedefs and qualifiers in a row; anonymous structures within each other.
const MAX_DEPTH: u32 = 32;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Why BTF could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are not BTF.
    #[error("BTF: {what} at byte {at}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
}

/// Parsed far enough to look types up.
#[derive(Debug)]
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Offset of each type in `types`; type 0 is `void`.
    at: Vec<u32>,
    structs: HashMap<u32, u32>,
    funcs: HashMap<u32, u32>,
    /// Offset of a name in `strings`, for the names that are looked up.
    names: HashMap<Vec<u8>, Vec<u32>>,
}

/// A member, found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// From the start of the structure.
    pub offset: u32,
    /// Of its type, 0 if that has none.
    pub width: u32,
}

impl Btf {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// The kernel has none (`CONFIG_DEBUG_INFO_BTF`), or it is malformed.
    pub fn of_kernel() -> Result<Self, BtfError> {
        let bytes =
            std::fs::read(VMLINUX).map_err(|source| BtfError::Read { path: VMLINUX.to_owned(), source })?;
        Self::parse(&bytes)
    }

    /// Takes the bytes apart.
    ///
    /// # Errors
    /// They are not BTF of this machine's byte order.
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let malformed = |what, at| BtfError::Malformed { what, at };
        if bytes.len() > MAX_BYTES {
            return Err(malformed("too large", MAX_BYTES));
        }
        let word = |at: usize| read_u32(bytes, at).ok_or(malformed("header cut short", at));
        if bytes.len() < HEADER {
            return Err(malformed("header cut short", bytes.len()));
        }
        if u16::from_ne_bytes([bytes[0], bytes[1]]) != MAGIC {
            return Err(malformed("no magic number", 0));
        }
        if bytes[2] != 1 {
            return Err(malformed("unknown version", 2));
        }
        let header = word(4)? as usize;
        let section = |offset: u32, len: u32, what| {
            let start = header.checked_add(offset as usize);
            let end = start.and_then(|start| start.checked_add(len as usize));
            match (start, end) {
                (Some(start), Some(end)) => bytes.get(start..end).ok_or(malformed(what, start)),
                _ => Err(malformed(what, header)),
            }
        };
        let types = section(word(8)?, word(12)?, "types outside the file")?;
        let strings = section(word(16)?, word(20)?, "strings outside the file")?;
        let mut btf = Self {
            types: types.to_vec(),
            strings: strings.to_vec(),
            at: vec![0],
            structs: HashMap::new(),
            funcs: HashMap::new(),
            names: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let mut at = 0;
        while at < self.types.len() {
            let cut = BtfError::Malformed { what: "type cut short", at };
            let (Some(name), Some(info)) = (read_u32(&self.types, at), read_u32(&self.types, at + 4)) else {
                return Err(cut);
            };
            let (kind, vlen) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let id = u32::try_from(self.at.len()).unwrap_or(u32::MAX);
            match kind {
                KIND_STRUCT => _ = self.structs.entry(name).or_insert(id),
                KIND_FUNC => _ = self.funcs.entry(name).or_insert(id),
                _ => {}
            }
            self.at.push(u32::try_from(at).unwrap_or(u32::MAX));
            let more = match kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT
                | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => vlen * 12,
                KIND_ENUM | KIND_FUNC_PROTO => vlen * 8,
                _ => return Err(BtfError::Malformed { what: "unknown kind of type", at }),
            };
            at += 12 + more;
            if at > self.types.len() {
                return Err(cut);
            }
        }
        for &name in self.structs.keys().chain(self.funcs.keys()) {
            if name != 0 {
                self.names.entry(string(&self.strings, name).to_vec()).or_default().push(name);
            }
        }
        Ok(())
    }

    /// Finds a member by path, such as `file.f_path.dentry`, looking into anonymous structures and unions.
    #[must_use]
    pub fn member(&self, path: &str) -> Option<Member> {
        let mut parts = path.split('.');
        let mut id = self.named(&self.structs, parts.next()?)?;
        let mut found = Member { offset: 0, width: 0 };
        for part in parts {
            let (offset, inner) = self.member_of(id, part.as_bytes(), &mut Searched::default())?;
            id = self.strip(inner)?;
            found = Member { offset: found.offset.checked_add(offset)?, width: self.width(id, 0) };
        }
        Some(found)
    }

    /// Whether the way to a member leads through a union.
    #[must_use]
    pub fn in_union(&self, path: &str) -> Option<bool> {
        let mut parts = path.split('.');
        let mut id = self.named(&self.structs, parts.next()?)?;
        let mut through = false;
        for part in parts {
            through |= self.through_union(id, part.as_bytes(), &mut Searched::default())?;
            id = self.strip(self.member_of(id, part.as_bytes(), &mut Searched::default())?.1)?;
        }
        Some(through)
    }

    fn through_union(&self, id: u32, name: &[u8], searched: &mut Searched) -> Option<bool> {
        let (kind, count, _) = self.info(id)?;
        if (kind != KIND_STRUCT && kind != KIND_UNION) || !searched.may_enter(id) {
            return None;
        }
        let found = (0..count as usize).find_map(|index| {
            let (member, type_id) = (self.word(id, 12 + index * 12)?, self.word(id, 16 + index * 12)?);
            if member == 0 {
                let inner = self.through_union(self.strip(type_id)?, name, searched)?;
                return Some(inner || kind == KIND_UNION);
            }
            (string(&self.strings, member) == name).then_some(kind == KIND_UNION)
        });
        searched.leave();
        found
    }

    /// The position of a function's parameter.
    #[must_use]
    pub fn argument(&self, function: &str, name: &str) -> Option<u32> {
        let func = self.named(&self.funcs, function)?;
        let proto = self.word(func, 8)?;
        let (kind, count, _) = self.info(proto)?;
        if kind != KIND_FUNC_PROTO {
            return None;
        }
        (0..count).find(|index| {
            self.word(proto, 12 + *index as usize * 8)
                .is_some_and(|at| at != 0 && string(&self.strings, at) == name.as_bytes())
        })
    }

    /// The id of a function, to attach to.
    #[must_use]
    pub fn function_id(&self, function: &str) -> Option<u32> {
        self.named(&self.funcs, function)
    }

    /// The function of a hook. Some hooks are called `X_security`, and the function that calls them `security_X`.
    #[must_use]
    pub fn function_of(&self, prefix: &str, hook: &str) -> Option<String> {
        let names = [hook, hook.strip_suffix("_security").unwrap_or(hook)];
        names.map(|name| format!("{prefix}{name}")).into_iter().find(|name| self.function_id(name).is_some())
    }

    /// The whole layout; `MISSING` where something is not there or not as wide as the programs load it. `prefix` makes
    /// the name of a hook that of the function whose arguments the programs get.
    #[must_use]
    pub fn layout(&self, prefix: &str) -> Layout {
        Layout::new(|_, source| {
            let found = match source {
                Source::Member(paths, width) => paths
                    .split('|')
                    .find_map(|path| self.member(path))
                    .filter(|member| width == 0 || member.width == width)
                    .map(|member| member.offset),
                Source::InUnion(path) => self.in_union(path).map(u32::from),
                Source::Argument(hook, names) => self
                    .function_of(prefix, hook)
                    .and_then(|function| names.split('|').find_map(|name| self.argument(&function, name))),
            };
            found.unwrap_or(MISSING)
        })
    }

    fn named(&self, of: &HashMap<u32, u32>, name: &str) -> Option<u32> {
        self.names.get(name.as_bytes())?.iter().find_map(|at| of.get(at)).copied()
    }

    /// A word of a type's description.
    fn word(&self, id: u32, offset: usize) -> Option<u32> {
        if id == 0 {
            return None;
        }
        let at = *self.at.get(id as usize)? as usize;
        read_u32(&self.types, at.checked_add(offset)?)
    }

    /// Kind, count, and whether members carry bit-field widths.
    fn info(&self, id: u32) -> Option<(u32, u32, bool)> {
        let info = self.word(id, 4)?;
        Some((info >> 24 & 0x1f, info & 0xffff, info >> 31 == 1))
    }

    /// Without typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            match self.info(id)?.0 {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = self.word(id, 8)?;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn width(&self, id: u32, depth: u32) -> u32 {
        let Some((kind, ..)) = self.info(id) else { return 0 };
        match kind {
            KIND_PTR => 8,
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_FLOAT => {
                self.word(id, 8).unwrap_or(0)
            }
            KIND_ARRAY if depth < MAX_DEPTH => {
                let element = self.word(id, 12).and_then(|id| self.strip(id));
                let width = element.map_or(0, |id| self.width(id, depth + 1));
                width.saturating_mul(self.word(id, 20).unwrap_or(0))
            }
            _ => 0,
        }
    }

    /// Offset and type of a member. `None` for bit fields.
    fn member_of(&self, id: u32, name: &[u8], searched: &mut Searched) -> Option<(u32, u32)> {
        let (kind, count, bits) = self.info(id)?;
        if (kind != KIND_STRUCT && kind != KIND_UNION) || !searched.may_enter(id) {
            return None;
        }
        let found = (0..count as usize).find_map(|index| {
            let at = 12 + index * 12;
            let (member, type_id, offset) =
                (self.word(id, at)?, self.word(id, at + 4)?, self.word(id, at + 8)?);
            let (offset, width) = if bits { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            if member == 0 {
                let (inner, found) = self.member_of(self.strip(type_id)?, name, searched)?;
                return Some((inner.checked_add(offset / 8)?, found));
            }
            let here = string(&self.strings, member) == name && width == 0 && offset % 8 == 0;
            here.then_some((offset / 8, type_id))
        });
        searched.leave();
        found
    }
}

/// Structures and unions that were searched for one member: none is searched twice, however many anonymous ones hold each other.
#[derive(Debug, Default)]
struct Searched {
    types: HashSet<u32>,
    depth: u32,
}

impl Searched {
    fn may_enter(&mut self, id: u32) -> bool {
        let new = self.depth <= MAX_DEPTH && self.types.insert(id);
        self.depth += u32::from(new);
        new
    }

    const fn leave(&mut self) {
        self.depth -= 1;
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
}

fn string(strings: &[u8], at: u32) -> &[u8] {
    let rest = strings.get(at as usize..).unwrap_or_default();
    rest.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// `struct a { u32 x; union { u64 y; }; const struct a *next; u32 flag:1; }` and `void bpf_lsm_f(a *p, u32 n)`.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn sample() -> Vec<u8> {
    let strings = b"\0u32\0a\0x\0y\0next\0flag\0bpf_lsm_f\0p\0n\0u64\0";
    let name = |text: &str| {
        let needle = [b"\0".as_slice(), text.as_bytes(), b"\0"].concat();
        let at = strings.windows(needle.len()).position(|at| at == needle);
        at.and_then(|at| u32::try_from(at + 1).ok()).unwrap_or(0)
    };
    let info = |kind: u32, vlen: u32, flag: u32| kind << 24 | vlen | flag << 31;
    #[rustfmt::skip]
    let types: Vec<u32> = vec![
        name("u32"), info(KIND_INT, 0, 0), 4, 32,                     // 1
        name("u64"), info(KIND_INT, 0, 0), 8, 64,                     // 2
        0, info(KIND_UNION, 1, 0), 8, name("y"), 2, 0,                // 3
        name("a"), info(KIND_STRUCT, 4, 1), 32,                       // 4
            name("x"), 1, 0,  0, 3, 64,  name("next"), 5, 128,  name("flag"), 1, 1 << 24 | 192,
        0, info(KIND_PTR, 0, 0), 6,                                   // 5
        0, info(KIND_CONST, 0, 0), 4,                                 // 6
        0, info(KIND_FUNC_PROTO, 2, 0), 0, name("p"), 5, name("n"), 1, // 7
        name("bpf_lsm_f"), info(KIND_FUNC, 0, 0), 7,                  // 8
    ];
    let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut out = MAGIC.to_ne_bytes().to_vec();
    out.extend([1, 0]);
    for word in [24, 0, types.len(), types.len(), strings.len()] {
        out.extend(u32::try_from(word).unwrap_or(0).to_ne_bytes());
    }
    out.extend(types);
    out.extend(strings);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_members_and_arguments() {
        let btf = Btf::parse(&sample()).unwrap();
        assert_eq!(btf.member("a.x"), Some(Member { offset: 0, width: 4 }));
        assert_eq!(btf.member("a.y"), Some(Member { offset: 8, width: 8 }));
        assert_eq!(btf.member("a.next"), Some(Member { offset: 16, width: 8 }));
        assert_eq!(btf.member("a.flag"), None);
        assert_eq!(btf.member("a.z"), None);
        assert_eq!(btf.member("b.x"), None);
        assert_eq!(btf.in_union("a.x"), Some(false));
        assert_eq!(btf.in_union("a.y"), Some(true));
        assert_eq!(btf.in_union("a.z"), None);
        assert_eq!(btf.argument("bpf_lsm_f", "n"), Some(1));
        assert_eq!(btf.argument("bpf_lsm_f", "m"), None);
        assert_eq!(btf.argument("bpf_lsm_g", "n"), None);
    }

    /// `struct a` of many anonymous members, each of which is `struct a` again.
    #[test]
    fn what_holds_itself_many_times_is_searched_once() {
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let mut types: Vec<u32> = vec![1, KIND_STRUCT << 24 | 1000, 8];
        types.extend([0, 1, 0].repeat(1000));
        let strings = b"\0a\0";
        for word in [24, 0, types.len() * 4, types.len() * 4, strings.len()] {
            bytes.extend(u32::try_from(word).unwrap().to_ne_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!((btf.member("a.x"), btf.in_union("a.x")), (None, None));
    }

    #[test]
    fn malformed_is_refused() {
        for (bytes, message) in [
            (vec![], "BTF: header cut short at byte 0"),
            (vec![0; 24], "BTF: no magic number at byte 0"),
            (sample()[..60].to_vec(), "BTF: types outside the file at byte 24"),
        ] {
            assert_eq!(Btf::parse(&bytes).unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_no_harm(flips in proptest::collection::vec((0..400_usize, any::<u8>()), 1..12)) {
            let mut bytes = sample();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if let Ok(btf) = Btf::parse(&bytes) {
                for path in ["a.x", "a.y", "a.next.x", "a.next.next.next"] {
                    let _ = btf.member(path);
                }
                let _ = btf.argument("bpf_lsm_f", "n");
                let _ = btf.layout(LSM_PREFIX);
            }
        }
    }

    /// Where the machine shows its own, what every supported kernel has must be found.
    #[test]
    fn the_running_kernel() {
        let Ok(btf) = Btf::of_kernel() else { return };
        let layout = btf.layout(LSM_PREFIX);
        for offset in [layout.file_f_inode, layout.dentry_d_parent, layout.dentry_name, layout.kn_parent] {
            assert_ne!(offset, MISSING);
        }
        assert_eq!(layout.arg_rename_new_dentry, 3);
    }
}
