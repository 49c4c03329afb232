//! A node as the programs see it: two pods, a neighbour with a pod, the world; devices in a namespace of their own.

use super::kernel::{Kernel, Outcome, prefix};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use weft_abi::{
    Addr, CLASS_ADMIN, CidrValue, EndpointInfo, IpcacheInfo, LpmKey, NodeConfig, PolicyClassKey, PolicyEntryKey,
    PolicyEntryValue, PolicyInfo, RouteInfo, config_flags, endpoint_flags, identity, ipcache_flags, policy_action,
    policy_flags, policy_shape, route_flags,
};
use weft_model::desired::precedence;
use weft_model::intent::RuleAction;

/// Host side of pod A's link.
pub const POD_A: u32 = 101;
/// Host side of pod B's link.
pub const POD_B: u32 = 102;
/// The node's device.
pub const DEVICE: u32 = 120;
/// The VXLAN device.
pub const TUNNEL: u32 = 130;

/// Identities of pods A, B and the remote one.
pub const ID_A: u32 = 300;
/// B.
pub const ID_B: u32 = 301;
/// On the other node.
pub const ID_C: u32 = 302;

/// MACs: of the pods, of the host sides.
pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// Host side of A.
pub const HOST_MAC_A: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// Pod B.
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 2, 1];
/// Host side of B.
pub const HOST_MAC_B: [u8; 6] = [2, 0, 0, 0, 2, 2];
/// The node's device.
pub const MAC_DEVICE: [u8; 6] = [2, 0, 0, 0, 9, 1];

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub v6: bool,
    pub a: &'static str,
    pub b: &'static str,
    /// A pod of the other node.
    pub c: &'static str,
    /// A pod address of this node without an endpoint.
    pub gone: &'static str,
    /// A pod address of the other node that has no ipcache entry yet.
    pub new: &'static str,
    pub node: &'static str,
    pub peer: &'static str,
    pub world: &'static str,
    pub gateway: &'static str,
}

/// IPv4.
pub const V4: Family = Family {
    v6: false,
    a: "10.244.1.10",
    b: "10.244.1.11",
    c: "10.244.2.10",
    gone: "10.244.1.99",
    new: "10.244.2.77",
    node: "172.31.0.11",
    peer: "172.31.0.12",
    world: "198.51.100.10",
    gateway: "172.31.0.1",
};

/// IPv6.
pub const V6: Family = Family {
    v6: true,
    a: "fd44:0:0:1::10",
    b: "fd44:0:0:1::11",
    c: "fd44:0:0:2::10",
    gone: "fd44:0:0:1::99",
    new: "fd44:0:0:2::77",
    node: "fd31::11",
    peer: "fd31::12",
    world: "2001:db8:100::10",
    gateway: "fd31::1",
};

/// Both.
pub const FAMILIES: [Family; 2] = [V4, V6];

/// How pods of other nodes are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routing {
    /// The network carries pod addresses.
    Native,
    /// In VXLAN.
    Vxlan,
}

/// The address behind a text.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().expect("an address"))
}

/// The key of a prefix.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn net(text: &str) -> LpmKey {
    let net: IpNet = text.parse().expect("a prefix");
    let bits = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
    LpmKey { prefix_len: bits, addr: net.network().into() }
}

/// Runs a test on a fresh node (programs with maps as if just loaded), on a thread of its own in a network namespace of its own, which goes with the thread.
///
/// # Panics
/// If the node cannot be made, or the test panics.
pub fn on_node(routing: Routing, test: impl FnOnce(&mut Kernel) -> Result<()> + Send + 'static) {
    let outcome = std::thread::spawn(move || {
        devices().expect("devices of the test's node");
        let mut kernel = Kernel::take().expect("the kernel programs");
        fill(&mut kernel, routing).expect("the maps");
        if let Err(error) = test(&mut kernel) {
            panic!("{error:?}");
        }
        // After a test that failed they are not used again.
        kernel.leave().expect("the maps are put back");
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace with the node's devices, addresses and routes.
///
/// # Errors
/// If `ip` refuses a line.
pub fn devices() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace (are we root?)")?;
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let script = format!(
        "link set lo up
        link add pod-a index {POD_A} address {} type veth peer name in-a
        link add pod-b index {POD_B} address {} type veth peer name in-b
        link add eth0 index {DEVICE} address {} type veth peer name wire
        link add vx0 index {TUNNEL} type vxlan external dstport 8472
        link set pod-a up
        link set pod-b up
        link set in-a up
        link set in-b up
        link set wire up
        link set eth0 up
        link set vx0 up
        addr add 172.31.0.11/24 dev eth0
        addr add fd31::11/64 dev eth0 nodad
        route add default via 172.31.0.1
        route add default via fd31::1
        neigh add 172.31.0.1 lladdr 02:00:00:00:09:09 dev eth0 nud permanent
        neigh add fd31::1 lladdr 02:00:00:00:09:09 dev eth0 nud permanent
        ",
        mac(HOST_MAC_A),
        mac(HOST_MAC_B),
        mac(MAC_DEVICE)
    );
    for family in ["ipv4", "ipv6"] {
        std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").context("forwarding")?;
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("start ip")?;
    ip.stdin.take().context("its input")?.write_all(script.replace("\n        ", "\n").as_bytes())?;
    if !ip.wait()?.success() {
        bail!("ip refused a line");
    }
    Ok(())
}

/// Writes the node into the maps, with no endpoint isolated.
///
/// # Errors
/// If a map refuses.
pub fn fill(kernel: &mut Kernel, routing: Routing) -> Result<()> {
    let config = NodeConfig {
        revision: 1,
        flags: config_flags::OBSERVE
            | config_flags::MASQUERADE_V4
            | config_flags::MASQUERADE_V6
            | config_flags::DUAL_STACK,
        host_ingress: 0,
        host_egress: 0,
        device_ifindex: DEVICE,
        tunnel_ifindex: if routing == Routing::Vxlan { TUNNEL } else { 0 },
        node_v4: addr(V4.node),
        node_v6: addr(V6.node),
        tunnel_source: addr(V4.node),
        tunnel_port_be: 8472_u16.to_be(),
        pod_mtu: if routing == Routing::Vxlan { 1450 } else { 1500 },
        nat_port_min: 20000,
        nat_port_max: 29999,
        kept_port_min: 0,
        kept_port_max: 0,
        device_mac: MAC_DEVICE,
        pad: [0; 2],
        tcp_established_s: 8000,
        tcp_syn_s: 60,
        tcp_close_s: 10,
        other_s: 60,
        events_per_s: 1_000_000,
        netns_cookie: [0; 2],
    };
    kernel.config.set(0, config, 0)?;
    let a = EndpointInfo {
        ifindex: POD_A,
        identity: ID_A,
        policy_ingress: 0,
        policy_egress: 0,
        id: 1,
        flags: 0,
        pod_mac: MAC_A,
        host_mac: HOST_MAC_A,
    };
    let b = EndpointInfo { ifindex: POD_B, identity: ID_B, id: 2, pod_mac: MAC_B, host_mac: HOST_MAC_B, ..a };
    for family in FAMILIES {
        kernel.endpoints.insert(addr(family.a), a, 0)?;
        kernel.endpoints.insert(addr(family.b), b, 0)?;
        let here = |identity, flags| IpcacheInfo { identity, flags, node: Addr::NONE };
        let there = |identity, flags| IpcacheInfo { identity, flags, node: addr(V4.peer) };
        kernel.ipcache.insert(addr(family.a), here(ID_A, ipcache_flags::LOCAL), 0)?;
        kernel.ipcache.insert(addr(family.b), here(ID_B, ipcache_flags::LOCAL), 0)?;
        kernel.ipcache.insert(
            addr(family.node),
            here(identity::HOST, ipcache_flags::LOCAL | ipcache_flags::NODE),
            0,
        )?;
        kernel.ipcache.insert(addr(family.c), there(ID_C, 0), 0)?;
        kernel.ipcache.insert(addr(family.peer), there(identity::REMOTE_NODE, ipcache_flags::NODE), 0)?;
    }
    let local = RouteInfo { flags: route_flags::LOCAL_POOL, node: Addr::NONE };
    let remote = RouteInfo { flags: route_flags::REMOTE_POOL, node: addr(V4.peer) };
    for (text, route) in
        [("10.244.1.0/24", local), ("fd44:0:0:1::/64", local), ("10.244.2.0/24", remote), ("fd44:0:0:2::/64", remote)]
    {
        kernel.routes.insert(&prefix(net(text)), route, 0)?;
    }
    Ok(())
}

/// In place of a peer: every peer that has a class, but none in the policy.
pub const REST: u32 = 0x7fff_ffff;

/// One rule of a policy for tests.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Identity or prefix number of the peer; 0: any; [`REST`].
    pub peer: u32,
    /// Protocol, 0: any.
    pub protocol: u8,
    /// Port, or type of ICMP; 0: any.
    pub port: u16,
    /// [`policy_action`].
    pub action: u32,
    /// Higher wins.
    pub precedence: u32,
}

impl Rule {
    /// The same in the Admin tier, at a place in it.
    #[must_use]
    pub fn admin(self, index: u16) -> Self {
        Self { precedence: precedence::admin(10, index, self.rule_action()), ..self }
    }

    /// The same in the Baseline tier.
    #[must_use]
    pub fn baseline(self, index: u16) -> Self {
        Self { precedence: precedence::baseline(10, index, self.rule_action()), ..self }
    }

    /// For one port of a protocol (or one type of ICMP).
    #[must_use]
    pub fn port(self, protocol: u8, port: u16) -> Self {
        Self { protocol, port, ..self }
    }

    fn rule_action(self) -> RuleAction {
        match self.action {
            policy_action::ALLOW => RuleAction::Allow,
            policy_action::PASS => RuleAction::Pass,
            _ => RuleAction::Deny,
        }
    }
}

/// Allows a peer everything.
#[must_use]
pub fn allow(peer: u32) -> Rule {
    Rule { peer, protocol: 0, port: 0, action: policy_action::ALLOW, precedence: precedence::ALLOW }
}

/// Denies a peer everything.
#[must_use]
pub fn deny(peer: u32) -> Rule {
    Rule { action: policy_action::DENY, precedence: precedence::DENY, ..allow(peer) }
}

/// Leaves a peer to the tiers below.
#[must_use]
pub fn pass(peer: u32) -> Rule {
    Rule { action: policy_action::PASS, ..allow(peer) }.admin(0)
}

/// Allows a peer one port.
#[must_use]
pub fn allow_port(peer: u32, protocol: u8, port: u16) -> Rule {
    allow(peer).port(protocol, port)
}

/// Writes a policy; the number of a rule is its place, from 1. Of two rules with the same key the last one counts.
///
/// # Errors
/// If a map refuses.
pub fn put_policy(kernel: &mut Kernel, policy: u32, rules: &[Rule]) -> Result<()> {
    write_policy(kernel, policy, rules, PolicyInfo::default())
}

/// The same, of a policy that allows what no rule matches.
///
/// # Errors
/// If a map refuses.
pub fn put_open_policy(kernel: &mut Kernel, policy: u32, rules: &[Rule]) -> Result<()> {
    write_policy(kernel, policy, rules, PolicyInfo { flags: policy_flags::DEFAULT_ALLOW, ..PolicyInfo::default() })
}

fn write_policy(kernel: &mut Kernel, policy: u32, rules: &[Rule], mut info: PolicyInfo) -> Result<()> {
    for (n, rule) in rules.iter().enumerate() {
        // Each peer is a class of its own.
        let class = rule.peer;
        let tier = if rule.precedence >= precedence::ADMIN { CLASS_ADMIN } else { 0 };
        match class {
            0 if tier != 0 => {}
            0 => info.flags |= policy_flags::ANY_PEER,
            REST => info.rest = class,
            _ => {
                kernel.peers.insert(class, class, 0)?;
                kernel.classes.insert(PolicyClassKey { policy, peer_class: class }, class, 0)?;
            }
        }
        let port_prefix_len = if rule.port == 0 { 0 } else { 16 };
        let shape =
            if rule.protocol == 0 { policy_shape::ANY } else { policy_shape::port_prefix(u32::from(port_prefix_len)) };
        *(if tier == 0 { &mut info.shapes } else { &mut info.admin_shapes }) |= shape;
        let key = PolicyEntryKey {
            policy,
            class: class & !CLASS_ADMIN | tier,
            port_be: rule.port.to_be(),
            port_prefix_len,
            protocol: rule.protocol,
        };
        let value = PolicyEntryValue { precedence: rule.precedence, rule: n as u32 + 1, action: rule.action };
        kernel.entries.insert(key, value, 0)?;
    }
    kernel.info.insert(policy, info, 0)?;
    Ok(())
}

/// Makes the node itself a subject of policies.
///
/// # Errors
/// If a map refuses.
pub fn isolate_node(kernel: &mut Kernel, ingress: u32, egress: u32, audit: bool) -> Result<()> {
    let mut config = kernel.config.get(&0, 0)?;
    (config.host_ingress, config.host_egress) = (ingress, egress);
    config.flags |= config_flags::HOST_POLICY;
    config.flags &= !config_flags::HOST_AUDIT;
    config.flags |= if audit { config_flags::HOST_AUDIT } else { 0 };
    kernel.config.set(0, config, 0)?;
    kernel.bump(&[0])
}

/// Frees it again.
///
/// # Errors
/// If a map refuses.
pub fn free_node(kernel: &mut Kernel) -> Result<()> {
    let mut config = kernel.config.get(&0, 0)?;
    config.flags &= !(config_flags::HOST_POLICY | config_flags::HOST_AUDIT);
    kernel.config.set(0, config, 0)?;
    kernel.bump(&[0])
}

/// Turns the audit mode of an endpoint on or off.
///
/// # Errors
/// If a map refuses.
pub fn audit(kernel: &mut Kernel, address: &str, on: bool) -> Result<()> {
    let mut info = kernel.endpoints.get(&addr(address), 0)?;
    info.flags = if on { endpoint_flags::AUDIT } else { 0 };
    kernel.endpoints.insert(addr(address), info, 0)?;
    Ok(())
}

/// Puts an endpoint under policies.
///
/// # Errors
/// If a map refuses.
pub fn isolate(kernel: &mut Kernel, address: &str, ingress: u32, egress: u32) -> Result<()> {
    let mut info = kernel.endpoints.get(&addr(address), 0)?;
    info.policy_ingress = ingress;
    info.policy_egress = egress;
    kernel.endpoints.insert(addr(address), info, 0)?;
    Ok(())
}

/// The number of a prefix for peers outside the cluster.
#[must_use]
pub const fn cidr(n: u32) -> u32 {
    identity::CIDR_SCOPE | n << 2
}

/// Names a prefix that policies mention, by its number of [`cidr`].
///
/// # Errors
/// If the map refuses.
pub fn put_cidr(kernel: &mut Kernel, text: &str, number: u32) -> Result<()> {
    kernel.cidrs.insert(&prefix(net(text)), CidrValue { identity: number }, 0)?;
    Ok(())
}

/// What pod A sends.
///
/// # Errors
/// If the kernel will not run the program.
pub fn from_a(kernel: &Kernel, frame: &[u8]) -> Result<Outcome> {
    kernel.run("weft_from_pod", POD_A, frame)
}

/// What pod B sends.
///
/// # Errors
/// If the kernel will not run the program.
pub fn from_b(kernel: &Kernel, frame: &[u8]) -> Result<Outcome> {
    kernel.run("weft_from_pod", POD_B, frame)
}

/// What the node sends to the network.
///
/// # Errors
/// If the kernel will not run the program.
pub fn from_node(kernel: &Kernel, frame: &[u8]) -> Result<Outcome> {
    kernel.run("weft_to_device", DEVICE, frame)
}

/// What comes from the network.
///
/// # Errors
/// If the kernel will not run the program.
pub fn from_wire(kernel: &Kernel, frame: &[u8]) -> Result<Outcome> {
    kernel.run("weft_from_device", DEVICE, frame)
}
