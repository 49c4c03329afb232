//! One pod's life on this node: from its first sight to the removal of its last trace.

use super::containers::{self, State};
use super::events::Severity;
use super::image::Problem;
use super::probe::{Hook, Probe, Purpose};
use super::record::{PodDir, Record};
use super::status::{Facts, is_sidecar, list, phase, terminated};
use super::{Node, RETRY, sandbox};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// What the API server wants of this pod.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// That it be like this.
    Pod(Arc<Value>),
    /// That it be gone, at once.
    Nothing,
}

/// What a running container's watchers tell.
enum Signal {
    Ended { container: String, attempt: u32 },
    Probed { container: String, attempt: u32, purpose: Purpose, good: bool, why: String },
}

/// Pauses between attempts, doubled each time: of the network, and of a container that ends again and again.
const NETWORK_RETRY_MIN: Duration = Duration::from_millis(100);
const NETWORK_RETRY_MAX: Duration = Duration::from_secs(5);
const RESTART_MIN: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(60);
/// A start that cannot succeed now (no such image) is tried again so late.
const START_RETRY: Duration = Duration::from_secs(5);

/// Runs until nothing of the pod is left.
pub(super) async fn run(node: Arc<Node>, uid: &str, mut wanted: watch::Receiver<Wanted>) {
    let dir = node.pod_dir(uid);
    let first = wanted.borrow_and_update().clone();
    let recorded = dir.load().ok();
    let (pod, record) = match (first, recorded) {
        (Wanted::Nothing, None) => return,
        (Wanted::Nothing, Some(record)) => (Arc::new(Value::Null), record),
        (Wanted::Pod(pod), Some(record)) => (pod, record),
        (Wanted::Pod(pod), None) => {
            let record = new_record(&pod);
            (pod, record)
        }
    };
    let (signals, received) = mpsc::channel(64);
    let worker = Worker {
        node,
        dir,
        record,
        pod,
        signals,
        watched: HashMap::new(),
        probed: HashMap::new(),
        problems: HashMap::new(),
        network_problem: None,
        network_failures: 0,
        reported: Value::Null,
        ending: false,
        tasks: JoinSet::new(),
    };
    worker.live(wanted, received).await;
}

fn new_record(pod: &Value) -> Record {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
    Record {
        uid: text("uid"),
        namespace: text("namespace"),
        name: text("name"),
        host_network: pod["spec"]["hostNetwork"] == true,
        started: crate::pod::now(),
        ..Record::default()
    }
}

struct Worker {
    node: Arc<Node>,
    dir: PodDir,
    record: Record,
    pod: Arc<Value>,
    signals: mpsc::Sender<Signal>,
    /// Attempt and watchers of each running container.
    watched: HashMap<String, (u32, Vec<Watcher>)>,
    /// Last verdict of each probe.
    probed: HashMap<(String, Purpose), bool>,
    /// Why containers do not start.
    problems: HashMap<String, Problem>,
    network_problem: Option<String>,
    network_failures: u32,
    /// The status as it was last written.
    reported: Value,
    /// The pod is being stopped.
    ending: bool,
    tasks: JoinSet<()>,
}

/// A task that watches a container.
struct Watcher {
    /// What it probes; none: it waits for the container's end.
    purpose: Option<Purpose>,
    task: AbortHandle,
}

impl Worker {
    async fn live(mut self, mut wanted: watch::Receiver<Wanted>, mut signals: mpsc::Receiver<Signal>) {
        loop {
            let now = wanted.borrow_and_update().clone();
            match now {
                Wanted::Nothing => return self.end(wanted, signals, Duration::ZERO).await,
                Wanted::Pod(pod) => {
                    self.pod = pod;
                    if !self.pod["metadata"]["deletionTimestamp"].is_null() {
                        let grace = self.grace();
                        return self.end(wanted, signals, grace).await;
                    }
                }
            }
            let mut wake = self.sync().await;
            if !self.report().await {
                wake = Some(wake.map_or(RETRY, |w| w.min(RETRY)));
            }
            let pause = async {
                match wake {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                signal = signals.recv() => if let Some(signal) = signal { self.take(signal).await },
                () = pause => {}
            }
            while self.tasks.try_join_next().is_some() {}
        }
    }

    fn grace(&self) -> Duration {
        let seconds = self.pod["metadata"]["deletionGracePeriodSeconds"]
            .as_u64()
            .or_else(|| self.pod["spec"]["terminationGracePeriodSeconds"].as_u64());
        Duration::from_secs(seconds.unwrap_or(30))
    }

    fn states(&self) -> HashMap<String, State> {
        ["initContainers", "containers"]
            .iter()
            .flat_map(|field| list(&self.pod, field))
            .filter_map(|c| c["name"].as_str())
            .map(|name| (name.to_owned(), containers::state(&self.dir, name, self.record.containers.get(name))))
            .collect()
    }

    /// One step towards what is wanted. Returns when to look again at the latest.
    async fn sync(&mut self) -> Option<Duration> {
        let over = |phase: &str| phase == "Succeeded" || phase == "Failed";
        if over(self.pod["status"]["phase"].as_str().unwrap_or_default()) && self.record.containers.is_empty() {
            return None;
        }
        let states = self.states();
        if over(phase(&self.pod, &states)) {
            return self.release().await;
        }
        let pod = Arc::clone(&self.pod);
        if let Err(why) = sandbox::create(&self.node, &self.dir, &mut self.record, &pod).await {
            let message = format!("failed to set up the pod's network: {why}");
            self.node.events.pod(&pod, Severity::Warning, "FailedCreatePodSandBox", &message).await;
            tracing::warn!(pod = %self.record.name, namespace = %self.record.namespace, %why, "network");
            self.network_problem = Some(message);
            self.network_failures += 1;
            let doubled = NETWORK_RETRY_MIN * 2_u32.pow(self.network_failures.min(8));
            return Some(doubled.min(NETWORK_RETRY_MAX));
        }
        self.network_problem = None;
        self.network_failures = 0;
        let mut wake: Option<Duration> = None;
        for container in list(&pod, "initContainers") {
            let name = container["name"].as_str().unwrap_or_default();
            if is_sidecar(container) {
                wake = soonest(wake, self.keep(&pod, container, "Always").await);
                continue;
            }
            if matches!(states.get(name), Some(State::Ended(exit)) if exit.code == 0) {
                continue;
            }
            let policy = if pod["spec"]["restartPolicy"] == "Never" { "Never" } else { "OnFailure" };
            return soonest(wake, self.keep(&pod, container, policy).await);
        }
        let policy = pod["spec"]["restartPolicy"].as_str().unwrap_or("Always");
        for container in list(&pod, "containers") {
            wake = soonest(wake, self.keep(&pod, container, policy).await);
        }
        wake
    }

    /// A pod whose containers are done needs no network any more.
    async fn release(&mut self) -> Option<Duration> {
        self.record.attachment.as_ref()?;
        match sandbox::remove(&self.node, &self.dir, &mut self.record).await {
            Ok(()) => None,
            Err(why) => {
                tracing::warn!(pod = %self.record.name, %why, "release the network");
                Some(NETWORK_RETRY_MAX)
            }
        }
    }

    /// Keeps one container as its restart policy says.
    async fn keep(&mut self, pod: &Value, container: &Value, policy: &str) -> Option<Duration> {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        match containers::state(&self.dir, &name, self.record.containers.get(&name)) {
            State::Running => {
                self.watch(container, None);
                None
            }
            State::New => self.start(pod, container).await,
            State::Ended(exit) => {
                self.unwatch(&name);
                if policy == "Never" || (policy == "OnFailure" && exit.code == 0) {
                    return None;
                }
                let record = self.record.containers.entry(name.clone()).or_default();
                let pause = (RESTART_MIN * 2_u32.pow(record.restarts.min(10))).min(RESTART_MAX);
                let since = exit.at.parse::<jiff::Timestamp>().map(|at| at.duration_until(jiff::Timestamp::now()));
                let since = since.ok().and_then(|d| Duration::try_from(d).ok()).unwrap_or(Duration::ZERO);
                if let Some(left) = pause.checked_sub(since).filter(|l| !l.is_zero()) {
                    let message = format!("back-off {} s restarting container {name}", pause.as_secs());
                    self.problems.insert(name, Problem { reason: "CrashLoopBackOff", message });
                    return Some(left);
                }
                record.last = terminated(record, &exit);
                self.start(pod, container).await
            }
        }
    }

    async fn start(&mut self, pod: &Value, container: &Value) -> Option<Duration> {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        let started = containers::start(&self.node, &self.dir, &mut self.record, pod, container).await;
        match started {
            Ok(end) => {
                self.problems.remove(&name);
                self.watch(container, Some(end));
                let events = &self.node.events;
                events.pod(pod, Severity::Normal, "Started", &format!("Started container {name}")).await;
                None
            }
            Err(problem) => {
                self.node.events.pod(pod, Severity::Warning, "Failed", &problem.message).await;
                self.problems.insert(name, problem);
                Some(START_RETRY)
            }
        }
    }

    /// Watches for a container's end, and probes it; once per start.
    fn watch(&mut self, container: &Value, end: Option<oneshot::Receiver<()>>) {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        let Some(attempt) = self.record.containers.get(&name).and_then(|r| r.attempt) else { return };
        if self.watched.get(&name).is_some_and(|(watched, _)| *watched == attempt) {
            return;
        }
        self.unwatch(&name);
        let files = self.dir.container(&name, attempt);
        let mut handles = Vec::new();
        let (signals, container_name, place) = (self.signals.clone(), name.clone(), files.clone());
        let task = self.tasks.spawn(async move {
            match end {
                Some(end) => drop(end.await),
                None => containers::ended(place).await,
            }
            let _ = signals.send(Signal::Ended { container: container_name, attempt }).await;
        });
        handles.push(Watcher { purpose: None, task });
        for purpose in Purpose::ALL {
            let address = self.record.addresses.first().copied();
            let Some(probe) = Probe::new(container, purpose, address, self.node.program(), files.clone()) else {
                continue;
            };
            let (signals, container) = (self.signals.clone(), name.clone());
            let task = self.tasks.spawn(probe.run(move |good, why| {
                // A full channel means that the worker is busy; the next failure tells it again.
                let _ = signals.try_send(Signal::Probed { container: container.clone(), attempt, purpose, good, why });
            }));
            handles.push(Watcher { purpose: Some(purpose), task });
        }
        self.watched.insert(name, (attempt, handles));
    }

    fn unwatch(&mut self, name: &str) {
        for watcher in self.watched.remove(name).into_iter().flat_map(|(_, watchers)| watchers) {
            watcher.task.abort();
        }
        self.probed.retain(|(container, _), _| container != name);
    }

    async fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Ended { container, attempt } => {
                if self.watched.get(&container).is_some_and(|(a, _)| *a == attempt) {
                    self.unwatch(&container);
                }
            }
            Signal::Probed { container, attempt, purpose, good, why } => {
                if self.watched.get(&container).is_none_or(|(a, _)| *a != attempt) {
                    return;
                }
                let started = self.started(&container);
                self.probed.insert((container.clone(), purpose), good);
                if good {
                    return;
                }
                let pod = Arc::clone(&self.pod);
                let message = format!("{} of container {container} failed: {why}", purpose.field());
                self.node.events.pod(&pod, Severity::Warning, "Unhealthy", &message).await;
                // Liveness counts once the container has started; a startup that fails ends it, too.
                let kill = purpose == Purpose::Startup || (purpose == Purpose::Liveness && started);
                if kill && !self.ending {
                    // The sender goes: this end comes neither sooner nor later.
                    let (_, deadline) = watch::channel(Instant::now() + self.grace());
                    let hook = self.hook(&container, attempt);
                    self.tasks.spawn(containers::stop(self.dir.container(&container, attempt), hook, deadline));
                }
            }
        }
    }

    fn has_probe(&self, container: &str, purpose: Purpose) -> bool {
        ["initContainers", "containers"]
            .iter()
            .flat_map(|field| list(&self.pod, field))
            .any(|c| c["name"] == container && c[purpose.field()].is_object())
    }

    fn started(&self, container: &str) -> bool {
        !self.has_probe(container, Purpose::Startup)
            || self.probed.get(&(container.to_owned(), Purpose::Startup)) == Some(&true)
    }

    fn is_ready(&self, container: &str) -> bool {
        self.started(container)
            && (!self.has_probe(container, Purpose::Readiness)
                || self.probed.get(&(container.to_owned(), Purpose::Readiness)) == Some(&true))
    }

    fn status(&mut self) -> Value {
        let states = self.states();
        self.problems.retain(|name, _| states.get(name) != Some(&State::Running));
        let facts = Facts {
            node: &self.node,
            pod: &self.pod,
            record: &self.record,
            states: &states,
            problems: &self.problems,
            ready: &|name| self.is_ready(name),
            sandbox_problem: self.network_problem.as_deref(),
            ending: self.ending,
        };
        facts.status()
    }

    /// Writes the status if it changed. Returns false if that failed.
    async fn report(&mut self) -> bool {
        if self.pod.is_null() || (self.record.sandbox.is_empty() && self.network_problem.is_none()) {
            return true;
        }
        let status = self.status();
        if status == self.reported {
            return true;
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", self.record.namespace, self.record.name);
        let patch = json!({"metadata": {"uid": self.record.uid}, "status": status});
        match self.node.client.merge(&path, &patch).await {
            Ok(_) => {
                self.reported = status;
                true
            }
            // Somebody else of this name, or nobody: there is nobody to report to.
            Err(error) if matches!(error.code(), Some(404 | 409)) => true,
            Err(error) => {
                tracing::warn!(pod = %self.record.name, %error, "report the pod's status");
                false
            }
        }
    }

    /// Stops everything, removes everything, tells the API server last. Until then readiness goes on being probed: what
    /// still serves is used as long as there is nothing better.
    async fn end(mut self, mut wanted: watch::Receiver<Wanted>, mut signals: mpsc::Receiver<Signal>, grace: Duration) {
        tracing::info!(pod = %self.record.name, namespace = %self.record.namespace, ?grace, "ends");
        self.ending = true;
        // A runner that has just started does not watch yet what a former one left running.
        let (pod, states) = (Arc::clone(&self.pod), self.states());
        for container in ["initContainers", "containers"].iter().flat_map(|field| list(&pod, field)) {
            if container["name"].as_str().and_then(|name| states.get(name)) == Some(&State::Running) {
                self.watch(container, None);
            }
        }
        for watcher in self.watched.values().flat_map(|(_, watchers)| watchers) {
            if matches!(watcher.purpose, Some(Purpose::Liveness | Purpose::Startup)) {
                watcher.task.abort();
            }
        }
        self.report().await;
        self.stop_containers(&mut wanted, &mut signals, grace).await;
        let names: Vec<String> = self.watched.keys().cloned().collect();
        names.iter().for_each(|name| self.unwatch(name));
        self.report().await;
        let mut pause = NETWORK_RETRY_MIN;
        while let Err(why) = sandbox::remove(&self.node, &self.dir, &mut self.record).await {
            let pod = Arc::clone(&self.pod);
            let message = format!("failed to remove the pod's network: {why}");
            self.node.events.pod(&pod, Severity::Warning, "FailedKillPod", &message).await;
            tracing::warn!(pod = %self.record.name, %why, "remove");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(NETWORK_RETRY_MAX);
        }
        let _ = std::fs::remove_dir_all(self.node.pod_logs(&self.record));
        while let Err(error) = self.dir.remove() {
            tracing::warn!(%error, "remove the pod's files");
            tokio::time::sleep(RETRY).await;
        }
        self.tell_gone().await;
    }

    /// What a container's specification wants done before it is told to end.
    fn hook(&self, name: &str, attempt: u32) -> impl Future<Output = ()> + Send + use<> {
        let own = ["initContainers", "containers"].iter().flat_map(|f| list(&self.pod, f)).find(|c| c["name"] == name);
        let address = self.record.addresses.first().copied();
        let files = self.dir.container(name, attempt);
        let hook = own.and_then(|container| Hook::pre_stop(container, address, self.node.program(), files));
        let (node, pod, name) = (Arc::clone(&self.node), Arc::clone(&self.pod), name.to_owned());
        async move {
            let Some(hook) = hook else { return };
            if let Err(why) = hook.run().await {
                let message = format!("PreStopHook of container {name} failed: {why}");
                node.events.pod(&pod, Severity::Warning, "FailedPreStopHook", &message).await;
            }
        }
    }

    /// The containers first, then the init containers that went on beside them.
    async fn stop_containers(
        &mut self,
        wanted: &mut watch::Receiver<Wanted>,
        signals: &mut mpsc::Receiver<Signal>,
        grace: Duration,
    ) {
        let (deadline, bound) = watch::channel(Instant::now() + grace);
        let beside: Vec<String> = list(&self.pod, "initContainers")
            .iter()
            .filter(|c| is_sidecar(c))
            .filter_map(|c| c["name"].as_str().map(str::to_owned))
            .collect();
        for last in [false, true] {
            let mut stopping = JoinSet::new();
            for (name, record) in self.record.containers.iter().filter(|(name, _)| beside.contains(name) == last) {
                if let Some(attempt) = record.attempt {
                    let hook = self.hook(name, attempt);
                    stopping.spawn(containers::stop(self.dir.container(name, attempt), hook, bound.clone()));
                }
            }
            while !stopping.is_empty() {
                tokio::select! {
                    _ = stopping.join_next() => {}
                    Ok(()) = wanted.changed() => {
                        let sooner = match wanted.borrow_and_update().clone() {
                            Wanted::Nothing => Duration::ZERO,
                            Wanted::Pod(pod) => {
                                self.pod = pod;
                                self.grace()
                            }
                        };
                        // It may only be shortened.
                        let end = Instant::now() + sooner;
                        deadline.send_if_modified(|now| {
                            let shorter = end < *now;
                            *now = end.min(*now);
                            shorter
                        });
                        continue;
                    }
                    Some(signal) = signals.recv() => self.take(signal).await,
                    else => break,
                }
                self.report().await;
            }
        }
    }

    async fn tell_gone(&self) {
        if self.pod.is_null() || self.pod["metadata"]["deletionTimestamp"].is_null() {
            return;
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}", self.record.namespace, self.record.name);
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.record.uid},
        });
        loop {
            match self.node.client.delete(&path, Some(&options)).await {
                Ok(_) => return,
                Err(error) if matches!(error.code(), Some(404 | 409)) => return,
                Err(error) => tracing::warn!(pod = %self.record.name, %error, "tell that the pod is gone"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn soonest(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
