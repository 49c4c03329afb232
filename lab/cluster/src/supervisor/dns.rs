//! Cluster DNS, installed through the API as an administrator would: credentials, a Deployment, and the Service that
//! every pod's resolver asks.

use base64::Engine;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use weft_lab_client::{Client, ClientError};
use weft_lab_config::options::Config;
use weft_lab_toolbox::cluster_dns::{IMAGE, PORT};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "cluster-dns";
/// The Service, by the name that everything looks for.
const SERVICE: &str = "kube-dns";
const MOUNT: &str = "/etc/cluster-dns";
const FILE: &str = "kubeconfig";

/// Creates or updates everything; tries until the server takes it.
pub(super) async fn install(client: &Client, config: &Config, kubeconfig: &Path) {
    let text = match std::fs::read(kubeconfig) {
        Ok(text) => text,
        Err(error) => return tracing::error!(file = %kubeconfig.display(), %error, "cluster DNS has no credentials"),
    };
    for (collection, object) in objects(config, &text) {
        for _ in 0..50 {
            match put(client, &collection, &object).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(collection, %error, "cluster DNS"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn put(client: &Client, collection: &str, object: &Value) -> Result<(), ClientError> {
    match client.create(collection, object).await {
        Err(error) if error.code() == Some(409) => {}
        other => return other.map(drop),
    }
    let path = format!("{collection}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
    client.merge(&path, object).await.map(drop)
}

/// Collections, and what is to be in them.
fn objects(config: &Config, kubeconfig: &[u8]) -> Vec<(String, Value)> {
    let labels = json!({"k8s-app": SERVICE});
    let core = |kind: &str| format!("/api/v1/namespaces/{NAMESPACE}/{kind}");
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE, "labels": labels});
    let encoded = base64::engine::general_purpose::STANDARD.encode(kubeconfig);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata(NAME), "data": {FILE: encoded}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(NAME)});
    let addresses: Vec<String> = config.dns_addresses().iter().map(IpAddr::to_string).collect();
    let families: Vec<&str> =
        config.dns_addresses().iter().map(|a| if a.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(SERVICE),
        "spec": {
            "selector": labels, "clusterIP": addresses.first(), "clusterIPs": addresses, "ipFamilies": families,
            "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "dns-tcp"},
            ],
        },
    });
    let apps = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
    vec![
        (core("serviceaccounts"), account),
        (core("secrets"), secret),
        (core("services"), service),
        (apps, deployment(config, metadata(NAME), &labels)),
    ]
}

fn deployment(config: &Config, metadata: Value, labels: &Value) -> Value {
    let ranges: Vec<String> = config.service_cidrs.iter().chain(&config.pod_cidrs).map(ToString::to_string).collect();
    let mut args = vec!["--kubeconfig".to_owned(), format!("{MOUNT}/{FILE}"), "--range".to_owned(), ranges.join(",")];
    for server in &config.dns_upstreams {
        args.extend(["--upstream".to_owned(), server.to_string()]);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": NAME,
                    // It answers for the others: it must not ask itself.
                    "dnsPolicy": "Default",
                    "terminationGracePeriodSeconds": 5,
                    "containers": [{
                        "name": "dns", "image": IMAGE, "args": args,
                        "ports": [
                            {"name": "dns", "containerPort": PORT, "protocol": "UDP"},
                            {"name": "dns-tcp", "containerPort": PORT, "protocol": "TCP"},
                        ],
                        "readinessProbe": {"tcpSocket": {"port": "dns-tcp"}, "periodSeconds": 1},
                        "volumeMounts": [{"name": "credentials", "mountPath": MOUNT, "readOnly": true}],
                    }],
                    "volumes": [{"name": "credentials", "secret": {"secretName": NAME}}],
                },
            },
        },
    })
}

/// Where its Deployment is.
pub(crate) fn path() -> String {
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}")
}
