//! What the agent is told, whatever the connection does.

use crate::fake::Fake;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;
use weft_k8s::convert::Settings;
use weft_k8s::watch::{self, EndpointsWatch, Timing};
use weft_model::intent::{Change, ObjectName, Source};

const PODS: &str = "api/v1/pods";
const NAMESPACES: &str = "api/v1/namespaces";
const NODES: &str = "api/v1/nodes";
const POLICIES: &str = "apis/networking.k8s.io/v1/networkpolicies";
const IDENTITIES: &str = "apis/cilium.io/v2/ciliumidentities";
const SLICES: &str = "apis/cilium.io/v2alpha1/ciliumendpointslices";

pub struct Reader {
    pub changes: Receiver<Vec<Change>>,
    pub seen: Vec<Change>,
    pub stop: CancellationToken,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Reader {
    pub fn start(fake: &Fake) -> Self {
        Self::start_with(fake, Timing::default())
    }

    pub fn start_with(fake: &Fake, timing: Timing) -> Self {
        let stop = CancellationToken::new();
        let endpoints = EndpointsWatch { until: &stop, required: false };
        let client = fake.client();
        Self {
            changes: watch::start_with(&client, "node-1", Settings::EVERYTHING, endpoints, &stop, timing),
            seen: Vec::new(),
            stop,
        }
    }

    /// Reads until `last` was told.
    pub async fn until(&mut self, what: &str, last: impl Fn(&Change) -> bool) {
        let read = async {
            while !self.seen.iter().any(&last) {
                let batch = self.changes.recv().await.expect("the watches go on");
                assert!(!batch.is_empty(), "empty batch");
                self.seen.extend(batch);
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), read).await.is_err() {
            panic!("{what}: not told; told was {:#?}", self.seen);
        }
    }

    pub async fn synced(&mut self) {
        for source in Source::all() {
            self.until("synced", |change| *change == Change::Synced(source)).await;
        }
    }

    /// A namespace that comes now: whatever of that source came before it was told before it. Forgets what was seen.
    pub async fn barrier(&mut self, fake: &Fake, n: u32) -> Vec<Change> {
        let name = format!("barrier-{n}");
        fake.put(NAMESPACES, json!({"metadata": {"name": name}}));
        self.until("barrier", |change| matches!(change, Change::Namespace(ns) if ns.name == name)).await;
        std::mem::take(&mut self.seen)
    }
}

fn pod(name: &str, node: &str, app: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "labels": {"app": app}}, "spec": {"nodeName": node}})
}

fn namespace(name: &str, team: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"team": team}}})
}

fn name_of(name: &str) -> ObjectName {
    ObjectName { namespace: "n".to_owned(), name: name.to_owned() }
}

#[tokio::test]
async fn everything_is_told_page_by_page_before_synced() {
    let fake = Fake::new();
    for n in 0..8 {
        fake.put(PODS, pod(&format!("mine-{n}"), "node-1", "a"));
        fake.put(PODS, pod(&format!("other-{n}"), "node-2", "a"));
        fake.put(NAMESPACES, namespace(&format!("ns-{n}"), "a"));
    }
    fake.put(IDENTITIES, json!({"metadata": {"name": "300"}, "security-labels": {"k8s:app": "a"}}));
    fake.put(IDENTITIES, json!({"metadata": {"name": "host"}, "security-labels": {"k8s:app": "a"}}));
    let endpoint =
        json!({"name": "a", "id": 300, "networking": {"addressing": [{"ipv4": "10.0.0.1"}], "node": "172.31.0.11"}});
    fake.put(SLICES, json!({"metadata": {"name": "s"}, "namespace": "n", "endpoints": [endpoint]}));
    fake.put(
        NODES,
        json!({"metadata": {"name": "node-2"}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.31.0.12"}]}}),
    );
    fake.put(POLICIES, json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"podSelector": {}}}));
    fake.put(POLICIES, json!({"metadata": {"name": "q", "namespace": "n"}, "spec": {"podSelector": 1}}));
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    let pods: BTreeSet<&str> = reader
        .seen
        .iter()
        .filter_map(|c| if let Change::Pod(pod) = c { Some(pod.name.name.as_str()) } else { None })
        .collect();
    assert_eq!(pods.len(), 8);
    assert!(pods.iter().all(|name| name.starts_with("mine-")));
    let last = reader.seen.iter().rposition(|c| matches!(c, Change::Pod(_))).expect("pods");
    let synced = reader.seen.iter().position(|c| *c == Change::Synced(Source::Pods)).expect("synced");
    assert!(last < synced, "told after synced");
    let count = |told: fn(&Change) -> bool| reader.seen.iter().filter(|change| told(change)).count();
    assert_eq!(count(|c| matches!(c, Change::Namespace(_))), 8);
    assert_eq!(count(|c| matches!(c, Change::Identity(_))), 1);
    assert_eq!(count(|c| matches!(c, Change::Slice(s) if s.endpoints.len() == 1)), 1);
    assert_eq!(count(|c| matches!(c, Change::Node(n) if n.pod_cidrs.len() == 1)), 1);
    assert_eq!(count(|c| matches!(c, Change::Policy(_))), 1);
    let told = count(|c| matches!(c, Change::PolicyInvalid { problem, .. } if problem.starts_with("spec.podSelector")));
    assert_eq!(told, 1);
}

#[tokio::test]
async fn changes_that_change_nothing_of_interest_are_not_told() {
    let fake = Fake::new();
    fake.duplicate();
    fake.put(NAMESPACES, namespace("a", "x"));
    fake.put(NODES, json!({"metadata": {"name": "node-2"}}));
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    reader.barrier(&fake, 0).await;
    // Heartbeats, annotations, duplicates.
    for n in 0..5 {
        let mut object = namespace("a", "x");
        object["metadata"]["annotations"] = json!({"n": n.to_string()});
        fake.put(NAMESPACES, object);
        let heartbeat = json!([{"type": "Ready", "lastHeartbeatTime": n}]);
        fake.put(NODES, json!({"metadata": {"name": "node-2"}, "status": {"conditions": heartbeat}}));
    }
    fake.put(NAMESPACES, namespace("a", "y"));
    let seen = reader.barrier(&fake, 1).await;
    let told: Vec<&Change> = seen.iter().filter(|c| matches!(c, Change::Namespace(ns) if ns.name == "a")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(!seen.iter().any(|c| matches!(c, Change::Node(_))), "{seen:?}");
}

#[tokio::test]
async fn a_broken_connection_goes_on_where_it_ended() {
    let fake = Fake::new();
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    let lists = fake.lists();
    for n in 0..3 {
        fake.hang_up();
        fake.put(NAMESPACES, namespace(&format!("ns-{n}"), "x"));
        fake.remove(NAMESPACES, "", &format!("ns-{n}"));
        let seen = reader.barrier(&fake, n).await;
        let told: Vec<&Change> = seen
            .iter()
            .filter(|c| {
                matches!(c, Change::Namespace(ns) if ns.name.starts_with("ns-"))
                    || matches!(c, Change::NamespaceGone(_))
            })
            .collect();
        assert_eq!(told.len(), 2, "{told:?}");
    }
    fake.refuse(&[500, 503, 429, 500]);
    fake.hang_up();
    reader.barrier(&fake, 9).await;
    assert_eq!(fake.lists(), lists, "no list was needed");
}

#[tokio::test]
async fn a_forgotten_version_leads_to_differences_not_to_a_replay() {
    let fake = Fake::new();
    for n in 0..10 {
        fake.put(NAMESPACES, namespace(&format!("ns-{n}"), "x"));
    }
    let kept = fake.put(PODS, pod("kept", "node-1", "a"));
    fake.put(PODS, pod("reborn", "node-1", "a"));
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    reader.barrier(&fake, 0).await;
    fake.compact(|fake| {
        fake.remove(NAMESPACES, "", "ns-3");
        fake.put(NAMESPACES, namespace("ns-4", "y"));
        fake.put(NAMESPACES, namespace("ns-new", "x"));
        fake.remove(PODS, "n", "reborn");
        fake.put(PODS, pod("reborn", "node-1", "a"));
    });
    let told = |c: &Change| matches!(c, Change::PodGone(name, _) if *name == name_of("reborn"));
    reader.until("the old pod is gone", told).await;
    let gone = reader.seen.iter().position(told).expect("seen");
    let here = |c: &Change| matches!(c, Change::Pod(pod) if pod.name == name_of("reborn"));
    reader.until("the new pod is here", here).await;
    assert!(reader.seen.iter().position(here).expect("seen") > gone);
    reader.until("gone", |c| *c == Change::NamespaceGone("ns-3".to_owned())).await;
    let seen = reader.barrier(&fake, 1).await;
    let namespaces: BTreeSet<&str> = seen
        .iter()
        .filter_map(|change| match change {
            Change::Namespace(ns) => Some(ns.name.as_str()),
            Change::NamespaceGone(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(namespaces, BTreeSet::from(["ns-3", "ns-4", "ns-new", "barrier-1"]));
    assert!(!seen.iter().any(|c| matches!(c, Change::Synced(_))), "synced is told once");
    let untouched = kept["metadata"]["uid"].as_str().expect("text");
    assert!(!seen.iter().any(|c| matches!(c, Change::PodGone(_, uid) if uid == untouched)));
}

#[tokio::test]
async fn late_and_foreign_words_change_nothing() {
    let fake = Fake::new();
    let old = fake.put(PODS, pod("a", "node-1", "old"));
    fake.remove(PODS, "n", "a");
    fake.put(PODS, pod("a", "node-1", "new"));
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    reader.seen.clear();
    // The deletion of the predecessor, and an older state, after the newer one.
    fake.inject("DELETED", PODS, old.clone());
    let mut older = old;
    older["metadata"]["uid"] = fake.get(PODS, "n", "a").expect("there")["metadata"]["uid"].clone();
    fake.inject("MODIFIED", PODS, older);
    fake.inject("SOMETHING", PODS, pod("a", "node-1", "odd"));
    fake.inject("ADDED", PODS, json!({"metadata": {}}));
    fake.put(PODS, pod("last", "node-1", "x"));
    reader.until("the last one", |c| matches!(c, Change::Pod(pod) if pod.name == name_of("last"))).await;
    assert_eq!(reader.seen.len(), 1, "{:?}", reader.seen);
}

#[tokio::test]
async fn an_error_event_leads_to_a_list() {
    let fake = Fake::new();
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    reader.seen.clear();
    let lists = fake.lists();
    let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old", "metadata": {}});
    fake.inject("ERROR", NAMESPACES, status);
    fake.until("listed again", |fake| fake.lists() > lists).await;
    reader.barrier(&fake, 0).await;
}

#[tokio::test]
async fn a_slice_that_cannot_be_read_leaves_what_was_known() {
    let fake = Fake::new();
    let slice = |id: i64, address: &str| {
        let endpoint =
            json!({"name": "a", "id": id, "networking": {"addressing": [{"ipv4": address}], "node": "172.31.0.11"}});
        json!({"metadata": {"name": "s"}, "namespace": "n", "endpoints": [endpoint]})
    };
    fake.put(SLICES, slice(300, "10.0.0.1"));
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    reader.seen.clear();
    fake.put(SLICES, slice(1, "10.0.0.1"));
    fake.put(SLICES, slice(300, "10.0.0.1"));
    fake.put(SLICES, slice(300, "10.0.0.2"));
    reader.until("the new address", |c| matches!(c, Change::Slice(_))).await;
    let told: Vec<&Change> =
        reader.seen.iter().filter(|c| matches!(c, Change::Slice(_) | Change::SliceGone(_))).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    fake.remove(SLICES, "", "s");
    reader.until("gone", |c| *c == Change::SliceGone("s".to_owned())).await;
}

#[tokio::test]
async fn the_watches_end_with_stop_and_with_the_reader() {
    let fake = Fake::new();
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    reader.stop.cancel();
    let end = async { while reader.changes.recv().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), end).await.expect("the channel closes");
}

#[tokio::test]
async fn a_kind_that_the_server_does_not_know_yet_is_empty_until_it_does() {
    const CILIUM: &str = "apis/cilium.io/v2/ciliumnetworkpolicies";
    const GROUPS: &str = "apis/cilium.io/v2/ciliumcidrgroups";
    let fake = Fake::new();
    fake.set_known(CILIUM, false);
    fake.set_known(GROUPS, false);
    let mut reader = Reader::start(&fake);
    reader.synced().await;
    let spec = json!({"endpointSelector": {}, "ingress": [{}]});
    fake.put(CILIUM, json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}));
    fake.put(GROUPS, json!({"metadata": {"name": "g"}, "spec": {"externalCIDRs": ["10.0.0.0/8"]}}));
    fake.set_known(CILIUM, true);
    fake.set_known(GROUPS, true);
    reader.until("the policy", |change| matches!(change, Change::Policy(policy) if policy.specs.len() == 1)).await;
    reader.until("the group", |change| matches!(change, Change::CidrGroup(group) if group.name == "g")).await;
    let synced = reader.seen.iter().filter(|change| **change == Change::Synced(Source::CidrGroups)).count();
    assert_eq!(synced, 1);
    // A server that forgets the kind for a moment takes nothing away.
    fake.set_known(CILIUM, false);
    fake.compact(|_| {});
    let before = fake.lists();
    fake.until("asked again", |fake| fake.lists() > before + 12).await;
    fake.set_known(CILIUM, true);
    let told = reader.barrier(&fake, 1).await;
    assert!(!told.iter().any(|change| matches!(change, Change::PolicyGone(_))), "{told:#?}");
}

#[tokio::test]
async fn services_and_what_is_behind_them() {
    const SERVICES: &str = "api/v1/services";
    const BACKENDS: &str = "apis/discovery.k8s.io/v1/endpointslices";
    let fake = Fake::new();
    let slice = |label: &str| {
        json!({"metadata": {"name": "s-1", "namespace": "n", "labels": {label: "s"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}]})
    };
    fake.put(SERVICES, json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"selector": {"a": "b"}}}));
    fake.put(BACKENDS, slice("kubernetes.io/service-name"));
    let mut reader = Reader::start(&fake);
    reader.until("the Service", |c| matches!(c, Change::Service(s) if s.name == name_of("s"))).await;
    reader.until("its addresses", |c| matches!(c, Change::Backends(b) if b.service == name_of("s"))).await;
    // What cannot be used takes nothing away, not even by its absence from a list.
    reader.synced().await;
    reader.seen.clear();
    let bad = |kind: &str, field: &str, value: Value| {
        let mut object = fake.get(kind, "n", if kind == SERVICES { "s" } else { "s-1" }).expect("there");
        object[field] = value;
        fake.put(kind, object)
    };
    bad(SERVICES, "spec", json!({"clusterIP": "10.96.0.1", "ports": []}));
    bad(BACKENDS, "endpoints", json!([{"addresses": ["127.0.0.1"]}]));
    bad(SERVICES, "spec", json!({"clusterIP": 7}));
    bad(BACKENDS, "endpoints", json!("none"));
    fake.compact(|_| {});
    let lists = fake.lists();
    fake.until("all kinds are listed again", |fake| fake.lists() >= lists + 13).await;
    let told = reader.barrier(&fake, 0).await;
    let about = |c: &Change| !matches!(c, Change::Namespace(_));
    assert!(!told.iter().any(about), "{told:?}");
    fake.put(BACKENDS, slice("nobody"));
    reader.until("no longer its addresses", |c| *c == Change::BackendsGone(name_of("s-1"))).await;
    fake.remove(SERVICES, "n", "s");
    reader.until("gone", |c| *c == Change::ServiceGone(name_of("s"))).await;
}
