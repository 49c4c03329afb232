//! Addresses in the kernel's ipcache.

use super::reconciler::{Context, Reconciler, Rows};
use crate::settings::Settings;
use crate::tables::Tables;
use std::net::IpAddr;
use weft_model::desired::DataplaneError;
use weft_model::reconcile::Queue;

const NAME: &str = "ipcache";

/// See the module.
#[derive(Debug, Default)]
pub struct Ipcache {
    queue: Queue<IpAddr>,
}

impl Ipcache {
    pub(super) fn new(_: &Settings, _: &mut Tables) -> Self {
        Self::default()
    }

    fn write(&mut self, address: IpAddr, cx: &mut Context<'_>) {
        let (wanted, present) = (cx.tables.addresses.get(address), cx.tables.addresses.in_force(address));
        if wanted == present || (wanted.is_none() && !cx.pruned) {
            return self.queue.done(&address);
        }
        // Flows to an address that was somebody else's decide again; an address that was nobody's has none.
        cx.stale.node |= present.is_some();
        match cx.kernel.set_ipcache(address, wanted.as_ref()) {
            Ok(()) => {
                cx.tables.addresses.set_in_force(address, wanted);
                self.queue.done(&address);
            }
            Err(error) => super::reconciler::failed(&mut self.queue, (NAME, address), cx.now, &error),
        }
    }
}

impl Reconciler for Ipcache {
    fn name(&self) -> &'static str {
        NAME
    }

    fn adopt(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        for (address, entry) in cx.kernel.ipcache()? {
            cx.tables.addresses.set_in_force(address, Some(entry));
        }
        Ok(())
    }

    fn reconcile(&mut self, cx: &mut Context<'_>) {
        let mut due = cx.tables.addresses.drain();
        due.append(&mut self.queue.take_due(cx.now));
        due.into_iter().for_each(|address| self.write(address, cx));
    }

    fn prune(&mut self, cx: &mut Context<'_>) {
        cx.tables.addresses.stale().into_iter().for_each(|address| self.write(address, cx));
    }

    fn rows(&self) -> &dyn Rows {
        &self.queue
    }

    fn rows_mut(&mut self) -> &mut dyn Rows {
        &mut self.queue
    }
}
