//! Hints: the clients that each endpoint is meant for, by their zone or node.

use super::Zones;
use crate::object::{set, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What a service asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    /// Each endpoint for its own zone.
    Zone,
    /// Each endpoint for its own node, then for its own zone.
    Node,
    /// Each endpoint for its own zone, but only if no zone goes without.
    Balanced,
}

fn wish(service: &Value) -> Option<Wish> {
    let annotations = &service["metadata"]["annotations"];
    let mode = annotations["service.kubernetes.io/topology-mode"]
        .as_str()
        .or_else(|| annotations["service.kubernetes.io/topology-aware-hints"].as_str());
    // The annotation is older than the field, and the stronger of the two.
    if mode.is_some_and(|m| m.eq_ignore_ascii_case("auto")) {
        return Some(Wish::Balanced);
    }
    match text(service, &["spec", "trafficDistribution"]) {
        "PreferClose" | "PreferSameZone" => Some(Wish::Zone),
        "PreferSameNode" => Some(Wish::Node),
        _ => None,
    }
}

/// Gives hints to the ready endpoints of one family.
pub(super) fn give(service: &Value, zones: &Zones, endpoints: Vec<&mut Value>) {
    let Some(wish) = wish(service) else { return };
    let ready: Vec<&mut Value> = endpoints.into_iter().filter(|e| e["conditions"]["ready"] == true).collect();
    if wish == Wish::Balanced {
        let covered: BTreeSet<&str> = ready.iter().map(|e| text(e, &["zone"])).collect();
        let whole = zones.all && !covered.contains("") && zones.ready.iter().all(|z| covered.contains(z.as_str()));
        if !whole || zones.ready.len() < 2 {
            return;
        }
    }
    for endpoint in ready {
        let (zone, node) = (text(endpoint, &["zone"]).to_owned(), text(endpoint, &["nodeName"]).to_owned());
        if !zone.is_empty() {
            set(endpoint, &["hints"], "forZones", json!([{"name": zone}]));
        }
        if wish == Wish::Node && !node.is_empty() {
            set(endpoint, &["hints"], "forNodes", json!([{"name": node}]));
        }
    }
}
