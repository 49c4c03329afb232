//! Traffic: same node, across nodes natively and by VXLAN, with policies and while observed, and the reference bridge
//! plugin, each against plain kernel forwarding over the same number of links.

use crate::chain::Chain;
use crate::cluster::{Cluster, Pod};
use crate::cni::Bridge;
use crate::report::{Figure, Report, median};
use crate::traffic::{Metric, slice};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// How to measure.
pub struct Settings {
    /// Rounds.
    pub rounds: usize,
    /// Of one scenario, metric and family.
    pub slice: Duration,
    /// The reference CNI plugins.
    pub cni_plugins: PathBuf,
    /// Beginnings of the names of the wanted scenarios; none: all.
    pub only: Vec<String>,
}

struct Scenario {
    name: &'static str,
    base: &'static str,
    client: PathBuf,
    server: PathBuf,
    addresses: [IpAddr; 2],
    /// Sockets of agents whose flows are watched during the slice.
    observe: Vec<PathBuf>,
}

impl Scenario {
    fn pods(name: &'static str, base: &'static str, client: &Pod, server: &Pod) -> Self {
        let (client, server, addresses) = (client.ns.clone(), server.ns.clone(), server.addresses);
        Self { name, base, client, server, addresses, observe: Vec::new() }
    }

    fn bridge(bridge: &Bridge) -> Result<Self> {
        let (client, server, addresses) = (bridge.client(), bridge.server(), bridge.addresses()?);
        Ok(Self { name: "bridge", base: "base-near", client, server, addresses, observe: Vec::new() })
    }

    fn chain(name: &'static str, base: &'static str, chain: &Chain) -> Self {
        let (client, server) = (chain.client_ns(), chain.server_ns());
        Self { name, base, client, server, addresses: chain.server, observe: Vec::new() }
    }
}

/// The chains and the bridge plugin alone: what Weft is compared with, and whether this machine is quiet enough.
pub fn baseline(settings: &Settings) -> Result<Report> {
    let near = Chain::new("n", 1)?;
    let far = Chain::new("f", 3)?;
    let bridge = Bridge::new(&settings.cni_plugins).context("the reference bridge plugin")?;
    let scenarios = [
        Scenario::chain("base-near", "base-near", &near),
        Scenario::chain("base-near/again", "base-near", &near),
        Scenario::bridge(&bridge)?,
        Scenario::chain("base-far", "base-far", &far),
        Scenario::chain("base-far/again", "base-far", &far),
    ];
    rounds(&scenarios, settings)
}

/// A NetworkPolicy for pods labelled `app`, of `rules` rules, of which the last lets everything of the namespace in.
pub fn policy(app: &str, rules: usize) -> Value {
    let mut ingress: Vec<Value> = (1..rules)
        .map(|n| {
            json!({"from": [{"podSelector": {"matchLabels": {"bench": format!("peer-{n}")}}}],
                "ports": [{"protocol": "TCP", "port": 1000 + n}]})
        })
        .collect();
    ingress.push(json!({"from": [{"podSelector": {}}]}));
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": app, "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": ingress}})
}

/// Measures all of it.
pub fn run(native: &Cluster, vxlan: &Cluster, settings: &Settings) -> Result<Report> {
    let near = Chain::new("n", 1)?;
    let far = Chain::new("f", 3)?;
    let pods = native.pods(&[
        ("client", "node-1"),
        ("plain", "node-1"),
        ("policy-1", "node-1"),
        ("policy-1000", "node-1"),
        ("remote", "node-2"),
    ])?;
    let [client, plain, one, thousand, remote] = pods.as_slice() else { anyhow::bail!("five pods were asked for") };
    native.apply(&[policy("policy-1", 1), policy("policy-1000", 1000)])?;
    for name in ["policy-1", "policy-1000"] {
        native.weft(&["policy", "wait", "--name", native.name(), &format!("default/{name}")])?;
    }
    let tunnel = vxlan.pods(&[("client", "node-1"), ("remote", "node-2")])?;
    let [tunnel_client, tunnel_remote] = tunnel.as_slice() else { anyhow::bail!("two pods were asked for") };
    let bridge = Bridge::new(&settings.cni_plugins).context("the reference bridge plugin")?;

    let mut observed = Scenario::pods("same-node/observe", "base-near", client, plain);
    observed.observe = vec![native.socket("node-1")];
    let mut scenarios = vec![
        Scenario::chain("base-near", "base-near", &near),
        Scenario::chain("base-near/again", "base-near", &near),
        Scenario::pods("same-node", "base-near", client, plain),
        Scenario::pods("same-node/policy-1", "base-near", client, one),
        Scenario::pods("same-node/policy-1000", "base-near", client, thousand),
        observed,
        Scenario::bridge(&bridge)?,
        Scenario::chain("base-far", "base-far", &far),
        Scenario::chain("base-far/again", "base-far", &far),
        Scenario::pods("native", "base-far", client, remote),
        Scenario::pods("vxlan", "base-far", tunnel_client, tunnel_remote),
    ];
    if !settings.only.is_empty() {
        let wanted = |name: &str| settings.only.iter().any(|start| name.starts_with(start.as_str()));
        let bases: Vec<_> =
            scenarios.iter().filter(|scenario| wanted(scenario.name)).map(|scenario| scenario.base).collect();
        scenarios.retain(|scenario| wanted(scenario.name) || bases.iter().any(|base| scenario.name.starts_with(base)));
    }
    rounds(&scenarios, settings)
}

fn rounds(scenarios: &[Scenario], settings: &Settings) -> Result<Report> {
    // (scenario, metric, family) -> figures of each round
    let mut samples: BTreeMap<(usize, usize, usize), Vec<Vec<f64>>> = BTreeMap::new();
    for round in 0..settings.rounds {
        eprint!("\rround {}/{} ", round + 1, settings.rounds);
        for (m, metric) in Metric::ALL.into_iter().enumerate() {
            for family in 0..2 {
                for turn in 0..scenarios.len() {
                    let s = (turn + round) % scenarios.len();
                    let scenario = &scenarios[s];
                    let watching = watch(&scenario.observe)?;
                    let figures =
                        slice(&scenario.client, &scenario.server, scenario.addresses[family], metric, settings.slice)
                            .with_context(|| format!("{} {metric:?} {}", scenario.name, scenario.addresses[family]))?;
                    drop(watching);
                    samples.entry((s, m, family)).or_default().push(figures);
                }
            }
        }
    }
    eprintln!();
    let mut report = Report::default();
    for (s, scenario) in scenarios.iter().enumerate() {
        let position = |name: &str| scenarios.iter().position(|other| other.name == name);
        let base = position(scenario.base).context("every base is a scenario")?;
        let again = position(&format!("{}/again", scenario.base)).context("every base is measured twice")?;
        for (m, metric) in Metric::ALL.into_iter().enumerate() {
            for (family, name) in ["ipv4", "ipv6"].into_iter().enumerate() {
                for (f, (figure, unit)) in metric.figures().iter().enumerate() {
                    let of = |s: usize| samples[&(s, m, family)].iter().map(|round| round[f]).collect::<Vec<_>>();
                    let ratio_to_base = |s: usize| {
                        median(&of(s).iter().zip(of(base)).map(|(value, base)| value / base).collect::<Vec<_>>())
                    };
                    report.add(Figure {
                        scenario: scenario.name.into(),
                        metric: (*figure).into(),
                        family: name.into(),
                        value: median(&of(s)),
                        unit: (*unit).into(),
                        base: scenario.base.into(),
                        ratio: Some(ratio_to_base(s)),
                        rounds: settings.rounds,
                        aa: Some(ratio_to_base(again)),
                    });
                }
            }
        }
    }
    Ok(report)
}

/// Follows the flows of these agents until the returned connections are dropped; a thread reads each empty.
fn watch(sockets: &[PathBuf]) -> Result<Vec<Watching>> {
    sockets.iter().map(|socket| Watching::start(socket)).collect()
}

struct Watching {
    stream: UnixStream,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Watching {
    fn start(socket: &std::path::Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
        let request =
            weft_api::agent::Request::Observe { filter: weft_api::flow::FlowFilter::default(), last: 0, follow: true };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut input = stream.try_clone()?;
        let reader = std::thread::spawn(move || {
            if let Err(error) = std::io::copy(&mut input, &mut std::io::sink()) {
                eprintln!("observer: {error}");
            }
        });
        Ok(Self { stream, reader: Some(reader) })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Err(error) = self.stream.shutdown(std::net::Shutdown::Both) {
            eprintln!("observer: {error}");
        }
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("observer: the reader panicked");
        }
    }
}
