//! Random worlds and packets: what the kernel programs do is what the policy documents say.
//!
//! The policies are compiled by the control plane, as an agent would, and judged by the oracle, which is written from
//! the specification alone. One node's kernel decides for its own pods: what leaves them, and what enters them.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_abi::{
    Addr, CidrValue, EndpointInfo, IpcacheInfo, LpmKey, PolicyClassKey, PolicyEntryKey, PolicyEntryValue, PolicyInfo,
    RouteInfo, config_flags, endpoint_flags, ipcache_flags, policy_action, policy_flags, policy_shape, route_flags,
};
use weft_model::desired::{Action, CompiledPolicy};
use weft_model::id::{EndpointId, Identity};
use weft_oracle::effort::{effort, first_seed};
use weft_oracle::show::{Shown, ShownPacket};
use weft_oracle::{End, Judge, Packet, Random, World, generate};
use weft_tests::packet::kernel::{DROP, Kernel, prefix};
use weft_tests::packet::site::{DEVICE, HOST_MAC_A, MAC_A, POD_A, Routing, on_node};
use weft_tests::packet::{ICMP, ICMPV6, Ip, SCTP, SYN, TCP, UDP, ip};
use weft_trial::Agent;
use weft_trial::feed::{self, Numbers};

/// Packets to judge in the gate and in a run of full size, unless `ORACLE_PACKETS` says how many.
const PACKETS: [usize; 2] = [20_000, 200_000];
/// Packets in one world.
const PACKETS_PER_WORLD: usize = 60;
/// The node that is the kernel's: the one with the addresses of the test's device.
const NODE: usize = 0;

#[test]
fn the_kernel_decides_as_the_specification_says() {
    let packets = match std::env::var("ORACLE_PACKETS") {
        Ok(number) => number.parse().expect("ORACLE_PACKETS is a number"),
        Err(_) => effort(PACKETS[0], PACKETS[1]),
    };
    on_node(Routing::Native, move |kernel| {
        let (mut judged, mut allowed, mut of_node) = (0, 0, 0);
        for seed in first_seed().. {
            if judged >= packets {
                break;
            }
            let mut random = Random::new(seed);
            let world = generate::world(&mut random);
            let identities = put_world(kernel, &world).with_context(|| format!("world {seed}"))?;
            let judge = Judge::new(&world);
            for n in 0..PACKETS_PER_WORLD {
                let Some(packet) = generate::packet(&mut random, &world) else { continue };
                let Some((program, ifindex, expected)) = hook(&world, &judge, &packet) else { continue };
                let frame = frame(&world, &packet, 1024 + n as u16)?;
                // Where there are no ports a packet may be the answer to one before it.
                for key in kernel.flows.keys().collect::<Result<Vec<_>, _>>()? {
                    kernel.flows.remove(&key)?;
                }
                let outcome = kernel.run(program, ifindex, &frame)?;
                ensure!(
                    (outcome.action != DROP) == expected,
                    "seed {seed}, {} by {program}: egress {}, ingress {}, but {outcome:?}, {:?}\n{}\n{identities:?}",
                    ShownPacket(&world, &packet),
                    judge.may_leave(&packet),
                    judge.may_enter(&packet),
                    kernel.drain().pop(),
                    Shown(&world)
                );
                judged += 1;
                allowed += usize::from(expected);
                of_node += usize::from(program == "weft_to_device" || world.node(packet.to) == Some(NODE));
            }
            clear(kernel)?;
        }
        println!("{judged} packets, {allowed} allowed, {of_node} from or to the node itself");
        ensure!(of_node > packets / 50, "{of_node} from or to the node itself");
        ensure!(allowed > packets / 10 && allowed < packets * 9 / 10, "a fair test has both: {allowed} allowed");
        Ok(())
    });
}

/// Which program of the node meets the packet, and whether it shall pass; `None`: none does, or it is none that policies
/// are asked about.
fn hook(world: &World, judge: &Judge<'_>, packet: &Packet) -> Option<(&'static str, u32, bool)> {
    let local_pod = |end: End| world.pod(end).is_some_and(|n| world.pods[n].node == NODE);
    let this_node = |end: End| world.node(end) == Some(NODE);
    // Reserved pods of this node have no link here.
    let absent = |end: End| local_pod(end) && matches!(end, End::Pod(n) if world.pods[n].reserved.is_some());
    if absent(packet.from) || absent(packet.to) || is_of_a_connection(packet) {
        return None;
    }
    let (leaves, enters) = (judge.may_leave(packet).allowed, judge.may_enter(packet).allowed);
    if local_pod(packet.from) {
        let here = local_pod(packet.to) || this_node(packet.to);
        return Some(("weft_from_pod", POD_A, leaves && (enters || !here)));
    }
    match (this_node(packet.from), this_node(packet.to), local_pod(packet.to)) {
        (true, true, _) => None,
        (true, _, true) => Some(("weft_to_pod", POD_A, enters)),
        (true, _, false) => Some(("weft_to_device", DEVICE, leaves)),
        (false, true, _) | (false, _, true) => Some(("weft_from_device", DEVICE, enters)),
        _ => None,
    }
}

/// Errors and answers belong to connections, neighbour discovery to the link, ICMP of the other family to nobody.
fn is_of_a_connection(packet: &Packet) -> bool {
    match (packet.protocol, packet.v6) {
        (ICMP, false) => matches!(packet.port, 0 | 3 | 4 | 5 | 11 | 12),
        (ICMPV6, true) => matches!(packet.port, 1..=4 | 129 | 130..=137 | 143),
        (ICMP | ICMPV6, _) => true,
        _ => false,
    }
}

fn frame(world: &World, packet: &Packet, source_port: u16) -> Result<Vec<u8>> {
    let source = world.address(packet.from, packet.v6).context("a source")?;
    let destination = world.address(packet.to, packet.v6).context("a destination")?;
    let header = Ip { source, destination, ..ip("::1", "::1") };
    Ok(match packet.protocol {
        TCP => header.tcp(source_port, packet.port, SYN, b""),
        UDP => header.udp(source_port, packet.port, b"?"),
        SCTP => header.sctp(source_port, packet.port),
        ICMP | ICMPV6 => {
            let id = source_port.to_be_bytes();
            header.icmp(packet.port as u8, 0, &[id[0], id[1], 0, 1, b'?'])
        }
        other => header.raw(other, &[0; 16]),
    })
}

/// Writes what the agent of the node would.
fn put_world(kernel: &mut Kernel, world: &World) -> Result<BTreeMap<usize, Identity>> {
    let (mut agent, mut numbers) = (Agent::new(NODE), Numbers::default());
    agent.update(world, &mut numbers);
    let desired = agent.engine.desired();
    for (id, policy) in &desired.policies {
        put_policy(kernel, id.0, policy)?;
    }
    for (peer, class) in &desired.peers {
        kernel.peers.insert(peer.raw(), class.0, 0)?;
    }
    kernel.cidrs.insert(&prefix(LpmKey { prefix_len: 96, addr: Addr::v4(0) }), CidrValue { identity: 0 }, 0)?;
    for (net, number) in &desired.cidrs {
        let bits = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
        let key = LpmKey { prefix_len: bits, addr: net.network().into() };
        kernel.cidrs.insert(&prefix(key), CidrValue { identity: number.raw() }, 0)?;
    }
    let mut config = kernel.config.get(&0, 0)?;
    config.flags = if world.settings.dual_stack { config_flags::DUAL_STACK } else { 0 };
    if let Some(host) = desired.endpoints.get(&EndpointId::HOST) {
        ensure!(host.blocked.is_none(), "{host:?}");
        config.flags |= config_flags::HOST_POLICY;
        (config.host_ingress, config.host_egress) = (host.ingress.0, host.egress.0);
    }
    kernel.config.set(0, config, 0)?;
    let identities = numbers.identities(world);
    for (n, identity) in identities.iter().filter(|(_, identity)| **identity != Identity::UNKNOWN) {
        let pod = &world.pods[*n];
        let local = pod.node == NODE;
        for address in &pod.addresses {
            let node = if local { Addr::NONE } else { world.nodes[pod.node].addresses[0].into() };
            let flags = if local { ipcache_flags::LOCAL } else { 0 };
            kernel.ipcache.insert(Addr::from(*address), IpcacheInfo { identity: identity.raw(), flags, node }, 0)?;
            if local && pod.is_managed() {
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
    let mut info = PolicyInfo { rest: compiled.rest.0, ..PolicyInfo::default() };
    if compiled.default_allow {
        info.flags |= policy_flags::DEFAULT_ALLOW;
    }
    for (peer, class) in &compiled.classes {
        kernel.classes.insert(PolicyClassKey { policy, peer_class: peer.0 }, class.0, 0)?;
    }
    for ((class, port), verdict) in &compiled.entries {
        if class.0 == 0 {
            info.flags |= policy_flags::ANY_PEER;
        }
        let shape =
            if port.protocol == 0 { policy_shape::ANY } else { policy_shape::port_prefix(u32::from(port.prefix_len)) };
        *(if class.is_admin() { &mut info.admin_shapes } else { &mut info.shapes }) |= shape;
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
            Action::Pass => policy_action::PASS,
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
    empty!(endpoints, ipcache, cidrs, routes, peers, classes, entries, info, flows);
    Ok(())
}
