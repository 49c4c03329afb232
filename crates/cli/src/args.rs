//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use weft_api::agent::ExplainPeer;
use weft_api::flow::{FlowFilter, Verdict};
use weft_local::cluster::UpOptions;
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
    Up(UpOptions),
    /// Remove a cluster, however it was left
    Down(DownOptions),
    /// What runs, and what is wrong
    Status(StatusOptions),
    /// Print where kubectl's configuration for a cluster is
    Kubeconfig(ClusterName),
    /// Show flows and drops
    Observe(ObserveOptions),
    /// Would a new connection pass, and by which rules?
    Explain(ExplainOptions),
    /// Local endpoints (pods' attachments) of the nodes
    #[command(subcommand)]
    Endpoint(ListCommand),
    /// Identities: the label sets that policies select
    #[command(subcommand)]
    Identity(ListCommand),
    /// Network policies, as they are in force
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Who has which address
    #[command(subcommand)]
    Ipcache(ListCommand),
    /// Tracked connections
    #[command(subcommand)]
    Ct(ListCommand),
    /// The kernel's maps: how full, how large
    #[command(subcommand)]
    Map(ListCommand),
    /// Network tools for trying things out, as in the image weft/toolbox
    #[command(disable_help_flag = true)]
    Toolbox,
}

#[derive(Args, Debug)]
pub struct ClusterName {
    /// Name of the cluster
    #[arg(long, default_value = "weft", env = "WEFT_CLUSTER")]
    pub name: String,
}

#[derive(Args, Debug)]
pub struct DownOptions {
    #[command(flatten)]
    pub cluster: ClusterName,
    /// Keep the API server's objects and the logs for the next `weft up`
    #[arg(long)]
    pub keep_state: bool,
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
pub enum PolicyCommand {
    /// List them, of all nodes
    List(ListOptions),
    /// Wait until a policy is in force on every node, or gone
    Wait(WaitOptions),
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
    /// NetworkPolicy, NAMESPACE/NAME
    #[arg(value_name = "NAMESPACE/NAME", value_parser = object_name)]
    pub policy: (String, String),
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
    /// Port and protocol, as 80/tcp; or icmp
    #[arg(long, value_name = "PORT/PROTOCOL", value_parser = port_and_protocol)]
    pub port: (u16, String),
}

fn split_name(text: &str) -> Option<(&str, &str)> {
    text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
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
    const EXPECTED: &str =
        "expected PORT/PROTOCOL with a port from 1 to 65535 and tcp, udp or sctp, such as 80/tcp; or icmp";
    if text.eq_ignore_ascii_case("icmp") {
        return Ok((0, "ICMP".to_owned()));
    }
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_uppercase();
    match port.parse::<u16>() {
        Ok(port) if port != 0 && matches!(protocol.as_str(), "TCP" | "UDP" | "SCTP") => Ok((port, protocol)),
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
        assert!(refused(&["up", "--node", "3"]).contains("--nodes"));
        assert!(refused(&["observe", "--verdict", "lost"]).contains("forwarded, dropped"));
        assert!(refused(&["observe", "--protocol", "tpc"]).contains("expected tcp, udp"));
        assert!(refused(&["observe", "--port", "0"]).contains("1..=65535"));
        assert!(refused(&["observe", "--pod", "a/b/c"]).contains("NAMESPACE/NAME"));
        assert!(refused(&["explain", "--from", "web", "--to", "a/b", "--port", "80"]).contains("NAMESPACE/NAME"));
        assert!(refused(&["explain", "--from", "a/b", "--to", "a/b", "--port", "80/quic"]).contains("such as 80/tcp"));
        assert!(refused(&["policy", "wait", "web"]).contains("default/allow-web"));
        assert!(refused(&["endpoints", "list"]).contains("endpoint"));
        assert!(refused(&["ct", "list", "-o", "yaml"]).contains("table, json"));
    }

    #[test]
    fn ports_and_peers() {
        assert_eq!(port_and_protocol("80"), Ok((80, "TCP".into())));
        assert_eq!(port_and_protocol("53/udp"), Ok((53, "UDP".into())));
        assert_eq!(port_and_protocol("icmp"), Ok((0, "ICMP".into())));
        assert!(port_and_protocol("65536/tcp").is_err());
        assert_eq!(peer("fd44::5"), Ok(ExplainPeer::Ip("fd44::5".parse().expect("address"))));
        assert_eq!(pod_prefix("web"), Ok("default/web".into()));
        assert_eq!(pod_prefix("shop/"), Ok("shop/".into()));
    }
}
