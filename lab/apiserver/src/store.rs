//! Where the objects are: in memory to be read, in an embedded database to last.
//!
//! One revision counts every change of any object, as `resourceVersion`. A change is answered, and told to
//! watchers, only once it is on disk; changes that arrive meanwhile share the next commit. After a restart the
//! revision jumps ahead, so that a revision which a client has from the former life is recognised as expired.

mod database;
mod history;

use bytes::Bytes;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use tokio::sync::{oneshot, watch};

pub use database::StoreError;
use history::History;
pub use history::{Compacted, Follower, Topic};

/// How far the revision jumps at a restart.
const RESTART_JUMP: u64 = 1_000_000;

/// What identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Group resource: `pods`, `deployments.apps`.
    pub resource: Arc<str>,
    /// Namespace; empty for what has none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key.
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: Arc::from(resource), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn encoded(&self) -> String {
        format!("{}\0{}\0{}", self.resource, self.namespace, self.name)
    }
}

/// An object as stored.
#[derive(Debug)]
pub struct Stored {
    /// The object.
    pub value: Value,
    /// The same, serialised.
    pub bytes: Bytes,
    /// Revision of its last change.
    pub revision: u64,
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The object is new.
    Added,
    /// The object is another now.
    Modified,
    /// The object is gone; the event carries its last state.
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Event {
    /// Revision of the change.
    pub revision: u64,
    /// Which object.
    pub key: Key,
    /// What happened.
    pub effect: Effect,
    /// The object after it.
    pub object: Arc<Stored>,
    /// The object before it.
    pub previous: Option<Arc<Stored>>,
    /// The change as lines of watches, written out when the first watcher needs it.
    lines: [OnceLock<Bytes>; 3],
}

impl Event {
    /// The line of a watch that tells `effect` with the object as it is stored. Many watchers share it.
    pub fn line(&self, effect: Effect) -> Bytes {
        let (slot, kind) = match effect {
            Effect::Added => (0, "ADDED"),
            Effect::Modified => (1, "MODIFIED"),
            Effect::Deleted => (2, "DELETED"),
        };
        let line = self.lines[slot].get_or_init(|| {
            let mut line = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
            line.extend_from_slice(&self.object.bytes);
            line.extend_from_slice(b"}\n");
            Bytes::from(line)
        });
        line.clone()
    }
}

struct Inner {
    objects: BTreeMap<Key, Arc<Stored>>,
    /// Last revision given out.
    revision: u64,
    /// Changes on disk, in order.
    history: History,
    /// Changes not yet on disk.
    queue: Vec<Event>,
    waiters: Vec<oneshot::Sender<()>>,
    broken: bool,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Tells the writer that there is work; closed with the store.
    work: std::sync::mpsc::SyncSender<()>,
    /// Last revision that is on disk.
    published: watch::Sender<u64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// A promise that a change reaches the disk.
#[derive(Debug)]
#[must_use = "the change is not on disk before this is done"]
pub struct Ticket(Option<oneshot::Receiver<()>>);

impl Ticket {
    /// Waits until the change is on disk.
    ///
    /// # Errors
    /// That the database failed.
    pub async fn done(self) -> Result<(), StoreError> {
        match self.0 {
            None => Ok(()),
            Some(receiver) => receiver.await.map_err(|_| StoreError::Closed),
        }
    }
}

/// Objects of a list, and the revision at which they were so.
#[derive(Debug)]
pub struct Snapshot {
    /// In the order of namespace and name.
    pub objects: Vec<Arc<Stored>>,
    /// Revision.
    pub revision: u64,
}

impl Store {
    /// Opens the database, and makes it when there is none.
    ///
    /// # Errors
    /// That it cannot be opened or holds what is no object.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let database = database::Database::open(file)?;
        let (objects, last) = database.load()?;
        let revision = if last == 0 { 1 } else { last + RESTART_JUMP };
        let (work, wake) = std::sync::mpsc::sync_channel(1);
        let inner = Inner {
            objects,
            revision,
            history: History::new(revision),
            queue: Vec::new(),
            waiters: Vec::new(),
            broken: false,
        };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), work, published: watch::Sender::new(revision) });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                while wake.recv().is_ok() {
                    let Some(shared) = weak.upgrade() else { return };
                    if let Err(error) = shared.flush(&database) {
                        tracing::error!(%error, "the database failed: no change is accepted any more");
                        return;
                    }
                }
            })
            .map_err(StoreError::Thread)?;
        Ok(Self { shared })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.lock()
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.lock().objects.get(key).cloned()
    }

    /// All objects of a resource, in one namespace or (when `namespace` is empty) in all.
    pub fn list(&self, resource: &str, namespace: &str) -> Snapshot {
        let inner = self.lock();
        Snapshot { objects: range(&inner.objects, resource, namespace).cloned().collect(), revision: inner.revision }
    }

    /// Last revision given out.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Whether changes are still accepted.
    pub fn is_healthy(&self) -> bool {
        !self.lock().broken
    }

    /// Follows what reaches the disk; the value is the last revision there.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.published.subscribe()
    }

    /// The changes behind `revision`, at most `max`, that `wanted` picks; and the revision up to which they go.
    ///
    /// # Errors
    /// [`Compacted`] when changes behind `revision` are forgotten, or when there is no such revision yet.
    pub fn since(
        &self,
        revision: u64,
        max: usize,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<(Vec<Arc<Event>>, u64), Compacted> {
        let inner = self.lock();
        if revision > inner.revision {
            return Err(Compacted { oldest: inner.history.oldest() });
        }
        inner.history.since(revision, max, wanted)
    }

    /// Follows one topic from `revision` on.
    ///
    /// # Errors
    /// [`Compacted`] when changes behind `revision` are forgotten, or when there is no such revision yet.
    pub fn follow(&self, topic: Topic, revision: u64) -> Result<Follower, Compacted> {
        let mut inner = self.lock();
        if revision > inner.revision {
            return Err(Compacted { oldest: inner.history.oldest() });
        }
        let changed = inner.history.follow(&topic, revision)?;
        Ok(Follower { store: self.clone(), topic, reached: revision, changed })
    }

    /// Reads and writes in one step; nothing is written when `work` fails.
    ///
    /// # Errors
    /// What `work` fails with, or that the store is closed.
    pub fn transact<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<(T, Ticket), E> {
        let mut inner = self.lock();
        if inner.broken {
            return Err(StoreError::Closed.into());
        }
        let mut transaction = Transaction { objects: &inner.objects, revision: inner.revision, staged: Vec::new() };
        let result = work(&mut transaction)?;
        let Transaction { staged, revision, .. } = transaction;
        if staged.is_empty() {
            return Ok((result, Ticket(None)));
        }
        inner.revision = revision;
        for event in staged {
            match event.effect {
                Effect::Deleted => inner.objects.remove(&event.key),
                Effect::Added | Effect::Modified => inner.objects.insert(event.key.clone(), event.object.clone()),
            };
            inner.queue.push(event);
        }
        let (sender, receiver) = oneshot::channel();
        inner.waiters.push(sender);
        drop(inner);
        // Full: the writer has been told already.
        let _ = self.shared.work.try_send(());
        Ok((result, Ticket(Some(receiver))))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock leaves whole objects: every change is made of moves that cannot fail.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn flush(&self, database: &database::Database) -> Result<(), StoreError> {
        let (events, waiters) = {
            let mut inner = self.lock();
            (std::mem::take(&mut inner.queue), std::mem::take(&mut inner.waiters))
        };
        let Some(last) = events.last().map(|e| e.revision) else { return Ok(()) };
        if let Err(error) = database.write(&events, last) {
            // Waiters are dropped, which tells their requests that the change is not safe.
            self.lock().broken = true;
            return Err(error);
        }
        self.lock().history.extend(events, last);
        self.published.send_replace(last);
        for waiter in waiters {
            let _ = waiter.send(());
        }
        Ok(())
    }
}

fn range<'a>(
    objects: &'a BTreeMap<Key, Arc<Stored>>,
    resource: &str,
    namespace: &str,
) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a> {
    let resource: Arc<str> = Arc::from(resource);
    let start = Key { resource: resource.clone(), namespace: namespace.to_owned(), name: String::new() };
    let namespace = namespace.to_owned();
    objects
        .range((Bound::Included(start), Bound::Unbounded))
        .take_while(move |(key, _)| key.resource == resource && (namespace.is_empty() || key.namespace == namespace))
        .map(|(_, object)| object)
}

/// Reads and writes that take effect together.
#[derive(Debug)]
pub struct Transaction<'a> {
    objects: &'a BTreeMap<Key, Arc<Stored>>,
    revision: u64,
    staged: Vec<Event>,
}

impl Transaction<'_> {
    /// One object, as changed so far.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        match self.staged.iter().rev().find(|e| e.key == *key) {
            Some(event) if event.effect == Effect::Deleted => None,
            Some(event) => Some(event.object.clone()),
            None => self.objects.get(key).cloned(),
        }
    }

    /// All objects of a resource as they were before this transaction.
    pub fn list(&self, resource: &str, namespace: &str) -> Vec<Arc<Stored>> {
        range(self.objects, resource, namespace).cloned().collect()
    }

    /// Writes an object; its `metadata.resourceVersion` is set to the new revision.
    pub fn put(&mut self, key: Key, value: Value) -> Arc<Stored> {
        let previous = self.get(&key);
        let effect = if previous.is_some() { Effect::Modified } else { Effect::Added };
        self.stage(key, value, effect, previous)
    }

    /// Removes an object; `last` is its last state, as watchers are told.
    pub fn remove(&mut self, key: Key, last: Value) -> Arc<Stored> {
        let previous = self.get(&key);
        self.stage(key, last, Effect::Deleted, previous)
    }

    fn stage(&mut self, key: Key, mut value: Value, effect: Effect, previous: Option<Arc<Stored>>) -> Arc<Stored> {
        self.revision += 1;
        let revision = self.revision;
        super::object::set(&mut value, &["metadata"], "resourceVersion", revision.to_string());
        let bytes = Bytes::from(value.to_string());
        let object = Arc::new(Stored { value, bytes, revision });
        self.staged.push(Event { revision, key, effect, object: object.clone(), previous, lines: Default::default() });
        object
    }
}
