//! Read access to the engine.

use super::engine::Engine;
use super::interface::{Direction, EndpointPolicy, Problem, RuleRef};
use super::lookup::lookup;
use super::objects::{PolicyRow, isolates};
use super::resolved::{PortName, Resolved};
use super::rule::{Rule, RuleRefs};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::desired::{CompiledPolicy, Verdict};
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyId, RuleId};
use weft_model::intent::{Policy, PolicyName, RemoteEndpoint, Tier};
use weft_model::label::LabelSet;

impl Engine {
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<&EndpointPolicy> {
        self.endpoints.get(&id).map(|row| &row.now)
    }

    /// The policies that isolate an endpoint in a direction; `None`: it is not isolated.
    #[must_use]
    pub fn isolating(&self, id: EndpointId, direction: Direction) -> Option<Vec<&Policy>> {
        let row = self.endpoints.get(&id)?;
        let mut policies: Vec<&Policy> = Vec::new();
        for (name, n) in &row.specs {
            let object = &*self.policies[name].object;
            let is_last = policies.last().is_some_and(|last| last.name == object.name);
            if isolates(&object.specs[*n], direction) && !is_last {
                policies.push(object);
            }
        }
        (!policies.is_empty()).then_some(policies)
    }

    /// The rules that apply to an endpoint in a direction.
    pub(crate) fn rules_of(
        &self,
        id: EndpointId,
        direction: Direction,
    ) -> impl Iterator<Item = (&RuleRef, &Arc<Rule>)> {
        let is_isolated = self.isolating(id, direction).is_some();
        let specs = self.endpoints.get(&id).into_iter().flat_map(|row| &row.specs);
        let rows = specs.map(move |(name, n)| (&self.policies[name], *n));
        let counts =
            rows.filter(move |(row, n)| !(is_isolated && matches!(row.object.specs[*n].tier, Tier::Baseline(_))));
        let rules = counts.flat_map(move |(row, n)| row.specs[n].rules(direction));
        rules.filter_map(|rule| Some((self.numbers.get(rule.id)?, rule)))
    }

    /// The port numbers of a named port in a local endpoint.
    pub(crate) fn own_numbers(&self, id: EndpointId, name: &PortName) -> Vec<u16> {
        let ports = self.endpoints.get(&id).into_iter().flat_map(|row| &row.endpoint.named_ports);
        ports.filter(|port| port.protocol == name.0 && port.name == name.1).map(|port| port.port).collect()
    }

    pub(crate) fn pods_of(&self, identity: Identity) -> &[Arc<RemoteEndpoint>] {
        self.peers.pods().of(identity)
    }

    /// A resolved policy; `None` for [`PolicyId::OPEN`].
    #[must_use]
    pub fn compiled(&self, id: PolicyId) -> Option<&CompiledPolicy> {
        self.resolved.get(&id).map(Resolved::compiled)
    }

    /// The class of a peer: an identity, or a prefix in a scope.
    #[must_use]
    pub fn peer_class(&self, peer: Identity) -> Option<PeerClass> {
        self.peers.class_of(peer).map(|class| self.peers.classes().get(class).number)
    }

    /// The number of the longest prefix in use that contains `address`.
    #[must_use]
    pub fn prefix_of(&self, address: IpAddr) -> Option<Identity> {
        self.peers.prefixes().longest(address).map(|(_, number)| number)
    }

    /// The entry of a policy that decides a new connection with a peer, if one matches.
    #[must_use]
    pub fn lookup(
        &self,
        policy: &CompiledPolicy,
        identity: Identity,
        address: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Option<Verdict> {
        let prefix = self.prefix_of(address).map(|base| base.in_scope(identity.scope()));
        let prefix = prefix.and_then(|number| self.peer_class(number));
        lookup(policy, self.peer_class(identity), prefix, protocol, port)
    }

    pub fn endpoint_ids(&self) -> impl Iterator<Item = EndpointId> {
        self.endpoints.keys().copied()
    }

    /// The rule of a number. Deleted rules are remembered for a while, for events that are still on their way.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> Option<&RuleRef> {
        self.numbers.get(id)
    }

    #[must_use]
    pub fn labels(&self, identity: Identity) -> Option<&Arc<LabelSet>> {
        self.peers.labels(identity)
    }

    /// All rules by number, including recently deleted ones.
    #[must_use]
    pub fn rules(&self) -> RuleRefs {
        self.numbers.snapshot()
    }

    /// A policy object in force.
    #[must_use]
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.policies.get(name).map(|row| &row.object)
    }

    /// Policy objects whose latest version was refused.
    pub fn refused(&self) -> impl Iterator<Item = &PolicyName> {
        self.refused.keys()
    }

    /// Endpoints whose selecting policies may have changed since the last call, including deleted endpoints.
    pub fn take_reselected(&mut self) -> BTreeSet<EndpointId> {
        std::mem::take(&mut self.reselected)
    }

    /// The policy objects that select an endpoint, each with whether it isolates for ingress and for egress.
    #[must_use]
    pub fn selected_by_policies(&self, id: EndpointId) -> Vec<(Arc<PolicyName>, [bool; 2])> {
        let mut selected: Vec<(Arc<PolicyName>, [bool; 2])> = Vec::new();
        for (name, n) in self.endpoints.get(&id).into_iter().flat_map(|row| &row.specs) {
            let spec = &self.policies[name].object.specs[*n];
            if selected.last().is_none_or(|(last, _)| last != name) {
                selected.push((Arc::clone(name), [false; 2]));
            }
            if let Some((_, isolating)) = selected.last_mut() {
                isolating[0] |= isolates(spec, Direction::Ingress);
                isolating[1] |= isolates(spec, Direction::Egress);
            }
        }
        selected
    }

    /// The policy objects in force, each with the endpoints that it selects.
    pub fn policies(&self) -> impl Iterator<Item = (&Arc<Policy>, &BTreeSet<EndpointId>)> {
        self.policies.values().map(|row| (&row.object, &row.endpoints))
    }

    /// Policy objects that are not in force as written.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let refused = self.refused.values().map(|refused| Problem {
            policy: refused.object.name.clone(),
            resource_version: refused.object.resource_version.clone(),
            refused: true,
            text: format!(
                "refused, does not fit: {}; the previous version stays in force, traffic of new endpoints that this \
                 version selects is dropped",
                refused.problem
            ),
        });
        let note = |row: &PolicyRow, text: String| Problem {
            policy: row.object.name.clone(),
            resource_version: row.object.resource_version.clone(),
            refused: false,
            text,
        };
        let noted = self.noted.iter().filter_map(|name| self.policies.get(name));
        let notes = noted.flat_map(|row| {
            let notes = row.rules().flat_map(|rule| &rule.notes);
            notes.map(move |text| note(row, text.clone()))
        });
        let mut problems: Vec<_> = refused.chain(notes).collect();
        let starving = self.peers.starving();
        let by_peers =
            starving.iter().flat_map(|(problem, count, users)| users.iter().map(move |id| (id, problem, *count)));
        let members =
            |classes: &BTreeSet<_>| classes.iter().map(|class| self.peers.classes().get(*class).members).sum();
        let by_rows = self.starved.iter().map(|(id, (problem, classes))| (id, problem, members(classes)));
        for (id, problem, count) in by_peers.chain(by_rows) {
            let Some(users) = self.resolved.get(id).map(|row| &row.users) else { continue };
            for row in self.policies.values().filter(|row| !users.is_disjoint(&row.endpoints)) {
                problems.push(note(row, format!("traffic of {count} peers is denied: {problem}")));
            }
        }
        problems.sort();
        problems.dedup();
        problems
    }

    /// Sizes of the tables, for metrics.
    #[must_use]
    pub fn sizes(&self) -> [(&'static str, usize); 8] {
        let [identities, selectors, peers] = self.peers.len();
        [
            ("identities", identities),
            ("selectors", selectors),
            ("prefixes", self.peers.prefixes().len()),
            ("classes", self.peers.classes().len().0),
            ("policies", self.resolved.len()),
            ("entries", self.usage.entries),
            ("rows", self.usage.rows),
            ("peers", peers),
        ]
    }
}
