//! Shrinks a world that shows a failure.

use crate::world::{End, Labels, Packet, World};
use weft_model::intent::{Peer, Rule, Spec, Subject};
use weft_model::selector::Requirement;

/// Removes everything from `world` that is not needed for `shows` to hold. The packet changes with it, since it refers to
/// pods and nodes by index.
pub fn minimize(
    mut world: World,
    mut packet: Packet,
    mut shows: impl FnMut(&World, &Packet) -> bool,
) -> (World, Packet) {
    loop {
        let mut smaller = false;
        for step in STEPS {
            let mut n = 0;
            // What cannot be removed stays; try the next.
            while let Some((less, moved)) = step(&world, packet, n) {
                if shows(&less, &moved) {
                    (world, packet, smaller) = (less, moved, true);
                } else {
                    n += 1;
                }
            }
        }
        if !smaller {
            return (world, packet);
        }
    }
}

/// The world without the `n`th item of a kind; `None`: there is none.
type Step = fn(&World, Packet, usize) -> Option<(World, Packet)>;

/// Coarse ones first.
const STEPS: &[Step] = &[
    |world, packet, n| without(world, packet, n, |world| vec![&mut world.policies]),
    |world, packet, n| without(world, packet, n, |world| world.policies.iter_mut().map(|p| &mut p.specs).collect()),
    |world, packet, n| without(world, packet, n, rule_lists),
    pod,
    node,
    |world, packet, n| without(world, packet, n, |world| vec![&mut world.services]),
    |world, packet, n| without(world, packet, n, |world| vec![&mut world.cidr_groups]),
    |world, packet, n| without(world, packet, n, |world| vec![&mut world.api_server]),
    |world, packet, n| without(world, packet, n, |world| vec![&mut world.outside]),
    |world, packet, n| without(world, packet, n, |w| rules(w).into_iter().filter_map(|r| r.peers.as_mut()).collect()),
    |world, packet, n| without(world, packet, n, |w| rules(w).into_iter().filter_map(|r| r.ports.as_mut()).collect()),
    all_peers,
    all_ports,
    isolation,
    |world, packet, n| without(world, packet, n, excepts),
    |world, packet, n| without(world, packet, n, requirements),
    |world, packet, n| without(world, packet, n, |w| w.pods.iter_mut().map(|p| &mut p.named_ports).collect()),
    |world, packet, n| without(world, packet, n, |w| w.cidr_groups.iter_mut().map(|g| &mut g.cidrs).collect()),
    |world, packet, n| without(world, packet, n, |w| w.services.iter_mut().map(|s| &mut s.addresses).collect()),
    label,
];

/// The world without the `n`th item of all these lists.
fn without<T>(
    world: &World,
    packet: Packet,
    mut n: usize,
    lists: impl Fn(&mut World) -> Vec<&mut Vec<T>>,
) -> Option<(World, Packet)> {
    let mut less = world.clone();
    let mut found = false;
    for list in lists(&mut less) {
        if n < list.len() {
            list.remove(n);
            found = true;
            break;
        }
        n -= list.len();
    }
    found.then_some((less, packet))
}

fn specs(world: &mut World) -> impl Iterator<Item = &mut Spec> {
    world.policies.iter_mut().flat_map(|policy| &mut policy.specs)
}

fn rule_lists(world: &mut World) -> Vec<&mut Vec<Rule>> {
    specs(world).flat_map(|spec| [&mut spec.ingress, &mut spec.egress]).collect()
}

fn rules(world: &mut World) -> Vec<&mut Rule> {
    rule_lists(world).into_iter().flatten().collect()
}

fn excepts(world: &mut World) -> Vec<&mut Vec<ipnet::IpNet>> {
    let peers = rules(world).into_iter().filter_map(|rule| rule.peers.as_mut()).flatten();
    peers.filter_map(|peer| if let Peer::Cidr { except, .. } = peer { Some(except) } else { None }).collect()
}

fn requirements(world: &mut World) -> Vec<&mut Vec<Requirement>> {
    let mut lists = Vec::new();
    for spec in specs(world) {
        lists.push(match &mut spec.subject {
            Subject::Endpoints(selector) => &mut selector.requirements,
            Subject::Nodes(selector) => &mut selector.requirements,
        });
        let rules = spec.ingress.iter_mut().chain(&mut spec.egress);
        for peer in rules.filter_map(|rule| rule.peers.as_mut()).flatten() {
            match peer {
                Peer::Endpoints(selector) => lists.push(&mut selector.requirements),
                Peer::Nodes(selector) => lists.push(&mut selector.requirements),
                _ => {}
            }
        }
    }
    lists
}

fn all_peers(world: &World, packet: Packet, n: usize) -> Option<(World, Packet)> {
    let mut less = world.clone();
    rules(&mut less).into_iter().filter(|rule| rule.peers.is_some()).nth(n)?.peers = None;
    Some((less, packet))
}

fn all_ports(world: &World, packet: Packet, n: usize) -> Option<(World, Packet)> {
    let mut less = world.clone();
    rules(&mut less).into_iter().filter(|rule| rule.ports.is_some()).nth(n)?.ports = None;
    Some((less, packet))
}

fn isolation(world: &World, packet: Packet, n: usize) -> Option<(World, Packet)> {
    let mut less = world.clone();
    let flags = specs(&mut less).flat_map(|spec| [&mut spec.isolates_ingress, &mut spec.isolates_egress]);
    *flags.filter(|flag| **flag).nth(n)? = false;
    Some((less, packet))
}

fn label(world: &World, packet: Packet, mut n: usize) -> Option<(World, Packet)> {
    let mut less = world.clone();
    let mut all: Vec<&mut Labels> = less.pods.iter_mut().map(|pod| &mut pod.labels).collect();
    all.extend(less.nodes.iter_mut().map(|node| &mut node.labels));
    all.extend(less.namespaces.values_mut());
    all.extend(less.cidr_groups.iter_mut().map(|group| &mut group.labels));
    all.extend(less.services.iter_mut().flat_map(|s| [&mut s.object.labels, &mut s.object.selector]));
    let mut found = false;
    for labels in all {
        if let Some(key) = labels.keys().nth(n).cloned() {
            labels.remove(&key);
            found = true;
            break;
        }
        n -= labels.len();
    }
    found.then_some((less, packet))
}

/// Without the `n`th of the pods that the packet does not need.
fn pod(world: &World, packet: Packet, n: usize) -> Option<(World, Packet)> {
    let used = |n: usize| packet.from == End::Pod(n) || packet.to == End::Pod(n);
    let gone = (0..world.pods.len()).filter(|n| !used(*n)).nth(n)?;
    let mut less = world.clone();
    less.pods.remove(gone);
    let moved = |end: End| match end {
        End::Pod(n) if n > gone => End::Pod(n - 1),
        end => end,
    };
    Some((less, Packet { from: moved(packet.from), to: moved(packet.to), ..packet }))
}

/// Without the `n`th of the nodes that nothing refers to.
fn node(world: &World, packet: Packet, n: usize) -> Option<(World, Packet)> {
    let used = |n: usize| {
        packet.from == End::Node(n) || packet.to == End::Node(n) || world.pods.iter().any(|pod| pod.node == n)
    };
    let gone = (0..world.nodes.len()).filter(|n| !used(*n)).nth(n)?;
    let mut less = world.clone();
    less.nodes.remove(gone);
    for pod in &mut less.pods {
        pod.node -= usize::from(pod.node > gone);
    }
    let moved = |end: End| match end {
        End::Node(n) if n > gone => End::Node(n - 1),
        end => end,
    };
    Some((less, Packet { from: moved(packet.from), to: moved(packet.to), ..packet }))
}
