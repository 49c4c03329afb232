//! Opens a node's data path: locks the pin directory, creates or adopts the maps, loads the programs and replaces those
//! that run. Everything that can fail comes before the first change of what is in force.

use crate::error::OpenError;
use crate::hooks::Hooks;
use crate::layout::{self, Comparison, Moving};
use crate::open::object::{OBJECT, create};
use crate::pins::PinDir;
use crate::sys;
use kept::Kept;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use weft_abi::map_name;

mod carry;
mod checksum;
mod fill;
mod kept;
mod load;
mod object;

/// How to open a node's data path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The node's directory on a BPF file system.
    pub bpf_dir: PathBuf,
    /// Mount a BPF file system there if it is not on one.
    pub mount: bool,
    /// How long to wait for the lock of a former agent that is ending.
    pub lock_wait: Duration,
    /// Sizes of maps by name (`weft_abi::map_name`), where they shall differ from the built-in ones.
    pub entries_max: BTreeMap<&'static str, u32>,
    /// Load no programs: verifying them takes longer than most tests.
    #[cfg(test)]
    pub(crate) maps_only: bool,
}

impl Options {
    /// Defaults: mount where needed, five seconds for the lock, sizes as built.
    #[must_use]
    pub fn new(bpf_dir: impl Into<PathBuf>) -> Self {
        Self {
            bpf_dir: bpf_dir.into(),
            mount: true,
            lock_wait: Duration::from_secs(5),
            entries_max: BTreeMap::new(),
            #[cfg(test)]
            maps_only: false,
        }
    }
}

/// What was found of a former agent.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Adopted {
    /// Nothing: every map is new.
    pub fresh: bool,
    /// Links whose program was replaced, by pin name.
    pub links: Vec<String>,
    /// Pins of links whose device is gone; removed.
    pub pruned: Vec<String>,
    /// Maps whose entries were moved to a map of another size.
    pub resized: Vec<String>,
    /// Maps that keep their size, as their entries would not fit into the smaller one that was asked for.
    pub kept: Vec<KeptSize>,
    /// Entries that the programs added while maps were resized, and that did not fit.
    pub left_out: usize,
}

/// A map that keeps its size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptSize {
    /// Its name.
    pub map: &'static str,
    /// What it holds.
    pub entries: usize,
    /// What it can hold.
    pub entries_max: u32,
    /// What was asked for.
    pub wanted: u32,
}

/// Everything that [`crate::Datapath`] is made from.
pub(crate) struct Parts {
    pub pins: PinDir,
    pub maps: BTreeMap<&'static str, Arc<OwnedFd>>,
    pub hooks: Hooks,
    pub adopted: Adopted,
    /// `FLOWS` was adopted without the revisions that its decisions were stamped with.
    pub revisions_lost: bool,
}

/// A pinned map that is replaced by one of another size.
struct Successor {
    name: &'static str,
    kind: u32,
    old: OwnedFd,
}

/// Opens the directory and everything in it.
pub(crate) fn open(options: &Options) -> Result<Parts, OpenError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|error| OpenError::Object { why: error.to_string() })?;
    let wanted = layout::wanted(&object, &options.entries_max).map_err(|why| OpenError::Object { why })?;

    let pins = PinDir::open(&options.bpf_dir, options.mount, options.lock_wait)?;
    let former = carry::others(&pins)?;
    for other in &former {
        carry::maps(other, &pins, &wanted)?;
    }
    let mut adopted = Adopted { fresh: true, ..Adopted::default() };
    let mut maps: BTreeMap<&'static str, Arc<OwnedFd>> = BTreeMap::new();
    let (mut successors, mut made) = (Vec::new(), Vec::new());
    for (name, layout) in &wanted {
        let Some(old) = pins.map(name)? else {
            maps.insert(name, Arc::new(create(name, layout)?));
            made.push(*name);
            continue;
        };
        adopted.fresh = false;
        let path = || pins.maps().join(name);
        let info = sys::map_info(old.as_fd()).map_err(|error| OpenError::Foreign {
            map: name,
            path: path(),
            difference: error.to_string(),
        })?;
        match layout::compare(&info, layout) {
            Comparison::Same => {
                maps.insert(name, Arc::new(old));
            }
            Comparison::Movable => {
                let entries = fill::too_many(name, &old, info.max_entries, layout)?;
                let moved = match entries {
                    None => fill::moved(name, &old, info.max_entries, layout)?,
                    Some(_) => None,
                };
                match (moved, entries) {
                    (Some(new), _) => {
                        maps.insert(name, Arc::new(new));
                        successors.push(Successor { name, kind: layout.kind, old });
                    }
                    // Entries are connections and what is in force: a smaller map waits until they fit.
                    (None, entries) if info.map_flags == layout.flags => {
                        let entries = entries.unwrap_or(layout.entries_max as usize);
                        let (entries_max, wanted) = (info.max_entries, layout.entries_max);
                        adopted.kept.push(KeptSize { map: name, entries, entries_max, wanted });
                        maps.insert(name, Arc::new(old));
                    }
                    (None, entries) => {
                        let entries = entries.unwrap_or(layout.entries_max as usize);
                        return Err(OpenError::TooSmall { map: name, entries_max: layout.entries_max, entries });
                    }
                }
            }
            Comparison::Foreign(difference) => {
                return Err(OpenError::Foreign { map: name, path: path(), difference: difference.to_string() });
            }
        }
    }

    let kept = Kept::new(&pins, &maps)?;
    let (programs, verified) = match kept.take()? {
        Some(programs) => (programs, false),
        #[cfg(test)]
        None if options.maps_only => (crate::hooks::Programs::new(BTreeMap::new()), false),
        None => (load::load(object, &maps)?, true),
    };
    // From here on the kernel's state changes. Pins first: a map that a program uses is always pinned.
    for (name, map) in &maps {
        if made.contains(name) {
            pins.pin_map(name, map)?;
        }
    }
    if verified {
        kept.put(&programs)?;
    } else {
        kept.prune()?;
    }
    for other in &former {
        carry::links(other, &pins)?;
    }
    let hooks = Hooks::new(pins.links(), programs);
    let (links, pruned) = hooks.adopt()?;
    for other in &former {
        carry::remove(other)?;
    }
    (adopted.links, adopted.pruned) = (links, pruned);
    for Successor { name, kind, old } in successors {
        // Entries that the old programs wrote until they were replaced.
        if layout::moving(kind) == Moving::Entries {
            adopted.left_out += fill::catch_up(name, &old, &maps[name], &wanted[name])?;
        }
        pins.repin_map(name, &maps[name])?;
        adopted.resized.push(name.to_owned());
    }
    sys::trim_heap();
    let lost = [map_name::CONFIG, map_name::GENERATIONS].iter().any(|name| made.contains(name));
    Ok(Parts { pins, maps, hooks, revisions_lost: lost && !made.contains(&map_name::FLOWS), adopted })
}
