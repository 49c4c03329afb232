//! What comes out of a run.

use crate::options::Run;
use crate::wire::Meter;
use serde::{Deserialize, Serialize};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Of many durations, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// Half are below.
    pub p50_ms: f64,
    /// All but one in a hundred are below.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Spread {
    /// Of these.
    #[must_use]
    pub fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |part: f64| {
            let index = ((all.len() as f64 * part).ceil() as usize).clamp(1, all.len().max(1)) - 1;
            all.get(index).map_or(0.0, |duration| duration.as_secs_f64() * 1000.0)
        };
        Self { count: all.len(), p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

/// What went to the API server about one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// Who asked: `agent`, `operator`, `kubelet`.
    pub who: String,
    /// Verb.
    pub verb: String,
    /// Kind.
    pub kind: String,
    /// Requests.
    pub requests: u64,
    /// Of these refused.
    pub refused: u64,
    /// Bytes of bodies sent.
    pub sent_bytes: u64,
    /// Bytes of bodies received.
    pub received_bytes: u64,
    /// Events of watches.
    pub events: u64,
    /// How long answers took.
    pub latency: Spread,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Endpoint propagation.
    pub mode: String,
    /// What was simulated.
    pub options: Run,
    /// Under which conditions, in words.
    pub conditions: Vec<String>,
    /// Requests while pods came and went.
    pub api: Vec<Asked>,
    /// Answers to kubelets: the same requests in every mode.
    pub api_latency: Spread,
    /// From the CNI call to the pod's own policy in force.
    pub pod_start: Spread,
    /// From the CNI call to the last agent that knows the address. Pods that some agent did not know at the end are in
    /// it with how long they had waited by then.
    pub propagation: Spread,
    /// Pods that some agent did not know at the end.
    pub unknown_at_end: usize,
    /// Pods that went before everybody knew them, or while the number of agents changed: not in `propagation`.
    pub not_measured: usize,
    /// How often an agent took the address of a living pod for nobody's. More than none is a fault.
    pub holes: usize,
    /// Bodies of all requests of agents and operator, for one pod that was started.
    pub api_bytes_per_pod: f64,
    /// Watch events that agents received, for one pod that was started.
    pub events_per_pod: f64,
    /// Writes of agents and operator, for one pod that was started.
    pub writes_per_pod: f64,
    /// CPUs in use, on average, while pods came and went.
    pub cpus: f64,
    /// How late timers were meanwhile: what everything that has to be done had to wait for its turn.
    pub lag: Spread,
    /// The highest of the rates tried afterwards that was kept up with: pods known to all in time.
    pub rates_kept: Option<f64>,
    /// The first that was not.
    pub rate_lost: Option<f64>,
    /// How long the roll-outs took, from the first to the last; longer than planned means overload.
    pub churn_seconds: f64,
    /// How long it took to bring the first pods up.
    pub fill_seconds: f64,
    /// Resident memory of the process that came with the agents and all pods, by agent: both ends of its connection and
    /// its share of the API server included.
    pub memory_per_agent_kib: f64,
    /// What did not work.
    pub failures: usize,
    /// The first of them.
    pub first_failures: Vec<String>,
}

/// What was counted, and the latency that kubelets saw.
#[must_use]
pub fn asked(meter: &Meter) -> (Vec<Asked>, Spread) {
    let (mut all, mut kubelets) = (Vec::new(), Vec::new());
    for ((who, verb, kind), count) in meter.counts() {
        let latency = count.latency.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let number = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
        let (requests, events) = (number(&count.requests), number(&count.events));
        if requests == 0 && events == 0 {
            continue;
        }
        if who == "kubelet" && kind == "pods" {
            kubelets.extend(latency.iter().copied());
        }
        all.push(Asked {
            who: who.to_owned(),
            verb: verb.to_owned(),
            kind,
            requests,
            refused: number(&count.refused),
            sent_bytes: number(&count.sent),
            received_bytes: number(&count.received),
            events,
            latency: Spread::of(latency),
        });
    }
    (all, Spread::of(kubelets))
}

impl Report {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let spread = |name: &str, spread: &Spread| {
            let Spread { count, p50_ms, p99_ms, max_ms } = spread;
            format!("{name:<14} p50 {p50_ms:>9.1} ms   p99 {p99_ms:>9.1} ms   max {max_ms:>9.1} ms   ({count})\n")
        };
        let mut text = format!(
            "{}: {} nodes, {} pods, {} pods/s for {} s\n",
            self.mode, self.options.nodes, self.options.pods, self.options.rate, self.options.seconds
        );
        text += &spread("API latency", &self.api_latency);
        text += &spread("pod start", &self.pod_start);
        text += &spread("propagation", &self.propagation);
        text += &spread("late timers", &self.lag);
        text += &format!(
            "{:.1} KiB of API bodies, {:.0} watch events, {:.2} writes per pod; {:.0} KiB of memory per agent; {:.2} CPUs; \
             churn took {:.1} s; {} pods unknown to somebody at the end, {} not measured, {} holes, {} failures\n",
            self.api_bytes_per_pod / 1024.0,
            self.events_per_pod,
            self.writes_per_pod,
            self.memory_per_agent_kib,
            self.cpus,
            self.churn_seconds,
            self.unknown_at_end,
            self.not_measured,
            self.holes,
            self.failures,
        );
        for failure in &self.first_failures {
            text += &format!("  failed: {failure}\n");
        }
        for row in &self.api {
            text += &format!(
                "  {:<9} {:<7} {:<22} {:>8} requests ({} refused) {:>10} KiB out {:>10} KiB in {:>9} events  p99 {:.1} ms\n",
                row.who,
                row.verb,
                row.kind,
                row.requests,
                row.refused,
                row.sent_bytes / 1024,
                row.received_bytes / 1024,
                row.events,
                row.latency.p99_ms,
            );
        }
        text
    }
}
