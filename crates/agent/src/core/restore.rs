//! Taking over from a former agent: what it remembered, what the kernel holds, and what of both is right.

use super::Core;
use super::endpoints::Endpoint;
use crate::state::{EndpointRecord, Phase, Unusable};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_abi::map_name;
use weft_control::policy::Limits;
use weft_model::desired::DataplaneError;
use weft_model::id::EndpointId;

/// What a former agent left and nobody has a use for: to be removed before anything else is done.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Endpoints that were not finished, or whose link is gone.
    pub records: Vec<EndpointRecord>,
    /// Links without a record, by name.
    pub devices: Vec<String>,
}

impl Core {
    /// Takes over: records whose links exist become endpoints again, with their addresses taken; everything else is
    /// to be swept. Nothing is written to the kernel but removals of endpoints that have no link.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn restore(
        &mut self,
        records: Vec<EndpointRecord>,
        links: &[(String, u32)],
    ) -> Result<Leftovers, DataplaneError> {
        let indexes: BTreeMap<&str, u32> = links.iter().map(|(name, index)| (name.as_str(), *index)).collect();
        let mut leftovers = Leftovers::default();
        let mut kept: BTreeSet<String> = BTreeSet::new();
        for record in records {
            match (record.phase, indexes.get(record.device.as_str())) {
                (Phase::Ready, Some(ifindex)) => {
                    kept.insert(record.device.clone());
                    self.endpoints.insert(Endpoint {
                        record,
                        ifindex: *ifindex,
                        in_kernel: None,
                        restoring: true,
                        waiting: false,
                        problem: None,
                        sequence: 0,
                    });
                }
                _ => leftovers.records.push(record),
            }
        }
        let swept: BTreeSet<&str> = leftovers.records.iter().map(|record| record.device.as_str()).collect();
        leftovers.devices = links
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !kept.contains(*name) && !swept.contains(name.as_str()))
            .cloned()
            .collect();
        self.adopt_kernel()?;
        let cidrs = self.state.pod_cidrs();
        self.restore_blocks(&cidrs);
        Ok(leftovers)
    }

    /// What was remembered.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read_records(&self) -> std::io::Result<(Vec<EndpointRecord>, Vec<Unusable>)> {
        self.state.read()
    }

    /// Endpoints that were taken over: number, device, index.
    #[must_use]
    pub fn restored(&self) -> Vec<(EndpointId, String, u32)> {
        let restored = self.endpoints.rows.values().filter(|endpoint| endpoint.restoring);
        restored.map(|endpoint| (endpoint.record.id, endpoint.record.device.clone(), endpoint.ifindex)).collect()
    }

    /// The link of a leftover is gone: forget the rest of it.
    ///
    /// # Errors
    /// Its file cannot be removed.
    pub fn sweep(&mut self, record: &EndpointRecord) -> std::io::Result<()> {
        self.state.remove(record.id)
    }

    /// A leftover that cannot be removed now keeps its number and addresses, until its DEL succeeds.
    pub fn keep_for_later(&mut self, record: EndpointRecord) {
        let record = EndpointRecord { phase: Phase::Leaving, ..record };
        self.endpoints.insert(Endpoint {
            record,
            ifindex: 0,
            in_kernel: None,
            restoring: false,
            waiting: false,
            problem: Some("cannot be removed".into()),
            sequence: 0,
        });
        self.restore_addresses();
    }

    fn adopt_kernel(&mut self) -> Result<(), DataplaneError> {
        let (policies, cidrs, peers) = (self.dataplane.policies()?, self.dataplane.cidrs()?, self.dataplane.peers()?);
        // The engine refuses what the maps would not hold, so that a policy is refused whole and by name.
        let usage = self.dataplane.usage()?;
        let size = |name: &str| {
            let map = usage.iter().find(|map| map.name == name);
            map.map_or(usize::MAX, |map| usize::try_from(map.entries_max).unwrap_or(usize::MAX))
        };
        self.policy.engine.set_limits(Limits::for_maps(
            size(map_name::POLICY_INFO),
            size(map_name::POLICY_ENTRIES),
            size(map_name::POLICY_CLASSES),
            size(map_name::PEERS),
            size(map_name::PREFIXES),
        ));
        self.policy.engine.adopt(&policies, &cidrs, &peers);
        self.services.adopt(self.dataplane.services()?);
        self.ipcache_written = self.dataplane.ipcache()?.into_iter().collect();
        self.adopt_routes()?;
        let known: BTreeMap<EndpointId, Vec<IpAddr>> =
            self.endpoints.rows.values().map(|e| (e.record.id, e.record.addresses.clone())).collect();
        for endpoint in self.dataplane.endpoints()? {
            // An endpoint is one entry per address; whichever way the kernel's are grouped, judge each address.
            let strangers: Vec<IpAddr> = endpoint
                .addresses
                .iter()
                .copied()
                .filter(|address| !known.get(&endpoint.id).is_some_and(|own| own.contains(address)))
                .collect();
            if !strangers.is_empty() {
                self.dataplane.remove_endpoint(&strangers)?;
            }
        }
        Ok(())
    }

    /// Once every source is complete: labels of restored endpoints as their pods have them now. One whose pod is
    /// gone keeps what it had until the runtime takes it down.
    pub(super) fn confirm_restored(&mut self) {
        self.services.note_pods();
        self.relabel(|_| true);
        let records: Vec<_> =
            self.endpoints.rows.values().filter(|e| e.is_active()).map(|e| e.record.clone()).collect();
        for record in &records {
            // Its identity is in use, whether or not its object is there still.
            if self.identities.labels(record.identity).is_none() {
                self.policy.put_identity(record.identity, &record.labels);
                self.want_identity(record.labels.clone());
            }
            self.policy.set_endpoint(record);
        }
    }

    /// Removes addresses that nobody claims. (Policies and prefixes are in the engine's first plan, routes are
    /// compared when they are written.)
    pub(super) fn prune(&mut self) -> Result<(), ()> {
        let stale: Vec<IpAddr> =
            self.ipcache_written.keys().copied().filter(|address| self.addresses.get(*address).is_none()).collect();
        for address in stale {
            if let Err(error) = self.dataplane.set_ipcache(address, None) {
                self.note_failure("ipcache", &error);
                return Err(());
            }
            self.ipcache_written.remove(&address);
            self.touched_node = true;
        }
        Ok(())
    }
}
