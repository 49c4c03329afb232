//! A node that the API server has nothing to say to: of a new pod elsewhere it hears from that pod's own node, and until
//! then the pod is nobody, least of all the world.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};
use weft_tests::cluster::{Cluster, PORT, Pod, eventually};

/// A new pod is let in by then, its first packet's repetition (a second) included.
const SOON: Duration = Duration::from_secs(5);
/// Identities of the world, and of its two families.
const WORLD: [u64; 3] = [2, 9, 10];

#[test]
fn native() -> Result<()> {
    resolves("rn", "native")
}

#[test]
fn vxlan() -> Result<()> {
    resolves("rv", "vxlan")
}

/// The API server cut off from node-2, for as long as this lives: what the fabric itself sends there goes nowhere, what it
/// carries for the nodes goes on.
struct CutOff {
    netns: String,
    addresses: Vec<IpAddr>,
}

impl CutOff {
    fn new(cluster: &Cluster) -> Result<Self> {
        let addresses = cluster.node_ips("node-2")?.to_vec();
        let cut = Self { netns: format!("weft-{}-fabric", cluster.name()), addresses };
        cut.rules("add")?;
        Ok(cut)
    }

    fn rules(&self, verb: &str) -> Result<()> {
        for address in &self.addresses {
            let to = ipnet::IpNet::from(*address).to_string();
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            let arguments = [family, "-n", &self.netns, "rule", verb, "pref", "1", "iif", "lo", "to", &to, "blackhole"];
            ensure!(Command::new("ip").args(arguments).status()?.success(), "ip {}", arguments.join(" "));
        }
        Ok(())
    }

    fn heal(self) -> Result<()> {
        self.rules("del")
    }
}

/// A process that does nothing for as long as this lives.
struct Stopped(Pid);

impl Stopped {
    fn agent(cluster: &Cluster, node: &str) -> Result<Self> {
        let pid = cluster.processes(&format!("agent-{node}"))?.first().context("the agent does not run")?.1;
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
        Ok(Self(Pid::from_raw(pid)))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

fn resolves(label: &str, routing: &str) -> Result<()> {
    let cluster = Cluster::up(label, &["--nodes", "2", "--routing", routing])?;
    let _observer = cluster.observer()?;
    let web = cluster.pod("web", "node-2", "role: server")?;
    let open = cluster.pod("open", "node-2", "role: server")?;
    let far = cluster.pod("far", "node-2", "role: client")?;
    let red = "podSelector: {matchLabels: {team: red}}";
    let of = |app: &str| format!("podSelector: {{matchLabels: {{app: {app}}}}}");
    cluster.policy("red-alone", &format!("{{{}, ingress: [{{from: [{{{red}}}]}}]}}", of("web")))?;
    cluster.policy("to-red", &format!("{{{}, policyTypes: [Egress], egress: [{{to: [{{{red}}}]}}]}}", of("far")))?;
    cluster.rules(
        "cnp",
        "world-alone",
        "spec: {endpointSelector: {matchLabels: {app: open}}, ingress: [{fromEntities: [world]}]}",
    )?;
    let cut = CutOff::new(&cluster)?;

    // Nobody has these labels yet, so what they are in numbers is news to node-2, too.
    let began = Instant::now();
    let red = cluster.pod("red", "node-1", "team: red")?;
    let attached = began.elapsed();
    let began = Instant::now();
    cluster.reaches(&red, "--tcp --timeout 5", &web, PORT)?;
    let took = began.elapsed();
    ensure!(took < SOON, "a new pod of the right labels was let in after {took:?}");
    eprintln!("{routing}: attached in {attached:?}, let in at both families within {took:?}, unheard of");
    soon("datagrams", || cluster.reaches(&red, "--udp --timeout 0.5", &web, PORT))?;
    soon("datagrams to a new pod", || cluster.reaches(&far, "--udp --timeout 0.5", &red, PORT))?;
    cluster.reaches(&far, "--tcp --timeout 5", &red, PORT)?;
    let blue = cluster.pod("blue", "node-1", "team: blue")?;
    for options in ["--tcp", "--udp"] {
        cluster.times_out(&blue, options, &web, PORT)?;
        cluster.times_out(&far, options, &blue, PORT)?;
        for from in [&red, &blue] {
            cluster.times_out(from, options, &open, PORT)?;
        }
    }
    // It is the pod's own node that said so: while it says nothing, a pod that nobody told of is nobody.
    let late = cluster.pod("late", "node-1", "team: red")?;
    let stopped = Stopped::agent(&cluster, "node-1")?;
    for options in ["--tcp", "--udp"] {
        cluster.times_out(&late, options, &web, PORT)?;
        cluster.times_out(&late, options, &open, PORT)?;
        cluster.times_out(&far, options, &late, PORT)?;
    }
    drop(stopped);
    soon("the node to answer", || cluster.reaches(&late, "--tcp --timeout 2", &web, PORT))?;
    soon("the node to answer", || cluster.reaches(&far, "--tcp --timeout 2", &late, PORT))?;
    never_the_world(&cluster, &[&red, &blue, &late], routing)?;

    // The API server is heard of again: what it says takes the place of the answers, and nobody notices.
    cut.heal()?;
    let slices = || -> Result<()> {
        let ipcache = cluster.weft_json(&["ipcache", "list", "--node", "node-2"])?;
        let text = ipcache.to_string();
        ensure!(late.addresses.iter().all(|address| text.contains(&address.to_string())), "late is not known");
        Ok(())
    };
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        slices()?;
        cluster.reaches(&red, "--tcp", &web, PORT)?;
        cluster.reaches(&far, "--udp", &late, PORT)?;
        cluster.times_out(&blue, "--udp", &web, PORT)?;
    }
    cluster.kubectl(&["delete", "pod", "late"])?;
    eventually("the end of a pod to be known", || {
        let text = cluster.weft_json(&["ipcache", "list", "--node", "node-2"])?.to_string();
        ensure!(!late.addresses.iter().any(|address| text.contains(&address.to_string())), "late is still there");
        Ok(())
    })?;
    cluster.down()
}

/// As [`eventually`], but soon.
fn soon(what: &str, attempt: impl Fn() -> Result<()>) -> Result<()> {
    let until = Instant::now() + SOON;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > until => return Err(error.context(what.to_owned())),
            Err(_) => {}
        }
    }
}

/// Of all that node-2 saw of these pods, nothing was taken for the world; and what it dropped for not knowing says so.
fn never_the_world(cluster: &Cluster, pods: &[&Pod], routing: &str) -> Result<()> {
    let (mut seen, mut unknown) = (0, 0);
    for address in pods.iter().flat_map(|pod| &pod.addresses) {
        for flow in cluster.observe(&["--node", "node-2", "--ip", &address.to_string()])? {
            for end in ["source", "destination"] {
                let is_it = flow[end]["ip"].as_str() == Some(&address.to_string());
                let identity = flow[end]["identity"].as_u64().context("an identity")?;
                ensure!(!is_it || !WORLD.contains(&identity), "taken for the world: {flow}");
                seen += usize::from(is_it);
            }
            unknown += usize::from(flow["drop_reason"]["text"] == "Unknown sender");
        }
    }
    ensure!(seen > 0, "node-2 has seen nothing of them");
    ensure!(routing == "vxlan" || unknown > 0, "nothing was dropped for an unknown sender");
    Ok(())
}
