//! Policy objects in force, and which endpoints they select.

use super::engine::Engine;
use super::interface::{Direction, RuleRef};
use super::limits::Overflow;
use super::rule::{Rule, action_and_precedence};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_model::id::{EndpointId, RuleId};
use weft_model::intent::{Policy, PolicyName, Subject, Tier};

/// A compiled spec of a policy object.
#[derive(Clone, Debug)]
pub(super) struct SpecRow {
    pub(super) ingress: Vec<Arc<Rule>>,
    pub(super) egress: Vec<Arc<Rule>>,
    /// Endpoints that it selects.
    pub(super) endpoints: BTreeSet<EndpointId>,
}

impl SpecRow {
    pub(super) fn rules(&self, direction: Direction) -> &[Arc<Rule>] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// A policy object in force.
#[derive(Clone, Debug)]
pub(super) struct PolicyRow {
    pub(super) object: Arc<Policy>,
    pub(super) specs: Vec<SpecRow>,
    /// Endpoints that at least one spec selects.
    pub(super) endpoints: BTreeSet<EndpointId>,
}

impl PolicyRow {
    pub(super) fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.specs.iter().flat_map(|spec| spec.ingress.iter().chain(&spec.egress))
    }
}

/// Whether a spec isolates the endpoints that it selects.
pub(super) fn isolates(spec: &weft_model::intent::Spec, direction: Direction) -> bool {
    spec.tier == Tier::Normal
        && match direction {
            Direction::Ingress => spec.isolates_ingress,
            Direction::Egress => spec.isolates_egress,
        }
}

/// A version of a policy object that does not fit.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) object: Arc<Policy>,
    pub(super) problem: Overflow,
    /// Endpoints that existed before: they keep what was in force. All others that it selects are blocked.
    pub(super) exempt: BTreeSet<EndpointId>,
}

/// A spec of a policy object, by its index.
pub(super) type SpecRef = (Arc<PolicyName>, usize);

impl Engine {
    pub(super) fn selected_by(&self, subject: &Subject) -> BTreeSet<EndpointId> {
        match subject {
            Subject::Endpoints(selector) => {
                let rows = self.subjects.select(selector).into_iter();
                rows.filter_map(|row| u16::try_from(row).ok().and_then(EndpointId::new)).collect()
            }
            Subject::Nodes(selector) => {
                let host = self.endpoints.get(&EndpointId::HOST);
                let selected = host.filter(|row| selector.matches(&row.endpoint.labels.0));
                selected.map(|row| row.endpoint.id).into_iter().collect()
            }
        }
    }

    pub(super) fn selected_by_any(&self, object: &Policy) -> BTreeSet<EndpointId> {
        object.specs.iter().flat_map(|spec| self.selected_by(&spec.subject)).collect()
    }

    /// The specs that select an endpoint.
    pub(super) fn selecting(&self, id: EndpointId) -> BTreeSet<SpecRef> {
        let Some(row) = self.endpoints.get(&id) else { return BTreeSet::new() };
        let labels = &row.endpoint.labels;
        let candidates = if id == EndpointId::HOST {
            self.of_nodes.iter().cloned().collect()
        } else {
            self.of_endpoints.candidates(labels)
        };
        let selects = |(name, n): &SpecRef| match &self.policies[name].object.specs[*n].subject {
            Subject::Endpoints(selector) => selector.matches(labels),
            Subject::Nodes(selector) => selector.matches(&labels.0),
        };
        candidates.into_iter().filter(selects).collect()
    }

    /// Replaces the object `name` and returns the previous row.
    pub(super) fn swap_policy(&mut self, name: &PolicyName, object: Option<&Arc<Policy>>) -> Option<PolicyRow> {
        let old = self.policies.remove(name);
        let new = object.map(|object| self.prepare(object, old.as_ref()));
        self.place_policy(name, old.as_ref(), new);
        old
    }

    /// Updates the indexes from `old` to `new`.
    pub(super) fn place_policy(&mut self, name: &PolicyName, old: Option<&PolicyRow>, new: Option<PolicyRow>) {
        let name = Arc::new(name.clone());
        if let Some(old) = old {
            for (n, spec) in old.specs.iter().enumerate() {
                let part = (Arc::clone(&name), n);
                for id in &spec.endpoints {
                    self.endpoints.get_mut(id).map(|row| row.specs.remove(&part));
                }
                match &old.object.specs[n].subject {
                    Subject::Endpoints(selector) => self.of_endpoints.remove(selector, &part),
                    Subject::Nodes(_) => {
                        self.of_nodes.remove(&part);
                    }
                }
            }
            self.dirty.endpoints.extend(&old.endpoints);
            self.reselected.extend(&old.endpoints);
            self.noted.remove(&name);
        }
        let Some(new) = new else { return };
        for (n, spec) in new.specs.iter().enumerate() {
            let part = (Arc::clone(&name), n);
            for id in &spec.endpoints {
                self.endpoints.get_mut(id).map(|row| row.specs.insert(part.clone()));
            }
            match &new.object.specs[n].subject {
                Subject::Endpoints(selector) => self.of_endpoints.insert(selector, &part),
                Subject::Nodes(_) => {
                    self.of_nodes.insert(part);
                }
            }
        }
        self.dirty.endpoints.extend(&new.endpoints);
        self.reselected.extend(&new.endpoints);
        if new.rules().any(|rule| !rule.notes.is_empty()) {
            self.noted.insert(Arc::clone(&name));
        }
        self.policies.insert(name, new);
    }

    /// Compiles the rules of an object. Unchanged rules keep their numbers, so that flows and explanations stay valid.
    fn prepare(&mut self, object: &Arc<Policy>, old: Option<&PolicyRow>) -> PolicyRow {
        let mut known: BTreeMap<(Direction, &str), &Arc<Rule>> = BTreeMap::new();
        for spec in old.into_iter().flat_map(|row| &row.specs) {
            for direction in [Direction::Ingress, Direction::Egress] {
                known.extend(spec.rules(direction).iter().map(|rule| ((direction, &*rule.source.place), rule)));
            }
        }
        let mut specs = Vec::new();
        for spec in &object.specs {
            let mut rules = |direction: Direction| {
                let list = match direction {
                    Direction::Ingress => &spec.ingress,
                    Direction::Egress => &spec.egress,
                };
                let rule = |(n, source): (usize, &weft_model::intent::Rule)| {
                    let effect = action_and_precedence(spec.tier, n, source.action);
                    let same = known.get(&(direction, &*source.place));
                    if let Some(same) = same.filter(|rule| rule.is_made_from(source, effect, spec.log.as_ref())) {
                        return Arc::clone(same);
                    }
                    let id = self.numbers.allocate(RuleRef {
                        policy: object.name.clone(),
                        direction,
                        place: Arc::clone(&source.place),
                        log: spec.log.clone(),
                    });
                    Arc::new(Rule::new(id, source, effect, spec.log.clone()))
                };
                list.iter().enumerate().map(rule).collect::<Vec<_>>()
            };
            let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
            specs.push(SpecRow { ingress, egress, endpoints: self.selected_by(&spec.subject) });
        }
        let endpoints = specs.iter().flat_map(|spec| &spec.endpoints).copied().collect();
        PolicyRow { object: Arc::clone(object), specs, endpoints }
    }

    /// Retires the numbers of rules of `gone` that `kept` does not have.
    pub(super) fn retire(&mut self, gone: &PolicyRow, kept: Option<&PolicyRow>) {
        let ids = |row: &PolicyRow| -> BTreeSet<RuleId> { row.rules().map(|rule| rule.id).collect() };
        let kept = kept.map(ids).unwrap_or_default();
        for id in ids(gone).difference(&kept) {
            self.numbers.retire(*id);
        }
    }
}
