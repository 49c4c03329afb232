//! Address safety over all modes, in a small world of nodes, operators, an API server and a cloud, where everything may
//! crash between any two steps and every piece of news may come late.
//!
//! What is judged is kept apart from what is tested: `holders` notes which pod was told which address, from the answers
//! alone. Never have two pods one address; a pod's address is carried to its node; and when all is quiet, nothing is
//! held that nobody needs.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_ipam::{
    Advice, Block, Choice, Edges, Exchange, Family, Growth, Needs, NodePool, Outcome, PoolSpec, Record, Requested,
    SharedPools, Watermarks, plan,
};
use weft_oracle::Random;
use weft_oracle::effort::seeds;

const NODES: usize = 4;
const POOL: &str = "default";

/// Who decides which block a node gets.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Decider {
    /// The operator, from the cluster's pools.
    Operator,
    /// The cloud, which the operator asks.
    Cloud,
    /// Nobody here: each node comes with a prefix of its own.
    Controller,
}

#[derive(Clone, Debug)]
struct Mode {
    name: &'static str,
    decider: Decider,
    growth: Growth,
    subnets: BTreeMap<Family, (IpNet, u8)>,
    edges: Edges,
}

fn modes() -> Vec<Mode> {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let v4 = |text, length| BTreeMap::from([(Family::V4, (net(text), length))]);
    let two = |a, n, b, m| BTreeMap::from([(Family::V4, (net(a), n)), (Family::V6, (net(b), m))]);
    let batches = Growth::Batches(Watermarks { batch: 4, max: 12, ..Watermarks::default() });
    let mode = |name, decider, growth, subnets, edges| Mode { name, decider, growth, subnets, edges };
    use Decider::{Cloud, Controller, Operator};
    vec![
        mode("cluster-pool", Operator, Growth::Fixed(1), two("10.0.0.0/26", 28, "fd00::/122", 124), Edges::Reserved),
        mode("kubernetes", Controller, Growth::Fixed(1), two("10.0.0.0/26", 29, "fd00::/122", 125), Edges::Reserved),
        mode("multi-pool", Operator, Growth::Ahead(4), two("10.0.0.0/27", 30, "fd00::/123", 126), Edges::Usable),
        mode("overlay", Cloud, Growth::Fixed(1), two("10.0.0.0/26", 28, "fd00::/122", 124), Edges::Reserved),
        mode("pod subnet", Cloud, batches, v4("10.0.0.0/27", 32), Edges::Usable),
        mode("pod subnet, two families", Cloud, batches, two("10.0.0.0/27", 32, "fd00::/123", 128), Edges::Usable),
        mode("static block", Cloud, Growth::Fixed(7), v4("10.0.0.0/27", 30), Edges::Usable),
        mode("node subnet", Cloud, Growth::Fixed(6), v4("10.0.0.0/27", 32), Edges::Usable),
    ]
}

/// A node's object in the API server.
#[derive(Clone, Default, PartialEq, Debug)]
struct Object {
    version: u64,
    record: Record,
}

impl Object {
    fn allocated(&self) -> BTreeSet<IpNet> {
        self.record.allocated.get(POOL).cloned().unwrap_or_default()
    }

    fn add(&mut self, blocks: Vec<IpNet>) {
        self.record.allocated.entry(POOL.to_owned()).or_default().extend(blocks);
        self.version += 1;
    }
}

/// A node: what survives the agent (pods and their addresses), and the agent.
struct Node {
    pods: BTreeMap<String, Vec<IpAddr>>,
    pool: NodePool,
    exchange: Exchange,
    /// What the agent has written and does not know the fate of: it is between the two, or a former agent died over it.
    writes: Vec<(u64, Record)>,
    /// The last of them is this agent's.
    waiting: bool,
    /// The machine and its object are no more.
    gone: bool,
}

/// An operator between two of its steps.
#[derive(Default)]
struct Operator {
    /// What it knows of given prefixes, where it decides itself.
    pools: SharedPools,
    /// A write on its way: node, the version that it is conditional on, blocks to add.
    write: Option<(usize, u64, Vec<IpNet>)>,
}

struct World {
    mode: Mode,
    random: Random,
    objects: Vec<Object>,
    cloud: Vec<BTreeSet<IpNet>>,
    nodes: Vec<Node>,
    operator: Option<Operator>,
    /// The independent account: who was told which address.
    holders: BTreeMap<IpAddr, (usize, String)>,
    names: usize,
    given: usize,
    refused: usize,
}

fn choice(mode: &Mode) -> Choice {
    let pool = |family| mode.subnets.contains_key(&family).then(|| POOL.to_owned());
    Choice { v4: pool(Family::V4), v6: pool(Family::V6) }
}

fn parts(net: IpNet, length: u8) -> impl Iterator<Item = IpNet> {
    let parts: Vec<IpNet> = match net {
        IpNet::V4(v4) => v4.subnets(length).unwrap().map(IpNet::V4).collect(),
        IpNet::V6(v6) => v6.subnets(length).unwrap().map(IpNet::V6).collect(),
    };
    parts.into_iter()
}

fn host_count(net: &IpNet) -> u128 {
    1 << (net.max_prefix_len() - net.prefix_len())
}

impl World {
    fn new(mode: Mode, seed: u64) -> Self {
        let exchange = Exchange::new(mode.growth, mode.edges);
        let node = || Node {
            pods: BTreeMap::new(),
            pool: NodePool::new(Advice::Growing),
            exchange: exchange.clone(),
            writes: Vec::new(),
            waiting: false,
            gone: false,
        };
        let mut world = Self {
            random: Random::new(seed),
            objects: vec![Object::default(); NODES],
            cloud: vec![BTreeSet::new(); NODES],
            nodes: (0..NODES).map(|_| node()).collect(),
            operator: None,
            holders: BTreeMap::new(),
            names: 0,
            given: 0,
            refused: 0,
            mode,
        };
        for n in 0..NODES {
            world.arrive_with_prefix(n);
        }
        world
    }

    /// Where a node comes with a prefix: any that no other node has.
    fn arrive_with_prefix(&mut self, n: usize) {
        if self.mode.decider != Decider::Controller {
            return;
        }
        for (subnet, length) in self.mode.subnets.clone().into_values() {
            let others: BTreeSet<IpNet> = self.objects.iter().flat_map(Object::allocated).collect();
            let free: Vec<IpNet> = parts(subnet, length).filter(|net| !others.contains(net)).collect();
            let net = free[self.random.below(free.len())];
            self.objects[n].add(vec![net]);
        }
    }

    /// The machine is lost with all its pods, and its object goes. What it wrote last may still be on its way.
    fn lose(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        for address in std::mem::take(&mut node.pods).into_values().flatten() {
            self.holders.remove(&address).unwrap();
        }
        node.gone = true;
        // Another object under the same name is another object: nothing written for the old one fits it.
        self.objects[n] = Object { version: self.objects[n].version + 1000, ..Object::default() };
        self.restart_agent(n);
    }

    /// A new machine of that name.
    fn come_back(&mut self, n: usize) {
        if std::mem::take(&mut self.nodes[n].gone) {
            self.arrive_with_prefix(n);
        }
    }

    fn add(&mut self, n: usize) {
        self.names += 1;
        let owner = format!("pod-{}", self.names);
        let choice = choice(&self.mode);
        let Ok(given) = self.nodes[n].pool.allocate(&owner, &choice) else {
            self.refused += 1;
            return;
        };
        let given = given.addresses();
        assert_eq!(given.len(), self.mode.subnets.len(), "both families or none");
        for address in &given {
            let before = self.holders.insert(*address, (n, owner.clone()));
            assert_eq!(before, None, "{address} is given twice ({})", self.mode.name);
        }
        self.given += 1;
        self.nodes[n].pods.insert(owner, given);
    }

    fn del(&mut self, n: usize) {
        let count = self.nodes[n].pods.len();
        if count == 0 {
            return;
        }
        let at = self.random.below(count);
        let owner = self.nodes[n].pods.keys().nth(at).unwrap().clone();
        let addresses = self.nodes[n].pods.remove(&owner).unwrap();
        assert_eq!(self.nodes[n].pool.release(&owner), addresses);
        assert!(self.nodes[n].pool.release(&owner).is_empty(), "DEL again");
        for address in addresses {
            self.holders.remove(&address).unwrap();
        }
    }

    /// The agent dies and comes back: it knows its pods. What it wrote last may still arrive.
    fn restart_agent(&mut self, n: usize) {
        let exchange = Exchange::new(self.mode.growth, self.mode.edges);
        let node = &mut self.nodes[n];
        (node.pool, node.exchange, node.waiting) = (NodePool::new(Advice::Growing), exchange, false);
        for (owner, addresses) in &node.pods {
            for address in addresses {
                node.pool.restore(owner, *address).unwrap();
            }
        }
    }

    /// A write of the agent arrives, if the object is still as it was read for it.
    fn arrive(&mut self, n: usize, (version, record): &(u64, Record)) -> bool {
        let object = &mut self.objects[n];
        let fits = object.version == *version;
        if fits {
            object.record = record.clone();
            object.version += 1;
        }
        fits
    }

    /// Half a turn of the agent: reads and writes, or learns what became of it.
    fn turn(&mut self, n: usize) {
        let demand = self.nodes[n].pods.len() + self.random.below(2);
        self.turn_with(n, u32::try_from(demand).unwrap(), true);
    }

    fn turn_with(&mut self, n: usize, demand: u32, failures: bool) {
        if self.nodes[n].gone {
            return;
        }
        if self.mode.decider == Decider::Controller {
            let block = |net| Block { net, edges: self.mode.edges, programmed: true };
            let blocks: Vec<Block> = self.objects[n].allocated().into_iter().map(block).collect();
            assert_eq!(self.nodes[n].pool.set_blocks(POOL, &blocks), []);
            return;
        }
        if self.nodes[n].waiting {
            self.nodes[n].waiting = false;
            let write = self.nodes[n].writes.pop().unwrap();
            let lost = failures && self.random.below(8) == 0;
            if lost {
                // It may have arrived, may still arrive, or never will.
                if self.random.below(2) == 0 {
                    self.nodes[n].writes.push(write.clone());
                }
            }
            let arrived = (!lost || self.random.below(3) == 0) && self.arrive(n, &write);
            let node = &mut self.nodes[n];
            let outcome = match (lost, arrived) {
                (true, _) => Outcome::Unknown,
                (false, true) => Outcome::Written,
                (false, false) => Outcome::Refused,
            };
            assert_eq!(node.exchange.end(&mut node.pool, write.1, outcome), []);
            return;
        }
        let families = self.mode.subnets.keys();
        let demand: Requested = families.map(|family| ((POOL.to_owned(), *family), demand)).collect();
        let object = self.objects[n].clone();
        let node = &mut self.nodes[n];
        let (write, problems) = node.exchange.begin(&mut node.pool, &object.record, &demand, false);
        assert_eq!(problems, []);
        if let Some(record) = write {
            node.writes.push((object.version, record));
            node.waiting = true;
        }
    }

    /// Something that was on its way for long arrives after all.
    fn late(&mut self, n: usize) {
        let count = self.nodes[n].writes.len() - usize::from(self.nodes[n].waiting);
        if count > 0 {
            let write = self.nodes[n].writes.remove(0);
            self.arrive(n, &write);
        }
    }

    /// A new operator reads everything there is. A write of its predecessor has arrived by then, or never will: that is
    /// what the lease's margin is for.
    fn lead(&mut self) {
        if let Some(write) = self.operator.take().and_then(|old| old.write)
            && self.random.below(2) == 0
        {
            self.land(write);
        }
        let mut operator = Operator::default();
        let cidrs = self.mode.subnets.values().map(|(net, _)| *net).collect();
        let mask = |family| self.mode.subnets.get(&family).map(|(_, length)| *length);
        let spec = PoolSpec { cidrs, mask_v4: mask(Family::V4), mask_v6: mask(Family::V6) };
        let spec_first = self.random.below(2) == 0;
        if spec_first {
            operator.pools.set(POOL, &spec).unwrap();
        }
        for (n, object) in self.objects.iter().enumerate() {
            for net in &object.allocated() {
                operator.pools.restore(&n.to_string(), POOL, *net).unwrap();
            }
        }
        operator.pools.set(POOL, &spec).unwrap();
        self.operator = Some(operator);
    }

    fn land(&mut self, (n, version, blocks): (usize, u64, Vec<IpNet>)) {
        let object = &mut self.objects[n];
        if object.version == version {
            object.add(blocks);
        }
    }

    /// One step of the operator: the write that it had prepared, or the next piece of work for a node.
    fn operate(&mut self, n: usize) {
        let Some(mut operator) = self.operator.take() else { return };
        if let Some(write) = operator.write.take() {
            self.land(write);
            self.operator = Some(operator);
            return;
        }
        // What nodes had that are gone.
        for gone in (0..NODES).filter(|gone| self.nodes[*gone].gone) {
            operator.pools.release_node(&gone.to_string());
            self.cloud[gone].clear();
        }
        if self.nodes[n].gone || self.mode.decider == Decider::Controller {
            self.operator = Some(operator);
            return;
        }
        let object = self.objects[n].clone();
        let mut tell = Vec::new();
        let node = n.to_string();
        for (_, net) in operator.pools.of_node(&node) {
            if !object.allocated().contains(&net) {
                operator.pools.release(&node, POOL, &net);
            }
        }
        for (family, (subnet, length)) in self.mode.subnets.clone() {
            let allocated = object.allocated().iter().filter(|net| Family::of(net.addr()) == family).copied().collect();
            let requested = object.record.requested.get(&(POOL.to_owned(), family)).copied().unwrap_or(0).into();
            match self.mode.decider {
                Decider::Cloud => {
                    let of_family = self.cloud[n].iter().filter(|net| Family::of(net.addr()) == family);
                    let needs = Needs { requested, allocated, assigned: of_family.copied().collect(), length };
                    let plan = plan(family, &needs);
                    assert_eq!(plan.reassign, [], "the cloud lost what it had assigned");
                    for net in plan.unassign {
                        self.cloud[n].remove(&net);
                    }
                    tell.extend(plan.allocate);
                    for _ in 0..plan.assign {
                        tell.extend(self.assign(n, subnet, length));
                    }
                }
                Decider::Controller => unreachable!("it has no part in it"),
                Decider::Operator => {
                    let allocated: BTreeSet<IpNet> = allocated;
                    let mut have: u128 = allocated.iter().map(host_count).sum();
                    while have < requested {
                        let Ok(net) = operator.pools.allocate(&node, POOL, family) else { break };
                        have += host_count(&net);
                        tell.push(net);
                    }
                }
            }
        }
        if !tell.is_empty() {
            operator.write = Some((n, object.version, tell));
        }
        // It may die here, between the cloud's answer and its own write.
        if self.random.below(12) > 0 {
            self.operator = Some(operator);
        }
    }

    /// The cloud gives any free block of the subnet; each to one node only.
    fn assign(&mut self, n: usize, subnet: IpNet, length: u8) -> Option<IpNet> {
        let free: Vec<IpNet> =
            parts(subnet, length).filter(|net| !self.cloud.iter().any(|assigned| assigned.contains(net))).collect();
        let net = *free.get(self.random.below(free.len().max(1)))?;
        self.cloud[n].insert(net);
        Some(net)
    }

    fn step(&mut self) {
        let n = self.random.below(NODES);
        match self.random.below(200) {
            // Seldom enough for the others to get anywhere.
            0 => self.lose(n),
            1..20 => self.come_back(n),
            _ => self.everyday(n),
        }
        self.judge();
    }

    fn everyday(&mut self, n: usize) {
        if self.nodes[n].gone {
            return;
        }
        match self.random.below(40) {
            0..12 => self.add(n),
            12..19 => self.del(n),
            19 => self.late(n),
            20..30 => self.turn(n),
            30..37 => self.operate(n),
            37 => self.restart_agent(n),
            38 => self.lead(),
            _ if self.operator.is_none() => self.lead(),
            _ => {}
        }
    }

    fn judge(&self) {
        let mut all = BTreeSet::new();
        for (n, node) in self.nodes.iter().enumerate() {
            for address in node.pods.values().flatten() {
                assert!(all.insert(*address), "{address} has two pods ({})", self.mode.name);
                assert!(
                    self.objects[n].allocated().iter().any(|net| net.contains(address)),
                    "{address} is in use and not in the node's object ({})",
                    self.mode.name
                );
                if self.mode.decider == Decider::Cloud {
                    assert!(self.cloud[n].iter().any(|net| net.contains(address)), "{address} is not carried");
                }
            }
        }
    }

    /// Everybody does their work until nothing changes any more.
    fn settle(&mut self, demand: impl Fn(&Node) -> u32) {
        for _ in 0..60 {
            for n in 0..NODES {
                self.come_back(n);
                self.late(n);
                let wanted = demand(&self.nodes[n]);
                for _ in 0..4 {
                    self.turn_with(n, wanted, false);
                }
                for _ in 0..2 {
                    if self.operator.is_none() {
                        self.lead();
                    }
                    self.operate(n);
                }
                self.judge();
            }
        }
        for n in 0..NODES {
            let wanted = demand(&self.nodes[n]);
            self.turn_with(n, wanted, false);
        }
    }
}

#[test]
fn never_two_pods_with_one_address_and_none_leaked() {
    for mode in modes() {
        let (mut given, mut refused) = (0, 0);
        for seed in seeds(30) {
            let mut world = World::new(mode.clone(), seed);
            for _ in 0..700 {
                world.step();
            }
            world.settle(|node| u32::try_from(node.pods.len()).unwrap());
            for (n, node) in world.nodes.iter().enumerate() {
                let allocated = &world.objects[n].allocated();
                let held: BTreeSet<IpNet> = node.pool.usage().iter().map(|usage| usage.block.net).collect();
                assert_eq!(held, *allocated, "{} seed {seed}: the agent and its object disagree", mode.name);
                if mode.decider == Decider::Cloud {
                    assert_eq!(world.cloud[n], *allocated, "{} seed {seed}: something leaked in the cloud", mode.name);
                }
            }
            // All pods go: every node shrinks to what it keeps at rest.
            for n in 0..NODES {
                while !world.nodes[n].pods.is_empty() {
                    world.del(n);
                }
            }
            world.settle(|_| 0);
            assert!(world.holders.is_empty());
            for object in &world.objects {
                for (family, (_, length)) in &mode.subnets {
                    let allocated = object.allocated();
                    let of_family = allocated.iter().filter(|net| Family::of(net.addr()) == *family);
                    let held: u128 = of_family.map(host_count).sum();
                    let block = 1_u128 << (family.bits() - length);
                    // In whole blocks; between the marks nothing moves.
                    let most = match mode.growth {
                        Growth::Fixed(count) => u128::from(count).next_multiple_of(block),
                        Growth::Ahead(step) => u128::from(step).next_multiple_of(block) + block,
                        Growth::Batches(marks) => u128::from(marks.batch * marks.max_free_percent / 100),
                    };
                    assert!(held <= most, "{} seed {seed}: {held} of at most {most} held at rest", mode.name);
                }
            }
            given += world.given;
            refused += world.refused;
        }
        assert!(given > 1000 && refused > 100, "{}: {given} given and {refused} refused prove little", mode.name);
    }
}

#[test]
fn exhaustion_recovers_when_addresses_return() {
    for mode in modes() {
        let mut world = World::new(mode, 1);
        world.lead();
        // Node 0 takes all it can get, then node 1 finds nothing more than its share.
        for _ in 0..20 {
            world.settle(|node| u32::try_from(node.pods.len() + 4).unwrap());
            for n in 0..2 {
                world.add(n);
                world.add(n);
            }
        }
        let (before, refused) = (world.nodes[1].pods.len(), world.refused);
        assert!(refused > 0, "{}: never exhausted", world.mode.name);
        for n in 0..2 {
            for _ in 0..4 {
                world.del(n);
            }
        }
        world.settle(|node| u32::try_from(node.pods.len() + 4).unwrap());
        for _ in 0..2 {
            world.add(1);
        }
        assert!(world.nodes[1].pods.len() > before - 4, "{}: addresses returned and are not given", world.mode.name);
    }
}

/// The first write was applied, so its block is another node's by now, and the second conflicts because of it.
#[test]
fn a_conflict_after_a_write_of_unknown_outcome_frees_no_block() {
    let (mut pool, mut exchange) = (NodePool::new(Advice::Growing), Exchange::new(Growth::Ahead(4), Edges::Usable));
    let demand = |count| Requested::from([((POOL.to_owned(), Family::V4), count)]);
    let nets: BTreeSet<IpNet> = ["10.0.0.0/30", "10.0.0.4/30"].map(|net| net.parse().unwrap()).into();
    let object = Record { allocated: BTreeMap::from([(POOL.to_owned(), nets)]), requested: demand(8) };
    let (first, _) = exchange.begin(&mut pool, &object, &demand(8), false);
    exchange.end(&mut pool, first.expect("the first round writes"), Outcome::Written);

    let (applied, _) = exchange.begin(&mut pool, &object, &demand(0), false);
    let applied = applied.expect("a block is released");
    exchange.end(&mut pool, applied.clone(), Outcome::Unknown);
    let releasing = pool.releasing();
    assert_eq!(releasing.len(), 1, "{releasing:?}");
    let (again, _) = exchange.begin(&mut pool, &object, &demand(0), false);
    exchange.end(&mut pool, again.expect("still to be released"), Outcome::Refused);
    assert_eq!(pool.releasing(), releasing, "nothing may be allocated from it");

    exchange.begin(&mut pool, &applied, &demand(0), false);
    let held: BTreeSet<IpNet> = pool.usage().iter().map(|usage| usage.block.net).collect();
    assert_eq!(held, applied.allocated[POOL]);
}
