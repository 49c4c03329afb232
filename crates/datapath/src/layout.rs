//! The layouts that the maps must have, and the comparison of pinned ones with them.

use crate::sys::map::Layout;
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_info, bpf_map_type};
use std::collections::BTreeMap;
use std::fmt;
use weft_abi::{
    Addr, AffinityKey, AffinityValue, BackendInfo, CidrValue, EndpointInfo, FlowEntry, FlowKey, FragmentKey,
    FragmentValue, FrontendInfo, FrontendKey, IpcacheInfo, LpmKey, MaglevKey, MaglevPart, MetricValue, NodeConfig,
    PolicyClassKey, PolicyEntryKey, PolicyEntryValue, PolicyInfo, RangeKey, RouteInfo, SlotKey, SocketKey, SocketValue,
    map_name,
};

/// Key and value sizes that user space relies on, by name.
const SIZES: [(&str, usize, usize); 21] = [
    (map_name::ENDPOINTS, size_of::<Addr>(), size_of::<EndpointInfo>()),
    (map_name::IPCACHE, size_of::<Addr>(), size_of::<IpcacheInfo>()),
    (map_name::PREFIXES, size_of::<LpmKey>(), size_of::<CidrValue>()),
    (map_name::ROUTES, size_of::<LpmKey>(), size_of::<RouteInfo>()),
    (map_name::PEERS, size_of::<u32>(), size_of::<u32>()),
    (map_name::POLICY_CLASSES, size_of::<PolicyClassKey>(), size_of::<u32>()),
    (map_name::POLICY_ENTRIES, size_of::<PolicyEntryKey>(), size_of::<PolicyEntryValue>()),
    (map_name::POLICY_INFO, size_of::<u32>(), size_of::<PolicyInfo>()),
    (map_name::FRONTENDS, size_of::<FrontendKey>(), size_of::<FrontendInfo>()),
    (map_name::SLOTS, size_of::<SlotKey>(), size_of::<BackendInfo>()),
    (map_name::BACKENDS, size_of::<u32>(), size_of::<BackendInfo>()),
    (map_name::MAGLEV, size_of::<MaglevKey>(), size_of::<MaglevPart>()),
    (map_name::RANGES, size_of::<RangeKey>(), size_of::<u32>()),
    (map_name::AFFINITY, size_of::<AffinityKey>(), size_of::<AffinityValue>()),
    (map_name::SOCKETS, size_of::<SocketKey>(), size_of::<SocketValue>()),
    (map_name::FLOWS, size_of::<FlowKey>(), size_of::<FlowEntry>()),
    (map_name::FRAGMENTS, size_of::<FragmentKey>(), size_of::<FragmentValue>()),
    (map_name::GENERATIONS, size_of::<u32>(), size_of::<u32>()),
    (map_name::CONFIG, size_of::<u32>(), size_of::<NodeConfig>()),
    (map_name::METRICS, size_of::<u32>(), size_of::<MetricValue>()),
    (map_name::EVENTS, 0, 0),
];

/// Maps whose memory user space shares, so that it can write single words at once and in order.
const SHARED: [&str; 2] = [map_name::CONFIG, map_name::GENERATIONS];

/// One difference between a map and what is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// What differs.
    pub what: &'static str,
    /// As found.
    pub found: u32,
    /// As wanted.
    pub wanted: u32,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its {} is {}, expected {}", self.what, self.found, self.wanted)
    }
}

/// How a pinned map relates to what is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// The same.
    Same,
    /// The entries mean the same, but their number or the way they are kept differs: they can be moved to a new map.
    Movable,
    /// Something else.
    Foreign(Difference),
}

/// The layouts that the object asks for, with `entries_max` in place of its own sizes where given. Maps that only the
/// programs know of are left out: they hold nothing that must outlive the programs.
///
/// # Errors
/// The object and `weft_abi` disagree, or the object has no such map.
pub fn wanted(
    object: &aya_obj::Object,
    entries_max: &BTreeMap<&'static str, u32>,
) -> Result<BTreeMap<&'static str, Layout>, String> {
    let mut layouts = BTreeMap::new();
    for (name, key, value) in SIZES {
        let map = object.maps.get(name).ok_or_else(|| format!("the object has no map {name}"))?;
        if map.key_size() as usize != key || map.value_size() as usize != value {
            return Err(format!(
                "map {name} of the object has keys of {} and values of {} bytes, expected {key} and {value}",
                map.key_size(),
                map.value_size()
            ));
        }
        let shared = if SHARED.contains(&name) { BPF_F_MMAPABLE } else { 0 };
        let layout = Layout {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            entries_max: entries_max.get(name).copied().unwrap_or(map.max_entries()),
            flags: map.map_flags() | shared,
        };
        layouts.insert(name, layout);
    }
    if let Some(name) = entries_max.keys().find(|name| !layouts.contains_key(*name)) {
        return Err(format!("a size is given for map {name}, which does not exist"));
    }
    Ok(layouts)
}

/// Compares a map with what is wanted.
#[must_use]
pub fn compare(found: &bpf_map_info, wanted: &Layout) -> Comparison {
    let meaning = [
        ("type", found.type_, wanted.kind),
        ("key size", found.key_size, wanted.key_size),
        ("value size", found.value_size, wanted.value_size),
    ];
    for (what, found, wanted) in meaning {
        if found != wanted {
            return Comparison::Foreign(Difference { what, found, wanted });
        }
    }
    if found.max_entries == wanted.entries_max && found.map_flags == wanted.flags {
        Comparison::Same
    } else {
        Comparison::Movable
    }
}

/// How the entries of a map are moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moving {
    /// One by one, as far as they fit.
    Entries,
    /// Values at fixed indices, one for each CPU.
    PerCpu,
    /// Not at all: events on their way.
    Nothing,
}

/// How the entries of a map of this type are moved.
#[must_use]
pub fn moving(kind: u32) -> Moving {
    if kind == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
        Moving::Nothing
    } else if kind == bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32 {
        Moving::PerCpu
    } else {
        Moving::Entries
    }
}

#[cfg(test)]
mod tests;
