//! Who has an address: the union of what slices, nodes and this node's own endpoints say, merged so that an address
//! never changes to "nobody" while it only moves from one slice to another.
//!
//! A claim is keyed by the slice and the pod's UID: the late removal of an old pod does not touch the claim of a new
//! one with the same address or the same name. Of several claims the one that was last made or changed holds; which one
//! that is the API server says, since a list is in no order and removals are written late. When the last one goes, the
//! answer lingers for a moment, in case the claim is only on its way from slice to slice.

use foldhash::HashMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use weft_model::desired::IpcacheEntry;
use weft_model::id::Identity;
use weft_model::intent::{EndpointSlice, ObjectName, RemoteEndpoint, Written};

/// How long an address that nobody claims any more keeps its identity, at least.
pub const LINGER: Duration = Duration::from_secs(5);
/// What lingers ends with what else ended in this time: each end is work for the whole of the tables.
const LINGER_STEP: Duration = Duration::from_secs(1);

/// A remote pod's claim to an address.
#[derive(Clone, Debug)]
struct Claim {
    slice: Arc<str>,
    uid: Arc<str>,
    name: Arc<ObjectName>,
    entry: IpcacheEntry,
    /// When the slice was written that made it.
    written: u64,
}

/// A slice's word: the address, the pod's UID, what it makes of it.
type Said = (IpAddr, Arc<str>, IpcacheEntry);

/// See the module.
#[derive(Debug, Default)]
pub struct Addresses {
    /// Of each address in the order in which they were told.
    claims: HashMap<IpAddr, Vec<Claim>>,
    /// What each slice says, sorted: what it says again costs no look at any claim. Most of an agent's memory is what
    /// it knows of others' pods, so nothing here has room to spare.
    slices: HashMap<Arc<str>, Box<[Said]>>,
    nodes: HashMap<IpAddr, (IpcacheEntry, Arc<str>)>,
    local: HashMap<IpAddr, Identity>,
    lingering: HashMap<IpAddr, (IpcacheEntry, Duration)>,
    /// The same by time; some may be claimed again by now.
    leaving: VecDeque<(Duration, IpAddr)>,
    /// Addresses whose answer may differ from what was last taken.
    dirty: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Everything a slice says, in place of what it said before. Endpoints for which `skip` holds (this node's own)
    /// are left out.
    pub fn set_slice(&mut self, slice: &EndpointSlice, now: Duration, skip: impl Fn(&RemoteEndpoint) -> bool) {
        let name: Arc<str> = slice.name.as_str().into();
        let before = self.slices.remove(&name).unwrap_or_default();
        let mut after: Vec<Said> = Vec::with_capacity(before.len() + 2);
        for endpoint in slice.endpoints.iter().filter(|endpoint| !skip(endpoint)) {
            let entry = IpcacheEntry { identity: endpoint.identity, node: Some(endpoint.node), is_node: false };
            let mut names = None;
            for address in &endpoint.addresses {
                let said = said(&before, *address, &endpoint.pod_uid);
                if let Some(same) = said.filter(|(_, _, said)| *said == entry) {
                    after.push(same.clone());
                    continue;
                }
                let (uid, pod) = names.get_or_insert_with(|| self.names_of(endpoint)).clone();
                self.claim(*address, &name, &uid, &pod, entry, slice.written);
                after.push((*address, uid, entry));
            }
        }
        after.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        after.dedup_by(|a, b| (a.0, &a.1) == (b.0, &b.1));
        for (address, uid, _) in before.iter().filter(|(address, uid, _)| said(&after, *address, uid).is_none()) {
            self.unclaim(*address, &name, uid, now);
        }
        if !after.is_empty() {
            self.slices.insert(name, after.into_boxed_slice());
        }
    }

    /// A slice is gone.
    pub fn remove_slice(&mut self, name: &str, now: Duration) {
        let Some((name, claims)) = self.slices.remove_entry(name) else { return };
        for (address, uid, _) in claims {
            self.unclaim(address, &name, &uid, now);
        }
    }

    /// A node's own address.
    pub fn set_node(&mut self, address: IpAddr, name: &str, entry: IpcacheEntry) {
        self.nodes.insert(address, (entry, name.into()));
        self.dirty.insert(address);
    }

    /// It is gone.
    pub fn remove_node(&mut self, address: IpAddr) {
        self.nodes.remove(&address);
        self.dirty.insert(address);
    }

    /// An endpoint of this node.
    pub fn set_local(&mut self, address: IpAddr, identity: Identity) {
        self.local.insert(address, identity);
        self.lingering.remove(&address);
        self.dirty.insert(address);
    }

    /// It is gone.
    pub fn remove_local(&mut self, address: IpAddr) {
        self.local.remove(&address);
        self.dirty.insert(address);
    }

    /// Who has it.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<IpcacheEntry> {
        if let Some(identity) = self.local.get(&address) {
            return Some(IpcacheEntry { identity: *identity, node: None, is_node: false });
        }
        if let Some((entry, _)) = self.nodes.get(&address) {
            return Some(*entry);
        }
        let newest = self.claims.get(&address).and_then(|claims| newest(claims));
        newest.map(|claim| claim.entry).or_else(|| self.lingering.get(&address).map(|(entry, _)| *entry))
    }

    /// The remote pod that has it.
    #[must_use]
    pub fn pod(&self, address: IpAddr) -> Option<Arc<ObjectName>> {
        Some(newest(self.claims.get(&address)?)?.name.clone())
    }

    /// The node that has it.
    #[must_use]
    pub fn node(&self, address: IpAddr) -> Option<Arc<str>> {
        self.nodes.get(&address).map(|(_, name)| name.clone())
    }

    /// Addresses of a remote pod.
    #[must_use]
    pub fn of_pod(&self, name: &ObjectName) -> Vec<IpAddr> {
        let named = |claims: &[Claim]| newest(claims).is_some_and(|claim| *claim.name == *name);
        let mut of: Vec<IpAddr> =
            self.claims.iter().filter(|(_, claims)| named(claims)).map(|(address, _)| *address).collect();
        of.sort_unstable();
        of
    }

    /// Those of the identities that some address has, or had a moment ago. A look at every address.
    #[must_use]
    pub fn using<T>(&self, identities: &BTreeMap<Identity, T>) -> BTreeSet<Identity> {
        let told = self.claims.values().flatten().map(|claim| claim.entry.identity);
        let left = self.lingering.values().map(|(entry, _)| entry.identity);
        let all = told.chain(left).chain(self.local.values().copied());
        all.filter(|identity| identities.contains_key(identity)).collect()
    }

    /// Every address and who has it.
    #[must_use]
    pub fn all(&self) -> BTreeMap<IpAddr, IpcacheEntry> {
        let addresses =
            self.local.keys().chain(self.nodes.keys()).chain(self.claims.keys()).chain(self.lingering.keys());
        addresses.filter_map(|address| self.get(*address).map(|entry| (*address, entry))).collect()
    }

    /// What may have changed since the last call.
    pub fn take_dirty(&mut self) -> Vec<(IpAddr, Option<IpcacheEntry>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|address| (address, self.get(address))).collect()
    }

    /// Drops what lingered long enough; says when to come again.
    pub fn expire(&mut self, now: Duration) -> Option<Duration> {
        while let Some((until, address)) = self.leaving.front().copied() {
            let waits = self.lingering.get(&address).is_some_and(|(_, waits)| *waits == until);
            if waits && until > now {
                return Some(until);
            }
            self.leaving.pop_front();
            if waits {
                self.lingering.remove(&address);
                self.dirty.insert(address);
            }
        }
        None
    }

    /// The UID and the name of an endpoint, shared with its claims that are there already.
    fn names_of(&self, endpoint: &RemoteEndpoint) -> (Arc<str>, Arc<ObjectName>) {
        let claims = endpoint.addresses.iter().filter_map(|address| self.claims.get(address)).flatten();
        let mut same = claims.filter(|claim| *claim.uid == *endpoint.pod_uid && *claim.name == endpoint.name);
        match same.next() {
            Some(claim) => (claim.uid.clone(), claim.name.clone()),
            None => (endpoint.pod_uid.as_str().into(), Arc::new(endpoint.name.clone())),
        }
    }

    fn claim(
        &mut self,
        address: IpAddr,
        slice: &Arc<str>,
        uid: &Arc<str>,
        name: &Arc<ObjectName>,
        entry: IpcacheEntry,
        written: Written,
    ) {
        let claims = self.claims.entry(address).or_insert_with(|| Vec::with_capacity(1));
        if let Some(at) = claims.iter().position(|claim| claim.slice == *slice && claim.uid == *uid) {
            if claims[at].entry == entry {
                return;
            }
            claims.remove(at);
        }
        let (slice, uid, name) = (slice.clone(), uid.clone(), name.clone());
        claims.push(Claim { slice, uid, name, entry, written: written.0 });
        self.lingering.remove(&address);
        self.dirty.insert(address);
    }

    fn unclaim(&mut self, address: IpAddr, slice: &Arc<str>, uid: &Arc<str>, now: Duration) {
        let Some(claims) = self.claims.get_mut(&address) else { return };
        let Some(at) = claims.iter().position(|claim| claim.slice == *slice && claim.uid == *uid) else { return };
        let gone = claims.remove(at);
        if claims.is_empty() {
            self.claims.remove(&address);
            if !self.local.contains_key(&address) {
                let until = linger_until(now);
                self.lingering.insert(address, (gone.entry, until));
                self.leaving.push_back((until, address));
            }
        }
        self.dirty.insert(address);
    }
}

/// When an address ends that was left now.
fn linger_until(now: Duration) -> Duration {
    let steps = (now + LINGER).as_nanos().div_ceil(LINGER_STEP.as_nanos());
    LINGER_STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

/// The claim that holds: of those that were written at the same time the one that was told last.
fn newest(claims: &[Claim]) -> Option<&Claim> {
    claims.iter().max_by_key(|claim| claim.written)
}

/// What a slice says of an address of a pod.
fn said<'a>(all: &'a [Said], address: IpAddr, uid: &str) -> Option<&'a Said> {
    let at = all.binary_search_by(|(of, who, _)| (*of, &**who).cmp(&(address, uid)));
    at.ok().map(|at| &all[at])
}

#[cfg(test)]
mod tests;
