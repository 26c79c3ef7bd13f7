//! Events as fanotify(7) lays them out in the buffer, borrowed from it.

use std::os::fd::OwnedFd;

use super::sys;

const METADATA: usize = 24;
const INFO_HEADER: usize = 4;
/// fsid, handle length, handle type.
const ID_HEADER: usize = 16;

/// The process behind an event, as far as the event tells.
#[derive(Debug)]
pub(super) enum Pidfd {
    /// The kernel does not report pidfds, or had no descriptor left for this one.
    Unsupported,
    /// The process was gone when the event was read.
    Gone,
    /// A descriptor of the process.
    Open(OwnedFd),
}

/// An inode and a name: a directory and an entry of it (`.` is the directory itself).
pub(super) type Named<'a> = (&'a [u8], &'a [u8]);

/// One event.
#[derive(Debug)]
pub(super) struct Event<'a> {
    pub(super) mask: u64,
    pub(super) pid: i32,
    pub(super) pidfd: Pidfd,
    /// The inode acted upon, where it is not `dir` itself.
    pub(super) child: Option<&'a [u8]>,
    pub(super) dir: Option<Named<'a>>,
    pub(super) old: Option<Named<'a>>,
    pub(super) new: Option<Named<'a>>,
}

/// The buffer does not hold what fanotify(7) says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("fanotify event: {0}")]
pub(super) struct Malformed(&'static str);

/// What takes over a descriptor that stands in an event.
type Adopt = fn(i32) -> Option<OwnedFd>;

/// Takes all events of a buffer that the kernel has filled. Stops at the first that is malformed.
pub(super) fn events(buffer: &[u8], each: impl FnMut(Event<'_>)) -> Result<(), Malformed> {
    events_by(buffer, sys::adopt_pidfd, each)
}

/// The same, with another way to take over descriptors: a number that no kernel gave belongs to somebody else.
pub(super) fn events_by(
    mut buffer: &[u8],
    adopt: Adopt,
    mut each: impl FnMut(Event<'_>),
) -> Result<(), Malformed> {
    while !buffer.is_empty() {
        let length = u32_at(buffer, 0).and_then(|length| usize::try_from(length).ok());
        let whole =
            length.filter(|length| *length >= METADATA).and_then(|length| buffer.split_at_checked(length));
        let Some((event, rest)) = whole else { return Err(Malformed("length")) };
        each(parse(event, adopt)?);
        buffer = rest;
    }
    Ok(())
}

fn parse(event: &[u8], adopt: Adopt) -> Result<Event<'_>, Malformed> {
    if event.get(4) != Some(&libc::FANOTIFY_METADATA_VERSION) {
        return Err(Malformed("version"));
    }
    let header = u16_at(event, 6).map(usize::from).ok_or(Malformed("header"))?;
    let mask = u64_at(event, 8).ok_or(Malformed("mask"))?;
    let pid = u32_at(event, 20).ok_or(Malformed("pid"))?.cast_signed();
    let mut parsed =
        Event { mask, pid, pidfd: Pidfd::Unsupported, child: None, dir: None, old: None, new: None };
    let mut info = event.get(header..).ok_or(Malformed("header"))?;
    while !info.is_empty() {
        let length = u16_at(info, 2).map(usize::from).filter(|length| *length >= INFO_HEADER);
        let whole = length.and_then(|length| info.split_at_checked(length));
        let Some((record, rest)) = whole else { return Err(Malformed("information record")) };
        let body = &record[INFO_HEADER..];
        match record[0] {
            libc::FAN_EVENT_INFO_TYPE_FID => parsed.child = Some(id(body)?.0),
            libc::FAN_EVENT_INFO_TYPE_DFID => parsed.dir = Some((id(body)?.0, b".")),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => parsed.dir = Some(named(body)?),
            libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => parsed.old = Some(named(body)?),
            libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => parsed.new = Some(named(body)?),
            libc::FAN_EVENT_INFO_TYPE_PIDFD => {
                let fd = u32_at(body, 0).ok_or(Malformed("pidfd"))?.cast_signed();
                parsed.pidfd = match fd {
                    libc::FAN_NOPIDFD => Pidfd::Gone,
                    fd => adopt(fd).map_or(Pidfd::Unsupported, Pidfd::Open),
                };
            }
            _ => {}
        }
        info = rest;
    }
    Ok(parsed)
}

/// fsid and handle, and what follows.
fn id(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let length = u32_at(body, 8).and_then(|length| usize::try_from(length).ok());
    let length = length.filter(|length| *length <= sys::HANDLE_MAX).ok_or(Malformed("handle"))?;
    body.split_at_checked(ID_HEADER + length).ok_or(Malformed("handle"))
}

fn named(body: &[u8]) -> Result<Named<'_>, Malformed> {
    let (id, rest) = id(body)?;
    let end = rest.iter().position(|byte| *byte == 0).ok_or(Malformed("name"))?;
    Ok((id, &rest[..end]))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::{Malformed, Pidfd, events};

    fn event(infos: &[Vec<u8>]) -> Vec<u8> {
        let length = 24 + infos.iter().map(Vec::len).sum::<usize>();
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
        bytes.extend_from_slice(&[3, 0]);
        bytes.extend_from_slice(&24_u16.to_ne_bytes());
        bytes.extend_from_slice(&libc::FAN_CREATE.to_ne_bytes());
        bytes.extend_from_slice(&(-1_i32).to_ne_bytes());
        bytes.extend_from_slice(&7_i32.to_ne_bytes());
        infos.iter().for_each(|info| bytes.extend_from_slice(info));
        bytes
    }

    fn info(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, 0];
        bytes.extend_from_slice(&u16::try_from(body.len() + 4).unwrap().to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    fn id(handle: &[u8]) -> Vec<u8> {
        let mut bytes = vec![9; 8];
        bytes.extend_from_slice(&u32::try_from(handle.len()).unwrap().to_ne_bytes());
        bytes.extend_from_slice(&1_i32.to_ne_bytes());
        bytes.extend_from_slice(handle);
        bytes
    }

    #[test]
    fn names_and_handles_are_taken() {
        let named = [id(b"dirhandl"), b"na\xff\nme\0\0\0".to_vec()].concat();
        let bytes = event(&[
            info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &named),
            info(libc::FAN_EVENT_INFO_TYPE_FID, &id(b"file")),
            info(libc::FAN_EVENT_INFO_TYPE_PIDFD, &(-1_i32).to_ne_bytes()),
            info(99, b"later kernels"),
        ]);
        let two = [bytes.clone(), bytes].concat();
        let mut count = 0;
        let result = events(&two, |event| {
            count += 1;
            assert_eq!((event.mask, event.pid), (libc::FAN_CREATE, 7));
            assert_eq!(event.dir, Some((id(b"dirhandl").as_slice(), b"na\xff\nme".as_slice())));
            assert_eq!(event.child, Some(id(b"file").as_slice()));
            assert!(matches!(event.pidfd, Pidfd::Gone));
        });
        assert_eq!((result, count), (Ok(()), 2));
    }

    #[test]
    fn cut_buffers_are_malformed() {
        let named = [id(b"dirhandl"), b"name\0".to_vec()].concat();
        let whole = event(&[info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &named)]);
        for end in 1..whole.len() {
            assert_eq!(events(&whole[..end], |_| ()), Err(Malformed("length")));
        }
        let unterminated = event(&[info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &id(b"dir"))]);
        assert_eq!(events(&unterminated, |_| ()), Err(Malformed("name")));
    }
}
