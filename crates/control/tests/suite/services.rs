//! The engine against a model that says what Services mean, in random worlds that change at random.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_control::service::{Allowed, Engine, LocalPod, Object, Outcome, Reason, Settings};
use weft_model::desired::{BackendId, Frontend, FrontendKind, ServicePatch, ServiceTables, SetId};
use weft_model::intent::{
    Age, Algorithm, Backend, Backends, Change, Forwarding, HostPort, LocalRedirect, NamedPort, Node, ObjectName,
    Protocol, RedirectFrontend, RedirectPort, Routing, Service, ServicePort, Topology,
};
use weft_model::selector::{Requirement, Selector};
use weft_oracle::Random;
use weft_oracle::effort::seeds;

mod cases;
mod model;

use model::{Meaning, PROTOCOLS, World, meaning};

const TABLE: u32 = 251;

fn settings() -> Settings {
    Settings {
        node_name: "n1".to_owned(),
        ipv4: true,
        ipv6: true,
        node_ports: 30_000..=30_002,
        forwarding: Forwarding::Snat,
        table_size: TABLE,
        allowed: Allowed {
            external_ips: nets(&["203.0.113.0/24", "2001:db8:1::/48", "10.96.0.0/16", "fd96::/16"]),
            reserved_ports: vec![22..=22, 10_248..=10_260],
            pod_ranges: nets(&["10.244.0.0/16", "fd44::/16"]),
            api_server: [ip("203.0.113.3"), ip("2001:db8:1::3")].into(),
        },
    }
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn name(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A kernel that takes what it is told, if it fits and if it makes sense.
#[derive(Default)]
struct Kernel {
    tables: ServiceTables,
    /// Most places of sets; 0: no limit.
    slots_max: usize,
    given: BTreeSet<BackendId>,
    patches: usize,
}

impl Kernel {
    fn patch(&mut self, patch: &ServicePatch) -> Outcome {
        let slots = |sets: &BTreeMap<SetId, weft_model::desired::BackendSet>| -> usize {
            sets.values().map(|set| set.backends.len()).sum()
        };
        if self.slots_max > 0 && slots(&self.tables.sets) + slots(&patch.put_sets) > self.slots_max {
            return Outcome::Refused("map SLOTS is full".to_owned());
        }
        self.patches += 1;
        // In the order of the fields, and at every step everything that a packet can meet is whole.
        for (id, entry) in &patch.put_backends {
            let known = self.tables.backends.get(id);
            assert!(known.is_none_or(|known| known.service == entry.service), "a backend changes its service");
            assert!(known.is_some() || self.given.insert(*id), "number {id:?} is given again");
            assert_ne!(id.0, 0);
        }
        for (id, set) in &patch.put_sets {
            assert!(!self.tables.sets.contains_key(id), "set {id:?} is changed");
            assert!(!set.backends.is_empty() && id.0 != 0);
            let there = |id| self.tables.backends.contains_key(id) || patch.put_backends.contains_key(id);
            assert!(set.backends.iter().all(there), "a set of backends that are not there");
            assert!(set.table.iter().all(|slot| usize::from(*slot) < set.backends.len()));
        }
        for (frontend, entry) in &patch.put_frontends {
            assert!(!patch.del_frontends.contains(frontend));
            let there = |set: &SetId| self.tables.sets.contains_key(set) || patch.put_sets.contains_key(set);
            assert!([entry.internal, entry.external].iter().flatten().all(there), "{frontend:?}: a set is missing");
        }
        self.tables.apply(patch);
        let used: BTreeSet<SetId> =
            self.tables.frontends.values().flat_map(|e| [e.internal, e.external]).flatten().collect();
        assert!(patch.del_sets.iter().all(|set| !used.contains(set)), "a set in use is removed");
        assert!(
            self.tables.sets.keys().all(|set| used.contains(set) || !patch.put_sets.contains_key(set)),
            "for nothing"
        );
        let used: BTreeSet<BackendId> =
            self.tables.sets.values().flat_map(|set| set.backends.iter().copied()).collect();
        assert!(patch.del_backends.iter().all(|id| !used.contains(id)), "a backend in use is removed");
        Outcome::Written
    }

    /// Carries out everything that is planned.
    fn follow(&mut self, engine: &mut Engine) {
        for _ in 0..1000 {
            let Some(patch) = engine.plan() else {
                assert!(!engine.has_work());
                if self.slots_max == 0 {
                    assert_eq!(*engine.tables(), self.tables);
                }
                return;
            };
            assert!(!patch.is_empty());
            let outcome = self.patch(patch);
            engine.done(outcome);
        }
        panic!("the engine plans for ever");
    }
}

/// Random pieces of a world, from few names so that they meet.
struct Maker(Random);

impl Maker {
    fn family(&mut self) -> bool {
        self.0.chance(50)
    }

    fn address(&mut self, v4: &str, v6: &str, n: usize) -> IpAddr {
        let prefix = if self.family() { v6 } else { v4 };
        ip(&format!("{prefix}{}", 1 + self.0.below(n)))
    }

    fn some_addresses(&mut self, v4: &str, v6: &str, n: usize, percent: usize) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = Vec::new();
        while self.0.chance(percent) && all.len() < 3 {
            let address = self.address(v4, v6, n);
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    fn routing(&mut self, service: usize) -> Routing {
        let mut ports: Vec<ServicePort> = Vec::new();
        for (n, port_name) in ["", "web", "dns"].iter().enumerate() {
            let protocol = *self.0.pick(&PROTOCOLS);
            let port = *self.0.pick(&[53, 80]);
            let taken = ports.iter().any(|own| own.port == port && own.protocol == protocol);
            if (n == 0 || self.0.chance(40)) && !taken {
                let node_port = *self.0.pick(&[0, 30_000, 30_001, 30_002, 40_000]);
                ports.push(ServicePort { name: (*port_name).to_owned(), protocol, port, node_port });
            }
        }
        let both = [ip(&format!("10.96.0.{service}")), ip(&format!("fd96::{service}"))];
        let cluster_ips = match self.0.below(4) {
            0 => vec![both[0]],
            1 => vec![both[1]],
            _ => both.to_vec(),
        };
        let ranges: Vec<ipnet::IpNet> =
            ["192.0.2.0/24", "2001:db8::/32", "::/0"].map(|net| net.parse().unwrap()).to_vec();
        let (plain, bits) = (self.0.chance(40), |random: &mut Random| random.chance(30));
        Routing {
            ports,
            cluster_ips,
            external_ips: if plain { vec![] } else { self.external() },
            load_balancer_ips: if plain { vec![] } else { self.some_addresses("198.51.100.", "2001:db8:2::", 2, 40) },
            node_ports: !plain && self.0.chance(60),
            affinity_s: self.0.chance(30).then_some(10_800),
            internal_local: bits(&mut self.0),
            external_local: bits(&mut self.0),
            source_ranges: self.0.some(&ranges, 30),
            health_check_node_port: None,
            publish_not_ready: self.0.chance(10),
            topology: *self.0.pick(&[Topology::None, Topology::Hints, Topology::SameNode]),
            algorithm: *self.0.pick(&[Algorithm::Random, Algorithm::Random, Algorithm::Maglev]),
            forwarding: *self.0.pick(&[None, Some(Forwarding::Dsr), Some(Forwarding::Snat)]),
        }
    }

    /// Some that may be, some that are cluster IPs, some that are machines', some that are not allowed.
    fn external(&mut self) -> Vec<IpAddr> {
        let (v4, v6) =
            *self.0.pick(&[("203.0.113.", "2001:db8:1::"), ("10.96.0.", "fd96::"), ("198.51.100.", "2001:db8:2::")]);
        self.some_addresses(v4, v6, 4, 40)
    }

    fn age(&mut self) -> Age {
        Age { created: self.0.below(3).to_string(), uid: self.0.below(2).to_string() }
    }

    fn backend(&mut self, v6: bool) -> Backend {
        let prefix = if v6 { "fd44::" } else { "10.244.0." };
        let ready = self.0.chance(60);
        let zones = ["a", "b"].map(str::to_owned);
        Backend {
            address: ip(&format!("{prefix}{}", 1 + self.0.below(5))),
            ready,
            serving: ready || self.0.chance(50),
            terminating: !ready && self.0.chance(60),
            node: self.0.pick(&[Some("n1"), Some("n2"), None]).map(str::to_owned),
            zone: None,
            for_zones: if self.0.chance(20) { BTreeSet::new() } else { self.0.some(&zones, 60).into_iter().collect() },
        }
    }

    fn slice(&mut self, slice: usize) -> Backends {
        let v6 = self.family();
        let service = self.0.below(4);
        let port = |random: &mut Random, name: &str| NamedPort {
            name: name.to_owned(),
            protocol: *random.pick(&PROTOCOLS),
            port: *random.pick(&[8080, 8081]),
        };
        // Named target ports may be one number here and another there.
        let mut ports: Vec<NamedPort> = Vec::new();
        for protocol in PROTOCOLS {
            for name in ["", "web", "dns"] {
                if self.0.chance(70) {
                    ports.push(NamedPort { protocol, ..port(&mut self.0, name) });
                }
            }
        }
        let count = self.0.below(6);
        Backends {
            slice: name(&format!("slice{slice}")),
            service: name(&format!("svc{service}")),
            ports,
            endpoints: (0..count).map(|_| self.backend(v6)).collect(),
        }
    }

    fn selector(&mut self) -> Selector {
        let app = (*self.0.pick(&["a", "b"])).to_owned();
        Selector { requirements: vec![Requirement::In("app".to_owned(), [app].into())] }
    }

    fn redirect(&mut self, redirect: usize) -> LocalRedirect {
        let ports = |random: &mut Random| {
            let several = random.chance(40);
            let names: &[&str] = if several {
                &["web", "dns"]
            } else if random.chance(50) {
                &[""]
            } else {
                &["web"]
            };
            let make = |(n, name): (usize, &&str)| RedirectPort {
                name: (*name).to_owned(),
                protocol: *random.pick(&[Protocol::Tcp, Protocol::Udp]),
                port: [53, 80][n],
            };
            names.iter().enumerate().map(make).collect::<Vec<_>>()
        };
        let frontend_ports = ports(&mut self.0);
        let target_ports = ports(&mut self.0);
        let service = name(&format!("svc{}", self.0.below(4)));
        let frontend = if self.0.chance(50) {
            RedirectFrontend::Address { address: self.address("203.0.113.", "2001:db8:1::", 3), ports: frontend_ports }
        } else {
            let ports = if self.0.chance(40) { Vec::new() } else { frontend_ports };
            RedirectFrontend::Service { name: service, ports }
        };
        LocalRedirect {
            name: name(&format!("redirect{redirect}")),
            frontend,
            selector: self.selector(),
            ports: target_ports,
            skip_from_backend: self.0.chance(50),
            age: self.age(),
        }
    }

    fn pod(&mut self, pod: usize) -> LocalPod {
        let host_port = HostPort {
            host_ip: self.0.pick(&[None, Some(ip("192.0.2.1")), Some(ip("2001:db8::1")), Some(ip("::"))]).to_owned(),
            port: *self.0.pick(&[8080, 30_001, 10_250]),
            protocol: *self.0.pick(&PROTOCOLS),
            container_port: 80,
        };
        LocalPod {
            name: name(&format!("pod{pod}")),
            labels: [("app".to_owned(), (*self.0.pick(&["a", "b"])).to_owned())].into(),
            addresses: vec![ip(&format!("10.244.9.{}", 1 + pod)), ip(&format!("fd44:9::{}", 1 + pod))],
            ready: self.0.chance(70),
            host_ports: if self.0.chance(60) { vec![host_port] } else { Vec::new() },
            age: self.age(),
        }
    }

    /// Changes the world and tells the engine.
    fn change(&mut self, world: &mut World, engine: &mut Engine) {
        let (n, gone) = (self.0.below(4), self.0.chance(20));
        match self.0.below(10) {
            0..3 => {
                let service = name(&format!("svc{n}"));
                if gone {
                    world.services.remove(&service);
                    engine.apply(&Change::ServiceGone(service));
                } else {
                    let (routing, age) = (Some(self.routing(n + 1)), self.age());
                    world.services.insert(service.clone(), routing.clone().unwrap());
                    world.ages.insert(service.clone(), age.clone());
                    engine.apply(&Change::Service(Service { name: service, routing, age, ..Service::default() }));
                }
            }
            3..7 => {
                let slice = self.slice(self.0.clone().below(6));
                if gone {
                    world.slices.remove(&slice.slice);
                    engine.apply(&Change::BackendsGone(slice.slice));
                } else {
                    world.slices.insert(slice.slice.clone(), slice.clone());
                    engine.apply(&Change::Backends(slice));
                }
            }
            7 => {
                let redirect = self.redirect(n);
                if gone {
                    world.redirects.remove(&redirect.name);
                    engine.apply(&Change::LocalRedirectGone(redirect.name));
                } else {
                    world.redirects.insert(redirect.name.clone(), redirect.clone());
                    engine.apply(&Change::LocalRedirect(redirect));
                }
            }
            8 => {
                let pod = self.pod(n);
                if gone {
                    world.pods.remove(&pod.name);
                    engine.remove_pod(&pod.name);
                } else {
                    world.pods.insert(pod.name.clone(), pod.clone());
                    engine.put_pod(pod);
                }
            }
            _ => {
                world.zone = self.0.pick(&[None, Some("a"), Some("b")]).map(str::to_owned);
                world.host = self.0.some(&[ip("192.0.2.1"), ip("2001:db8::1"), ip("203.0.113.2")], 70);
                engine.apply(&Change::Node(node(world)));
                let prefixes = nets(&["203.0.113.0/31", "2001:db8:1::/127"]);
                world.other = (self.0.some(&[ip("203.0.113.4"), ip("2001:db8:1::4")], 50), self.0.some(&prefixes, 30));
                if world.other == Default::default() {
                    engine.apply(&Change::NodeGone("n2".to_owned()));
                } else {
                    engine.apply(&Change::Node(other(world)));
                }
            }
        }
    }
}

fn node(world: &World) -> Node {
    let zone = world.zone.clone().map(|zone| ("topology.kubernetes.io/zone".to_owned(), zone));
    let (addresses, labels) = (world.host.clone(), zone.into_iter().collect());
    Node { name: "n1".to_owned(), addresses, pod_cidrs: vec![], labels }
}

fn other(world: &World) -> Node {
    let (addresses, pod_cidrs) = world.other.clone();
    Node { name: "n2".to_owned(), addresses, pod_cidrs, labels: BTreeMap::new() }
}

/// Who has which frontend, whatever was there before: the highest kind, of equal ones the oldest, then the first by name.
/// At one address of the node a hostPort comes after what is before it at all of them.
fn owners(world: &World, wishes: &BTreeMap<Frontend, BTreeMap<Object, Meaning>>) -> BTreeMap<Frontend, Object> {
    let first = |frontend: &Frontend| {
        let wishes = wishes.get(frontend)?.iter();
        wishes.map(|(object, meaning)| (world.standing(object, meaning.kind), meaning.kind)).min()
    };
    let mut owners = BTreeMap::new();
    for frontend in wishes.keys() {
        let Some((standing, kind)) = first(frontend) else { continue };
        let any = if frontend.address.is_ipv6() { ip("::") } else { ip("0.0.0.0") };
        let wide = first(&Frontend { address: any, ..*frontend }).filter(|_| kind == FrontendKind::HostPort);
        if wide.is_none_or(|(wide, _)| wide >= standing || wide.2 == standing.2) {
            owners.insert(*frontend, standing.2);
        }
    }
    owners
}

fn decide(world: &World, settings: &Settings) -> BTreeMap<Frontend, Meaning> {
    let wishes = world.wishes(settings);
    let owners = owners(world, &wishes);
    owners.iter().map(|(frontend, owner)| (*frontend, wishes[frontend][owner].clone())).collect()
}

/// Beside what is in sets only what ends is there, and nothing is left over.
fn check_leftovers(tables: &ServiceTables, world: &World, settings: &Settings) {
    let used: BTreeSet<SetId> = tables.frontends.values().flat_map(|e| [e.internal, e.external]).flatten().collect();
    assert_eq!(tables.sets.keys().copied().collect::<BTreeSet<_>>(), used);
    let members: BTreeSet<BackendId> = tables.sets.values().flat_map(|set| set.backends.iter().copied()).collect();
    let ending: BTreeSet<_> = world.services.keys().flat_map(|name| world.ending(name, settings)).collect();
    let services: BTreeSet<_> = tables.frontends.values().map(|entry| entry.service).collect();
    for (id, backend) in &tables.backends {
        let end = (backend.address, backend.port, backend.local, backend.terminating);
        assert!(members.contains(id) || ending.contains(&end), "nobody needs {backend:?}");
        assert!(services.contains(&backend.service));
    }
    let ranged: BTreeSet<_> =
        tables.frontends.values().filter(|entry| entry.source_ranges).map(|entry| entry.service).collect();
    assert!(tables.ranges.iter().all(|(service, _)| ranged.contains(service)));
}

fn check_conflicts(
    engine: &Engine,
    owners: &BTreeMap<Frontend, Object>,
    wishes: &BTreeMap<Frontend, BTreeMap<Object, Meaning>>,
) {
    let mut losers: BTreeMap<Object, usize> = BTreeMap::new();
    for (frontend, wishes) in wishes {
        let any = if frontend.address.is_ipv6() { ip("::") } else { ip("0.0.0.0") };
        let owner = owners.get(frontend).or_else(|| owners.get(&Frontend { address: any, ..*frontend }));
        for object in wishes.keys().filter(|object| owner != Some(*object)) {
            *losers.entry(object.clone()).or_default() += 1;
        }
    }
    let mut told: BTreeMap<Object, usize> = BTreeMap::new();
    for (object, problems) in engine.problems() {
        let conflicts = problems.iter().filter(|problem| problem.reason == Reason::FrontendConflict).count();
        if conflicts > 0 {
            told.insert(object, conflicts);
        }
    }
    assert_eq!(told, losers);
}

#[test]
fn what_is_in_force_is_what_services_mean() {
    for seed in seeds(150) {
        let mut maker = Maker(Random::new(seed));
        let mut settings = settings();
        (settings.ipv4, settings.ipv6) = *maker.0.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        let (mut world, mut engine) = (World::default(), Engine::new(settings.clone(), 0));
        let mut kernel = Kernel::default();
        for _ in 0..40 {
            for _ in 0..1 + maker.0.below(3) {
                maker.change(&mut world, &mut engine);
            }
            kernel.follow(&mut engine);
            let wishes = world.wishes(&settings);
            assert_eq!(meaning(&kernel.tables, TABLE), decide(&world, &settings), "seed {seed}");
            check_leftovers(&kernel.tables, &world, &settings);
            check_conflicts(&engine, &owners(&world, &wishes), &wishes);
        }
    }
}

/// Tells a new engine of a world, in an order of its own.
fn retell(world: &World, random: &mut Random, settings: &Settings) -> Engine {
    let first = u32::try_from(random.below(1 << 32)).unwrap();
    let mut engine = Engine::new(settings.clone(), first);
    let mut changes: Vec<Change> = vec![Change::Node(node(world)), Change::Node(other(world))];
    changes.extend(world.services.iter().map(|(name, routing)| {
        let (routing, age) = (Some(routing.clone()), world.ages[name].clone());
        Change::Service(Service { name: name.clone(), routing, age, ..Service::default() })
    }));
    changes.extend(world.slices.values().cloned().map(Change::Backends));
    changes.extend(world.redirects.values().cloned().map(Change::LocalRedirect));
    while !changes.is_empty() {
        let at = random.below(changes.len());
        engine.apply(&changes.swap_remove(at));
    }
    world.pods.values().for_each(|pod| engine.put_pod(pod.clone()));
    engine
}

#[test]
fn a_restart_keeps_what_is_right() {
    for seed in seeds(150) {
        let mut maker = Maker(Random::new(seed));
        let settings = settings();
        let (mut world, mut engine) = (World::default(), Engine::new(settings.clone(), 0));
        let mut kernel = Kernel::default();
        for round in 0..6 {
            for _ in 0..12 {
                maker.change(&mut world, &mut engine);
                kernel.follow(&mut engine);
            }
            let (before, patches) = (kernel.tables.clone(), kernel.patches);
            let mut random = maker.0.clone();
            engine = retell(&world, &mut random, &settings);
            engine.adopt(kernel.tables.clone());
            kernel.follow(&mut engine);
            assert_eq!(kernel.tables, before, "seed {seed}, round {round}");
            assert_eq!(kernel.patches, patches, "seed {seed}: nothing changed but the agent");
            assert_eq!(meaning(&kernel.tables, TABLE), decide(&world, &settings), "seed {seed}");
            check_leftovers(&kernel.tables, &world, &settings);
        }
    }
}

fn owners_now(engine: &Engine) -> BTreeMap<Frontend, Object> {
    let list = engine.list();
    let of = list.iter().flat_map(|port| port.frontends.iter().map(|(frontend, _)| (*frontend, port.object.clone())));
    of.collect()
}

#[test]
fn tables_of_a_broken_kernel_are_put_right() {
    for seed in seeds(200) {
        let mut maker = Maker(Random::new(seed));
        let settings = settings();
        let (mut world, mut engine) = (World::default(), Engine::new(settings.clone(), 0));
        let mut kernel = Kernel::default();
        for _ in 0..15 {
            maker.change(&mut world, &mut engine);
        }
        kernel.follow(&mut engine);
        // Whatever a crash, or a fool, may have left.
        let tables = &mut kernel.tables;
        tables.frontends.retain(|_, _| maker.0.chance(80));
        tables.backends.retain(|_, _| maker.0.chance(90));
        for set in tables.sets.values_mut() {
            if maker.0.chance(15) {
                set.backends.clear();
            }
            if maker.0.chance(10) {
                set.table.reverse();
            }
        }
        for entry in tables.frontends.values_mut() {
            if maker.0.chance(15) {
                entry.internal = Some(SetId(u32::try_from(maker.0.below(9)).unwrap()));
            }
        }
        for backend in tables.backends.values_mut() {
            if maker.0.chance(10) {
                backend.service.0 = u32::try_from(maker.0.below(9)).unwrap();
            }
        }
        kernel.given.clear();
        let mut random = maker.0.clone();
        engine = retell(&world, &mut random, &settings);
        engine.adopt(kernel.tables.clone());
        kernel.follow(&mut engine);
        assert_eq!(meaning(&kernel.tables, TABLE), decide(&world, &settings), "seed {seed}");
        check_leftovers(&kernel.tables, &world, &settings);
    }
}

#[test]
fn what_does_not_fit_keeps_what_it_had_and_the_others_go_through() {
    let mut refusals = 0;
    for seed in seeds(150) {
        let mut maker = Maker(Random::new(seed));
        let settings = settings();
        let (mut world, mut engine) = (World::default(), Engine::new(settings.clone(), 0));
        let mut kernel = Kernel { slots_max: 12, ..Kernel::default() };
        let mut before: BTreeMap<Frontend, Meaning> = BTreeMap::new();
        for _ in 0..40 {
            maker.change(&mut world, &mut engine);
            kernel.follow(&mut engine);
            let (wanted, owners) = (decide(&world, &settings), owners(&world, &world.wishes(&settings)));
            let refused: BTreeSet<Object> = engine
                .problems()
                .into_iter()
                .filter(|(_, problems)| problems.iter().any(|problem| problem.reason == Reason::NoRoom))
                .map(|(object, _)| object)
                .collect();
            refusals += refused.len();
            let now = meaning(&kernel.tables, TABLE);
            for (frontend, meaning) in &wanted {
                if refused.contains(&owners[frontend]) {
                    // Nothing, or what was there.
                    assert!(now.get(frontend).is_none_or(|now| before.get(frontend) == Some(now)), "seed {seed}");
                } else {
                    assert_eq!(now.get(frontend), Some(meaning), "seed {seed}: {frontend:?}");
                }
            }
            before = now;
        }
        // There is room again: as soon as something is removed the rest comes, too.
        kernel.slots_max = 0;
        for n in 0..4 {
            world.services.remove(&name(&format!("svc{n}")));
            engine.apply(&Change::ServiceGone(name(&format!("svc{n}"))));
        }
        kernel.follow(&mut engine);
        let routing = Routing {
            ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 9, node_port: 0 }],
            cluster_ips: vec![ip("10.96.9.9")],
            ..Routing::default()
        };
        let service = Service { name: name("last"), routing: Some(routing), ..Service::default() };
        engine.apply(&Change::Service(service));
        kernel.follow(&mut engine);
        engine.apply(&Change::ServiceGone(name("last")));
        kernel.follow(&mut engine);
        let wanted = decide(&world, &settings);
        assert_eq!(meaning(&kernel.tables, TABLE), wanted, "seed {seed}");
        check_leftovers(&kernel.tables, &world, &settings);
    }
    assert!(refusals > 100, "only {refusals}");
}

#[test]
fn all_nodes_fill_the_same_tables() {
    for seed in seeds(30) {
        let mut maker = Maker(Random::new(seed));
        let settings = settings();
        let (mut world, mut engine) = (World::default(), Engine::new(settings.clone(), 0));
        for _ in 0..30 {
            maker.change(&mut world, &mut engine);
        }
        // Of the conflicts the order of telling decides nothing here.
        let (mut one, mut two) = (Kernel::default(), Kernel::default());
        let mut random = maker.0.clone();
        one.follow(&mut retell(&world, &mut random, &settings));
        two.follow(&mut retell(&world, &mut random, &settings));
        let places = |kernel: &Kernel| -> BTreeMap<Frontend, Vec<Vec<(IpAddr, u16)>>> {
            let tables = &kernel.tables;
            let mut all: BTreeMap<Frontend, Vec<Vec<(IpAddr, u16)>>> = BTreeMap::new();
            for (frontend, entry) in &tables.frontends {
                for set in [entry.internal, entry.external].into_iter().flatten() {
                    let set = &tables.sets[&set];
                    let place = |slot: &u16| {
                        let backend = tables.backends[&set.backends[usize::from(*slot)]];
                        (backend.address, backend.port)
                    };
                    all.entry(*frontend).or_default().push(set.table.iter().map(place).collect());
                }
            }
            all
        };
        assert_eq!(places(&one), places(&two), "seed {seed}");
    }
}
