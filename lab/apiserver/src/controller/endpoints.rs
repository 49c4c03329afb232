//! EndpointSlices: the pods behind each service, per family.
//!
//! Unlike the other controllers this one looks only at services that a change may concern: a pod that becomes ready
//! costs its services and nothing else, and is in their slices as soon as the disk has it.

mod hints;
mod slices;

use super::condition::{is_controlled_by, is_ready, reference};
use super::{RETRY, unless_lost};
use crate::api::{Api, DeleteOptions, WriteOptions};
use crate::error::ApiError;
use crate::object::{at, is_terminating, items, label, name, namespace, set, text, uid};
use crate::resource::Resource;
use crate::selector::LabelSelector;
use crate::store::{Event, Key, Stored};
use futures::StreamExt;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::time::Instant;

const SERVICES: &str = "services";
const PODS: &str = "pods";
const NODES: &str = "nodes";
const SLICES: &str = "endpointslices.discovery.k8s.io";
/// Who writes the slices of services with a selector.
const MANAGER: &str = "endpointslice-controller.k8s.io";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Services worked on at once; their writes share commits to disk.
const AT_ONCE: usize = 64;

/// Namespace and name of a service.
type Name = (String, String);

/// Keeps the slices for ever.
pub(super) async fn run(api: &Api) {
    let store = api.store();
    let mut published = store.subscribe();
    let mut reached = *published.borrow_and_update();
    let mut dirty = everything(api);
    loop {
        let failed = sync(api, &dirty).await;
        let again = Instant::now() + RETRY;
        dirty = failed;
        loop {
            if dirty.is_empty() {
                if published.changed().await.is_err() {
                    return;
                }
            } else if let Ok(Err(_)) = tokio::time::timeout_at(again, published.changed()).await {
                return;
            }
            published.borrow_and_update();
            let ours = |e: &Event| matches!(e.key.resource.as_ref(), SERVICES | PODS | NODES | SLICES);
            let changed = match store.since(reached, usize::MAX, ours) {
                Ok((events, up_to)) => {
                    reached = up_to;
                    concerned(api, &events)
                }
                Err(_) => {
                    reached = *published.borrow_and_update();
                    everything(api)
                }
            };
            let stop = !changed.is_empty() || (!dirty.is_empty() && Instant::now() >= again);
            dirty.extend(changed);
            if stop {
                break;
            }
        }
    }
}

fn everything(api: &Api) -> BTreeSet<Name> {
    api.store().list(SERVICES, "").objects.iter().map(|s| key(&s.value)).collect()
}

fn key(object: &Value) -> Name {
    (namespace(object).to_owned(), name(object).to_owned())
}

/// The services that changes may concern.
fn concerned(api: &Api, events: &[Arc<Event>]) -> BTreeSet<Name> {
    let mut found = BTreeSet::new();
    let mut pods: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for event in events {
        let (now, before) = (&event.object.value, event.previous.as_ref().map(|p| &p.value));
        match event.key.resource.as_ref() {
            SERVICES => {
                found.insert(key(now));
            }
            SLICES => {
                for slice in [Some(now), before].into_iter().flatten() {
                    found.extend(label(slice, SERVICE_NAME).map(|s| (namespace(slice).to_owned(), s.to_owned())));
                }
            }
            PODS => {
                let gone = event.effect == crate::store::Effect::Deleted;
                if gone || before.is_none_or(|b| matter(b) != matter(now)) {
                    pods.entry(namespace(now)).or_default().extend([Some(now), before].into_iter().flatten());
                }
            }
            _ => {
                let facts = |node: &Value| (label(node, ZONE).map(str::to_owned), is_ready(node));
                if before.is_none_or(|b| facts(b) != facts(now)) {
                    return everything(api);
                }
            }
        }
    }
    for (place, pods) in pods {
        for service in &api.store().list(SERVICES, place).objects {
            let selector = LabelSelector::from_map(&service.value["spec"]["selector"]);
            if has_slices(&service.value) && pods.iter().any(|p| selector.matches(p)) {
                found.insert(key(&service.value));
            }
        }
    }
    found
}

/// What slices depend on, of a pod.
fn matter(pod: &Value) -> [&Value; 9] {
    let condition = crate::object::condition(pod, "Ready").map_or(&Value::Null, |c| &c["status"]);
    [
        &pod["metadata"]["labels"],
        &pod["metadata"]["deletionTimestamp"],
        &pod["spec"]["nodeName"],
        &pod["spec"]["hostname"],
        &pod["spec"]["subdomain"],
        &pod["spec"]["containers"],
        &pod["status"]["phase"],
        &pod["status"]["podIPs"],
        condition,
    ]
}

fn has_slices(service: &Value) -> bool {
    let selected = service["spec"]["selector"].as_object().is_some_and(|s| !s.is_empty());
    selected && !is_terminating(service) && text(service, &["spec", "type"]) != "ExternalName"
}

/// The objects of one namespace that several of its services need.
struct Place {
    pods: Vec<Arc<Stored>>,
    slices: BTreeMap<String, Vec<Arc<Stored>>>,
}

/// Corrects the slices of these services, and returns those for which that failed.
async fn sync(api: &Api, dirty: &BTreeSet<Name>) -> BTreeSet<Name> {
    let resource = api.builtin("discovery.k8s.io", "endpointslices");
    let zones = Zones::new(api);
    let mut places: BTreeMap<&str, Place> = BTreeMap::new();
    for (place, _) in dirty {
        places.entry(place).or_insert_with(|| {
            let mut slices: BTreeMap<String, Vec<Arc<Stored>>> = BTreeMap::new();
            for slice in api.store().list(SLICES, place).objects {
                if let Some(service) = label(&slice.value, SERVICE_NAME) {
                    slices.entry(service.to_owned()).or_default().push(slice);
                }
            }
            Place { pods: api.store().list(PODS, place).objects, slices }
        });
    }
    let mut work: Vec<BoxFuture<'_, bool>> = Vec::with_capacity(dirty.len());
    for service in dirty {
        let (place, resource, zones) = (&places[service.0.as_str()], &resource, &zones);
        work.push(Box::pin(async move {
            let result = reconcile(api, resource, zones, place, service).await;
            result.inspect_err(|error| tracing::debug!(?service, %error, "endpoint slices")).is_err()
        }));
    }
    let results: Vec<bool> = futures::stream::iter(work).buffered(AT_ONCE).collect().await;
    dirty.iter().zip(results).filter(|(_, failed)| *failed).map(|(service, _)| service.clone()).collect()
}

async fn reconcile(
    api: &Api,
    resource: &Resource,
    zones: &Zones,
    place: &Place,
    service: &Name,
) -> Result<(), ApiError> {
    // Slices of a service that is gone are the garbage collector's business.
    let Some(stored) = api.store().get(&Key::new(SERVICES, &service.0, &service.1)) else { return Ok(()) };
    let object = &stored.value;
    if !has_slices(object) {
        return Ok(());
    }
    let selector = LabelSelector::from_map(&object["spec"]["selector"]);
    let pods: Vec<&Value> = place.pods.iter().map(|p| &p.value).filter(|p| selector.matches(p)).collect();
    let present: Vec<&Value> = place
        .slices
        .get(&service.1)
        .into_iter()
        .flatten()
        .map(|s| &s.value)
        .filter(|s| is_controlled_by(s, object) && !is_terminating(s))
        .collect();
    let labels = labels(object);
    let plan = slices::plan(&wanted(object, &pods, zones), &present, &labels);
    for (own, change) in plan.update {
        let edit = |old: &Value| {
            let mut new = old.clone();
            set(&mut new, &["metadata"], "labels", labels.clone());
            set(&mut new, &[], "ports", change.ports.clone());
            set(&mut new, &[], "endpoints", change.endpoints.clone());
            Some(new)
        };
        unless_lost(api.edit(resource, (&service.0, &own), "", edit).await)?;
    }
    for slice in plan.create {
        let object = json!({
            "metadata": {
                "generateName": format!("{}-", service.1), "namespace": service.0, "labels": labels,
                "ownerReferences": reference(object),
            },
            "addressType": slice.family, "ports": slice.ports, "endpoints": slice.endpoints,
        });
        unless_lost(api.create(resource, "v1", &service.0, object, WriteOptions::default()).await)?;
    }
    for own in plan.delete {
        unless_lost(api.delete(resource, (&service.0, &own), &DeleteOptions::default()).await)?;
    }
    Ok(())
}

fn labels(service: &Value) -> Value {
    let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_else(Map::new);
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), name(service).into());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.into());
    if text(service, &["spec", "clusterIP"]) == "None" {
        labels.insert(HEADLESS.to_owned(), "".into());
    }
    labels.into()
}

/// Where the nodes are.
#[derive(Debug, Default)]
struct Zones {
    /// Of each node that has one.
    of: BTreeMap<String, String>,
    /// Those with a node that is ready.
    ready: BTreeSet<String>,
    /// Every ready node has a zone.
    all: bool,
}

impl Zones {
    fn new(api: &Api) -> Self {
        let mut zones = Self { all: true, ..Self::default() };
        for node in &api.store().list(NODES, "").objects {
            let zone = label(&node.value, ZONE).filter(|z| !z.is_empty());
            if let Some(zone) = zone {
                zones.of.insert(name(&node.value).to_owned(), zone.to_owned());
            }
            if is_ready(&node.value) {
                zones.all &= zone.is_some();
                zones.ready.extend(zone.map(str::to_owned));
            }
        }
        zones
    }
}

/// What a service's slices should hold together: one entry per family and per understanding of its ports.
fn wanted(service: &Value, pods: &[&Value], zones: &Zones) -> Vec<slices::Wanted> {
    let mut all = Vec::new();
    for family in items(service, &["spec", "ipFamilies"]).iter().filter_map(Value::as_str) {
        // Pods that understand a named port differently go to different slices.
        let mut groups: BTreeMap<String, slices::Wanted> = BTreeMap::new();
        for pod in pods {
            let Some(endpoint) = endpoint(service, pod, family, zones) else { continue };
            let ports = ports(service, Some(pod));
            let group = groups.entry(ports.to_string());
            let empty = || slices::Wanted { family: family.to_owned(), ports, endpoints: Vec::new() };
            group.or_insert_with(empty).endpoints.push(endpoint);
        }
        if groups.is_empty() {
            let ports = ports(service, None);
            let empty = slices::Wanted { family: family.to_owned(), ports, endpoints: Vec::new() };
            groups.insert(String::new(), empty);
        }
        hints::give(service, zones, groups.values_mut().flat_map(|g| &mut g.endpoints).collect());
        all.extend(groups.into_values());
    }
    all
}

fn endpoint(service: &Value, pod: &Value, family: &str, zones: &Zones) -> Option<Value> {
    if matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        return None;
    }
    let address = items(pod, &["status", "podIPs"])
        .iter()
        .map(|a| text(a, &["ip"]))
        .find(|a| a.parse::<IpAddr>().is_ok_and(|a| a.is_ipv4() == (family == "IPv4")))?;
    let published = service["spec"]["publishNotReadyAddresses"] == Value::Bool(true);
    let (serving, terminating) = (is_ready(pod), is_terminating(pod));
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {
            "ready": published || (serving && !terminating), "serving": serving, "terminating": terminating,
        },
        "targetRef": {"kind": "Pod", "name": name(pod), "namespace": namespace(pod), "uid": uid(pod)},
    });
    let node = text(pod, &["spec", "nodeName"]);
    if !node.is_empty() {
        endpoint["nodeName"] = node.into();
    }
    if let Some(zone) = zones.of.get(node) {
        endpoint["zone"] = zone.as_str().into();
    }
    let hostname = text(pod, &["spec", "hostname"]);
    if !hostname.is_empty() && text(pod, &["spec", "subdomain"]) == name(service) {
        endpoint["hostname"] = hostname.into();
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

/// The port of that name of a container, or of an init container that goes on running beside them.
fn named_port(pod: &Value, named: &str, protocol: &str) -> Option<i64> {
    let beside = items(pod, &["spec", "initContainers"]).iter().filter(|c| text(c, &["restartPolicy"]) == "Always");
    items(pod, &["spec", "containers"])
        .iter()
        .chain(beside)
        .flat_map(|c| items(c, &["ports"]))
        .find(|p| text(p, &["name"]) == named && text(p, &["protocol"]) == protocol)
        .and_then(|p| p["containerPort"].as_i64())
}

#[cfg(test)]
mod tests;
