use super::*;
use crate::api::Settings;
use crate::api::{Api, DeleteOptions, WriteOptions};
use crate::store::Store;

/// An API server without a network.
struct Server {
    api: Api,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("db")).expect("a store");
        let service_cidrs = ["10.96.0.0/24", "fd96::/120"].map(|c| c.parse().expect("a prefix")).to_vec();
        let server = Self { api: Api::new(store, Settings { service_cidrs, ..Settings::default() }), _dir: dir };
        let place = json!({"metadata": {"name": "a"}});
        let resource = server.api.builtin("", "namespaces");
        server.api.create(&resource, "v1", "", place, WriteOptions::default()).await.expect("a namespace");
        server
    }

    async fn create(&self, name: &str, spec: Value) -> Result<Value, String> {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let resource = self.api.builtin("", "services");
        let made = self.api.create(&resource, "v1", "a", object, WriteOptions::default()).await;
        made.map(|w| w.object.value["spec"].clone()).map_err(|e| e.message)
    }

    async fn update(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<Value, String> {
        let resource = self.api.builtin("", "services");
        let mut object = self.api.get(&resource, "a", name).expect("is there").value.clone();
        change(&mut object);
        let options = WriteOptions::default();
        let written = self.api.update(&resource, "v1", ("a", name), "", object, options).await;
        written.map(|w| w.object.value["spec"].clone()).map_err(|e| e.message)
    }

    async fn delete(&self, name: &str) {
        let resource = self.api.builtin("", "services");
        self.api.delete(&resource, ("a", name), &DeleteOptions::default()).await.expect("is deleted");
    }
}

fn port(protocol: &str, node: i64) -> Value {
    let name = format!("{}-{node}", protocol.to_lowercase());
    let mut port = json!({"name": name, "port": 53, "protocol": protocol});
    if node > 0 {
        port["nodePort"] = node.into();
    }
    port
}

fn node_ports(spec: &Value) -> Vec<i64> {
    items(spec, &["ports"]).iter().filter_map(|p| p["nodePort"].as_i64()).collect()
}

#[tokio::test]
async fn addresses_are_given_out_kept_and_given_back() {
    let server = Server::new().await;
    let both = json!({"ipFamilyPolicy": "RequireDualStack", "ports": [port("TCP", 0)]});
    let first = server.create("one", both.clone()).await.expect("fine");
    // The first ten are for those who ask.
    assert_eq!(first["clusterIPs"], json!(["10.96.0.11", "fd96::b"]));
    let dns = json!({"clusterIPs": ["10.96.0.10", "fd96::a"], "clusterIP": "10.96.0.10", "ipFamilyPolicy": "RequireDualStack",
        "ports": [port("UDP", 0)]});
    assert_eq!(server.create("dns", dns.clone()).await.expect("fine")["clusterIPs"][1], "fd96::a");
    assert!(server.create("other", dns).await.is_err_and(|e| e.contains("already allocated")));
    let outside = json!({"clusterIP": "10.97.0.1", "ports": [port("TCP", 0)]});
    assert!(server.create("out", outside).await.is_err_and(|e| e.contains("not in the valid range")));
    let kept = server.update("one", |o| drop(o["spec"].as_object_mut().map(|s| s.remove("clusterIPs")))).await;
    assert_eq!(kept.expect("fine")["clusterIPs"], first["clusterIPs"]);
    let moved = server.update("one", |o| {
        o["spec"]["clusterIP"] = "10.96.0.20".into();
        o["spec"]["clusterIPs"][0] = "10.96.0.20".into();
    });
    assert!(moved.await.is_err_and(|e| e.contains("may not change once set")));
    server.delete("one").await;
    assert_eq!(server.create("two", both).await.expect("fine")["clusterIPs"], first["clusterIPs"]);
}

#[tokio::test]
async fn node_ports_are_given_out_by_protocol() {
    let server = Server::new().await;
    let spec = |ports: Value| json!({"type": "NodePort", "ports": ports});
    // One number for both protocols of a port.
    let dns = server.create("dns", spec(json!([port("TCP", 0), port("UDP", 0)]))).await.expect("fine");
    let numbers = node_ports(&dns);
    assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{numbers:?}");
    assert_eq!(dns["externalTrafficPolicy"], "Cluster");
    let wanted = spec(json!([port("TCP", 31_000)]));
    assert_eq!(node_ports(&server.create("a", wanted.clone()).await.expect("fine")), [31_000]);
    assert!(server.create("b", wanted).await.is_err_and(|e| e.contains("already allocated")));
    server.create("c", spec(json!([port("UDP", 31_000)]))).await.expect("another protocol is another port");
    let low = spec(json!([port("TCP", 80)]));
    assert!(server.create("d", low).await.is_err_and(|e| e.contains("not in the valid range: 30000-32767")));
    let twice = spec(json!([port("TCP", 31_001), {"name": "y", "port": 54, "protocol": "TCP", "nodePort": 31_001}]));
    assert!(server.create("e", twice).await.is_err_and(|e| e.contains("spec.ports[1].nodePort: Duplicate")));
    let inside = json!({"ports": [port("TCP", 31_002)]});
    assert!(server.create("f", inside).await.is_err_and(|e| e.contains("may not be used when `type` is 'ClusterIP'")));
}

#[tokio::test]
async fn a_change_of_type_takes_away_what_the_new_type_cannot_have() {
    let server = Server::new().await;
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "x/y",
        "loadBalancerSourceRanges": [], "ports": [port("TCP", 0)]});
    let balanced = server.create("s", spec).await.expect("fine");
    let check = balanced["healthCheckNodePort"].as_i64().expect("has one");
    assert!(!node_ports(&balanced).contains(&check) && (30_000..=32_767).contains(&check));
    assert_eq!(balanced["allocateLoadBalancerNodePorts"], true);
    let kept = server.update("s", |o| drop(o["spec"].as_object_mut().map(|s| s.remove("healthCheckNodePort")))).await;
    assert_eq!(kept.expect("fine")["healthCheckNodePort"], check);
    assert!(server.update("s", |o| o["spec"]["healthCheckNodePort"] = 31_999.into()).await.is_err());
    assert!(server.update("s", |o| o["spec"]["loadBalancerClass"] = "z".into()).await.is_err());
    let plain = server.update("s", |o| o["spec"]["type"] = "ClusterIP".into()).await.expect("fine");
    assert_eq!(node_ports(&plain), Vec::<i64>::new());
    for field in ["healthCheckNodePort", "externalTrafficPolicy", "loadBalancerClass", "allocateLoadBalancerNodePorts"]
    {
        assert_eq!(plain.get(field), None, "{field}");
    }
    assert_eq!(plain["clusterIPs"], balanced["clusterIPs"]);
    let named = server.update("s", |o| {
        o["spec"]["type"] = "ExternalName".into();
        o["spec"]["externalName"] = "example.org".into();
    });
    let named = named.await.expect("fine");
    assert_eq!((named.get("clusterIP"), named.get("clusterIPs"), named.get("ipFamilies")), (None, None, None));
    let back = server.update("s", |o| o["spec"]["type"] = "NodePort".into()).await.expect("fine");
    assert_eq!(node_ports(&back).len(), 1);
    assert_eq!(back["clusterIPs"], balanced["clusterIPs"]);
}

#[tokio::test]
async fn load_balancers_without_node_ports_and_affinity() {
    let server = Server::new().await;
    let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [port("TCP", 0)],
        "sessionAffinity": "ClientIP"});
    let made = server.create("s", spec).await.expect("fine");
    assert_eq!(node_ports(&made), Vec::<i64>::new());
    assert_eq!(made["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    assert_eq!(
        (&made["internalTrafficPolicy"], &made["externalTrafficPolicy"]),
        (&json!("Cluster"), &json!("Cluster"))
    );
    let off = server.update("s", |o| o["spec"]["sessionAffinity"] = "None".into()).await.expect("fine");
    assert_eq!(off.get("sessionAffinityConfig"), None);
}

#[test]
fn what_is_wrong_is_named() {
    let base = json!({"type": "ClusterIP", "sessionAffinity": "None", "ports": [{"port": 80, "protocol": "TCP"}]});
    for (field, value, expected) in [
        ("externalIPs", json!(["127.0.0.1"]), "spec.externalIPs[0]"),
        ("externalIPs", json!(["192.0.2.1", "x"]), "spec.externalIPs[1]"),
        ("trafficDistribution", json!("Near"), "spec.trafficDistribution"),
        ("loadBalancerClass", json!("x/y"), "spec.loadBalancerClass"),
        ("loadBalancerSourceRanges", json!(["10.0.0.0/8"]), "spec.loadBalancerSourceRanges"),
        ("externalTrafficPolicy", json!("Local"), "spec.externalTrafficPolicy"),
        ("healthCheckNodePort", json!(31_000), "spec.healthCheckNodePort"),
        ("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 5}}), "spec.sessionAffinityConfig"),
        ("clusterIPs", json!(["10.96.0.1"]), "spec.clusterIPs[0]"),
    ] {
        let mut object = json!({"spec": base});
        object["spec"][field] = value;
        let mut causes = Vec::new();
        judge(&object, None, &mut causes);
        assert!(causes.iter().any(|c| c.field == expected), "{field}: {causes:?}");
    }
    let mut fine = json!({"spec": base});
    fine["spec"]["externalIPs"] = json!(["192.0.2.1", "2001:db8::1"]);
    fine["spec"]["externalTrafficPolicy"] = "Local".into();
    let mut causes = Vec::new();
    judge(&fine, None, &mut causes);
    assert_eq!(causes.iter().map(|c| &c.field).collect::<Vec<_>>(), Vec::<&String>::new());
}
