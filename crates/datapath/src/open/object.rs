//! The object file of the kernel programs, and maps as it describes them.

use crate::error::OpenError;
use crate::sys;
use crate::sys::map::Layout;
use std::os::fd::OwnedFd;

/// The kernel programs, as `cargo xtask build-ebpf` made them.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_BPF_OBJECT"));

pub(crate) fn create(name: &str, layout: &Layout) -> Result<OwnedFd, OpenError> {
    sys::map::create(name, layout).map_err(|source| OpenError::System {
        what: format!("create map {name} for {} entries", layout.entries_max),
        source,
    })
}
