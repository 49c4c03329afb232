//! What the operator counts, under the names that dashboards know, and where it is read: `/metrics` and `/healthz`.

use crate::config::Config;
use anyhow::Context;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use tokio::net::TcpListener;
use weft_daemon::http::{self, Limits, OPEN_METRICS, StatusCode, TEXT};
use weft_daemon::tasks::Tasks;

type Labels = Vec<(&'static str, &'static str)>;

/// The metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// 1 while this operator leads.
    pub leading: Gauge,
    /// Endpoints in a slice, when it is written.
    pub endpoints_per_slice: Histogram,
    /// Changes of endpoints in a slice between two writes.
    pub changes_per_slice: Family<Labels, Histogram, fn() -> Histogram>,
    /// Writes of slices.
    pub slice_writes: Family<Labels, Counter>,
    /// How long a change waited until its slice was written.
    pub queueing_delay: Family<Labels, Histogram, fn() -> Histogram>,
    /// Identities: alive, and deleted in the last round.
    pub identities: Family<Labels, Gauge>,
    /// Rounds of the identities' housekeeping.
    pub identity_rounds: Family<Labels, Gauge>,
    /// How long the last round took, in seconds.
    pub identity_latency: Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    /// CiliumEndpoints without a pod.
    pub endpoints_collected: Family<Labels, Counter>,
    /// Slices and CiliumNodes of nodes that are gone.
    pub collected: Family<Labels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let sizes = || Histogram::new([1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        let delays = || Histogram::new(exponential_buckets(0.01, 2.0, 14));
        let mut registry = Registry::with_prefix("cilium_operator");
        let metrics = Self {
            registry: Arc::default(),
            leading: Gauge::default(),
            endpoints_per_slice: sizes(),
            changes_per_slice: Family::new_with_constructor(sizes as fn() -> Histogram),
            slice_writes: Family::default(),
            queueing_delay: Family::new_with_constructor(delays as fn() -> Histogram),
            identities: Family::default(),
            identity_rounds: Family::default(),
            identity_latency: Family::default(),
            endpoints_collected: Family::default(),
            collected: Family::default(),
        };
        let all = &metrics;
        registry.register("leading", "1 while this operator leads", all.leading.clone());
        registry.register("number_of_ceps_per_ces", "Endpoints in a written slice", all.endpoints_per_slice.clone());
        registry.register(
            "number_of_cep_changes_per_ces",
            "Changes of endpoints between two writes of a slice",
            all.changes_per_slice.clone(),
        );
        registry.register("ces_sync", "Writes of slices", all.slice_writes.clone());
        registry.register(
            "ces_queueing_delay_seconds",
            "Time from a change of an endpoint to the write of its slice",
            all.queueing_delay.clone(),
        );
        registry.register("identity_gc_entries", "Identities after the last round", all.identities.clone());
        registry.register("identity_gc_runs", "Rounds over the identities", all.identity_rounds.clone());
        registry.register("identity_gc_latency", "Duration of the last round, seconds", all.identity_latency.clone());
        registry.register("endpoint_gc_objects", "CiliumEndpoints without a pod", all.endpoints_collected.clone());
        registry.register("node_gc_objects", "What was deleted of nodes that are gone", all.collected.clone());
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// All of it, as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Serves until the process stops, if an address is configured.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(config: &Config, metrics: &Metrics, tasks: &Tasks) -> anyhow::Result<()> {
    let Some(address) = config.metrics_address else { return Ok(()) };
    let listener = TcpListener::bind(address).await.with_context(|| format!("metrics-address {address}"))?;
    let metrics = metrics.clone();
    let answer = move |path: &str| match path {
        "/metrics" => Some(http::response(StatusCode::OK, OPEN_METRICS, metrics.text())),
        "/healthz" | "/livez" | "/readyz" => Some(http::response(StatusCode::OK, TEXT, "ok\n".to_owned())),
        _ => None,
    };
    tasks.spawn("metrics", http::serve(listener, Limits::default(), answer, tasks.stop().clone()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Metrics, serve};
    use crate::config::Config;
    use std::net::{SocketAddr, TcpListener};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_util::sync::CancellationToken;
    use weft_daemon::tasks::Tasks;

    async fn get(at: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(at).await.expect("connect");
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("send");
        let mut text = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await;
        read.expect("answered in time").expect("an answer");
        text
    }

    #[tokio::test]
    async fn both_families_serve_metrics_and_health_whoever_keeps_silent() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let free = TcpListener::bind(address).expect("a port");
            let at = free.local_addr().expect("bound");
            drop(free);
            let at_text = at.to_string();
            let args = ["weft-operator", "--metrics-address", at_text.as_str()].map(Into::into);
            let (config, metrics) = (weft_settings::from_args::<Config>(args).expect("valid"), Metrics::new());
            metrics.leading.set(1);
            let tasks = Tasks::new(CancellationToken::new());
            serve(&config, &metrics, &tasks).await.expect("serves");
            let mut silent = Vec::new();
            for _ in 0..300 {
                silent.push(TcpStream::connect(at).await.expect("connect"));
            }
            let text = get(at, "/metrics").await;
            assert!(text.starts_with("HTTP/1.1 200") && text.contains("cilium_operator_leading 1"), "{text}");
            assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 200"));
            assert!(get(at, "/other").await.starts_with("HTTP/1.1 404"));
            tasks.stop().cancel();
            tasks.join(Duration::from_secs(10)).await.expect("ends");
        }
    }
}
