//! The policy language with real packets, both families: what each kind of rule means to those whom it names and to
//! those whom it does not. A connection that is let through to a port where nobody listens is refused at once; one that
//! is dropped times out.

mod moments;
mod peers;
mod rules;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::IpAddr;
use std::process::Command;
use weft_tests::cluster::{Cluster, Pod, eventually};

/// A server and a client on node-1, both again on node-2, in `default`.
struct Stage {
    cluster: Cluster,
    server: Pod,
    client: Pod,
    other: Pod,
    far_server: Pod,
    outside: Vec<IpAddr>,
    left_out: Vec<IpAddr>,
}

/// What is tried.
#[derive(Clone, Copy, Debug)]
enum Try {
    Tcp(u16),
    Udp(u16),
    /// A datagram that goes as fragments.
    Fragments(u16),
    Sctp(u16),
    Ping,
}
use Try::{Fragments, Ping, Sctp, Tcp, Udp};

impl Stage {
    fn up(label: &str, options: &[&str]) -> Result<Self> {
        let cluster = Cluster::up(label, &[&["--nodes", "2"], options].concat())?;
        let ports = |port: u16| format!("ports: [{{name: web, containerPort: {port}}}]");
        let server = cluster.pod_with("server", "node-1", "role: server", &ports(8080))?;
        let far_server = cluster.pod_with("far-server", "node-2", "role: server", &ports(9090))?;
        let client = cluster.pod("client", "node-1", "role: client")?;
        let other = cluster.pod("other", "node-2", "role: client")?;
        let parse = |texts: [&str; 2]| -> Result<Vec<IpAddr>> { Ok(vec![texts[0].parse()?, texts[1].parse()?]) };
        let outside = parse(["198.51.100.10", "2001:db8:100::10"])?;
        let left_out = parse(["198.51.100.77", "2001:db8:100::77"])?;
        let stage = Self { cluster, server, client, other, far_server, outside, left_out };
        for address in &stage.left_out {
            let host = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
            stage.in_netns("outside", &["ip", "addr", "add", &host, "dev", "eth0"])?;
            stage.in_netns("fabric", &["ip", "route", "add", &host, "dev", "outside"])?;
        }
        Ok(stage)
    }

    /// A command in a namespace of the cluster.
    fn in_netns(&self, netns: &str, command: &[&str]) -> Result<()> {
        let netns = format!("weft-{}-{netns}", self.cluster.name());
        let output = Command::new("ip").args(["netns", "exec", &netns]).args(command).output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn outcomes(&self, from: &Pod, to: &[IpAddr], what: Try) -> Result<Vec<String>> {
        let quick = "--timeout 0.8";
        match what {
            Tcp(port) => self.cluster.connect(from, &format!("--tcp {quick}"), to, port),
            Udp(port) => self.cluster.connect(from, &format!("--udp {quick}"), to, port),
            Fragments(port) => self.cluster.connect(from, &format!("--udp --size 4000 {quick}"), to, port),
            Sctp(port) => self.cluster.connect(from, &format!("--sctp {quick}"), to, port),
            Ping => {
                let mut script = String::new();
                for address in to {
                    script.push_str(&format!("/weft toolbox ping {quick} {address}; "));
                }
                script.push_str("true");
                let answers = self.cluster.kubectl(&["exec", &from.name, "--", "sh", "-c", &script])?;
                Ok(answers.lines().map(str::to_owned).collect())
            }
        }
    }

    /// Passes in both families.
    fn passes(&self, from: &Pod, to: &[IpAddr], what: Try) -> Result<()> {
        let outcomes = self.outcomes(from, to, what)?;
        let through = |outcome: &String| outcome.starts_with("ok") || outcome == "refused";
        ensure!(outcomes.len() == 2 && outcomes.iter().all(through), "{} {what:?}: {outcomes:?}, must pass", from.name);
        self.agrees(from, to, what, true)
    }

    /// Is dropped in both families.
    fn drops(&self, from: &Pod, to: &[IpAddr], what: Try) -> Result<()> {
        let outcomes = self.outcomes(from, to, what)?;
        ensure!(
            outcomes.len() == 2 && outcomes.iter().all(|outcome| outcome == "timeout"),
            "{} {what:?}: {outcomes:?}, must be dropped",
            from.name
        );
        self.agrees(from, to, what, false)
    }

    /// `weft explain` says the same as packets.
    fn agrees(&self, from: &Pod, to: &[IpAddr], what: Try, allowed: bool) -> Result<()> {
        let port = match what {
            Tcp(port) => format!("{port}/tcp"),
            Udp(port) | Fragments(port) => format!("{port}/udp"),
            Sctp(port) => format!("{port}/sctp"),
            Ping => "icmp".to_owned(),
        };
        let (namespace, name) = from.full_name();
        for address in to {
            let (from, to) = (format!("{namespace}/{name}"), address.to_string());
            let args = ["explain", "--from", &from, "--to", &to, "--port", &port, "-o", "json"];
            let output = self.cluster.try_weft(&args)?;
            let answer: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("weft explain: {}", String::from_utf8_lossy(&output.stderr)))?;
            ensure!(answer["allowed"] == allowed, "explain {from} {to} {port}: {answer}");
        }
        Ok(())
    }

    /// The reason and the rule of the newest drop of a pod's packets.
    fn last_drop(&self, from: &Pod, to: &Pod) -> Result<(u64, String)> {
        let (from, to) = (format!("default/{}", from.name), format!("default/{}", to.name));
        eventually("a drop to be seen", || {
            let args = ["--verdict", "dropped", "--from-pod", &from, "--to-pod", &to];
            let flows = self.cluster.observe(&args)?;
            let flow = flows.last().context("no drop")?;
            let policy = &flow["policies"][0];
            let rule = policy["rule"].as_str().unwrap_or_default();
            let name = policy["name"].as_str().unwrap_or_default();
            Ok((flow["drop_reason"]["code"].as_u64().context("code")?, format!("{name} {rule}")))
        })
    }

    /// Runs `check` while these policies are in force.
    fn with(&self, policies: &[(&str, &str, &str)], check: impl FnOnce() -> Result<()>) -> Result<()> {
        for (kind, name, body) in policies {
            self.cluster.rules(kind, name, body)?;
        }
        check().with_context(|| format!("{policies:#?}"))?;
        for (kind, name, _) in policies.iter().rev() {
            self.cluster.no_rules(kind, name)?;
        }
        Ok(())
    }
}

const SERVER: &str = "endpointSelector: {matchLabels: {app: server}}";
const CLIENT: &str = "endpointSelector: {matchLabels: {app: client}}";

fn on_server(rules: &str) -> String {
    format!("spec: {{{SERVER}, {rules}}}")
}

fn on_client(rules: &str) -> String {
    format!("spec: {{{CLIENT}, {rules}}}")
}

#[test]
fn native() -> Result<()> {
    language("ln", "native")
}

#[test]
fn vxlan() -> Result<()> {
    language("lv", "vxlan")
}

fn language(label: &str, routing: &str) -> Result<()> {
    let stage = Stage::up(label, &["--routing", routing])?;
    rules::open_and_closed(&stage).context("nothing, and nobody")?;
    rules::ports(&stage).context("ports")?;
    rules::deny(&stage).context("deny")?;
    rules::default_deny(&stage).context("enableDefaultDeny")?;
    peers::names_and_entities(&stage).context("named ports, entities, labels of namespaces")?;
    peers::cidrs(&stage).context("CIDR")?;
    peers::services(&stage).context("toServices")?;
    peers::world_and_itself(&stage).context("the world, and a pod behind its own service")?;
    rules::icmp_sctp_fragments(&stage).context("ICMP, SCTP, fragments")?;
    rules::tiers(&stage).context("tiers")?;
    moments::nodes(&stage).context("nodes as subjects and peers")?;
    moments::audit(&stage).context("audit mode")?;
    moments::preview(&stage).context("preview and lint")?;
    moments::live(&stage).context("established connections")?;
    moments::refused(&stage).context("policies that cannot be honoured")?;
    stage.cluster.down()
}

/// Prefixes match the cluster's own addresses where the cluster is set up so; and nothing is dropped in audit mode.
#[test]
fn settings_of_the_cluster() -> Result<()> {
    let settings =
        ["--agent", "policy-cidr-match-mode=nodes,pods", "--agent", "policy-audit-mode=true", "--agent", "log=debug"];
    let stage = Stage::up("ls", &settings)?;
    let Stage { cluster, server, client, other, .. } = &stage;
    let prefixes = "egress: [{toCIDR: [10.244.0.0/16, 'fd44::/48']}], \
                    egressDeny: [{toCIDR: [198.51.100.0/24, '2001:db8:100::/64']}]";
    stage.with(&[("cnp", "prefixes", &on_client(prefixes))], || {
        stage.passes(client, &server.addresses, Tcp(80))?;
        stage.passes(client, &other.addresses, Tcp(80))?;
        let outcomes = stage.outcomes(client, &stage.outside, Tcp(80))?;
        ensure!(outcomes.iter().all(|outcome| outcome == "refused"), "dropped in audit mode: {outcomes:?}");
        let seen = cluster.observe(&["--verdict", "audit", "--from-pod", "default/client"])?;
        ensure!(seen.iter().any(|flow| flow["policies"][0]["rule"] == "egressDeny[0]"), "{seen:?}");
        Ok(())
    })?;
    stage.cluster.down()
}

fn node_addresses(cluster: &Cluster, node: &str) -> Result<Vec<IpAddr>> {
    let object: Value = serde_json::from_str(&cluster.kubectl(&["get", "node", node, "-o", "json"])?)?;
    let addresses = object["status"]["addresses"].as_array().context("addresses")?;
    let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
    internal.map(|address| Ok(address["address"].as_str().context("address")?.parse()?)).collect()
}
