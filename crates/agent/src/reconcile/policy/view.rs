//! What readers see of policies. Shares everything with the tables: a view costs nothing and never changes.

use rpds::RedBlackTreeMapSync;
use std::sync::Arc;
use weft_api::flow::PolicyRef;
use weft_control::expand::DanglingRef;
use weft_control::policy::{Direction, Problem, RuleRef, RuleRefs};
use weft_model::id::{EndpointId, Identity, RuleId};
use weft_model::intent::{Policy, PolicyName};
use weft_model::table;

/// A policy object whose newest version cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// Version of the object.
    pub resource_version: String,
    /// The field and what was expected.
    pub problem: String,
}

/// A policy object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyRow {
    /// The version that the compiler has; `None`: none is in force.
    pub object: Option<Arc<Policy>>,
    /// The newest version, if it cannot be used.
    pub invalid: Option<Invalid>,
}

/// The policies that select an endpoint, each with whether it isolates for ingress and for egress.
pub type Selected = Vec<(Arc<PolicyName>, [bool; 2])>;

/// All of it as of one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub(super) rows: table::Snapshot<PolicyName, PolicyRow>,
    pub(super) selected: table::Snapshot<EndpointId, Selected>,
    pub(super) rules: RuleRefs,
    pub(super) cidrs: RedBlackTreeMapSync<ipnet::IpNet, Identity>,
    pub(super) problems: Arc<[Problem]>,
    pub(super) dangling: Arc<[DanglingRef]>,
}

impl View {
    /// The policies that isolate an endpoint in a direction; `None`: it is not isolated.
    #[must_use]
    pub fn isolating(&self, id: EndpointId, direction: Direction) -> Option<Vec<PolicyRef>> {
        let at = usize::from(direction == Direction::Egress);
        let isolating = self.selected.get(&id)?.iter().filter(|(_, isolates)| isolates[at]);
        let isolating: Vec<_> = isolating.map(|(name, _)| reference(name)).collect();
        (!isolating.is_empty()).then_some(isolating)
    }

    /// The rule of a number, also for a while after it is gone.
    #[must_use]
    pub fn rule(&self, rule: RuleId) -> Option<PolicyRef> {
        self.rules.get(&rule).map(|rule| rule_reference(rule))
    }

    /// Prefixes that policies name, as the kernel has them.
    pub fn cidrs(&self) -> impl Iterator<Item = (&ipnet::IpNet, &Identity)> {
        self.cidrs.iter()
    }

    /// A policy object.
    #[must_use]
    pub fn row(&self, name: &PolicyName) -> Option<&PolicyRow> {
        self.rows.get(name).map(|row| &**row)
    }

    /// Why a policy object's version will not come in force.
    #[must_use]
    pub fn problem_of(&self, name: &PolicyName, resource_version: &str) -> Option<String> {
        let invalid = self.row(name).and_then(|row| row.invalid.as_ref());
        let invalid = invalid.filter(|invalid| invalid.resource_version == resource_version);
        let refused = |problem: &&Problem| {
            problem.refused && problem.policy == *name && problem.resource_version == resource_version
        };
        invalid
            .map(|invalid| invalid.problem.clone())
            .or_else(|| self.problems.iter().find(refused).map(|problem| problem.text.clone()))
    }

    /// Policy objects of which something is not in force: the object, a reason for its Event, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<(PolicyName, &'static str, String)> {
        let invalid = self.rows.iter().filter_map(|(name, row)| {
            let problem = row.invalid.as_ref()?.problem.clone();
            Some((name.clone(), "PolicyInvalid", problem))
        });
        let refused = self.problems.iter();
        let refused = refused.map(|problem| (problem.policy.clone(), "PolicyRefused", problem.text.clone()));
        invalid.chain(refused).collect()
    }

    /// The same as lines of status.
    #[must_use]
    pub fn problem_lines(&self) -> Vec<String> {
        let invalid = self.rows.iter().filter_map(|(name, row)| {
            let invalid = row.invalid.as_ref()?;
            let kept = if row.object.is_some() { "; the version before is in force" } else { "" };
            Some(format!("{name}: {}{kept}", invalid.problem))
        });
        let refused = self.problems.iter().map(|problem| format!("{}: {}", problem.policy, problem.text));
        let dangling = self.dangling.iter().map(ToString::to_string);
        invalid.chain(refused).chain(dangling).collect()
    }

    /// Every policy object with the endpoints that it selects.
    #[must_use]
    pub fn list(&self) -> Vec<weft_api::agent::Policy> {
        let mut endpoints: std::collections::BTreeMap<&PolicyName, Vec<u16>> = std::collections::BTreeMap::new();
        for (id, selected) in self.selected.iter() {
            for (name, _) in selected.iter() {
                endpoints.entry(name).or_default().push(id.raw());
            }
        }
        let problem_of = |name: &PolicyName| self.problems.iter().find(|problem| problem.policy == *name);
        let mut list = Vec::new();
        for (name, row) in self.rows.iter() {
            let invalid = row.invalid.as_ref().map(|invalid| invalid.problem.clone());
            list.push(weft_api::agent::Policy {
                policy: reference(name),
                resource_version: row.object.as_ref().map(|object| object.resource_version.clone()).unwrap_or_default(),
                endpoints: endpoints.remove(name).unwrap_or_default(),
                problem: invalid.or_else(|| problem_of(name).map(|problem| problem.text.clone())),
            });
        }
        // A first version that was refused has no row.
        for problem in
            self.problems.iter().filter(|problem| problem.refused && !self.rows.contains_key(&problem.policy))
        {
            list.push(weft_api::agent::Policy {
                policy: reference(&problem.policy),
                resource_version: String::new(),
                endpoints: Vec::new(),
                problem: Some(problem.text.clone()),
            });
        }
        list
    }
}

/// A policy object, for people.
#[must_use]
pub fn reference(name: &PolicyName) -> PolicyRef {
    PolicyRef {
        kind: name.kind.name().to_owned(),
        namespace: name.object.namespace.clone(),
        name: name.object.name.clone(),
        rule: None,
        log: None,
    }
}

/// A rule of it.
#[must_use]
pub fn rule_reference(rule: &RuleRef) -> PolicyRef {
    PolicyRef {
        rule: Some(rule.place.to_string()),
        log: rule.log.as_ref().map(ToString::to_string),
        ..reference(&rule.policy)
    }
}
