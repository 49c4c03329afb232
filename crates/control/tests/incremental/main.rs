//! Random changes, one after the other: what is in the kernel after each is what a compiler that starts from nothing
//! makes of the new world, and while a plan is carried out no packet gets a verdict that is neither the old nor the
//! new one.

mod kernel;

use kernel::{Kernel, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_control::oracle::feed::{self, Numbers};
use weft_control::oracle::generate::{self, Random};
use weft_control::oracle::{self, End, Packet, World};
use weft_control::policy::{Change, Direction, Engine, Limits, Plan};
use weft_model::desired::{CompiledPolicy, PortPrefix};
use weft_model::id::{ClassId, Identity, PolicyId};

/// The node whose engine is tested.
const NODE: usize = 0;
const HISTORIES: u64 = 400;
const CHANGES: usize = 25;

/// A world, its engine and its kernel.
struct Scene {
    world: World,
    numbers: Numbers,
    /// Identities that the engine was told of.
    told: BTreeSet<Identity>,
    identities: BTreeMap<usize, Identity>,
    engine: Engine,
    kernel: Kernel,
    seed: u64,
}

impl Scene {
    fn new(seed: u64, random: &mut Random, limits: Limits) -> Self {
        let world = generate::world(random);
        let mut numbers = Numbers::default();
        let mut engine = Engine::new(limits);
        let plan = engine.apply(feed::changes(&world, NODE, &mut numbers));
        let identities = numbers.identities(&world);
        let mut scene = Self {
            told: numbers.iter().map(|(identity, _)| identity).collect(),
            kernel: Kernel::default(),
            world,
            numbers,
            identities,
            engine,
            seed,
        };
        scene.carry_out(plan, &[]);
        scene
    }

    /// What the agent tells the engine about the way from the old world to the new one.
    fn changes_to(&mut self, world: &World) -> Vec<Change> {
        let mut changes = Vec::new();
        let identities = self.numbers.identities(world);
        for (identity, labels) in self.numbers.iter() {
            if self.told.insert(identity) {
                changes.push(Change::PutIdentity(identity, Arc::clone(labels)));
            }
        }
        for n in 0..world.pods.len() {
            let (before, after) = (self.identities.get(&n), identities.get(&n));
            match after {
                Some(after) if before != Some(after) || self.world.pods[n] != world.pods[n] => {
                    changes.push(feed::put_pod(world, NODE, n, *after));
                }
                None if before.is_some() && world.pods[n].node == NODE => {
                    self.kernel.endpoints.remove(&feed::endpoint_id(n));
                    changes.push(Change::RemoveEndpoint(feed::endpoint_id(n)));
                }
                None if before.is_some() => changes.push(Change::RemoveRemote(feed::uid(n))),
                _ => {}
            }
        }
        for policy in &self.world.policies {
            if !world.policies.iter().any(|other| other.name == policy.name) {
                changes.push(Change::RemovePolicy(policy.name.clone()));
            }
        }
        for policy in &world.policies {
            if !self.world.policies.contains(policy) {
                changes.push(Change::PutPolicy(Arc::new(policy.clone())));
            }
        }
        self.identities = identities;
        changes
    }

    fn carry_out(&mut self, plan: Plan, watched: &[(Packet, Direction, bool)]) {
        let addresses: BTreeMap<_, _> = self
            .identities
            .iter()
            .flat_map(|(n, identity)| self.world.pods[*n].addresses.iter().map(|address| (*address, *identity)))
            .collect();
        for step in Step::of(plan, addresses) {
            self.kernel.carry_out(&step);
            for (packet, direction, expected) in watched {
                let now = self.kernel.allows(&self.world, NODE, packet, *direction);
                assert_eq!(now, *expected, "seed {}: {direction} of {packet:?} after {step:?}", self.seed);
            }
        }
        let desired = self.engine.desired();
        let policies: BTreeMap<_, _> = desired.policies.iter().map(|(id, policy)| (*id, (**policy).clone())).collect();
        assert_eq!(self.kernel.policies, policies, "seed {}", self.seed);
        assert_eq!(self.kernel.cidrs, desired.cidrs, "seed {}", self.seed);
        assert_eq!(self.kernel.endpoints, desired.endpoints, "seed {}", self.seed);
    }

    /// Packets whose verdict at this node's pod is the same before and after.
    fn watch(&self, random: &mut Random, after: &World) -> Vec<(Packet, Direction, bool)> {
        let mut watched = Vec::new();
        for _ in 0..60 {
            let Some(packet) = generate::packet(random, after) else { continue };
            let same = |end| self.world.address(end, packet.v6) == after.address(end, packet.v6);
            if !same(packet.from) || !same(packet.to) {
                continue;
            }
            for direction in [Direction::Ingress, Direction::Egress] {
                let (End::Pod(n), _) = feed::sides(&packet, direction) else { continue };
                if after.pods[n].host_network || after.pods[n].node != NODE {
                    continue;
                }
                let judge = |world: &World| match direction {
                    Direction::Ingress => oracle::may_enter(world, &packet),
                    Direction::Egress => oracle::may_leave(world, &packet),
                };
                if judge(&self.world) == judge(after) {
                    watched.push((packet, direction, judge(after)));
                }
            }
        }
        watched
    }

    /// What is in the kernel against the oracle, and against an engine that starts now.
    fn check(&self, random: &mut Random) {
        for _ in 0..30 {
            let Some(packet) = generate::packet(random, &self.world) else { continue };
            for direction in [Direction::Ingress, Direction::Egress] {
                let (End::Pod(n), _) = feed::sides(&packet, direction) else { continue };
                if self.world.pods[n].host_network || self.world.pods[n].node != NODE {
                    continue;
                }
                let expected = match direction {
                    Direction::Ingress => oracle::may_enter(&self.world, &packet),
                    Direction::Egress => oracle::may_leave(&self.world, &packet),
                };
                let now = self.kernel.allows(&self.world, NODE, &packet, direction);
                assert_eq!(now, expected, "seed {}: {direction} of {packet:?}", self.seed);
            }
        }
        let mut scratch = Engine::default();
        let mut numbers = self.numbers.clone();
        let mut changes = feed::changes(&self.world, NODE, &mut numbers);
        changes.retain(|change| match change {
            Change::PutIdentity(identity, _) => self.told.contains(identity),
            _ => true,
        });
        scratch.apply(changes);
        assert_eq!(summary(&self.engine), summary(&scratch), "seed {}", self.seed);
    }

    /// The objects of identities without pods are removed.
    fn collect_identities(&mut self) -> Vec<Change> {
        let used: BTreeSet<Identity> = self.identities.values().copied().collect();
        let unused: Vec<Identity> = self.told.difference(&used).copied().collect();
        self.told = used;
        unused.into_iter().map(Change::RemoveIdentity).collect()
    }

    /// The agent starts anew over the same kernel, in a world that may have changed meanwhile.
    fn restart(&mut self, world: &World) -> Plan {
        self.changes_to(world);
        self.world = world.clone();
        let mut engine = Engine::default();
        engine.adopt(&self.kernel.policies, &self.kernel.cidrs);
        let mut changes = feed::changes(&self.world, NODE, &mut self.numbers);
        changes.retain(|change| match change {
            Change::PutIdentity(identity, _) => self.told.contains(identity),
            _ => true,
        });
        let plan = engine.apply(changes);
        self.engine = engine;
        plan
    }
}

/// What a policy opens, free of numbers: peer -> ports.
fn opened(policy: &CompiledPolicy, nets: &BTreeMap<Identity, String>) -> BTreeMap<String, BTreeSet<PortPrefix>> {
    let ports = |class: ClassId| policy.entries.keys().filter(move |(c, _)| *c == class).map(|(_, prefix)| *prefix);
    let named = |peer: &Identity| nets.get(peer).cloned().unwrap_or_else(|| peer.to_string());
    let mut opened: BTreeMap<_, BTreeSet<_>> =
        policy.peers.iter().map(|(peer, class)| (named(peer), ports(*class).collect())).collect();
    assert!(opened.values().all(|ports| !ports.is_empty()), "a class without entries");
    let classes: BTreeSet<ClassId> = policy.peers.values().copied().chain([ClassId::ANY]).collect();
    assert!(policy.entries.keys().all(|(class, _)| classes.contains(class)), "entries without peers");
    opened.insert("anybody".to_owned(), ports(ClassId::ANY).collect());
    opened
}

/// By endpoint: what its policies open, and the first endpoint that shares each. Then the prefixes.
type Summary = (BTreeMap<u16, [(Opened, u16); 2]>, BTreeSet<String>);
type Opened = Option<BTreeMap<String, BTreeSet<PortPrefix>>>;

/// Everything that an engine makes, free of numbers that depend on history.
fn summary(engine: &Engine) -> Summary {
    let desired = engine.desired();
    let nets: BTreeMap<Identity, String> =
        desired.cidrs.iter().map(|(net, number)| (*number, net.to_string())).collect();
    let mut first_user: BTreeMap<PolicyId, u16> = BTreeMap::new();
    let mut endpoints = BTreeMap::new();
    for (id, endpoint) in &desired.endpoints {
        assert_eq!(endpoint.blocked, None);
        let side = [endpoint.ingress, endpoint.egress].map(|policy| {
            let first = *first_user.entry(policy).or_insert(id.raw());
            (desired.policies.get(&policy).map(|policy| opened(policy, &nets)), first)
        });
        endpoints.insert(id.raw(), side);
    }
    assert!(desired.policies.keys().all(|id| first_user.contains_key(id)), "a policy that nobody uses");
    (endpoints, nets.into_values().collect())
}

fn change(random: &mut Random, world: &World, next_name: &mut usize) -> World {
    let mut after = world.clone();
    let pod = random.below(world.pods.len());
    match random.below(10) {
        0 | 1 => {
            *next_name += 1;
            let policy = generate::policy(random, world, 100 + *next_name);
            after.policies.push(policy);
        }
        2 if !world.policies.is_empty() => {
            let n = random.below(world.policies.len());
            after.policies.remove(n);
        }
        3 | 4 if !world.policies.is_empty() => {
            let n = random.below(world.policies.len());
            let mut policy = generate::policy(random, world, 0);
            policy.name = world.policies[n].name.clone();
            if random.chance(50) {
                // Only a part of it changes.
                policy.pod_selector = world.policies[n].pod_selector.clone();
                policy.ingress = world.policies[n].ingress.clone();
            }
            after.policies[n] = policy;
        }
        5 => after.pods[pod].labels = generate::pod_labels(random),
        6 => after.pods[pod].named_ports = generate::named_ports(random),
        7 => {
            // Having the node's network stands for not being there.
            let (node, gone) = (world.pods[pod].node, !world.pods[pod].host_network);
            after.pods[pod].host_network = gone;
            let mut fresh = generate::pod(&mut Random::new(0), world, pod);
            while fresh.host_network || fresh.node != node {
                fresh = generate::pod(random, world, pod);
            }
            after.pods[pod].addresses = if gone { world.nodes[node].addresses.clone() } else { fresh.addresses };
        }
        _ => {
            let name = random.pick(&["a", "b", "c"]);
            after.namespaces.insert((*name).to_string(), generate::namespace_labels(random, name));
        }
    }
    after
}

#[test]
fn every_history_ends_where_a_fresh_start_would() {
    let (mut watched_packets, mut steps) = (0, 0);
    for seed in 0..HISTORIES {
        let mut random = Random::new(seed);
        let mut scene = Scene::new(seed, &mut random, Limits::default());
        let mut next_name = 0;
        scene.check(&mut random);
        for _ in 0..CHANGES {
            let mut after = change(&mut random, &scene.world, &mut next_name);
            let several = random.chance(20);
            if several {
                for _ in 0..random.below(6) {
                    after = change(&mut random, &after, &mut next_name);
                }
            }
            // Several changes at once may meet in a packet: then there is a third verdict.
            let watched = if several { Vec::new() } else { scene.watch(&mut random, &after) };
            let changes = scene.changes_to(&after);
            let plan = scene.engine.apply(changes);
            scene.world = after;
            watched_packets += watched.len();
            scene.carry_out(plan, &watched);
            if random.chance(30) {
                let watched = scene.watch(&mut random, &scene.world);
                let changes = scene.collect_identities();
                let plan = scene.engine.apply(changes);
                scene.carry_out(plan, &watched);
            }
            if random.chance(15) {
                let after = match random.chance(50) {
                    true => change(&mut random, &scene.world, &mut next_name),
                    false => scene.world.clone(),
                };
                let watched = scene.watch(&mut random, &after);
                let plan = scene.restart(&after);
                scene.carry_out(plan, &watched);
            }
            scene.check(&mut random);
            steps += 1;
        }
        let plan = scene.engine.apply([]);
        assert!(plan.is_empty(), "seed {seed}: nothing changed, yet {plan:?}");
    }
    println!("{steps} changes, {watched_packets} packets watched through every step");
}

#[test]
fn with_too_little_room_nothing_passes_that_should_not() {
    let (mut refused, mut denied, mut judged) = (0, 0, 0);
    for seed in 0..HISTORIES {
        let mut random = Random::new(seed);
        let limits = Limits {
            entries_per_policy: 5 + random.below(40),
            peers_per_policy: 2 + random.below(30),
            policies: 1 + random.below(8),
            entries: 20 + random.below(200),
            peers: 20 + random.below(200),
            cidrs: 3 + random.below(20),
        };
        let mut scene = Scene::new(seed, &mut random, limits.clone());
        let mut next_name = 0;
        for _ in 0..CHANGES {
            let after = change(&mut random, &scene.world, &mut next_name);
            let changes = scene.changes_to(&after);
            let plan = scene.engine.apply(changes);
            scene.world = after;
            scene.carry_out(plan, &[]);
            if random.chance(30) {
                let changes = scene.collect_identities();
                let plan = scene.engine.apply(changes);
                scene.carry_out(plan, &[]);
            }
            let compiled = scene.kernel.policies.values();
            let (entries, peers) =
                compiled.clone().fold((0, 0), |(e, p), policy| (e + policy.entries.len(), p + policy.peers.len()));
            let sizes: BTreeMap<_, _> = scene.engine.sizes().into();
            assert_eq!((sizes["entries"], sizes["peers"]), (entries, peers), "seed {seed}");
            assert!(entries <= limits.entries && peers <= limits.peers, "seed {seed}");
            assert!(scene.kernel.policies.len() <= limits.policies, "seed {seed}");
            assert!(scene.kernel.cidrs.len() <= limits.cidrs, "seed {seed}");
            for policy in compiled {
                assert!(policy.entries.len() <= limits.entries_per_policy, "seed {seed}");
                assert!(policy.peers.len() <= limits.peers_per_policy, "seed {seed}");
            }
            let problems = scene.engine.problems();
            refused += problems.iter().filter(|problem| problem.refused).count();
            denied += problems.iter().filter(|problem| problem.text.contains("are denied")).count();
            // What is in force is what the objects in force say, or less.
            let mut accepted = scene.world.clone();
            accepted.policies = scene.engine.policies().map(|(policy, _)| (**policy).clone()).collect();
            for _ in 0..30 {
                let Some(packet) = generate::packet(&mut random, &scene.world) else { continue };
                for direction in [Direction::Ingress, Direction::Egress] {
                    let (End::Pod(n), _) = feed::sides(&packet, direction) else { continue };
                    if scene.world.pods[n].host_network || scene.world.pods[n].node != NODE {
                        continue;
                    }
                    judged += 1;
                    let may = match direction {
                        Direction::Ingress => oracle::may_enter(&accepted, &packet),
                        Direction::Egress => oracle::may_leave(&accepted, &packet),
                    };
                    let passes = scene.kernel.allows(&scene.world, NODE, &packet, direction);
                    assert!(may || !passes, "seed {seed}: {direction} of {packet:?}");
                }
            }
        }
    }
    assert!(refused > 1_000 && denied > 100, "{refused} {denied}");
    println!("{judged} packets judged, {refused} refusals, {denied} times peers were denied");
}
