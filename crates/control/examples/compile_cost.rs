//! What compiling costs: `cargo run --release -p weft-control --example compile_cost [policies identities endpoints]`.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_control::identity::{PodFacts, label_set};
use weft_control::policy::{Change, Engine, LocalEndpoint};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{ObjectName, Peer, Policy, PortMatch, PortRule, Protocol, Rule};
use weft_model::selector::{Requirement, Selector};

const NAMESPACES: usize = 20;
const APPS: usize = 50;

fn app(n: usize) -> Selector {
    Selector { requirements: vec![Requirement::In("app".to_owned(), [format!("app-{n}")].into())] }
}

fn labels(n: usize) -> BTreeMap<String, String> {
    [("app".to_owned(), format!("app-{}", n % APPS)), ("version".to_owned(), format!("v{n}"))].into()
}

fn namespace(n: usize) -> String {
    format!("ns-{}", n % NAMESPACES)
}

fn identity(n: usize) -> Change {
    let namespace = namespace(n);
    let namespace_labels = [("kubernetes.io/metadata.name".to_owned(), namespace.clone())].into();
    let set = label_set(&PodFacts {
        cluster: "weft",
        namespace: &namespace,
        namespace_labels: &namespace_labels,
        labels: &labels(n),
        service_account: "default",
    });
    let number = u32::try_from(256 + n).expect("few identities");
    Change::PutIdentity(Identity::allocated(number).expect("few identities"), Arc::new(set))
}

fn endpoint(n: usize) -> Change {
    let id = u16::try_from(n + 1).ok().and_then(EndpointId::new).expect("few endpoints");
    Change::PutEndpoint(LocalEndpoint {
        id,
        pod: ObjectName { namespace: namespace(n), name: format!("pod-{n}") },
        labels: labels(n),
        identity: Identity::allocated(256).expect("in range"),
        addresses: vec![IpAddr::from([
            10,
            244,
            u8::try_from(n >> 8).unwrap_or(0),
            u8::try_from(n & 0xff).unwrap_or(0),
        ])],
        named_ports: Vec::new(),
    })
}

/// Of ten policies: seven between apps of a namespace, two across namespaces, one with addresses.
fn policy(n: usize, version: usize) -> Change {
    let ns = n % NAMESPACES;
    // Every other one is for all pods of its namespace.
    let subject = if n.is_multiple_of(2) { Selector::default() } else { app(n / NAMESPACES % APPS) };
    let peer = match n % 10 {
        0..7 => Peer::Pods { namespaces: None, pods: app(n / 7 % APPS) },
        7 | 8 => {
            let key = "kubernetes.io/metadata.name".to_owned();
            let other = Requirement::In(key, [namespace(n / 3)].into());
            Peer::Pods { namespaces: Some(Selector { requirements: vec![other] }), pods: Selector::default() }
        }
        _ => {
            let (a, b) = (u8::try_from(n >> 8 & 0xff).unwrap_or(0), u8::try_from(n & 0xff).unwrap_or(0));
            let net = format!("10.{a}.{b}.0/24").parse().expect("a prefix");
            Peer::Block { cidr: net, except: Vec::new() }
        }
    };
    let first = u16::try_from(1000 + n % 5000 + version).unwrap_or(1000);
    let ports = vec![PortRule { protocol: Protocol::Tcp, port: PortMatch::Range(first, first + 9) }];
    Change::PutPolicy(Arc::new(Policy {
        kind: "NetworkPolicy",
        name: ObjectName { namespace: format!("ns-{ns}"), name: format!("policy-{n}") },
        uid: n.to_string(),
        resource_version: version.to_string(),
        pod_selector: subject,
        ingress: Some(vec![Rule { peers: Some(vec![peer]), ports: Some(ports) }]),
        egress: None,
    }))
}

fn all(policies: usize, identities: usize, endpoints: usize) -> Vec<Change> {
    (0..identities)
        .map(identity)
        .chain((0..endpoints).map(endpoint))
        .chain((0..policies).map(|n| policy(n, 0)))
        .collect()
}

/// The median of some runs.
fn median(mut run: impl FnMut(usize) -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..21).map(&mut run).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let (policies, identities, endpoints) = match given.as_slice() {
        [policies, identities, endpoints] => (*policies, *identities, *endpoints),
        _ => (1_000, 5_000, 100),
    };
    println!("{policies} policies x {identities} identities x {endpoints} endpoints");
    let timed = |engine: &mut Engine, changes: Vec<Change>| {
        let start = Instant::now();
        let plan = engine.apply(changes);
        (start.elapsed(), plan)
    };
    let mut engine = Engine::default();
    let (whole, plan) = timed(&mut engine, all(policies, identities, endpoints));
    println!("from nothing             {whole:>12.3?}   {:?}", engine.sizes());
    println!("                         {} policies put, {} endpoints switched", plan.put.len(), plan.switch.len());

    let one = median(|n| timed(&mut engine, vec![identity(identities + n)]).0);
    println!("one more identity        {one:>12.3?}   1/{}", whole.as_nanos() / one.as_nanos().max(1));
    let added = median(|n| timed(&mut engine, vec![policy(policies + 2 * n, 0)]).0);
    println!("one more policy (5 pods) {added:>12.3?}   1/{}", whole.as_nanos() / added.as_nanos().max(1));
    let touches = median(|n| timed(&mut engine, vec![policy(2 * n % policies.max(1), n + 1)]).0);
    println!("one rule changed (same)  {touches:>12.3?}   1/{}", whole.as_nanos() / touches.as_nanos().max(1));
    let more = median(|n| timed(&mut engine, vec![endpoint(endpoints + n)]).0);
    println!("one more endpoint        {more:>12.3?}   1/{}", whole.as_nanos() / more.as_nanos().max(1));
}
