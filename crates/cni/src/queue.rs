//! Deletes that could not be delivered: one file each, drained by the agent when it starts.
//!
//! The lock file keeps writers and the draining agent apart, and a file appears under its name only when it is whole.

use std::fs;
use std::io;
use std::path::Path;
use weft_api::cni::{DelRequest, QUEUE_FILES_MAX, QUEUE_LOCK, queue_file_name};
use weft_sys::files::{PRIVATE, lock_file, private_dir, write_durably};

/// Stores `request`; the same attachment twice is one file.
///
/// # Errors
/// The queue is full, or the file could not be written.
pub fn push(dir: &Path, request: &DelRequest) -> io::Result<()> {
    private_dir(dir)?;
    let lock = lock_file(&dir.join(QUEUE_LOCK))?;
    lock.lock()?;
    let name = queue_file_name(&request.attachment);
    let path = dir.join(&name);
    let waiting = fs::read_dir(dir)?.filter_map(Result::ok).filter(|file| is_entry(&file.file_name())).count();
    if !path.exists() && waiting >= QUEUE_FILES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("the queue of deletes holds {waiting} already"),
        ));
    }
    write_durably(&path, &serde_json::to_vec(request).map_err(io::Error::other)?, PRIVATE)
}

fn is_entry(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(".json") && !name.starts_with('.'))
}
