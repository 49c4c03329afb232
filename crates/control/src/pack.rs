//! Batches CiliumEndpoints into CiliumEndpointSlices, as the operator does: [`Packer`] decides which slice an endpoint goes
//! to, [`Queue`] when a slice is written.
//!
//! An endpoint stays in its slice; a new one goes to the fullest slice of its namespace with room, else to a new slice. A
//! change enqueues its slice after a fixed delay, so that further changes of it are coalesced. Writes are rate limited,
//! priority namespaces first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weft_model::intent::{ObjectName, RemoteEndpoint};

#[derive(Debug, Default)]
struct Slice {
    namespace: String,
    /// By the pod's name.
    endpoints: BTreeMap<String, RemoteEndpoint>,
}

/// The desired content of every slice.
#[derive(Debug)]
pub struct Packer {
    max: usize,
    slices: BTreeMap<String, Slice>,
    places: BTreeMap<ObjectName, String>,
    /// Slices with room, by namespace: how full, name.
    room: BTreeMap<String, BTreeSet<(usize, String)>>,
}

impl Packer {
    /// `max`: most endpoints in one slice.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max: max.max(1), slices: BTreeMap::new(), places: BTreeMap::new(), room: BTreeMap::new() }
    }

    /// Adopts an existing slice. `false`: it must be rewritten, since some of its endpoints are already in another slice or
    /// exceed the maximum.
    pub fn adopt(&mut self, name: &str, namespace: &str, endpoints: Vec<RemoteEndpoint>) -> bool {
        let mut slice = Slice { namespace: namespace.to_owned(), endpoints: BTreeMap::new() };
        let mut whole = true;
        for endpoint in endpoints {
            let fits = endpoint.name.namespace == namespace
                && slice.endpoints.len() < self.max
                && !self.places.contains_key(&endpoint.name);
            if fits {
                self.places.insert(endpoint.name.clone(), name.to_owned());
                slice.endpoints.insert(endpoint.name.name.clone(), endpoint);
            }
            whole &= fits;
        }
        self.slices.insert(name.to_owned(), slice);
        self.index_room(name);
        whole
    }

    /// Upserts an endpoint. Returns the slice that changes; `fresh` generates a name if a new slice is needed.
    pub fn put(&mut self, endpoint: RemoteEndpoint, fresh: impl FnMut() -> String) -> Option<String> {
        let name = match self.places.get(&endpoint.name) {
            Some(name) => name.clone(),
            None => self.place(&endpoint.name.namespace, fresh),
        };
        self.unindex_room(&name);
        let slice = self.slices.get_mut(&name).expect("places and slices agree");
        let differs = slice.endpoints.get(&endpoint.name.name) != Some(&endpoint);
        if differs {
            self.places.insert(endpoint.name.clone(), name.clone());
            slice.endpoints.insert(endpoint.name.name.clone(), endpoint);
        }
        self.index_room(&name);
        differs.then_some(name)
    }

    /// Deletes an endpoint. Returns the slice that changes.
    pub fn remove(&mut self, endpoint: &ObjectName) -> Option<String> {
        let name = self.places.remove(endpoint)?;
        self.unindex_room(&name);
        if let Some(slice) = self.slices.get_mut(&name) {
            slice.endpoints.remove(&endpoint.name);
        }
        self.index_room(&name);
        Some(name)
    }

    /// Deletes every endpoint for which `keep` does not hold. Returns the slices that change.
    pub fn retain(&mut self, keep: impl Fn(&ObjectName) -> bool) -> BTreeSet<String> {
        let gone: Vec<ObjectName> = self.places.keys().filter(|name| !keep(name)).cloned().collect();
        gone.iter().filter_map(|name| self.remove(name)).collect()
    }

    /// Desired namespace and endpoints of a slice. `None`: it must not exist.
    #[must_use]
    pub fn content(&self, slice: &str) -> Option<(&str, Vec<&RemoteEndpoint>)> {
        let slice = self.slices.get(slice).filter(|slice| !slice.endpoints.is_empty())?;
        Some((&slice.namespace, slice.endpoints.values().collect()))
    }

    /// An empty slice was deleted from the API server: its name is not used again.
    pub fn deleted(&mut self, name: &str) {
        if self.slices.get(name).is_some_and(|slice| slice.endpoints.is_empty()) {
            self.unindex_room(name);
            self.slices.remove(name);
        }
    }

    /// All slices with their sizes, empty ones included.
    pub fn slices(&self) -> impl Iterator<Item = (&str, usize)> {
        self.slices.iter().map(|(name, slice)| (name.as_str(), slice.endpoints.len()))
    }

    #[must_use]
    pub fn namespace(&self, slice: &str) -> Option<&str> {
        self.slices.get(slice).map(|slice| slice.namespace.as_str())
    }

    fn place(&mut self, namespace: &str, mut fresh: impl FnMut() -> String) -> String {
        if let Some((_, name)) = self.room.get(namespace).and_then(BTreeSet::last) {
            return name.clone();
        }
        let mut name = fresh();
        while self.slices.contains_key(&name) {
            name = fresh();
        }
        self.slices.insert(name.clone(), Slice { namespace: namespace.to_owned(), endpoints: BTreeMap::new() });
        name
    }

    fn unindex_room(&mut self, name: &str) {
        let Some(slice) = self.slices.get(name) else { return };
        if let Some(room) = self.room.get_mut(&slice.namespace) {
            room.remove(&(slice.endpoints.len(), name.to_owned()));
            if room.is_empty() {
                self.room.remove(&slice.namespace);
            }
        }
    }

    fn index_room(&mut self, name: &str) {
        let Some(slice) = self.slices.get(name) else { return };
        if slice.endpoints.len() < self.max {
            let room = self.room.entry(slice.namespace.clone()).or_default();
            room.insert((slice.endpoints.len(), name.to_owned()));
        }
    }
}

/// Rate limit of writes: a token bucket.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// Writes per second.
    pub limit: f64,
    /// Capacity of the bucket.
    pub burst: u32,
}

/// Backoff after a failed write; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(100);

#[derive(Clone, Copy, Debug)]
struct Due {
    at: Duration,
    since: Duration,
    priority: bool,
    failures: u32,
}

/// The work queue of slices to write.
#[derive(Debug)]
pub struct Queue {
    delay: Duration,
    rate: Rate,
    due: BTreeMap<String, Due>,
    tokens: f64,
    filled: Duration,
}

/// A slice to write now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    pub slice: String,
    /// Age of its oldest change that is not written.
    pub waited: Duration,
    /// It is of a priority namespace.
    pub priority: bool,
    failures: u32,
}

impl Queue {
    /// `delay`: how long changes of a slice are coalesced.
    #[must_use]
    pub fn new(delay: Duration, rate: Rate) -> Self {
        Self { delay, rate, due: BTreeMap::new(), tokens: f64::from(rate.burst), filled: Duration::ZERO }
    }

    /// Changes the rate limit, which depends on the size of the cluster.
    pub fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// Enqueues a slice that has changed. The delay counts from the first change that is not written.
    pub fn changed(&mut self, slice: &str, priority: bool, now: Duration) {
        let fresh = Due { at: now + self.delay, since: now, priority, failures: 0 };
        self.due.entry(slice.to_owned()).or_insert(fresh).priority |= priority;
    }

    /// Enqueues a slice again whose write failed, with exponential backoff.
    pub fn failed(&mut self, turn: Turn, now: Duration) {
        let pause = RETRY_MIN.saturating_mul(1 << turn.failures.min(7)).min(RETRY_MAX);
        let since = now.saturating_sub(turn.waited);
        let due = Due { at: now + pause, since, priority: turn.priority, failures: turn.failures + 1 };
        self.due.insert(turn.slice, due);
    }

    /// Dequeues the next slice that is due, within the rate limit.
    pub fn next(&mut self, now: Duration) -> Option<Turn> {
        self.fill(now);
        if self.tokens < 1.0 {
            return None;
        }
        let ready = self.due.iter().filter(|(_, due)| due.at <= now);
        let (name, _) = ready.min_by_key(|(_, due)| (!due.priority, due.since))?;
        let name = name.clone();
        let due = self.due.remove(&name).expect("found in it");
        self.tokens -= 1.0;
        let waited = now.saturating_sub(due.since);
        Some(Turn { slice: name, waited, priority: due.priority, failures: due.failures })
    }

    /// When to call [`Self::next`] again; `None`: the queue is empty.
    #[must_use]
    pub fn wake(&self, now: Duration) -> Option<Duration> {
        let first = self.due.values().map(|due| due.at).min()?;
        let missing = (1.0 - self.tokens).max(0.0) / self.rate.limit.max(0.001);
        Some(first.max(now + Duration::from_secs_f64(missing)))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.due.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate.limit).min(f64::from(self.rate.burst.max(1)));
        self.filled = now;
    }
}

#[cfg(test)]
mod tests;
