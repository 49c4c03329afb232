//! Random worlds and packets: what the kernel programs do is what the policy documents say.
//!
//! The policies are compiled by the control plane, as an agent would, and judged by the oracle, which is written from
//! the specification alone. One node's kernel decides for its own pods: what leaves them, and what enters them.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_abi::{
    Addr, CidrValue, EndpointInfo, IpcacheInfo, LpmKey, PolicyEntryKey, PolicyEntryValue, PolicyInfo, PolicyPeerKey,
    RouteInfo, config_flags, endpoint_flags, ipcache_flags, policy_action, policy_flags, policy_shape, route_flags,
};
use weft_control::oracle::generate::{self, Random};
use weft_control::oracle::{End, Packet, World, feed, may_enter, may_leave};
use weft_control::policy::Engine;
use weft_model::desired::{Action, CompiledPolicy};
use weft_model::id::Identity;
use weft_tests::packet::kernel::{DROP, Kernel, prefix};
use weft_tests::packet::site::{DEVICE, HOST_MAC_A, MAC_A, POD_A, Routing, on_node};
use weft_tests::packet::{ICMP, ICMPV6, Ip, SCTP, SYN, TCP, UDP, ip};

/// Packets to judge.
const PACKETS: usize = 20_000;
/// Packets in one world.
const PACKETS_PER_WORLD: usize = 60;
/// The node that is the kernel's: the one with the addresses of the test's device.
const NODE: usize = 0;

#[test]
fn the_kernel_decides_as_the_specification_says() {
    on_node(Routing::Native, |kernel| {
        let mut config = kernel.config.get(&0, 0)?;
        config.flags = config_flags::DUAL_STACK;
        kernel.config.set(0, config, 0)?;
        let (mut judged, mut allowed) = (0, 0);
        for seed in 0.. {
            if judged >= PACKETS {
                break;
            }
            let mut random = Random::new(seed);
            let world = generate::world(&mut random);
            let identities = put_world(kernel, &world).with_context(|| format!("world {seed}"))?;
            for n in 0..PACKETS_PER_WORLD {
                let Some(packet) = generate::packet(&mut random, &world) else { continue };
                let Some((program, ifindex, expected)) = hook(&world, &packet) else { continue };
                let frame = frame(&world, &packet, 1024 + n as u16)?;
                let outcome = kernel.run(program, ifindex, &frame)?;
                ensure!(
                    (outcome.action != DROP) == expected,
                    "seed {seed}, {packet:?} by {program}: expected {expected}, {outcome:?}, {:?}\n{world:#?}\n{identities:?}",
                    kernel.drain().pop()
                );
                judged += 1;
                allowed += usize::from(expected);
            }
            clear(kernel)?;
        }
        println!("{judged} packets, {allowed} allowed");
        ensure!(allowed > PACKETS / 10 && allowed < PACKETS * 9 / 10, "a fair test has both: {allowed} allowed");
        Ok(())
    });
}

/// Which program of the node meets the packet, and whether it shall pass; `None`: none does.
fn hook(world: &World, packet: &Packet) -> Option<(&'static str, u32, bool)> {
    let local_pod = |end: End| matches!(end, End::Pod(n) if world.pods[n].node == NODE && !world.pods[n].host_network);
    let this_node = |end: End| match end {
        End::Pod(n) => world.pods[n].node == NODE && world.pods[n].host_network,
        End::Node(n) => n == NODE,
        End::World(_) => false,
    };
    if local_pod(packet.from) {
        let enters = !local_pod(packet.to) || may_enter(world, packet);
        return Some(("weft_from_pod", POD_A, may_leave(world, packet) && enters));
    }
    if !local_pod(packet.to) {
        return None;
    }
    let enters = may_enter(world, packet);
    Some(if this_node(packet.from) { ("weft_to_pod", POD_A, enters) } else { ("weft_from_device", DEVICE, enters) })
}

fn frame(world: &World, packet: &Packet, source_port: u16) -> Result<Vec<u8>> {
    let source = world.address(packet.from, packet.v6).context("a source")?;
    let destination = world.address(packet.to, packet.v6).context("a destination")?;
    let header = Ip { source, destination, ..ip("::1", "::1") };
    Ok(match packet.protocol {
        TCP => header.tcp(source_port, packet.port, SYN, b""),
        UDP => header.udp(source_port, packet.port, b"?"),
        SCTP => header.sctp(source_port, packet.port),
        ICMP | ICMPV6 => header.ping(source_port),
        other => header.raw(other, &[0; 16]),
    })
}

/// Writes what the agent of the node would.
fn put_world(kernel: &mut Kernel, world: &World) -> Result<BTreeMap<usize, Identity>> {
    let mut numbers = feed::Numbers::default();
    let mut engine = Engine::default();
    engine.apply(feed::changes(world, NODE, &mut numbers));
    let desired = engine.desired();
    for (id, policy) in &desired.policies {
        put_policy(kernel, id.0, policy)?;
    }
    kernel.cidrs.insert(&prefix(LpmKey { prefix_len: 96, addr: Addr::v4(0) }), CidrValue { identity: 0 }, 0)?;
    for (net, number) in &desired.cidrs {
        let bits = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
        let key = LpmKey { prefix_len: bits, addr: net.network().into() };
        kernel.cidrs.insert(&prefix(key), CidrValue { identity: number.raw() }, 0)?;
    }
    let identities = numbers.identities(world);
    for (n, identity) in &identities {
        let pod = &world.pods[*n];
        let local = pod.node == NODE;
        for address in &pod.addresses {
            let node = if local { Addr::NONE } else { world.nodes[pod.node].addresses[0].into() };
            let flags = if local { ipcache_flags::LOCAL } else { 0 };
            kernel.ipcache.insert(Addr::from(*address), IpcacheInfo { identity: identity.raw(), flags, node }, 0)?;
            if local {
                let policy = &desired.endpoints[&feed::endpoint_id(*n)];
                let info = EndpointInfo {
                    ifindex: POD_A,
                    identity: identity.raw(),
                    policy_ingress: policy.ingress.0,
                    policy_egress: policy.egress.0,
                    id: feed::endpoint_id(*n).raw(),
                    flags: if policy.blocked.is_some() { endpoint_flags::BLOCKED } else { 0 },
                    pod_mac: MAC_A,
                    host_mac: HOST_MAC_A,
                };
                kernel.endpoints.insert(Addr::from(*address), info, 0)?;
            }
        }
    }
    for (n, node) in world.nodes.iter().enumerate() {
        let (identity, flags) = if n == NODE {
            (Identity::HOST, ipcache_flags::NODE | ipcache_flags::LOCAL)
        } else {
            (Identity::REMOTE_NODE, ipcache_flags::NODE)
        };
        for address in &node.addresses {
            let info = IpcacheInfo { identity: identity.raw(), flags, node: node.addresses[0].into() };
            kernel.ipcache.insert(Addr::from(*address), info, 0)?;
        }
        for net in [format!("10.244.{n}.0"), format!("fd44:0:0:{n}::")] {
            let address: IpAddr = net.parse()?;
            let prefix_len = if address.is_ipv4() { 96 + 24 } else { 64 };
            let flags = if n == NODE { route_flags::LOCAL_POOL } else { route_flags::REMOTE_POOL };
            let key = LpmKey { prefix_len, addr: address.into() };
            kernel.routes.insert(&prefix(key), RouteInfo { flags, node: node.addresses[0].into() }, 0)?;
        }
    }
    Ok(identities)
}

fn put_policy(kernel: &mut Kernel, policy: u32, compiled: &CompiledPolicy) -> Result<()> {
    let mut info = PolicyInfo::default();
    for (peer, class) in &compiled.peers {
        kernel.peers.insert(PolicyPeerKey { policy, peer: peer.raw() }, class.0, 0)?;
    }
    for ((class, port), verdict) in &compiled.entries {
        if class.0 == 0 {
            info.flags |= policy_flags::ANY_PEER;
        }
        info.shapes |=
            if port.protocol == 0 { policy_shape::ANY } else { policy_shape::port_prefix(u32::from(port.prefix_len)) };
        let key = PolicyEntryKey {
            policy,
            class: class.0,
            port_be: port.port.to_be(),
            port_prefix_len: port.prefix_len,
            protocol: port.protocol,
        };
        let action = match verdict.action {
            Action::Allow => policy_action::ALLOW,
            Action::Deny => policy_action::DENY,
        };
        let value = PolicyEntryValue { precedence: verdict.precedence, rule: verdict.rule.0, action };
        kernel.entries.insert(key, value, 0)?;
    }
    kernel.info.insert(policy, info, 0)?;
    Ok(())
}

/// Empties all maps but the configuration.
fn clear(kernel: &mut Kernel) -> Result<()> {
    macro_rules! empty {
        ($($map:ident),*) => { $(
            for key in kernel.$map.keys().collect::<Result<Vec<_>, _>>()? {
                kernel.$map.remove(&key)?;
            }
        )* };
    }
    empty!(endpoints, ipcache, cidrs, routes, peers, entries, info, flows);
    Ok(())
}
