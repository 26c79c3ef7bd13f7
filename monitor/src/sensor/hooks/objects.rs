//! The eBPF objects, embedded at build time.

include!(concat!(env!("OUT_DIR"), "/objects.rs"));
