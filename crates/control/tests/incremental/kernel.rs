//! A kernel made of maps, which carries plans out write by write.

use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_control::oracle::{Packet, World, feed};
use weft_control::policy::{Direction, EndpointPolicy, Plan};
use weft_model::desired::{CompiledPolicy, PolicyPatch, PortPrefix, Verdict};
use weft_model::id::{ClassId, EndpointId, Identity, PolicyId};

/// One write.
#[derive(Debug)]
pub enum Step {
    Put(PolicyId, CompiledPolicy),
    PutEntry(PolicyId, (ClassId, PortPrefix), Verdict),
    PutPeer(PolicyId, Identity, ClassId),
    DelPeer(PolicyId, Identity),
    DelEntry(PolicyId, (ClassId, PortPrefix)),
    AddCidr(IpNet, Identity),
    DelCidr(IpNet),
    Switch(EndpointPolicy),
    Ipcache(BTreeMap<IpAddr, Identity>),
    Remove(PolicyId),
}

impl Step {
    /// The writes of a plan, in order. Addresses point to their new identities after the endpoints were switched.
    pub fn of(plan: Plan, addresses: BTreeMap<IpAddr, Identity>) -> Vec<Self> {
        let mut steps = Vec::new();
        steps.extend(plan.put.into_iter().map(|(id, policy)| Self::Put(id, (*policy).clone())));
        steps.extend(plan.patch.into_iter().flat_map(|(id, patch)| Self::of_patch(id, patch)));
        steps.extend(plan.add_cidrs.into_iter().map(|(net, number)| Self::AddCidr(net, number)));
        steps.extend(plan.switch.into_iter().map(Self::Switch));
        steps.push(Self::Ipcache(addresses));
        steps.extend(plan.narrow.into_iter().flat_map(|(id, patch)| Self::of_patch(id, patch)));
        steps.extend(plan.remove_cidrs.into_iter().map(Self::DelCidr));
        steps.extend(plan.late_patch.into_iter().flat_map(|(id, patch)| Self::of_patch(id, patch)));
        steps.extend(plan.remove.into_iter().map(Self::Remove));
        steps
    }

    fn of_patch(id: PolicyId, patch: PolicyPatch) -> Vec<Self> {
        let mut steps = Vec::new();
        steps.extend(patch.put_entries.into_iter().map(|(key, verdict)| Self::PutEntry(id, key, verdict)));
        steps.extend(patch.put_peers.into_iter().map(|(peer, class)| Self::PutPeer(id, peer, class)));
        steps.extend(patch.del_peers.into_iter().map(|peer| Self::DelPeer(id, peer)));
        steps.extend(patch.del_entries.into_iter().map(|key| Self::DelEntry(id, key)));
        steps
    }
}

/// The maps.
#[derive(Default)]
pub struct Kernel {
    pub policies: BTreeMap<PolicyId, CompiledPolicy>,
    pub cidrs: BTreeMap<IpNet, Identity>,
    pub endpoints: BTreeMap<EndpointId, EndpointPolicy>,
    ipcache: BTreeMap<IpAddr, Identity>,
}

impl Kernel {
    fn policy(&mut self, id: PolicyId) -> &mut CompiledPolicy {
        self.policies.get_mut(&id).expect("a patch of a policy that is there")
    }

    pub fn carry_out(&mut self, step: &Step) {
        match step {
            Step::Put(id, policy) => {
                assert!(self.policies.insert(*id, policy.clone()).is_none(), "{id:?} was there already");
            }
            Step::PutEntry(id, key, verdict) => {
                assert!(self.policy(*id).entries.insert(*key, *verdict).is_none(), "{key:?} means two things");
            }
            Step::PutPeer(id, peer, class) => {
                self.policy(*id).peers.insert(*peer, *class);
            }
            Step::DelPeer(id, peer) => {
                assert!(self.policy(*id).peers.remove(peer).is_some(), "{peer:?} was not there");
            }
            Step::DelEntry(id, key) => {
                assert!(!self.policy(*id).peers.values().any(|class| *class == key.0), "{key:?} is in use");
                assert!(self.policy(*id).entries.remove(key).is_some(), "{key:?} was not there");
            }
            Step::AddCidr(net, number) => {
                assert!(self.cidrs.insert(*net, *number).is_none(), "{net} was there already");
                let same = self.cidrs.values().filter(|other| *other == number).count();
                assert_eq!(same, 1, "{number} is two prefixes");
            }
            Step::DelCidr(net) => {
                assert!(self.cidrs.remove(net).is_some(), "{net} was not there");
            }
            Step::Switch(endpoint) => {
                for id in [endpoint.ingress, endpoint.egress] {
                    assert!(id == PolicyId::OPEN || self.policies.contains_key(&id), "{id:?} is not there");
                }
                self.endpoints.insert(endpoint.id, endpoint.clone());
            }
            Step::Ipcache(addresses) => self.ipcache.clone_from(addresses),
            Step::Remove(id) => {
                let used = self.endpoints.values().any(|e| e.ingress == *id || e.egress == *id);
                assert!(!used, "{id:?} is in use");
                assert!(self.policies.remove(id).is_some(), "{id:?} was not there");
            }
        }
    }

    /// The number of the longest prefix that holds an address. Addresses are IPv6 ones here, as in the kernel.
    fn prefix(&self, address: IpAddr) -> Option<Identity> {
        let mapped = |net: &IpNet| match net {
            IpNet::V4(v4) => IpNet::new(v4.addr().to_ipv6_mapped().into(), 96 + v4.prefix_len()).unwrap(),
            IpNet::V6(_) => *net,
        };
        let address = match address {
            IpAddr::V4(v4) => IpAddr::from(v4.to_ipv6_mapped()),
            IpAddr::V6(_) => address,
        };
        let holding = self.cidrs.iter().filter(|(net, _)| mapped(net).contains(&address));
        holding.max_by_key(|(net, _)| mapped(net).prefix_len()).map(|(_, number)| *number)
    }

    /// Whether the pod at one end lets the packet pass.
    pub fn allows(&self, world: &World, node: usize, packet: &Packet, direction: Direction) -> bool {
        let (subject, other) = feed::sides(packet, direction);
        let address = world.address(subject, packet.v6).expect("packets have two addresses");
        let weft_control::oracle::End::Pod(n) = subject else { unreachable!("{address} is no pod") };
        let endpoint = &self.endpoints[&feed::endpoint_id(n)];
        let address = world.address(other, packet.v6).expect("packets have two addresses");
        let identity = match self.ipcache.get(&address) {
            Some(identity) => *identity,
            None => feed::peer(world, node, other, packet.v6, &BTreeMap::new()).expect("it has an address").0,
        };
        let id = match direction {
            Direction::Ingress => endpoint.ingress,
            Direction::Egress => endpoint.egress,
        };
        let policy = (id != PolicyId::OPEN).then(|| &self.policies[&id]);
        endpoint.blocked.is_none() && feed::decide(direction, policy, identity, self.prefix(address), packet)
    }
}
