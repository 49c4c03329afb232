//! Policies at scale on one node: 10,000 rules, 20,000 identities and 250 endpoints, from nothing and then changed one by
//! one, each time from the change to in force in real maps of the kernel. In three shapes: rules as people write them,
//! rules whose labels cut across each other, and every identity in every rule.
//!
//! Runs in a mount namespace and a network namespace of its own; the maps go with the process.

use crate::report::{Report, percentile};
use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use weft_abi::map_name;
use weft_control::identity::{PodFacts, label_set};
use weft_control::policy::{Change, Engine, Limits, LocalEndpoint, Plan};
use weft_datapath::{Datapath, Options};
use weft_model::desired::{Dataplane, Endpoint, Touched};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{
    EndpointSelector, ObjectName, Peer, Policy, PolicyKind, PolicyName, PortMatch, PortRule, Protocol, Rule,
    RuleAction, Spec, Subject, Tier,
};
use weft_model::label::LabelSet;
use weft_model::selector::Requirement;

/// Changes of each kind.
const TIMES: u32 = 200;
/// The same for labels that cut across each other: every one of them makes more classes.
const TIMES_CROSSING: u32 = 10;
/// Room in the maps: more than an agent asks for by default, so that the shape that needs most can be measured.
const ROOM: u32 = 1 << 21;

pub const IDENTITIES: u32 = 20_000;
pub const POLICIES: usize = 5_000;
const RULES_EACH: usize = 2;
pub const ENDPOINTS: u16 = 250;
const NAMESPACES: u32 = 100;

/// How the rules name their peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// By one app of one namespace.
    Apps,
    /// By labels that cut across each other.
    Crossing,
    /// Each in its own words, all identities.
    Everybody,
}

pub fn namespace(n: u32) -> String {
    format!("namespace-{}", n % NAMESPACES)
}

pub fn labels(n: u32) -> LabelSet {
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

pub fn policy(n: usize, shape: Shape, version: usize) -> Change {
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
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Carries out a plan as the agent does.
fn put_in_force(plan: Plan, dataplane: &mut Datapath) -> Result<()> {
    for (id, policy) in &plan.put {
        dataplane.put_policy(*id, policy)?;
    }
    for (id, patch) in &plan.patch {
        dataplane.patch_policy(*id, patch)?;
    }
    dataplane.put_peers(&plan.put_peers.into_iter().collect())?;
    for (cidr, number) in &plan.add_cidrs {
        dataplane.set_cidr(*cidr, Some(*number))?;
    }
    for target in &plan.switch {
        ensure!(target.blocked.is_none(), "blocked: {:?}", target.blocked);
        let Change::PutEndpoint(local) = endpoint(target.id.raw()) else { anyhow::bail!("an endpoint") };
        dataplane.put_endpoint(&Endpoint {
            id: target.id,
            addresses: local.addresses,
            ifindex: 1,
            pod_mac: [2, 0, 0, 0, 0, 1],
            host_mac: [2, 0, 0, 0, 0, 2],
            identity: local.identity,
            ingress: target.ingress,
            egress: target.egress,
            blocked: false,
            audit: false,
        })?;
    }
    let (mut moved, mut gone) = (BTreeMap::new(), std::collections::BTreeSet::new());
    for (peer, class) in plan.narrow {
        match class {
            Some(class) => drop(moved.insert(peer, class)),
            None => drop(gone.insert(peer)),
        }
    }
    dataplane.put_peers(&moved)?;
    dataplane.remove_peers(&gone)?;
    if !plan.touched.is_empty() {
        dataplane.bump(&Touched::Endpoints(plan.touched))?;
    }
    for cidr in &plan.remove_cidrs {
        dataplane.set_cidr(*cidr, None)?;
    }
    dataplane.remove_peers(&plan.del_peers.into_iter().collect())?;
    for (id, patch) in &plan.late_patch {
        dataplane.patch_policy(*id, patch)?;
    }
    for id in &plan.remove {
        dataplane.remove_policy(*id)?;
    }
    Ok(())
}

/// Milliseconds until the changes are compiled, and until they are in force.
fn timed(engine: &mut Engine, dataplane: &mut Datapath, changes: Vec<Change>) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut plan = engine.apply(changes);
    let compiled = start.elapsed();
    loop {
        put_in_force(plan, dataplane)?;
        if !engine.needs_retry() {
            break;
        }
        plan = engine.apply([]);
    }
    Ok((compiled.as_secs_f64() * 1e3, start.elapsed().as_secs_f64() * 1e3))
}

/// Into namespaces of its own: what is mounted goes with the process.
pub fn alone() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("namespaces of its own")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("private mounts")
}

/// Measures it.
pub fn run() -> Result<Report> {
    alone()?;
    let dir = tempfile::tempdir()?;
    let mut report = Report::default();
    for shape in [Shape::Apps, Shape::Crossing, Shape::Everybody] {
        let place = dir.path().join(format!("{shape:?}"));
        let measured = scale(shape, &place, &mut report);
        // The maps are there for as long as their file system is.
        let _ = umount2(&place, MntFlags::MNT_DETACH);
        measured.with_context(|| format!("{shape:?}"))?;
    }
    Ok(report)
}

fn scale(shape: Shape, dir: &Path, report: &mut Report) -> Result<()> {
    let scenario = match shape {
        Shape::Apps => "policy-scale/typical",
        Shape::Crossing => "policy-scale/crossing",
        Shape::Everybody => "policy-scale/everybody",
    };
    std::fs::create_dir_all(dir)?;
    let sizes = [map_name::PEERS, map_name::POLICY_CLASSES, map_name::POLICY_ENTRIES].map(|name| (name, ROOM));
    let options = Options { entries_max: BTreeMap::from(sizes), ..Options::new(dir) };
    let (mut dataplane, _) = Datapath::open(&options)?;
    let before = resident();
    let mut all: Vec<Change> = (0..IDENTITIES).map(identity).collect();
    all.extend((1..=ENDPOINTS).map(endpoint));
    all.extend((0..POLICIES).map(|n| policy(n, shape, 0)));
    let room = ROOM as usize / 2;
    let mut engine = Engine::new(Limits { entries: room, rows: room, peers: room, ..Limits::default() });
    let (compiled, in_force) = timed(&mut engine, &mut dataplane, all)?;
    ensure!(engine.problems().is_empty(), "{:?}", engine.problems().first());
    report.plain(scenario, "compile_all", compiled, "ms", 1);
    report.plain(scenario, "all_in_force", in_force, "ms", 1);
    report.plain(scenario, "rss_mib", resident().saturating_sub(before) as f64, "MiB", 1);
    let usage = dataplane.usage()?;
    let used = |name: &str| usage.iter().find(|map| map.name == name).map_or(0, |map| map.entries) as f64;
    let parts = [map_name::PEERS, map_name::POLICY_CLASSES, map_name::POLICY_ENTRIES].map(used);
    for (metric, entries) in ["peers", "rows", "entries"].into_iter().zip(parts) {
        report.plain(scenario, metric, entries, "", 1);
    }
    let given = f64::from(IDENTITIES) + (POLICIES * RULES_EACH) as f64;
    report.plain(scenario, "of_identities_and_rules", parts.iter().sum::<f64>() / given, "x", 1);

    let known = |n: u32| Change::PutIdentity(number(IDENTITIES + n), Arc::new(labels(n)));
    let unheard = |n: u32| Change::PutIdentity(number(IDENTITIES + TIMES + n), Arc::new(labels(IDENTITIES + n)));
    let more = |n: u32| policy(POLICIES + n as usize, shape, 1);
    let less = |n: u32| match more(n) {
        Change::PutPolicy(policy) => Change::RemovePolicy(policy.name.clone()),
        other => other,
    };
    let kinds: [(&str, &dyn Fn(u32) -> Change); 4] =
        [("identity_known", &known), ("identity_new", &unheard), ("policy_more", &more), ("policy_less", &less)];
    for (what, change) in kinds {
        let mut times = Vec::new();
        let count = if shape == Shape::Crossing { TIMES_CROSSING } else { TIMES };
        for n in 0..count {
            times.push(timed(&mut engine, &mut dataplane, vec![change(n)])?.1);
        }
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            report.plain(scenario, &format!("{what}_{name}"), percentile(&times, share), "ms", count as usize);
        }
    }
    ensure!(engine.problems().is_empty(), "{:?}", engine.problems().first());
    Ok(())
}

fn number(n: u32) -> Identity {
    Identity::allocated(256 + n).expect("in range")
}
