//! How soon the agent answers while it works: CNI STATUS and status over its unix socket, `/healthz` over its port, idle
//! and while 10,000 rules for 20,000 identities and 250 endpoints are compiled and written to real maps of the kernel.
//! The agent's own code, in this process, on two runtime threads as in `weft-agent`; only the API server is missing.
//!
//! Beside it, what one change of an address costs in a table of 100,000 with readers' snapshots alive.

use crate::report::{Report, percentile};
use crate::scale::{ENDPOINTS, IDENTITIES, POLICIES, Shape, labels, namespace, policy};
use anyhow::{Context as _, Result, bail, ensure};
use futures::future::{BoxFuture, FutureExt as _};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use weft_abi::map_name;
use weft_agent::attach::Attachments;
use weft_agent::kernel::PodLinks;
use weft_agent::local::{Local, Names};
use weft_agent::ports::{Cluster, ClusterError, Created};
use weft_agent::server;
use weft_agent::state::StateDir;
use weft_agent::tables::addresses::Addresses;
use weft_agent::writer::endpoints::Reservation;
use weft_agent::writer::thread::{self, Handle};
use weft_agent::writer::{Settings, Writer};
use weft_api::agent::{Request, Response};
use weft_api::cni::Attachment;
use weft_datapath::{Datapath, Options};
use weft_health::Health;
use weft_model::id::Identity;
use weft_model::intent::{
    Change, EndpointSlice, IdentityLabels, Namespace, Node, ObjectName, Pod, PoolRequest, RemoteEndpoint, Source,
    Written,
};
use weft_observe::Observer;

/// How long each is asked while the agent is idle.
const IDLE: Duration = Duration::from_secs(3);
/// Pause between two questions of one kind.
const PAUSE: Duration = Duration::from_millis(2);
/// What a caller may have to wait for, in milliseconds, at the 99th percentile.
const BUDGET_MS: f64 = 5.0;
/// Changes in one batch of a watch.
const BATCH: usize = 250;
/// Room in the maps, as for the other benchmarks of policies.
const ROOM: u32 = 1 << 21;
/// Rows of the table of addresses, and changes that are measured in it.
const ADDRESSES: u32 = 100_000;
const ADDRESS_CHANGES: u32 = 20_000;

const NODE: &str = "node-1";

/// There is no API server: everything that is asked is in the tables.
struct NoCluster;

fn absent<T: Send + 'static>() -> BoxFuture<'static, Result<T, ClusterError>> {
    async { Err(ClusterError { what: "this benchmark has no API server".into(), source: None }) }.boxed()
}

impl Cluster for NoCluster {
    fn pod<'a>(&'a self, _: &'a ObjectName) -> BoxFuture<'a, Result<Option<Pod>, ClusterError>> {
        absent()
    }
    fn namespace<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Namespace>, ClusterError>> {
        absent()
    }
    fn create_identity<'a>(&'a self, _: &'a IdentityLabels) -> BoxFuture<'a, Result<Created, ClusterError>> {
        absent()
    }
}

/// Measures it.
pub fn run() -> Result<Report> {
    let mut report = Report::default();
    address_changes(&mut report);
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of its own")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("private mounts")?;
    let dir = tempfile::tempdir()?;
    let bpf = dir.path().join("bpf");
    std::fs::create_dir_all(&bpf)?;
    let measured = agent(dir.path(), &bpf, &mut report);
    // The maps are there for as long as their file system is.
    let _ = umount2(&bpf, MntFlags::MNT_DETACH);
    measured?;
    Ok(report)
}

fn settings() -> Settings {
    Settings {
        node_name: NODE.to_owned(),
        cluster_name: "weft".to_owned(),
        ipv4: true,
        ipv6: true,
        tunnel: false,
        ipam: weft_agent::writer::ipam::Ipam::default(),
        pod_ranges: Vec::new(),
        no_masquerade: Vec::new(),
        host_firewall: true,
        audit: false,
        api_server: std::collections::BTreeSet::new(),
        node_ports: 30_000..=32_767,
        forwarding: weft_model::intent::Forwarding::Snat,
        maglev_table_size: 16_381,
        external_ips_allowed: Vec::new(),
        host_ports_reserved: Vec::new(),
    }
}

fn agent(dir: &Path, bpf: &Path, report: &mut Report) -> Result<()> {
    let sizes = [map_name::PEERS, map_name::POLICY_CLASSES, map_name::POLICY_ENTRIES].map(|name| (name, ROOM));
    let (datapath, _) = Datapath::open(&Options { entries_max: BTreeMap::from(sizes), ..Options::new(bpf) })?;
    let (metrics, flows) = (datapath.metrics()?, datapath.flows());
    let links = Arc::new(PodLinks::new(datapath.hooks()));
    let state = StateDir::open(&dir.join("state"))?;
    let mut writer = Writer::new(settings(), state, Box::new(datapath));
    writer.restore(Vec::new(), &[])?;
    writer.set_node_ready(None);
    let progress = writer.progress();
    let (handle, _) = thread::spawn(writer)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (stop, socket) = (CancellationToken::new(), dir.join("agent.sock"));
    let healthz = free_port()?;
    runtime.block_on(start(&handle))?;
    let local = Arc::new(Local {
        writer: handle.clone(),
        attachments: Attachments::new(
            handle.clone(),
            links,
            Arc::new(NoCluster),
            progress.clone(),
            Arc::new(AtomicU32::new(1500)),
        ),
        progress: progress.clone(),
        metrics,
        flows,
        observer: Observer::new(NODE, 16, Arc::new(Names::new(handle.clone()))),
        conversion: weft_k8s::convert::Settings::EVERYTHING,
    });
    {
        let _in_runtime = runtime.enter();
        let listener = server::listen(&socket)?;
        runtime.spawn(server::serve(listener, local, stop.clone()));
        runtime.spawn(Health::new(NODE, move || progress.borrow().ready).run_node(healthz, stop.clone()));
    }

    let done = AtomicBool::new(false);
    let idle = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&socket, healthz, &done));
        std::thread::sleep(IDLE);
        done.store(true, Ordering::Relaxed);
        asking.join().map_err(|_| anyhow::anyhow!("an asking thread panicked"))?
    })?;
    done.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    let (busy, took) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&socket, healthz, &done));
        let applied = runtime.block_on(apply_rules(&handle));
        let took = begun.elapsed();
        done.store(true, Ordering::Relaxed);
        let answers = asking.join().map_err(|_| anyhow::anyhow!("an asking thread panicked"))?;
        applied?;
        anyhow::Ok((answers?, took))
    })?;
    stop.cancel();
    report.plain("responsive", "rules_in_force", took.as_secs_f64() * 1e3, "ms", 1);
    for (what, times) in &idle {
        note(report, "responsive/idle", what, times);
    }
    for (what, times) in &busy {
        note(report, "responsive/busy", what, times);
    }
    let problems = handle.snapshot().problems();
    ensure!(problems.is_empty(), "{:?}", problems.first());
    for (what, times) in &busy {
        let p99 = percentile(times, 0.99);
        if p99 > BUDGET_MS {
            println!("{what}: {p99:.1} ms at the 99th percentile, expected at most {BUDGET_MS} ms");
        }
    }
    Ok(())
}

fn note(report: &mut Report, scenario: &str, what: &str, times: &[f64]) {
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        report.plain(scenario, &format!("{what}_{name}"), percentile(times, share), "ms", times.len());
    }
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

type Answers = Vec<(&'static str, Vec<f64>)>;

/// Asks all three, each on a thread of its own, until `done`. Milliseconds of each answer.
fn ask(socket: &Path, healthz: SocketAddr, done: &AtomicBool) -> Result<Answers> {
    std::thread::scope(|scope| {
        let cni = scope.spawn(|| over_socket(socket, &Request::CniStatus, done));
        let status = scope.spawn(|| over_socket(socket, &Request::Status, done));
        let health = scope.spawn(|| over_tcp(healthz, done));
        let join = |asking: std::thread::ScopedJoinHandle<'_, Result<Vec<f64>>>| {
            asking.join().map_err(|_| anyhow::anyhow!("an asking thread panicked"))?
        };
        Ok(vec![("cni_status", join(cni)?), ("status", join(status)?), ("healthz", join(health)?)])
    })
}

fn timed(done: &AtomicBool, mut once: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        once()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(PAUSE);
    }
    ensure!(!times.is_empty(), "nothing was asked");
    Ok(times)
}

/// A connection for each question, as `weft-cni` and `weft` do it.
fn over_socket(socket: &Path, request: &Request, done: &AtomicBool) -> Result<Vec<f64>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    timed(done, || {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        match serde_json::from_str(&answer)? {
            Response::Error(error) => bail!("{error}"),
            _ => Ok(()),
        }
    })
}

fn over_tcp(healthz: SocketAddr, done: &AtomicBool) -> Result<Vec<f64>> {
    // The listener is made by a task that may not have run yet.
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(healthz).is_err() {
        ensure!(Instant::now() < deadline, "nobody listens at {healthz}");
        std::thread::sleep(Duration::from_millis(1));
    }
    timed(done, || {
        let mut stream = TcpStream::connect(healthz)?;
        stream
            .write_all(format!("GET /healthz HTTP/1.1\r\nHost: {healthz}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    })
}

/// An empty cluster, complete, with the node's endpoints.
async fn start(handle: &Handle) -> Result<()> {
    let own = Node {
        name: NODE.to_owned(),
        addresses: vec![IpAddr::from([172, 31, 0, 11]), "fd31::11".parse()?],
        pod_cidrs: vec!["10.244.0.0/23".parse()?, "fd44::/64".parse()?],
        labels: BTreeMap::new(),
    };
    let namespaces = (0..100).map(|n| Namespace {
        name: namespace(n),
        labels: BTreeMap::from([("team".to_owned(), format!("team-{}", n % 10))]),
        address_pools: PoolRequest::default(),
    });
    let mut changes = vec![Change::Node(own)];
    changes.extend(namespaces.map(Change::Namespace));
    changes.extend(Source::all().map(Change::Synced));
    handle.call(move |writer| writer.apply(changes)).await?;
    for n in 1..=ENDPOINTS {
        let attached = handle.call(move |writer| {
            let record = writer.reserve(reservation(n))?;
            writer.activate(record.id, 1)
        });
        attached.await??;
    }
    Ok(())
}

fn reservation(n: u16) -> Reservation {
    let number = u32::from(n);
    Reservation {
        attachment: Attachment { container_id: format!("c{n}"), ifname: "eth0".to_owned() },
        netns: PathBuf::from("/run/netns/none").display().to_string(),
        pod: Pod {
            name: ObjectName { namespace: namespace(number), name: format!("pod-{n}") },
            uid: format!("uid-{n}"),
            node: Some(NODE.to_owned()),
            labels: BTreeMap::new(),
            service_account: "default".to_owned(),
            host_network: false,
            named_ports: Vec::new(),
            address_pools: PoolRequest::default(),
            host_ports: Vec::new(),
            ready: true,
            finished: false,
            age: weft_model::intent::Age::default(),
        },
        labels: labels(number),
        identity: Identity::allocated(256 + number).expect("in range"),
        mtu: 1500,
        addresses: None,
    }
}

/// All identities and all rules, in batches as watches bring them, until they are in force.
async fn apply_rules(handle: &Handle) -> Result<()> {
    let identities = (0..IDENTITIES).map(|n| {
        let identity = Identity::allocated(256 + n).expect("in range");
        Change::Identity(IdentityLabels { identity, labels: labels(n), unused: false })
    });
    let policies = (0..POLICIES).map(|n| match policy(n, Shape::Apps, 0) {
        weft_control::policy::Change::PutPolicy(policy) => Change::Policy((*policy).clone()),
        other => unreachable!("a policy, not {other:?}"),
    });
    let changes: Vec<Change> = identities.chain(policies).collect();
    for batch in changes.chunks(BATCH) {
        let batch = batch.to_vec();
        handle.apply(move |writer| writer.apply(batch)).await?;
    }
    let mut progress = handle.call(|writer| writer.progress()).await?;
    progress.wait_for(|progress| progress.in_force == progress.revision).await?;
    Ok(())
}

/// Microseconds of one change of an address, each under a snapshot of its own that readers hold until the next.
fn address_changes(report: &mut Report) {
    let slice = |n: u32, identity: u32| {
        let [a, b, c, d] = (0x0a00_0000 | n).to_be_bytes();
        let endpoint = RemoteEndpoint {
            name: ObjectName { namespace: "default".to_owned(), name: format!("pod-{n}") },
            pod_uid: format!("uid-{n}"),
            identity: Identity::from_raw(identity),
            addresses: vec![IpAddr::from([a, b, c, d])],
            node: IpAddr::from([172, 31, 0, 12]),
            named_ports: Vec::new(),
        };
        EndpointSlice { name: format!("slice-{n}"), endpoints: vec![endpoint], written: Written::default() }
    };
    let mut addresses = Addresses::default();
    for n in 0..ADDRESSES {
        addresses.set_slice(&slice(n, 300), Duration::ZERO, |_| false);
    }
    addresses.drain();
    let begun = Instant::now();
    let mut held = addresses.snapshot();
    for n in 0..ADDRESS_CHANGES {
        addresses.set_slice(&slice(n * 5, 301), Duration::ZERO, |_| false);
        for address in addresses.drain() {
            let entry = addresses.get(address);
            addresses.set_in_force(address, entry);
        }
        held = addresses.snapshot();
    }
    let each = begun.elapsed().as_secs_f64() * 1e6 / f64::from(ADDRESS_CHANGES);
    report.plain("addresses/100000", "change_with_snapshot", each, "us", ADDRESS_CHANGES as usize);
    drop(held);
}
