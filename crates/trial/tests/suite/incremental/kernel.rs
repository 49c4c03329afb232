//! A kernel made of maps, which carries plans out write by write.

use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_control::policy::lookup::{lookup, passes};
use weft_control::policy::{Direction, EndpointPolicy, Plan};
use weft_model::desired::{CompiledPolicy, PolicyPatch, PortPrefix, Verdict};
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyClass, PolicyId};
use weft_oracle::{End, Packet, World};
use weft_trial::feed;

/// One write.
#[derive(Debug)]
pub enum Step {
    Put(PolicyId, CompiledPolicy),
    PutEntry(PolicyId, (PolicyClass, PortPrefix), Verdict),
    PutClass(PolicyId, PeerClass, PolicyClass),
    DelClass(PolicyId, PeerClass),
    DelEntry(PolicyId, (PolicyClass, PortPrefix)),
    PutPeer(Identity, PeerClass),
    DelPeer(Identity),
    AddCidr(IpNet, Identity),
    DelCidr(IpNet),
    Switch(EndpointPolicy),
    Ipcache(BTreeMap<usize, Identity>),
    Remove(PolicyId),
}

impl Step {
    /// The writes of a plan, in order. Addresses point to their new identities after the endpoints were switched.
    pub fn of(plan: Plan, addresses: BTreeMap<usize, Identity>) -> Vec<Self> {
        let peer = |(peer, class): (Identity, Option<PeerClass>)| match class {
            Some(class) => Self::PutPeer(peer, class),
            None => Self::DelPeer(peer),
        };
        let mut steps = Vec::new();
        steps.extend(plan.put.into_iter().map(|(id, policy)| Self::Put(id, (*policy).clone())));
        steps.extend(plan.patch.into_iter().flat_map(|(id, patch)| Self::of_patch(id, patch)));
        steps.extend(plan.put_peers.into_iter().map(|(peer, class)| Self::PutPeer(peer, class)));
        steps.extend(plan.add_cidrs.into_iter().map(|(net, number)| Self::AddCidr(net, number)));
        steps.extend(plan.switch.into_iter().map(Self::Switch));
        steps.push(Self::Ipcache(addresses));
        steps.extend(plan.narrow.into_iter().map(peer));
        steps.extend(plan.remove_cidrs.into_iter().map(Self::DelCidr));
        steps.extend(plan.del_peers.into_iter().map(Self::DelPeer));
        steps.extend(plan.late_patch.into_iter().flat_map(|(id, patch)| Self::of_patch(id, patch)));
        steps.extend(plan.remove.into_iter().map(Self::Remove));
        steps
    }

    fn of_patch(id: PolicyId, patch: PolicyPatch) -> Vec<Self> {
        let mut steps = Vec::new();
        steps.extend(patch.put_entries.into_iter().map(|(key, verdict)| Self::PutEntry(id, key, verdict)));
        steps.extend(patch.put_classes.into_iter().map(|(class, content)| Self::PutClass(id, class, content)));
        steps.extend(patch.del_classes.into_iter().map(|class| Self::DelClass(id, class)));
        steps.extend(patch.del_entries.into_iter().map(|key| Self::DelEntry(id, key)));
        steps
    }
}

/// The maps.
#[derive(Default)]
pub struct Kernel {
    pub policies: BTreeMap<PolicyId, CompiledPolicy>,
    pub peers: BTreeMap<Identity, PeerClass>,
    pub cidrs: BTreeMap<IpNet, Identity>,
    pub endpoints: BTreeMap<EndpointId, EndpointPolicy>,
    /// By pod.
    ipcache: BTreeMap<usize, Identity>,
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
            Step::PutClass(id, class, content) => {
                let before = self.policy(*id).classes.insert(*class, *content);
                assert!(before.is_none_or(|before| before == *content), "{class:?} means two things");
            }
            Step::DelClass(id, class) => {
                assert!(!self.peers.values().any(|used| used == class), "{class:?} is in use");
                assert!(self.policy(*id).classes.remove(class).is_some(), "{class:?} was not there");
            }
            Step::DelEntry(id, key) => {
                let policy = self.policy(*id);
                let mut used = policy.classes.values().chain([&policy.rest]);
                assert!(!used.any(|class| *class == key.0 || class.admin() == key.0), "{key:?} is in use");
                assert!(policy.entries.remove(key).is_some(), "{key:?} was not there");
            }
            Step::PutPeer(peer, class) => {
                self.peers.insert(*peer, *class);
            }
            Step::DelPeer(peer) => {
                assert!(self.peers.remove(peer).is_some(), "{peer:?} was not there");
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

    /// Whether the subject at one end lets the packet pass. Only for packets about which policies are asked.
    pub fn allows(&self, world: &World, node: usize, packet: &Packet, direction: Direction) -> bool {
        let (subject, other) = sides(packet, direction);
        let id = world.pod(subject).map_or(EndpointId::HOST, feed::endpoint_id);
        let endpoint = &self.endpoints[&id];
        let mut known = self.ipcache.clone();
        if let End::Pod(n) = other {
            known.entry(n).or_insert(Identity::UNKNOWN);
        }
        let (identity, address) = feed::peer(world, node, other, packet.v6, &known).expect("it has an address");
        let id = match direction {
            Direction::Ingress => endpoint.ingress,
            Direction::Egress => endpoint.egress,
        };
        if endpoint.blocked.is_some() || id == PolicyId::OPEN {
            return endpoint.blocked.is_none();
        }
        let policy = &self.policies[&id];
        let class = |peer: Identity| self.peers.get(&peer).copied();
        let prefix = self.prefix(address).and_then(|base| class(base.in_scope(identity.scope())));
        passes(policy, lookup(policy, class(identity), prefix, packet.protocol, packet.port))
    }
}

/// The subject and the other end.
pub fn sides(packet: &Packet, direction: Direction) -> (End, End) {
    match direction {
        Direction::Ingress => (packet.to, packet.from),
        Direction::Egress => (packet.from, packet.to),
    }
}
