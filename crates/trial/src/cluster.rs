//! The agents of a world, reduced to policy: an engine each, and the kernel's lookup in what it compiled.

use crate::feed::{self, Input, Numbers, View};
use std::collections::BTreeMap;
use weft_control::expand::Expander;
use weft_control::explain::Party;
use weft_control::policy::{Change, Direction, Engine, Limits};
use weft_model::desired::{Action, Verdict};
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_oracle::{End, Packet, Random, World};

/// The agent of one node.
#[derive(Clone, Debug)]
pub struct Agent {
    node: usize,
    view: View,
    expander: Expander,
    pub engine: Engine,
}

/// The verdict at one end of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// No policy applies to such packets.
    Exempt,
    /// No policy selects the endpoint.
    Open,
    /// The matching entry of the endpoint's policy; `None`: none matches, and this default applies.
    Asked(Option<Verdict>, bool),
}

impl Decision {
    /// Whether the packet passes.
    #[must_use]
    pub fn allowed(self) -> bool {
        match self {
            Self::Exempt | Self::Open => true,
            Self::Asked(Some(verdict), _) => verdict.action == Action::Allow,
            Self::Asked(None, default) => default,
        }
    }
}

impl Agent {
    #[must_use]
    pub fn new(node: usize) -> Self {
        Self { node, view: View::default(), expander: Expander::default(), engine: Engine::new(Limits::default()) }
    }

    /// Applies all changes since the last update in one batch.
    pub fn update(&mut self, world: &World, numbers: &mut Numbers) {
        let view = View::of(world, self.node, numbers);
        let inputs = view.since(&self.view);
        self.view = view;
        let changes = self.changes(inputs);
        self.engine.apply(changes);
    }

    /// The same in random order and small batches.
    pub fn update_in_pieces(&mut self, world: &World, numbers: &mut Numbers, random: &mut Random) {
        let view = View::of(world, self.node, numbers);
        let mut inputs = view.since(&self.view);
        self.view = view;
        for n in (1..inputs.len()).rev() {
            inputs.swap(n, random.below(n + 1));
        }
        while !inputs.is_empty() {
            let rest = inputs.split_off(1 + random.below(inputs.len()));
            let changes = self.changes(std::mem::replace(&mut inputs, rest));
            self.engine.apply(changes);
        }
    }

    fn changes(&mut self, inputs: Vec<Input>) -> Vec<Change> {
        let mut direct = Vec::new();
        for inputs in inputs {
            match inputs {
                Input::Object(change) => self.expander.apply(&change),
                Input::Direct(change) => direct.push(change),
            }
        }
        let mut changes = self.expander.take_changes();
        changes.append(&mut direct);
        changes
    }

    /// An end of a packet, from the point of view of this node.
    #[must_use]
    pub fn party(&self, world: &World, identities: &BTreeMap<usize, Identity>, end: End, v6: bool) -> Option<Party> {
        let (identity, address) = feed::peer(world, self.node, end, v6, identities)?;
        let endpoint = match world.pod(end) {
            Some(n) => Some(feed::endpoint_id(n)).filter(|_| world.pods[n].node == self.node),
            None => Some(EndpointId::HOST).filter(|_| world.node(end) == Some(self.node)),
        };
        Some(Party { endpoint, identity, address })
    }

    /// The verdict at one end of the packet, looked up as the kernel programs do.
    #[must_use]
    pub fn decide(
        &self,
        world: &World,
        identities: &BTreeMap<usize, Identity>,
        packet: &Packet,
        direction: Direction,
    ) -> Decision {
        let (subject, other) = match direction {
            Direction::Ingress => (packet.to, packet.from),
            Direction::Egress => (packet.from, packet.to),
        };
        let is_own = |end: End| world.node(end) == Some(self.node);
        let id = match world.pod(subject) {
            Some(n) if world.pods[n].reserved.is_some() => return Decision::Exempt,
            Some(n) => feed::endpoint_id(n),
            None if is_own(subject) => EndpointId::HOST,
            None => return Decision::Exempt,
        };
        let is_own_pod = |end: End| world.pod(end).is_some_and(|n| world.pods[n].node == self.node);
        let exempt = match (id, direction) {
            (EndpointId::HOST, Direction::Egress) => is_own(other) || is_own_pod(other),
            (EndpointId::HOST, Direction::Ingress) => is_own(other) || !world.settings.host_firewall,
            (_, Direction::Ingress) => subject == other || is_own(other),
            (_, Direction::Egress) => subject == other,
        };
        if exempt || (id == EndpointId::HOST && !world.settings.host_firewall) {
            return Decision::Exempt;
        }
        let Some((identity, address)) = feed::peer(world, self.node, other, packet.v6, identities) else {
            return Decision::Exempt;
        };
        let policies = self.engine.endpoint(id).expect("every subject is an endpoint");
        assert_eq!(policies.blocked, None, "worlds are small");
        let policy = match direction {
            Direction::Ingress => policies.ingress,
            Direction::Egress => policies.egress,
        };
        if policy == PolicyId::OPEN {
            return Decision::Open;
        }
        let compiled = self.engine.compiled(policy).expect("endpoints name policies that exist");
        let verdict = self.engine.lookup(compiled, identity, address, packet.protocol, packet.port);
        Decision::Asked(verdict, compiled.default_allow)
    }
}

/// The agents of all nodes of a world.
#[derive(Debug)]
pub struct Cluster {
    /// By node.
    pub agents: Vec<Agent>,
    /// By pod.
    pub identities: BTreeMap<usize, Identity>,
}

impl Cluster {
    /// Compiles everything from scratch.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let mut numbers = Numbers::default();
        let mut agents = Vec::new();
        for node in 0..world.nodes.len() {
            let mut agent = Agent::new(node);
            agent.update(world, &mut numbers);
            agents.push(agent);
        }
        Self { agents, identities: numbers.identities(world) }
    }

    /// The verdict at one end of the packet.
    #[must_use]
    pub fn decide(&self, world: &World, packet: &Packet, direction: Direction) -> Decision {
        let subject = if direction == Direction::Ingress { packet.to } else { packet.from };
        let node = match (world.pod(subject), world.node(subject)) {
            (Some(pod), _) => world.pods[pod].node,
            (None, Some(node)) => node,
            (None, None) => return Decision::Exempt,
        };
        self.agents[node].decide(world, &self.identities, packet, direction)
    }

    /// Whether the packet passes.
    #[must_use]
    pub fn verdict(&self, world: &World, packet: &Packet) -> bool {
        [Direction::Egress, Direction::Ingress].iter().all(|direction| self.decide(world, packet, *direction).allowed())
    }
}
