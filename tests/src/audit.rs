//! The kernel's audit as auditd sets it up: one watch on a file, and somebody who takes the messages.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "one system call with its arguments")]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

/// `linux/audit.h`.
const AUDIT_SET: u16 = 1001;
const AUDIT_ADD_RULE: u16 = 1011;
const AUDIT_STATUS_ENABLED: u32 = 0x1;
const AUDIT_STATUS_PID: u32 = 0x4;
const AUDIT_STATUS_BACKLOG_LIMIT: u32 = 0x10;
const AUDIT_FILTER_EXIT: u32 = 4;
const AUDIT_ALWAYS: u32 = 2;
const AUDIT_WATCH: u32 = 105;
const AUDIT_PERM: u32 = 106;
const AUDIT_PERM_WRITE: u32 = 2;
const AUDIT_PERM_ATTR: u32 = 8;
const AUDIT_EQUAL: u32 = 0x4000_0000;
/// `AUDIT_MAX_FIELDS`, and words of a rule's mask.
const WORDS: usize = 64;

/// Audit that is on, with one rule.
#[derive(Debug)]
pub struct Audit {
    socket: OwnedFd,
}

impl Audit {
    /// Has writes to that file and changes of its attributes told, as `auditctl -w FILE -p wa` does. Tasks that were there before pass
    /// no audit: whoever is to be measured comes later.
    pub fn watch(file: &Path) -> Result<Self> {
        // SAFETY: it makes a descriptor, which is checked and owned from here on.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_AUDIT);
            ensure!(fd >= 0, "no audit: {}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let audit = Self { socket };
        let mask = AUDIT_STATUS_ENABLED | AUDIT_STATUS_PID | AUDIT_STATUS_BACKLOG_LIMIT;
        // struct audit_status: mask, enabled, failure, pid, rate_limit, backlog_limit, lost, backlog, feature_bitmap, backlog_wait_time.
        let status = [mask, 1, 0, std::process::id(), 0, 8192, 0, 0, 0, 0];
        audit.ask(AUDIT_SET, &bytes(&status)).context("audit is switched on")?;
        let path = file.as_os_str().as_bytes();
        let length = u32::try_from(path.len())?;
        let mut fields = [[0_u32; WORDS]; 3];
        for (at, (field, value)) in
            [(AUDIT_WATCH, length), (AUDIT_PERM, AUDIT_PERM_WRITE | AUDIT_PERM_ATTR)].into_iter().enumerate()
        {
            (fields[0][at], fields[1][at], fields[2][at]) = (field, value, AUDIT_EQUAL);
        }
        // struct audit_rule_data: flags, action, field_count, mask, fields, values, fieldflags, buflen, buf.
        let head = [AUDIT_FILTER_EXIT, AUDIT_ALWAYS, 2];
        let words = [&head[..], &[u32::MAX; WORDS], &fields.concat(), &[length]].concat();
        audit.ask(AUDIT_ADD_RULE, &[&bytes(&words), path].concat()).context("a watch is set")?;
        Ok(audit)
    }

    /// Where the messages come.
    #[must_use]
    pub const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    fn ask(&self, kind: u16, body: &[u8]) -> Result<()> {
        const REQUEST_AND_ACK: u16 = 0x5;
        let length = u32::try_from(16 + body.len())?;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(REQUEST_AND_ACK.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        rustix::io::write(&self.socket, &message)?;
        let mut answer = [0_u8; 16 << 10];
        loop {
            // SAFETY: the descriptor is ours, and the buffer as long as it says.
            let got =
                unsafe { libc::recv(self.socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
            let got = usize::try_from(got).map_err(|_| std::io::Error::last_os_error())?;
            let answer = answer.get(..got).context("an answer")?;
            let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
            // Messages of what is audited come between.
            if kind != u16::try_from(libc::NLMSG_ERROR).ok() {
                continue;
            }
            let error = answer.get(16..20).and_then(|error| error.try_into().ok()).map(i32::from_ne_bytes);
            match error.context("an answer that was cut")? {
                0 => return Ok(()),
                error => bail!("{}", std::io::Error::from_raw_os_error(-error)),
            }
        }
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
