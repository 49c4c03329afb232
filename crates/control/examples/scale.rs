//! Time and memory of the policy engine at scale: `cargo run --release -p weft-control --example scale`.
//!
//! 10,000 rules, 20,000 identities and 250 endpoints of one node, compiled from nothing, then changed one by one. In three
//! shapes: rules as people write them, rules that overlap in thousands of ways, and every identity in every rule.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use weft_control::identity::{PodFacts, label_set};
use weft_control::policy::{Change, Engine, Limits, LocalEndpoint, Plan};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{
    EndpointSelector, ObjectName, Peer, Policy, PolicyKind, PolicyName, PortMatch, PortRule, Protocol, Rule,
    RuleAction, Spec, Subject, Tier,
};
use weft_model::label::LabelSet;
use weft_model::selector::Requirement;

const IDENTITIES: u32 = 20_000;
const POLICIES: usize = 5_000;
const RULES_EACH: usize = 2;
const ENDPOINTS: u16 = 250;
const NAMESPACES: u32 = 100;

/// How the rules name their peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// By one app of one namespace.
    Apps,
    /// By labels that cut across each other.
    Crossing,
    /// Each in its own words, all identities.
    Everybody,
}

fn namespace(n: u32) -> String {
    format!("namespace-{}", n % NAMESPACES)
}

fn labels(n: u32) -> LabelSet {
    let own = BTreeMap::from([
        ("app".to_owned(), format!("app-{}", n / NAMESPACES)),
        ("version".to_owned(), format!("v{}", n % 7)),
        ("tier".to_owned(), format!("tier-{}", n % 3)),
    ]);
    let of_namespace = BTreeMap::from([("team".to_owned(), format!("team-{}", n % 10))]);
    label_set(&PodFacts {
        cluster: "weft",
        namespace: &namespace(n),
        namespace_labels: &of_namespace,
        labels: &own,
        service_account: "default",
    })
}

fn identity(n: u32) -> Change {
    Change::PutIdentity(Identity::allocated(256 + n).expect("in range"), Arc::new(labels(n)))
}

fn is(key: &str, value: String) -> Requirement {
    Requirement::In(format!("k8s:{key}"), [value].into())
}

fn policy(n: usize, shape: Shape, version: usize) -> Change {
    let number = u32::try_from(n).expect("few");
    let own = namespace(number);
    let rule = |k: usize| {
        let other = u32::try_from(n * 7 + k * 13 + version).expect("few");
        let peer = match shape {
            Shape::Apps => EndpointSelector {
                namespace: Some(namespace(other)),
                requirements: vec![is("app", format!("app-{}", (other / NAMESPACES) % (IDENTITIES / NAMESPACES)))],
            },
            Shape::Crossing => EndpointSelector {
                namespace: (k == 1).then(|| namespace(other)),
                requirements: match n % 3 {
                    0 => vec![is("version", format!("v{}", other % 7)), is("tier", format!("tier-{}", n % 3))],
                    1 => vec![is("app", format!("app-{}", other % (IDENTITIES / NAMESPACES)))],
                    _ => vec![Requirement::NotIn("k8s:tier".to_owned(), [format!("tier-{}", other % 3)].into())],
                },
            },
            Shape::Everybody => EndpointSelector {
                namespace: None,
                requirements: vec![Requirement::NotIn("k8s:app".to_owned(), [format!("not-{n}-{k}-{version}")].into())],
            },
        };
        let port = u16::try_from(1024 + (n + k) % 20_000).expect("16 bits");
        Rule {
            place: format!("ingress[{k}]").into(),
            action: RuleAction::Allow,
            peers: Some(vec![Peer::Endpoints(peer)]),
            ports: Some(vec![PortRule { protocol: Protocol::Tcp, port: PortMatch::Range(port, port) }]),
        }
    };
    // Every pod of the namespace has some of them, and each some of its own.
    let subject = EndpointSelector {
        namespace: Some(own.clone()),
        requirements: vec![is("app", format!("app-{}", (n / NAMESPACES as usize) % 3))],
    };
    Change::PutPolicy(Arc::new(Policy {
        name: PolicyName {
            kind: PolicyKind::NetworkPolicy,
            object: ObjectName { namespace: own, name: format!("policy-{n}") },
        },
        uid: format!("uid-{n}"),
        resource_version: version.to_string(),
        specs: vec![Spec {
            subject: Subject::Endpoints(subject),
            tier: Tier::Normal,
            isolates_ingress: true,
            isolates_egress: false,
            ingress: (0..RULES_EACH).map(rule).collect(),
            egress: Vec::new(),
            log: None,
        }],
    }))
}

fn endpoint(n: u16) -> Change {
    let [high, low] = n.to_be_bytes();
    Change::PutEndpoint(LocalEndpoint {
        id: EndpointId::new(n).expect("in range"),
        pod: ObjectName { namespace: namespace(u32::from(n)), name: format!("pod-{n}") },
        labels: labels(u32::from(n)),
        identity: Identity::allocated(256 + u32::from(n)).expect("in range"),
        addresses: vec![IpAddr::from([10, 244, high, low])],
        named_ports: Vec::new(),
    })
}

/// Resident memory of this process in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn writes(plan: &Plan) -> String {
    let rows: usize = plan.put.iter().map(|(_, policy)| policy.classes.len() + policy.entries.len()).sum();
    let patched: usize =
        plan.patch.iter().chain(&plan.late_patch).map(|(_, p)| p.put_classes.len() + p.put_entries.len()).sum();
    format!(
        "{} policies written with {rows} rows and entries, {} patched with {patched}, {} peers, {} endpoints",
        plan.put.len(),
        plan.patch.len(),
        plan.put_peers.len() + plan.narrow.len(),
        plan.switch.len()
    )
}

fn timed(what: &str, engine: &mut Engine, changes: Vec<Change>) {
    let start = Instant::now();
    let plan = engine.apply(changes);
    let passed = start.elapsed();
    println!("  {what}: {:.2} ms; {}", passed.as_secs_f64() * 1e3, writes(&plan));
}

fn main() {
    for shape in [Shape::Apps, Shape::Crossing, Shape::Everybody] {
        let empty = resident();
        let mut all: Vec<Change> = (0..IDENTITIES).map(identity).collect();
        all.extend((1..=ENDPOINTS).map(endpoint));
        all.extend((0..POLICIES).map(|n| policy(n, shape, 0)));
        let given = resident();
        println!("{shape:?}: {} MiB for what is given", given.saturating_sub(empty));
        let limits = Limits { entries: 1 << 20, rows: 1 << 20, ..Limits::default() };
        let mut engine = Engine::new(limits);
        timed("all at once", &mut engine, all);
        println!("  {} MiB in all; {:?}", resident(), engine.sizes());
        assert!(engine.problems().is_empty(), "{:?}", engine.problems().first());
        let desired = engine.desired();
        let used: BTreeSet<_> = desired.endpoints.values().map(|endpoint| endpoint.ingress).collect();
        println!("  {} policies for {} endpoints", used.len(), desired.endpoints.len());
        timed(
            "one more identity with known labels",
            &mut engine,
            vec![{
                let labels = Arc::new(labels(5));
                Change::PutIdentity(Identity::allocated(256 + IDENTITIES).expect("in range"), labels)
            }],
        );
        timed(
            "one more identity with new labels",
            &mut engine,
            vec![{
                let labels = Arc::new(labels(IDENTITIES + 1));
                Change::PutIdentity(Identity::allocated(256 + IDENTITIES + 1).expect("in range"), labels)
            }],
        );
        timed(
            "one identity less",
            &mut engine,
            vec![Change::RemoveIdentity(Identity::allocated(900).expect("in range"))],
        );
        timed("one policy changed", &mut engine, vec![policy(1, shape, 1)]);
        timed("one policy more", &mut engine, vec![policy(POLICIES, shape, 0)]);
        let Change::PutPolicy(last) = policy(POLICIES, shape, 0) else { unreachable!("just made") };
        timed("one policy less", &mut engine, vec![Change::RemovePolicy(last.name.clone())]);
        timed("one more endpoint", &mut engine, vec![endpoint(ENDPOINTS + 1)]);
        println!("  {:?}", engine.sizes());
    }
}
