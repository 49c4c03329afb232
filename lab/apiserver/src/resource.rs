//! The kinds that are served: those built in, and those that CustomResourceDefinitions add.

use super::crd::Custom;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One kind, and how it is served.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Group; empty for the core group.
    pub group: String,
    /// Versions served, the preferred one first.
    pub versions: Vec<String>,
    /// Version in which objects are kept.
    pub storage_version: String,
    /// Kind: `NetworkPolicy`.
    pub kind: String,
    /// `networkpolicies`.
    pub plural: String,
    /// `networkpolicy`.
    pub singular: String,
    /// `netpol`.
    pub short_names: Vec<String>,
    /// `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether the status is a subresource.
    pub has_status: bool,
    /// Where `scale` finds its numbers, when there is such a subresource.
    pub scale: Option<Scale>,
    /// Whether `metadata.generation` counts changes of the specification.
    pub counts_generation: bool,
    /// Set for custom resources.
    pub custom: Option<Arc<Custom>>,
}

/// Paths of the fields behind the `scale` subresource.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Wanted number.
    pub spec_replicas: Vec<String>,
    /// Present number.
    pub status_replicas: Vec<String>,
    /// Selector, as text or as a label selector.
    pub selector: Option<Vec<String>>,
}

impl Resource {
    /// `deployments.apps`, and `pods` for the core group.
    #[must_use]
    pub fn group_resource(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    /// `Deployment.apps`, and `Pod` for the core group.
    #[must_use]
    pub fn group_kind(&self) -> String {
        qualified(&self.kind, &self.group)
    }

    /// `apps/v1`, and `v1` for the core group.
    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// `DeploymentList`.
    #[must_use]
    pub fn list_kind(&self) -> String {
        self.custom.as_ref().map_or_else(|| format!("{}List", self.kind), |c| c.list_kind.clone())
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// What is served at a moment.
#[derive(Clone, Debug)]
pub struct Registry {
    resources: BTreeMap<(String, String), Arc<Resource>>,
}

impl Registry {
    /// The built-in kinds and these custom ones.
    #[must_use]
    pub fn new(custom: Vec<Resource>) -> Self {
        let mut resources = BTreeMap::new();
        for resource in builtin().into_iter().chain(custom) {
            resources.entry((resource.group.clone(), resource.plural.clone())).or_insert_with(|| Arc::new(resource));
        }
        Self { resources }
    }

    /// The resource of that name in that group, when that version is served.
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.get(group, plural).filter(|r| r.versions.iter().any(|v| v == version))
    }

    /// The resource of that name in that group.
    #[must_use]
    pub fn get(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.get(&(group.to_owned(), plural.to_owned()))
    }

    /// The resource of that kind.
    #[must_use]
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.all().find(|r| r.group == group && r.kind == kind)
    }

    /// All of them, by group and name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// Groups with their versions, the preferred one first.
    #[must_use]
    pub fn groups(&self) -> BTreeMap<String, Vec<String>> {
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for resource in self.all() {
            let versions = groups.entry(resource.group.clone()).or_default();
            for version in &resource.versions {
                if !versions.contains(version) {
                    versions.push(version.clone());
                }
            }
        }
        groups
    }
}

const NAMESPACED: u8 = 1;
const STATUS: u8 = 2;
const SCALE: u8 = 4;
const GENERATION: u8 = 8;

/// Group, kind, plural, short names, categories, traits.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str], u8);

const BUILTIN: [Row; 14] = [
    ("", "ConfigMap", "configmaps", &["cm"], &[], NAMESPACED),
    ("", "Event", "events", &["ev"], &[], NAMESPACED),
    ("", "Namespace", "namespaces", &["ns"], &[], STATUS),
    ("", "Node", "nodes", &["no"], &[], STATUS),
    ("", "Pod", "pods", &["po"], &["all"], NAMESPACED | STATUS),
    ("", "Secret", "secrets", &[], &[], NAMESPACED),
    ("", "Service", "services", &["svc"], &["all"], NAMESPACED | STATUS),
    ("", "ServiceAccount", "serviceaccounts", &["sa"], &[], NAMESPACED),
    ("apps", "Deployment", "deployments", &["deploy"], &["all"], NAMESPACED | STATUS | SCALE | GENERATION),
    ("apps", "ReplicaSet", "replicasets", &["rs"], &["all"], NAMESPACED | STATUS | SCALE | GENERATION),
    (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        CRDS,
        &["crd", "crds"],
        &["api-extensions"],
        STATUS | GENERATION,
    ),
    ("coordination.k8s.io", "Lease", "leases", &[], &[], NAMESPACED),
    ("discovery.k8s.io", "EndpointSlice", "endpointslices", &[], &[], NAMESPACED | GENERATION),
    ("networking.k8s.io", "NetworkPolicy", "networkpolicies", &["netpol"], &[], NAMESPACED | GENERATION),
];

const CRDS: &str = "customresourcedefinitions";

fn builtin() -> Vec<Resource> {
    let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let path = |text: &str| text.split('.').map(str::to_owned).collect();
    BUILTIN
        .iter()
        .map(|&(group, kind, plural, short_names, categories, traits)| Resource {
            group: group.to_owned(),
            versions: vec!["v1".to_owned()],
            storage_version: "v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: texts(short_names),
            categories: texts(categories),
            namespaced: traits & NAMESPACED != 0,
            has_status: traits & STATUS != 0,
            scale: (traits & SCALE != 0).then(|| Scale {
                spec_replicas: path("spec.replicas"),
                status_replicas: path("status.replicas"),
                selector: Some(path("spec.selector")),
            }),
            counts_generation: traits & GENERATION != 0,
            custom: None,
        })
        .collect()
}
