//! Addresses and ports that an object must not take by its own choice: others rely on what is there.

use super::interface::{Allowed, Settings};
use super::wanted::Sources;
use ipnet::IpNet;
use std::net::IpAddr;
use weft_model::intent::{HostPort, Node};

/// The addresses of a node.
#[derive(Default)]
pub(super) struct NodeAddresses {
    own: Vec<IpAddr>,
    pods: Vec<IpNet>,
}

impl NodeAddresses {
    pub(super) fn of(node: &Node) -> Self {
        Self { own: node.addresses.iter().map(IpAddr::to_canonical).collect(), pods: node.pod_cidrs.clone() }
    }

    pub(super) fn same_as(&self, node: &Node) -> bool {
        self.own.iter().copied().eq(node.addresses.iter().map(IpAddr::to_canonical)) && self.pods == node.pod_cidrs
    }

    /// Whether the address is the node's or one of its pods'.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.own.contains(&address) || self.pods.iter().any(|net| net.contains(&address))
    }
}

impl Sources {
    /// Why an address of `externalIPs` is refused.
    pub(super) fn refused_external(&self, address: IpAddr, allowed: &Allowed) -> Option<String> {
        if !allowed.external_ips.iter().any(|net| net.contains(&address)) {
            let nets: Vec<String> = allowed.external_ips.iter().map(IpNet::to_string).collect();
            let nets = if nets.is_empty() { "which is empty".to_owned() } else { nets.join(", ") };
            return Some(format!("externalIPs {address}: expected an address in --external-ips-allowed ({nets})"));
        }
        self.of_others(address, allowed).map(|whose| format!("externalIPs {address}: refused, it is {whose}"))
    }

    /// Why the address of a local redirect is refused.
    pub(super) fn refused_redirect(&self, address: IpAddr, allowed: &Allowed) -> Option<String> {
        let whose = self.of_others(address, allowed)?;
        Some(format!("redirectFrontend.addressMatcher.ip {address}: refused, it is {whose}"))
    }

    /// Whom the address belongs to, if it is one of the cluster's machines or pods.
    fn of_others(&self, address: IpAddr, allowed: &Allowed) -> Option<String> {
        if allowed.api_server.iter().any(|own| own.to_canonical() == address) {
            return Some("the API server's".to_owned());
        }
        if let Some((name, _)) = self.nodes.iter().find(|(_, node)| node.own.contains(&address)) {
            return Some(format!("node {name}'s"));
        }
        let pods = self.nodes.values().flat_map(|node| &node.pods).chain(&allowed.pod_ranges);
        pods.into_iter().find(|net| net.contains(&address)).map(|net| format!("in {net}, the addresses of pods"))
    }

    /// Why a hostPort is refused.
    pub(super) fn refused_host_port(&self, port: &HostPort, settings: &Settings) -> Option<String> {
        let number = port.port;
        if let Some(range) = settings.allowed.reserved_ports.iter().find(|range| range.contains(&number)) {
            let (first, last) = (range.start(), range.end());
            return Some(format!(
                "hostPort {number}: {first} to {last} are reserved for the node (--host-ports-reserved)"
            ));
        }
        let host = port.host_ip.map(|host| host.to_canonical()).filter(|host| !host.is_unspecified())?;
        let node = self.nodes.get(&settings.node_name);
        if node.is_some_and(|node| node.own.contains(&host)) {
            return None;
        }
        let own: Vec<String> = node.into_iter().flat_map(|node| &node.own).map(IpAddr::to_string).collect();
        Some(format!("hostPort {number}: hostIP {host}: expected an address of this node ({})", own.join(", ")))
    }
}
