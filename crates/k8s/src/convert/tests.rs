//! Tables of what words mean, one file for a kind, and properties that hold for all.

mod cilium;
mod cluster_policy;
mod load_balancer;
mod local_redirect;
mod network_policy;
mod objects;
mod services;

use super::object as object_of;
use super::*;
use crate::wire::{
    CiliumEndpointSlice, CiliumIdentity, Metadata, WireCidrGroup, WireEndpointSlice, WireNode, WirePod, WirePolicy,
    WireService,
};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use weft_model::intent::Covers;
use weft_model::intent::{Change, PolicyKind, Spec};
use weft_model::selector::Requirement;

const EVERYTHING: Settings = Settings { cidr_covers: Covers::ALL, ..Settings::EVERYTHING };

fn read(kind: PolicyKind, object: &Value, settings: Settings) -> Result<Vec<Spec>, Problems> {
    let mut wire: WirePolicy = serde_json::from_value(object.clone()).expect("an object");
    wire.metadata.name = "p".to_owned();
    wire.metadata.namespace = "default".to_owned();
    wire.metadata.uid = "uid".to_owned();
    wire.metadata.resource_version = "7".to_owned();
    let read = policy(kind, &wire, settings)?;
    assert_eq!(read.name.kind, kind);
    assert_eq!(read.name.path(), if kind.is_namespaced() { "default/p" } else { "p" });
    assert_eq!((read.uid.as_str(), read.resource_version.as_str()), ("uid", "7"));
    Ok(read.specs)
}

fn good_specs(kind: PolicyKind, object: Value) -> Vec<Spec> {
    read(kind, &object, Settings::default()).unwrap_or_else(|problems| panic!("{object}: {problems}"))
}

fn bad_spec(kind: PolicyKind, object: Value) -> String {
    match read(kind, &object, Settings::default()) {
        Ok(specs) => panic!("{object} was taken for {specs:?}"),
        Err(problems) => problems.to_string(),
    }
}

fn values(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(ToString::to_string).collect()
}

fn is(key: &str, value: &str) -> Requirement {
    Requirement::In(key.to_owned(), values(&[value]))
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

#[test]
fn objects_as_people_write_them() {
    let policy = |change: fn(&mut Value)| {
        let mut object = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p"},
            "spec": {"endpointSelector": {}, "ingress": [{}]}, "status": {}});
        change(&mut object);
        object_of(&object, &Settings::default()).map_err(|problems| problems.to_string())
    };
    let Ok(Change::Policy(read)) = policy(|_| {}) else { panic!("not read") };
    assert_eq!(read.name.to_string(), "CiliumNetworkPolicy default/p");
    let Ok(Change::Policy(read)) = policy(|object| object["metadata"]["namespace"] = json!("n")) else { panic!() };
    assert_eq!(read.name.path(), "n/p");
    let group = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": "g"},
        "spec": {"externalCIDRs": ["10.0.0.0/8"]}});
    assert!(matches!(object_of(&group, &Settings::default()), Ok(Change::CidrGroup(_))));
    type Spoil = fn(&mut Value);
    let table: [(Spoil, &str); 8] = [
        (|o| o["kind"] = json!("CiliumNetworkPolcy"), "kind: \"CiliumNetworkPolcy\", expected one of: NetworkPolicy"),
        (|o| o["apiVersion"] = json!("cilium.io/v1"), "apiVersion: \"cilium.io/v1\", expected cilium.io/v2"),
        (|o| o["sepc"] = json!({}), "sepc: unknown field, expected one of: apiVersion, kind, metadata, spec, specs"),
        (|o| o["metadata"] = json!({}), "metadata.name: required"),
        (|o| o["metadata"] = json!([]), "metadata: expected an object, found a list"),
        (|o| o["metadata"]["labels"] = json!({"a": 1}), "metadata: "),
        (|o| o["spec"] = json!(null), "spec: required"),
        (|o| *o = json!(7), "kind: \"\", expected"),
    ];
    for (change, expected) in table {
        let problem = policy(change).expect_err(expected);
        assert!(problem.starts_with(expected), "{problem}");
    }
}

/// Any JSON, with a liking for the words of policies.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "podSelector",
        "endpointSelector",
        "nodeSelector",
        "fromEndpoints",
        "toCIDRSet",
        "fromEntities",
        "toServices",
        "k8sService",
        "icmps",
        "fields",
        "type",
        "family",
        "ingressDeny",
        "enableDefaultDeny",
        "log",
        "value",
        "rules",
        "http",
        "authentication",
        "mode",
        "fromNodes",
        "toFQDNs",
        "subject",
        "namespaces",
        "pods",
        "networks",
        "tier",
        "priority",
        "protocols",
        "tcp",
        "destinationPort",
        "number",
        "range",
        "start",
        "end",
        "action",
        "Admin",
        "Accept",
        "IPv6",
        "EchoRequest",
        "k8s:app",
        "reserved:host",
        "0",
        "80",
        "externalCIDRs",
        "redirectFrontend",
        "redirectBackend",
        "addressMatcher",
        "serviceMatcher",
        "toPorts",
        "localEndpointSelector",
        "blocks",
        "start",
        "stop",
        "namespaceSelector",
        "ipBlock",
        "cidr",
        "except",
        "ports",
        "port",
        "endPort",
        "protocol",
        "from",
        "to",
        "ingress",
        "egress",
        "policyTypes",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "TCP",
        "Ingress",
        "Egress",
        "In",
        "Exists",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "::/0",
        "fd00::/200",
        "web",
        "é\u{0}",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u32..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(word.clone(), inner, 0..5).prop_map(|map| {
                Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_json_makes_it_panic(spec in any_json()) {
        for kind in PolicyKind::ALL {
            for settings in [Settings::default(), EVERYTHING] {
                let object = WirePolicy { spec: spec.clone(), specs: spec.clone(), ..WirePolicy::default() };
                let _ = policy(kind, &object, settings);
                let object = WirePolicy { spec: spec.clone(), ..WirePolicy::default() };
                let _ = policy(kind, &object, settings);
            }
        }
        for (kind, version) in PolicyKind::ALL.map(|kind| (kind.name(), api_version(kind))) {
            let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": spec});
            let _ = object_of(&object, &EVERYTHING);
        }
        let _ = object_of(&spec, &EVERYTHING);
        let object = WireCidrGroup { metadata: Metadata::default(), spec: spec.clone() };
        let _ = (cidr_group(object.clone()), local_redirect(object.clone()), ip_pool(object));
        let text = json!({"metadata": {"name": "x"}, "spec": spec, "status": spec, "endpoints": spec}).to_string();
        let _ = serde_json::from_str::<WirePod>(&text).map(pod);
        let _ = serde_json::from_str::<WireNode>(&text).map(|object| node(&object));
        let _ = serde_json::from_str::<CiliumEndpointSlice>(&text).map(slice);
        let _ = serde_json::from_str::<CiliumIdentity>(&text).map(identity);
        let _ = serde_json::from_str::<WireService>(&text).map(service);
        let _ = serde_json::from_str::<WireEndpointSlice>(&text).map(backends);
    }

    #[test]
    fn a_problem_always_names_a_field(spec in any_json()) {
        for kind in PolicyKind::ALL {
            let object = WirePolicy { spec: spec.clone(), ..WirePolicy::default() };
            for problem in policy(kind, &object, Settings::default()).err().into_iter().flatten() {
                prop_assert!(problem.field.starts_with("spec"));
                prop_assert!(!problem.problem.is_empty());
            }
        }
    }
}
