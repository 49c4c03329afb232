//! Whether the destination of a question is a Service's, and where it leads.

use super::Writer;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_api::agent::{ExplainedBackend, ExplainedService};
use weft_control::service::Object;
use weft_model::desired::{Frontend, FrontendEntry, FrontendKind};
use weft_model::id::Identity;
use weft_model::intent::{Forwarding, Protocol};

/// Where a client stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    /// On this node.
    Here,
    /// Outside of the cluster.
    Outside,
    /// On another node, which knows better.
    Elsewhere,
}

impl Writer {
    /// The Service whose frontend the destination is for this client, as far as this node serves it: its own clients,
    /// those who ask for a port of the node, and clients outside.
    pub(super) fn explain_service(
        &self,
        from: IpAddr,
        to: IpAddr,
        port: u16,
        protocol: u8,
    ) -> Option<ExplainedService> {
        let protocol = match protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return None,
        };
        let own = self.tables.own_addresses().contains(&to);
        let client = match self.client(from) {
            // Who asks this node for one of its ports comes from outside of it.
            Client::Elsewhere if own => Client::Outside,
            client => client,
        };
        let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let at_node = own || self.tables.addresses.get(to).is_some_and(|entry| entry.is_node);
        let candidates = [Some(to), at_node.then_some(any)];
        let frontends = candidates.into_iter().flatten().map(|address| Frontend { address, port, protocol });
        let tables = self.reconcilers.services.engine.tables();
        let (frontend, entry) = frontends.filter_map(|one| Some((one, tables.frontends.get(&one)?))).next()?;
        let node_port = entry.kind == FrontendKind::NodePort;
        // A port of a node is translated where the client is, whichever node is asked; a host port where the pod is.
        let elsewhere = client == Client::Elsewhere || node_port && self.client(from) == Client::Elsewhere;
        if elsewhere || at_node && !own && frontend.address == any && !(node_port && client == Client::Here) {
            return None;
        }
        let object = self.reconcilers.services.engine.object_at(&frontend)?;
        let refused = (client == Client::Outside).then(|| self.refusal(from, entry)).flatten();
        let set = if client == Client::Here { entry.internal } else { entry.external };
        let set = set.filter(|_| refused.is_none()).and_then(|set| tables.sets.get(&set));
        let mut backends: Vec<ExplainedBackend> = set
            .into_iter()
            .flat_map(|set| &set.backends)
            .filter_map(|id| tables.backends.get(id))
            .map(|backend| {
                let keeps = client == Client::Here || backend.local || entry.forwarding == Forwarding::Dsr;
                // By tunnel the identity of the client goes along, whatever the address.
                let seen_as = (!keeps && !self.settings.tunnel).then(|| self.own_address_like(to)).flatten();
                ExplainedBackend { address: backend.address, port: backend.port, seen_as }
            })
            .collect();
        backends.sort_by_key(|backend| (backend.address, backend.port));
        backends.dedup();
        Some(ExplainedService {
            kind: match &**object {
                Object::Service(_) => "Service",
                Object::Pod(_) => "HostPort",
                Object::Redirect(_) => "LocalRedirect",
            }
            .to_owned(),
            namespace: object.name().namespace.clone(),
            name: object.name().name.clone(),
            refused,
            backends,
        })
    }

    /// Why a client outside is not served, if so.
    fn refusal(&self, from: IpAddr, entry: &FrontendEntry) -> Option<String> {
        match entry.kind {
            FrontendKind::ClusterIp => {
                Some("its address is one inside the cluster, and the client is outside".to_owned())
            }
            FrontendKind::Redirect => Some("it is for pods of this node, and the client is outside".to_owned()),
            _ => {
                let ranges = &self.reconcilers.services.engine.tables().ranges;
                let is_in = ranges.iter().any(|(service, net)| *service == entry.service && net.contains(&from));
                let guarded = entry.source_ranges && self.is_world(from);
                (guarded && !is_in).then(|| "loadBalancerSourceRanges do not let the client in".to_owned())
            }
        }
    }

    fn client(&self, from: IpAddr) -> Client {
        let party = self.party(from);
        match party.endpoint {
            Some(_) => Client::Here,
            None if party.identity == Identity::UNKNOWN || !self.is_world(from) => Client::Elsewhere,
            None => Client::Outside,
        }
    }

    fn is_world(&self, address: IpAddr) -> bool {
        let identity = self.party(address).identity;
        matches!(identity, Identity::WORLD | Identity::WORLD_IPV4 | Identity::WORLD_IPV6)
    }

    fn own_address_like(&self, address: IpAddr) -> Option<IpAddr> {
        self.tables.own_addresses().iter().copied().find(|own| own.is_ipv4() == address.is_ipv4())
    }
}
