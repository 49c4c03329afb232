//! A policy object of any kind.

use super::{Problems, Settings, cilium, cluster_policy, network_policy};
use crate::wire::WirePolicy;
use weft_model::intent::{ObjectName, Policy, PolicyKind, PolicyName};

/// What names a policy object.
#[must_use]
pub fn policy_name(kind: PolicyKind, object: &WirePolicy) -> PolicyName {
    // A kind without namespaces has none, whatever an object says.
    let namespace = if kind.is_namespaced() { object.metadata.namespace.clone() } else { String::new() };
    PolicyName { kind, object: ObjectName { namespace, name: object.metadata.name.clone() } }
}

/// A policy object.
///
/// # Errors
/// All that is wrong with it: a policy is taken whole or not at all.
pub fn policy(kind: PolicyKind, object: &WirePolicy, settings: Settings) -> Result<Policy, Problems> {
    let name = policy_name(kind, object);
    let namespace = name.object.namespace.as_str();
    let specs = match kind {
        PolicyKind::NetworkPolicy => vec![network_policy::spec(namespace, &object.spec)?],
        PolicyKind::CiliumNetworkPolicy => cilium::specs(Some(namespace), object, settings)?,
        PolicyKind::CiliumClusterwideNetworkPolicy => cilium::specs(None, object, settings)?,
        PolicyKind::ClusterNetworkPolicy => vec![cluster_policy::spec(&object.spec)?],
    };
    let (uid, resource_version) = (object.metadata.uid.clone(), object.metadata.resource_version.clone());
    Ok(Policy { name, uid, resource_version, specs })
}
