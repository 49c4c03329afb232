//! The changes that watchers can still be told of, by topic: a watcher is woken for, and looks through, the changes
//! of its own topic only. With thousands of watchers everything else would cost more than the changes themselves.

use super::{Event, Store};
use crate::object::text;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::watch;

/// Changes that are kept.
const HISTORY_MAX: usize = 20_000;

/// What a watcher follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// All objects of a group resource.
    Resource(Arc<str>),
    /// Pods that are, or were, bound to a node.
    PodsOf(Arc<str>),
}

/// The history does not reach back to the revision asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Oldest revision from which one can go on.
    pub oldest: u64,
}

struct Log {
    events: VecDeque<Arc<Event>>,
    /// Revision of the last change that was forgotten.
    forgotten: u64,
    changed: watch::Sender<u64>,
}

/// See the module.
pub(super) struct History {
    events: VecDeque<Arc<Event>>,
    logs: HashMap<Topic, Log>,
    /// One can go on from this revision and later ones.
    oldest: u64,
    /// Up to here all changes are in it.
    reached: u64,
}

impl History {
    pub(super) fn new(revision: u64) -> Self {
        Self { events: VecDeque::new(), logs: HashMap::new(), oldest: revision, reached: revision }
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Takes in changes; up to `reached` there are no others.
    pub(super) fn extend(&mut self, events: Vec<Event>, reached: u64) {
        self.reached = reached;
        let mut touched = Vec::new();
        for event in events {
            let event = Arc::new(event);
            for topic in topics(&event) {
                if let Some(log) = self.logs.get_mut(&topic) {
                    log.events.push_back(event.clone());
                    if !touched.contains(&topic) {
                        touched.push(topic);
                    }
                }
            }
            self.events.push_back(event);
        }
        while self.events.len() > HISTORY_MAX {
            let Some(event) = self.events.pop_front() else { break };
            self.oldest = event.revision;
            for topic in topics(&event) {
                if let Some(log) = self.logs.get_mut(&topic) {
                    log.events.pop_front();
                    log.forgotten = event.revision;
                }
            }
        }
        for topic in touched {
            if let Some(log) = self.logs.get(&topic) {
                log.changed.send_replace(reached);
            }
        }
    }

    pub(super) fn since(
        &self,
        revision: u64,
        max: usize,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<(Vec<Arc<Event>>, u64), Compacted> {
        if revision < self.oldest {
            return Err(Compacted { oldest: self.oldest });
        }
        Ok(behind(&self.events, revision, max, self.reached, wanted))
    }

    pub(super) fn follow(&mut self, topic: &Topic, revision: u64) -> Result<watch::Receiver<u64>, Compacted> {
        if revision < self.oldest {
            return Err(Compacted { oldest: self.oldest });
        }
        if let Some(log) = self.logs.get(topic) {
            return Ok(log.changed.subscribe());
        }
        // Topics that nobody follows any more go, so that nodes that are gone leave nothing.
        self.logs.retain(|_, log| log.changed.receiver_count() > 0);
        let events = self.events.iter().filter(|event| topics(event).any(|of| of == *topic)).cloned().collect();
        let (changed, receiver) = watch::channel(self.reached);
        self.logs.insert(topic.clone(), Log { events, forgotten: self.oldest, changed });
        Ok(receiver)
    }
}

/// The changes behind `revision`, and up to where one has seen everything then.
fn behind(
    events: &VecDeque<Arc<Event>>,
    revision: u64,
    max: usize,
    reached: u64,
    wanted: impl Fn(&Event) -> bool,
) -> (Vec<Arc<Event>>, u64) {
    let start = events.partition_point(|event| event.revision <= revision);
    let mut found = Vec::new();
    for event in events.range(start..).filter(|event| wanted(event)) {
        if found.len() >= max {
            let last: &Arc<Event> = found.last().expect("max is at least one");
            let up_to = last.revision;
            return (found, up_to);
        }
        found.push(event.clone());
    }
    (found, reached.max(revision))
}

fn topics(event: &Event) -> impl Iterator<Item = Topic> {
    let is_pod = *event.key.resource == *"pods";
    let node = |object: &super::Stored| {
        let node = text(&object.value, &["spec", "nodeName"]);
        (is_pod && !node.is_empty()).then(|| Topic::PodsOf(node.into()))
    };
    let now = node(&event.object);
    let before = event.previous.as_ref().and_then(|object| node(object)).filter(|topic| Some(topic) != now.as_ref());
    [Some(Topic::Resource(event.key.resource.clone())), now, before].into_iter().flatten()
}

/// Follows a topic.
pub struct Follower {
    pub(super) store: Store,
    pub(super) topic: Topic,
    pub(super) reached: u64,
    pub(super) changed: watch::Receiver<u64>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("topic", &self.topic).field("reached", &self.reached).finish_non_exhaustive()
    }
}

impl Follower {
    /// The next changes, at most `max`; empty: none yet.
    ///
    /// # Errors
    /// [`Compacted`]: some were forgotten before they were read.
    pub fn next(&mut self, max: usize) -> Result<Vec<Arc<Event>>, Compacted> {
        // What is published from here on wakes the next wait.
        self.changed.borrow_and_update();
        let inner = self.store.lock();
        let history = &inner.history;
        let gone = Compacted { oldest: history.oldest };
        let log = history.logs.get(&self.topic).ok_or(gone)?;
        if self.reached < log.forgotten {
            return Err(gone);
        }
        let (events, reached) = behind(&log.events, self.reached, max, history.reached, |_| true);
        self.reached = reached;
        Ok(events)
    }

    /// The revision up to which everything was read.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.reached
    }

    /// Waits until there may be more. False: the store is closed.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}
