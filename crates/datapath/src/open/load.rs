//! Loads the object's programs into the kernel, over maps that exist already.
//!
//! aya's own loader creates maps by itself, reuses pins unchecked, and reads the whole kernel's type
//! information first (tens of MiB), which our programs do not need. So the steps are taken here, with aya's parser.

use super::checksum::Place;
use crate::error::OpenError;
use crate::hooks::{Programs, programs};
use crate::sys::program::{self, Kind};
use crate::sys::{self, map::Layout};
use aya_obj::btf::BtfFeatures;
use aya_obj::{EbpfSectionKind, Features, Function, Object};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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
        .map_err(|error| OpenError::Object { why: format!("the kernel refused the type information: {error}") })?;

    // Maps without a pin live as long as the programs.
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

    let mut functions = Vec::new();
    for name in programs() {
        let found = object
            .programs
            .get(name)
            .ok_or_else(|| OpenError::Object { why: format!("there is no program {name}") })?;
        let function = object
            .functions
            .get(&found.function_key())
            .ok_or_else(|| OpenError::Object { why: format!("program {name} has no code") })?;
        let kind = Kind::of(&found.section)
            .ok_or_else(|| OpenError::Object { why: format!("program {name} is of an unknown kind") })?;
        functions.push((name, kind, &found.license, function));
    }
    let place = Place::find();
    // The verifier runs on the calling thread, so each program gets one.
    let btf = btf.as_ref().map(AsFd::as_fd);
    std::thread::scope(|scope| {
        let start = |(name, kind, license, function): (&'static str, Kind, &CString, &Function)| {
            let (license, function) = (license.clone(), function.clone());
            (name, scope.spawn(move || load_one(name, kind, &license, &function, place, btf)))
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

/// Loads a program with reads of `sk_buff` at `place`; without them, if this kernel refuses those.
fn load_one(
    name: &str,
    kind: Kind,
    license: &CStr,
    function: &Function,
    place: Option<Place>,
    btf: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, String> {
    if let Some(place) = place {
        let mut patched = function.clone();
        if place.fill_in(&mut patched.instructions) != [0, 0]
            && let Ok(fd) = program::load(name, kind, license, &patched, btf)
        {
            return Ok(fd);
        }
    }
    program::load(name, kind, license, function, btf)
}

fn refused(error: impl std::error::Error) -> OpenError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    OpenError::Object { why: text }
}

/// Creates a map that needs no pin; sections of constants and variables are filled.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::btf::{Btf, VMLINUX};
    use crate::sys::program::test_run;
    use aya_obj::generated::bpf_insn;

    /// A program that returns what it reads there.
    fn looks() -> Function {
        let object = Object::parse(super::super::OBJECT).expect("programs");
        let mut function = object.functions.into_values().next().expect("a function");
        // The context lies in the first register already.
        let code = [(0xb7, weft_abi::CHECKSUM_MARK), (0xb7, 0), (0x77, 0), (0x57, 3), (0x95, 0)];
        function.instructions = code
            .map(|(code, imm)| bpf_insn { code, _bitfield_align_1: [], _bitfield_1: Default::default(), off: 0, imm })
            .to_vec();
        (function.func_info_rec_size, function.line_info_rec_size) = (0, 0);
        function
    }

    #[test]
    fn a_kernel_that_refuses_the_reads_gets_the_program_without_them() {
        let bytes = std::fs::read(VMLINUX).expect("a kernel with BTF");
        let btf = Btf::parse(&bytes).expect("readable");
        let kind = Kind::of(&aya_obj::ProgramSection::SchedClassifier).expect("known");
        let load = |place| load_one("looks", kind, c"GPL", &looks(), place, None).expect("loads");
        let here = Place::find().expect("this kernel says where");
        assert_eq!(test_run(load(Some(here)).as_fd(), 0).expect("runs"), 0, "nothing is owed");
        let function = btf.function("schedule").expect("no function for programs");
        let nowhere = here.with_function(i32::try_from(function).expect("small"));
        let refused = {
            let mut looking = looks();
            nowhere.fill_in(&mut looking.instructions);
            program::load("looks", kind, c"GPL", &looking, None)
        };
        refused.expect_err("the kernel has no such function for programs");
        for place in [Some(nowhere), None] {
            assert_eq!(test_run(load(place).as_fd(), 0).expect("runs"), 0);
        }
    }
}
