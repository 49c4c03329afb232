//! `weft policy wait|lint|preview`.

mod files;
mod lint;
mod preview;

pub use lint::lint;
pub use preview::preview;

use crate::agents;
use crate::args::WaitOptions;
use anyhow::{Context as _, Result, bail};
use std::process::ExitCode;
use weft_api::agent::{Request, WaitRequest};
use weft_api::cluster::Cluster;

use weft_k8s::Client;
use weft_k8s::client::Options;
use weft_model::intent::PolicyKind;

/// Returns once every agent says so.
pub fn wait(options: &WaitOptions) -> Result<ExitCode> {
    let policy = &options.policy;
    let resource_version = match &options.resource_version {
        _ if options.gone => None,
        Some(version) => Some(version.clone()),
        None => Some(newest(options)?),
    };
    let request = Request::Wait(WaitRequest::Policy {
        kind: policy.kind.name().to_owned(),
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        resource_version: resource_version.clone(),
        timeout_ms: u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX),
    });
    let agents = agents::of(&options.target)?;
    for answer in agents::ask_all(&agents, &request) {
        answer.with_context(|| policy.to_string())?;
    }
    let nodes = if agents.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", agents.len()) };
    match resource_version {
        Some(version) => println!("{policy}, version {version}: in force on {nodes}"),
        None => println!("{policy}: gone on {nodes}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The version that the API server of the cluster has now.
fn newest(options: &WaitOptions) -> Result<String> {
    let policy = &options.policy;
    if options.target.socket.is_some() {
        bail!("--socket: expected --resource-version or --gone as well, since no API server is known");
    }
    let kubeconfig = Some(Cluster::read(&options.target.name)?.kubeconfig());
    let user_agent = format!("weft/{}", env!("CARGO_PKG_VERSION"));
    let (namespace, name) = (&policy.namespace, &policy.name);
    let path = match policy.kind {
        PolicyKind::NetworkPolicy => {
            format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}")
        }
        PolicyKind::CiliumNetworkPolicy => {
            format!("/apis/cilium.io/v2/namespaces/{namespace}/ciliumnetworkpolicies/{name}")
        }
        PolicyKind::CiliumClusterwideNetworkPolicy => {
            format!("/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies/{name}")
        }
        PolicyKind::ClusterNetworkPolicy => {
            format!("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies/{name}")
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let object: serde_json::Value = runtime.block_on(async {
        let client = Client::connect(&Options { kubeconfig, user_agent }).await?;
        client.get(&path).await
    })?;
    match object["metadata"]["resourceVersion"].as_str() {
        Some(version) => Ok(version.to_owned()),
        None => bail!("{policy}: the API server gives no resourceVersion"),
    }
}
