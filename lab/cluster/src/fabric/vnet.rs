//! What a virtual network knows of its subnets: which block belongs to which node's interface. Plain state; whoever holds
//! it makes the kernel carry it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_cloud::fabric::{Question, Reply};
use weft_cloud::{CloudError, Wanted};
use weft_lab_config::Config;
use weft_lab_config::ipam::IpamMode;

/// Addresses that one interface carries at most, as in Azure.
const PER_NODE_MAX: usize = 256;
/// Addresses at the beginning of a subnet that are the network's own, as in Azure.
const FIRST: u128 = 4;

/// A subnet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subnet {
    /// Its prefix.
    pub net: IpNet,
    /// What is nobody's to have.
    pub reserved: Vec<IpNet>,
}

impl Subnet {
    /// One whose first four addresses and last one are the network's own.
    #[must_use]
    pub fn of_hosts(net: IpNet) -> Self {
        let mut reserved: Vec<IpNet> = (0..FIRST).map(|n| IpNet::from(nth(&net, n))).collect();
        reserved.push(IpNet::from(net.broadcast()));
        Self { net, reserved }
    }

    /// The network of the nodes: what nodes and gateways have is nobody else's.
    fn of_nodes(config: &Config, net: IpNet) -> Self {
        let mut subnet = Self::of_hosts(net);
        let nodes = (1..=config.nodes).flat_map(|number| config.node_addresses(number));
        let own = nodes.chain(config.gateways()).map(IpNet::from);
        subnet.reserved.extend(own.filter(|address| net.contains(address)));
        subnet
    }
}

/// Subnets of which the fabric assigns blocks.
#[must_use]
pub fn subnets(config: &Config) -> Vec<Subnet> {
    match config.ipam {
        IpamMode::Overlay => config.pod_cidrs.iter().map(|net| Subnet { net: *net, reserved: Vec::new() }).collect(),
        IpamMode::PodSubnet | IpamMode::PodSubnetBlock => {
            config.pod_subnets.iter().map(|net| Subnet::of_hosts(*net)).collect()
        }
        IpamMode::NodeSubnet => config.vnet().into_iter().map(|net| Subnet::of_nodes(config, net)).collect(),
        IpamMode::ClusterPool | IpamMode::Kubernetes | IpamMode::MultiPool | IpamMode::Delegated => Vec::new(),
    }
}

/// Who has what; what outlives a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Assigned {
    nodes: BTreeMap<String, BTreeSet<IpNet>>,
    /// By subnet: where to look next, so that what came free is the last to be given again.
    next: BTreeMap<IpNet, u128>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Vnet {
    subnets: Vec<Subnet>,
    nodes: BTreeSet<String>,
    assigned: Assigned,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn nth(net: &IpNet, offset: u128) -> IpAddr {
    match net.network() {
        IpAddr::V4(first) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            IpAddr::V4(u32::from(first).saturating_add(offset).into())
        }
        IpAddr::V6(first) => IpAddr::V6(u128::from(first).saturating_add(offset).into()),
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

impl Vnet {
    /// With what was assigned before.
    #[must_use]
    pub fn new(subnets: Vec<Subnet>, nodes: BTreeSet<String>, assigned: Assigned) -> Self {
        Self { subnets, nodes, assigned }
    }

    /// What to keep.
    #[must_use]
    pub fn assigned(&self) -> &Assigned {
        &self.assigned
    }

    /// Blocks by node.
    #[must_use]
    pub fn carried(&self) -> BTreeMap<String, Vec<IpNet>> {
        self.assigned.nodes.iter().map(|(node, nets)| (node.clone(), nets.iter().copied().collect())).collect()
    }

    /// Does what is asked, whole or not at all.
    ///
    /// # Errors
    /// As the trait of clouds says.
    pub fn answer(&mut self, question: Question) -> Reply {
        let name = match &question {
            Question::Retain { nodes } => {
                self.assigned.nodes.retain(|node, _| nodes.contains(node));
                return Ok(BTreeSet::new());
            }
            Question::Assigned { node }
            | Question::Assign { node, .. }
            | Question::Restore { node, .. }
            | Question::Unassign { node, .. } => node.name.clone(),
        };
        if !self.nodes.contains(&name) {
            return Err(CloudError::NotFound { what: format!("the machine of node {name}") });
        }
        match question {
            Question::Assigned { .. } | Question::Retain { .. } => {}
            Question::Assign { wanted, .. } => self.assign(&name, &wanted)?,
            Question::Restore { blocks, .. } => self.restore(&name, &blocks)?,
            Question::Unassign { blocks, .. } => {
                if let Some(has) = self.assigned.nodes.get_mut(&name) {
                    has.retain(|net| !blocks.contains(net));
                }
            }
        }
        Ok(self.assigned.nodes.get(&name).cloned().unwrap_or_default())
    }

    fn is_free(&self, subnet: &Subnet, net: &IpNet) -> bool {
        !subnet.reserved.iter().any(|reserved| overlap(reserved, net))
            && !self.assigned.nodes.values().flatten().any(|other| overlap(other, net))
    }

    fn assign(&mut self, node: &str, wanted: &[Wanted]) -> Result<(), CloudError> {
        let before = self.assigned.clone();
        for wanted in wanted {
            let result = self.assign_one(node, *wanted);
            if result.is_err() {
                self.assigned = before;
                return result;
            }
        }
        Ok(())
    }

    fn assign_one(&mut self, node: &str, wanted: Wanted) -> Result<(), CloudError> {
        let has = self.assigned.nodes.get(node).map_or(0, BTreeSet::len);
        let room = PER_NODE_MAX.saturating_sub(has);
        let count = usize::try_from(wanted.count).unwrap_or(usize::MAX);
        if count > room {
            let message =
                format!("an interface carries at most {PER_NODE_MAX} blocks; {node} has {has} and wants {count} more");
            return Err(CloudError::Quota { message });
        }
        let family: Vec<Subnet> =
            self.subnets.iter().filter(|subnet| subnet.net.addr().is_ipv6() == wanted.ipv6).cloned().collect();
        let mut given = 0;
        for subnet in &family {
            while given < count {
                let Some(net) = self.next_free(subnet, wanted.length) else { break };
                self.assigned.nodes.entry(node.to_owned()).or_default().insert(net);
                given += 1;
            }
        }
        // Part of it is an answer; nothing of it is none.
        if given == 0 && count > 0 {
            let names: Vec<String> = family.iter().map(|subnet| subnet.net.to_string()).collect();
            let message = format!("no free /{} is left", wanted.length);
            return Err(CloudError::SubnetFull { subnet: names.join(", "), message });
        }
        Ok(())
    }

    fn next_free(&mut self, subnet: &Subnet, length: u8) -> Option<IpNet> {
        let bits = length.checked_sub(subnet.net.prefix_len())?;
        let width = u32::from(subnet.net.max_prefix_len().checked_sub(length)?);
        let total = 1_u128.checked_shl(bits.into()).unwrap_or(u128::MAX);
        let start = self.assigned.next.get(&subnet.net).copied().unwrap_or(0);
        // So many can be in the way, and not more.
        let taken = subnet.reserved.len() + self.assigned.nodes.values().map(BTreeSet::len).sum::<usize>();
        let blocks = (0..=taken as u128).take_while(|step| *step < total).map(|step| (start + step) % total);
        for n in blocks {
            let net = IpNet::new(nth(&subnet.net, n.checked_shl(width).unwrap_or(0)), length).ok()?;
            if self.is_free(subnet, &net) {
                self.assigned.next.insert(subnet.net, n + 1);
                return Some(net);
            }
        }
        None
    }

    fn restore(&mut self, node: &str, blocks: &[IpNet]) -> Result<(), CloudError> {
        let mut new = self.assigned.nodes.get(node).cloned().unwrap_or_default();
        for net in blocks.iter().filter(|net| !new.contains(*net)).copied().collect::<Vec<_>>() {
            let subnet = self.subnets.iter().find(|subnet| subnet.net.contains(&net));
            let free = subnet.is_some_and(|subnet| self.is_free(subnet, &net));
            if !free || number(net.network()) != number(net.addr()) {
                let code = "PrivateIPAddressIsNotAvailable".to_owned();
                return Err(CloudError::Refused { code, message: format!("{net} is not free for {node}") });
            }
            new.insert(net);
        }
        self.assigned.nodes.insert(node.to_owned(), new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_cloud::NodeRef;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn vnet(nets: &[&str]) -> Vnet {
        let subnets = nets.iter().map(|text| Subnet::of_hosts(net(text))).collect();
        let nodes = ["a", "b"].map(str::to_owned).into();
        Vnet::new(subnets, nodes, Assigned::default())
    }

    fn node(name: &str) -> NodeRef {
        NodeRef { name: name.to_owned(), provider_id: String::new() }
    }

    fn assign(vnet: &mut Vnet, name: &str, ipv6: bool, length: u8, count: u32) -> Reply {
        vnet.answer(Question::Assign { node: node(name), wanted: vec![Wanted { ipv6, length, count }] })
    }

    #[test]
    fn each_block_is_one_nodes_and_what_came_free_comes_last() {
        let mut vnet = vnet(&["10.0.0.0/28", "fd00::/120"]);
        let first = assign(&mut vnet, "a", false, 32, 3).unwrap();
        assert_eq!(first, [net("10.0.0.4/32"), net("10.0.0.5/32"), net("10.0.0.6/32")].into());
        vnet.answer(Question::Unassign { node: node("a"), blocks: vec![net("10.0.0.5/32")] }).unwrap();
        let rest = assign(&mut vnet, "b", false, 32, 20).unwrap();
        assert_eq!(rest.len(), 9, "part of what was wanted: {rest:?}");
        assert!(rest.contains(&net("10.0.0.5/32")) && !rest.contains(&net("10.0.0.15/32")));
        let full = assign(&mut vnet, "a", false, 32, 1).unwrap_err().to_string();
        assert!(full.starts_with("the subnet is full: 10.0.0.0/28"), "{full}");
        assert_eq!(assign(&mut vnet, "a", true, 124, 2).unwrap().len(), 4);
        assert!(matches!(assign(&mut vnet, "c", false, 32, 1), Err(CloudError::NotFound { .. })));
        vnet.answer(Question::Retain { nodes: vec!["b".to_owned()] }).unwrap();
        let left: Vec<String> = vnet.carried().into_keys().collect();
        assert_eq!(left, ["b"], "a is gone, and what it had is free");
        assert_eq!(vnet.answer(Question::Assigned { node: node("b") }).unwrap(), rest);
    }

    #[test]
    fn limits_and_nonsense_change_nothing() {
        let mut vnet = vnet(&["10.0.0.0/16"]);
        assert!(matches!(assign(&mut vnet, "a", false, 32, 257), Err(CloudError::Quota { .. })));
        for (length, ipv6) in [(8, false), (33, false), (255, true), (64, true)] {
            assert!(matches!(assign(&mut vnet, "a", ipv6, length, 1), Err(CloudError::SubnetFull { .. })));
        }
        assign(&mut vnet, "a", false, 28, 2).unwrap();
        let before = vnet.assigned().clone();
        let wanted = vec![Wanted { ipv6: false, length: 32, count: 5 }, Wanted { ipv6: true, length: 128, count: 1 }];
        assert!(vnet.answer(Question::Assign { node: node("b"), wanted }).is_err());
        for taken in ["10.0.0.16/32", "10.0.0.0/32", "10.9.0.0/8", "192.0.2.1/32"] {
            let blocks = vec![net("10.0.9.0/32"), net(taken)];
            assert!(vnet.answer(Question::Restore { node: node("b"), blocks }).is_err(), "{taken}");
        }
        assert_eq!(*vnet.assigned(), before);
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Assigned>(&text).unwrap(), before);
    }
}
