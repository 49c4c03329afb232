//! Addresses for load balancers, and events on objects of services that cannot be used.
#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

use crate::fake::Fake;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_operator::config::Config;

const SERVICES: &str = "api/v1/services";
const EVENTS: &str = "api/v1/events";
const SLICES: &str = "apis/discovery.k8s.io/v1/endpointslices";
const POOLS: &str = "apis/cilium.io/v2/ciliumloadbalancerippools";
const REDIRECTS: &str = "apis/cilium.io/v2/ciliumlocalredirectpolicies";
const SATISFIED: &str = "cilium.io/IPAMRequestSatisfied";

struct Operator {
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Operator {
    fn start(fake: &Fake) -> Self {
        let args = ["weft-operator", "--lease-seconds", "3", "--external-ips-allowed", "198.51.100.0/24,2001:db8::/32"];
        let config = weft_settings::from_args::<Config>(args.map(Into::into)).expect("flags").check().expect("valid");
        let stop = CancellationToken::new();
        let task = tokio::spawn(weft_operator::run(config, fake.client(), stop.clone()));
        Self { stop, task: Some(task) }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        let task = self.task.take().expect("stopped once");
        tokio::time::timeout(Duration::from_secs(5), task).await.expect("ends").expect("no panic").expect("no error");
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn pool(name: &str, created: &str, cidrs: &[&str]) -> Value {
    let blocks: Vec<Value> = cidrs.iter().map(|cidr| json!({"cidr": cidr})).collect();
    json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": {"blocks": blocks}})
}

fn service(name: &str, created: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "creationTimestamp": created}, "spec": {"type": "LoadBalancer",
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"], "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}})
}

fn addresses(fake: &Fake, name: &str) -> Vec<String> {
    let object = fake.get(SERVICES, "n", name).expect("there");
    let ingress = object["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    ingress.iter().map(|row| row["ip"].as_str().expect("text").to_owned()).collect()
}

fn condition(object: &Value, kind: &str) -> Option<(String, String, String)> {
    let found = object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)?;
    assert!(found["lastTransitionTime"].is_string());
    let text = |name: &str| found[name].as_str().expect("text").to_owned();
    Some((text("status"), text("reason"), text("message")))
}

fn satisfied(fake: &Fake, name: &str) -> Option<(String, String)> {
    condition(&fake.get(SERVICES, "n", name)?, SATISFIED).map(|(status, reason, _)| (status, reason))
}

fn is(status: &str, reason: &str) -> Option<(String, String)> {
    Some((status.to_owned(), reason.to_owned()))
}

fn of_pool(fake: &Fake, name: &str, kind: &str) -> Option<(String, String)> {
    let found = condition(&fake.get(POOLS, "", name)?, &format!("cilium.io/{kind}"))?;
    Some((found.0, found.2))
}

#[tokio::test]
async fn services_get_addresses_keep_them_and_give_them_back() {
    let fake = Fake::new();
    fake.put(POOLS, pool("p", "1", &["192.0.2.0/31", "2001:db8::/127"]));
    fake.put(SERVICES, service("a", "2"));
    fake.put(SERVICES, service("b", "1"));
    let operator = Operator::start(&fake);
    fake.until("both have addresses", |fake| ["a", "b"].iter().all(|name| addresses(fake, name).len() == 2)).await;
    assert_eq!(addresses(&fake, "b"), ["192.0.2.0", "2001:db8::"], "the older is served first");
    assert_eq!(addresses(&fake, "a"), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(satisfied(&fake, "a"), is("True", "satisfied"));
    fake.put(SERVICES, service("c", "3"));
    fake.until("none is left", |fake| satisfied(fake, "c") == is("False", "out_of_ips")).await;
    let count = |kind: &str| of_pool(&fake, "p", kind).expect("there").1;
    assert_eq!((count("IPsTotal"), count("IPsAvailable"), count("IPsUsed")), ("4".into(), "0".into(), "4".into()));
    assert_eq!(of_pool(&fake, "p", "PoolConflict"), Some(("False".to_owned(), String::new())));
    operator.stop().await;
    // Another operator finds all as it should be, and writes nothing.
    let writes = |fake: &Fake| fake.writes().iter().filter(|write| write.ends_with("/status")).count();
    let before = writes(&fake);
    let operator = Operator::start(&fake);
    // A type that needs none, a Service that goes: both are given to those who wait.
    let mut plain = fake.get(SERVICES, "n", "b").expect("there");
    plain["spec"]["type"] = json!("ClusterIP");
    fake.put(SERVICES, plain);
    fake.until("the one that waited", |fake| addresses(fake, "c") == ["192.0.2.0", "2001:db8::"]).await;
    fake.until("no longer", |fake| satisfied(fake, "b").is_none() && addresses(fake, "b").is_empty()).await;
    assert_eq!(satisfied(&fake, "c"), is("True", "satisfied"));
    assert_eq!(writes(&fake) - before, 2, "{:?}", fake.writes());
    fake.remove(SERVICES, "n", "a");
    fake.until("free", |fake| of_pool(fake, "p", "IPsAvailable").is_some_and(|(_, count)| count == "2")).await;
    operator.stop().await;
}

#[tokio::test]
async fn a_pool_that_overlaps_says_so_and_others_go_on() {
    let fake = Fake::new();
    fake.put(POOLS, pool("old", "1", &["192.0.2.0/24", "2001:db8::/64"]));
    fake.put(SERVICES, service("a", "1"));
    let operator = Operator::start(&fake);
    fake.until("served", |fake| addresses(fake, "a").len() == 2).await;
    fake.put(POOLS, pool("new", "2", &["192.0.2.128/25", "198.51.100.0/24"]));
    let conflict = |fake: &Fake| of_pool(fake, "new", "PoolConflict").is_some_and(|(status, _)| status == "True");
    fake.until("in conflict", conflict).await;
    let (_, message) = of_pool(&fake, "new", "PoolConflict").expect("there");
    assert!(message.contains("overlaps 192.0.2.0-192.0.2.255 of the older pool old"), "{message}");
    assert_eq!(of_pool(&fake, "old", "PoolConflict").expect("there").0, "False");
    assert_eq!(addresses(&fake, "a"), ["192.0.2.0", "2001:db8::"]);
    // One that wants an address of the young pool.
    let mut wants = service("w", "3");
    wants["metadata"]["annotations"] = json!({"lbipam.cilium.io/ips": "198.51.100.7"});
    fake.put(SERVICES, wants);
    fake.until("refused", |fake| satisfied(fake, "w") == is("False", "no_pool")).await;
    fake.put(POOLS, pool("new", "2", &["198.51.100.0/24"]));
    fake.until("resolved", |fake| addresses(fake, "w") == ["198.51.100.7"]).await;
    // A pool that cannot be read takes nothing away.
    let mut bad = pool("new", "2", &[]);
    bad["spec"]["blocks"] = json!([{"cidr": "everything"}]);
    fake.put(POOLS, bad);
    fake.until("told", |fake| fake.all(EVENTS).iter().any(|event| event["reason"] == "InvalidIPPool")).await;
    assert_eq!(addresses(&fake, "w"), ["198.51.100.7"]);
    operator.stop().await;
    let operator = Operator::start(&fake);
    fake.put(SERVICES, service("b", "4"));
    fake.until("a new one is served", |fake| addresses(fake, "b").len() == 2).await;
    assert_eq!(addresses(&fake, "w"), ["198.51.100.7"], "not after a restart, either");
    fake.remove(POOLS, "", "new");
    fake.until("now it has none", |fake| addresses(fake, "w").is_empty()).await;
    operator.stop().await;
}

#[tokio::test]
async fn addresses_that_somebody_else_gave_are_left_alone() {
    let fake = Fake::new();
    let mut cloud = service("cloud", "1");
    cloud["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    let mut named = service("named", "1");
    named["status"] = json!({"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}});
    let mut class = service("class", "1");
    class["spec"]["loadBalancerClass"] = json!("example.com/lb");
    for object in [cloud, named, class] {
        fake.put(SERVICES, object);
    }
    let operator = Operator::start(&fake);
    fake.put(POOLS, pool("p", "1", &["192.0.2.0/24", "2001:db8::/64"]));
    fake.put(SERVICES, service("ours", "1"));
    fake.until("served", |fake| addresses(fake, "ours").len() == 2).await;
    for name in ["cloud", "named", "class"] {
        assert_eq!(satisfied(&fake, name), None, "{name}");
    }
    assert_eq!(addresses(&fake, "cloud"), ["203.0.113.7"]);
    operator.stop().await;
}

#[tokio::test]
async fn conflicts_and_refusals_are_overcome() {
    let fake = Fake::new();
    fake.put(POOLS, pool("p", "1", &["192.0.2.0/24", "2001:db8::/64"]));
    let operator = Operator::start(&fake);
    for n in 0..20 {
        let name = format!("s-{n}");
        fake.put(SERVICES, service(&name, "1"));
        if n % 5 == 0 {
            fake.refuse(&[500, 409, 503]);
        }
        // Others write at the same time.
        let mut touched = fake.get(SERVICES, "n", &name).expect("there");
        touched["metadata"]["labels"] = json!({"n": n.to_string()});
        fake.put(SERVICES, touched);
    }
    fake.hang_up();
    let all = |fake: &Fake| (0..20).map(|n| addresses(fake, &format!("s-{n}"))).collect::<Vec<_>>();
    fake.until("all are served", |fake| all(fake).iter().all(|addresses| addresses.len() == 2)).await;
    let distinct: std::collections::BTreeSet<String> = all(&fake).into_iter().flatten().collect();
    assert_eq!(distinct.len(), 40);
    operator.stop().await;
}

#[tokio::test]
async fn what_cannot_be_used_is_said_on_the_object_once() {
    let fake = Fake::new();
    let mut bad = service("bad", "1");
    bad["spec"]["externalIPs"] = json!(["127.0.0.1"]);
    fake.put(SERVICES, bad);
    fake.put(
        SLICES,
        json!({"metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::1"]}]}),
    );
    fake.put(SLICES, json!({"metadata": {"name": "odd", "namespace": "n"}, "endpoints": 7}));
    fake.put(REDIRECTS, json!({"metadata": {"name": "l", "namespace": "n"}, "spec": {"redirectFrontend": {}}}));
    let operator = Operator::start(&fake);
    let said = |fake: &Fake, reason: &str, kind: &str, name: &str| -> Option<String> {
        let events = fake.all(EVENTS);
        let mut of = events.iter().filter(|event| event["reason"] == reason && event["involvedObject"]["name"] == name);
        let event = of.next()?;
        assert!(of.next().is_none(), "said once");
        assert_eq!((&event["involvedObject"]["kind"], &event["type"]), (&json!(kind), &json!("Warning")));
        assert!(event["involvedObject"]["uid"].as_str().is_some_and(|uid| !uid.is_empty()));
        event["message"].as_str().map(str::to_owned)
    };
    for (reason, kind, name, text) in [
        ("InvalidService", "Service", "bad", "spec.externalIPs[0]: 127.0.0.1, expected"),
        ("InvalidEndpointSlice", "EndpointSlice", "s-1", "endpoints[1].addresses[0]: fd00::1, expected"),
        ("InvalidEndpointSlice", "EndpointSlice", "odd", "invalid type"),
        (
            "InvalidLocalRedirectPolicy",
            "CiliumLocalRedirectPolicy",
            "l",
            "spec.redirectFrontend: expected addressMatcher",
        ),
    ] {
        fake.until(reason, |fake| said(fake, reason, kind, name).is_some()).await;
        let message = said(&fake, reason, kind, name).expect("said");
        assert!(message.starts_with(text) && message.ends_with("stays in force"), "{message}");
    }
    operator.stop().await;
}

#[tokio::test]
async fn services_that_want_the_same_are_told_and_others_are_not() {
    let fake = Fake::new();
    let plain = |name: &str, spec: Value| {
        let mut object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"ports": [{"port": 80}]}});
        for (field, value) in spec.as_object().expect("fields") {
            object["spec"][field] = value.clone();
        }
        fake.put(SERVICES, object)
    };
    plain("a", json!({"clusterIPs": ["10.96.0.1", "fd96::1"], "externalIPs": ["198.51.100.1", "2001:db8::1"]}));
    plain("b", json!({"clusterIPs": ["10.96.0.2", "fd96::2"], "externalIPs": ["2001:db8::1"]}));
    plain(
        "c",
        json!({"clusterIPs": ["10.96.0.3", "fd96::3"], "externalIPs": ["198.51.100.1"], "ports": [{"port": 81}]}),
    );
    plain(
        "d",
        json!({"clusterIPs": ["10.96.0.4", "fd96::4"], "type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
    );
    plain("e", json!({"clusterIPs": ["10.96.0.5", "fd96::5"], "externalIPs": ["192.0.2.1", "2001:dba::1"]}));
    let operator = Operator::start(&fake);
    let said = |fake: &Fake, name: &str| -> Vec<(String, String)> {
        let events = fake.all(EVENTS);
        let of = events.iter().filter(|event| event["involvedObject"]["name"] == name);
        let text = |event: &Value, field: &str| event[field].as_str().expect("text").to_owned();
        of.map(|event| (text(event, "reason"), text(event, "message"))).collect()
    };
    fake.until("b, d and e are told", |fake| ["b", "d", "e"].iter().all(|name| said(fake, name).len() == 1)).await;
    let conflict = "[2001:db8::1]:80/TCP: already in use by Service n/a".to_owned();
    assert_eq!(said(&fake, "b"), [("FrontendConflict".to_owned(), conflict)]);
    let (reason, text) = &said(&fake, "d")[0];
    assert!(reason == "NodePortOutOfRange" && text.contains("80"), "{reason}: {text}");
    let (reason, text) = &said(&fake, "e")[0];
    let both = ["192.0.2.1", "2001:dba::1"].iter().all(|address| text.contains(&format!("externalIPs {address}: ")));
    assert!(reason == "FrontendRefused" && both && text.contains("--external-ips-allowed"), "{reason}: {text}");
    assert_eq!((said(&fake, "a"), said(&fake, "c")), (Vec::new(), Vec::new()));
    operator.stop().await;
}
