//! Memory that keeps the kernel waiting: what is written from it comes when its owner likes, long after the hook that tells of it.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::actor;
use super::load::{bench, object};
use super::mapping::Mapping;
use super::rung::{names_actors, on_hooks};
use crate::agent::{Agent, told_of};
use crate::process::{heard, say};

const PAGE: usize = 4096;
const BYTES: &[u8] = b"TAMPER";

/// `UFFDIO_API`, `UFFDIO_REGISTER` and `UFFDIO_COPY`, with what they take (linux/userfaultfd.h).
const API: libc::Ioctl = 0xc018_aa3f;
const REGISTER: libc::Ioctl = 0xc020_aa00;
const COPY: libc::Ioctl = 0xc028_aa03;
/// The version of the interface.
const VERSION: u64 = 0xaa;
/// Missing pages are asked for.
const MISSING: u64 = 1;
/// A page is asked for, as the first byte of a message says it; a message has 32 bytes.
const ASKED: u8 = 0x12;
const MESSAGE: usize = 32;

/// Whom the kernel asks for the pages of a mapping that has none yet.
#[derive(Debug)]
struct Pages {
    fd: OwnedFd,
    at: u64,
}

impl Pages {
    fn of(memory: &Mapping) -> Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        ensure!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        let pages = Self { fd, at: memory.address().addr() as u64 };
        pages.ask(API, &mut [VERSION, 0, 0])?;
        pages.ask(REGISTER, &mut [pages.at, PAGE as u64, MISSING, 0])?;
        Ok(pages)
    }

    fn ask<const N: usize>(&self, request: libc::Ioctl, what: &mut [u64; N]) -> Result<()> {
        // SAFETY: as many words as the request says that it takes.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, what.as_mut_ptr()) };
        ensure!(done == 0, "request {request:#x} on userfaultfd: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Waits until one is asked for.
    fn asked(&self) -> Result<()> {
        let mut message = [0; MESSAGE];
        let read = rustix::io::read(&self.fd, &mut message)?;
        ensure!(read == MESSAGE && message[0] == ASKED, "userfaultfd says {message:?}");
        Ok(())
    }

    /// It begins with these.
    fn give(&self, bytes: &[u8]) -> Result<()> {
        let mut page = [0; PAGE];
        page[..bytes.len()].copy_from_slice(bytes);
        self.ask(COPY, &mut [self.at, page.as_ptr().addr() as u64, PAGE as u64, 0, 0])
    }
}

/// Writes to a file what is there when told to go on, by a call that began before.
pub(super) fn write(path: &Path) -> Result<()> {
    let memory = Mapping::anonymous(PAGE, libc::MAP_PRIVATE)?;
    let pages = Pages::of(&memory)?;
    let file = OpenOptions::new().write(true).open(path)?;
    let owner = std::thread::spawn(move || {
        pages.asked()?;
        say("held")?;
        heard()?;
        pages.give(BYTES)
    });
    // SAFETY: a mapping that is longer and lives on; the kernel asks the thread above for what it holds.
    let written = unsafe { libc::write(file.as_raw_fd(), memory.address(), BYTES.len()) };
    let error = std::io::Error::last_os_error();
    let Ok(given) = owner.join() else { bail!("the owner of the memory panicked") };
    given?;
    ensure!(usize::try_from(written) == Ok(BYTES.len()), "written: {written}, {error}");
    drop(file);
    say("done")
}

/// Its bytes come after all looks that follow the hook: hooks tell of it twice.
pub(super) fn a_write_from_memory_that_keeps_it_waiting_is_told() -> Result<()> {
    let (_scratch, dir, home) = bench(1)?;
    let path = object(&dir, 0);
    let mut agent = Agent::start(&home, 1)?;
    let rung = agent.rung()?;
    let mut writer = actor::begin("late", &["late", path.to_str().context("not UTF-8")?])?;
    writer.hear("held")?;
    let told = |record: &Value| record["kind"] == "violation.opened";
    let mut expected = Vec::new();
    if on_hooks(&rung) {
        agent.find("what it has done so far", told)?;
        let verified = |objects: &[Value]| {
            let object = objects.iter().find(|object| object["path"] == path.display().to_string());
            object.map(|object| object["last_verified"].clone())
        };
        let first = verified(&agent.objects()?);
        let again = |objects: &[Value]| verified(objects) != first;
        agent.until_objects(|objects| {
            (!again(objects)).then(|| format!("not looked at again: {objects:?}"))
        })?;
        expected.push("reverted write late".to_owned());
    }
    writer.say("go")?;
    writer.hear("done")?;
    let late = |record: &Value| told(record) && record["violation"] == "content";
    agent.find("what it wrote", late)?;
    writer.end()?;
    let records = agent.stop()?;
    let about: Vec<&Value> = records.iter().filter(|record| record["object"].is_object()).collect();
    let line = |record: &&Value| {
        let [violation, operation] =
            ["violation", "operation"].map(|field| record[field].as_str().unwrap_or("?"));
        format!("{violation} {operation} {}", record["actor"]["comm"].as_str().unwrap_or("?"))
    };
    let lines: Vec<String> = about.iter().map(line).collect();
    expected.push(format!("content write {}", if names_actors(&rung) { "late" } else { "?" }));
    ensure!(lines == expected, "{}", told_of(about));
    Ok(())
}
