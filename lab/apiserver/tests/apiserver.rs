//! The API server over real connections: what is stored, refused, watched, and kept over a restart.

use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_lab_apiserver::api::{Api, Settings};
use weft_lab_apiserver::pki::Pki;
use weft_lab_apiserver::store::Store;
use weft_lab_apiserver::{Config, serve};
use weft_lab_client::kubeconfig::Access;
use weft_lab_client::{Client, ClientError};

struct Server {
    client: Client,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    controllers: tokio::task::JoinHandle<()>,
}

/// The store of a server that just ended closes when its writer and its last connection are gone.
async fn open(file: &Path) -> Store {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match Store::open(file) {
            Ok(store) => return store,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{}: {error:?}", file.display()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Server {
    async fn start(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("https://{}", listener.local_addr().unwrap());
        let pki = Pki::create_or_load(&dir.join("pki"), &["127.0.0.1".to_owned()]).unwrap();
        pki.write_kubeconfig(&dir.join("kubeconfig"), "test", &server, "admin").unwrap();
        let store = open(&dir.join("objects.redb")).await;
        let service_cidrs = ["10.96.0.0/16", "fd96::/108"].iter().map(|c| c.parse().unwrap()).collect();
        let api = Api::new(store, Settings { service_cidrs, ..Settings::default() });
        let stop = CancellationToken::new();
        let controllers = tokio::spawn(weft_lab_apiserver::controller::run(api.clone(), stop.clone()));
        let config = Config { api, listeners: vec![listener], pki, run_dir: dir.join("run") };
        let serving = serve(config, stop.clone());
        let task = tokio::spawn(async move { serving.await.unwrap() });
        let client = Client::new(Access::read(&dir.join("kubeconfig")).unwrap()).unwrap();
        let server = Self { client, stop, task, controllers };
        server.until("/api/v1/namespaces/default", |_| true).await;
        server
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        self.controllers.await.unwrap();
    }

    /// Waits until the object is there and as wanted.
    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.client.get(path).await;
            match found {
                Ok(object) if wanted(&object) => return object,
                other => assert!(tokio::time::Instant::now() < deadline, "{path}: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn refused(&self, path: &str, object: Value) -> (u16, String, String) {
        refusal(self.client.create(path, &object).await)
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String, String) {
    match result {
        Err(ClientError::Refused { code, reason, message }) => (code, reason, message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_conflict_change_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1"}});
    let made = server.client.create(MAPS, &map).await.unwrap();
    assert_eq!(server.refused(MAPS, map).await.1, "AlreadyExists");
    let path = format!("{MAPS}/m");
    let merged = server.client.merge(&path, &json!({"data": {"b": "2"}})).await.unwrap();
    assert_eq!(merged["data"], json!({"a": "1", "b": "2"}));
    // The object as it was is not the present one.
    assert_eq!(refusal(server.client.replace(&path, &made).await).1, "Conflict");
    let old = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    server.end().await;

    let server = Server::start(dir.path()).await;
    let kept = server.client.get(&path).await.unwrap();
    assert_eq!(kept["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(kept["data"], merged["data"]);
    // A revision of the former life is expired, and says so as watchers expect it.
    let mut watch = server.client.watch(&format!("{MAPS}?watch=1&resourceVersion={old}")).await.unwrap();
    let (kind, status) = watch.next().await.unwrap().unwrap();
    assert_eq!((kind.as_str(), status["code"].as_i64()), ("ERROR", Some(410)));
    server.client.delete(&path, None).await.unwrap();
    assert_eq!(refusal(server.client.get(&path).await).0, 404);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_objects_are_refused_by_their_field() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let policy = |spec: Value| json!({"metadata": {"name": "p"}, "spec": spec});
    let port = |port: Value| policy(json!({"podSelector": {}, "ingress": [{"ports": [port]}]}));
    let block = |block: Value| policy(json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": block}]}]}));
    for (object, code, field) in [
        (port(json!({"port": 80, "endPort": 70})), 422, "spec.ingress[0].ports[0].endPort"),
        (port(json!({"port": 0})), 422, "spec.ingress[0].ports[0].port"),
        (port(json!({"port": 1.5})), 400, "spec.ingress[0].ports[0].port"),
        (port(json!({"protocol": "ICMP"})), 422, "spec.ingress[0].ports[0].protocol"),
        (block(json!({"cidr": "10.0.0.0/33"})), 422, "spec.egress[0].to[0].ipBlock.cidr"),
        (block(json!({"cidr": "fd00::/64", "except": ["fd01::/80"]})), 422, "spec.egress[0].to[0].ipBlock.except[0]"),
        (policy(json!({"podSelector": {"matchLabels": {"a": 1}}})), 400, "spec.podSelector.matchLabels[a]"),
        (policy(json!({"podSelector": {}, "policyTypes": ["Up"]})), 422, "spec.policyTypes[0]"),
        (policy(json!({"podSelector": {}, "ingress": [{"from": [{}]}]})), 422, "spec.ingress[0].from[0]"),
    ] {
        let (found, _, message) = server.refused(POLICIES, object).await;
        assert_eq!(found, code, "{message}");
        assert!(message.contains(field), "{message}");
    }
    let strict = format!("{POLICIES}?fieldValidation=Strict");
    let (code, _, message) = server.refused(&strict, policy(json!({"podSelector": {}, "colour": 1}))).await;
    assert_eq!(code, 400);
    assert!(message.contains("unknown field \"spec.colour\""), "{message}");
    assert_eq!(server.refused("/api/v1/namespaces/none/configmaps", json!({"metadata": {"name": "m"}})).await.0, 404);
    let (apply, path) = (json!({"metadata": {"name": "m"}}), format!("{MAPS}/m"));
    let media_type = "application/apply-patch+yaml";
    let applied = server.client.request(http::Method::PATCH, &path, media_type, Some(&apply));
    assert_eq!(refusal(applied.await).0, 415);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selections_tell_what_enters_and_what_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut watch = server.client.watch(&format!("{MAPS}?watch=1&labelSelector=a%3Db")).await.unwrap();
    let path = format!("{MAPS}/m");
    server.client.create(MAPS, &json!({"metadata": {"name": "m"}})).await.unwrap();
    for value in ["b", "b", "c"] {
        let change = json!({"metadata": {"labels": {"a": value}}, "data": {value: value}});
        server.client.merge(&path, &change).await.unwrap();
        server.client.merge(&path, &json!({"data": {"x": value}})).await.unwrap();
    }
    let mut kinds = Vec::new();
    while kinds.last().map(String::as_str) != Some("DELETED") {
        kinds.push(watch.next().await.unwrap().unwrap().0);
    }
    assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_becomes_pods_and_takes_them_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    for node in ["n1", "n2"] {
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let node = json!({"metadata": {"name": node}, "status": status});
        server.client.create("/api/v1/nodes", &node).await.unwrap();
    }
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 4,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    server.client.create(path, &deployment).await.unwrap();
    let bound = |list: &Value, count: usize| {
        let pods = list["items"].as_array().unwrap();
        pods.len() == count && pods.iter().all(|p| p["spec"]["nodeName"].is_string())
    };
    let pods = "/api/v1/namespaces/default/pods";
    server.until(pods, |l| bound(l, 4)).await;
    for node in ["n1", "n2"] {
        let own = server.client.get(&format!("{pods}?fieldSelector=spec.nodeName%3D{node}")).await.unwrap();
        assert_eq!(own["items"].as_array().unwrap().len(), 2);
    }
    server.client.merge(&format!("{path}/web/scale"), &json!({"spec": {"replicas": 6}})).await.unwrap();
    server.until(pods, |l| bound(l, 6)).await;
    server.client.delete(&format!("{path}/web"), None).await.unwrap();
    // A bound pod waits for its node to confirm.
    let gone =
        |l: &Value| l["items"].as_array().unwrap().iter().all(|p| p["metadata"]["deletionTimestamp"].is_string());
    let list = server.until(pods, gone).await;
    for pod in list["items"].as_array().unwrap() {
        let confirm = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}});
        let name = pod["metadata"]["name"].as_str().unwrap();
        server.client.delete(&format!("{pods}/{name}"), Some(&confirm)).await.unwrap();
    }
    server.until(pods, |l| l["items"].as_array().unwrap().is_empty()).await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_kinds_are_judged_pruned_and_given_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
        "size": {"type": "integer", "minimum": 1}, "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"}}}}});
    let definition = json!({"metadata": {"name": "widgets.example.org"}, "spec": {"group": "example.org",
        "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    server.client.create(definitions, &definition).await.unwrap();
    let widgets = "/apis/example.org/v1/namespaces/default/widgets";
    let widget = |spec: Value| json!({"metadata": {"name": "w"}, "spec": spec});
    for (spec, field) in [
        (json!({}), "spec.size"),
        (json!({"size": 0}), "spec.size"),
        (json!({"size": "x"}), "spec.size"),
        (json!({"size": 1, "colour": "green"}), "spec.colour"),
    ] {
        let (code, _, message) = server.refused(widgets, widget(spec)).await;
        assert_eq!(code, 422, "{message}");
        assert!(message.contains(field), "{message}");
    }
    let made = server.client.create(widgets, &widget(json!({"size": 2, "weight": 3}))).await.unwrap();
    assert_eq!(made["spec"], json!({"size": 2, "colour": "red"}));
    server.client.delete(&format!("{definitions}/widgets.example.org"), None).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while server.client.get(widgets).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the definition is still served");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_of_the_custom_kinds_are_served_with_their_status() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    for text in [
        include_str!("../../../deploy/crds/ciliumnetworkpolicies.yaml"),
        include_str!("../../../deploy/crds/ciliumclusterwidenetworkpolicies.yaml"),
        include_str!("../../../deploy/crds/ciliumcidrgroups.yaml"),
        include_str!("../../../deploy/crds/clusternetworkpolicies.yaml"),
    ] {
        let definition: Value = serde_saphyr::from_str(text).unwrap();
        server.client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.unwrap();
    }
    let policies = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies";
    let policy = |rule: Value| {
        json!({"metadata": {"name": "p"}, "spec": {"endpointSelector": {}, "egress": [rule]},
            "status": {"conditions": [{"type": "Valid", "status": "True"}]}})
    };
    let ports = |port: Value| policy(json!({"toPorts": [{"ports": [port]}]}));
    for (object, field) in [
        (ports(json!({"port": 80})), "spec.egress[0].toPorts[0].ports[0].port"),
        (ports(json!({"port": "80", "protocol": "tcp"})), "spec.egress[0].toPorts[0].ports[0].protocol"),
        (ports(json!({"port": "80", "endPort": 65536})), "spec.egress[0].toPorts[0].ports[0].endPort"),
        (policy(json!({"toEntities": ["nobody"]})), "spec.egress[0].toEntities[0]"),
        (policy(json!({"icmps": [{"fields": vec![json!({"type": 8}); 41]}]})), "spec.egress[0].icmps[0].fields"),
        (policy(json!({"icmps": [{"fields": [{"family": "IPv4"}]}]})), "spec.egress[0].icmps[0].fields[0].type"),
    ] {
        let (code, _, message) = server.refused(policies, object).await;
        assert_eq!(code, 422, "{message}");
        assert!(message.contains(field), "{message}");
    }
    let slip = policy(json!({"toEndpoint": []}));
    let (code, _, message) = server.refused(&format!("{policies}?fieldValidation=Strict"), slip).await;
    assert!(code == 400 && message.contains("spec.egress[0].toEndpoint"), "{code} {message}");
    // What is not supported yet is kept as it was written, for the agents to refuse and say so.
    let rule = json!({"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}],
        "rules": {"http": [{"path": "/a", "headers": ["X: y"]}]}}], "toFQDNs": [{"matchName": "a.example"}]});
    let made = server.client.create(policies, &policy(rule.clone())).await.unwrap();
    assert_eq!(made["spec"]["egress"][0], rule);
    assert!(made["status"].is_null(), "the status is a subresource");
    let status = json!({"status": {"conditions": [{"type": "Valid", "status": "False", "message": "why"}]}});
    let told = server.client.merge(&format!("{policies}/p/status"), &status).await.unwrap();
    assert_eq!(told["status"]["conditions"][0]["message"], "why");
    assert_eq!(told["metadata"]["generation"], made["metadata"]["generation"]);

    let group = json!({"metadata": {"name": "g"}, "spec": {"externalCIDRs": ["10.0.0.0/8"]}});
    server.client.create("/apis/cilium.io/v2alpha1/ciliumcidrgroups", &group).await.unwrap();
    let read = server.client.get("/apis/cilium.io/v2/ciliumcidrgroups/g").await.unwrap();
    assert_eq!(read["apiVersion"], "cilium.io/v2");
    let tiered = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
    let object = json!({"metadata": {"name": "t"}, "spec": {"tier": "Admin", "priority": 1001,
        "subject": {"namespaces": {}}, "egress": [{"action": "Deny", "to": [{"namespaces": {}, "pods": {}}]}]}});
    let (code, _, message) = server.refused(tiered, object).await;
    assert!(code == 422 && message.contains("spec.priority") && message.contains("spec.egress[0].to[0]"), "{message}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_of_services_are_served_and_what_is_immutable_stays() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    for text in [
        include_str!("../../../deploy/crds/ciliumlocalredirectpolicies.yaml"),
        include_str!("../../../deploy/crds/ciliumloadbalancerippools.yaml"),
    ] {
        let definition: Value = serde_saphyr::from_str(text).unwrap();
        server.client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.unwrap();
    }
    let redirects = "/apis/cilium.io/v2/namespaces/default/ciliumlocalredirectpolicies";
    let ports = |port: &str| json!([{"port": port, "protocol": "UDP"}]);
    let policy = |frontend: Value| {
        json!({"metadata": {"name": "l"}, "spec": {"redirectFrontend": frontend, "redirectBackend":
            {"localEndpointSelector": {}, "toPorts": ports("53")}, "description": "a"}})
    };
    let address = |ip: &str| json!({"addressMatcher": {"ip": ip, "toPorts": ports("53")}});
    let mut both = address("169.254.20.10");
    both["serviceMatcher"] = json!({"serviceName": "s", "namespace": "default"});
    for (frontend, field) in [
        (both, "spec.redirectFrontend"),
        (json!({}), "spec.redirectFrontend"),
        (json!({"addressMatcher": {"ip": "fd00::1", "toPorts": ports("65536")}}), "addressMatcher.toPorts[0].port"),
    ] {
        let (code, _, message) = server.refused(redirects, policy(frontend)).await;
        assert!(code == 422 && message.contains(field), "{code} {message}");
    }
    server.client.create(redirects, &policy(address("169.254.20.10"))).await.unwrap();
    let path = format!("{redirects}/l");
    let change = json!({"spec": {"redirectFrontend": {"addressMatcher": {"ip": "fd00::1"}}}});
    let (code, _, message) = refusal(server.client.merge(&path, &change).await);
    assert!(code == 422 && message.contains("redirectFrontend is immutable"), "{code} {message}");
    let told = server.client.merge(&path, &json!({"spec": {"description": "b"}})).await.unwrap();
    assert_eq!((&told["spec"]["description"], &told["spec"]["skipRedirectFromBackend"]), (&json!("b"), &json!(false)));

    let pools = "/apis/cilium.io/v2/ciliumloadbalancerippools";
    let pool = json!({"metadata": {"name": "p"}, "spec": {"blocks": [{"cidr": "192.0.2.0/24"}]}});
    server.client.create(pools, &pool).await.unwrap();
    let conditions = json!({"status": {"conditions": [{"type": "cilium.io/PoolConflict", "status": "False", "reason":
        "resolved", "message": "", "lastTransitionTime": "2025-01-01T00:00:00Z"}]}});
    let told = server.client.merge(&format!("{pools}/p/status"), &conditions).await.unwrap();
    assert_eq!(told["status"], conditions["status"]);
    // What the operator writes into a Service.
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    let made = server.client.create(services, &service).await.unwrap();
    let status = json!({"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "status": {"loadBalancer":
        {"ingress": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]}, "conditions": [{"type":
        "cilium.io/IPAMRequestSatisfied", "status": "True", "reason": "satisfied", "message": "",
        "lastTransitionTime": "2025-01-01T00:00:00Z"}]}});
    let told = server.client.merge(&format!("{services}/s/status"), &status).await.unwrap();
    assert_eq!(told["status"]["conditions"], status["status"]["conditions"]);
    assert_eq!(told["status"]["loadBalancer"]["ingress"][1]["ip"], "2001:db8::1");
    assert_eq!(refusal(server.client.merge(&format!("{services}/s/status"), &status).await).1, "Conflict");
    server.end().await;
}
