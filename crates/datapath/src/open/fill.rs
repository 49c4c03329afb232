//! Moves the entries of a map to another one of the same meaning and another size. Keys and values are bytes here.

use crate::error::OpenError;
use crate::layout::{self, Moving};
use crate::sys;
use crate::sys::map::{Layout, RawMap, Write};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Copies everything.
///
/// # Errors
/// It does not fit, or a system call failed.
pub(super) fn fill(name: &'static str, old: &OwnedFd, new: &OwnedFd, layout: &Layout) -> Result<(), OpenError> {
    if layout::moving(layout.kind) == Moving::Nothing {
        return Ok(());
    }
    copy(name, old, new, layout, Write::Any)
}

/// Copies what has come since; what the new map has already stands.
///
/// # Errors
/// It does not fit, or a system call failed.
pub(super) fn catch_up(name: &'static str, old: &OwnedFd, new: &OwnedFd, layout: &Layout) -> Result<(), OpenError> {
    if layout.kind == aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 {
        return Ok(());
    }
    copy(name, old, new, layout, Write::New)
}

fn copy(name: &'static str, old: &OwnedFd, new: &OwnedFd, layout: &Layout, write: Write) -> Result<(), OpenError> {
    let failed = |source| OpenError::map("move the entries of", name, source);
    let per_cpu = layout::moving(layout.kind) == Moving::PerCpu;
    let value_size = layout.value_size as usize;
    let bytes =
        if per_cpu { value_size.next_multiple_of(8) * sys::possible_cpus().map_err(failed)? } else { value_size };
    let (old, new) = (
        RawMap::new(old.as_fd(), layout.key_size as usize, bytes),
        RawMap::new(new.as_fd(), layout.key_size as usize, bytes),
    );
    let mut key: Option<Vec<u8>> = None;
    let mut copied = 0_usize;
    while let Some(next) = old.next_key(key.as_deref()).map_err(failed)? {
        if let Some(value) = old.get(&next).map_err(failed)? {
            match new.put(&next, &value, write) {
                Ok(()) => copied += 1,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) if is_full(&error) => {
                    return Err(OpenError::TooSmall {
                        map: name,
                        entries_max: layout.entries_max,
                        entries: copied + 1,
                    });
                }
                Err(error) => return Err(failed(error)),
            }
        }
        key = Some(next);
    }
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}
