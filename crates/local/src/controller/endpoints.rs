//! EndpointSlices: the pods behind each service, per family.

use super::condition::{is_controlled_by, is_ready, reference};
use super::unless_lost;
use crate::apiserver::api::{Api, DeleteOptions, WriteOptions};
use crate::apiserver::error::ApiError;
use crate::apiserver::object::{at, is_terminating, items, map_mut, name, namespace, set, text};
use crate::apiserver::selector::LabelSelector;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Endpoints of one slice.
const ENDPOINTS_MAX: usize = 1000;
const MANAGER: &str = "endpointslice-controller.k8s.io";

pub(super) async fn pass(api: &Api) -> Result<(), ApiError> {
    let slices = api.builtin("discovery.k8s.io", "endpointslices");
    let pods = api.store().list("pods", "").objects;
    let present = api.store().list("endpointslices.discovery.k8s.io", "").objects;
    for service in api.store().list("services", "").objects {
        let service = &service.value;
        let selected = service["spec"]["selector"].as_object().is_some_and(|s| !s.is_empty());
        if is_terminating(service) || !selected || text(service, &["spec", "type"]) == "ExternalName" {
            continue;
        }
        let selector = LabelSelector::from_map(&service["spec"]["selector"]);
        let own = pods.iter().map(|p| &p.value);
        let own: Vec<&Value> = own.filter(|p| namespace(p) == namespace(service) && selector.matches(p)).collect();
        let mut wanted = desired(service, &own);
        for slice in present.iter().map(|s| &s.value).filter(|s| is_controlled_by(s, service)) {
            let key = (namespace(slice), name(slice));
            match wanted.remove(name(slice)) {
                None => unless_lost(api.delete(&slices, key, &DeleteOptions::default()).await)?,
                Some(new) if ["endpoints", "ports", "addressType"].iter().all(|f| slice.get(*f) == new.get(*f)) => {}
                Some(new) => {
                    let edit = |old: &Value| {
                        let mut object = old.clone();
                        for field in ["endpoints", "ports"] {
                            set(&mut object, &[], field, new[field].clone());
                        }
                        Some(object)
                    };
                    unless_lost(api.edit(&slices, key, "", edit).await)?;
                }
            }
        }
        for slice in wanted.into_values() {
            unless_lost(api.create(&slices, "v1", namespace(service), slice, WriteOptions::default()).await)?;
        }
    }
    Ok(())
}

/// The slices that a service should have, by name.
fn desired(service: &Value, pods: &[&Value]) -> BTreeMap<String, Value> {
    let mut slices = BTreeMap::new();
    for family in items(service, &["spec", "ipFamilies"]).iter().filter_map(Value::as_str) {
        // Pods that understand a named port differently go to different slices.
        let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
        for pod in pods {
            let Some(endpoint) = endpoint(service, pod, family) else { continue };
            let ports = ports(service, Some(pod));
            groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
        }
        if groups.is_empty() {
            let ports = ports(service, None);
            groups.insert(ports.to_string(), (ports, Vec::new()));
        }
        let mut index = 0;
        for (ports, endpoints) in groups.into_values() {
            let mut chunks: Vec<Vec<Value>> = endpoints.chunks(ENDPOINTS_MAX).map(<[Value]>::to_vec).collect();
            if chunks.is_empty() {
                chunks.push(Vec::new());
            }
            for endpoints in chunks {
                let own = format!("{}-{}-{index}", name(service), family.to_lowercase());
                index += 1;
                let mut metadata = json!({"name": own, "namespace": namespace(service),
                    "ownerReferences": reference(service)});
                let labels = service["metadata"]["labels"].clone();
                if labels.is_object() {
                    metadata["labels"] = labels;
                }
                let labels = map_mut(&mut metadata, &["labels"]);
                labels.insert("kubernetes.io/service-name".to_owned(), name(service).into());
                labels.insert("endpointslice.kubernetes.io/managed-by".to_owned(), MANAGER.into());
                let slice =
                    json!({"metadata": metadata, "addressType": family, "ports": ports, "endpoints": endpoints});
                slices.insert(own, slice);
            }
        }
    }
    slices
}

fn endpoint(service: &Value, pod: &Value, family: &str) -> Option<Value> {
    if matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        return None;
    }
    let address = items(pod, &["status", "podIPs"])
        .iter()
        .map(|a| text(a, &["ip"]))
        .find(|a| a.parse::<IpAddr>().is_ok_and(|a| a.is_ipv4() == (family == "IPv4")))?;
    let serving = is_ready(pod) || service["spec"]["publishNotReadyAddresses"] == Value::Bool(true);
    let terminating = is_terminating(pod);
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": serving && !terminating, "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "name": name(pod), "namespace": namespace(pod), "uid": pod["metadata"]["uid"]},
    });
    let node = text(pod, &["spec", "nodeName"]);
    if !node.is_empty() {
        endpoint["nodeName"] = node.into();
    }
    Some(endpoint)
}

/// The ports of a service as a pod has them.
fn ports(service: &Value, pod: Option<&Value>) -> Value {
    let mut list = Vec::new();
    for port in items(service, &["spec", "ports"]) {
        let protocol = text(port, &["protocol"]);
        let number = match &port["targetPort"] {
            Value::String(named) => pod.and_then(|p| named_port(p, named, protocol)),
            target => target.as_i64(),
        };
        let Some(number) = number else { continue };
        let mut entry = json!({"name": text(port, &["name"]), "port": number, "protocol": protocol});
        if let Some(protocol) = at(port, &["appProtocol"]) {
            entry["appProtocol"] = protocol.clone();
        }
        list.push(entry);
    }
    list.into()
}

fn named_port(pod: &Value, named: &str, protocol: &str) -> Option<i64> {
    items(pod, &["spec", "containers"])
        .iter()
        .flat_map(|c| items(c, &["ports"]))
        .find(|p| text(p, &["name"]) == named && text(p, &["protocol"]) == protocol)
        .and_then(|p| p["containerPort"].as_i64())
}
