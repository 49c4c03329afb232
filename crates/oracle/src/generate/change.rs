//! Random changes of a world.

use super::policy::policy;
use super::world::{
    OTHER_KEYS, api_server, cidr_group, labels, named_ports, namespace_labels, pod, pod_labels, reserved, service,
};
use crate::random::Random;
use crate::world::World;

/// Applies one random change. Pods keep their index; only the last one is ever deleted.
pub fn change(random: &mut Random, world: &mut World) {
    let fresh = random.below(1000) + 100;
    let pods = world.pods.len();
    match random.below(20) {
        0..5 => {
            let new = policy(random, world, fresh);
            world.policies.retain(|policy| policy.name != new.name);
            world.policies.push(new);
        }
        5..8 if !world.policies.is_empty() => {
            let n = random.below(world.policies.len());
            world.policies.remove(n);
        }
        8 | 9 if !world.policies.is_empty() => {
            let n = random.below(world.policies.len());
            let mut new = policy(random, world, fresh);
            new.name = world.policies[n].name.clone();
            // Tiers and subjects depend on the kind, so only the rules are exchanged.
            if let (Some(old), Some(spec)) = (world.policies[n].specs.first_mut(), new.specs.first())
                && old.tier == spec.tier
            {
                old.ingress.clone_from(&spec.ingress);
                old.egress.clone_from(&spec.egress);
                world.policies[n].resource_version = new.resource_version;
            }
        }
        10 | 11 if pods > 0 => {
            let n = random.below(pods);
            let labels = pod_labels(random);
            let pod = &mut world.pods[n];
            if !pod.host_network {
                pod.labels = labels;
            }
        }
        12 if pods > 0 => {
            let n = random.below(pods);
            let (ports, kind) = (named_ports(random), reserved(random));
            let pod = &mut world.pods[n];
            // Its identity becomes known, or is not known any more.
            if pod.reserved.take().is_none() && !pod.host_network && random.chance(30) {
                pod.reserved = Some(kind);
                pod.named_ports.clear();
            } else {
                pod.named_ports = ports;
            }
        }
        13 if pods < 12 => {
            let new = pod(random, world, pods);
            world.pods.push(new);
        }
        14 => {
            world.pods.pop();
        }
        15 => {
            let name = *random.pick(super::world::NAMESPACES);
            world.namespaces.insert(name.to_owned(), namespace_labels(random, name));
        }
        16 => {
            let n = random.below(world.nodes.len());
            world.nodes[n].labels = labels(random, OTHER_KEYS, 50);
        }
        17 => {
            let n = random.below(2);
            let new = cidr_group(random, world, n);
            world.cidr_groups.retain(|group| group.name != new.name);
            if random.chance(70) {
                world.cidr_groups.push(new);
            }
        }
        18 => {
            let n = 1 + random.below(2);
            let new = service(random, world, n);
            world.services.retain(|service| service.object.name != new.object.name);
            if random.chance(70) {
                world.services.push(new);
            }
        }
        19 => {
            world.api_server = api_server(random, world);
            for service in &mut world.services {
                if service.object.name.namespace == "default" {
                    service.addresses.clone_from(&world.api_server);
                }
            }
        }
        _ => {}
    }
}
