//! The custom kinds: their definitions, and how a cluster gets them.

use crate::client::Client;
use crate::error::Error;
use serde_json::Value;

const COLLECTION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// The definitions, as in `deploy/crds`: file and text.
pub const MANIFESTS: [(&str, &str); 11] = [
    ("ciliumcidrgroups.yaml", include_str!("../../../deploy/crds/ciliumcidrgroups.yaml")),
    (
        "ciliumclusterwidenetworkpolicies.yaml",
        include_str!("../../../deploy/crds/ciliumclusterwidenetworkpolicies.yaml"),
    ),
    ("ciliumendpoints.yaml", include_str!("../../../deploy/crds/ciliumendpoints.yaml")),
    ("ciliumendpointslices.yaml", include_str!("../../../deploy/crds/ciliumendpointslices.yaml")),
    ("ciliumidentities.yaml", include_str!("../../../deploy/crds/ciliumidentities.yaml")),
    ("ciliumloadbalancerippools.yaml", include_str!("../../../deploy/crds/ciliumloadbalancerippools.yaml")),
    ("ciliumlocalredirectpolicies.yaml", include_str!("../../../deploy/crds/ciliumlocalredirectpolicies.yaml")),
    ("ciliumnetworkpolicies.yaml", include_str!("../../../deploy/crds/ciliumnetworkpolicies.yaml")),
    ("ciliumnodes.yaml", include_str!("../../../deploy/crds/ciliumnodes.yaml")),
    ("ciliumpodippools.yaml", include_str!("../../../deploy/crds/ciliumpodippools.yaml")),
    ("clusternetworkpolicies.yaml", include_str!("../../../deploy/crds/clusternetworkpolicies.yaml")),
];

/// One definition as JSON.
///
/// # Errors
/// When the text is no YAML.
pub fn parse(file: &str, text: &str) -> Result<Value, Error> {
    serde_saphyr::from_str(text)
        .map_err(|error| Error::Manifest { what: format!("deploy/crds/{file}"), problem: error.to_string() })
}

/// Creates the definitions that the cluster lacks. Those that are there stay as they are, whoever made them.
pub async fn install_missing(client: &Client) -> Result<(), Error> {
    for (file, text) in MANIFESTS {
        let manifest = parse(file, text)?;
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if client.find::<serde::de::IgnoredAny>(&format!("{COLLECTION}/{name}")).await?.is_some() {
            continue;
        }
        match client.create::<serde::de::IgnoredAny>(COLLECTION, &manifest).await {
            Ok(_) => tracing::info!(name, "custom resource definition created"),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
