//! Services as iptables rules in kube-proxy's layout, in a routing namespace: what most clusters have.
//!
//! The chains and their order are kube-proxy's (KUBE-SERVICES, then KUBE-SVC-... with one `statistic` match per backend
//! but the last, then KUBE-SEP-... with DNAT; KUBE-MARK-MASQ and KUBE-POSTROUTING), and so is what stands in the filter
//! table. The service that is measured is in the middle of the others.

use crate::chain::Chain;
use crate::netns;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

/// Port of every service.
const PORT: u16 = 80;
/// Backends of every service.
const BACKENDS: usize = 2;
/// Letters and digits of the names of chains.
const NAME_LENGTH: usize = 16;

/// A chain of namespaces whose router has so many services, one of which leads to the server.
pub struct Iptables {
    /// The namespaces.
    pub chain: Chain,
    /// The service that is measured.
    pub service: [SocketAddr; 2],
}

impl Iptables {
    /// Makes it. The server listens on `port`.
    pub fn new(name: &str, services: u32, port: u16) -> Result<Self> {
        let chain = Chain::new(name, 1)?;
        // Thousands of connections a second for minutes: the table of connections must not fill up with dead ones.
        netns::inside(&chain.router_ns(), || {
            let setting = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";
            if Path::new(setting).exists() { Ok(std::fs::write(setting, "5")?) } else { Ok(()) }
        })?;
        let middle = services / 2;
        let mut service = Vec::new();
        for (family, server) in chain.server.iter().enumerate() {
            let mut nat = String::new();
            let mut jumps = String::new();
            for number in 0..services {
                let backend = |n: usize| backend(number, n, *server, number == middle, port);
                rules(&mut nat, &mut jumps, number, address(number, server.is_ipv6()), backend)?;
            }
            let input = whole(&nat, &jumps);
            restore(&chain, server.is_ipv6(), &input).with_context(|| format!("{services} services"))?;
            service.push(SocketAddr::new(address(middle, server.is_ipv6()), PORT));
            // Where a packet for a service would go without the rules: nowhere near the server.
            let route = if family == 0 { "10.97.0.0/16 via 10.99.0.2" } else { "fd97::/64 via fd99::2" };
            netns::ip(&format!("-n {} route add {route}", chain.client_name()))?;
        }
        let service = <[SocketAddr; 2]>::try_from(service).ok().context("two families")?;
        Ok(Self { chain, service })
    }
}

/// The nth service's.
fn address(number: u32, v6: bool) -> IpAddr {
    let [_, _, high, low] = (number + 1).to_be_bytes();
    if v6 {
        Ipv6Addr::new(0xfd97, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low])).into()
    } else {
        Ipv4Addr::new(10, 97, high, low).into()
    }
}

/// Of the service that is measured all backends are the server; of the others, addresses that nobody has.
fn backend(service: u32, n: usize, server: IpAddr, measured: bool, port: u16) -> SocketAddr {
    let nobody = || {
        let number = service * BACKENDS as u32 + n as u32;
        let [_, second, high, low] = number.to_be_bytes();
        if server.is_ipv6() {
            Ipv6Addr::new(0xfd98, 0, 0, 0, 0, 0, u16::from(second), u16::from_be_bytes([high, low])).into()
        } else {
            Ipv4Addr::new(10, 100 + second, high, low).into()
        }
    };
    SocketAddr::new(if measured { server } else { nobody() }, port)
}

/// Names of chains are hashes in kube-proxy; here they only need the same length and to differ.
fn chain_name(kind: &str, service: u32, protocol: &str, backend: usize) -> String {
    let first = if protocol == "udp" { 'U' } else { 'T' };
    let name = format!("{first}{service:0width$}{backend:02}", width = NAME_LENGTH - 3);
    format!("KUBE-{kind}-{name}")
}

fn host(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv6() { 128 } else { 32 })
}

fn rules(
    nat: &mut String,
    jumps: &mut String,
    number: u32,
    address: IpAddr,
    backend: impl Fn(usize) -> SocketAddr,
) -> Result<()> {
    let to = host(address);
    let pods = if address.is_ipv6() { "fd99::/16" } else { "10.99.0.0/16" };
    for protocol in ["tcp", "udp"] {
        let name = format!("bench/service-{number}:{protocol}");
        let service = chain_name("SVC", number, protocol, 0);
        let matched = format!("-d {to} -p {protocol} -m {protocol} --dport {PORT}");
        writeln!(nat, ":{service} - [0:0]")?;
        writeln!(jumps, "-A KUBE-SERVICES {matched} -m comment --comment \"{name} cluster IP\" -j {service}")?;
        let mut own = format!(
            "-A {service} ! -s {pods} {matched} -m comment --comment \"{name} cluster IP\" -j KUBE-MARK-MASQ\n"
        );
        for n in 0..BACKENDS {
            let endpoint = chain_name("SEP", number, protocol, n + 1);
            let at = backend(n);
            writeln!(nat, ":{endpoint} - [0:0]")?;
            let comment = format!("-m comment --comment \"{name} -> {at}\"");
            let left = BACKENDS - n;
            if left > 1 {
                let share = 1.0 / left as f64;
                writeln!(
                    own,
                    "-A {service} {comment} -m statistic --mode random --probability {share:.10} -j {endpoint}"
                )?;
            } else {
                writeln!(own, "-A {service} {comment} -j {endpoint}")?;
            }
            writeln!(own, "-A {endpoint} -s {} -m comment --comment \"{name}\" -j KUBE-MARK-MASQ", host(at.ip()))?;
            writeln!(
                own,
                "-A {endpoint} -p {protocol} -m comment --comment \"{name}\" -m {protocol} -j DNAT --to-destination {at}"
            )?;
        }
        jumps.push_str(&own);
    }
    Ok(())
}

/// The whole input of `iptables-restore`.
fn whole(chains: &str, rules: &str) -> String {
    let portals = "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
    let new =
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL";
    let mut text = String::new();
    text.push_str("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n");
    for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL"] {
        text.push_str(&format!(":{chain} - [0:0]\n"));
    }
    text.push_str(&format!("-A FORWARD {new}\n"));
    text.push_str("-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n");
    text.push_str(&format!("-A FORWARD -m conntrack --ctstate NEW {portals}\n"));
    text.push_str("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n");
    text.push_str("-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n");
    text.push_str("-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n");
    text.push_str(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n",
    );
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        text.push_str(&format!(":{chain} - [0:0]\n"));
    }
    text.push_str(chains);
    text.push_str(&format!("-A PREROUTING {portals}\n-A OUTPUT {portals}\n"));
    text.push_str("-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n");
    text.push_str("-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n");
    text.push_str("-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n");
    text.push_str("-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n-A KUBE-POSTROUTING -j MASQUERADE --random-fully\n");
    text.push_str(rules);
    text.push_str("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n");
    text
}

fn restore(chain: &Chain, v6: bool, input: &str) -> Result<()> {
    let program = if v6 { "ip6tables-restore" } else { "iptables-restore" };
    netns::inside(&chain.router_ns(), || {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program}: install iptables"))?;
        child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    })
}
