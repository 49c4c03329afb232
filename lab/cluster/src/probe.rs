//! The proof that `weft up` waits for: pods on all nodes reach each other, in every family.

use super::Error;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use weft_lab_client::Client;
use weft_lab_config::options::Config;
use weft_lab_config::paths::Paths;

/// Namespace of the probe's pods; users' policies are elsewhere.
const NAMESPACE: &str = "weft-probe";
const PORT: u16 = 8080;

struct ProbePod {
    node: String,
    netns: String,
    addresses: Vec<IpAddr>,
}

/// Makes one pod per node (two on the only node), connects from each to each, removes them.
pub(super) async fn run(client: &Client, config: &Config, deadline: Instant) -> Result<(), Error> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let result = match client.create("/api/v1/namespaces", &namespace).await {
        Err(error) if error.code() != Some(409) => Err(failed(format!("make namespace {NAMESPACE}: {error}"))),
        _ => probe(client, config, deadline).await,
    };
    clean(client, deadline).await;
    result
}

fn failed(what: String) -> Error {
    Error::Requirement(format!("the pod-to-pod probe failed: {what}"))
}

async fn probe(client: &Client, config: &Config, deadline: Instant) -> Result<(), Error> {
    let mut wanted = config.node_names();
    if let [only] = wanted.as_slice() {
        wanted.push(only.clone());
    }
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let mut names = Vec::new();
    for (number, node) in wanted.iter().enumerate() {
        let name = format!("probe-{}", number + 1);
        create(client, &pods, &name, node, deadline).await?;
        names.push(name);
    }
    let mut running = Vec::new();
    for name in &names {
        running.push(wait_running(client, config, &format!("{pods}/{name}"), deadline).await?);
    }
    for from in &running {
        for to in &running {
            for address in &to.addresses {
                connect(from, to, SocketAddr::new(*address, PORT), deadline).await?;
            }
        }
    }
    Ok(())
}

async fn create(client: &Client, pods: &str, name: &str, node: &str, deadline: Instant) -> Result<(), Error> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": NAMESPACE}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "toolbox", "image": weft_lab_node::pod::TOOLBOX_IMAGE}],
        },
    });
    loop {
        match client.create(pods, &pod).await {
            Ok(_) => return Ok(()),
            // Left by an `up` that was interrupted, or its namespace is still being removed.
            Err(error) if Instant::now() < deadline && matches!(error.code(), Some(409 | 403 | 404)) => {
                let _ = client.delete(&format!("{pods}/{name}"), Some(&json!({"gracePeriodSeconds": 0}))).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(failed(format!("make pod {name}: {error}"))),
        }
    }
}

async fn wait_running(client: &Client, config: &Config, path: &str, deadline: Instant) -> Result<ProbePod, Error> {
    let families = usize::from(config.ipv4) + usize::from(config.ipv6);
    loop {
        let pod = client.get(path).await.unwrap_or(Value::Null);
        let addresses: Vec<IpAddr> = pod["status"]["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
            .collect();
        if pod["status"]["phase"] == "Running" && addresses.len() == families {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            return Ok(ProbePod {
                node: pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
                netns: Paths::new(&config.name).pod_netns(&weft_lab_node::record::short_id(uid)),
                addresses,
            });
        }
        if Instant::now() > deadline {
            let name = pod["metadata"]["name"].as_str().unwrap_or(path);
            let state = format!(
                "pod {name} on {}: phase {}, addresses {addresses:?} (expected {families}), {}{}",
                pod["spec"]["nodeName"],
                pod["status"]["phase"],
                pod["status"]["containerStatuses"][0]["state"],
                last_event(client, name).await
            );
            return Err(failed(state + &super::status::problems(config)));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

async fn last_event(client: &Client, pod: &str) -> String {
    let events = client.get(&format!("/api/v1/namespaces/{NAMESPACE}/events")).await.unwrap_or(Value::Null);
    let of_pod = |e: &&Value| e["involvedObject"]["name"] == pod;
    let last = events["items"].as_array().into_iter().flatten().rfind(of_pod);
    last.and_then(|e| e["message"].as_str()).map(|m| format!(", {m}")).unwrap_or_default()
}

/// One TCP connection from inside a pod. Addresses may take a moment to be known on the other nodes.
async fn connect(from: &ProbePod, to: &ProbePod, target: SocketAddr, deadline: Instant) -> Result<(), Error> {
    loop {
        let netns = weft_sys::netns::path(&from.netns);
        let tried = tokio::task::spawn_blocking(move || {
            weft_sys::netns::within(&netns, || {
                let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                stream.write_all(b"probe\n")?;
                stream.read_exact(&mut [0; 1])
            })
        })
        .await
        .unwrap_or_else(|e| Err(std::io::Error::other(e)));
        match tried {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(failed(format!("from a pod on {} to {target} on {}: {error}", from.node, to.node)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Removes the pods and their namespace, and waits until they are gone.
async fn clean(client: &Client, deadline: Instant) {
    let namespace = format!("/api/v1/namespaces/{NAMESPACE}");
    let _ = client.delete(&namespace, None).await;
    let deadline = deadline.max(Instant::now() + Duration::from_secs(5));
    while Instant::now() < deadline {
        if client.get(&namespace).await.is_err_and(|e| e.code() == Some(404)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
