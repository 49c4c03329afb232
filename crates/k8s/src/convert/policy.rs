//! A policy object of any kind.

use super::problem::{Problem, Problems, Settings};
use super::service::cidr_group;
use super::{cilium, cluster_policy, field, network_policy};
use crate::wire::{CILIUM_V2, WireCidrGroup, WirePolicy};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_model::intent::{Change, ObjectName, Peer, Policy, PolicyKind, PolicyName, RuleAction, Spec};
use weft_model::label::is_carried;
use weft_model::selector::Requirement;

/// Namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";
pub const CIDR_GROUP: &str = "CiliumCIDRGroup";

#[must_use]
pub const fn api_version(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::NetworkPolicy => "networking.k8s.io/v1",
        PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy => CILIUM_V2,
        PolicyKind::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
    }
}

#[must_use]
pub fn policy_name(kind: PolicyKind, object: &WirePolicy) -> PolicyName {
    // A kind without namespaces has none, whatever an object says.
    let namespace = if kind.is_namespaced() { object.metadata.namespace.clone() } else { String::new() };
    PolicyName { kind, object: ObjectName { namespace, name: object.metadata.name.clone() } }
}

pub fn policy(kind: PolicyKind, object: &WirePolicy, settings: Settings) -> Result<Policy, Problems> {
    let name = policy_name(kind, object);
    let namespace = name.object.namespace.as_str();
    let specs = match kind {
        PolicyKind::NetworkPolicy => vec![network_policy::spec(namespace, &object.spec)?],
        PolicyKind::CiliumNetworkPolicy => cilium::specs(Some(namespace), object, settings)?,
        PolicyKind::CiliumClusterwideNetworkPolicy => cilium::specs(None, object, settings)?,
        PolicyKind::ClusterNetworkPolicy => vec![cluster_policy::spec(&object.spec)?],
    };
    judgeable(&specs)?;
    let (uid, resource_version) = (object.metadata.uid.clone(), object.metadata.resource_version.clone());
    Ok(Policy { name, uid, resource_version, specs })
}

/// A selector on a label that identities do not carry selects nobody. In a rule that allows, that is the safe side; a rule
/// that denies must not be taken for one that does.
fn judgeable(specs: &[Spec]) -> Result<(), Problems> {
    let mut problems = Vec::new();
    for rule in specs.iter().flat_map(|spec| spec.ingress.iter().chain(&spec.egress)) {
        for peer in rule.peers.iter().flatten().filter(|_| rule.action == RuleAction::Deny) {
            let Peer::Endpoints(selector) = peer else { continue };
            for key in selector.requirements.iter().map(Requirement::key).filter(|key| !is_carried(key)) {
                let place = if rule.place.starts_with("specs") { String::new() } else { "spec.".to_owned() };
                let what =
                    format!("selects peers by {key:?}, which is not part of their identity: it would deny nobody");
                problems.push(Problem::new(format!("{place}{}", rule.place), what));
            }
        }
    }
    Problems::new(problems).map_or(Ok(()), Err)
}

/// A policy of any kind, or a CiliumCIDRGroup, as people write it: with `apiVersion` and `kind`, and no field that the
/// kind does not have.
pub fn object(object: &Value, settings: &Settings) -> Result<Change, Problems> {
    let text = |name: &'static str| object[name].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if kind == CIDR_GROUP {
        if !matches!(version, CILIUM_V2 | "cilium.io/v2alpha1") {
            return Err(Problem::new("apiVersion", format!("{version:?}, expected {CILIUM_V2}")).into());
        }
        known(object, &["spec"])?;
        let group: WireCidrGroup = parse(object)?;
        named(&group.metadata.name)?;
        return cidr_group(group).map(Change::CidrGroup);
    }
    let Some(policy_kind) = PolicyKind::ALL.into_iter().find(|known| known.name() == kind) else {
        let names = PolicyKind::ALL.map(PolicyKind::name).join(", ");
        return Err(Problem::new("kind", format!("{kind:?}, expected one of: {names}, {CIDR_GROUP}")).into());
    };
    let expected = api_version(policy_kind);
    if version != expected {
        return Err(Problem::new("apiVersion", format!("{version:?}, expected {expected}")).into());
    }
    let is_cilium = expected == CILIUM_V2;
    known(object, if is_cilium { &["spec", "specs"] } else { &["spec"] })?;
    let mut wire: WirePolicy = parse(object)?;
    named(&wire.metadata.name)?;
    if policy_kind.is_namespaced() && wire.metadata.namespace.is_empty() {
        DEFAULT_NAMESPACE.clone_into(&mut wire.metadata.namespace);
    }
    policy(policy_kind, &wire, *settings).map(Change::Policy)
}

fn known(object: &Value, parts: &[&str]) -> Result<(), Problems> {
    let map = object.as_object().into_iter().flatten();
    let is_known = |name: &str| matches!(name, "apiVersion" | "kind" | "metadata" | "status") || parts.contains(&name);
    let unknown = map.filter(|(name, _)| !is_known(name));
    let complain = |name: &String| {
        let expected = format!("unknown field, expected one of: apiVersion, kind, metadata, {}", parts.join(", "));
        Problem::new(name, expected)
    };
    Problems::new(unknown.map(|(name, _)| complain(name)).collect()).map_or(Ok(()), Err)
}

fn parse<T: DeserializeOwned>(object: &Value) -> Result<T, Problems> {
    if !object["metadata"].is_object() {
        let found = field::kind(&object["metadata"]);
        return Err(Problem::new("metadata", format!("expected an object, found {found}")).into());
    }
    // Only the metadata have types; the rest is judged field by field.
    T::deserialize(object).map_err(|error| Problem::new("metadata", error.to_string()).into())
}

fn named(name: &str) -> Result<(), Problems> {
    if name.is_empty() { Err(Problem::new("metadata.name", "required").into()) } else { Ok(()) }
}
