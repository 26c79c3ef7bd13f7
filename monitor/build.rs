//! Embeds the eBPF objects, from `MESHSEAL_EBPF_DIR` or else `target/ebpf` of the workspace, if they are there. Where
//! they are not, everything else still builds, and the rungs that need them say at run time what is missing.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

const OBJECTS: [(&str, &str); 3] =
    [("LSM", "meshseal-lsm"), ("FENTRY", "meshseal-fentry"), ("TRACE", "meshseal-trace")];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=MESHSEAL_EBPF_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let out = variable("OUT_DIR").unwrap_or_default();
    let source = variable("MESHSEAL_EBPF_DIR").or_else(|| {
        let workspace = variable("CARGO_MANIFEST_DIR")?.parent().map(Path::to_path_buf)?;
        Some(workspace.join("target").join("ebpf"))
    });

    let mut code = String::new();
    for (constant, name) in OBJECTS {
        let object = source.as_ref().map(|dir| dir.join(name));
        if let Some(object) = &object {
            println!("cargo::rerun-if-changed={}", object.display());
        }
        let value = match object.filter(|object| object.is_file()) {
            Some(object) => {
                fs::copy(&object, out.join(name))?;
                format!("Some(::aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/{name}\")))")
            }
            None => "None".to_owned(),
        };
        code += &format!(
            "/// The object `{name}`, if it was there at build time.\npub(crate) static {constant}: Option<&[u8]> = {value};\n"
        );
    }
    fs::write(out.join("objects.rs"), code)
}
