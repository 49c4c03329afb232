//! Tests of services: clients that try many targets at once, what they must meet, and a fabric that carries addresses
//! of services to a node as a data centre's routers would.

use crate::cluster::{Cluster, Pod};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Seconds that an attempt may take; what is dropped takes all of them.
const PATIENCE: &str = "2";
/// Milliseconds within which something counts as refused at once: less than until a client would try a second time.
const AT_ONCE_MS: f64 = 900.0;
/// How long it may take until what was written to the API server is in force on all nodes.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(60);
/// The outside's only host.
pub const OUTSIDE: [&str; 2] = ["198.51.100.10", "2001:db8:100::10"];

/// Who tries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Client {
    /// A process in a pod.
    Pod(Pod),
    /// A process of a node.
    Node(String),
    /// The host outside of the cluster.
    Outside,
}

impl Client {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.name,
            Self::Node(node) => node,
            Self::Outside => "outside",
        }
    }

    /// The node that it is on.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Pod(pod) => Some(&pod.node),
            Self::Node(node) => Some(node),
            Self::Outside => None,
        }
    }
}

/// What a client must meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    /// One of these pods answers; if addresses are given, it saw one of them as its client.
    Answer {
        /// Names of pods.
        pods: Vec<String>,
        /// What the pod may have seen; empty: anything.
        peers: Vec<IpAddr>,
    },
    /// Refused at once.
    Refused,
    /// Nothing comes back.
    Timeout,
}

impl Expect {
    /// These pods, whatever they see.
    #[must_use]
    pub fn from_any(pods: &[&str]) -> Self {
        Self::Answer { pods: pods.iter().map(|pod| (*pod).to_owned()).collect(), peers: Vec::new() }
    }

    /// This pod, which sees this client.
    #[must_use]
    pub fn from(pod: &str, peer: IpAddr) -> Self {
        Self::Answer { pods: vec![pod.to_owned()], peers: vec![peer] }
    }
}

/// One attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// What is tried, in words.
    pub what: String,
    /// `tcp://[fd96::1]:80`
    pub target: String,
    /// What must come of it.
    pub expect: Expect,
}

impl Case {
    /// To an address and a port.
    #[must_use]
    pub fn new(what: &str, protocol: &str, to: IpAddr, port: u16, expect: Expect) -> Self {
        Self { what: what.to_owned(), target: target(protocol, to, port), expect }
    }
}

/// `tcp://[fd96::1]:80`
#[must_use]
pub fn target(protocol: &str, to: IpAddr, port: u16) -> String {
    format!("{protocol}://{}", SocketAddr::new(to, port))
}

/// What came of an attempt.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// `ok`, `refused`, `timeout`, `unreachable`, `error`.
    pub outcome: String,
    /// What was answered.
    pub text: String,
    /// Milliseconds.
    pub ms: f64,
}

impl Answer {
    /// The pod that answered.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        self.text.split("pod=").nth(1)?.split(' ').next()
    }

    /// The client's address as the pod saw it.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.text.split("peer=").nth(1)?.split(' ').next()?.parse().ok()
    }

    fn meets(&self, expect: &Expect) -> bool {
        match expect {
            Expect::Answer { pods, peers } => {
                let pod_fits = self.pod().is_some_and(|pod| pods.iter().any(|one| one == pod));
                let peer_fits = peers.is_empty() || self.peer().is_some_and(|peer| peers.contains(&peer.ip()));
                self.outcome == "ok" && pod_fits && peer_fits
            }
            Expect::Refused => ["refused", "unreachable"].contains(&self.outcome.as_str()) && self.ms < AT_ONCE_MS,
            Expect::Timeout => self.outcome == "timeout",
        }
    }
}

/// Addresses as a list of strings in a field of an object, one per family: `spec.clusterIPs`.
///
/// # Errors
/// It is none.
pub fn addresses(list: &Value) -> Result<Vec<IpAddr>> {
    let list = list.as_array().with_context(|| format!("expected a list of addresses: {list}"))?;
    list.iter().map(|one| Ok(one.as_str().context("an address")?.parse()?)).collect()
}

/// SCTP's ports are never changed by what stands between, and an association of these clients never ends: where two leave
/// a node with one address from one port, the second is refused. So no two processes of a test send from the same.
fn with_port(target: &str) -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    if !target.starts_with("sctp://") || target.contains("?from=") {
        return target.to_owned();
    }
    format!("{target}?from={}", 32_768 + NEXT.fetch_add(1, Ordering::Relaxed) % 16_384)
}

impl Cluster {
    /// An object of `default`.
    ///
    /// # Errors
    /// There is none.
    pub fn object(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])?)?)
    }

    /// Applies a Service of both families in `default`, given its `spec` without braces.
    ///
    /// # Errors
    /// It is refused.
    pub fn service(&self, name: &str, spec: &str) -> Result<()> {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{ipFamilyPolicy: RequireDualStack, {spec}}}}}"
        ))
    }

    /// A Service's addresses inside the cluster, IPv4 first.
    ///
    /// # Errors
    /// It has not both.
    pub fn cluster_ips(&self, service: &str) -> Result<[IpAddr; 2]> {
        let mut all = addresses(&self.object("service", service)?["spec"]["clusterIPs"])?;
        all.sort();
        <[IpAddr; 2]>::try_from(all).map_err(|all| anyhow::anyhow!("service {service} has {all:?}, not both families"))
    }

    /// A node's addresses, IPv4 first.
    ///
    /// # Errors
    /// It has not both.
    pub fn node_ips(&self, node: &str) -> Result<[IpAddr; 2]> {
        let object = self.object("node", node)?;
        let all = object["status"]["addresses"].as_array().context("addresses")?;
        let internal = all.iter().filter(|address| address["type"] == "InternalIP");
        let mut all: Vec<IpAddr> =
            internal.map(|one| Ok(one["address"].as_str().context("address")?.parse()?)).collect::<Result<_>>()?;
        all.sort();
        <[IpAddr; 2]>::try_from(all).map_err(|all| anyhow::anyhow!("{node} has {all:?}, not both families"))
    }

    /// Tries all targets at once.
    ///
    /// # Errors
    /// The client itself cannot be run.
    pub fn probe(&self, client: &Client, targets: &[String]) -> Result<Vec<Answer>> {
        let targets: Vec<String> = targets.iter().map(|target| with_port(target)).collect();
        let text = match client {
            Client::Pod(pod) => {
                let (namespace, name) = pod.full_name();
                let mut command = vec!["exec", "-n", namespace, name, "--", "/weft", "toolbox"];
                command.extend(["probe", "--timeout", PATIENCE]);
                command.extend(targets.iter().map(String::as_str));
                self.kubectl(&command)?
            }
            Client::Node(_) | Client::Outside => {
                let mut command = vec!["probe", "--timeout", PATIENCE];
                command.extend(targets.iter().map(String::as_str));
                self.toolbox_in(client.name(), &command)?
            }
        };
        let answers: Vec<Answer> = text
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).with_context(|| format!("a probe said {line}"))?;
                let word = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
                Ok(Answer { outcome: word("outcome"), text: word("text"), ms: line["ms"].as_f64().context("ms")? })
            })
            .collect::<Result<_>>()?;
        ensure!(answers.len() == targets.len(), "{} answers for {} targets: {text}", answers.len(), targets.len());
        Ok(answers)
    }

    /// The cases that fail, and how.
    ///
    /// # Errors
    /// The client itself cannot be run.
    pub fn failing(&self, client: &Client, cases: &[Case]) -> Result<Vec<String>> {
        let targets: Vec<String> = cases.iter().map(|case| case.target.clone()).collect();
        let answers = self.probe(client, &targets)?;
        let wrong = cases.iter().zip(&answers).filter(|(case, answer)| !answer.meets(&case.expect));
        Ok(wrong
            .map(|(case, answer)| {
                let Answer { outcome, text, ms } = answer;
                let Case { what, target, expect } = case;
                format!("{} -> {what} {target}: {outcome} {text} ({ms:.0} ms), expected {expect:?}", client.name())
            })
            .collect())
    }

    /// All cases hold once what was applied is in force everywhere, and then hold again at the first try.
    ///
    /// # Errors
    /// Which do not.
    pub fn meets(&self, all: &[(Client, Vec<Case>)]) -> Result<()> {
        let deadline = Instant::now() + IN_FORCE_WITHIN;
        loop {
            let wrong = self.all_failing(all)?;
            if wrong.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                bail!("{} cases:\n{}", wrong.len(), wrong.join("\n"));
            }
        }
        let wrong = self.all_failing(all)?;
        ensure!(wrong.is_empty(), "held once, then not, {} cases:\n{}", wrong.len(), wrong.join("\n"));
        Ok(())
    }

    /// The cases that fail at the first try, all clients at once.
    ///
    /// # Errors
    /// A client itself cannot be run.
    pub fn all_failing(&self, all: &[(Client, Vec<Case>)]) -> Result<Vec<String>> {
        std::thread::scope(|scope| {
            let run = |(client, cases): &'_ (Client, Vec<Case>)| self.failing(client, cases);
            let threads: Vec<_> = all.iter().map(|one| scope.spawn(move || run(one))).collect();
            let mut wrong = Vec::new();
            for thread in threads {
                wrong.extend(thread.join().map_err(|_| anyhow::anyhow!("a client's thread panicked"))??);
            }
            Ok(wrong)
        })
    }

    /// The pods that answer so many new connections.
    ///
    /// # Errors
    /// One of them fails.
    pub fn answering(&self, client: &Client, target: &str, times: usize) -> Result<BTreeSet<String>> {
        let targets = vec![target.to_owned(); times];
        let answers = self.probe(client, &targets)?;
        answers
            .into_iter()
            .map(|one| one.pod().map(str::to_owned).with_context(|| format!("{} -> {target}: {one:?}", client.name())))
            .collect()
    }

    /// A command in a namespace of the cluster.
    ///
    /// # Errors
    /// It fails.
    pub fn in_netns(&self, netns: &str, command: &[&str]) -> Result<String> {
        let netns = format!("weft-{}-{netns}", self.name());
        let output = Command::new("ip").args(["netns", "exec", &netns]).args(command).output()?;
        ensure!(output.status.success(), "{command:?} in {netns}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the fabric carry packets from outside for these addresses to a node, and the node's answers with them.
    /// A later call for another node takes them from the former.
    ///
    /// # Errors
    /// The fabric cannot be changed.
    pub fn carry(&self, prefixes: &[&str], node: &str) -> Result<()> {
        let node_ips = self.node_ips(node)?;
        for prefix in prefixes {
            let v6 = prefix.contains(':');
            let (family, via) = if v6 { ("-6", node_ips[1]) } else { ("-4", node_ips[0]) };
            let via = via.to_string();
            let route = ["ip", family, "route", "replace", prefix, "via", &via, "dev", node, "onlink"];
            self.in_netns("fabric", &route)?;
            self.permit("outside", family, &["to", prefix])?;
            self.permit(node, family, &["from", prefix])?;
        }
        Ok(())
    }

    /// Lets what comes by a link of the fabric through, whatever the fabric thinks of its source.
    ///
    /// # Errors
    /// The fabric cannot be changed.
    pub fn permit(&self, link: &str, family: &str, what: &[&str]) -> Result<()> {
        let rule = [what, &["iif", link, "lookup", "main", "pref", "90"]].concat();
        let had = self.in_netns("fabric", &["ip", family, "rule", "show", "pref", "90"])?;
        let wanted = format!("{} {}", what[0], what[1].trim_end_matches("/32").trim_end_matches("/128"));
        if had.lines().any(|line| line.contains(&wanted) && line.contains(&format!("iif {link} "))) {
            return Ok(());
        }
        self.in_netns("fabric", &[&["ip", family, "rule", "add"], rule.as_slice()].concat()).map(drop)
    }
}
