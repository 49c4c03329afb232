//! Services at scale on one node: 10,000 Services with 100,000 backends from nothing into real maps of the kernel, then
//! one EndpointSlice after the other, each time from the change to in force; and what a new agent takes to find that all
//! of it is right. The same for Services with consistent hashing.
//!
//! Runs in a mount namespace and a network namespace of its own; the maps go with the process.

use crate::report::{Report, percentile};
use crate::scale::{alone, resident};
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;
use weft_abi::map_name;
use weft_control::service::{Engine, Outcome, Settings};
use weft_datapath::{Datapath, Options};
use weft_model::desired::Dataplane;
use weft_model::intent::{
    Algorithm, Backend, Backends, Change, Forwarding, NamedPort, ObjectName, Protocol, Routing, Service, ServicePort,
};

/// Changes that are timed.
const TIMES: usize = 1000;
/// Maps of services.
const MAPS: [&str; 5] = [map_name::FRONTENDS, map_name::SLOTS, map_name::BACKENDS, map_name::MAGLEV, map_name::RANGES];

/// How many Services of how many backends.
#[derive(Clone, Copy)]
struct Size {
    scenario: &'static str,
    services: usize,
    backends: usize,
    algorithm: Algorithm,
    table: u32,
}

const SIZES: [Size; 2] = [
    Size {
        scenario: "service-scale/random",
        services: 10_000,
        backends: 10,
        algorithm: Algorithm::Random,
        table: 16_381,
    },
    Size {
        scenario: "service-scale/maglev",
        services: 500,
        backends: 100,
        algorithm: Algorithm::Maglev,
        table: 16_381,
    },
];

fn name(n: usize) -> ObjectName {
    ObjectName { namespace: format!("namespace-{}", n % 100), name: format!("service-{n}") }
}

/// Every other one is of IPv6.
fn address(n: usize, v4: [u8; 2], v6: u16) -> IpAddr {
    let number = u32::try_from(n).expect("fewer than 16 million").to_be_bytes();
    if n.is_multiple_of(2) {
        // 24 bits of number behind the first octet's.
        IpAddr::from([v4[0], v4[1] ^ number[1], number[2], number[3]])
    } else {
        let [high, low] = [u16::from_be_bytes([number[0], number[1]]), u16::from_be_bytes([number[2], number[3]])];
        IpAddr::from([0xfd00, 0, 0, v6, 0, 0, high, low])
    }
}

fn service(n: usize, size: &Size) -> Change {
    // As clusters have them: every tenth is reached from outside.
    let outside = n.is_multiple_of(10) && n < 27_000;
    let routing = Routing {
        ports: vec![ServicePort {
            name: "web".to_owned(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: if outside { 30_000 + u16::try_from(n / 10).expect("in the range") } else { 0 },
        }],
        cluster_ips: vec![address(n, [10, 96], 1)],
        node_ports: outside,
        algorithm: size.algorithm,
        ..Routing::default()
    };
    Change::Service(Service { name: name(n), routing: Some(routing), ..Service::default() })
}

/// The slice of a Service; `more` backends than usual.
fn slice(n: usize, size: &Size, more: usize) -> Change {
    let service = name(n);
    let backend = |k: usize| {
        // Of the family of their Service.
        let number = 2 * (n * (size.backends + 1) + k) + n % 2;
        Backend { node: Some(format!("node-{}", k % 50)), ..Backend::ready(address(number, [10, 128], 2)) }
    };
    Change::Backends(Backends {
        slice: ObjectName { namespace: service.namespace.clone(), name: format!("{}-1", service.name) },
        service,
        ports: vec![NamedPort { name: "web".to_owned(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..size.backends + more).map(backend).collect(),
    })
}

fn engine(size: &Size) -> Engine {
    let settings = Settings {
        node_name: "node-1".to_owned(),
        ipv4: true,
        ipv6: true,
        node_ports: 30_000..=32_767,
        forwarding: Forwarding::Snat,
        table_size: size.table,
        allowed: Default::default(),
    };
    Engine::new(settings, 0)
}

/// Carries out what is planned, as the agent does. Answers how many patches that took.
fn put_in_force(engine: &mut Engine, dataplane: &mut Datapath) -> Result<usize> {
    let mut patches = 0;
    while let Some(patch) = engine.plan() {
        dataplane.patch_services(patch)?;
        engine.done(Outcome::Written);
        patches += 1;
    }
    Ok(patches)
}

/// Measures it.
pub fn run() -> Result<Report> {
    alone()?;
    let dir = tempfile::tempdir()?;
    let mut report = Report::default();
    for size in SIZES {
        let place = dir.path().join(size.scenario.replace('/', "-"));
        let measured = scale(&size, &place, &mut report);
        // The maps are there for as long as their file system is.
        let _ = umount2(&place, MntFlags::MNT_DETACH);
        measured.context(size.scenario)?;
    }
    Ok(report)
}

/// Bytes of the maps of services.
fn bytes(dataplane: &mut Datapath) -> Result<u64> {
    let usage = dataplane.usage()?;
    Ok(usage.iter().filter(|map| MAPS.contains(&map.name.as_str())).map(|map| map.memory_bytes).sum())
}

fn scale(size: &Size, dir: &Path, report: &mut Report) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let (mut dataplane, _) = Datapath::open(&Options::new(dir))?;
    let all: Vec<Change> = (0..size.services).flat_map(|n| [service(n, size), slice(n, size, 0)]).collect();
    let (before, maps_before) = (resident(), bytes(&mut dataplane)?);

    let mut of_agent = engine(size);
    let start = Instant::now();
    all.iter().for_each(|change| of_agent.apply(change));
    let patch = of_agent.plan().context("something is to be done")?;
    let planned = start.elapsed();
    dataplane.patch_services(patch)?;
    of_agent.done(Outcome::Written);
    let in_force = start.elapsed();
    ensure!(of_agent.plan().is_none() && of_agent.problems().is_empty(), "{:?}", of_agent.problems());
    report.plain(size.scenario, "all_planned", planned.as_secs_f64() * 1e3, "ms", 1);
    report.plain(size.scenario, "all_in_force", in_force.as_secs_f64() * 1e3, "ms", 1);
    report.plain(size.scenario, "rss_mib", resident().saturating_sub(before) as f64, "MiB", 1);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    report.plain(size.scenario, "map_mib", mib(bytes(&mut dataplane)?), "MiB", 1);
    report.plain(size.scenario, "map_mib_empty", mib(maps_before), "MiB", 1);
    let usage = dataplane.usage()?;
    for map in usage.iter().filter(|map| MAPS.contains(&map.name.as_str())) {
        report.plain(size.scenario, &format!("entries_{}", map.name.to_lowercase()), map.entries as f64, "", 1);
    }

    let mut times = Vec::new();
    for n in 0..TIMES {
        // One backend comes, or goes again.
        let change = slice(n * 7919 % size.services, size, 1 - n / size.services % 2);
        let start = Instant::now();
        of_agent.apply(&change);
        if put_in_force(&mut of_agent, &mut dataplane)? == 0 {
            bail!("change {n} was none");
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    for (metric, share) in [("change_p50", 0.5), ("change_p99", 0.99)] {
        report.plain(size.scenario, metric, percentile(&times, share), "ms", TIMES);
    }

    let mut changed: Vec<Change> = all;
    for n in 0..TIMES {
        changed.push(slice(n * 7919 % size.services, size, 1 - n / size.services % 2));
    }
    let mut next = engine(size);
    let start = Instant::now();
    next.adopt(dataplane.services()?);
    changed.iter().for_each(|change| next.apply(change));
    let patches = put_in_force(&mut next, &mut dataplane)?;
    report.plain(size.scenario, "restart", start.elapsed().as_secs_f64() * 1e3, "ms", 1);
    ensure!(patches == 0, "a new agent changes what is right");
    Ok(())
}
