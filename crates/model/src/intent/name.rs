//! Names that objects and their ports have.

use crate::intent::policy::Protocol;
use serde::{Deserialize, Serialize};
use std::hash::Hash;

/// `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A named container port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// When an object was created, and its uid for those of the same second: the API server gives both, so nobody can make an
/// object older than it is. The least is the oldest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Age {
    /// In the API's form, which sorts as text: `2026-01-31T10:00:00Z`.
    pub created: String,
    pub uid: String,
}
