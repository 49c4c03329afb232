//! Names of entities.

use super::super::field::{Path, Read, string};
use serde_json::Value;
use weft_model::intent::Entity;

const ENTITIES: [(&str, Entity); 13] = [
    ("all", Entity::All),
    ("world", Entity::World),
    ("world-ipv4", Entity::WorldIpv4),
    ("world-ipv6", Entity::WorldIpv6),
    ("host", Entity::Host),
    ("remote-node", Entity::RemoteNode),
    ("kube-apiserver", Entity::KubeApiserver),
    ("ingress", Entity::Ingress),
    ("health", Entity::Health),
    ("init", Entity::Init),
    ("unmanaged", Entity::Unmanaged),
    ("cluster", Entity::Cluster),
    ("none", Entity::None),
];

pub(super) fn entity(path: Path<'_>, value: &Value) -> Read<Entity> {
    let text = string(path, value)?;
    match ENTITIES.iter().find(|(name, _)| *name == text) {
        Some((_, entity)) => Ok(*entity),
        None => {
            let names: Vec<&str> = ENTITIES.iter().map(|(name, _)| *name).collect();
            path.fail(format!("{text:?}, expected one of: {}", names.join(", ")))
        }
    }
}
