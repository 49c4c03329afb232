//! Compares the oracle with an engine that receives each random world in random order and small batches.

use crate::cluster::{Agent, Decision};
use crate::feed::Numbers;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use weft_control::policy::Direction;
use weft_model::id::{Identity, RuleId};
use weft_oracle::minimize::minimize;
use weft_oracle::show::{Shown, ShownPacket};
use weft_oracle::{End, Judge, Packet, Random, Reason, World, generate};

/// The node whose engine is tested.
const NODE: usize = 0;
/// Packets for each pair and direction.
const PACKETS: usize = 2;
const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// Counts of what was compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Worlds, counted again after each change.
    pub worlds: u64,
    /// Verdicts of policies.
    pub decisions: u64,
    /// Verdicts that allow.
    pub allowed: u64,
    /// Verdicts for which the oracle names rules.
    pub by_rule: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.decisions += other.decisions;
        self.allowed += other.allowed;
        self.by_rule += other.by_rule;
    }
}

/// The engine and the oracle differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Reproduces it.
    pub seed: u64,
    /// The difference, in a minimal world.
    pub text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.text)
    }
}

/// The difference between the verdicts at one end of a packet, if any.
fn difference(
    agent: &Agent,
    judge: &Judge<'_>,
    world: &World,
    identities: &BTreeMap<usize, Identity>,
    packet: &Packet,
    direction: Direction,
    tally: &mut Tally,
) -> Option<String> {
    let expected = match direction {
        Direction::Egress => judge.may_leave(packet),
        Direction::Ingress => judge.may_enter(packet),
    };
    let compiled = agent.decide(world, identities, packet, direction);
    if expected.reason == Reason::Exempt && compiled == Decision::Exempt {
        return None;
    }
    tally.decisions += 1;
    tally.allowed += u64::from(expected.allowed);
    let said = |said: &str| Some(format!("{direction}: the oracle says {expected}, the engine {said}"));
    if compiled.allowed() != expected.allowed {
        return said(&format!("{compiled:?}"));
    }
    // The rule that the engine names must be one of the deciding ones.
    let Reason::Rules(rules) = &expected.reason else { return None };
    tally.by_rule += 1;
    let named = match compiled {
        Decision::Asked(Some(verdict), _) if verdict.rule != RuleId::NONE => agent.engine.rule(verdict.rule),
        _ => None,
    };
    match named {
        Some(named) if rules.iter().any(|rule| *rule.policy == named.policy && rule.place == &*named.place) => None,
        Some(named) => said(&format!("names {named}")),
        None => said("names no rule"),
    }
}

/// The first difference for any pair of a local subject and another end.
fn check(
    agent: &Agent,
    world: &World,
    numbers: &mut Numbers,
    random: &mut Random,
    tally: &mut Tally,
) -> Option<(Packet, String)> {
    let (judge, identities) = (Judge::new(world), numbers.identities(world));
    let ends = world.ends();
    let subjects = ends.iter().copied().filter(|end| match end {
        End::Pod(n) => world.pods[*n].is_managed() && world.pods[*n].node == NODE,
        End::Node(n) => *n == NODE,
        End::World(_) => false,
    });
    tally.worlds += 1;
    for subject in subjects {
        for other in &ends {
            for direction in DIRECTIONS {
                let (from, to) = if direction == Direction::Egress { (subject, *other) } else { (*other, subject) };
                for _ in 0..PACKETS {
                    let v6 = world.settings.dual_stack && random.chance(50);
                    if world.address(from, v6).is_none() || world.address(to, v6).is_none() {
                        continue;
                    }
                    let (protocol, port) = generate::traffic(random, world, to, v6);
                    let packet = Packet { from, to, v6, protocol, port };
                    if let Some(text) = difference(agent, &judge, world, &identities, &packet, direction, tally) {
                        return Some((packet, text));
                    }
                }
            }
        }
    }
    None
}

/// The difference for a packet, with an engine that receives `before` and then `world`.
fn differs(before: Option<&World>, world: &World, packet: &Packet) -> Option<String> {
    let differs_in = |order: u64| {
        let mut random = Random::new(order);
        let (mut agent, mut numbers) = (Agent::new(NODE), Numbers::scarce());
        if let Some(before) = before {
            agent.update_in_pieces(before, &mut numbers, &mut random);
        }
        agent.update_in_pieces(world, &mut numbers, &mut random);
        let (judge, identities) = (Judge::new(world), numbers.identities(world));
        let tally = &mut Tally::default();
        DIRECTIONS.iter().find_map(|way| difference(&agent, &judge, world, &identities, packet, *way, tally))
    };
    (0..3).find_map(|order| {
        let caught = catch_unwind(AssertUnwindSafe(|| differs_in(order)));
        caught.unwrap_or_else(|_| Some("the engine panics".to_owned()))
    })
}

/// Describes the difference in a minimal world.
fn explain(history: &[World], packet: Packet, text: &str) -> String {
    let Some(world) = history.last() else { return text.to_owned() };
    let fresh = |less: &World, packet: &Packet| differs(None, less, packet).is_some();
    if fresh(world, &packet) {
        let (world, packet) = minimize(world.clone(), packet, fresh);
        let text = differs(None, &world, &packet).unwrap_or_default();
        return format!("{}\n{text}\n{}", ShownPacket(&world, &packet), Shown(&world));
    }
    for before in history.iter().rev().skip(1) {
        // Keep all pods and nodes: their indexes relate the two worlds.
        let after = |less: &World, moved: &Packet| {
            *moved == packet
                && less.pods.len() == world.pods.len()
                && less.nodes.len() == world.nodes.len()
                && differs(Some(before), less, moved).is_some()
        };
        if after(world, &packet) {
            let (world, packet) = minimize(world.clone(), packet, after);
            let text = differs(Some(before), &world, &packet).unwrap_or_default();
            let shown = ShownPacket(&world, &packet);
            return format!("{shown}\n{text}\n{}\nafter this world:\n{}", Shown(&world), Shown(before));
        }
    }
    let shown = ShownPacket(world, &packet);
    format!("{shown}\n{text}\nonly after all changes of the seed\n{}", Shown(world))
}

/// Compares the world of a seed, and again after some random changes of it.
///
/// # Errors
/// The first difference.
pub fn seed(seed: u64) -> Result<Tally, Difference> {
    let mut history = Vec::new();
    let run = AssertUnwindSafe(|| follow(seed, &mut history));
    match catch_unwind(run) {
        Ok(Ok(tally)) => Ok(tally),
        Ok(Err((packet, text))) => Err(Difference { seed, text: explain(&history, packet, &text) }),
        Err(_) => {
            // The packet does not matter.
            let node = End::Node(NODE);
            let packet = Packet { from: node, to: node, v6: false, protocol: 6, port: 80 };
            Err(Difference { seed, text: explain(&history, packet, "the engine panics") })
        }
    }
}

fn follow(seed: u64, history: &mut Vec<World>) -> Result<Tally, (Packet, String)> {
    let mut random = Random::new(seed);
    let (mut agent, mut numbers, mut tally) = (Agent::new(NODE), Numbers::scarce(), Tally::default());
    let mut world = generate::world(&mut random);
    for step in 0..=random.below(5) {
        if step > 0 {
            for _ in 0..=random.below(2) {
                generate::change(&mut random, &mut world);
            }
        }
        history.push(world.clone());
        agent.update_in_pieces(&world, &mut numbers, &mut random);
        if let Some(difference) = check(&agent, &world, &mut numbers, &mut random, &mut tally) {
            return Err(difference);
        }
    }
    Ok(tally)
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Worlds(u64),
    Passed(Duration),
}

/// Compares the worlds of seeds from `first` on, on all cores, and reports every ten seconds.
///
/// # Errors
/// The first difference.
pub fn run(first: u64, until: Until, progress: impl Fn(Tally, Duration) + Sync) -> Result<Tally, Difference> {
    let (start, next, stop) = (Instant::now(), AtomicU64::new(first), AtomicBool::new(false));
    let state: Mutex<(Tally, Option<Difference>, Duration)> = Mutex::default();
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let compared = seed(next.fetch_add(1, Ordering::Relaxed));
            let mut state = state.lock().expect("no panic while it is locked");
            match compared {
                Ok(tally) => state.0.add(tally),
                Err(difference) => {
                    state.1.get_or_insert(difference);
                    stop.store(true, Ordering::Relaxed);
                }
            }
            let passed = start.elapsed();
            let enough = match until {
                Until::Worlds(worlds) => state.0.worlds >= worlds,
                Until::Passed(time) => passed >= time,
            };
            if enough {
                stop.store(true, Ordering::Relaxed);
            }
            if passed - state.2 >= Duration::from_secs(10) {
                state.2 = passed;
                progress(state.0, passed);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let (tally, difference, _) = state.into_inner().expect("no panic while it is locked");
    difference.map_or(Ok(tally), Err)
}
