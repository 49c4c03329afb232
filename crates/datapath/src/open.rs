//! Opening a node's data path: lock the pin directory, make or adopt the maps, load the programs, put them in the place
//! of those that run. Nothing in force is disturbed before everything that can fail has succeeded.

use crate::hooks::Hooks;
use crate::layout::{self, Comparison, Moving};
use crate::pins::PinDir;
use crate::sys;
use crate::sys::map::Layout;
use kept::Kept;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use weft_abi::map_name;

mod carry;
mod checksum;
mod fill;
mod kept;
mod load;

/// The kernel programs, as `cargo xtask build-ebpf` made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_BPF_OBJECT"));

/// How to open a node's data path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The node's directory on a BPF file system.
    pub bpf_dir: PathBuf,
    /// Mount a BPF file system there if it is not on one.
    pub mount: bool,
    /// How long a former owner of the directory may take to die.
    pub lock_wait: Duration,
    /// Sizes of maps by name (`weft_abi::map_name`), where they shall differ from the built-in ones.
    pub entries_max: BTreeMap<&'static str, u32>,
    /// Load no programs: verifying them takes longer than most tests.
    #[cfg(test)]
    pub(crate) maps_only: bool,
}

impl Options {
    /// The usual ones.
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

/// Why a data path could not be opened. What was in force before is in force still.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent.
    #[error("{} is owned by another running agent", dir.display())]
    Owned {
        /// The pin directory.
        dir: PathBuf,
    },
    /// Pins need a BPF file system.
    #[error("{} is not on a BPF file system (mount one: mount -t bpf bpf DIR)", dir.display())]
    NotBpffs {
        /// The pin directory.
        dir: PathBuf,
    },
    /// A pinned map that is not ours, or of an unknown version.
    #[error("pinned map {map} at {} has another layout: {difference}; remove the pin if nothing uses it", path.display())]
    Foreign {
        /// Its name.
        map: &'static str,
        /// The pin.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A map is to become smaller than what it holds.
    #[error("map {map} shall hold {entries_max} entries, but {entries} are in it")]
    TooSmall {
        /// Its name.
        map: &'static str,
        /// The size wanted.
        entries_max: u32,
        /// What it holds.
        entries: usize,
    },
    /// The object does not fit this program.
    #[error("the kernel programs: {0}")]
    Object(String),
    /// The kernel refused a program.
    #[error("load the kernel program {name}: {why}")]
    Program {
        /// Its name.
        name: &'static str,
        /// In the kernel's words.
        why: String,
    },
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was attempted on what.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn path(what: &str, path: &Path, source: io::Error) -> Self {
        Self::System { what: format!("{what} {}", path.display()), source }
    }

    pub(crate) fn map(what: &str, map: &str, source: io::Error) -> Self {
        Self::System { what: format!("{what} map {map}"), source }
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
}

/// Everything that [`crate::Datapath`] is made from.
pub(crate) struct Parts {
    pub pins: PinDir,
    pub maps: BTreeMap<&'static str, Arc<OwnedFd>>,
    pub hooks: Hooks,
    pub adopted: Adopted,
    /// There are decisions, but not the revisions that they were stamped with.
    pub revisions_lost: bool,
}

/// A map that is to take the place of the pinned one.
struct Successor {
    name: &'static str,
    kind: u32,
    old: OwnedFd,
}

/// Opens the directory and everything in it.
pub(crate) fn open(options: &Options) -> Result<Parts, OpenError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|error| OpenError::Object(error.to_string()))?;
    let wanted = layout::wanted(&object, &options.entries_max).map_err(OpenError::Object)?;

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
                let new = create(name, layout)?;
                fill::fill(name, &old, &new, layout)?;
                maps.insert(name, Arc::new(new));
                successors.push(Successor { name, kind: layout.kind, old });
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
    // From here on the kernel's state changes. Pins first: a map that a program uses is never without one.
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
        // What the old programs wrote until they were replaced.
        if layout::moving(kind) == Moving::Entries {
            fill::catch_up(name, &old, &maps[name], &wanted[name])?;
        }
        pins.repin_map(name, &maps[name])?;
        adopted.resized.push(name.to_owned());
    }
    sys::trim_heap();
    let lost = [map_name::CONFIG, map_name::GENERATIONS].iter().any(|name| made.contains(name));
    Ok(Parts { pins, maps, hooks, revisions_lost: lost && !made.contains(&map_name::FLOWS), adopted })
}

fn create(name: &str, layout: &Layout) -> Result<OwnedFd, OpenError> {
    sys::map::create(name, layout).map_err(|source| OpenError::System {
        what: format!("create map {name} for {} entries", layout.entries_max),
        source,
    })
}
