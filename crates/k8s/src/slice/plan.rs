//! Which writes bring the slices from what they are to what they should be. Pure.

#[cfg(test)]
mod tests;

use crate::convert;
use crate::wire::{CiliumEndpointSlice, CoreEndpoint};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_model::intent::{ObjectName, RemoteEndpoint};

/// Endpoints per slice, at most.
pub(super) const ENDPOINTS_MAX: usize = 100;
/// Endpoints up to which a slice is given new ones. A new endpoint costs every agent the slice that it is in, so slices
/// are kept small: what they cost in lists is the metadata, which is about one endpoint's worth.
pub(super) const FILLED: usize = 10;

/// A slice of ours as it is in the API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) version: String,
    pub(super) namespace: String,
    pub(super) endpoints: Vec<CoreEndpoint>,
}

impl Held {
    pub(super) fn holds(&self, pod: &ObjectName) -> bool {
        self.namespace == pod.namespace && self.endpoints.iter().any(|endpoint| endpoint.name == pod.name)
    }
}

impl From<CiliumEndpointSlice> for Held {
    fn from(slice: CiliumEndpointSlice) -> Self {
        Self { version: slice.metadata.resource_version, namespace: slice.namespace, endpoints: slice.endpoints }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Write {
    Create {
        name: String,
        namespace: String,
        endpoints: Vec<CoreEndpoint>,
    },
    Update {
        name: String,
        endpoints: Vec<CoreEndpoint>,
    },
    /// An empty slice goes.
    Delete {
        name: String,
    },
}

impl Write {
    /// Whether all it does is to take endpoints out.
    pub(super) fn only_removes(&self, held: &BTreeMap<String, Held>) -> bool {
        match self {
            Self::Create { .. } => false,
            Self::Update { name, endpoints } => held
                .get(name)
                .is_some_and(|before| endpoints.iter().all(|endpoint| before.endpoints.contains(endpoint))),
            Self::Delete { .. } => true,
        }
    }

    /// Whether it takes out an endpoint one of whose addresses `in_use` has: another pod's by now. As long as both say
    /// that they have it, whoever lists them does not know which one came last.
    pub(super) fn frees(&self, held: &BTreeMap<String, Held>, in_use: &BTreeSet<IpAddr>) -> bool {
        let (name, kept) = match self {
            Self::Create { .. } => return false,
            Self::Update { name, endpoints } => (name, endpoints.as_slice()),
            Self::Delete { name } => (name, [].as_slice()),
        };
        let gone = held.get(name).into_iter().flat_map(|before| &before.endpoints).filter(|old| !kept.contains(old));
        let pairs = gone.flat_map(|endpoint| &endpoint.networking.addressing);
        pairs
            .flat_map(|pair| [&pair.ipv4, &pair.ipv6])
            .filter_map(|text| text.parse().ok())
            .any(|ip| in_use.contains(&ip))
    }
}

/// The writes, in an order in which no endpoint is ever in no slice on its way from one to another: creates and updates
/// that add come before updates that only remove, deletes last.
pub(super) fn plan(
    wanted: &BTreeMap<ObjectName, RemoteEndpoint>,
    held: &BTreeMap<String, Held>,
    taken: &BTreeSet<String>,
    stem: &str,
) -> Vec<Write> {
    let mut placed: BTreeSet<&ObjectName> = BTreeSet::new();
    // Every endpoint stays in the slice that it is in.
    let mut slices: BTreeMap<String, (String, Vec<CoreEndpoint>)> = BTreeMap::new();
    for (name, slice) in held {
        let mut stay = Vec::new();
        for endpoint in &slice.endpoints {
            let key = ObjectName { namespace: slice.namespace.clone(), name: endpoint.name.clone() };
            if let Some((key, wanted)) = wanted.get_key_value(&key)
                && stay.len() < ENDPOINTS_MAX
                && placed.insert(key)
            {
                stay.push(convert::slice_endpoint(wanted));
            }
        }
        slices.insert(name.clone(), (slice.namespace.clone(), stay));
    }
    for (key, endpoint) in wanted {
        if placed.contains(key) {
            continue;
        }
        let name = fullest(&slices, &key.namespace).unwrap_or_else(|| free_name(&slices, taken, stem));
        let (_, endpoints) = slices.entry(name).or_insert_with(|| (key.namespace.clone(), Vec::new()));
        endpoints.push(convert::slice_endpoint(endpoint));
    }
    let (mut adding, mut removing, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
    for (name, (namespace, endpoints)) in slices {
        match held.get(&name) {
            None => adding.push(Write::Create { name, namespace, endpoints }),
            Some(_) if endpoints.is_empty() => deletes.push(Write::Delete { name }),
            Some(before) if before.endpoints == endpoints => {}
            Some(before) => {
                let known = |endpoint: &CoreEndpoint| before.endpoints.iter().any(|held| held.name == endpoint.name);
                let list = if endpoints.iter().all(known) { &mut removing } else { &mut adding };
                list.push(Write::Update { name, endpoints });
            }
        }
    }
    adding.extend(removing);
    adding.extend(deletes);
    adding
}

/// The slice of the namespace with the most endpoints that still takes new ones: few slices, as full as they shall be.
fn fullest(slices: &BTreeMap<String, (String, Vec<CoreEndpoint>)>, namespace: &str) -> Option<String> {
    let fits = slices.iter().filter(|(_, (of, endpoints))| of == namespace && endpoints.len() < FILLED);
    fits.max_by_key(|(_, (_, endpoints))| endpoints.len()).map(|(name, _)| name.clone())
}

fn free_name(slices: &BTreeMap<String, (String, Vec<CoreEndpoint>)>, taken: &BTreeSet<String>, stem: &str) -> String {
    let names = (0_u32..).map(|n| format!("{stem}{n}"));
    let mut free = names.filter(|name| !slices.contains_key(name) && !taken.contains(name));
    free.next().expect("fewer than 2^32 slices are in use")
}
