//! What the node writes, and what it never touches.

use crate::fake::Fake;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_k8s::endpoint::style::WriteStyle;
use weft_k8s::endpoint::{self, Propagation};
use weft_k8s::event::{About, warn};
use weft_k8s::identity::{self, Outcome};
use weft_k8s::ipam::{AddressPools, Shares};
use weft_k8s::lease::{Candidate, Standing};
use weft_k8s::slice::{NODE_LABEL, REMOVAL_PACE, Writer};
use weft_k8s::watch::{EndpointsWatch, follow};
use weft_k8s::{node, pod};
use weft_model::id::Identity;
use weft_model::intent::{IdentityLabels, ObjectName, RemoteEndpoint};
use weft_model::label::LabelSet;

const SLICES: &str = "apis/cilium.io/v2alpha1/ciliumendpointslices";
const ENDPOINTS: &str = "apis/cilium.io/v2/ciliumendpoints";
const IDENTITIES: &str = "apis/cilium.io/v2/ciliumidentities";
const CILIUM_NODES: &str = "apis/cilium.io/v2/ciliumnodes";
const NODES: &str = "api/v1/nodes";
const EVENTS: &str = "api/v1/events";
const LEASES: &str = "apis/coordination.k8s.io/v1/leases";

fn endpoints(count: usize, identity: u32) -> BTreeMap<ObjectName, RemoteEndpoint> {
    let endpoint = |n: usize| RemoteEndpoint {
        name: ObjectName { namespace: "n".to_owned(), name: format!("pod-{n}") },
        pod_uid: format!("uid-{n}"),
        identity: Identity::from_raw(identity),
        addresses: vec![
            format!("10.244.1.{}", n + 2).parse().expect("v4"),
            format!("fd44::{:x}", n + 2).parse().expect("v6"),
        ],
        node: "172.31.0.11".parse().expect("v4"),
        named_ports: Vec::new(),
    };
    (0..count).map(endpoint).map(|endpoint| (endpoint.name.clone(), endpoint)).collect()
}

fn own(count: usize, identity: u32) -> BTreeMap<ObjectName, endpoint::Own> {
    let own = |(name, endpoint)| {
        let labels = vec!["k8s:app=a".to_owned()];
        (name, endpoint::Own { endpoint, id: 7, labels, service_account: "default".to_owned() })
    };
    endpoints(count, identity).into_iter().map(own).collect()
}

async fn announced(writer: &Writer, generation: u64) {
    let mut progress = writer.announced();
    let wait = progress.wait_for(|now| now.generation >= generation && now.problem.is_none());
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("announced in time").expect("the writer runs");
}

fn held(fake: &Fake) -> usize {
    fake.all(SLICES).iter().map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len)).sum()
}

#[tokio::test]
async fn slices_follow_the_set_and_bursts_are_one_write() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let writer = Writer::start(fake.client(), "node-1", Duration::ZERO, stop.clone());
    for n in 1..=8 {
        writer.set(endpoints(n, 300));
    }
    let last = writer.set(endpoints(9, 300));
    announced(&writer, last).await;
    assert_eq!((held(&fake), fake.writes().len()), (9, 1), "{:?}", fake.writes());
    let slice = &fake.all(SLICES)[0];
    assert_eq!(slice["metadata"]["labels"][NODE_LABEL], "node-1");
    assert!(writer.is_own(slice["metadata"]["name"].as_str().expect("text")));
    assert_eq!(slice["endpoints"][0]["networking"]["addressing"], json!([{"ipv4": "10.244.1.2", "ipv6": "fd44::2"}]));
    announced(&writer, writer.set(endpoints(250, 300))).await;
    assert_eq!((held(&fake), fake.all(SLICES).len()), (250, 25));
    announced(&writer, writer.set(BTreeMap::new())).await;
    assert!(fake.all(SLICES).is_empty());
    stop.cancel();
}

/// Those that come one after the other while a write is on its way, and for a moment after it, are one write.
#[tokio::test]
async fn a_burst_gathers_behind_its_first() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let writer = Writer::start(fake.client(), "node-1", Duration::ZERO, stop.clone());
    announced(&writer, writer.set(endpoints(1, 300))).await;
    assert_eq!((held(&fake), fake.writes().len()), (1, 1));
    let mut last = 0;
    for n in 2..=10 {
        last = writer.set(endpoints(n, 300));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    announced(&writer, last).await;
    assert!(held(&fake) == 10 && fake.writes().len() <= 5, "{:?}", fake.writes());
    let name = fake.all(SLICES)[0]["metadata"]["name"].as_str().expect("text").to_owned();
    assert!(writer.holds(&name));
    announced(&writer, writer.set(BTreeMap::new())).await;
    fake.until("let go of", |_| !writer.holds(&name)).await;
    stop.cancel();
}

/// As Cilium's agents do: GET, create, update a round later, delete.
#[tokio::test]
async fn known_agents_write_an_object_three_times() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let writer = endpoint::Writer::start(fake.client(), "node-1", WriteStyle::Upstream, stop.clone());
    let state = |fake: &Fake| fake.all(ENDPOINTS)[0]["status"]["state"].as_str().expect("text").to_owned();
    let mut progress = writer.announced();
    let generation = writer.set(own(1, 300));
    progress.wait_for(|now| now.generation >= generation).await.expect("the writer runs");
    assert_eq!((state(&fake).as_str(), fake.writes().len()), ("waiting-to-regenerate", 1));
    fake.until("mended", |fake| state(fake) == "ready").await;
    assert_eq!(fake.writes().len(), 2);
    let generation = writer.set(BTreeMap::new());
    progress.wait_for(|now| now.generation >= generation).await.expect("the writer runs");
    assert_eq!((fake.all(ENDPOINTS).len(), fake.writes().len()), (0, 3));
    stop.cancel();
}

#[tokio::test]
async fn refusals_conflicts_and_strangers_are_overcome() {
    let fake = Fake::new();
    let foreign = json!({"metadata": {"name": "theirs", "labels": {NODE_LABEL: "node-2"}}, "namespace": "n", "endpoints": [{"name": "x"}]});
    fake.put(SLICES, foreign);
    let stop = CancellationToken::new();
    let writer = Writer::start(fake.client(), "node-1", Duration::ZERO, stop.clone());
    fake.refuse(&[500, 503]);
    announced(&writer, writer.set(endpoints(3, 300))).await;
    let own = |fake: &Fake| {
        let all = fake.all(SLICES);
        all.into_iter().find(|slice| slice["metadata"]["labels"][NODE_LABEL] == "node-1").expect("own slice")
    };
    // Somebody empties our slice behind our back: the next write conflicts, is planned anew, and mends it.
    let mut changed = own(&fake);
    changed["endpoints"] = json!([]);
    fake.put(SLICES, changed);
    announced(&writer, writer.set(endpoints(4, 301))).await;
    assert_eq!(own(&fake)["endpoints"].as_array().expect("a list").len(), 4);
    // Somebody deletes it: found when asked to look.
    let name = own(&fake)["metadata"]["name"].as_str().expect("text").to_owned();
    fake.remove(SLICES, "", &name);
    writer.recheck();
    fake.until("mended", |fake| fake.get(SLICES, "", &name).is_some()).await;
    assert_eq!(fake.get(SLICES, "", "theirs").expect("untouched")["endpoints"], json!([{"name": "x"}]));
    assert!(!fake.writes().iter().any(|write| write.contains("theirs")));
    stop.cancel();
}

#[tokio::test]
async fn a_restart_adopts_and_writes_only_differences() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let writer = Writer::start(fake.client(), "node-1", Duration::ZERO, stop.clone());
    announced(&writer, writer.set(endpoints(120, 300))).await;
    stop.cancel();
    let before: Vec<serde_json::Value> = fake.all(SLICES);
    let writes = fake.writes().len();
    let stop = CancellationToken::new();
    let writer = Writer::start(fake.client(), "node-1", Duration::ZERO, stop.clone());
    announced(&writer, writer.set(endpoints(120, 300))).await;
    assert_eq!(fake.all(SLICES), before);
    assert_eq!(fake.writes().len(), writes, "nothing to write");
    stop.cancel();
}

#[tokio::test]
async fn race_4_an_object_of_a_successor_on_another_node_is_spared() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let written = |writer: &endpoint::Writer, generation: u64| {
        let mut announced = writer.announced();
        async move {
            let wait = announced.wait_for(|announced| announced.generation >= generation);
            tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time").expect("runs").clone()
        }
    };
    let old = endpoint::Writer::start(fake.client(), "node-1", WriteStyle::Coalesced, stop.clone());
    written(&old, old.set(own(1, 300))).await;
    let made = fake.all(ENDPOINTS).remove(0);
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "uid-0");
    let status = &made["status"];
    assert_eq!((&status["identity"]["id"], &status["state"]), (&json!(300), &json!("ready")));
    assert_eq!(status["networking"]["addressing"], json!([{"ipv4": "10.244.1.2", "ipv6": "fd44::2"}]));
    assert_eq!(status["identity"]["labels"], json!(["k8s:app=a"]));
    // The pod is made anew elsewhere, under the same name; the old node has not heard yet.
    let mut successor = own(1, 301);
    successor.values_mut().for_each(|own| own.endpoint.pod_uid = "uid-new".to_owned());
    fake.put("api/v1/pods", json!({"metadata": {"name": "pod-0", "namespace": "n", "uid": "uid-new"}}));
    let new = endpoint::Writer::start(fake.client(), "node-2", WriteStyle::Coalesced, stop.clone());
    written(&new, new.set(successor)).await;
    written(&old, old.set(BTreeMap::new())).await;
    let left = fake.all(ENDPOINTS);
    assert_eq!((left.len(), &left[0]["metadata"]["ownerReferences"][0]["uid"]), (1, &json!("uid-new")));
    // Nor does it bring the old one back.
    written(&old, old.set(own(1, 300))).await;
    assert_eq!(fake.all(ENDPOINTS), left);
    stop.cancel();
}

#[tokio::test]
async fn removals_wait_for_company_but_not_for_ever() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let writer = Writer::start(fake.client(), "node-1", Duration::from_millis(600), stop.clone());
    announced(&writer, writer.set(endpoints(3, 300))).await;
    let began = Instant::now();
    announced(&writer, writer.set(endpoints(2, 300))).await;
    assert!(began.elapsed() >= Duration::from_millis(600), "nobody waits for a removal");
    assert_eq!((held(&fake), fake.writes().len()), (2, 2));
    // A removal rides along with what comes.
    writer.set(endpoints(1, 300));
    announced(&writer, writer.set(endpoints(5, 301))).await;
    assert_eq!((held(&fake), fake.writes().len()), (5, 3));
    stop.cancel();
}

/// A node that is emptied tells it bit by bit: what is urgent elsewhere does not wait for it.
#[tokio::test]
async fn removals_come_one_after_the_other() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let delay = Duration::from_millis(100);
    let writer = Writer::start(fake.client(), "node-1", delay, stop.clone());
    announced(&writer, writer.set(endpoints(25, 300))).await;
    let before = fake.writes().len();
    assert_eq!(before, 3);
    let (began, generation) = (Instant::now(), writer.set(BTreeMap::new()));
    fake.until("the first is gone", |fake| fake.all(SLICES).len() < 3).await;
    assert!(began.elapsed() >= delay);
    // One that comes does not wait for the rest.
    let late = writer.set(endpoints(1, 301));
    fake.until("the new one is written", |fake| held(fake) > 0 && fake.writes().len() >= before + 2).await;
    assert!(late > generation);
    announced(&writer, late).await;
    assert!(began.elapsed() >= delay + REMOVAL_PACE, "{:?}", began.elapsed());
    assert_eq!((held(&fake), fake.all(SLICES).len()), (1, 1));
    stop.cancel();
}

#[tokio::test]
async fn an_address_that_is_given_again_is_its_former_pods_no_longer() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let writer = Writer::start(fake.client(), "node-1", Duration::from_secs(3600), stop.clone());
    announced(&writer, writer.set(endpoints(2, 300))).await;
    // The first one goes, and a pod of another namespace, whose slice is another, has its address.
    let mut now = endpoints(2, 300);
    let (name, mut next) = now.pop_first().expect("two");
    next.name = ObjectName { namespace: "other".to_owned(), ..name };
    next.pod_uid = "next".to_owned();
    let address = next.addresses[0];
    now.insert(next.name.clone(), next);
    announced(&writer, writer.set(now)).await;
    let said = format!("{:?}", fake.all(SLICES));
    assert_eq!(said.matches(&format!("\"{address}\"")).count(), 1, "{said}");
    stop.cancel();
}

#[tokio::test]
async fn what_is_withdrawn_is_not_added_to() {
    let fake = Fake::new();
    let stop = CancellationToken::new();
    let writer = Writer::start(fake.client(), "node-1", Duration::ZERO, stop.clone());
    announced(&writer, writer.set(endpoints(3, 300))).await;
    announced(&writer, writer.withdraw_but(endpoints(5, 300))).await;
    assert_eq!(held(&fake), 3, "two more are made known in another way");
    announced(&writer, writer.withdraw_but(endpoints(1, 300))).await;
    assert_eq!(held(&fake), 1);
    announced(&writer, writer.withdraw_but(BTreeMap::new())).await;
    assert!(fake.all(SLICES).is_empty());
    stop.cancel();
}

#[tokio::test]
async fn an_identity_is_created_once() {
    let fake = Fake::new();
    let client = fake.client();
    let row = |app: &str| IdentityLabels {
        identity: Identity::from_raw(4711),
        labels: LabelSet(BTreeMap::from([("k8s:app".to_owned(), app.to_owned())])),
        unused: false,
    };
    assert_eq!(identity::create(&client, &row("a")).await.expect("created"), Outcome::Created);
    assert_eq!(identity::create(&client, &row("b")).await.expect("answered"), Outcome::Exists(row("a").labels));
    assert_eq!(fake.all(IDENTITIES).len(), 1);
    // One that is marked for removal is taken up: the mark goes, and so does what a removal would rest on.
    let held = identity::list(&client).await.expect("listed").remove(0);
    identity::mark(&client, &held, Some("2026-01-02T03:04:05Z")).await.expect("marked");
    let marked = identity::list(&client).await.expect("listed").remove(0);
    assert!(marked.unused_since.is_some());
    assert_eq!(identity::create(&client, &row("b")).await.expect("answered"), Outcome::Exists(row("a").labels));
    assert_eq!(identity::list(&client).await.expect("listed")[0], marked, "somebody else's");
    assert_eq!(identity::create(&client, &row("a")).await.expect("answered"), Outcome::Exists(row("a").labels));
    assert_eq!(identity::list(&client).await.expect("listed")[0].unused_since, None);
    let late = identity::delete(&client, &marked).await.expect_err("it has changed");
    assert!(late.is_conflict(), "{late}");
    fake.refuse(&[403]);
    let refused = identity::create(&client, &row("c")).await.expect_err("refused");
    assert_eq!(refused.code(), Some(403));
}

#[tokio::test]
async fn the_node_is_announced_and_made_schedulable() {
    let fake = Fake::new();
    let client = fake.client();
    fake.put(NODES, json!({"metadata": {"name": "node-1", "labels": {"zone": "a"}},
        "spec": {"taints": [{"key": node::NOT_READY_TAINT, "effect": "NoSchedule"}, {"key": "other", "effect": "NoExecute"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "True"}]}}));
    node::set_network_ready(&client, "node-1").await.expect("set");
    let now = fake.get(NODES, "", "node-1").expect("there");
    assert_eq!(now["spec"]["taints"], json!([{"key": "other", "effect": "NoExecute"}]));
    let conditions = now["status"]["conditions"].as_array().expect("a list");
    assert_eq!(conditions.len(), 2);
    assert!(conditions.iter().any(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False"));
    let writes = fake.writes().len();
    node::set_network_ready(&client, "node-1").await.expect("set");
    assert_eq!(fake.writes().len(), writes, "nothing to do twice");
    let mut announcement = node::Announcement {
        name: "node-1".to_owned(),
        addresses: vec!["172.31.0.11".parse().expect("v4"), "fd31::11".parse().expect("v6")],
        pod_cidrs: vec!["10.244.0.0/24".parse().expect("a prefix")],
        propagation: Propagation::CesNode,
        boot_id: Some("b".to_owned()),
    };
    node::announce(&client, &announcement).await.expect("announced");
    let made = fake.get(CILIUM_NODES, "", "node-1").expect("made");
    assert_eq!(made["spec"]["ipam"]["podCIDRs"], json!(["10.244.0.0/24"]));
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], now["metadata"]["uid"]);
    assert_eq!(made["metadata"]["labels"]["zone"], "a");
    announcement.pod_cidrs.push("fd44::/64".parse().expect("a prefix"));
    node::announce(&client, &announcement).await.expect("announced");
    let writes = fake.writes().len();
    node::announce(&client, &announcement).await.expect("announced");
    assert_eq!(fake.writes().len(), writes, "nothing to do twice");
    let made = fake.get(CILIUM_NODES, "", "node-1").expect("made");
    assert_eq!(made["spec"]["ipam"]["podCIDRs"], json!(["10.244.0.0/24", "fd44::/64"]));
    assert!(node::get(&client, "node-9").await.expect("answered").is_none());
    assert!(node::get(&client, "../secrets").await.is_err(), "no name, no request");
}

#[tokio::test]
async fn a_warning_said_twice_is_one_event() {
    let fake = Fake::new();
    let client = fake.client();
    let about = About {
        kind: "NetworkPolicy",
        api_version: "networking.k8s.io/v1",
        namespace: "n".to_owned(),
        name: "p".to_owned(),
        uid: "u".to_owned(),
    };
    for _ in 0..3 {
        warn(&client, &about, "PolicyInvalid", "spec.ingress[0]: é".repeat(200).as_str(), "weft-agent")
            .await
            .expect("told");
    }
    let events = fake.all(EVENTS);
    assert_eq!((events.len(), &events[0]["count"]), (1, &json!(3)));
    assert_eq!(events[0]["type"], "Warning");
    warn(&client, &about, "PolicyInvalid", "another", "weft-agent").await.expect("told");
    assert_eq!(fake.all(EVENTS).len(), 2);
}

#[tokio::test]
async fn pods_and_namespaces_one_by_one() {
    let fake = Fake::new();
    let client = fake.client();
    fake.put("api/v1/pods", json!({"metadata": {"name": "a", "namespace": "n", "labels": {"x": "y"}}}));
    fake.put("api/v1/namespaces", json!({"metadata": {"name": "n", "labels": {"x": "y"}}}));
    let name = ObjectName { namespace: "n".to_owned(), name: "a".to_owned() };
    assert_eq!(pod::get(&client, &name).await.expect("answered").expect("there").labels["x"], "y");
    assert_eq!(pod::namespace(&client, "n").await.expect("answered").expect("there").labels["x"], "y");
    let none = ObjectName { name: "b".to_owned(), ..name };
    assert!(pod::get(&client, &none).await.expect("answered").is_none());
    assert!(pod::namespace(&client, "m").await.expect("answered").is_none());
}

#[tokio::test]
async fn one_leads_and_another_takes_over_only_when_the_lease_has_run_out() {
    let fake = Fake::new();
    let client = fake.client();
    let candidate =
        |name: &str| Candidate::new("kube-system", "weft-operator", name.to_owned(), Duration::from_secs(15));
    let (mut a, mut b) = (candidate("a").expect("names"), candidate("b").expect("names"));
    let led_by = |leader: &str| Standing::Standby { leader: leader.to_owned() };
    let mut now = Instant::now();
    assert_eq!(a.stand(&client, now).await.expect("answered"), Standing::Leader);
    for _ in 0..10 {
        assert_eq!(b.stand(&client, now).await.expect("answered"), led_by("a"));
        now += Duration::from_secs(10);
        assert_eq!(a.stand(&client, now).await.expect("answered"), Standing::Leader);
    }
    assert_eq!(b.stand(&client, now).await.expect("answered"), led_by("a"));
    now += Duration::from_secs(14);
    assert_eq!(b.stand(&client, now).await.expect("answered"), led_by("a"));
    now += Duration::from_secs(1);
    assert_eq!(b.stand(&client, now).await.expect("answered"), Standing::Leader);
    assert_eq!(a.stand(&client, now).await.expect("answered"), led_by("b"));
    b.resign(&client).await.expect("resigned");
    assert_eq!(a.stand(&client, now).await.expect("answered"), Standing::Leader);
    let lease = fake.get(LEASES, "kube-system", "weft-operator").expect("there");
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
}

#[tokio::test]
async fn the_agent_asks_for_what_its_role_grants_and_needs_all_of_it() {
    let fake = Fake::new();
    let client = fake.client();
    let stop = CancellationToken::new();
    let taint = json!([{"key": node::NOT_READY_TAINT, "effect": "NoSchedule"}]);
    fake.put(NODES, json!({"metadata": {"name": "node-1"}, "spec": {"taints": taint}}));
    let mut changes = weft_k8s::watch::start(
        &client,
        "node-1",
        weft_k8s::convert::Settings::EVERYTHING,
        EndpointsWatch { until: &stop, required: false },
        &stop,
    );
    let writer = Writer::start(client.clone(), "node-1", Duration::ZERO, stop.clone());
    announced(&writer, writer.set(endpoints(1, 300))).await;
    announced(&writer, writer.set(endpoints(1, 301))).await;
    // A slice that comes to be behind our back is looked at.
    let name = fake.all(SLICES)[0]["metadata"]["name"].as_str().expect("text").to_owned();
    fake.remove(SLICES, "", &name);
    writer.recheck();
    fake.until("mended", |fake| fake.get(SLICES, "", &name).is_some()).await;
    announced(&writer, writer.set(BTreeMap::new())).await;
    fake.put(SLICES, json!({"metadata": {"name": name}, "namespace": "n", "endpoints": []}));
    announced(&writer, writer.set(endpoints(1, 300))).await;
    // Endpoints as objects of their own, in a cluster whose definition keeps the status apart.
    fake.keep_status_apart(ENDPOINTS);
    let objects = endpoint::Writer::start(client.clone(), "node-1", WriteStyle::Coalesced, stop.clone());
    let written = |generation: u64| {
        let mut announced = objects.announced();
        async move {
            let wait = announced.wait_for(|announced| announced.generation >= generation);
            tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time").expect("runs").clone()
        }
    };
    fake.put("api/v1/pods", json!({"metadata": {"name": "pod-0", "namespace": "n", "uid": "uid-0"}}));
    let other =
        json!({"metadata": {"name": "pod-0", "namespace": "n", "ownerReferences": [{"kind": "Pod", "uid": "old"}]}});
    fake.put(ENDPOINTS, other);
    written(objects.set(own(1, 300))).await;
    written(objects.set(own(1, 301))).await;
    written(objects.set(BTreeMap::new())).await;
    assert!(fake.all(ENDPOINTS).is_empty());
    let announcement = |boot: &str| node::Announcement {
        name: "node-1".to_owned(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        propagation: Propagation::CesNode,
        boot_id: Some(boot.to_owned()),
    };
    node::announce(&client, &announcement("a")).await.expect("announced");
    node::announce(&client, &announcement("b")).await.expect("announced");
    node::set_network_ready(&client, "node-1").await.expect("set");
    let row = |app: &str| IdentityLabels {
        identity: Identity::from_raw(300),
        labels: LabelSet(BTreeMap::from([("k8s:app".to_owned(), app.to_owned())])),
        unused: false,
    };
    identity::create(&client, &row("a")).await.expect("answered");
    identity::create(&client, &row("b")).await.expect("answered");
    let held = identity::list(&client).await.expect("listed").remove(0);
    identity::mark(&client, &held, Some("2026-01-02T03:04:05Z")).await.expect("marked");
    identity::create(&client, &row("a")).await.expect("taken up");
    let name = ObjectName { namespace: "n".to_owned(), name: "a".to_owned() };
    pod::get(&client, &name).await.expect("answered");
    pod::namespace(&client, "n").await.expect("answered");
    let about = About {
        kind: "NetworkPolicy",
        api_version: "networking.k8s.io/v1",
        namespace: "n".to_owned(),
        name: "p".to_owned(),
        uid: String::new(),
    };
    warn(&client, &about, "PolicyInvalid", "spec: x", "weft-agent").await.expect("told");
    warn(&client, &about, "PolicyInvalid", "spec: x", "weft-agent").await.expect("told");
    let mut watched = 0;
    while watched < 14 {
        let batch = changes.recv().await.expect("told");
        watched += batch.iter().filter(|change| matches!(change, weft_model::intent::Change::Synced(_))).count();
    }
    // Its turns with the operator, for addresses.
    let (sender, mut shares) = mpsc::channel(8);
    follow(client.clone(), Shares { only: None }, sender, stop.clone());
    let (sender, mut pools) = mpsc::channel(8);
    follow(client.clone(), AddressPools, sender, stop.clone());
    assert!(shares.recv().await.is_some() && pools.recv().await.is_some());
    fake.until("watches", |fake| fake.asked().iter().filter(|(.., verb)| *verb == "watch").count() == 16).await;
    assert_eq!(fake.asked(), Fake::granted("weft-agent"));
    stop.cancel();
}
