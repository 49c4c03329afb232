//! Whether the API server serves a kind. A 404 alone does not say so: a proxy answers it, and a server that starts.

use crate::client::Client;
use crate::error::Error;
use serde::Deserialize;
use std::fmt;

/// A collection: group, version and plural. Displayed as `ciliumnetworkpolicies.cilium.io`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `pods`.
    pub plural: &'static str,
}

impl Resource {
    /// Of a collection's path: `/api/v1/pods`, `/apis/cilium.io/v2/ciliumnodes`.
    #[must_use]
    pub const fn of(path: &'static str) -> Self {
        let (rest, plural) = split_last(path);
        let (rest, version) = split_last(rest);
        let (_, group) = split_last(rest);
        // `/api`: the core group has no name in its path.
        let group = if rest.len() == "/api".len() { "" } else { group };
        Self { group, version, plural }
    }
}

const fn split_last(path: &'static str) -> (&'static str, &'static str) {
    let bytes = path.as_bytes();
    let mut at = bytes.len();
    while at > 0 {
        at -= 1;
        if bytes[at] == b'/' {
            let (rest, last) = path.split_at(at);
            return (rest, last.split_at(1).1);
        }
    }
    ("", path)
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Served {
    Yes,
    No,
    /// Discovery cannot be read, or contradicts itself.
    Unknown(String),
}

#[derive(Deserialize)]
struct Resources {
    kind: String,
    resources: Vec<Named>,
}

#[derive(Deserialize)]
struct Groups {
    kind: String,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

/// A group of every API server that can have custom kinds: a list of groups without it is incomplete.
const DEFINITIONS_GROUP: &str = "apiextensions.k8s.io";

/// Asks the discovery documents of the kind's group and version, and if there is none, the list of groups: `No` only if
/// a complete document of the API server says so.
pub(crate) async fn served(client: &Client, resource: &Resource) -> Served {
    let Resource { group, version, plural } = resource;
    let path = format!("/apis/{group}/{version}");
    match client.get::<Resources>(&path).await {
        Ok(found) if found.kind != "APIResourceList" => {
            return Served::Unknown(format!("GET {path}: expected an APIResourceList, found {:?}", found.kind));
        }
        Ok(found) if found.resources.iter().any(|resource| resource.name == *plural) => return Served::Yes,
        Ok(_) => return Served::No,
        Err(error) if error.is_not_found() => {}
        Err(error) => return Served::Unknown(error.to_string()),
    }
    match client.get::<Groups>("/apis").await {
        Ok(found) if found.kind != "APIGroupList" || !found.groups.iter().any(|g| g.name == DEFINITIONS_GROUP) => {
            Served::Unknown(format!("GET /apis: expected an APIGroupList with the group {DEFINITIONS_GROUP}"))
        }
        Ok(found) => {
            let listed = found.groups.iter().find(|found| found.name == *group);
            if listed.is_some_and(|listed| listed.versions.iter().any(|listed| listed.version == *version)) {
                Served::Unknown(format!("GET {path}: 404, though /apis lists {group}/{version}"))
            } else {
                Served::No
            }
        }
        Err(error) => Served::Unknown(error.to_string()),
    }
}

/// Confirms a 404 of a list: `Ok` if the kind is not served, so that there are no objects of it.
pub(crate) async fn confirm_absent(client: &Client, path: &'static str, error: Error) -> Result<(), Error> {
    if !error.is_not_found() {
        return Err(error);
    }
    match served(client, &Resource::of(path)).await {
        Served::No => Ok(()),
        Served::Yes | Served::Unknown(_) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::Resource;

    #[test]
    fn a_path_names_its_resource() {
        let custom = Resource::of("/apis/cilium.io/v2/ciliumnodes");
        assert_eq!(custom, Resource { group: "cilium.io", version: "v2", plural: "ciliumnodes" });
        assert_eq!(custom.to_string(), "ciliumnodes.cilium.io");
        let core = Resource::of("/api/v1/pods");
        assert_eq!(core, Resource { group: "", version: "v1", plural: "pods" });
        assert_eq!(core.to_string(), "pods");
    }
}
