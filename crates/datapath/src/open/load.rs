//! The object's programs into the kernel, over maps that exist already.
//!
//! aya's own loader makes maps by itself, reuses pins without a look at them, and reads the whole kernel's type
//! information first (tens of MiB), which our programs do not need. So the steps are taken here, with aya's parser.

use super::OpenError;
use super::checksum::Place;
use crate::hooks::{Programs, programs};
use crate::sys::program::{self, Kind};
use crate::sys::{self, map::Layout};
use aya_obj::btf::BtfFeatures;
use aya_obj::{EbpfSectionKind, Features, Function, Object};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// What every kernel with tcx (6.6) has.
fn features() -> Features {
    let btf = BtfFeatures::new(true, true, true, true, true, true, true, true);
    Features::new(true, true, true, true, true, true, true, Some(btf))
}

/// Loads every program that a hook needs.
pub(super) fn load(mut object: Object, shared: &BTreeMap<&'static str, Arc<OwnedFd>>) -> Result<Programs, OpenError> {
    let features = features();
    let btf = match features.btf() {
        Some(btf) => object.fixup_and_sanitize_btf(btf).map_err(refused)?.map(aya_obj::btf::Btf::to_bytes),
        None => None,
    };
    let btf = btf
        .map(|bytes| program::load_btf(&bytes))
        .transpose()
        .map_err(|error| OpenError::Object(format!("the kernel refused the type information: {error}")))?;

    // Maps that only the programs know of live as long as they do.
    let mut own: BTreeMap<String, OwnedFd> = BTreeMap::new();
    for (name, map) in &object.maps {
        if !shared.contains_key(name.as_str()) {
            own.insert(name.clone(), private_map(name, map)?);
        }
    }
    let maps: Vec<_> = object.maps.drain().collect();
    let descriptors = maps.iter().map(|(name, map)| {
        let fd = shared.get(name.as_str()).map_or_else(|| own[name].as_raw_fd(), |fd| fd.as_raw_fd());
        (name.as_str(), fd, map)
    });
    let text = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(descriptors, &text).map_err(refused)?;
    object.relocate_calls(&text).map_err(refused)?;
    object.sanitize_functions(&features);
    if let Some(place) = Place::find() {
        for function in object.functions.values_mut() {
            place.fill_in(&mut function.instructions);
        }
    }

    let mut functions = Vec::new();
    for name in programs() {
        let found =
            object.programs.get(name).ok_or_else(|| OpenError::Object(format!("there is no program {name}")))?;
        let function = object
            .functions
            .get(&found.function_key())
            .ok_or_else(|| OpenError::Object(format!("program {name} has no code")))?;
        let kind = Kind::of(&found.section)
            .ok_or_else(|| OpenError::Object(format!("program {name} is of an unknown kind")))?;
        functions.push((name, kind, &found.license, function));
    }
    // The kernel verifies each on the calling thread's time, so all at once.
    let btf = btf.as_ref().map(AsFd::as_fd);
    std::thread::scope(|scope| {
        let start = |(name, kind, license, function): (&'static str, Kind, &CString, &Function)| {
            let (license, function) = (license.clone(), function.clone());
            (name, scope.spawn(move || program::load(name, kind, &license, &function, btf)))
        };
        let running: Vec<_> = functions.into_iter().map(start).collect();
        let mut loaded = BTreeMap::new();
        for (name, thread) in running {
            let result = thread.join().unwrap_or_else(|_| Err("panic".to_owned()));
            loaded.insert(name, result.map_err(|why| OpenError::Program { name, why })?);
        }
        Ok(Programs::new(loaded))
    })
}

fn refused(error: impl std::error::Error) -> OpenError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    OpenError::Object(text)
}

/// Makes a map that needs no pin; sections of constants and variables come with their content.
fn private_map(name: &str, map: &aya_obj::Map) -> Result<OwnedFd, OpenError> {
    let layout = Layout {
        kind: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        entries_max: map.max_entries(),
        flags: map.map_flags(),
    };
    let fd = sys::map::create(name.trim_start_matches('.'), &layout)
        .map_err(|source| OpenError::map("create", name, source))?;
    if !map.data().is_empty() && map.section_kind() != EbpfSectionKind::Bss {
        sys::map::fill_section(fd.as_fd(), map.data()).map_err(|source| OpenError::map("fill", name, source))?;
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        sys::map::freeze(fd.as_fd()).map_err(|source| OpenError::map("freeze", name, source))?;
    }
    Ok(fd)
}
