//! Who has an address: the union of what slices, nodes and this node's own endpoints say, merged so that an address
//! never changes to "nobody" while it only moves from one slice to another. Beside it, what the ipcache in the kernel
//! has of each address.
//!
//! A claim is keyed by the slice and the pod's UID: the late removal of an old pod does not touch the claim of a new
//! one with the same address or the same name. Of several claims the one that was last made or changed holds; which one
//! that is the API server says, since a list is in no order and removals are written late. When the last one goes, the
//! answer lingers for a moment, in case the claim is only on its way from slice to slice.
//!
//! One row per address in a persistent map: most of an agent's memory is what it knows of others' pods, so nothing here
//! has room to spare, and a snapshot for readers must not copy it.

use foldhash::HashMap;
use foldhash::fast::RandomState;
use rpds::HashTrieMapSync;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use weft_model::desired::IpcacheEntry;
use weft_model::id::Identity;
use weft_model::intent::{EndpointSlice, ObjectName, RemoteEndpoint, Written};

/// How long an address that nobody claims any more keeps its identity, at least.
pub const LINGER: Duration = Duration::from_secs(5);
/// What lingers ends with what else ended in this time: each end is work for the whole of the tables.
const LINGER_STEP: Duration = Duration::from_secs(1);
/// Children of a node of the map: fewer make it deeper, more make each write under a snapshot copy more.
const DEGREE: u8 = 16;

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

/// What few addresses have.
#[derive(Clone, Debug, Default)]
struct Rare {
    /// An endpoint of this node has it.
    local: Option<Identity>,
    /// It is this node's own address.
    node: Option<(IpcacheEntry, Arc<str>)>,
    /// Nobody claims it since a moment ago.
    lingering: Option<(IpcacheEntry, Duration)>,
}

impl Rare {
    fn is_empty(&self) -> bool {
        self.local.is_none() && self.node.is_none() && self.lingering.is_none()
    }
}

/// One address.
#[derive(Clone, Debug, Default)]
struct Row {
    /// In the order in which they were made.
    claims: Vec<Claim>,
    rare: Option<Box<Rare>>,
    /// As the kernel has it.
    in_force: Option<IpcacheEntry>,
}

impl Row {
    fn answer(&self) -> Option<IpcacheEntry> {
        let rare = self.rare.as_deref();
        if let Some(rare) = rare {
            if let Some(identity) = rare.local {
                return Some(IpcacheEntry { identity, node: None, is_node: false });
            }
            if let Some((entry, _)) = rare.node {
                return Some(entry);
            }
        }
        let lingering = || rare.and_then(|rare| rare.lingering).map(|(entry, _)| entry);
        newest(&self.claims).map(|claim| claim.entry).or_else(lingering)
    }

    fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.in_force.is_none() && self.rare.as_ref().is_none_or(|rare| rare.is_empty())
    }
}

/// All addresses as of one moment. A clone costs nothing and never changes.
#[derive(Clone, Debug)]
pub struct Snapshot(HashTrieMapSync<IpAddr, Row, RandomState>);

impl Default for Snapshot {
    fn default() -> Self {
        Self(HashTrieMapSync::new_with_hasher_and_degree_and_ptr_kind(RandomState::default(), DEGREE))
    }
}

impl Snapshot {
    /// Who has it.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<IpcacheEntry> {
        self.0.get(&address)?.answer()
    }

    /// As the kernel has it.
    #[must_use]
    pub fn in_force(&self, address: IpAddr) -> Option<IpcacheEntry> {
        self.0.get(&address)?.in_force
    }

    /// The remote pod that has it.
    #[must_use]
    pub fn pod(&self, address: IpAddr) -> Option<Arc<ObjectName>> {
        Some(newest(&self.0.get(&address)?.claims)?.name.clone())
    }

    /// The node that has it.
    #[must_use]
    pub fn node(&self, address: IpAddr) -> Option<Arc<str>> {
        let (_, name) = self.0.get(&address)?.rare.as_ref()?.node.as_ref()?;
        Some(name.clone())
    }

    /// Addresses of a remote pod.
    #[must_use]
    pub fn of_pod(&self, name: &ObjectName) -> Vec<IpAddr> {
        let named = |row: &Row| newest(&row.claims).is_some_and(|claim| *claim.name == *name);
        let mut of: Vec<IpAddr> = self.0.iter().filter(|(_, row)| named(row)).map(|(address, _)| *address).collect();
        of.sort_unstable();
        of
    }

    /// Every address and who has it.
    #[must_use]
    pub fn all(&self) -> BTreeMap<IpAddr, IpcacheEntry> {
        self.0.iter().filter_map(|(address, row)| Some((*address, row.answer()?))).collect()
    }

    /// Addresses that the kernel has and nobody claims.
    #[must_use]
    pub fn stale(&self) -> Vec<IpAddr> {
        let stale = |row: &Row| row.in_force.is_some() && row.answer().is_none();
        self.0.iter().filter(|(_, row)| stale(row)).map(|(address, _)| *address).collect()
    }
}

/// What a slice says of an address: the address, the pod's UID, what it makes of it.
type Statement = (IpAddr, Arc<str>, IpcacheEntry);

/// See the module.
#[derive(Debug, Default)]
pub struct Addresses {
    rows: Snapshot,
    /// What each slice says, sorted: what it says again costs no work on any row.
    slices: HashMap<Arc<str>, Box<[Statement]>>,
    /// Lingering addresses by the time they end; some may be claimed again by now.
    leaving: VecDeque<(Duration, IpAddr)>,
    /// Addresses whose answer may differ from what was last drained.
    changed: BTreeSet<IpAddr>,
}

impl Deref for Addresses {
    type Target = Snapshot;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

impl Addresses {
    /// Everything a slice says, in place of what it said before. Endpoints for which `skip` holds (this node's own)
    /// are left out.
    pub fn set_slice(&mut self, slice: &EndpointSlice, now: Duration, skip: impl Fn(&RemoteEndpoint) -> bool) {
        let name: Arc<str> = slice.name.as_str().into();
        let before = self.slices.remove(&name).unwrap_or_default();
        let mut after: Vec<Statement> = Vec::with_capacity(before.len() + 2);
        for endpoint in slice.endpoints.iter().filter(|endpoint| !skip(endpoint)) {
            let entry = IpcacheEntry { identity: endpoint.identity, node: Some(endpoint.node), is_node: false };
            let mut names = None;
            for address in &endpoint.addresses {
                let known = statement(&before, *address, &endpoint.pod_uid);
                if let Some(same) = known.filter(|(_, _, known)| *known == entry) {
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
        for (address, uid, _) in before.iter().filter(|(address, uid, _)| statement(&after, *address, uid).is_none()) {
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
        self.rare(address).node = Some((entry, name.into()));
        self.changed.insert(address);
    }

    /// It is gone.
    pub fn remove_node(&mut self, address: IpAddr) {
        self.change(address, |rare| rare.node = None);
    }

    /// An endpoint of this node.
    pub fn set_local(&mut self, address: IpAddr, identity: Identity) {
        let rare = self.rare(address);
        (rare.local, rare.lingering) = (Some(identity), None);
        self.changed.insert(address);
    }

    /// It is gone.
    pub fn remove_local(&mut self, address: IpAddr) {
        self.change(address, |rare| rare.local = None);
    }

    /// The kernel has this of the address now.
    pub fn set_in_force(&mut self, address: IpAddr, entry: Option<IpcacheEntry>) {
        self.row(address).in_force = entry;
        if entry.is_none() {
            self.drop_if_empty(address);
        }
    }

    /// Those of the identities that some address has, or had a moment ago. Scans every address.
    #[must_use]
    pub fn using<T>(&self, identities: &BTreeMap<Identity, T>) -> BTreeSet<Identity> {
        let mut used = BTreeSet::new();
        for row in self.rows.0.values() {
            let rare = row.rare.as_deref();
            let local = rare.and_then(|rare| rare.local);
            let left = rare.and_then(|rare| rare.lingering).map(|(entry, _)| entry.identity);
            let all = row.claims.iter().map(|claim| claim.entry.identity).chain(local).chain(left);
            used.extend(all.filter(|identity| identities.contains_key(identity)));
        }
        used
    }

    /// Whether there is something to [`Self::drain`].
    #[must_use]
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Addresses whose answer may have changed since the last call.
    pub fn drain(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.changed)
    }

    /// Drops what lingered long enough; answers when to call again.
    pub fn expire(&mut self, now: Duration) -> Option<Duration> {
        while let Some((until, address)) = self.leaving.front().copied() {
            let rare = self.rows.0.get(&address).and_then(|row| row.rare.as_ref());
            let waits = rare.is_some_and(|rare| rare.lingering.is_some_and(|(_, waits)| waits == until));
            if waits && until > now {
                return Some(until);
            }
            self.leaving.pop_front();
            if waits {
                self.change(address, |rare| rare.lingering = None);
            }
        }
        None
    }

    /// All as they are now, for readers.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.rows.clone()
    }

    fn row(&mut self, address: IpAddr) -> &mut Row {
        if !self.rows.0.contains_key(&address) {
            self.rows.0.insert_mut(address, Row::default());
        }
        self.rows.0.get_mut(&address).expect("inserted above")
    }

    fn rare(&mut self, address: IpAddr) -> &mut Rare {
        self.row(address).rare.get_or_insert_default()
    }

    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut Rare)) {
        if self.rows.0.get(&address).is_some_and(|row| row.rare.is_some()) {
            let row = self.row(address);
            if let Some(rare) = &mut row.rare {
                change(rare);
                row.rare.take_if(|rare| rare.is_empty());
            }
            self.drop_if_empty(address);
        }
        self.changed.insert(address);
    }

    fn drop_if_empty(&mut self, address: IpAddr) {
        if self.rows.0.get(&address).is_some_and(Row::is_empty) {
            self.rows.0.remove_mut(&address);
        }
    }

    /// The UID and the name of an endpoint, shared with its claims that are there already.
    fn names_of(&self, endpoint: &RemoteEndpoint) -> (Arc<str>, Arc<ObjectName>) {
        let claims = endpoint.addresses.iter().filter_map(|address| self.rows.0.get(address));
        let mut same = claims
            .flat_map(|row| &row.claims)
            .filter(|claim| *claim.uid == *endpoint.pod_uid && *claim.name == endpoint.name);
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
        let row = self.row(address);
        if let Some(at) = row.claims.iter().position(|claim| claim.slice == *slice && claim.uid == *uid) {
            if row.claims[at].entry == entry {
                return;
            }
            row.claims.remove(at);
        }
        let (slice, uid, name) = (slice.clone(), uid.clone(), name.clone());
        // Nearly all addresses have one claim.
        if row.claims.is_empty() {
            row.claims.reserve_exact(1);
        }
        row.claims.push(Claim { slice, uid, name, entry, written: written.0 });
        if let Some(rare) = &mut row.rare {
            rare.lingering = None;
            row.rare.take_if(|rare| rare.is_empty());
        }
        self.changed.insert(address);
    }

    fn unclaim(&mut self, address: IpAddr, slice: &Arc<str>, uid: &Arc<str>, now: Duration) {
        let of = |claim: &Claim| claim.slice == *slice && claim.uid == *uid;
        if !self.rows.0.get(&address).is_some_and(|row| row.claims.iter().any(of)) {
            return;
        }
        let row = self.row(address);
        let Some(at) = row.claims.iter().position(of) else { return };
        let gone = row.claims.remove(at);
        if row.claims.is_empty() {
            row.claims = Vec::new();
            let rare = row.rare.get_or_insert_default();
            if rare.local.is_none() {
                let until = linger_until(now);
                rare.lingering = Some((gone.entry, until));
                self.leaving.push_back((until, address));
            }
        }
        self.changed.insert(address);
    }
}

/// When an address ends that was left now.
fn linger_until(now: Duration) -> Duration {
    let steps = (now + LINGER).as_nanos().div_ceil(LINGER_STEP.as_nanos());
    LINGER_STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

/// The claim that holds: of those that were written at the same time the one that was made last.
fn newest(claims: &[Claim]) -> Option<&Claim> {
    claims.iter().max_by_key(|claim| claim.written)
}

/// What a slice says of an address of a pod.
fn statement<'a>(all: &'a [Statement], address: IpAddr, uid: &str) -> Option<&'a Statement> {
    let at = all.binary_search_by(|(of, who, _)| (*of, &**who).cmp(&(address, uid)));
    at.ok().map(|at| &all[at])
}

#[cfg(test)]
mod tests;
