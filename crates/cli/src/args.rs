//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use weft_api::agent::ExplainPeer;
use weft_api::flow::{FlowFilter, Verdict};
use weft_model::intent::PolicyKind;
use weft_observe::filter::protocol_numbers;

/// Pod networking and network policy in eBPF: a cluster on this machine, and a look into any node's agent
#[derive(Parser, Debug)]
#[command(name = "weft", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a cluster on this machine, or make sure that it is up
    #[command(disable_help_flag = true)]
    Up(PassedOn),
    /// Make a cluster on this machine with the flags of `az aks create`
    #[command(disable_help_flag = true)]
    Cluster(PassedOn),
    /// Remove a cluster of this machine, however it was left
    #[command(disable_help_flag = true)]
    Down(PassedOn),
    /// What runs, and what is wrong
    Status(StatusOptions),
    /// Print where kubectl's configuration for a cluster of this machine is
    #[command(disable_help_flag = true)]
    Kubeconfig(PassedOn),
    /// Show flows and drops
    Observe(ObserveOptions),
    /// Would a new connection pass, and by which rules?
    Explain(ExplainOptions),
    /// Local endpoints (pods' attachments) of the nodes
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Identities: the label sets that policies select
    #[command(subcommand)]
    Identity(ListCommand),
    /// Network policies, as they are in force
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Services: where clients send to, and what is behind it
    #[command(subcommand)]
    Service(ListCommand),
    /// Who has which address
    #[command(subcommand)]
    Ipcache(ListCommand),
    /// Tracked connections
    #[command(subcommand)]
    Ct(ListCommand),
    /// The kernel's maps: how full, how large
    #[command(subcommand)]
    Map(ListCommand),
    /// Simulate the control plane of a large cluster, or compare ways of propagation (`weft sim run`, `weft sim scale`)
    #[command(disable_help_flag = true)]
    Sim(PassedOn),
    /// Network tools for trying things out, as in the image weft/toolbox
    #[command(disable_help_flag = true)]
    Toolbox(PassedOn),
}

/// Arguments of another program: `weft-lab` or `weft-sim` reads them and has the help.
#[derive(Args, Debug)]
pub struct PassedOn {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub args: Vec<OsString>,
}

#[derive(Args, Debug)]
pub struct StatusOptions {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub output: OutputOptions,
}

/// Which agents are asked.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Name of the cluster on this machine whose nodes are asked
    #[arg(long, default_value = "weft", env = "WEFT_CLUSTER")]
    pub name: String,
    /// Ask only the agent behind this socket [default without a cluster: /run/weft/agent.sock]
    #[arg(long, value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Ask only this node's agent
    #[arg(long, value_name = "NODE", conflicts_with = "socket")]
    pub node: Option<String>,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct OutputOptions {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Subcommand, Debug)]
pub enum ListCommand {
    /// List them, of all nodes
    List(ListOptions),
}

#[derive(Subcommand, Debug)]
pub enum EndpointCommand {
    /// List them, of all nodes
    List(ListOptions),
    /// Report what policies would drop for a pod, and let it pass
    Audit(AuditOptions),
}

#[derive(Args, Debug)]
pub struct AuditOptions {
    /// The pod
    #[arg(value_name = "NAMESPACE/NAME", value_parser = object_name)]
    pub pod: (String, String),
    /// Into audit mode, or back to enforcing
    #[arg(value_enum)]
    pub mode: AuditMode,
    #[command(flatten)]
    pub target: Target,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuditMode {
    /// Report, and let pass
    On,
    /// Drop
    Off,
}

#[derive(Subcommand, Debug)]
pub enum PolicyCommand {
    /// List them, of all nodes
    List(ListOptions),
    /// Wait until a policy is in force on every node, or gone
    Wait(WaitOptions),
    /// Check policies in files, without a cluster: says what is wrong, and in which line
    Lint(LintOptions),
    /// What would change if policies were applied (or deleted), for the pods and connections of now. Changes nothing
    Preview(PreviewOptions),
}

#[derive(Args, Debug)]
pub struct LintOptions {
    /// YAML files; - is the standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Args, Debug)]
pub struct PreviewOptions {
    /// YAML files; - is the standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// As if the objects were deleted
    #[arg(long)]
    pub delete: bool,
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Args, Debug)]
pub struct ListOptions {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Args, Debug)]
pub struct WaitOptions {
    /// NetworkPolicy NAMESPACE/NAME; another kind as cnp/NAMESPACE/NAME, ccnp/NAME, clusternetworkpolicy/NAME
    #[arg(value_name = "[KIND/][NAMESPACE/]NAME", value_parser = policy_name)]
    pub policy: PolicyArg,
    #[command(flatten)]
    pub target: Target,
    /// This version of the object [default: the one that the API server has now]
    #[arg(long, value_name = "VERSION", conflicts_with = "gone")]
    pub resource_version: Option<String>,
    /// Wait until it is not enforced any more
    #[arg(long)]
    pub gone: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,
}

#[derive(Args, Debug)]
pub struct ObserveOptions {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub output: OutputOptions,
    /// Go on with new flows
    #[arg(short, long)]
    pub follow: bool,
    /// So many of the past [default: 20, with --follow 0]
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Either end is this pod; the name may be cut short
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_prefix)]
    pub pod: Option<String>,
    /// The sender is this pod
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_prefix)]
    pub from_pod: Option<String>,
    /// The receiver is this pod
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_prefix)]
    pub to_pod: Option<String>,
    /// Either end is in this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// What became of the packet
    #[arg(long, value_enum)]
    pub verdict: Option<VerdictName>,
    /// Either port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Protocol: tcp, udp, sctp, icmp, or a number
    #[arg(long, value_parser = protocol)]
    pub protocol: Option<String>,
    /// Either address
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<IpAddr>,
}

impl ObserveOptions {
    /// The filter that the options amount to.
    pub fn filter(&self) -> FlowFilter {
        FlowFilter {
            pod: self.pod.clone(),
            from_pod: self.from_pod.clone(),
            to_pod: self.to_pod.clone(),
            namespace: self.namespace.clone(),
            verdict: self.verdict.map(|verdict| match verdict {
                VerdictName::Forwarded => Verdict::Forwarded,
                VerdictName::Dropped => Verdict::Dropped,
                VerdictName::Audit => Verdict::Audit,
            }),
            port: self.port,
            protocol: self.protocol.clone(),
            ip: self.ip,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum VerdictName {
    /// It passed
    Forwarded,
    /// It did not
    Dropped,
    /// It passed, though a policy would have dropped it: its endpoint is in audit mode
    Audit,
}

#[derive(Args, Debug)]
pub struct ExplainOptions {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub output: OutputOptions,
    /// Who connects: a pod, NAMESPACE/NAME, or an address
    #[arg(long, value_name = "POD|ADDRESS", value_parser = peer)]
    pub from: ExplainPeer,
    /// To whom: a pod, NAMESPACE/NAME, or an address
    #[arg(long, value_name = "POD|ADDRESS", value_parser = peer)]
    pub to: ExplainPeer,
    /// Port and protocol, as 80/tcp; or icmp, 8/icmp (with the message's type), 128/icmpv6
    #[arg(long, value_name = "PORT/PROTOCOL", value_parser = port_and_protocol)]
    pub port: (u16, String),
}

fn split_name(text: &str) -> Option<(&str, &str)> {
    text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
}

/// A policy object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyArg {
    /// Its kind.
    pub kind: PolicyKind,
    /// Empty for a kind without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for PolicyArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {}{slash}{}", self.kind, self.namespace, self.name)
    }
}

fn policy_name(text: &str) -> Result<PolicyArg, String> {
    const EXPECTED: &str = "expected NAMESPACE/NAME of a NetworkPolicy, such as default/allow-web, or \
         cnp/NAMESPACE/NAME, ccnp/NAME, clusternetworkpolicy/NAME";
    let kind_of = |text: &str| match text.to_ascii_lowercase().as_str() {
        "netpol" | "networkpolicy" => Some(PolicyKind::NetworkPolicy),
        "cnp" | "ciliumnetworkpolicy" => Some(PolicyKind::CiliumNetworkPolicy),
        "ccnp" | "ciliumclusterwidenetworkpolicy" => Some(PolicyKind::CiliumClusterwideNetworkPolicy),
        "clusternetworkpolicy" => Some(PolicyKind::ClusterNetworkPolicy),
        _ => None,
    };
    let parts: Vec<&str> = text.split('/').collect();
    let (kind, namespace, name) = match parts[..] {
        [kind, namespace, name] => (kind_of(kind).filter(|kind| kind.is_namespaced()), namespace, name),
        // What looks like a kind is one: a namespace of that name is written with its kind before it.
        [first, name] => match kind_of(first) {
            Some(kind) => (Some(kind), "", name),
            None => (Some(PolicyKind::NetworkPolicy), first, name),
        },
        _ => return Err(EXPECTED.to_owned()),
    };
    match kind {
        Some(kind) if !name.is_empty() && kind.is_namespaced() != namespace.is_empty() => {
            Ok(PolicyArg { kind, namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err(EXPECTED.to_owned()),
    }
}

fn object_name(text: &str) -> Result<(String, String), String> {
    split_name(text)
        .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
        .ok_or_else(|| "expected NAMESPACE/NAME, such as default/allow-web".to_owned())
}

/// A pod's name, perhaps cut short; without a namespace it is in `default`, as kubectl has it.
fn pod_prefix(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        None if !text.is_empty() => Ok(format!("default/{text}")),
        Some((namespace, name)) if !namespace.is_empty() && !name.contains('/') => Ok(text.to_owned()),
        _ => Err("expected NAMESPACE/NAME, such as default/web".to_owned()),
    }
}

fn peer(text: &str) -> Result<ExplainPeer, String> {
    if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
        return Ok(ExplainPeer::Ip(ip));
    }
    split_name(text)
        .map(|_| ExplainPeer::Pod(text.to_owned()))
        .ok_or_else(|| "expected a pod, NAMESPACE/NAME, or an address, such as default/web-1 or 10.244.0.5".to_owned())
}

fn protocol(text: &str) -> Result<String, String> {
    if protocol_numbers(text).is_empty() {
        return Err("expected tcp, udp, sctp, icmp, icmpv4, icmpv6 or a number from 0 to 255".to_owned());
    }
    Ok(text.to_owned())
}

fn port_and_protocol(text: &str) -> Result<(u16, String), String> {
    const EXPECTED: &str = "expected PORT/PROTOCOL with a port from 1 to 65535 and tcp, udp or sctp, such as 80/tcp; \
         or icmp, or a message's type such as 8/icmp or 128/icmpv6";
    // An echo request, as ping sends it: its type depends on the family.
    if text.eq_ignore_ascii_case("icmp") {
        return Ok((0, "PING".to_owned()));
    }
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_uppercase();
    match port.parse::<u16>() {
        Ok(port) if port != 0 && matches!(protocol.as_str(), "TCP" | "UDP" | "SCTP") => Ok((port, protocol)),
        Ok(kind) if kind <= 255 && matches!(protocol.as_str(), "ICMP" | "ICMPV6") => Ok((kind, protocol)),
        _ => Err(EXPECTED.to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.trim_end_matches('s').parse().map_err(|_| "expected seconds, such as 30".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|_| "expected seconds, such as 30".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn refused(args: &[&str]) -> String {
        Cli::try_parse_from(["weft"].iter().chain(args)).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn refusals_say_what_was_expected() {
        assert!(refused(&["observe", "--verdict", "lost"]).contains("forwarded, dropped"));
        assert!(refused(&["observe", "--protocol", "tpc"]).contains("expected tcp, udp"));
        assert!(refused(&["observe", "--port", "0"]).contains("1..=65535"));
        assert!(refused(&["observe", "--pod", "a/b/c"]).contains("NAMESPACE/NAME"));
        assert!(refused(&["explain", "--from", "web", "--to", "a/b", "--port", "80"]).contains("NAMESPACE/NAME"));
        assert!(refused(&["explain", "--from", "a/b", "--to", "a/b", "--port", "80/quic"]).contains("such as 80/tcp"));
        assert!(refused(&["policy", "wait", "web"]).contains("default/allow-web"));
        assert!(refused(&["policy", "wait", "cnp/web"]).contains("ccnp/NAME"));
        assert!(refused(&["policy", "lint"]).contains("--filename"));
        assert!(refused(&["endpoint", "audit", "a/b", "maybe"]).contains("on, off"));
        assert!(refused(&["endpoints", "list"]).contains("endpoint"));
        assert!(refused(&["ct", "list", "-o", "yaml"]).contains("table, json"));
    }

    #[test]
    fn what_another_program_reads_is_passed_on_as_it_is() {
        for line in ["up --nodes 5 --help", "down", "cluster create -h --version", "sim scale --rates 1,2", "toolbox"] {
            let mut words = line.split(' ');
            let cli = Cli::try_parse_from(["weft"].into_iter().chain(words.clone())).expect(line);
            words.next();
            match cli.command {
                Command::Up(passed)
                | Command::Down(passed)
                | Command::Cluster(passed)
                | Command::Sim(passed)
                | Command::Toolbox(passed) => assert!(passed.args.iter().eq(words.by_ref()), "{line}: {passed:?}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn policies_of_every_kind() {
        let parsed = |text| policy_name(text).map(|policy| policy.to_string());
        assert_eq!(parsed("shop/web"), Ok("NetworkPolicy shop/web".into()));
        assert_eq!(parsed("cnp/shop/web"), Ok("CiliumNetworkPolicy shop/web".into()));
        assert_eq!(parsed("ccnp/lock"), Ok("CiliumClusterwideNetworkPolicy lock".into()));
        assert_eq!(parsed("clusternetworkpolicy/base"), Ok("ClusterNetworkPolicy base".into()));
        for wrong in ["", "/", "web", "ccnp/a/b", "cnp/a/", "a/b/c/d"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_and_peers() {
        assert_eq!(port_and_protocol("80"), Ok((80, "TCP".into())));
        assert_eq!(port_and_protocol("53/udp"), Ok((53, "UDP".into())));
        assert_eq!(port_and_protocol("icmp"), Ok((0, "PING".into())));
        assert_eq!(port_and_protocol("8/icmp"), Ok((8, "ICMP".into())));
        assert_eq!(port_and_protocol("128/icmpv6"), Ok((128, "ICMPV6".into())));
        assert!(port_and_protocol("256/icmp").is_err());
        assert!(port_and_protocol("65536/tcp").is_err());
        assert_eq!(peer("fd44::5"), Ok(ExplainPeer::Ip("fd44::5".parse().expect("address"))));
        assert_eq!(pod_prefix("web"), Ok("default/web".into()));
        assert_eq!(pod_prefix("shop/"), Ok("shop/".into()));
    }
}
