//! `weft policy wait`.

use crate::agents;
use crate::args::WaitOptions;
use anyhow::{Context as _, Result, bail};
use std::process::ExitCode;
use weft_api::agent::{Request, WaitRequest};
use weft_local::client::Client;
use weft_local::cluster;
use weft_local::kubeconfig::Access;

/// Returns once every agent says so.
pub fn wait(options: &WaitOptions) -> Result<ExitCode> {
    let (namespace, name) = &options.policy;
    let resource_version = match &options.resource_version {
        _ if options.gone => None,
        Some(version) => Some(version.clone()),
        None => Some(newest(options)?),
    };
    let request = Request::Wait(WaitRequest::Policy {
        namespace: namespace.clone(),
        name: name.clone(),
        resource_version: resource_version.clone(),
        timeout_ms: u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX),
    });
    let agents = agents::of(&options.target)?;
    for answer in agents::ask_all(&agents, &request) {
        answer.with_context(|| format!("NetworkPolicy {namespace}/{name}"))?;
    }
    let nodes = if agents.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", agents.len()) };
    match resource_version {
        Some(version) => println!("NetworkPolicy {namespace}/{name}, version {version}: in force on {nodes}"),
        None => println!("NetworkPolicy {namespace}/{name}: gone on {nodes}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The version that the API server of the cluster has now.
fn newest(options: &WaitOptions) -> Result<String> {
    let (namespace, name) = &options.policy;
    if options.target.socket.is_some() {
        bail!("--socket: expected --resource-version or --gone as well, since no API server is known");
    }
    let config = cluster::load(&options.target.name)?;
    let kubeconfig = config.kubeconfig.clone().unwrap_or_else(|| config.paths().kubeconfig());
    let client = Client::new(Access::read(&kubeconfig)?)?;
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}");
    let object = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(client.get(&path))?;
    match object["metadata"]["resourceVersion"].as_str() {
        Some(version) => Ok(version.to_owned()),
        None => bail!("NetworkPolicy {namespace}/{name}: the API server gives no resourceVersion"),
    }
}
