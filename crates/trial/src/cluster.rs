//! Agents of a world as far as policy goes: each with its engine, and with the kernel's way to ask what it compiled.

use crate::feed::{self, News, Numbers, View};
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
    /// What compiles.
    pub engine: Engine,
}

/// What one end of a packet decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// No policy is asked.
    Exempt,
    /// No policy is there that could object.
    Open,
    /// The endpoint's policy was asked; `None`: it has no entry, and this is what happens then.
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
    /// One that knows nothing yet.
    #[must_use]
    pub fn new(node: usize) -> Self {
        Self { node, view: View::default(), expander: Expander::default(), engine: Engine::new(Limits::default()) }
    }

    /// Hears at once of all that has changed since it last heard of the world.
    pub fn hear(&mut self, world: &World, numbers: &mut Numbers) {
        let view = View::of(world, self.node, numbers);
        let news = view.since(&self.view);
        self.view = view;
        let changes = self.changes(news);
        self.engine.apply(changes);
    }

    /// Hears of it in random order, a few things at a time.
    pub fn hear_bit_by_bit(&mut self, world: &World, numbers: &mut Numbers, random: &mut Random) {
        let view = View::of(world, self.node, numbers);
        let mut news = view.since(&self.view);
        self.view = view;
        for n in (1..news.len()).rev() {
            news.swap(n, random.below(n + 1));
        }
        while !news.is_empty() {
            let rest = news.split_off(1 + random.below(news.len()));
            let changes = self.changes(std::mem::replace(&mut news, rest));
            self.engine.apply(changes);
        }
    }

    fn changes(&mut self, news: Vec<News>) -> Vec<Change> {
        let mut direct = Vec::new();
        for news in news {
            match news {
                News::Object(change) => self.expander.hear(&change),
                News::Direct(change) => direct.push(change),
            }
        }
        let mut changes = self.expander.take();
        changes.append(&mut direct);
        changes
    }

    /// An end of a packet, as this node would ask about it.
    #[must_use]
    pub fn party(&self, world: &World, identities: &BTreeMap<usize, Identity>, end: End, v6: bool) -> Option<Party> {
        let (identity, address) = feed::peer(world, self.node, end, v6, identities)?;
        let endpoint = match world.pod(end) {
            Some(n) => Some(feed::endpoint_id(n)).filter(|_| world.pods[n].node == self.node),
            None => Some(EndpointId::HOST).filter(|_| world.node(end) == Some(self.node)),
        };
        Some(Party { endpoint, identity, address })
    }

    /// What this node decides about the packet at one of its ends, as the kernel programs do.
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
    /// Everything compiled from nothing.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let mut numbers = Numbers::default();
        let mut agents = Vec::new();
        for node in 0..world.nodes.len() {
            let mut agent = Agent::new(node);
            agent.hear(world, &mut numbers);
            agents.push(agent);
        }
        Self { agents, identities: numbers.identities(world) }
    }

    /// What one end decides about the packet.
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
