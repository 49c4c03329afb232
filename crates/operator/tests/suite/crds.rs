//! The definitions agree with the types. Those of policies and services are generated here:
//! `WEFT_WRITE_CRDS=1 cargo test -p weft-operator --test cluster generated` writes them anew.

mod generate;

use crate::fake::Fake;
use serde_json::{Value, json};
use weft_k8s::crd;
use weft_k8s::wire::{
    AddressPair, CiliumEndpointSlice, CiliumIdentity, CiliumNode, CiliumNodeAddress, CiliumNodeIpam, CiliumNodeSpec,
    CoreEndpoint, Metadata, Networking, WirePort,
};

fn schema(kind: &str) -> (Value, Value) {
    let all = crd::MANIFESTS.iter().map(|(file, text)| crd::parse(file, text).expect("YAML"));
    let manifest = all.into_iter().find(|crd| crd["spec"]["names"]["kind"] == kind).expect("a definition");
    let schema = manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    (manifest, schema)
}

/// Every field of the value is one of the schema's: nothing that we write is pruned.
fn known(schema: &Value, value: &Value, path: &str) {
    match value {
        Value::Object(map) if path != "metadata" => {
            for (name, value) in map {
                let inner = match &schema["properties"][name] {
                    Value::Null => &schema["additionalProperties"],
                    inner => inner,
                };
                assert!(inner.is_object(), "{path}.{name} is in no schema");
                known(inner, value, name);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| known(&schema["items"], item, path)),
        _ => {}
    }
}

fn fits(kind: &str, object: &Value) {
    let (manifest, schema) = schema(kind);
    let version = format!(
        "{}/{}",
        manifest["spec"]["group"].as_str().expect("text"),
        manifest["spec"]["versions"][0]["name"].as_str().expect("text")
    );
    assert_eq!(object["apiVersion"], version);
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(object).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{kind}: {errors:?}");
    known(&schema, object, "");
}

fn metadata(name: &str) -> Metadata {
    Metadata { name: name.to_owned(), ..Metadata::default() }
}

#[test]
fn what_we_write_fits_the_definitions_and_reads_back() {
    let identity = CiliumIdentity {
        api_version: "cilium.io/v2".to_owned(),
        kind: "CiliumIdentity".to_owned(),
        metadata: metadata("300"),
        security_labels: [("k8s:app".to_owned(), "a".to_owned())].into(),
    };
    fits("CiliumIdentity", &serde_json::to_value(&identity).expect("JSON"));
    let endpoint = CoreEndpoint {
        name: "a".to_owned(),
        id: 300,
        pod_uid: "u".to_owned(),
        networking: Networking {
            addressing: vec![AddressPair { ipv4: "10.0.0.1".to_owned(), ipv6: "fd00::1".to_owned() }],
            node: "172.31.0.11".to_owned(),
        },
        named_ports: vec![WirePort { name: "web".to_owned(), port: 65535, protocol: "TCP".to_owned() }],
    };
    let slice = CiliumEndpointSlice {
        api_version: "cilium.io/v2alpha1".to_owned(),
        kind: "CiliumEndpointSlice".to_owned(),
        metadata: metadata("s"),
        namespace: "n".to_owned(),
        endpoints: vec![endpoint],
    };
    let json = serde_json::to_value(&slice).expect("JSON");
    fits("CiliumEndpointSlice", &json);
    let back: CiliumEndpointSlice = serde_json::from_value(json).expect("a slice");
    assert_eq!(back.endpoints, slice.endpoints);
    let node = CiliumNode {
        api_version: "cilium.io/v2".to_owned(),
        kind: "CiliumNode".to_owned(),
        metadata: metadata("node-1"),
        spec: CiliumNodeSpec {
            addresses: vec![CiliumNodeAddress { kind: "InternalIP".to_owned(), ip: "172.31.0.11".to_owned() }],
            ipam: CiliumNodeIpam { pod_cidrs: vec!["10.244.0.0/24".to_owned()] },
            bootid: Some("b".to_owned()),
        },
    };
    let json = serde_json::to_value(&node).expect("JSON");
    fits("CiliumNode", &json);
    let back: CiliumNode = serde_json::from_value(json).expect("a node");
    assert_eq!(back.spec, node.spec);
    // Kinds that only others write.
    fits(
        "CiliumEndpoint",
        &json!({"apiVersion": "cilium.io/v2", "kind": "CiliumEndpoint", "metadata": {"name": "a"},
        "status": {"id": 7, "state": "ready", "identity": {"id": 300, "labels": ["k8s:app=a"]},
            "networking": {"addressing": [{"ipv4": "10.0.0.1"}], "node": "172.31.0.11"}}}),
    );
}

#[test]
fn the_definitions_are_as_generated() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");
    let write = std::env::var_os("WEFT_WRITE_CRDS").is_some();
    for (file, text) in generate::manifests() {
        if write {
            std::fs::write(format!("{dir}/{file}"), &text).expect("written");
        }
        let there = std::fs::read_to_string(format!("{dir}/{file}")).unwrap_or_default();
        assert!(there == text, "deploy/crds/{file} is not as generated: run with WEFT_WRITE_CRDS=1");
    }
}

#[test]
fn policies_that_are_read_fit_the_definitions() {
    let selector = json!({"matchLabels": {"app": "a"}, "matchExpressions": [
        {"key": "k8s:tier", "operator": "In", "values": ["a", "b"]}, {"key": "x", "operator": "Exists"}]});
    let spec = json!({
        "endpointSelector": selector,
        "ingress": [{"fromEndpoints": [selector], "toPorts": [{"ports": [{"port": "80", "endPort": 90, "protocol": "TCP"}]}]},
            {"fromEntities": ["world", "kube-apiserver"], "icmps": [{"fields": [{"type": 8}, {"type": "EchoRequest",
                "family": "IPv6"}]}]}, {"fromNodes": [selector]}, {}],
        "ingressDeny": [{"fromCIDR": ["10.0.0.0/8"]}, {"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]},
            {"cidrGroupRef": "g"}, {"cidrGroupSelector": selector}]}],
        "egress": [{"toServices": [{"k8sService": {"serviceName": "s", "namespace": "n"}},
            {"k8sServiceSelector": {"selector": selector, "namespace": "n"}}], "authentication": {"mode": "disabled"}}],
        "egressDeny": [{"toNodes": [selector]}, {"toEndpoints": []}, {"toCIDR": ["::/0"]}, {"toEntities": ["all"]}],
        "enableDefaultDeny": {"ingress": true, "egress": false},
        "labels": [{"key": "a", "value": "b", "source": "c"}],
        "description": "d",
        "log": {"value": "v"},
    });
    for kind in ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"] {
        let object = json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": "p"}, "spec": spec,
            "specs": [spec], "status": {"conditions": [{"type": "Valid", "status": "True"}]}});
        fits(kind, &object);
        weft_k8s::convert::object(&object, &weft_k8s::convert::Settings::EVERYTHING).expect("usable");
    }
    let pods = json!({"podSelector": selector, "namespaceSelector": selector});
    let object = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "p"}, "spec": {"tier": "Admin", "priority": 0, "subject": {"pods": pods},
        "ingress": [{"name": "a", "action": "Pass", "from": [{"namespaces": selector}, {"pods": pods}],
            "protocols": [{"tcp": {"destinationPort": {"number": 80}}}, {"destinationNamedPort": "web"}]}],
        "egress": [{"action": "Accept", "to": [{"nodes": selector}, {"networks": ["10.0.0.0/8"]}],
            "protocols": [{"udp": {"destinationPort": {"range": {"start": 1, "end": 2}}}}]}]}});
    fits("ClusterNetworkPolicy", &object);
    weft_k8s::convert::object(&object, &weft_k8s::convert::Settings::EVERYTHING).expect("usable");
    let object = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": "g"},
        "spec": {"externalCIDRs": ["10.0.0.0/8"]}});
    fits("CiliumCIDRGroup", &object);
}

#[test]
fn kinds_of_services_that_are_read_fit_the_definitions() {
    let read =
        |object: &Value| serde_json::from_value::<weft_k8s::wire::WireCustom>(object.clone()).expect("an object");
    let selector = json!({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]});
    let ports =
        json!([{"port": "53", "protocol": "UDP", "name": "dns"}, {"port": "53", "protocol": "TCP", "name": "dns-tcp"}]);
    for frontend in [
        json!({"addressMatcher": {"ip": "169.254.20.10", "toPorts": ports}}),
        json!({"serviceMatcher": {"serviceName": "s", "namespace": "n", "toPorts": ports}}),
    ] {
        let object = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumLocalRedirectPolicy", "metadata": {"name": "l",
            "namespace": "n"}, "spec": {"redirectFrontend": frontend, "redirectBackend": {"localEndpointSelector":
            selector, "toPorts": ports}, "skipRedirectFromBackend": true, "description": "d"}});
        fits("CiliumLocalRedirectPolicy", &object);
        weft_k8s::convert::local_redirect(read(&object)).expect("usable");
    }
    let conditions = json!([{"type": "cilium.io/PoolConflict", "status": "False", "reason": "resolved", "message": "",
        "lastTransitionTime": "2025-01-01T00:00:00Z", "observedGeneration": 1}]);
    let object = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumLoadBalancerIPPool", "metadata": {"name": "p"},
        "spec": {"serviceSelector": selector, "allowFirstLastIPs": "No", "disabled": false, "blocks": [
            {"cidr": "192.0.2.0/24"}, {"start": "2001:db8::1", "stop": "2001:db8::9"}, {"start": "198.51.100.1"}]},
        "status": {"conditions": conditions}});
    fits("CiliumLoadBalancerIPPool", &object);
    weft_k8s::convert::ip_pool(read(&object)).expect("usable");
}

#[test]
fn the_definitions_are_structural() {
    fn structural(schema: &Value, path: &str) {
        if schema["x-kubernetes-int-or-string"] == true {
            return;
        }
        assert!(schema["type"].is_string(), "{path}: no type");
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            structural(inner, &format!("{path}.{name}"));
        }
        for part in ["items", "additionalProperties"] {
            if schema[part].is_object() {
                structural(&schema[part], &format!("{path}.{part}"));
            }
        }
        assert_eq!(schema["type"] == "array", schema["items"].is_object(), "{path}: a list says what is in it");
    }
    for (file, text) in crd::MANIFESTS {
        let manifest = crd::parse(file, text).expect("YAML");
        let names = &manifest["spec"]["names"];
        let (plural, group) =
            (names["plural"].as_str().expect("text"), manifest["spec"]["group"].as_str().expect("text"));
        assert_eq!(manifest["metadata"]["name"], format!("{plural}.{group}"));
        assert_eq!(file, format!("{plural}.yaml"));
        for version in manifest["spec"]["versions"].as_array().expect("versions") {
            structural(&version["schema"]["openAPIV3Schema"], file);
        }
    }
}

#[tokio::test]
async fn missing_definitions_are_created_and_others_stay() {
    const CRDS: &str = "apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let fake = Fake::new();
    fake.put(CRDS, json!({"metadata": {"name": "ciliumnodes.cilium.io"}, "spec": "somebody else's"}));
    crd::install_missing(&fake.client()).await.expect("installed");
    assert_eq!(fake.all(CRDS).len(), crd::MANIFESTS.len());
    assert_eq!(fake.get(CRDS, "", "ciliumnodes.cilium.io").expect("there")["spec"], "somebody else's");
    assert_eq!(fake.writes().len(), crd::MANIFESTS.len() - 1);
}
