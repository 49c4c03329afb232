//! Taking over from a former agent: what it remembered, what the kernel holds, and what of both is right.

use super::flush::Writer;
use crate::state::{EndpointRecord, Phase, Unusable};
use crate::tables::endpoints::Endpoint;
use std::collections::{BTreeMap, BTreeSet};
use weft_model::desired::DataplaneError;
use weft_model::id::EndpointId;

/// What a former agent left and is of no use: to be removed before anything else is done.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Endpoints that were not finished, or whose link is gone.
    pub records: Vec<EndpointRecord>,
    /// Links without a record, by name.
    pub devices: Vec<String>,
}

impl Writer {
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
                    let endpoint = Endpoint { ifindex: *ifindex, restoring: true, ..Endpoint::new(record) };
                    self.tables.endpoints.insert(endpoint);
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

    /// The records of endpoints on disk.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read_records(&self) -> std::io::Result<(Vec<EndpointRecord>, Vec<Unusable>)> {
        self.state.read()
    }

    /// Endpoints that were taken over: number, device, index.
    #[must_use]
    pub fn restored(&self) -> Vec<(EndpointId, String, u32)> {
        let restored = self.tables.endpoints.values().filter(|endpoint| endpoint.restoring);
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
        self.tables.endpoints.insert(Endpoint { problem: Some("cannot be removed".into()), ..Endpoint::new(record) });
        self.restore_addresses();
    }

    fn adopt_kernel(&mut self) -> Result<(), DataplaneError> {
        let (reconcilers, mut cx) = self.parts();
        reconcilers.all_mut().into_iter().try_for_each(|reconciler| reconciler.adopt(&mut cx))
    }

    /// Once every source is complete: labels of restored endpoints as their pods have them now. One whose pod is
    /// gone keeps what it had until the runtime takes it down.
    pub(super) fn confirm_restored(&mut self) {
        self.relabel(|_| true);
        let records: Vec<_> =
            self.tables.endpoints.values().filter(|e| e.is_active()).map(|e| e.record.clone()).collect();
        for record in &records {
            // Its identity is in use, whether or not its object is there still.
            if self.tables.identities.labels(record.identity).is_none() {
                self.reconcilers.policy.put_identity(record.identity, &record.labels);
                self.want_identity(record.labels.clone());
            }
            self.reconcilers.policy.set_endpoint(record);
        }
    }
}
