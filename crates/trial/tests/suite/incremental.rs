//! Random changes, one after the other: what is in the kernel after each is what a compiler that starts from nothing
//! makes of the new world, and while a plan is carried out no packet gets a verdict that is neither the old nor the
//! new one.

mod kernel;

use kernel::{Kernel, Step, sides};
use std::collections::{BTreeMap, BTreeSet};
use weft_control::expand::{Expander, guard_name};
use weft_control::policy::{Change, Direction, Engine, Limits, Plan};
use weft_model::desired::{Action, CompiledPolicy, PortPrefix};
use weft_model::id::{EndpointId, Identity, PeerScope, PolicyClass, PolicyId};
use weft_oracle::effort::{effort, seeds};
use weft_oracle::generate;
use weft_oracle::{Decision, End, Judge, Packet, Random, Reason, World};
use weft_trial::feed::{Input, Numbers, View};

/// The node whose engine is tested.
const NODE: usize = 0;
const HISTORIES: u64 = 400;
const CHANGES: usize = 25;
const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// A world, its engine and its kernel.
struct Scene {
    world: World,
    view: View,
    numbers: Numbers,
    expander: Expander,
    engine: Engine,
    kernel: Kernel,
    seed: u64,
}

/// A packet, whose policy is asked about it, and what that says.
type Watched = (Packet, Direction, bool);

fn decide<'a>(judge: &Judge<'a>, packet: &Packet, direction: Direction) -> Decision<'a> {
    match direction {
        Direction::Ingress => judge.may_enter(packet),
        Direction::Egress => judge.may_leave(packet),
    }
}

/// Whether the subject of a packet is one of the node, and its policy is asked.
fn is_asked(world: &World, decision: &Decision<'_>, subject: End) -> bool {
    let here = match subject {
        End::Pod(n) if world.pods[n].host_network => world.pods[n].node == NODE,
        End::Pod(n) => world.pods[n].is_managed() && world.pods[n].node == NODE,
        End::Node(n) => n == NODE,
        End::World(_) => false,
    };
    here && decision.reason != Reason::Exempt
}

fn changes(expander: &mut Expander, inputs: Vec<Input>) -> Vec<Change> {
    let mut direct = Vec::new();
    for inputs in inputs {
        match inputs {
            Input::Object(change) => expander.apply(&change),
            Input::Direct(change) => direct.push(change),
        }
    }
    let mut changes = expander.take_changes();
    changes.append(&mut direct);
    changes
}

impl Scene {
    fn new(seed: u64, random: &mut Random, limits: Limits) -> Self {
        let mut scene = Self {
            world: World::default(),
            view: View::default(),
            numbers: Numbers::default(),
            expander: Expander::default(),
            engine: Engine::new(limits),
            kernel: Kernel::default(),
            seed,
        };
        let world = generate::world(random);
        let plan = scene.go_to(world);
        scene.carry_out(plan, &[]);
        scene
    }

    /// The engine hears of the way from the old world to the new one.
    fn go_to(&mut self, world: World) -> Plan {
        let view = View::of(&world, NODE, &mut self.numbers);
        let changes = changes(&mut self.expander, view.since(&self.view));
        for change in &changes {
            if let Change::RemoveEndpoint(id) = change {
                self.kernel.endpoints.remove(id);
            }
        }
        self.view = view;
        self.world = world;
        self.engine.apply(changes)
    }

    fn carry_out(&mut self, plan: Plan, watched: &[Watched]) {
        let addresses = self.numbers.identities(&self.world);
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
        assert_eq!(self.kernel.peers, desired.peers, "seed {}", self.seed);
        assert_eq!(self.kernel.cidrs, desired.cidrs, "seed {}", self.seed);
        assert_eq!(self.kernel.endpoints, desired.endpoints, "seed {}", self.seed);
    }

    /// Packets whose verdict at this node is the same before and after.
    fn watch(&mut self, random: &mut Random, after: &World) -> Vec<Watched> {
        let (old, new) = (self.numbers.identities(&self.world), self.numbers.identities(after));
        let (before_judge, after_judge) = (Judge::new(&self.world), Judge::new(after));
        let mut watched = Vec::new();
        let stays = |end: End| match end {
            End::Pod(n) => match (self.world.pods.get(n), after.pods.get(n)) {
                (Some(before), Some(after)) => {
                    before.addresses == after.addresses
                        && before.node == after.node
                        && before.host_network == after.host_network
                        && before.is_managed() == after.is_managed()
                }
                _ => false,
            },
            _ => true,
        };
        let identity_stays = |end: End| match end {
            End::Pod(n) => old.get(&n) == new.get(&n),
            _ => true,
        };
        let labels_stay = |end: End| match end {
            End::Pod(n) => self.world.pods[n].labels == after.pods[n].labels && old.get(&n) == new.get(&n),
            End::Node(n) => self.world.nodes[n].labels == after.nodes[n].labels,
            End::World(_) => true,
        };
        for _ in 0..60 {
            let Some(packet) = generate::packet(random, after) else { continue };
            if !stays(packet.from) || !stays(packet.to) {
                continue;
            }
            for direction in DIRECTIONS {
                let (subject, other) = sides(&packet, direction);
                let before = decide(&before_judge, &packet, direction);
                let then = decide(&after_judge, &packet, direction);
                let asked = is_asked(&self.world, &before, subject) && is_asked(after, &then, subject);
                // What happens to both ends at once may make a third verdict in between.
                if asked && before.allowed == then.allowed && (labels_stay(subject) || identity_stays(other)) {
                    watched.push((packet, direction, then.allowed));
                }
            }
        }
        watched
    }

    /// What is in the kernel against the oracle, and against an engine that starts now.
    fn check(&mut self, random: &mut Random) {
        let judge = Judge::new(&self.world);
        for _ in 0..30 {
            let Some(packet) = generate::packet(random, &self.world) else { continue };
            for direction in DIRECTIONS {
                let expected = decide(&judge, &packet, direction);
                if is_asked(&self.world, &expected, sides(&packet, direction).0) {
                    let now = self.kernel.allows(&self.world, NODE, &packet, direction);
                    assert_eq!(now, expected.allowed, "seed {}: {direction} of {packet:?}", self.seed);
                }
            }
        }
        let mut scratch = Engine::default();
        let inputs = View::of(&self.world, NODE, &mut self.numbers).since(&View::default());
        scratch.apply(changes(&mut Expander::default(), inputs));
        assert_eq!(summary(&self.engine), summary(&scratch), "seed {}", self.seed);
    }

    /// The agent starts anew over the same kernel, in a world that may have changed meanwhile.
    fn restart(&mut self, world: World) -> Plan {
        self.engine = Engine::default();
        self.expander = Expander::default();
        self.engine.adopt(&self.kernel.policies, &self.kernel.cidrs, &self.kernel.peers);
        self.view = View::default();
        let there: BTreeSet<EndpointId> = self.kernel.endpoints.keys().copied().collect();
        let plan = self.go_to(world);
        let desired = self.engine.desired();
        for id in there {
            if !desired.endpoints.contains_key(&id) {
                self.kernel.endpoints.remove(&id);
            }
        }
        plan
    }
}

/// What entries say, free of numbers: tier, ports, action, precedence.
type Content = BTreeSet<(bool, PortPrefix, Action, u32)>;

/// What a policy says of each peer.
fn said(policy: &CompiledPolicy, peers: &BTreeMap<Identity, weft_model::id::PeerClass>, names: &Names) -> Said {
    let content = |class: PolicyClass| -> Content {
        let of = |admin: bool| if admin { class.admin() } else { class };
        let entries = policy.entries.iter();
        let own = entries.filter(|((other, _), _)| *other == of(other.is_admin()));
        own.map(|((class, ports), verdict)| (class.is_admin(), *ports, verdict.action, verdict.precedence)).collect()
    };
    let classes: BTreeSet<PolicyClass> =
        policy.classes.values().copied().chain([PolicyClass::ANY, policy.rest]).collect();
    for (class, _) in policy.entries.keys() {
        assert!(classes.iter().any(|known| known == class || known.admin() == *class), "entries without peers");
    }
    let numbers: BTreeSet<_> = peers.values().collect();
    assert!(policy.classes.keys().all(|class| numbers.contains(class)), "rows without peers");
    let mut said = BTreeMap::from([("anybody".to_owned(), content(PolicyClass::ANY))]);
    for (peer, class) in peers {
        let rest = if peer.is_cidr() { PolicyClass::ANY } else { policy.rest };
        let class = policy.classes.get(class).copied().unwrap_or(rest);
        if class != PolicyClass::ANY {
            said.insert(names.get(peer).cloned().unwrap_or_else(|| peer.to_string()), content(class));
        }
    }
    said
}

type Names = BTreeMap<Identity, String>;
type Said = BTreeMap<String, Content>;
/// By endpoint: what its policies say, and the first endpoint that shares each. Then the prefixes.
type Summary = (BTreeMap<u16, [(Option<Said>, u16); 2]>, BTreeSet<String>);

/// Everything that an engine makes, free of numbers that depend on history.
fn summary(engine: &Engine) -> Summary {
    let desired = engine.desired();
    let mut names = Names::new();
    for (net, number) in &desired.cidrs {
        for scope in [PeerScope::World, PeerScope::Node, PeerScope::Pod] {
            names.insert(number.in_scope(scope), format!("{net} {scope:?}"));
        }
    }
    let mut first_user: BTreeMap<PolicyId, u16> = BTreeMap::new();
    let mut endpoints = BTreeMap::new();
    for (id, endpoint) in &desired.endpoints {
        assert_eq!(endpoint.blocked, None);
        let side = [endpoint.ingress, endpoint.egress].map(|policy| {
            let first = *first_user.entry(policy).or_insert(id.raw());
            (desired.policies.get(&policy).map(|policy| said(policy, &desired.peers, &names)), first)
        });
        endpoints.insert(id.raw(), side);
    }
    assert!(desired.policies.keys().all(|id| first_user.contains_key(id)), "a policy that nobody uses");
    (endpoints, desired.cidrs.keys().map(ToString::to_string).collect())
}

#[test]
fn every_history_ends_where_a_fresh_start_would() {
    let (mut watched_packets, mut steps, mut restarts) = (0, 0, 0);
    for seed in seeds(effort(HISTORIES, 10 * HISTORIES)) {
        let mut random = Random::new(seed);
        let mut scene = Scene::new(seed, &mut random, Limits::default());
        scene.check(&mut random);
        for _ in 0..CHANGES {
            let mut after = scene.world.clone();
            generate::change(&mut random, &mut after);
            let several = random.chance(20);
            if several {
                for _ in 0..random.below(6) {
                    generate::change(&mut random, &mut after);
                }
            }
            // Several changes at once may meet in a packet: then there is a third verdict.
            let watched = if several { Vec::new() } else { scene.watch(&mut random, &after) };
            watched_packets += watched.len();
            let plan = scene.go_to(after);
            scene.carry_out(plan, &watched);
            if random.chance(15) {
                let mut after = scene.world.clone();
                if random.chance(50) {
                    generate::change(&mut random, &mut after);
                }
                // Of an identity that went meanwhile nobody knows the labels any more.
                let known = scene.numbers.identities(&scene.world);
                let stay = scene.numbers.identities(&after).into_values().collect::<BTreeSet<_>>();
                let knows = |end: End| !matches!(end, End::Pod(n) if known.get(&n).is_some_and(|i| !stay.contains(i)));
                let mut watched = scene.watch(&mut random, &after);
                watched.retain(|(packet, ..)| knows(packet.from) && knows(packet.to));
                watched_packets += watched.len();
                let plan = scene.restart(after);
                scene.carry_out(plan, &watched);
                restarts += 1;
            }
            scene.check(&mut random);
            steps += 1;
        }
        let plan = scene.engine.apply([]);
        assert!(plan.is_empty(), "seed {seed}: nothing changed, yet {plan:?}");
    }
    println!("{steps} changes, {restarts} restarts, {watched_packets} packets watched through every step");
}

#[test]
fn with_too_little_room_nothing_passes_that_should_not() {
    let (mut refused, mut denied, mut blocked, mut judged) = (0, 0, 0, 0);
    for seed in seeds(effort(HISTORIES, 10 * HISTORIES)) {
        let mut random = Random::new(seed);
        let limits = Limits {
            entries_per_policy: 5 + random.below(40),
            rows_per_policy: 2 + random.below(30),
            policies: 1 + random.below(8),
            entries: 20 + random.below(200),
            rows: 20 + random.below(200),
            peers: 10 + random.below(100),
            cidrs: 3 + random.below(20),
        };
        let mut scene = Scene::new(seed, &mut random, limits.clone());
        for _ in 0..CHANGES {
            let mut after = scene.world.clone();
            generate::change(&mut random, &mut after);
            let plan = scene.go_to(after);
            scene.carry_out(plan, &[]);
            let compiled = scene.kernel.policies.values();
            let count = |(e, r), policy: &CompiledPolicy| (e + policy.entries.len(), r + policy.classes.len());
            let (entries, rows) = compiled.clone().fold((0, 0), count);
            let sizes: BTreeMap<_, _> = scene.engine.sizes().into();
            let counted = (sizes["entries"], sizes["rows"], sizes["peers"]);
            assert_eq!(counted, (entries, rows, scene.kernel.peers.len()), "seed {seed}");
            assert!(entries <= limits.entries && rows <= limits.rows, "seed {seed}");
            assert!(scene.kernel.policies.len() <= limits.policies, "seed {seed}");
            assert!(scene.kernel.cidrs.len() <= limits.cidrs, "seed {seed}");
            assert!(scene.kernel.peers.len() <= limits.peers, "seed {seed}");
            for policy in compiled {
                assert!(policy.entries.len() <= limits.entries_per_policy, "seed {seed}");
                assert!(policy.classes.len() <= limits.rows_per_policy, "seed {seed}");
            }
            let problems = scene.engine.problems();
            refused += problems.iter().filter(|problem| problem.refused).count();
            denied += problems.iter().filter(|problem| problem.text.contains("is denied")).count();
            blocked += scene.kernel.endpoints.values().filter(|endpoint| endpoint.blocked.is_some()).count();
            // What is in force is what the objects in force say, or less.
            let mut accepted = scene.world.clone();
            let in_force = scene.engine.policies().map(|(policy, _)| (**policy).clone());
            // The oracle has it of its own.
            accepted.policies = in_force.filter(|policy| policy.name != guard_name()).collect();
            let judge = Judge::new(&accepted);
            for _ in 0..30 {
                let Some(packet) = generate::packet(&mut random, &scene.world) else { continue };
                for direction in DIRECTIONS {
                    let may = decide(&judge, &packet, direction);
                    let subject = sides(&packet, direction).0;
                    if scene.world.pod(subject).is_some() && is_asked(&scene.world, &may, subject) {
                        judged += 1;
                        let passes = scene.kernel.allows(&scene.world, NODE, &packet, direction);
                        assert!(may.allowed || !passes, "seed {seed}: {direction} of {packet:?}");
                    }
                }
            }
        }
    }
    println!("{judged} packets judged, {refused} refusals, {denied} times peers were denied, {blocked} were blocked");
    assert!(refused > 1_000 && denied > 100 && judged > 10_000, "{refused} {denied} {judged}");
}
