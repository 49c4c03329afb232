//! Answers to those who look.

use super::{Core, SOURCES};
use crate::peer::Pod;
use std::collections::BTreeSet;
use std::net::IpAddr;
use weft_api::agent as api;
use weft_api::flow::PolicyRef;
use weft_control::policy::{Direction, RuleRef};
use weft_k8s::convert::endpoint_of_slice;
use weft_model::id::{EndpointId, Identity, RuleId};
use weft_model::intent::{ObjectName, PolicyName, Source};
use weft_model::label::LabelSet;

impl Core {
    /// How the node is, but for what only the kernel knows (drops).
    #[must_use]
    pub fn status(&self) -> api::Status {
        let progress = self.progress.borrow().clone();
        api::Status {
            node: self.settings.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: progress.ready,
            waiting_for: self.waiting_for(),
            revision: self.revision,
            revision_in_force: progress.in_force,
            problems: self.all_problems(),
            endpoints: self.endpoints.rows.values().filter(|endpoint| endpoint.is_active()).count(),
            services: self.count_services(),
            routing: if self.settings.tunnel { "vxlan" } else { "native" }.to_owned(),
            addresses: self.own_addresses(),
            pod_cidrs: self.own_pool.usage().into_iter().map(|(cidr, _, _)| cidr).collect(),
            ipam: self.own_pool.usage(),
            drops: Vec::new(),
            events_suppressed: 0,
            accelerated: 0,
        }
    }

    fn waiting_for(&self) -> Vec<String> {
        let mut missing: Vec<String> = SOURCES
            .iter()
            .filter(|source| !self.synced.contains(source))
            .map(|source| {
                let name = match source {
                    Source::Pods => "pods of this node",
                    Source::Namespaces => "namespaces",
                    Source::Policies(kind) => kind.name(),
                    Source::CidrGroups => "CIDR groups",
                    Source::Services => "services",
                    Source::LocalRedirects => "local redirect policies",
                    Source::Backends => "endpoint slices of services",
                    Source::Identities => "identities",
                    Source::Slices => "slices of endpoints",
                    Source::Endpoints => "endpoints",
                    Source::Nodes => "nodes",
                };
                format!("{name} from the API server")
            })
            .collect();
        missing
            .extend(self.missing_families().into_iter().map(|family| format!("an {family} pod prefix for this node")));
        if !self.node_ready {
            missing.push("the node's device and routes".into());
        }
        if self.all_synced() && !self.pruned {
            missing.push("the first complete write of the kernel's maps".into());
        }
        missing
    }

    fn all_problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.problems.iter().map(|(what, why)| format!("{what}: {why}")).collect();
        for (name, invalid) in &self.policy.invalid {
            let kept = if self.policy.versions.contains_key(name) { "; the version before is in force" } else { "" };
            problems.push(format!("{name}: {}{kept}", invalid.problem));
        }
        for problem in self.policy.engine.problems() {
            problems.push(format!("{}: {}", problem.policy, problem.text));
        }
        for (object, reason, problem) in self.service_problems() {
            problems.push(format!("{object}: {}: {problem}", reason.as_str()));
        }
        for (policy, missing) in self.policy.expander.missing() {
            problems.push(format!("{policy}: {missing}"));
        }
        for endpoint in self.endpoints.rows.values() {
            if let Some(problem) = &endpoint.problem {
                problems.push(format!("endpoint {} ({}): {problem}", endpoint.record.id, endpoint.record.pod));
            }
        }
        problems
    }

    /// Endpoints of this node.
    #[must_use]
    pub fn list_endpoints(&self) -> Vec<api::Endpoint> {
        let rows = self.endpoints.rows.values();
        rows.map(|endpoint| {
            let record = &endpoint.record;
            let blocked = endpoint.in_kernel.as_ref().is_some_and(|written| written.blocked);
            let state = match record.phase {
                crate::state::Phase::Reserved => "creating",
                crate::state::Phase::Leaving => "leaving",
                crate::state::Phase::Ready if endpoint.restoring => "restoring",
                crate::state::Phase::Ready if blocked => "blocked",
                crate::state::Phase::Ready if endpoint.waiting => "waiting-for-identity",
                crate::state::Phase::Ready => "ready",
            };
            api::Endpoint {
                id: record.id.raw(),
                namespace: record.pod.namespace.clone(),
                pod: record.pod.name.clone(),
                container_id: record.attachment.container_id.clone(),
                addresses: record.addresses.clone(),
                identity: record.identity.raw(),
                labels: labels(&record.labels),
                state: state.to_owned(),
                problem: endpoint.problem.clone(),
                ingress: self.isolating(record.id, Direction::Ingress),
                egress: self.isolating(record.id, Direction::Egress),
                device: record.device.clone(),
                audit: record.audit || self.settings.audit,
            }
        })
        .collect()
    }

    /// The policies that isolate an endpoint in a direction; `None`: it is not isolated.
    #[must_use]
    pub fn isolating(&self, id: EndpointId, direction: Direction) -> Option<Vec<PolicyRef>> {
        let policies = self.policy.engine.isolating(id, direction)?;
        Some(policies.into_iter().map(|policy| reference(&policy.name)).collect())
    }

    /// Identities known here.
    #[must_use]
    pub fn list_identities(&self) -> Vec<api::Identity> {
        let users =
            |identity| self.endpoints.rows.values().filter(|endpoint| endpoint.record.identity == identity).count();
        let known = self.identities.iter();
        known
            .map(|(identity, set)| api::Identity {
                identity: identity.raw(),
                labels: labels(set),
                endpoints: users(identity),
            })
            .collect()
    }

    /// Policies in force.
    #[must_use]
    pub fn list_policies(&self) -> Vec<api::Policy> {
        let problems = self.policy.engine.problems();
        let mut rows: Vec<api::Policy> = self
            .policy
            .engine
            .policies()
            .map(|(policy, endpoints)| {
                let refused =
                    problems.iter().find(|problem| problem.policy == policy.name).map(|problem| problem.text.clone());
                let invalid = self.policy.invalid.get(&policy.name).map(|invalid| invalid.problem.clone());
                api::Policy {
                    policy: reference(&policy.name),
                    resource_version: policy.resource_version.clone(),
                    endpoints: endpoints.iter().map(|id| id.raw()).collect(),
                    problem: invalid.or(refused),
                }
            })
            .collect();
        let absent = self.policy.invalid.iter().map(|(name, invalid)| (name, &invalid.problem));
        let refused = problems.iter().filter(|problem| problem.refused).map(|problem| (&problem.policy, &problem.text));
        for (name, problem) in absent.chain(refused) {
            let policy = reference(name);
            if rows.iter().all(|row| row.policy != policy) {
                rows.push(api::Policy {
                    policy,
                    resource_version: String::new(),
                    endpoints: Vec::new(),
                    problem: Some(problem.clone()),
                });
            }
        }
        rows
    }

    /// The version of a policy object that is in force, if any.
    #[must_use]
    pub fn policy_in_force(&self, name: &PolicyName) -> Option<String> {
        if self.dirty || self.retry_at.is_some() {
            return None;
        }
        let mut policies = self.policy.engine.policies();
        policies.find(|(policy, _)| policy.name == *name).map(|(policy, _)| policy.resource_version.clone())
    }

    /// Whether everything of the tables is in the kernel, and the policy is not among it.
    #[must_use]
    pub fn policy_is_gone(&self, name: &PolicyName) -> bool {
        let progress = self.progress.borrow();
        progress.in_force == self.revision && self.engine_has_not(name)
    }

    fn engine_has_not(&self, name: &PolicyName) -> bool {
        self.policy.engine.policies().all(|(policy, _)| policy.name != *name)
    }

    /// Why a policy object's version will not come in force.
    #[must_use]
    pub fn policy_problem(&self, name: &PolicyName, resource_version: &str) -> Option<String> {
        let invalid = self.policy.invalid.get(name).filter(|invalid| invalid.resource_version == resource_version);
        let refused = || {
            let problems = self.policy.engine.problems();
            let refused =
                problems.into_iter().find(|p| p.refused && p.policy == *name && p.resource_version == resource_version);
            refused.map(|problem| problem.text)
        };
        invalid.map(|invalid| invalid.problem.clone()).or_else(refused)
    }

    /// Policy objects of which something is not in force, and why.
    #[must_use]
    pub fn policy_problems(&self) -> Vec<(PolicyName, &'static str, String)> {
        let invalid = self.policy.invalid.iter();
        let invalid = invalid.map(|(name, invalid)| (name.clone(), "PolicyInvalid", invalid.problem.clone()));
        let refused = self.policy.engine.problems().into_iter();
        invalid.chain(refused.map(|problem| (problem.policy, "PolicyRefused", problem.text))).collect()
    }

    /// Whether an own slice says of every endpoint in it what this node says.
    #[must_use]
    pub fn agrees_with(&self, slice: &weft_model::intent::EndpointSlice) -> bool {
        let Some(announced) = self.announced() else { return true };
        slice.endpoints.iter().all(|said| announced.get(&said.name).is_some_and(|own| own.endpoint == *said))
    }

    /// Whether a pod of this UID has an endpoint here.
    #[must_use]
    pub fn has_pod(&self, uid: &str) -> bool {
        self.endpoints.rows.values().any(|endpoint| endpoint.record.pod_uid == uid)
    }

    /// Which of this node's pods have these addresses.
    #[must_use]
    pub fn own_pods(&self, addresses: &[IpAddr]) -> Vec<Pod> {
        let Some(announced) = self.announced() else { return Vec::new() };
        let asked = announced.into_values().filter(|own| own.endpoint.addresses.iter().any(|a| addresses.contains(a)));
        let labelled = asked.filter_map(|own| {
            let of = |row: &&super::endpoints::Endpoint| row.record.pod_uid == own.endpoint.pod_uid;
            let labels = self.endpoints.rows.values().find(of)?.record.labels.clone();
            Some(Pod { endpoint: own.endpoint, labels })
        });
        labelled.collect()
    }

    /// The other node, and its address, whose pods have this address, if nobody told of it yet.
    #[must_use]
    pub fn owner_of_unknown(&self, address: IpAddr) -> Option<(String, IpAddr)> {
        if self.addresses.get(address).is_some() {
            return None;
        }
        let node = self.nodes.values().find(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address)))?;
        let other = node.name != self.settings.node_name;
        other.then(|| self.address_of_node(&node.name).map(|at| (node.name.clone(), at)))?
    }

    /// Whether the address is of a pod prefix of the node.
    #[must_use]
    pub fn is_of_node(&self, node: &str, address: IpAddr) -> bool {
        self.nodes.get(node).is_some_and(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address)))
    }

    /// The address by which a node's endpoints are known.
    #[must_use]
    pub fn address_of_node(&self, node: &str) -> Option<IpAddr> {
        self.nodes.get(node)?.addresses.iter().copied().min_by_key(|address| !address.is_ipv4())
    }

    /// UIDs of pods of other nodes of which their nodes told themselves, when they were asked.
    #[must_use]
    pub fn told_directly(&self) -> Vec<String> {
        let told = self.policy.remotes.told_by(crate::peer::is_answer);
        told.map(str::to_owned).collect()
    }

    /// Labels of an identity: of its object, or else those in force without one.
    #[must_use]
    pub fn identity_labels(&self, identity: Identity) -> Option<LabelSet> {
        let of_object = self.identities.labels(identity).map(|labels| (**labels).clone());
        of_object.or_else(|| self.orphaned.get(&identity).cloned())
    }

    /// Whether some source tells of this remote pod other than those for which `of` holds.
    #[must_use]
    pub fn is_told_but(&self, uid: &str, of: impl Fn(&str) -> bool) -> bool {
        self.policy.remotes.is_told(uid, |source| !of(source))
    }

    /// UIDs of pods of other nodes of which only CiliumEndpoints tell, no slice.
    #[must_use]
    pub fn told_by_endpoints_only(&self) -> BTreeSet<String> {
        let is_endpoint = |source: &str| endpoint_of_slice(source).is_some();
        self.policy.remotes.told_only(is_endpoint).map(str::to_owned).collect()
    }

    /// Addresses.
    #[must_use]
    pub fn list_ipcache(&self) -> Vec<api::IpcacheEntry> {
        let addresses = self.addresses.all().into_iter().map(|(address, entry)| api::IpcacheEntry {
            prefix: address.to_string(),
            identity: entry.identity.raw(),
            node: entry.node,
            kind: if entry.is_node { "node" } else { "pod" }.to_owned(),
        });
        let desired = self.policy.engine.desired();
        let cidrs = desired.cidrs.iter().map(|(cidr, number)| api::IpcacheEntry {
            prefix: cidr.to_string(),
            identity: number.raw(),
            node: None,
            kind: "cidr".to_owned(),
        });
        addresses.chain(cidrs).chain(self.list_pools()).collect()
    }

    /// Labels of an identity, for people.
    #[must_use]
    pub fn labels_for_people(&self, identity: Identity) -> Vec<String> {
        if let Some(name) = identity.reserved_name() {
            return vec![format!("reserved:{name}")];
        }
        if let Some(set) = self.identity_labels(identity) {
            return labels(&set);
        }
        let local = self.endpoints.rows.values().find(|endpoint| endpoint.record.identity == identity);
        local.map(|endpoint| labels(&endpoint.record.labels)).unwrap_or_default()
    }

    /// The rule of a number.
    #[must_use]
    pub fn rule(&self, rule: RuleId) -> Option<PolicyRef> {
        self.policy.engine.rule(rule).map(rule_reference)
    }

    /// The pod that has an address, here or elsewhere.
    #[must_use]
    pub fn pod_with(&self, address: std::net::IpAddr) -> Option<ObjectName> {
        let local = self.endpoints.rows.values().find(|endpoint| endpoint.record.addresses.contains(&address));
        local
            .map(|endpoint| endpoint.record.pod.clone())
            .or_else(|| self.addresses.pod(address).map(|name| (*name).clone()))
    }

    /// The node that has an address.
    #[must_use]
    pub fn node_with(&self, address: std::net::IpAddr) -> Option<String> {
        self.addresses.node(address).map(|name| name.to_string())
    }

    /// Fill of every map.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn maps(&mut self) -> Result<Vec<api::Map>, weft_model::desired::DataplaneError> {
        let maps = self.dataplane.usage()?;
        Ok(maps
            .into_iter()
            .map(|map| api::Map {
                name: map.name,
                entries: map.entries,
                entries_max: map.entries_max,
                memory_bytes: map.memory_bytes,
            })
            .collect())
    }
}

fn labels(set: &weft_model::label::LabelSet) -> Vec<String> {
    let text = |(key, value): (&String, &String)| if value.is_empty() { key.clone() } else { format!("{key}={value}") };
    set.0.iter().map(text).collect()
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
