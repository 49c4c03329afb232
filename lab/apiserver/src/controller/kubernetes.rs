//! The Service `kubernetes` in the namespace `default`: the API server as pods reach it.

use super::endpoints::SERVICE_NAME;
use super::unless_lost;
use crate::api::{Api, WriteOptions};
use crate::error::ApiError;
use crate::object::set;
use crate::store::Key;
use serde_json::{Value, json};
use std::net::SocketAddr;

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

pub(super) async fn pass(api: &Api) -> Result<(), ApiError> {
    let Some((address, endpoint)) = addresses(api) else { return Ok(()) };
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    if api.store().get(&Key::new("services", NAMESPACE, NAME)).is_none() {
        let service = json!({
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "type": "ClusterIP", "clusterIP": address.to_string(),
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": endpoint.port()}],
            },
        });
        let services = api.builtin("", "services");
        unless_lost(api.create(&services, "v1", NAMESPACE, service, WriteOptions::default()).await)?;
    }
    let slices = api.builtin("discovery.k8s.io", "endpointslices");
    let endpoints = json!([{"addresses": [endpoint.ip().to_string()], "conditions": {"ready": true}}]);
    let ports = json!([{"name": "https", "port": endpoint.port(), "protocol": "TCP"}]);
    let present = api.store().get(&Key::new("endpointslices.discovery.k8s.io", NAMESPACE, NAME));
    match present {
        None => {
            let slice = json!({
                "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {SERVICE_NAME: NAME}},
                "addressType": if endpoint.is_ipv4() { "IPv4" } else { "IPv6" },
                "endpoints": endpoints, "ports": ports,
            });
            unless_lost(api.create(&slices, "v1", NAMESPACE, slice, WriteOptions::default()).await)
        }
        Some(slice) if slice.value["endpoints"] == endpoints && slice.value["ports"] == ports => Ok(()),
        Some(_) => {
            let edit = |old: &Value| {
                let mut new = old.clone();
                set(&mut new, &[], "endpoints", endpoints.clone());
                set(&mut new, &[], "ports", ports.clone());
                Some(new)
            };
            unless_lost(api.edit(&slices, (NAMESPACE, NAME), "", edit).await)
        }
    }
}

/// The cluster address, the first of the first range, and what is behind it, of the same family.
fn addresses(api: &Api) -> Option<(std::net::IpAddr, SocketAddr)> {
    let settings = api.settings();
    let address = settings.service_address(0, 1)?;
    let endpoint = settings.endpoints.iter().find(|e| e.is_ipv4() == address.is_ipv4())?;
    Some((address, *endpoint))
}
