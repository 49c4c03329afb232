//! The operator against an API server in memory.
#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

use crate::fake::Fake;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_daemon::tasks::EndedEarly;
use weft_k8s::slice::NODE_LABEL;
use weft_k8s::wire::UNUSED_SINCE;
use weft_operator::config::Config;
use weft_operator::housekeeping::{Memory, round};
use weft_operator::metrics::Metrics;

const NODES: &str = "api/v1/nodes";
const EVENTS: &str = "api/v1/events";
const LEASES: &str = "apis/coordination.k8s.io/v1/leases";
const SLICES: &str = "apis/cilium.io/v2alpha1/ciliumendpointslices";
const IDENTITIES: &str = "apis/cilium.io/v2/ciliumidentities";
const ENDPOINTS: &str = "apis/cilium.io/v2/ciliumendpoints";
const CILIUM_NODES: &str = "apis/cilium.io/v2/ciliumnodes";
const ADDRESS_POOLS: &str = "apis/cilium.io/v2alpha1/ciliumpodippools";
const POLICIES: [&str; 3] = [
    "apis/cilium.io/v2/ciliumnetworkpolicies",
    "apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
    "apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
];

fn config(args: &[&str]) -> Config {
    let args = ["weft-operator", "--lease-seconds", "3"].iter().chain(args);
    weft_settings::from_args::<Config>(args.map(Into::into)).expect("flags").check().expect("valid")
}

struct Operator {
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Operator {
    fn start(fake: &Fake, config: Config) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(weft_operator::run(config, fake.client(), stop.clone()));
        Self { stop, task: Some(task) }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        let task = self.task.take().expect("stopped once");
        tokio::time::timeout(Duration::from_secs(5), task).await.expect("ends").expect("no panic").expect("no error");
    }

    /// As by `kill -9`.
    fn kill(mut self) {
        self.task.take().expect("killed once").abort();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {}})
}

fn cidrs(fake: &Fake) -> BTreeMap<String, Vec<String>> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let list = |node: &Value| node["spec"]["podCIDRs"].as_array().map(|list| list.iter().map(text).collect());
    fake.all(NODES).iter().map(|node| (text(&node["metadata"]["name"]), list(node).unwrap_or_default())).collect()
}

fn all_given(fake: &Fake) -> bool {
    cidrs(fake).values().all(|cidrs| cidrs.len() == 2)
}

fn leader(fake: &Fake) -> Option<String> {
    let lease = fake.get(LEASES, "kube-system", "weft-operator")?;
    lease["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty()).map(str::to_owned)
}

#[tokio::test]
async fn every_node_gets_one_prefix_of_each_family_and_keeps_it() {
    let fake = Fake::new();
    let mut taken = node("old");
    taken["spec"] = json!({"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd44::/64"]});
    fake.put(NODES, taken);
    for n in 0..10 {
        fake.put(NODES, node(&format!("node-{n}")));
    }
    let operator = Operator::start(&fake, config(&[]));
    fake.until("all have prefixes", all_given).await;
    fake.put(NODES, node("late"));
    fake.until("the late one, too", all_given).await;
    let first = cidrs(&fake);
    let distinct: BTreeSet<&String> = first.values().flatten().collect();
    assert_eq!(distinct.len(), 24);
    assert_eq!(first["old"], ["10.244.0.0/24", "fd44::/64"]);
    let one = fake.get(NODES, "", "late").expect("there");
    assert_eq!(one["spec"]["podCIDR"], one["spec"]["podCIDRs"][0]);
    operator.stop().await;
    assert_eq!(leader(&fake), None, "the lease was given back");
    // Another operator finds what is given.
    let operator = Operator::start(&fake, config(&[]));
    fake.put(NODES, node("later"));
    fake.until("the newest, too", all_given).await;
    let second = cidrs(&fake);
    assert!(first.iter().all(|(name, cidrs)| second[name] == *cidrs), "nothing was changed");
    assert_eq!(second.values().flatten().collect::<BTreeSet<_>>().len(), 26);
    operator.stop().await;
}

#[tokio::test]
async fn a_full_pool_is_said_on_the_node_and_a_freed_prefix_is_given_again() {
    let fake = Fake::new();
    for n in 0..3 {
        fake.put(NODES, node(&format!("node-{n}")));
    }
    let operator = Operator::start(&fake, config(&["--pod-cidr", "10.0.0.0/23,fd00::/63"]));
    fake.until("the third is told", |fake| fake.all(EVENTS).iter().any(|e| e["reason"] == "PodCIDRsExhausted")).await;
    let event = &fake.all(EVENTS)[0];
    assert_eq!(event["involvedObject"]["name"], "node-2");
    assert!(event["message"].as_str().expect("text").contains("/24"), "{event}");
    assert_eq!(cidrs(&fake)["node-2"], Vec::<String>::new());
    fake.remove(NODES, "", "node-0");
    fake.until("the third has prefixes", all_given).await;
    operator.stop().await;
}

#[tokio::test]
async fn conflicts_and_refusals_are_overcome() {
    let fake = Fake::new();
    fake.refuse(&[500, 503]);
    let operator = Operator::start(&fake, config(&[]));
    fake.until("leads", |fake| leader(fake).is_some()).await;
    for n in 0..20 {
        fake.put(NODES, node(&format!("node-{n}")));
        // The kubelet writes at the same time.
        let mut status = fake.get(NODES, "", &format!("node-{n}")).expect("there");
        status["status"] = json!({"n": n});
        fake.put(NODES, status);
    }
    fake.hang_up();
    fake.until("all have prefixes", all_given).await;
    operator.stop().await;
}

#[tokio::test]
async fn one_writes_and_the_next_takes_over_when_it_is_gone() {
    let fake = Fake::new();
    let first = Operator::start(&fake, config(&[]));
    fake.until("leads", |fake| leader(fake).is_some()).await;
    let holder = leader(&fake);
    let second = Operator::start(&fake, config(&[]));
    for n in 0..5 {
        fake.put(NODES, node(&format!("node-{n}")));
    }
    fake.until("all have prefixes", all_given).await;
    let patches = fake.writes().iter().filter(|write| write.starts_with("PATCH /api/v1/nodes")).count();
    assert_eq!(patches, 5, "each was written once: {:?}", fake.writes());
    assert_eq!(leader(&fake), holder);
    first.kill();
    fake.put(NODES, node("late"));
    fake.until("the other leads", |fake| leader(fake) != holder).await;
    fake.until("the late one has prefixes", all_given).await;
    assert_eq!(cidrs(&fake).values().flatten().collect::<BTreeSet<_>>().len(), 12);
    second.stop().await;
}

#[tokio::test]
async fn who_cannot_go_on_gives_the_lease_back() {
    async fn led<F>(fake: &Fake, duties: impl Fn() -> F) -> String
    where
        F: Future<Output = Result<(), EndedEarly>> + Send + 'static,
    {
        let (config, client, stop) = (config(&[]), fake.client(), CancellationToken::new());
        let run = weft_operator::leader::run(&config, &client, &stop, |_| duties());
        let ended = tokio::time::timeout(Duration::from_secs(10), run).await.expect("does not go on");
        format!("{:#}", ended.expect_err("nobody stopped it"))
    }
    let fake = Fake::new();
    let error = led(&fake, || async { panic!("in a duty") }).await;
    assert!(error.starts_with("a duty of the leader failed"), "{error}");
    assert!(fake.get(LEASES, "kube-system", "weft-operator").is_some());
    assert_eq!(leader(&fake), None);
    let error = led(&fake, || async { Ok(()) }).await;
    assert!(error.contains("before their term"), "{error}");
    assert_eq!(leader(&fake), None);
    let error = led(&fake, || async { Err(EndedEarly { name: "services" }) }).await;
    assert!(error.contains("task \"services\" ended before it was told to stop"), "{error}");
    assert_eq!(leader(&fake), None);
}

#[tokio::test]
async fn pools_that_make_no_sense_are_refused_at_once() {
    let fake = Fake::new();
    for (pools, says) in [("10.0.0.0/25", "/24"), ("10.0.0.0/16,10.0.1.0/24", "overlap")] {
        let error = weft_operator::run(config(&["--pod-cidr", pools]), fake.client(), CancellationToken::new());
        let error = format!("{:#}", error.await.expect_err("refused"));
        assert!(error.starts_with("pod-cidr: ") && error.contains(says), "{error}");
    }
    assert!(fake.writes().is_empty());
}

fn slice(name: &str, node: Option<&str>, identity: u32) -> Value {
    let mut slice = json!({"metadata": {"name": name}, "namespace": "n", "endpoints": [{"name": "a", "id": identity}]});
    if let Some(node) = node {
        slice["metadata"]["labels"] = json!({NODE_LABEL: node});
    }
    slice
}

#[tokio::test]
async fn what_gone_nodes_wrote_is_deleted_after_the_grace_and_nothing_else() {
    let fake = Fake::new();
    fake.put(NODES, node("here"));
    fake.put(SLICES, slice("of-here", Some("here"), 300));
    fake.put(SLICES, slice("of-gone", Some("gone"), 300));
    fake.put(SLICES, slice("of-lagging", Some("lagging"), 300));
    fake.put(SLICES, slice("of-others", None, 300));
    fake.put(CILIUM_NODES, json!({"metadata": {"name": "here"}}));
    fake.put(CILIUM_NODES, json!({"metadata": {"name": "gone"}}));
    // Exists, though the watch has not told yet.
    fake.put(NODES, node("lagging"));
    let known = BTreeSet::from(["here".to_owned()]);
    let mut memory = Memory::default();
    let slow = config(&["--node-grace-seconds", "1000"]);
    round(&slow, &fake.client(), &known, &mut memory, &Metrics::new()).await.expect("a round");
    round(&slow, &fake.client(), &known, &mut memory, &Metrics::new()).await.expect("a round");
    assert_eq!((fake.all(SLICES).len(), fake.all(CILIUM_NODES).len()), (4, 2));
    let fast = config(&["--node-grace-seconds", "0"]);
    round(&fast, &fake.client(), &known, &mut memory, &Metrics::new()).await.expect("a round");
    let left: Vec<String> = fake.all(SLICES).iter().map(|s| s["metadata"]["name"].to_string()).collect();
    assert_eq!(left, ["\"of-here\"", "\"of-lagging\"", "\"of-others\""]);
    assert_eq!(fake.all(CILIUM_NODES).len(), 1);
}

#[tokio::test]
async fn an_identity_goes_only_when_it_was_unused_for_long() {
    let fake = Fake::new();
    fake.put(SLICES, slice("s", Some("node"), 300));
    let object = |number: u32| json!({"metadata": {"name": number.to_string()}, "security-labels": {"k8s:a": "b"}});
    for number in [300, 301, 302, 303] {
        fake.put(IDENTITIES, object(number));
    }
    // 303 is used by a kind that other tools write.
    let endpoint = json!({"metadata": {"name": "x", "namespace": "n"}, "status": {"identity": {"id": 303}}});
    fake.put("apis/cilium.io/v2/ciliumendpoints", endpoint);
    let config = config(&["--identity-grace-seconds", "1"]);
    let nodes = BTreeSet::from(["node".to_owned()]);
    let mut memory = Memory::default();
    let marked = |fake: &Fake| -> BTreeSet<String> {
        let all = fake.all(IDENTITIES);
        let marked = all.iter().filter(|object| object["metadata"]["annotations"][UNUSED_SINCE].is_string());
        marked.map(|object| object["metadata"]["name"].as_str().expect("text").to_owned()).collect()
    };
    let client = fake.client();
    round(&config, &client, &nodes, &mut memory, &Metrics::new()).await.expect("a round");
    assert_eq!(marked(&fake), BTreeSet::from(["301".to_owned(), "302".to_owned()]));
    // 301 is used again.
    fake.put(SLICES, slice("t", Some("node"), 301));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while fake.all(IDENTITIES).len() == 4 && tokio::time::Instant::now() < deadline {
        round(&config, &client, &nodes, &mut memory, &Metrics::new()).await.expect("a round");
        tokio::task::yield_now().await;
    }
    let left: Vec<Value> = fake.all(IDENTITIES).iter().map(|object| object["metadata"]["name"].clone()).collect();
    assert_eq!(left, ["300", "301", "303"]);
    assert!(marked(&fake).is_empty());
    let never = config_without_identity_grace();
    fake.put(IDENTITIES, object(304));
    round(&never, &client, &nodes, &mut memory, &Metrics::new()).await.expect("a round");
    assert!(marked(&fake).is_empty());
}

fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace, "generation": 3}, "spec": spec})
}

/// Status, reason and message of the only condition of a type.
fn condition(fake: &Fake, collection: &str, name: &str, kind: &str) -> Option<(String, String)> {
    let object = fake.get(collection, "", name)?;
    let mut of_type = object["status"]["conditions"].as_array()?.iter().filter(|c| c["type"] == kind);
    let found = of_type.next()?;
    assert!(of_type.next().is_none() && found["lastTransitionTime"].is_string() && found["reason"].is_string());
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("message")))
}

#[tokio::test]
async fn policies_say_whether_they_are_valid() {
    const CLUSTERWIDE: &str = POLICIES[1];
    const TIERED: &str = POLICIES[2];
    let fake = Fake::new();
    let valid = json!({"endpointSelector": {}, "ingress": [{}]});
    fake.put(CLUSTERWIDE, policy("", "good", valid.clone()));
    fake.put(CLUSTERWIDE, policy("", "nodes", json!({"nodeSelector": {}, "ingress": [{}]})));
    let mut bad = policy("", "bad", json!({"endpointSelector": {}, "ingress": [{"fromCIDR": ["x", "y"]}]}));
    bad["status"] = json!({"conditions": [{"type": "Other", "status": "True"}]});
    fake.put(CLUSTERWIDE, bad);
    fake.put(TIERED, policy("", "tier", json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}})));
    let operator = Operator::start(&fake, config(&["--host-firewall", "false"]));
    let said = |name: &'static str, status: &'static str| {
        move |fake: &Fake| condition(fake, CLUSTERWIDE, name, "Valid").is_some_and(|(found, _)| found == status)
    };
    fake.until("valid", said("good", "True")).await;
    fake.until("invalid", said("bad", "False")).await;
    fake.until("the host firewall is off", said("nodes", "False")).await;
    fake.until("accepted", |fake| condition(fake, TIERED, "tier", "Accepted").is_some()).await;
    let (_, message) = condition(&fake, CLUSTERWIDE, "bad", "Valid").expect("there");
    assert!(message.contains("spec.ingress[0].fromCIDR[0]: ") && message.contains("fromCIDR[1]: "), "{message}");
    let others = fake.get(CLUSTERWIDE, "", "bad").expect("there")["status"]["conditions"].clone();
    assert_eq!((others.as_array().map(Vec::len), &others[0]["type"]), (Some(2), &json!("Other")));
    let tier = fake.get(TIERED, "", "tier").expect("there")["status"]["conditions"][0].clone();
    assert_eq!((&tier["status"], &tier["observedGeneration"]), (&json!("True"), &json!(3)));
    // What is said already is not said again, by another leader neither.
    let statuses = |fake: &Fake| fake.writes().iter().filter(|write| write.ends_with("/status")).count();
    assert_eq!(statuses(&fake), 4);
    operator.stop().await;
    let operator = Operator::start(&fake, config(&["--host-firewall", "false"]));
    let mut mended = fake.get(CLUSTERWIDE, "", "bad").expect("there");
    mended["spec"] = valid;
    fake.put(CLUSTERWIDE, mended);
    fake.until("mended", said("bad", "True")).await;
    assert_eq!(statuses(&fake), 5, "{:?}", fake.writes());
    operator.stop().await;
}

fn config_without_identity_grace() -> Config {
    config(&["--identity-grace-seconds", "0"])
}

#[tokio::test]
async fn the_operator_asks_for_what_its_role_grants_and_needs_all_of_it() {
    let fake = Fake::new();
    for n in 0..3 {
        fake.put(NODES, node(&format!("node-{n}")));
    }
    let narrow = ["--pod-cidr", "10.0.0.0/23,fd00::/63"];
    for (collection, namespace) in POLICIES.into_iter().zip(["n", "", ""]) {
        fake.put(collection, policy(namespace, "a", json!({"endpointSelector": {}})));
    }
    fake.put(
        "apis/cilium.io/v2/ciliumloadbalancerippools",
        json!({"metadata": {"name": "p"},
        "spec": {"blocks": [{"cidr": "192.0.2.0/24"}]}}),
    );
    fake.put(
        "api/v1/services",
        json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"type": "LoadBalancer",
        "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
    );
    // Two leaders tell the same.
    for count in 1..=2 {
        let operator = Operator::start(&fake, config(&narrow));
        let told = |fake: &Fake| {
            let events = fake.all(EVENTS);
            events.iter().any(|e| e["reason"] == "PodCIDRsExhausted" && e["count"] == count)
        };
        fake.until("the node without prefixes is told of", told).await;
        // The lease is renewed in the meantime.
        let renewed = |fake: &Fake| fake.asked().iter().any(|(_, what, verb)| what == "leases" && *verb == "update");
        fake.until("renewed", renewed).await;
        let watched = |fake: &Fake| {
            let asked = fake.asked();
            let of = |verb: &str| {
                let judged = asked.iter().filter(|(_, what, _)| what.contains("policies") || what.contains("pools"));
                judged.filter(|(.., asked)| *asked == verb).count()
            };
            // With local redirects and pools; of these, pools have a status.
            of("watch") == POLICIES.len() + 2 && of("patch") > POLICIES.len()
        };
        fake.until("policies are judged", watched).await;
        operator.stop().await;
    }
    let gone = config(&["--node-grace-seconds", "0", "--identity-grace-seconds", "1"]);
    let mut memory = Memory::default();
    fake.put(SLICES, slice("s", Some("gone"), 300));
    fake.put(CILIUM_NODES, json!({"metadata": {"name": "gone"}}));
    fake.put(IDENTITIES, json!({"metadata": {"name": "301"}, "security-labels": {"k8s:a": "b"}}));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !fake.all(IDENTITIES).is_empty() && tokio::time::Instant::now() < deadline {
        round(&gone, &fake.client(), &BTreeSet::new(), &mut memory, &Metrics::new()).await.expect("a round");
        tokio::task::yield_now().await;
    }
    // A CiliumEndpoint whose pod is gone.
    let orphan = json!({"metadata": {"name": "p", "namespace": "n",
        "ownerReferences": [{"kind": "Pod", "name": "p", "uid": "gone"}]}});
    fake.put(ENDPOINTS, orphan);
    for _ in 0..2 {
        round(&gone, &fake.client(), &BTreeSet::new(), &mut memory, &Metrics::new()).await.expect("a round");
    }
    assert!(fake.all(ENDPOINTS).is_empty());
    // Slices of CiliumEndpoints, with a write that is refused once.
    let making = ["--endpoint-propagation", "ces-operator", "--ces-delay-ms", "5", "--gc-seconds", "0"];
    let operator = Operator::start(&fake, config(&making));
    let endpoint = |identity: u32| {
        json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"identity": {"id": identity},
        "networking": {"addressing": [{"ipv4": "10.0.0.7", "ipv6": "fd00::7"}], "node": "172.31.0.12"}}})
    };
    fake.put(ENDPOINTS, endpoint(300));
    fake.until("made", |fake| !fake.all(SLICES).is_empty()).await;
    let asked = |fake: &Fake, wanted: &str| {
        fake.asked().iter().any(|(_, what, verb)| what == "ciliumendpointslices" && *verb == wanted)
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let mut identity = 300;
    while !(asked(&fake, "get") && asked(&fake, "update")) && tokio::time::Instant::now() < deadline {
        identity += 1;
        fake.put(ENDPOINTS, endpoint(identity));
        fake.refuse(&[409]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    operator.stop().await;
    // Shared pools, one of which has not what a node asks for.
    let family = |cidr: &str, mask: u8| json!({"cidrs": [cidr], "maskSize": mask});
    let spec = json!({"ipv4": family("10.50.0.0/28", 28), "ipv6": family("fd50::/124", 124)});
    fake.put(ADDRESS_POOLS, json!({"metadata": {"name": "default"}, "spec": spec}));
    let asks = json!({"requested": [{"pool": "default", "needed": {"ipv4-addrs": 100, "ipv6-addrs": 8}}]});
    fake.put(CILIUM_NODES, json!({"metadata": {"name": "node-0", "uid": "c0"}, "spec": {"ipam": {"pools": asks}}}));
    let operator = Operator::start(&fake, config(&["--ipam", "multi-pool"]));
    let answered = |fake: &Fake| {
        let Some(node) = fake.get(CILIUM_NODES, "", "node-0") else { return false };
        let given = &node["spec"]["ipam"]["pools"]["allocated"][0]["cidrs"];
        let problem = node["status"]["ipam"]["operator-status"]["error"].as_str().unwrap_or_default();
        given.as_array().is_some_and(|cidrs| !cidrs.is_empty()) && problem.contains("default")
    };
    fake.until("what there is is given, and what is missing is said", answered).await;
    operator.stop().await;
    assert_eq!(fake.asked(), Fake::granted("weft-operator"));
}
