//! Serves flows to readers: the last ones, and new ones as they come.

use crate::clock::Clock;
use crate::decode::{DecodeError, check};
use crate::enrich::{self, Directory};
use crate::filter::Filter;
use crate::remember::Remembered;
use crate::ring::Ring;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};
use weft_abi::Event;
use weft_api::agent::Response;
use weft_api::flow::{Flow, FlowFilter, Verdict};

/// Flows that may be queued for a reader before some are lost: events come in bursts, and the ring has as many.
pub const BEHIND_MAX: usize = 4096;

/// A decoded event, and its flow once a reader wanted it.
#[derive(Clone, Debug)]
struct Seen {
    event: Event,
    verdict: Verdict,
    offset_ns: i64,
    flow: Option<Arc<Flow>>,
}

#[derive(Debug)]
struct Subscriber {
    id: u64,
    filter: Filter,
    flows: mpsc::Sender<Arc<Flow>>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Shared {
    ring: Ring<Seen>,
    subscribers: Vec<Subscriber>,
    subscriber_next: u64,
}

/// Takes the kernel's events, keeps the last ones, serves them to readers.
///
/// While nobody follows, an allowed packet's event is a copy of 88 bytes into the ring: its names are looked up when
/// it is read. Drops get their names at once, before a pod that is going away is forgotten.
pub struct Observer {
    node: String,
    directory: Arc<dyn Directory>,
    clock: Clock,
    shared: Mutex<Shared>,
    following: watch::Sender<usize>,
    malformed: AtomicU64,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Observer {
    /// For the events of `node`, keeping the last `events_max`.
    #[must_use]
    pub fn new(node: impl Into<String>, events_max: usize, directory: Arc<dyn Directory>) -> Arc<Self> {
        Self::with_clock(node, events_max, directory, Clock::default())
    }

    /// The same with another clock.
    #[must_use]
    pub fn with_clock(
        node: impl Into<String>,
        events_max: usize,
        directory: Arc<dyn Directory>,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            node: node.into(),
            directory,
            clock,
            shared: Mutex::new(Shared { ring: Ring::new(events_max), subscribers: Vec::new(), subscriber_next: 0 }),
            following: watch::Sender::new(0),
            malformed: AtomicU64::new(0),
        })
    }

    /// How many readers follow: while it is not 0, the kernel shall report allowed connections as well.
    #[must_use]
    pub fn following(&self) -> watch::Receiver<usize> {
        self.following.subscribe()
    }

    /// Records that were refused.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Events that the ring lost to newer ones.
    #[must_use]
    pub fn overwritten(&self) -> u64 {
        self.lock().ring.overwritten()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("a panic ends the process")
    }

    /// Adds one event. Never waits for a reader.
    ///
    /// # Errors
    /// The event is malformed; it is counted.
    pub fn push(&self, event: &Event) -> Result<(), DecodeError> {
        self.add(event, self.directory.as_ref())
    }

    /// Adds events of one batch; malformed ones are counted. Names are looked up once for all of them.
    pub fn push_all(&self, events: &[Event]) {
        let directory = Remembered::new(self.directory.as_ref());
        for event in events {
            let _ = self.add(event, &directory);
        }
    }

    fn add(&self, event: &Event, directory: &dyn Directory) -> Result<(), DecodeError> {
        let verdict = check(event).inspect_err(|_| {
            self.malformed.fetch_add(1, Ordering::Relaxed);
        })?;
        let offset_ns = self.clock.offset_ns(event.time_ns);
        let flow_of = || Arc::new(enrich::flow(event, verdict, offset_ns, &self.node, directory));
        let mut seen = Seen { event: *event, verdict, offset_ns, flow: None };
        if verdict != Verdict::Forwarded || *self.following.borrow() != 0 {
            seen.flow = Some(flow_of());
        }
        let mut shared = self.lock();
        for subscriber in &shared.subscribers {
            // Subscribed after `following` was read above.
            let flow = seen.flow.get_or_insert_with(flow_of);
            if subscriber.filter.wants_event(event, verdict)
                && subscriber.filter.wants_flow(flow)
                && subscriber.flows.try_send(flow.clone()).is_err()
            {
                subscriber.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        shared.ring.push(seen);
        Ok(())
    }

    fn flow(&self, seen: &Seen) -> Arc<Flow> {
        match &seen.flow {
            Some(flow) => flow.clone(),
            None => {
                let directory = self.directory.as_ref();
                Arc::new(enrich::flow(&seen.event, seen.verdict, seen.offset_ns, &self.node, directory))
            }
        }
    }

    /// The last `last` flows that match, oldest first.
    #[must_use]
    pub fn snapshot(&self, filter: FlowFilter, last: usize) -> Vec<Arc<Flow>> {
        let seen: Vec<Seen> = self.lock().ring.iter().cloned().collect();
        self.select(&seen, &Filter::from(filter), last)
    }

    fn select(&self, seen: &[Seen], filter: &Filter, last: usize) -> Vec<Arc<Flow>> {
        let mut flows: Vec<Arc<Flow>> = seen
            .iter()
            .rev()
            .filter(|seen| filter.wants_event(&seen.event, seen.verdict))
            .map(|seen| self.flow(seen))
            .filter(|flow| filter.wants_flow(flow))
            .take(last)
            .collect();
        flows.reverse();
        flows
    }

    /// The last flows, and then every new one: none twice, none missing in between.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, filter: FlowFilter, last: usize) -> Subscription {
        let filter = Filter::from(filter);
        let (sender, flows) = mpsc::channel(BEHIND_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let (id, seen) = {
            let mut shared = self.lock();
            let id = shared.subscriber_next;
            shared.subscriber_next += 1;
            let (filter, lost) = (filter.clone(), lost.clone());
            shared.subscribers.push(Subscriber { id, filter, flows: sender, lost });
            self.following.send_replace(shared.subscribers.len());
            (id, shared.ring.iter().cloned().collect::<Vec<Seen>>())
        };
        let past = self.select(&seen, &filter, last).into();
        Subscription { observer: self.clone(), id, past, flows, lost, lost_reported: 0 }
    }

    /// Answers an `observe` request: the last flows, the coming ones if `follow`, [`Response::Done`] at the end. A
    /// reader that is too slow gets [`Response::Lost`]. Ends when the reader is gone.
    pub async fn answer(
        self: &Arc<Self>,
        filter: FlowFilter,
        last: usize,
        follow: bool,
        answers: &mpsc::Sender<Response>,
    ) {
        if !follow {
            for flow in self.snapshot(filter, last) {
                if answers.send(Response::Flow(flow)).await.is_err() {
                    return;
                }
            }
            let _ = answers.send(Response::Done).await;
            return;
        }
        let mut subscription = self.subscribe(filter, last);
        loop {
            let next = tokio::select! {
                next = subscription.next() => next,
                () = answers.closed() => return,
            };
            let answer = match next {
                Next::Flow(flow) => Response::Flow(flow),
                Next::Lost(flows) => Response::Lost(flows),
            };
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    }
}

/// What a follower gets.
#[derive(Clone, PartialEq, Debug)]
pub enum Next {
    /// A flow.
    Flow(Arc<Flow>),
    /// So many flows that matched are missing here.
    Lost(u64),
}

/// A reader that follows. Dropped, it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    observer: Arc<Observer>,
    id: u64,
    past: std::collections::VecDeque<Arc<Flow>>,
    flows: mpsc::Receiver<Arc<Flow>>,
    lost: Arc<AtomicU64>,
    lost_reported: u64,
}

impl Subscription {
    /// The next flow, or how many were lost.
    pub async fn next(&mut self) -> Next {
        if let Some(flow) = self.past.pop_front() {
            return Next::Flow(flow);
        }
        // What was in the queue came before what did not fit: empty it first.
        if let Ok(flow) = self.flows.try_recv() {
            return Next::Flow(flow);
        }
        let lost = self.lost.load(Ordering::Relaxed);
        if lost != self.lost_reported {
            let flows = lost - self.lost_reported;
            self.lost_reported = lost;
            return Next::Lost(flows);
        }
        match self.flows.recv().await {
            Some(flow) => Next::Flow(flow),
            // The sender lives in the observer until this subscription is dropped.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut shared = self.observer.lock();
        shared.subscribers.retain(|subscriber| subscriber.id != self.id);
        self.observer.following.send_replace(shared.subscribers.len());
    }
}

#[cfg(test)]
mod tests;
