//! Moves the entries of a map to another one of the same meaning and another size. Keys and values are bytes here.
//!
//! Programs add entries until they are replaced, which takes as long as the kernel verifies the new ones. So a map is made
//! smaller only if its entries leave a quarter of the new one free.

use crate::error::OpenError;
use crate::layout::{self, Moving};
use crate::sys;
use crate::sys::map::{Layout, RawMap, Write};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The number of entries, if they are too many for a smaller map; `None`: they fit.
///
/// # Errors
/// A system call failed.
pub(super) fn too_many(
    name: &'static str,
    old: &OwnedFd,
    entries_max: u32,
    layout: &Layout,
) -> Result<Option<usize>, OpenError> {
    if layout.entries_max >= entries_max || layout::moving(layout.kind) == Moving::Nothing {
        return Ok(None);
    }
    let entries = count(name, old, layout)?;
    let room = layout.entries_max - layout.entries_max / 4;
    Ok((entries > room as usize).then_some(entries))
}

/// A new map with the entries of the old one; `None`: it took fewer.
///
/// # Errors
/// A system call failed.
pub(super) fn moved(
    name: &'static str,
    old: &OwnedFd,
    entries_max: u32,
    layout: &Layout,
) -> Result<Option<OwnedFd>, OpenError> {
    let new = super::object::create(name, layout)?;
    if layout::moving(layout.kind) == Moving::Nothing {
        return Ok(Some(new));
    }
    let copied = copy(name, old, &new, layout, Write::Any)?;
    // An LRU map refuses nothing: it evicts something else.
    let evicts = is_lru(layout.kind) && layout.entries_max < entries_max;
    let whole = copied.left_out == 0 && (!evicts || count(name, &new, layout)? == copied.taken);
    Ok(whole.then_some(new))
}

/// Copies what was added since; what the new map has already stays. Returns how many entries did not fit.
///
/// # Errors
/// A system call failed.
pub(super) fn catch_up(name: &'static str, old: &OwnedFd, new: &OwnedFd, layout: &Layout) -> Result<usize, OpenError> {
    if layout.kind == aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 {
        return Ok(0);
    }
    Ok(copy(name, old, new, layout, Write::New)?.left_out)
}

struct Copied {
    taken: usize,
    left_out: usize,
}

fn copy(name: &'static str, old: &OwnedFd, new: &OwnedFd, layout: &Layout, write: Write) -> Result<Copied, OpenError> {
    let failed = |source| OpenError::map("move the entries of", name, source);
    let (old, new) = (raw(old, layout).map_err(failed)?, raw(new, layout).map_err(failed)?);
    let mut key: Option<Vec<u8>> = None;
    let mut copied = Copied { taken: 0, left_out: 0 };
    while let Some(next) = old.next_key(key.as_deref()).map_err(failed)? {
        if let Some(value) = old.get(&next).map_err(failed)? {
            match new.put(&next, &value, write) {
                Ok(()) => copied.taken += 1,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) if is_full(&error) => copied.left_out += 1,
                Err(error) => return Err(failed(error)),
            }
        }
        key = Some(next);
    }
    Ok(copied)
}

fn count(name: &'static str, map: &OwnedFd, layout: &Layout) -> Result<usize, OpenError> {
    let failed = |source| OpenError::map("count the entries of", name, source);
    let map = raw(map, layout).map_err(failed)?;
    let (mut key, mut entries) = (None, 0);
    while let Some(next) = map.next_key(key.as_deref()).map_err(failed)? {
        entries += 1;
        key = Some(next);
    }
    Ok(entries)
}

fn raw<'a>(map: &'a OwnedFd, layout: &Layout) -> io::Result<RawMap<'a>> {
    let value = layout.value_size as usize;
    let per_cpu = layout::moving(layout.kind) == Moving::PerCpu;
    let value = if per_cpu { value.next_multiple_of(8) * sys::possible_cpus()? } else { value };
    Ok(RawMap::new(map.as_fd(), layout.key_size as usize, value))
}

fn is_lru(kind: u32) -> bool {
    kind == aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}
