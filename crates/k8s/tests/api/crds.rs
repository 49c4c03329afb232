//! The definitions agree with the types.

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
fn the_definitions_are_structural() {
    fn structural(schema: &Value, path: &str) {
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
        assert_eq!(manifest["metadata"]["name"], format!("{}.cilium.io", names["plural"].as_str().expect("text")));
        assert_eq!(file, format!("{}.yaml", names["plural"].as_str().expect("text")));
        structural(&manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"], file);
    }
}

#[tokio::test]
async fn missing_definitions_are_created_and_others_stay() {
    const CRDS: &str = "apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let fake = Fake::new();
    fake.put(CRDS, json!({"metadata": {"name": "ciliumnodes.cilium.io"}, "spec": "somebody else's"}));
    crd::install_missing(&fake.client()).await.expect("installed");
    assert_eq!(fake.all(CRDS).len(), 4);
    assert_eq!(fake.get(CRDS, "", "ciliumnodes.cilium.io").expect("there")["spec"], "somebody else's");
    assert_eq!(fake.writes().len(), 3);
}
