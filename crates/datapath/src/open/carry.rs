//! Upgrade of layouts: the directory of a former version becomes this version's.
//!
//! Maps whose keys and values have kept their sizes are carried over; a change of meaning without a change of size must
//! come with a new name. The others start empty and are filled by the agent. The links move, so that no device ever has
//! the programs of two versions.

use crate::error::OpenError;
use crate::layout::{self, Comparison};
use crate::pins::PinDir;
use crate::sys;
use crate::sys::map::Layout;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use weft_abi::map_name;

/// Directories of other versions.
pub(super) fn others(pins: &PinDir) -> Result<Vec<PathBuf>, OpenError> {
    let is_version = |name: &str| name.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
    let root = pins.root();
    let failed = |source| OpenError::path("read", &root, source);
    let mut others = Vec::new();
    for entry in fs::read_dir(&root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_version(&entry.file_name().to_string_lossy()) && entry.path() != pins.version() {
            others.push(entry.path());
        }
    }
    others.sort();
    Ok(others)
}

/// Pins another version's maps here, as far as they are what is wanted and nothing is here yet.
pub(super) fn maps(other: &Path, pins: &PinDir, wanted: &BTreeMap<&'static str, Layout>) -> Result<(), OpenError> {
    // Decisions are valid only beside the revisions that they were stamped with.
    let revisions = [map_name::CONFIG, map_name::GENERATIONS];
    let mut carried = Vec::new();
    let order = revisions.into_iter().chain(wanted.keys().copied().filter(|name| !revisions.contains(name)));
    for name in order {
        if pins.map(name)?.is_some() || (name == map_name::FLOWS && carried != revisions) {
            continue;
        }
        let path = other.join("maps").join(name);
        let map = match sys::object_get(&path) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(OpenError::path("open the pinned map", &path, source)),
        };
        let info = sys::map_info(map.as_fd()).map_err(|source| OpenError::path("inspect", &path, source))?;
        if !matches!(layout::compare(&info, &wanted[name]), Comparison::Foreign(_)) {
            pins.pin_map(name, &map)?;
            if revisions.contains(&name) {
                carried.push(name);
            }
        }
    }
    Ok(())
}

/// Moves another version's links here.
pub(super) fn links(other: &Path, pins: &PinDir) -> Result<(), OpenError> {
    let from = other.join("links");
    let failed = |source| OpenError::path("move the links of", &from, source);
    let entries = match fs::read_dir(&from) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        fs::rename(entry.path(), pins.links().join(entry.file_name())).map_err(failed)?;
    }
    Ok(())
}

/// Removes what is left of another version.
pub(super) fn remove(other: &Path) -> Result<(), OpenError> {
    fs::remove_dir_all(other).map_err(|source| OpenError::path("remove", other, source))
}
