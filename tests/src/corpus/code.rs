//! What a process that runs a sealed program makes its code: each act becomes the sealed program first.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::acts::{self, Act, Expected, Gate, IN_MEMORY, SEALED, Site, hooks_only, prepared, some};
use super::mapping::Mapping;
use crate::process::ROLE;

/// A file beside what is sealed, and where it is made before.
const CODE: &str = "code";

fn beside(site: &Site) -> Result<()> {
    Ok(fs::write(site.lone().join(CODE), SEALED)?)
}

fn a_program_beside(site: &Site) -> Result<()> {
    fs::copy(std::env::current_exe()?, site.lone().join(CODE))?;
    Ok(())
}

/// The name of this process, as the kernel shows it.
fn comm() -> Result<String> {
    let name = rustix::thread::name()?;
    Ok(name.to_str()?.to_owned())
}

/// Becomes the sealed program, which goes on.
fn become_the_program(site: &Site, _: Gate) -> Result<()> {
    let (name, root) = (comm()?, site.root.to_str().context("not UTF-8")?);
    let mut program = Command::new(site.program());
    Err(program.arg0(&name).args([ROLE, &name, "code", site.name, root]).exec().into())
}

/// What the sealed program does, by the name of the act.
pub(super) fn as_the_program(name: &str, root: &Path) -> Result<()> {
    let act = acts::all().find(|act| act.name == name).context("no such act")?;
    let site = Site { root: root.to_owned(), name: act.name };
    let code = site.lone().join(CODE);
    match name {
        "load_code_of_a_file" => drop(Mapping::code(&File::open(code)?, SEALED.len())?),
        "make_code_of_what_is_mapped" => Mapping::private(&File::open(code)?, SEALED.len())?.make_code()?,
        "load_code_from_memory" => {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let name = site.in_memory();
            let name = name.strip_prefix(IN_MEMORY).context("another name")?;
            let mut file = File::from(rustix::fs::memfd_create(name, flags)?);
            file.write_all(SEALED)?;
            drop(Mapping::code(&file, SEALED.len())?);
        }
        "load_code_that_is_deleted" => {
            let file = File::open(&code)?;
            fs::remove_file(code)?;
            drop(Mapping::code(&file, SEALED.len())?);
        }
        "execute_a_file" => {
            let name = comm()?;
            return Err(Command::new(code).arg0(&name).args([ROLE, &name, "tool"]).exec().into());
        }
        "load_what_is_sealed" => drop(Mapping::code(&File::open(site.f())?, SEALED.len())?),
        _ => bail!("no such act: {name}"),
    }
    Ok(())
}

/// Told of the file beside what is sealed.
const fn executed(operation: &'static str) -> Expected {
    hooks_only(some("/code", "executed", operation))
}

/// All acts of this file.
pub(super) const ACTS: &[Act] = &[
    prepared("load_code_of_a_file", beside, become_the_program, &[executed("mmap")]),
    prepared("make_code_of_what_is_mapped", beside, become_the_program, &[executed("mmap")]),
    prepared(
        "load_code_from_memory",
        beside,
        become_the_program,
        &[hooks_only(some(IN_MEMORY, "executed", "mmap"))],
    ),
    prepared("load_code_that_is_deleted", beside, become_the_program, &[executed("mmap")]),
    prepared("execute_a_file", a_program_beside, become_the_program, &[executed("execve")]),
    prepared("load_what_is_sealed", beside, become_the_program, &[]),
];
