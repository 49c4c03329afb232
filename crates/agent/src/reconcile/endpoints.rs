//! Endpoints of this node, and the node itself as a subject of policies, as the kernel's programs know them: which
//! link, which identity, which policies.

use super::reconciler::{Context, Reconciler, Rows};
use crate::settings::Settings;
use crate::tables::Tables;
use std::collections::BTreeSet;
use std::net::IpAddr;
use weft_model::desired::{DataplaneError, Host};
use weft_model::id::{EndpointId, PolicyId};
use weft_model::reconcile::Queue;
use weft_model::table::Consumer;
use weft_sys::error::describe;

const NAME: &str = "endpoints";

/// See the module.
#[derive(Debug)]
pub struct EndpointLinks {
    queue: Queue<EndpointId>,
    endpoints: Consumer,
    targets: Consumer,
    /// The node's own policies as the kernel has them; `None`: not known.
    host: Option<Option<Host>>,
    /// Why the node's own policies are not in force.
    host_problem: Option<String>,
}

impl EndpointLinks {
    pub(super) fn new(_: &Settings, tables: &mut Tables) -> Self {
        let mut queue = Queue::default();
        queue.enqueue(EndpointId::HOST);
        Self {
            queue,
            endpoints: tables.endpoints.subscribe(),
            targets: tables.targets.subscribe(),
            host: None,
            host_problem: None,
        }
    }

    /// Why the node's own policies are not in force, if they are not.
    #[must_use]
    pub fn host_problem(&self) -> Option<&str> {
        self.host_problem.as_deref()
    }

    /// Makes an endpoint unreachable at once.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&mut self, id: EndpointId, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        let Some(endpoint) = cx.tables.endpoints.get(&id).cloned() else { return Ok(()) };
        cx.kernel.remove_endpoint(&endpoint.record.addresses)?;
        cx.tables.endpoints.update(id, |endpoint| endpoint.in_kernel = None);
        cx.tables.targets.remove(&id);
        for address in &endpoint.record.addresses {
            cx.tables.addresses.remove_local(*address);
        }
        self.queue.done(&id);
        Ok(())
    }

    fn write(&mut self, id: EndpointId, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        let Some(endpoint) = cx.tables.endpoints.get(&id).cloned().filter(|endpoint| endpoint.is_active()) else {
            return Ok(());
        };
        let Some(target) = cx.tables.targets.get(&id).cloned() else { return Ok(()) };
        let audit = cx.settings.audit;
        let blocked = target.blocked.as_ref().map(|blocked| format!("all its traffic is dropped: {blocked}"));
        if endpoint.is_written(&target, audit) {
            cx.tables.endpoints.update(id, |endpoint| endpoint.problem = blocked);
            return Ok(());
        }
        let wanted = endpoint.desired(&target, audit);
        if let Err(error) = cx.kernel.put_endpoint(&wanted) {
            cx.tables.endpoints.update(id, |endpoint| endpoint.problem = Some(describe(&error)));
            return Err(error);
        }
        for address in &wanted.addresses {
            cx.tables.addresses.set_local(*address, wanted.identity);
        }
        cx.stale.endpoints.insert(id);
        cx.tables.endpoints.update(id, |endpoint| {
            endpoint.problem = blocked;
            endpoint.in_kernel = Some(wanted);
            endpoint.restoring = false;
        });
        Ok(())
    }

    /// The node itself. Policies that do not fit must not cut it off: what was in force stays.
    fn write_host(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        let target = cx.tables.targets.get(&EndpointId::HOST);
        let blocked = target.and_then(|target| target.blocked.as_ref());
        self.host_problem = blocked.map(|blocked| format!("{blocked}; the previous policy stays in force"));
        if self.host_problem.is_some() {
            return Ok(());
        }
        let audit = cx.settings.audit;
        let host = target.map(|target| Host { ingress: target.ingress, egress: target.egress, audit });
        let wanted = host.filter(|host| host.ingress != PolicyId::OPEN || host.egress != PolicyId::OPEN);
        if self.host == Some(wanted) {
            return Ok(());
        }
        cx.kernel.set_host(wanted.as_ref())?;
        self.host = Some(wanted);
        cx.stale.node = true;
        Ok(())
    }
}

impl Reconciler for EndpointLinks {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Removes endpoints that have no record: nobody will ever take them down.
    fn adopt(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        for present in cx.kernel.endpoints()? {
            // An endpoint is one entry per address; whichever way the kernel's are grouped, judge each address.
            let known = cx.tables.endpoints.get(&present.id);
            let unknown: Vec<IpAddr> = present
                .addresses
                .iter()
                .copied()
                .filter(|address| !known.is_some_and(|own| own.record.addresses.contains(address)))
                .collect();
            if !unknown.is_empty() {
                cx.kernel.remove_endpoint(&unknown)?;
            }
        }
        Ok(())
    }

    fn reconcile(&mut self, cx: &mut Context<'_>) {
        // No endpoint has an identity, or uses a policy, that is not written.
        if !cx.policies_written {
            cx.endpoints_switched = false;
            return;
        }
        let (endpoints, targets) = (cx.tables.endpoints.drain(&self.endpoints), cx.tables.targets.drain(&self.targets));
        let changed: BTreeSet<EndpointId> =
            endpoints.into_iter().map(|(id, _)| id).chain(targets.into_iter().map(|(id, _)| id)).collect();
        changed.into_iter().for_each(|id| self.queue.enqueue(id));
        for id in self.queue.take_due(cx.now) {
            let written = if id == EndpointId::HOST { self.write_host(cx) } else { self.write(id, cx) };
            match written {
                Ok(()) => self.queue.done(&id),
                Err(error) => super::reconciler::failed(&mut self.queue, (NAME, id), cx.now, &error),
            }
        }
        cx.endpoints_switched = self.queue.is_settled();
    }

    fn rows(&self) -> &dyn Rows {
        &self.queue
    }

    fn rows_mut(&mut self) -> &mut dyn Rows {
        &mut self.queue
    }
}
