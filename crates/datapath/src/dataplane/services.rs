//! Services in their five maps.
//!
//! A set is in use once a frontend names it, a frontend once its row is written: rows written before that are not reachable,
//! so they can be rolled back. Rows of a set hold its backends whole, so that a packet needs one lookup.

use crate::map::TypedMap;
use aya::Pod;
use frontends::{Frontends, is_of_address};
use ipnet::IpNet;
use rows::Shape;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use weft_abi::{BackendInfo, FrontendInfo, FrontendKey, MaglevKey, MaglevPart, RangeKey, SlotKey, map_name};
use weft_model::desired::{
    BackendId, BackendSet, DataplaneError, Frontend, FrontendEntry, ServiceId, ServicePatch, ServiceTables, SetId,
};

mod frontends;
mod rows;
#[cfg(test)]
mod tests;

/// Places of a set; tables name them with 16 bits.
const SLOTS_MAX: usize = 1 << 16;
/// Parts of a table.
const PARTS_MAX: u32 = 4096;
/// A range that lets its clients in.
const ALLOWED: u32 = 1;
/// Says nothing, see [`Services::keep_v4`].
const NOTHING: u32 = 0;

/// The maps.
pub(super) struct Maps {
    pub frontends: TypedMap<FrontendKey, FrontendInfo>,
    pub slots: TypedMap<SlotKey, BackendInfo>,
    pub backends: TypedMap<u32, BackendInfo>,
    pub maglev: TypedMap<MaglevKey, MaglevPart>,
    pub ranges: TypedMap<RangeKey, u32>,
}

/// The services of a node. Of what is in the maps enough is remembered to know what fits, and to write sets of backends
/// that are there already.
pub(super) struct Services {
    maps: Maps,
    frontends: Frontends,
    backends: HashMap<u32, BackendInfo>,
    sets: HashMap<u32, Shape>,
    ranges: BTreeSet<(ServiceId, IpNet)>,
    /// Services of which all of IPv4 is written with [`NOTHING`].
    v4_kept: HashSet<u32>,
    slot_rows: u64,
    part_rows: u64,
}

/// What was written of a patch before any packet can have met it.
#[derive(Default)]
struct Unseen {
    backends: Vec<(u32, Option<BackendInfo>)>,
    sets: Vec<(u32, Shape)>,
    ranges: Vec<(ServiceId, IpNet)>,
    frontends: Vec<FrontendKey>,
}

/// Rows of the sets of a patch.
#[derive(Default)]
struct SetRows {
    shapes: Vec<(u32, Shape)>,
    slots: (Vec<SlotKey>, Vec<BackendInfo>),
    parts: (Vec<MaglevKey>, Vec<MaglevPart>),
}

impl Services {
    pub(super) fn open(maps: Maps) -> Result<Self, DataplaneError> {
        let mut services = Self {
            maps,
            frontends: Frontends::default(),
            backends: HashMap::new(),
            sets: HashMap::new(),
            ranges: BTreeSet::new(),
            v4_kept: HashSet::new(),
            slot_rows: 0,
            part_rows: 0,
        };
        services.sweep()?;
        services.recall()?;
        services.mend()?;
        Ok(services)
    }

    /// Removes rows under keys that no patch could ever name.
    fn sweep(&self) -> Result<(), DataplaneError> {
        let strange = |(key, _): &(FrontendKey, _)| rows::frontend(key).is_none() && !is_of_address(key);
        remove_strange(&self.maps.frontends, strange)?;
        remove_strange(&self.maps.slots, |(key, _)| key.slot as usize >= SLOTS_MAX)?;
        remove_strange(&self.maps.maglev, |(key, _)| key.part >= PARTS_MAX)?;
        remove_strange(&self.maps.backends, |(id, info)| *id != info.id || rows::backend_entry(info).is_none())?;
        remove_strange(&self.maps.ranges, |(key, _)| rows::range(key).is_none())
    }

    /// Makes the rows of addresses match the frontends: a former agent may have ended in between.
    fn mend(&mut self) -> Result<(), DataplaneError> {
        let surplus = self.frontends.surplus(self.frontends.rows());
        self.maps.frontends.remove_all(&surplus).map_err(|(_, error)| error)?;
        self.frontends.remove(&surplus);
        let missing = self.frontends.missing(self.frontends.rows());
        let none = vec![FrontendInfo::default(); missing.len()];
        if let Err(full) = self.maps.frontends.reserve(self.frontends.len() as u64, missing.len() as u64) {
            // Of a version that wrote none: what it served matters more.
            tracing::warn!(%full, "no room for rows of addresses: fragments to Services that precede their first fragment are not dropped");
            return Ok(());
        }
        self.maps.frontends.put_all(&missing, &none).map_err(|(_, error)| error)?;
        self.frontends.extend(&missing);
        Ok(())
    }

    /// Learns what is in the maps.
    fn recall(&mut self) -> Result<(), DataplaneError> {
        self.frontends = Frontends::default();
        self.frontends.extend(self.maps.frontends.dump()?.iter().map(|(key, _)| key));
        self.backends = self.maps.backends.dump()?.into_iter().collect();
        (self.ranges, self.v4_kept) = (BTreeSet::new(), HashSet::new());
        for (key, value) in self.maps.ranges.dump()? {
            match rows::range(&key) {
                Some(range) if value != NOTHING => drop(self.ranges.insert(range)),
                Some((service, _)) => drop(self.v4_kept.insert(service.0)),
                None => {}
            }
        }
        (self.slot_rows, self.part_rows) = (0, 0);
        let mut sets: HashMap<u32, Shape> = HashMap::new();
        self.maps.slots.for_each(|key, _| {
            let shape = sets.entry(key.set).or_default();
            shape.count = shape.count.max(key.slot + 1);
            self.slot_rows += 1;
            true
        })?;
        self.maps.maglev.for_each(|key, _| {
            let shape = sets.entry(key.set).or_default();
            shape.table = shape.table.max((key.part + 1) * PART);
            self.part_rows += 1;
            true
        })?;
        // A length that is known stays known: the last part of a table may be partly used.
        for (id, shape) in &mut sets {
            match self.sets.get(id) {
                Some(known) if known.table.next_multiple_of(PART) == shape.table => shape.table = known.table,
                _ => {}
            }
        }
        self.sets = sets;
        Ok(())
    }

    /// Number of entries by map.
    pub(super) fn entries(&self) -> [(&'static str, u64); 5] {
        [
            (map_name::FRONTENDS, self.frontends.len() as u64),
            (map_name::SLOTS, self.slot_rows),
            (map_name::BACKENDS, self.backends.len() as u64),
            (map_name::MAGLEV, self.part_rows),
            (map_name::RANGES, self.range_rows()),
        ]
    }

    fn range_rows(&self) -> u64 {
        (self.ranges.len() + self.v4_kept.len()) as u64
    }

    pub(super) fn patch(&mut self, patch: &ServicePatch) -> Result<(), DataplaneError> {
        let sets = self.set_rows(patch)?;
        let (new, changed) = self.frontend_rows(patch, &sets)?;
        self.reserve(patch, &sets, &new)?;

        let mut unseen = Unseen::default();
        let prepared = self.prepare(patch, &sets, &new, &mut unseen);
        if let Err(error) = prepared {
            self.roll_back(unseen);
            return Err(error);
        }
        let (keys, infos): (Vec<_>, Vec<_>) = changed.into_iter().unzip();
        self.maps.frontends.put_all(&keys, &infos).map_err(|(_, error)| error)?;
        self.remove(patch)
    }

    /// The rows of the sets to write.
    fn set_rows(&self, patch: &ServicePatch) -> Result<SetRows, DataplaneError> {
        let mut rows = SetRows::default();
        for (id, set) in &patch.put_sets {
            let wrong = |why: String| invalid(format!("write set {} of backends", id.0), why);
            if set.backends.is_empty() || set.backends.len() > SLOTS_MAX || id.0 == 0 {
                return Err(wrong(format!("expected number 1 or more and 1 to {SLOTS_MAX} backends")));
            }
            if set.table.len() > PARTS_MAX as usize * MaglevPart::ENTRIES {
                return Err(wrong(format!(
                    "a table of {} entries, expected at most {}",
                    set.table.len(),
                    PARTS_MAX as usize * MaglevPart::ENTRIES
                )));
            }
            if let Some(slot) = set.table.iter().find(|slot| usize::from(**slot) >= set.backends.len()) {
                return Err(wrong(format!("its table names slot {slot} of {}", set.backends.len())));
            }
            if let Some(present) = self.sets.get(&id.0) {
                // Written by the same patch before, which failed later: perhaps in use already.
                if *present != shape(set) {
                    return Err(wrong("another set of this number is in force".to_owned()));
                }
                continue;
            }
            for (slot, backend) in (0..).zip(&set.backends) {
                let info = match patch.put_backends.get(backend) {
                    Some(entry) => rows::backend_info(*backend, entry),
                    None => *self
                        .backends
                        .get(&backend.0)
                        .ok_or_else(|| wrong(format!("backend {} does not exist", backend.0)))?,
                };
                rows.slots.0.push(SlotKey { set: id.0, slot });
                rows.slots.1.push(info);
            }
            for (part, entries) in (0..).zip(set.table.chunks(MaglevPart::ENTRIES)) {
                let mut value = MaglevPart([0; MaglevPart::ENTRIES]);
                value.0[..entries.len()].copy_from_slice(entries);
                rows.parts.0.push(MaglevKey { set: id.0, part });
                rows.parts.1.push(value);
            }
            rows.shapes.push((id.0, shape(set)));
        }
        Ok(rows)
    }

    /// The rows of the frontends to write: those that are new, and those that are there.
    fn frontend_rows(
        &self,
        patch: &ServicePatch,
        sets: &SetRows,
    ) -> Result<(FrontendRows, FrontendRows), DataplaneError> {
        let written: HashMap<u32, Shape> = sets.shapes.iter().copied().collect();
        let shape_of = |set: SetId| written.get(&set.0).or_else(|| self.sets.get(&set.0)).copied();
        let mut rows = (Vec::new(), Vec::new());
        for (frontend, entry) in &patch.put_frontends {
            if let Some(set) =
                [entry.internal, entry.external].into_iter().flatten().find(|set| shape_of(*set).is_none())
            {
                return Err(invalid(
                    format!("write frontend {}", name(frontend)),
                    format!("set {} of backends does not exist", set.0),
                ));
            }
            let key = rows::frontend_key(frontend);
            let info = rows::frontend_info(entry, |set| shape_of(set).unwrap_or_default());
            if self.frontends.contains(&key) { &mut rows.1 } else { &mut rows.0 }.push((key, info));
        }
        let missing = self.frontends.missing(rows.0.iter().map(|(key, _)| key));
        rows.0.extend(missing.into_iter().map(|row| (row, FrontendInfo::default())));
        Ok(rows)
    }

    /// Refuses what does not fit.
    fn reserve(&self, patch: &ServicePatch, sets: &SetRows, new: &FrontendRows) -> Result<(), DataplaneError> {
        let new_backends = patch.put_backends.keys().filter(|id| !self.backends.contains_key(&id.0)).count();
        let new_ranges = patch.put_ranges.iter().filter(|range| !self.ranges.contains(range)).count();
        let kept: BTreeSet<ServiceId> = patch
            .put_ranges
            .iter()
            .filter(|(_, range)| rows::reaches_v4(*range))
            .map(|(service, _)| *service)
            .collect();
        let new_kept = kept.iter().filter(|service| !self.v4_kept.contains(&service.0)).count();
        self.maps.backends.reserve(self.backends.len() as u64, new_backends as u64)?;
        self.maps.slots.reserve(self.slot_rows, sets.slots.0.len() as u64)?;
        self.maps.maglev.reserve(self.part_rows, sets.parts.0.len() as u64)?;
        self.maps.ranges.reserve(self.range_rows(), (new_ranges + new_kept) as u64)?;
        self.maps.frontends.reserve(self.frontends.len() as u64, new.len() as u64)
    }

    /// Everything that no packet meets yet, and new frontends last: each of these is complete by itself.
    fn prepare(
        &mut self,
        patch: &ServicePatch,
        sets: &SetRows,
        new: &FrontendRows,
        unseen: &mut Unseen,
    ) -> Result<(), DataplaneError> {
        let (ids, infos): (Vec<u32>, Vec<BackendInfo>) =
            patch.put_backends.iter().map(|(id, entry)| (id.0, rows::backend_info(*id, entry))).unzip();
        let before = self.backends.len() as u64;
        let written = self.maps.backends.put_all(&ids, &infos);
        for (id, info) in ids.iter().zip(&infos).take(done(&written, ids.len())) {
            unseen.backends.push((*id, self.backends.insert(*id, *info)));
        }
        told(&self.maps.backends, written, before, ids.len())?;

        self.write_sets(sets, unseen)?;

        for (service, range) in &patch.put_ranges {
            if !self.ranges.contains(&(*service, *range)) {
                unseen.ranges.push((*service, *range));
                self.put_range(*service, *range)?;
            }
        }

        let (keys, infos): (Vec<FrontendKey>, Vec<FrontendInfo>) = new.iter().copied().unzip();
        let before = self.frontends.len() as u64;
        let written = self.maps.frontends.put_all(&keys, &infos);
        let done = done(&written, keys.len());
        self.frontends.extend(&keys[..done]);
        unseen.frontends.extend(&keys[..done]);
        told(&self.maps.frontends, written, before, keys.len())
    }

    fn write_sets(&mut self, sets: &SetRows, unseen: &mut Unseen) -> Result<(), DataplaneError> {
        // In the books first: whatever is written can be found again. Rows are counted as they are written.
        unseen.sets.clone_from(&sets.shapes);
        self.sets.extend(sets.shapes.iter().copied());
        let (before, wanted) = (self.slot_rows, sets.slots.0.len());
        let written = self.maps.slots.put_all(&sets.slots.0, &sets.slots.1);
        self.slot_rows += done(&written, wanted) as u64;
        told(&self.maps.slots, written, before, wanted)?;
        let (before, wanted) = (self.part_rows, sets.parts.0.len());
        let written = self.maps.maglev.put_all(&sets.parts.0, &sets.parts.1);
        self.part_rows += done(&written, wanted) as u64;
        told(&self.maps.maglev, written, before, wanted)
    }

    /// Removes what is no longer in use.
    fn remove(&mut self, patch: &ServicePatch) -> Result<(), DataplaneError> {
        let keys: Vec<FrontendKey> = patch.del_frontends.iter().map(rows::frontend_key).collect();
        self.maps.frontends.remove_all(&keys).map_err(|(_, error)| error)?;
        self.frontends.remove(&keys);
        let surplus = self.frontends.surplus(&keys);
        self.maps.frontends.remove_all(&surplus).map_err(|(_, error)| error)?;
        self.frontends.remove(&surplus);
        for (service, range) in &patch.del_ranges {
            self.remove_range(*service, *range)?;
        }
        self.remove_sets(patch.del_sets.iter().map(|id| id.0))?;
        let keys: Vec<u32> = patch.del_backends.iter().map(|id| id.0).collect();
        self.maps.backends.remove_all(&keys).map_err(|(_, error)| error)?;
        for key in &keys {
            self.backends.remove(key);
        }
        Ok(())
    }

    fn remove_sets(&mut self, ids: impl Iterator<Item = u32>) -> Result<(), DataplaneError> {
        let (mut gone, mut slots, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for id in ids {
            let Some(shape) = self.sets.get(&id) else { continue };
            gone.push(id);
            slots.extend((0..shape.count).map(|slot| SlotKey { set: id, slot }));
            parts.extend((0..shape.table.div_ceil(PART)).map(|part| MaglevKey { set: id, part }));
        }
        count_removed(self.maps.slots.remove_all(&slots), &mut self.slot_rows)?;
        count_removed(self.maps.maglev.remove_all(&parts), &mut self.part_rows)?;
        for id in &gone {
            self.sets.remove(id);
        }
        Ok(())
    }

    fn put_range(&mut self, service: ServiceId, range: IpNet) -> Result<(), DataplaneError> {
        self.ranges.insert((service, range));
        self.keep_v4(service)?;
        let wanted = self.maps.ranges.put(&rows::range_key(service, range), &ALLOWED);
        wanted.map_err(|error| self.maps.ranges.full_or(error, self.range_rows(), 1))
    }

    fn remove_range(&mut self, service: ServiceId, range: IpNet) -> Result<(), DataplaneError> {
        let key = rows::range_key(service, range);
        self.ranges.remove(&(service, range));
        if key == rows::all_v4(service) && self.wants_v4_kept(service) {
            // The row stays, with an empty value.
            return self.keep_v4(service);
        }
        self.maps.ranges.remove(&key)?;
        self.keep_v4(service)
    }

    /// A range such as `::/0` covers the mapped IPv4 addresses, too, but must not match them.
    fn wants_v4_kept(&self, service: ServiceId) -> bool {
        let mut reaches = false;
        for range in self.of_service(service) {
            if rows::range_key(service, range) == rows::all_v4(service) {
                return false;
            }
            reaches |= rows::reaches_v4(range);
        }
        reaches
    }

    fn of_service(&self, service: ServiceId) -> impl Iterator<Item = IpNet> {
        let least = (service, IpNet::V4(ipnet::Ipv4Net::default()));
        self.ranges.range(least..).take_while(move |(of, _)| *of == service).map(|(_, range)| *range)
    }

    /// Makes the longest match of an IPv4 address one of IPv4's own.
    fn keep_v4(&mut self, service: ServiceId) -> Result<(), DataplaneError> {
        let key = rows::all_v4(service);
        if self.wants_v4_kept(service) {
            self.maps.ranges.put(&key, &NOTHING)?;
            self.v4_kept.insert(service.0);
        } else if self.v4_kept.remove(&service.0) && !self.ranges.contains(&(service, V4_ALL)) {
            self.maps.ranges.remove(&key)?;
        }
        Ok(())
    }

    /// Takes back what was written of a patch that failed before any packet could meet it. What cannot be taken back is
    /// in the books, and the same patch again completes it.
    fn roll_back(&mut self, unseen: Unseen) {
        let result = self.maps.frontends.remove_all(&unseen.frontends).map(drop).map_err(|(_, error)| error);
        self.frontends.remove(&unseen.frontends);
        let ranges = unseen.ranges.iter().map(|(service, range)| self.remove_range(*service, *range));
        let result = ranges.fold(result, Result::and);
        let result = result.and(self.remove_sets(unseen.sets.iter().map(|(id, _)| *id)));
        let backends = unseen.backends.into_iter().rev().map(|(id, before)| {
            match before {
                Some(info) => {
                    self.maps.backends.put(&id, &info)?;
                    self.backends.insert(id, info);
                }
                None => {
                    self.maps.backends.remove(&id)?;
                    self.backends.remove(&id);
                }
            }
            Ok(())
        });
        if let Err(error) = backends.fold(result, Result::and) {
            tracing::error!(%error, "take back a refused change of services");
        }
    }

    /// All that the maps hold. A set of which a part is missing, or says other than the backends do, comes back empty,
    /// and so does what names it: it equals nothing that anybody wants.
    pub(super) fn read(&mut self) -> Result<ServiceTables, DataplaneError> {
        self.recall()?;
        let infos: Vec<(FrontendKey, FrontendInfo)> = self.maps.frontends.dump()?;
        // Of a table that somebody else wrote, the frontends know the length.
        for (_, info) in &infos {
            for (set, table) in [(info.internal_set, info.internal_table), (info.external_set, info.external_table)] {
                match self.sets.get_mut(&set) {
                    Some(shape) if table.next_multiple_of(PART) == shape.table => shape.table = table,
                    _ => {}
                }
            }
        }
        let sets = self.read_sets()?;
        let whole =
            |set: Option<SetId>| set.is_none_or(|set| sets.get(&set).is_some_and(|set| !set.backends.is_empty()));
        let frontends = infos.iter().filter_map(|(key, info)| {
            let as_written = |entry: &FrontendEntry| {
                let shape = |set: SetId| sets.get(&set).map(shape).unwrap_or_default();
                whole(entry.internal) && whole(entry.external) && rows::frontend_info(entry, shape) == *info
            };
            let entry = rows::frontend_entry(info).filter(as_written);
            Some((rows::frontend(key)?, entry.unwrap_or(broken(info))))
        });
        let frontends = frontends.collect();
        let backends = self.backends.iter().filter_map(|(id, info)| Some((BackendId(*id), rows::backend_entry(info)?)));
        Ok(ServiceTables { frontends, backends: backends.collect(), ranges: self.ranges.clone(), sets })
    }

    fn read_sets(&self) -> Result<BTreeMap<SetId, BackendSet>, DataplaneError> {
        let mut slots: BTreeMap<(u32, u32), BackendId> = BTreeMap::new();
        self.maps.slots.for_each(|key, info| {
            if self.backends.get(&info.id) == Some(info) {
                slots.insert((key.set, key.slot), BackendId(info.id));
            }
            true
        })?;
        let mut parts: BTreeMap<(u32, u32), MaglevPart> = BTreeMap::new();
        self.maps.maglev.for_each(|key, part| {
            parts.insert((key.set, key.part), *part);
            true
        })?;
        let read = |id: u32, shape: &Shape| {
            let backends: Vec<BackendId> = slots.range((id, 0)..=(id, u32::MAX)).map(|(_, backend)| *backend).collect();
            let parts = parts.range((id, 0)..=(id, u32::MAX)).map(|(_, part)| part.0);
            let mut table: Vec<u16> = parts.flatten().collect();
            let whole =
                backends.len() == shape.count as usize && table.len() == shape.table.next_multiple_of(PART) as usize;
            table.truncate(shape.table as usize);
            let known = table.iter().all(|slot| usize::from(*slot) < backends.len());
            if whole && known {
                BackendSet { backends, table }
            } else {
                BackendSet { backends: Vec::new(), table: Vec::new() }
            }
        };
        Ok(self.sets.iter().map(|(id, shape)| (SetId(*id), read(*id, shape))).collect())
    }
}

/// Entries of a part of a table, as shapes count them.
#[expect(clippy::cast_possible_truncation, reason = "64")]
const PART: u32 = MaglevPart::ENTRIES as u32;
/// All of IPv4.
const V4_ALL: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));

/// Rows of frontends.
type FrontendRows = Vec<(FrontendKey, FrontendInfo)>;

/// What a frontend is taken for that no patch of ours has written: it names a set that cannot be.
fn broken(info: &FrontendInfo) -> FrontendEntry {
    FrontendEntry {
        service: ServiceId(info.service),
        kind: weft_model::desired::FrontendKind::ClusterIp,
        internal: Some(SetId(0)),
        external: Some(SetId(0)),
        affinity_s: None,
        forwarding: weft_model::intent::Forwarding::Snat,
        source_ranges: false,
        external_local: false,
        internal_local: false,
        skip_from_backend: false,
    }
}

fn shape(set: &BackendSet) -> Shape {
    let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    Shape { count: size(set.backends.len()), table: size(set.table.len()) }
}

fn remove_strange<K: Pod, V: Pod>(
    map: &TypedMap<K, V>,
    strange: impl Fn(&(K, V)) -> bool,
) -> Result<(), DataplaneError> {
    let keys: Vec<K> = map.dump()?.into_iter().filter(strange).map(|(key, _)| key).collect();
    map.remove_all(&keys).map(drop).map_err(|(_, error)| error)
}

/// How many rows of a batch were written.
fn done(written: &Result<(), (usize, DataplaneError)>, all: usize) -> usize {
    written.as_ref().map_or_else(|(done, _)| *done, |()| all)
}

fn told<K: Pod, V: Pod>(
    map: &TypedMap<K, V>,
    written: Result<(), (usize, DataplaneError)>,
    before: u64,
    wanted: usize,
) -> Result<(), DataplaneError> {
    written.map_err(|(_, error)| map.full_or(error, before, wanted as u64))
}

fn count_removed(removed: Result<usize, (usize, DataplaneError)>, rows: &mut u64) -> Result<(), DataplaneError> {
    let (removed, result) = match removed {
        Ok(removed) => (removed, Ok(())),
        Err((removed, error)) => (removed, Err(error)),
    };
    *rows = rows.saturating_sub(removed as u64);
    result
}

fn invalid(what: String, why: String) -> DataplaneError {
    DataplaneError::Invalid { what, why }
}

fn name(frontend: &Frontend) -> String {
    format!("frontend {}:{}/{:?}", frontend.address, frontend.port, frontend.protocol)
}
