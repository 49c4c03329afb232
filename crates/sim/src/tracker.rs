//! From the CNI call to the moment at which the last agent knows the address.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use weft_model::id::Identity;

const SHARDS: usize = 32;

struct Row {
    begun: Option<Instant>,
    /// Agents that know it.
    count: usize,
    last: Instant,
}

/// See the module.
pub struct Tracker {
    shards: Vec<Mutex<HashMap<IpAddr, Row>>>,
    agents: AtomicUsize,
    measuring: AtomicBool,
    done: Mutex<Vec<Duration>>,
    void: AtomicUsize,
    alive: Mutex<HashSet<IpAddr>>,
    /// Who has an address, as its own node says.
    owners: Mutex<HashMap<IpAddr, Identity>>,
    holes: AtomicUsize,
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            agents: AtomicUsize::new(0),
            measuring: AtomicBool::new(false),
            done: Mutex::default(),
            void: AtomicUsize::new(0),
            alive: Mutex::default(),
            owners: Mutex::default(),
            holes: AtomicUsize::new(0),
        }
    }
}

impl Tracker {
    fn shard(&self, address: IpAddr) -> std::sync::MutexGuard<'_, HashMap<IpAddr, Row>> {
        let last = match address {
            IpAddr::V4(v4) => usize::from(v4.octets()[3]),
            IpAddr::V6(v6) => usize::from(v6.octets()[15]) ^ usize::from(v6.octets()[7]),
        };
        self.shards[last % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many agents there are. What is on its way when that changes is not measured.
    pub fn set_agents(&self, count: usize) {
        self.agents.store(count, Ordering::SeqCst);
        for shard in &self.shards {
            let mut rows = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let waiting = rows.values_mut().filter_map(|row| row.begun.take()).count();
            self.void.fetch_add(waiting, Ordering::Relaxed);
        }
    }

    /// From here on pods are measured, or no longer.
    pub fn measure(&self, on: bool) {
        self.measuring.store(on, Ordering::SeqCst);
    }

    /// A pod whose ADD came at `begun` has this address.
    pub fn begun(&self, address: IpAddr, begun: Instant) {
        if !self.measuring.load(Ordering::Relaxed) {
            return;
        }
        let mut rows = self.shard(address);
        let row = rows.entry(address).or_insert(Row { begun: None, count: 0, last: begun });
        row.begun = Some(begun);
        self.settle(row);
    }

    /// An agent has it in its tables and maps.
    pub fn known(&self, address: IpAddr) {
        let mut rows = self.shard(address);
        let row = rows.entry(address).or_insert(Row { begun: None, count: 0, last: Instant::now() });
        row.count += 1;
        row.last = Instant::now();
        self.settle(row);
    }

    /// A pod is there with this address: until it is forgotten, no agent may forget it. False: it is another's already.
    pub fn lives(&self, address: IpAddr) -> bool {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).insert(address)
    }

    /// An agent took it out of its maps.
    pub fn removed(&self, address: IpAddr) {
        if self.alive.lock().unwrap_or_else(PoisonError::into_inner).contains(&address) {
            self.holes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An agent's own pod has this address.
    pub fn owned(&self, address: IpAddr, identity: Identity) {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).insert(address, identity);
    }

    /// An agent that had the address as somebody's has it as another's now.
    pub fn changed(&self, address: IpAddr, before: Identity, after: Identity) {
        let owner = self.owners.lock().unwrap_or_else(PoisonError::into_inner).get(&address).copied();
        if before != after && owner == Some(before) {
            self.removed(address);
        }
    }

    /// How often an agent took a living pod's address for nobody's, or for another's than its own.
    #[must_use]
    pub fn holes(&self) -> usize {
        self.holes.load(Ordering::Relaxed)
    }

    /// The pod is gone: what is heard of the address from now on is about another one.
    pub fn forget(&self, address: IpAddr) {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        let gone = self.shard(address).remove(&address);
        if gone.is_some_and(|row| row.begun.is_some()) {
            self.void.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The same for all addresses of a pod.
    pub fn forget_all(&self, addresses: &[IpAddr]) {
        addresses.iter().for_each(|address| self.forget(*address));
    }

    fn settle(&self, row: &mut Row) {
        if row.count >= self.agents.load(Ordering::Relaxed)
            && let Some(begun) = row.begun.take()
        {
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push(row.last.saturating_duration_since(begun));
        }
    }

    /// Pods that some agent does not know yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let waiting = |shard: &Mutex<HashMap<IpAddr, Row>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|row| row.begun.is_some()).count()
        };
        self.shards.iter().map(waiting).sum()
    }

    /// Addresses of which some agent has not heard.
    #[must_use]
    pub fn incomplete(&self) -> usize {
        let agents = self.agents.load(Ordering::Relaxed);
        let short = |shard: &Mutex<HashMap<IpAddr, Row>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|row| row.count < agents).count()
        };
        self.shards.iter().map(short).sum()
    }

    /// Forgets what is measured so far, and what waits.
    pub fn restart(&self) {
        self.set_agents(self.agents.load(Ordering::Relaxed));
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.void.store(0, Ordering::Relaxed);
    }

    /// How long it took, for every pod that all agents know; those that some do not know yet, with how long they have
    /// waited; and how many went before everybody knew them.
    #[must_use]
    pub fn take(&self) -> (Vec<Duration>, Vec<Duration>, usize) {
        let mut late = Vec::new();
        for shard in &self.shards {
            let rows = shard.lock().unwrap_or_else(PoisonError::into_inner);
            late.extend(rows.values().filter_map(|row| row.begun).map(|begun| begun.elapsed()));
        }
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        (done, late, self.void.load(Ordering::Relaxed))
    }
}
