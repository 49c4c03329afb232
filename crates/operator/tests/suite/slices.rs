//! Slices made of CiliumEndpoints, against an API server in memory.
#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

use crate::fake::Fake;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_k8s::endpoint::PROPAGATION;
use weft_k8s::slice::NODE_LABEL;
use weft_operator::config::Config;

const SLICES: &str = "apis/cilium.io/v2alpha1/ciliumendpointslices";
const ENDPOINTS: &str = "apis/cilium.io/v2/ciliumendpoints";
const CILIUM_NODES: &str = "apis/cilium.io/v2/ciliumnodes";
const NAMESPACES: &str = "api/v1/namespaces";

const FAST: &str = r#"[{"nodes":0,"limit":1000,"burst":1000}]"#;

fn config(args: &[&str]) -> Config {
    let always = ["weft-operator", "--lease-seconds", "3", "--gc-seconds", "0", "--node-grace-seconds", "1"];
    let args = always.iter().chain(args).map(Into::into);
    weft_settings::from_args::<Config>(args).expect("flags").check().expect("valid")
}

fn making() -> Config {
    config(&["--endpoint-propagation", "ces-operator", "--ces-delay-ms", "20", "--ces-rate-limits", FAST])
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

    /// As by `kill -9`: whatever it was about to write is not written.
    fn kill(mut self) {
        self.task.take().expect("killed once").abort();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn endpoint(namespace: &str, pod: usize, identity: u32) -> Value {
    json!({
        "metadata": {
            "name": format!("pod-{pod}"),
            "namespace": namespace,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": format!("pod-{pod}"), "uid": format!("u-{pod}")}],
        },
        "status": {
            "id": 7,
            "identity": {"id": identity},
            "networking": {
                "addressing": [{"ipv4": format!("10.244.{}.{}", pod / 250, pod % 250 + 1), "ipv6": format!("fd44::{pod:x}")}],
                "node": "172.31.0.12",
            },
            "state": "ready",
        },
    })
}

/// Which pods are in which slices, and of which identity.
fn held(fake: &Fake) -> BTreeMap<String, BTreeMap<String, u64>> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let pods = |slice: &Value| {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        endpoints.map(|e| (text(&e["name"]), e["id"].as_u64().expect("a number"))).collect()
    };
    fake.all(SLICES).iter().map(|slice| (text(&slice["metadata"]["name"]), pods(slice))).collect()
}

fn holds(pods: std::ops::Range<usize>) -> impl Fn(&Fake) -> bool {
    move |fake| {
        let slices = held(fake);
        let names: Vec<&String> = slices.values().flat_map(BTreeMap::keys).collect();
        let wanted: BTreeSet<String> = pods.clone().map(|pod| format!("pod-{pod}")).collect();
        names.len() == wanted.len() && names.into_iter().all(|name| wanted.contains(name))
    }
}

fn writes(fake: &Fake, verb: &str) -> usize {
    fake.writes().iter().filter(|write| write.starts_with(verb) && write.contains("ciliumendpointslices")).count()
}

#[tokio::test]
async fn endpoints_are_packed_a_hundred_to_a_slice_and_one_namespace_each() {
    let fake = Fake::new();
    for pod in 0..150 {
        fake.put(ENDPOINTS, endpoint("a", pod, 300));
    }
    let operator = Operator::start(&fake, making());
    fake.until("all are in slices", holds(0..150)).await;
    let sizes: BTreeSet<usize> = held(&fake).values().map(BTreeMap::len).collect();
    assert_eq!(sizes, BTreeSet::from([50, 100]));
    let name = held(&fake).into_keys().next().expect("one");
    let parts: Vec<&str> = name.split('-').collect();
    assert_eq!((parts[0], parts[1].len(), parts[2].len()), ("ces", 9, 5));
    assert_eq!(fake.all(SLICES)[0]["namespace"], "a");
    fake.put(ENDPOINTS, endpoint("a", 7, 301));
    fake.until("a new identity", |fake| held(fake).values().any(|pods| pods.get("pod-7") == Some(&301))).await;
    for pod in 100..150 {
        fake.remove(ENDPOINTS, "a", &format!("pod-{pod}"));
    }
    fake.until("gone", holds(0..100)).await;
    operator.stop().await;
}

#[tokio::test]
async fn race_2_a_restarted_operator_deletes_and_makes_no_slice() {
    let fake = Fake::new();
    for pod in 0..120 {
        fake.put(ENDPOINTS, endpoint("a", pod, 300));
    }
    let operator = Operator::start(&fake, making());
    fake.until("all are in slices", holds(0..120)).await;
    operator.kill();
    let (before, written) = (held(&fake), fake.writes().len());
    // Meanwhile one pod goes, one comes.
    fake.remove(ENDPOINTS, "a", "pod-0");
    fake.put(ENDPOINTS, endpoint("a", 120, 300));
    let operator = Operator::start(&fake, making());
    fake.until("as the endpoints are", holds(1..121)).await;
    let made: Vec<String> = fake.writes()[written..].iter().filter(|w| w.contains("slices")).cloned().collect();
    assert!(made.iter().all(|write| write.starts_with("PUT")) && made.len() <= 3, "{made:?}");
    assert!(before.keys().eq(held(&fake).keys()), "the slices are the same ones");
    for (name, pods) in held(&fake) {
        let stayed = pods.keys().filter(|pod| *pod != "pod-120").all(|pod| before[&name].contains_key(pod));
        assert!(stayed, "{name}: no endpoint moved");
    }
    operator.stop().await;
}

#[tokio::test]
async fn race_5_the_leader_dies_in_a_roll_out_and_no_slice_is_deleted() {
    let fake = Fake::new();
    for pod in 0..200 {
        fake.put(ENDPOINTS, endpoint("a", pod, 300));
    }
    let first = Operator::start(&fake, making());
    fake.until("all are in slices", holds(0..200)).await;
    let second = Operator::start(&fake, making());
    // A roll-out: one comes, one goes. In its middle the leader is gone without a word.
    let mut first = Some(first);
    for pod in 200..400 {
        fake.put(ENDPOINTS, endpoint("a", pod, 301));
        fake.remove(ENDPOINTS, "a", &format!("pod-{}", pod - 200));
        if pod == 300 {
            fake.until("written in between", |fake| held(fake).values().any(|pods| pods.contains_key("pod-250"))).await;
            first.take().expect("once").kill();
        }
        tokio::task::yield_now().await;
    }
    fake.until("as the endpoints are", holds(200..400)).await;
    assert_eq!(writes(&fake, "DELETE"), 0, "{:?}", fake.writes());
    assert!(held(&fake).values().all(|pods| pods.len() <= 100));
    second.stop().await;
}

#[tokio::test]
async fn a_slice_changed_behind_the_operators_back_is_mended() {
    let fake = Fake::new();
    for pod in 0..3 {
        fake.put(ENDPOINTS, endpoint("a", pod, 300));
    }
    let operator = Operator::start(&fake, making());
    fake.until("all are in a slice", holds(0..3)).await;
    let mut slice = fake.all(SLICES).remove(0);
    slice["endpoints"] = json!([]);
    fake.put(SLICES, slice.clone());
    fake.until("mended", holds(0..3)).await;
    fake.remove(SLICES, "", slice["metadata"]["name"].as_str().expect("text"));
    fake.until("made anew", holds(0..3)).await;
    operator.stop().await;
}

#[tokio::test]
async fn what_others_wrote_is_taken_over_and_nodes_slices_are_left_alone() {
    let fake = Fake::new();
    let core = |pod: usize| {
        json!({"name": format!("pod-{pod}"), "id": 300, "pod-uid": format!("u-{pod}"),
        "networking": {"addressing": [{"ipv4": format!("10.244.0.{}", pod + 1), "ipv6": format!("fd44::{pod:x}")}], "node": "172.31.0.12"}})
    };
    fake.put(
        SLICES,
        json!({"metadata": {"name": "ces-of-another"}, "namespace": "a", "endpoints": [core(0), core(9)]}),
    );
    let own =
        json!({"metadata": {"name": "node", "labels": {NODE_LABEL: "n"}}, "namespace": "a", "endpoints": [core(5)]});
    let own = fake.put(SLICES, own);
    for pod in 0..2 {
        fake.put(ENDPOINTS, endpoint("a", pod, 300));
    }
    let operator = Operator::start(&fake, making());
    let as_wanted = |fake: &Fake| held(fake)["ces-of-another"].keys().eq(["pod-0", "pod-1"]);
    fake.until("pod-9 is gone, pod-1 is in", as_wanted).await;
    assert_eq!(fake.get(SLICES, "", "node"), Some(own));
    assert_eq!(held(&fake).len(), 2);
    operator.stop().await;
}

#[tokio::test]
async fn slices_are_made_for_agents_that_read_them_and_go_when_none_does() {
    let fake = Fake::new();
    let node = |mode: &str| json!({"metadata": {"name": "n", "annotations": {PROPAGATION: mode}}});
    fake.put(ENDPOINTS, endpoint("a", 0, 300));
    fake.put(SLICES, json!({"metadata": {"name": "ces-of-another"}, "namespace": "b", "endpoints": []}));
    fake.put(CILIUM_NODES, node("cep"));
    let operator = Operator::start(&fake, config(&["--ces-delay-ms", "10"]));
    fake.put(NAMESPACES, json!({"metadata": {"name": "a"}}));
    fake.put(CILIUM_NODES, node("ces-operator"));
    fake.until("made for the one that reads", holds(0..1)).await;
    fake.put(SLICES, json!({"metadata": {"name": "ces-yet-another"}, "namespace": "b", "endpoints": []}));
    fake.put(CILIUM_NODES, node("ces-node"));
    fake.until("gone", |fake| held(fake).keys().eq(["ces-yet-another"])).await;
    operator.stop().await;
}

#[tokio::test]
async fn nothing_is_said_to_be_missing_before_every_endpoint_is_known() {
    let fake = Fake::new();
    for pod in 0..10 {
        fake.put(ENDPOINTS, endpoint("a", pod, 300));
    }
    let operator = Operator::start(&fake, making());
    fake.until("all are in slices", holds(0..10)).await;
    operator.stop().await;
    let before = fake.writes().len();
    // The server does not answer for the kind: that is no word about the endpoints.
    fake.set_known(ENDPOINTS, false);
    let lists = fake.lists();
    let operator = Operator::start(&fake, making());
    fake.until("asked", |fake| fake.lists() > lists + 6).await;
    fake.set_known(ENDPOINTS, true);
    fake.put(ENDPOINTS, endpoint("a", 10, 300));
    fake.until("goes on", holds(0..11)).await;
    let made: Vec<String> = fake.writes()[before..].iter().filter(|w| w.contains("slices")).cloned().collect();
    assert!(made.iter().all(|write| write.starts_with("PUT")), "{made:?}");
    operator.stop().await;
}
