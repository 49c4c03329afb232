//! One run: everything is started, filled, churned and counted.

use crate::node::{self, Node};
use crate::options::Run;
use crate::recorder::Recorder;
use crate::report::{Report, Spread, asked};
use crate::script::{Cluster, Dice, set_up};
use crate::tracker::Tracker;
use crate::wire::{Meter, connect};
use anyhow::Context as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_k8s::endpoint::Propagation;
use weft_k8s::endpoint::style::{self, ROUND, WriteStyle};
use weft_k8s::slice;
use weft_lab_apiserver::InProcess;
use weft_lab_apiserver::api::{Api, Settings};
use weft_lab_apiserver::store::Store;

/// Clients that stand for the kubelets' connections.
const KUBELETS: usize = 16;
/// Beyond a round of Cilium's agents, until their writes have been received.
const SETTLE: Duration = Duration::from_secs(5);
/// Between two looks at how late timers are.
const LAG_EVERY: Duration = Duration::from_millis(20);
/// How long each rate is tried.
const STEP_SECONDS: f64 = 8.0;
/// So long after the last pod all but one in twenty are known to all, where a rate is kept up with.
const IN_TIME: Duration = Duration::from_secs(2);
/// How long the cluster may take to be filled.
const FILL_MAX: Duration = Duration::from_secs(900);

/// Runs it.
///
/// # Errors
/// It cannot begin, or does not come up.
pub async fn run(options: Run, mode: Propagation) -> anyhow::Result<Report> {
    // In memory, where there is room for it: the database's syncs would measure this machine's disk.
    let shm = std::path::Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.context("directory")?;
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    let store = Store::open(&dir.path().join("objects.redb")).context("store")?;
    let api = Api::new(
        store,
        Settings { service_cidrs: vec!["10.96.0.0/16".parse()?, "fd96::/108".parse()?], ..Settings::default() },
    );
    let server = InProcess::new(api, dir.path().join("run"), stop.clone());
    let meter = Meter::default();

    let setup = connect(&server, "setup", &meter).await?;
    weft_k8s::crd::install_missing(&setup).await?;
    set_up(&options, &setup).await?;
    let flags = ["weft-operator", "--pod-cidr", "10.0.0.0/8,fd44::/48", "--endpoint-propagation", mode.as_str()];
    let config = weft_settings::from_args::<weft_operator::config::Config>(flags.map(Into::into))?.check()?;
    let operator = connect(&server, "operator", &meter).await?;
    let operator = tokio::spawn(weft_operator::run(config, operator, stop.clone()));

    let tracker = Arc::new(Tracker::default());
    tracker.set_agents(options.nodes);
    let (before, started) = (resident_kib(), Instant::now());
    // What others do is done as others do it; our own way as we do it.
    let style = if mode == Propagation::CesNode { WriteStyle::Coalesced } else { WriteStyle::Upstream };
    let mut nodes = Vec::with_capacity(options.nodes);
    for index in 0..options.nodes {
        let client = connect(&server, "agent", &meter).await?;
        let dir = dir.path().join(node::name(index));
        nodes
            .push(Node::start(index, (mode, style), client, Recorder::new(tracker.clone(), false), &dir, &stop).await?);
    }
    for node in &nodes {
        tokio::time::timeout(FILL_MAX, node.ready()).await.context("an agent does not become ready")??;
    }
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "agents are ready");
    let mut kubelets = Vec::new();
    for _ in 0..KUBELETS {
        kubelets.push(connect(&server, "kubelet", &meter).await?);
    }

    let mut dice = Dice::new(options.seed);
    let cluster = Arc::new(Cluster::new(options.clone(), mode, nodes, kubelets, tracker.clone()));
    let began = Instant::now();
    cluster.fill(&mut dice).await;
    while tracker.incomplete() > 0 {
        anyhow::ensure!(began.elapsed() < FILL_MAX, "{} addresses are not known to all", tracker.incomplete());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let fill_seconds = began.elapsed().as_secs_f64();
    tracing::info!(seconds = fill_seconds, "the first pods are known to all");
    let memory = resident_kib().saturating_sub(before) as f64 / options.nodes.max(1) as f64;

    if style == WriteStyle::Upstream {
        // Until what these agents say a second time of the first pods has been told.
        tokio::time::sleep(ROUND + SETTLE).await;
    }
    cluster.roll_out(&mut dice, options.rate, options.warm_up).await;
    let lag = Lag::watch(&stop);
    cluster.starts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    meter.reset();
    tracker.restart();
    tracker.measure(true);
    let (began, cpu) = (Instant::now(), cpu_seconds());
    cluster.churn(&mut dice).await;
    let churn_seconds = began.elapsed().as_secs_f64();
    let cpus = (cpu_seconds() - cpu) / churn_seconds;
    tracker.measure(false);
    let lag = lag.take();
    let end = Instant::now() + Duration::from_secs_f64(options.drain);
    while tracker.waiting() > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mut known, late, not_measured) = tracker.take();
    let unknown_at_end = late.len();
    known.extend(late);

    let (api, api_latency) = asked(&meter);
    let starts = std::mem::take(&mut *cluster.starts.lock().unwrap_or_else(PoisonError::into_inner));
    let pods = starts.len().max(1) as f64;
    let ours = || api.iter().filter(|row| row.who == "agent" || row.who == "operator");
    let is_write = |verb: &str| !matches!(verb, "get" | "list" | "watch");
    let (rates_kept, rate_lost) = climb(&options.rates, &cluster, &tracker, &mut dice).await;
    let failures = cluster.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let report = Report {
        mode: mode.as_str().to_owned(),
        conditions: conditions(options.nodes),
        api_bytes_per_pod: ours().map(|row| row.sent_bytes + row.received_bytes).sum::<u64>() as f64 / pods,
        events_per_pod: ours().filter(|row| row.who == "agent").map(|row| row.events).sum::<u64>() as f64 / pods,
        writes_per_pod: ours().filter(|row| is_write(&row.verb)).map(|row| row.requests).sum::<u64>() as f64 / pods,
        api_latency,
        pod_start: Spread::of(starts),
        propagation: Spread::of(known),
        unknown_at_end,
        not_measured,
        holes: tracker.holes(),
        cpus,
        lag,
        rates_kept,
        rate_lost,
        churn_seconds,
        fill_seconds,
        memory_per_agent_kib: memory,
        failures: failures.len(),
        first_failures: failures.into_iter().take(3).collect(),
        api,
        options,
    };
    stop.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(5), operator).await;
    Ok(report)
}

/// What must be said beside the figures.
#[must_use]
pub fn conditions(nodes: usize) -> Vec<String> {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        format!(
            "one process on {cpus} CPUs: agents, operator, API server and kubelets compete for them; where nearly all is \
             in use, or timers are late, what is compared is what each way costs in CPU"
        ),
        "agents are the real ones but for the kernel: maps and links are a recorder".to_owned(),
        "HTTP/2 over pipes in memory, one connection per agent; no TLS, no network".to_owned(),
        "the embedded API server, its database on a file system in memory".to_owned(),
        format!(
            "cep, ces-operator: CiliumEndpoints are written as Cilium's agents do: looked for, created when the pod is in \
             force, its state mended {} s later, deleted; {:.0} requests/s an agent, {:.0} at once. Their objects carry \
             less here (no pod labels, no external identifiers), and there is no limit on pods that start",
            style::ROUND.as_secs(),
            style::RATE,
            style::AHEAD
        ),
        "ces-operator: 100 endpoints a slice, a change waits 0.5 s, 10 writes/s, 20 at once".to_owned(),
        format!(
            "ces-node: that a pod is gone is written with the next pod of its slice, or after {:.0} to {:.0} s: of what \
             the churn leaves behind, the rest is written later (as that of the churn before is now)",
            slice::REMOVAL_DELAY.as_secs_f64(),
            (slice::REMOVAL_DELAY + slice::removal_spread(u32::try_from(nodes).unwrap_or(u32::MAX))).as_secs_f64()
        ),
        "pods are bound and started by the script: no scheduler, no kubelet but for create, status and delete of pods"
            .to_owned(),
    ]
}

/// How late timers are: what a task waits for its turn.
struct Lag {
    late: Arc<Mutex<Vec<Duration>>>,
    _ends: DropGuard,
}

impl Lag {
    fn watch(stop: &CancellationToken) -> Self {
        let (all, stop) = (Arc::<Mutex<Vec<Duration>>>::default(), stop.child_token());
        let (noted, stopped) = (all.clone(), stop.clone());
        tokio::spawn(stopped.run_until_cancelled_owned(async move {
            loop {
                let due = Instant::now() + LAG_EVERY;
                tokio::time::sleep_until(due.into()).await;
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(due.elapsed());
            }
        }));
        Self { late: all, _ends: stop.drop_guard() }
    }

    fn take(self) -> Spread {
        Spread::of(std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Faster and faster, until pods are not known to all in time. Answers the last rate that was kept up with, if any, and
/// the one that was not, if it came to that.
async fn climb(
    rates: &[f64],
    cluster: &Arc<Cluster>,
    tracker: &Tracker,
    dice: &mut Dice,
) -> (Option<f64>, Option<f64>) {
    let mut kept = None;
    for rate in rates {
        tracker.restart();
        tracker.measure(true);
        let began = Instant::now();
        cluster.roll_out(dice, *rate, STEP_SECONDS).await;
        let took = began.elapsed().as_secs_f64();
        tracker.measure(false);
        tokio::time::sleep(IN_TIME).await;
        if took > STEP_SECONDS * 1.25 || tracker.waiting() as f64 > rate * STEP_SECONDS * 0.05 {
            return (kept, Some(*rate));
        }
        kept = Some(*rate);
    }
    (kept, None)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// CPU time of this process so far.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = text.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every architecture that we build for.
    ticks as f64 / 100.0
}
