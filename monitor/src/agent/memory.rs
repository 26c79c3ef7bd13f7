//! How the allocator gives back what the start needed: kernel types, programs and baselines are read, and most of it is dropped.

/// Blocks and free space at the top of the heap from this size on, in bytes, go back to the kernel at once.
#[cfg(target_env = "gnu")]
const GIVEN_BACK: libc::c_int = 128 << 10;
/// One heap for all threads: each further one keeps what it once needed, which was up to 8 MiB with 100,000 objects.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 1;

/// Call it before there are other threads. glibc would raise its limits with each large block that is freed, and keep tens of
/// megabytes for good: of 46 MiB resident with 1,000 objects, 21 were such. An allocator of its own was not needed for that.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_TRIM_THRESHOLD, GIVEN_BACK),
        (libc::M_MMAP_THRESHOLD, GIVEN_BACK),
        (libc::M_ARENA_MAX, ARENAS),
    ] {
        // SAFETY: it changes settings of the allocator, before other threads use it.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            tracing::warn!(parameter, "the allocator refuses a limit");
        }
    }
}

/// Gives back what is free between what is in use: of 8 MiB of heap with 1,000 objects, 1 was in use, and the rest what reading a
/// baseline had needed. For when something large has been read.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but what is free.
    let _ = unsafe { libc::malloc_trim(0) };
}
