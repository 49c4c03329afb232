//! What nodes ask for in their CiliumNodes (multi-pool and the azure modes), and what they get: prefixes of shared pools,
//! or what the cloud assigns.
//!
//! A node is served from its object as it is now, and what it gets is written only if nobody changed the object
//! meanwhile. The cloud assigns before the object says so, and is told last what the node let go of.

use crate::nodes::Event;
use futures::StreamExt as _;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_cloud::{Cloud, CloudError, NodeRef, Wanted};
use weft_ipam::{Family, Needs, PoolSpec, SharedPools, plan};
use weft_k8s::ipam::{AddressPools, NodeShares, PoolEvent, Share, ShareEvent, Shares};
use weft_k8s::watch::follow;
use weft_k8s::{Client, ipam};

/// Where blocks come from.
pub(crate) enum Source {
    /// CiliumPodIPPools.
    Pools,
    /// A cloud.
    Cloud {
        /// Which.
        cloud: Box<dyn Cloud>,
        /// Length of an IPv4 block.
        v4: u8,
        /// Length of an IPv6 block.
        v6: u8,
    },
}

/// The one pool of a cloud.
const POOL: &str = "default";
/// Nodes that are served at once.
const AT_ONCE: usize = 8;
/// First pause before a node is tried again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long a subnet counts as full after it was: nodes do not ask ahead again in the next moment.
const FULL: Duration = Duration::from_secs(20);
/// How often the cloud is compared with what nodes have.
const AUDIT: Duration = Duration::from_secs(120);
/// Attempts at one node before another gets its turn.
const ROUNDS: usize = 4;

/// Why a node did not get all that it asked for.
struct Unmet {
    /// For the node's status.
    problem: String,
    /// When to try again, at least.
    retry_after: Option<Duration>,
    /// No address of the subnet is free.
    subnet_full: bool,
}

impl Unmet {
    fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), retry_after: None, subnet_full: false }
    }
}

impl From<CloudError> for Unmet {
    fn from(error: CloudError) -> Self {
        let subnet_full = matches!(error, CloudError::SubnetFull { .. });
        Self { problem: error.to_string(), retry_after: error.retry_after(), subnet_full }
    }
}

impl From<weft_k8s::Error> for Unmet {
    fn from(error: weft_k8s::Error) -> Self {
        Self { retry_after: error.retry_after(), ..Self::new(error.to_string()) }
    }
}

#[derive(Clone, Default)]
struct Due {
    at: Option<Instant>,
    pause: Option<Duration>,
    /// What stands in the node's status.
    told: String,
}

/// A subnet that was found full: when last, and in which words. All nodes are told, so that those who hold more than
/// they need give it back to those who have nothing.
type Full = Option<(Instant, String)>;

/// What the operator knows of pools, and of writes that may still arrive.
#[derive(Default)]
struct Pools {
    pools: SharedPools,
    /// By node: the version that the write is conditional on, and what it adds.
    limbo: BTreeMap<String, (String, Vec<(String, IpNet)>)>,
}

/// Serves nodes until the events end.
pub(crate) async fn run(
    client: &Client,
    mut nodes: mpsc::Receiver<Vec<Event>>,
    source: Source,
    term: &CancellationToken,
) {
    let (sender, mut shares) = mpsc::channel(8);
    follow(client.clone(), Shares { only: None }, sender, term.clone());
    let (sender, mut pool_events) = mpsc::channel(8);
    // Without shared pools the sender only keeps the channel open.
    let _idle = if matches!(source, Source::Pools) {
        follow(client.clone(), AddressPools, sender, term.clone());
        None
    } else {
        Some(sender)
    };
    let mut waits = [true, true, matches!(source, Source::Pools)];
    let mut inventory = Inventory::default();
    let mut due: BTreeMap<String, Due> = BTreeMap::new();
    let mut pools = Pools::default();
    let mut full = Full::None;
    loop {
        let turns = due.iter().filter(|(name, _)| inventory.machines.contains_key(*name)).filter_map(|(_, due)| due.at);
        let next = turns.chain(inventory.sweep).min();
        let idle = waits.contains(&true);
        tokio::select! {
            batch = nodes.recv() => {
                let Some(batch) = batch else { return };
                for event in batch {
                    match event {
                        Event::Applied(row) => {
                            let machine = NodeRef { name: row.name.clone(), provider_id: row.provider_id };
                            if inventory.machines.insert(row.name.clone(), machine.clone()) != Some(machine) {
                                due.entry(row.name).or_default().at = Some(Instant::now());
                            }
                        }
                        Event::Deleted(name) => {
                            inventory.machines.remove(&name);
                            inventory.sweep = Some(Instant::now());
                            due.remove(&name);
                        }
                        Event::Synced => waits[0] = false,
                    }
                }
            }
            batch = shares.recv() => {
                let Some(batch) = batch else { return };
                for event in batch {
                    match event {
                        ShareEvent::Applied(node) => {
                            if matches!(source, Source::Pools) {
                                restore(&mut pools.pools, &node);
                            }
                            inventory.objects.insert(node.name.clone());
                            let due = due.entry(node.name).or_default();
                            due.told = node.problem;
                            due.at = Some(Instant::now());
                        }
                        ShareEvent::Deleted(name) => {
                            inventory.objects.remove(&name);
                            inventory.sweep = Some(Instant::now());
                        }
                        ShareEvent::Synced => waits[1] = false,
                    }
                }
            }
            batch = pool_events.recv() => {
                let Some(batch) = batch else { return };
                take_pools(&mut pools.pools, batch, &mut waits[2]);
                due.values_mut().for_each(|due| due.at = Some(Instant::now()));
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && !idle => {}
        }
        // Nothing is given before all that was given is known, and nothing is freed either.
        if !waits.contains(&true) {
            if inventory.sweep.is_some_and(|at| at <= Instant::now()) {
                inventory.sweep = sweep(&source, &mut pools, &inventory).await;
            }
            serve(client, &source, &inventory.machines, &mut pools, &mut due, &mut full).await;
        }
    }
}

/// Who is there. What a node had is free when neither its Node nor its CiliumNode exists any more: while one of them does,
/// its pods may still run, or it may come back and go on with what stands in its object.
struct Inventory {
    machines: BTreeMap<String, NodeRef>,
    /// Names of CiliumNodes.
    objects: BTreeSet<String>,
    /// When to free what nodes had that are gone. A new operator does it first of all: its predecessor may have died
    /// over it.
    sweep: Option<Instant>,
}

impl Default for Inventory {
    fn default() -> Self {
        Self { machines: BTreeMap::new(), objects: BTreeSet::new(), sweep: Some(Instant::now()) }
    }
}

/// Frees what nobody has any more. When to try again, if at all.
async fn sweep(source: &Source, pools: &mut Pools, inventory: &Inventory) -> Option<Instant> {
    let here: BTreeSet<&str> = inventory.machines.keys().chain(&inventory.objects).map(String::as_str).collect();
    match source {
        Source::Pools => {
            let owners: BTreeSet<String> = pools.pools.iter().map(|(_, _, node)| node.to_owned()).collect();
            for gone in owners.iter().filter(|owner| !here.contains(owner.as_str())) {
                pools.pools.release_node(gone);
                pools.limbo.remove(gone);
            }
            None
        }
        Source::Cloud { cloud, .. } => {
            let here: Vec<String> = here.into_iter().map(str::to_owned).collect();
            match cloud.retain(&here).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::warn!(%error, "what nodes had that are gone is not free yet");
                    Some(Instant::now() + RETRY_MAX.max(error.retry_after().unwrap_or_default()))
                }
            }
        }
    }
}

fn restore(pools: &mut SharedPools, node: &NodeShares) {
    for (pool, share) in &node.pools {
        for cidr in &share.cidrs {
            if let Err(problem) = pools.restore(&node.name, pool, *cidr) {
                tracing::error!(node = node.name, %problem, "two nodes have the same addresses");
            }
        }
    }
}

fn take_pools(pools: &mut SharedPools, batch: Vec<PoolEvent>, waits: &mut bool) {
    for event in batch {
        match event {
            PoolEvent::Applied(pool) => {
                let spec = PoolSpec { cidrs: pool.cidrs, mask_v4: pool.mask_v4, mask_v6: pool.mask_v6 };
                if let Err(problem) = pools.set(&pool.name, &spec) {
                    tracing::warn!(pool = pool.name, %problem, "the pool cannot be used; what it was before stays");
                }
            }
            PoolEvent::Deleted(name) => pools.remove(&name),
            PoolEvent::Synced => *waits = false,
        }
    }
}

async fn serve(
    client: &Client,
    source: &Source,
    machines: &BTreeMap<String, NodeRef>,
    pools: &mut Pools,
    due: &mut BTreeMap<String, Due>,
    full: &mut Full,
) {
    let now = Instant::now();
    let ready: Vec<String> =
        due.iter().filter(|(_, due)| due.at.is_some_and(|at| at <= now)).map(|(name, _)| name.clone()).collect();
    let ready = ready.into_iter().filter(|name| machines.contains_key(name));
    let outcomes: Vec<(String, Result<(), Unmet>)> = match source {
        Source::Pools => {
            let mut outcomes = Vec::new();
            for name in ready {
                let outcome = from_pools(client, pools, &name).await;
                outcomes.push((name, outcome));
            }
            outcomes
        }
        Source::Cloud { cloud, v4, v6 } => {
            let one = |name: String| async move {
                let outcome = from_cloud(client, &**cloud, [*v4, *v6], &machines[&name]).await;
                (name, outcome)
            };
            futures::stream::iter(ready.map(one)).buffer_unordered(AT_ONCE).collect().await
        }
    };
    let unmet = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err());
    if let Some(unmet) = unmet.into_iter().find(|unmet| unmet.subnet_full) {
        let known = full.as_ref().is_some_and(|(since, _)| *since + FULL > now);
        *full = Some((Instant::now(), unmet.problem.clone()));
        if !known {
            due.values_mut().for_each(|due| due.at = Some(now));
        }
    }
    for (name, outcome) in outcomes {
        let Some(due) = due.get_mut(&name) else { continue };
        settle(client, &name, due, outcome, matches!(source, Source::Cloud { .. }), full).await;
    }
}

/// Tells the node's object what is in the way, and decides when it gets its next turn.
async fn settle(client: &Client, name: &str, due: &mut Due, outcome: Result<(), Unmet>, cloud: bool, full: &Full) {
    let now = Instant::now();
    let problem = match outcome {
        Ok(()) => {
            due.pause = None;
            due.at = cloud.then(|| now + AUDIT);
            match full.as_ref().filter(|(since, _)| *since + FULL > now) {
                Some((since, problem)) => {
                    due.at = Some(*since + FULL);
                    problem.clone()
                }
                None => String::new(),
            }
        }
        Err(unmet) => {
            let pause = due.pause.map_or(RETRY_MIN, |pause| (pause * 2).min(RETRY_MAX));
            due.pause = Some(pause);
            due.at = Some(now + pause.max(unmet.retry_after.unwrap_or_default()));
            tracing::warn!(node = name, problem = unmet.problem, "the node does not get all that it asks for");
            unmet.problem
        }
    };
    if problem != due.told {
        match ipam::tell(client, name, &problem).await {
            Ok(()) => due.told = problem,
            Err(error) => tracing::debug!(node = name, %error, "cannot write the node's status"),
        }
    }
}

fn needed(share: Option<&Share>, family: Family) -> u32 {
    share.map_or(0, |share| match family {
        Family::V4 => share.needed_v4,
        Family::V6 => share.needed_v6,
    })
}

async fn from_cloud(client: &Client, cloud: &dyn Cloud, lengths: [u8; 2], node: &NodeRef) -> Result<(), Unmet> {
    for _ in 0..ROUNDS {
        let Some(now) = ipam::read(client, &node.name).await? else { return Ok(()) };
        let share = now.pools.get(POOL);
        let mut assigned = cloud.assigned(node).await?;
        let (mut tell, mut unassign, mut wanted, mut repair) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (family, length) in Family::ALL.into_iter().zip(lengths) {
            let of = |nets: &BTreeSet<IpNet>| -> BTreeSet<IpNet> {
                nets.iter().copied().filter(|net| Family::of(net.addr()) == family).collect()
            };
            let told = share.map(|share| of(&share.cidrs)).unwrap_or_default();
            let needs =
                Needs { requested: needed(share, family).into(), allocated: told, assigned: of(&assigned), length };
            let plan = plan(family, &needs);
            tell.extend(plan.allocate);
            unassign.extend(plan.unassign);
            repair.extend(plan.reassign);
            if plan.assign > 0 {
                wanted.push(Wanted { ipv6: family == Family::V6, length, count: plan.assign });
            }
        }
        if !repair.is_empty() {
            tracing::warn!(node = node.name, ?repair, "the cloud lost what the node has; assigning it again");
            cloud.restore(node, &repair).await?;
        }
        if !unassign.is_empty() {
            cloud.unassign(node, &unassign).await?;
        }
        // What one attempt gets the node is told, even if the next one fails.
        let mut failed = None;
        if !wanted.is_empty() {
            match cloud.assign(node, &wanted).await {
                Ok(all) => {
                    let before: BTreeSet<IpNet> = std::mem::take(&mut assigned);
                    tell.extend(all.difference(&before));
                }
                Err(error) => failed = Some(error),
            }
        }
        let mut conflict = false;
        if !tell.is_empty() {
            let added: Vec<(String, IpNet)> = tell.iter().map(|net| (POOL.to_owned(), *net)).collect();
            match add(client, &now, &added).await {
                Ok(()) => tracing::info!(node = node.name, blocks = tell.len(), "addresses given"),
                Err(error) if error.is_conflict() => conflict = true,
                Err(error) => return Err(error.into()),
            }
        }
        match failed {
            Some(error) => return Err(error.into()),
            // Less than was wanted, or somebody else wrote: from the beginning.
            None if conflict || !wanted.is_empty() => {}
            None => return Ok(()),
        }
    }
    Err(Unmet::new("not all at once; going on"))
}

/// Writes what a node has besides.
async fn add(client: &Client, now: &NodeShares, added: &[(String, IpNet)]) -> Result<(), weft_k8s::Error> {
    let mut pools = now.pools.clone();
    for (pool, net) in added {
        pools.entry(pool.clone()).or_default().cidrs.insert(*net);
    }
    ipam::write(client, &now.name, &now.version, &pools, None).await
}

async fn from_pools(client: &Client, known: &mut Pools, name: &str) -> Result<(), Unmet> {
    for _ in 0..ROUNDS {
        let Some(now) = ipam::read(client, name).await? else { return Ok(()) };
        restore(&mut known.pools, &now);
        // A write of unknown fate can still arrive as long as the object is what it was.
        let limbo = known.limbo.remove(name).filter(|(version, _)| *version == now.version);
        let mut tell = limbo.map(|(_, nets)| nets).unwrap_or_default();
        let has = |pool: &str, net: &IpNet| now.pools.get(pool).is_some_and(|share| share.cidrs.contains(net));
        for (pool, net) in known.pools.of_node(name) {
            if !has(&pool, &net) && !tell.contains(&(pool.clone(), net)) {
                known.pools.release(name, &pool, &net);
            }
        }
        let mut problem = None;
        for (pool, share) in &now.pools {
            for family in Family::ALL {
                let in_all = share.cidrs.iter().chain(tell.iter().filter(|(p, _)| p == pool).map(|(_, net)| net));
                let of_family = in_all.filter(|net| Family::of(net.addr()) == family);
                let mut have: u128 = of_family.map(size).fold(0, u128::saturating_add);
                while have < needed(Some(share), family).into() {
                    match known.pools.allocate(name, pool, family) {
                        Ok(net) => {
                            have = have.saturating_add(size(&net));
                            tell.push((pool.clone(), net));
                        }
                        Err(error) => {
                            problem = Some(error.to_string());
                            break;
                        }
                    }
                }
            }
        }
        if !tell.is_empty() {
            match add(client, &now, &tell).await {
                Ok(()) => tracing::info!(node = name, ?tell, "prefixes given"),
                Err(error) if error.code().is_some_and(|code| (400..500).contains(&code)) => {
                    // It will never take effect.
                    for (pool, net) in tell {
                        known.pools.release(name, &pool, &net);
                    }
                    if error.is_conflict() {
                        continue;
                    }
                    return Err(error.into());
                }
                Err(error) => {
                    known.limbo.insert(name.to_owned(), (now.version, tell));
                    return Err(error.into());
                }
            }
        }
        return problem.map_or(Ok(()), |problem| Err(Unmet::new(problem)));
    }
    Err(Unmet::new("every write conflicts with another writer's"))
}

fn size(net: &IpNet) -> u128 {
    1_u128.checked_shl(u32::from(net.max_prefix_len() - net.prefix_len())).unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::intent::SUBNET_FULL;

    #[test]
    fn a_full_subnet_is_known_by_its_type_and_agents_know_it_by_its_text() {
        let full = CloudError::SubnetFull { subnet: "pods".to_owned(), message: "no address".to_owned() };
        let unmet = Unmet::from(full);
        assert!(unmet.subnet_full);
        assert!(unmet.problem.starts_with(SUBNET_FULL), "{}", unmet.problem);
        assert!(!Unmet::from(CloudError::Quota { message: SUBNET_FULL.to_owned() }).subnet_full);
    }
}
