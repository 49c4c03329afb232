//! What the operator counts, under the names that dashboards know, and where it is read: `/metrics` and `/healthz`.

use crate::config::Config;
use anyhow::Context;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

type Labels = Vec<(&'static str, &'static str)>;

/// Readers at once.
const CONNECTIONS_MAX: usize = 16;
/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Serves until `stop`, if an address is configured.
///
/// # Errors
/// The address cannot be taken.
pub async fn serve(config: &Config, metrics: &Metrics, stop: &CancellationToken) -> anyhow::Result<()> {
    let Some(address) = config.metrics_address else { return Ok(()) };
    let listener = TcpListener::bind(address).await.with_context(|| format!("metrics-address {address}"))?;
    let (metrics, stop) = (metrics.clone(), stop.clone());
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (metrics, stop) = (metrics.clone(), stop.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(&metrics, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
                tokio::select! {
                    _ = builder.serve_connection(TokioIo::new(stream), service) => {}
                    () = stop.cancelled() => {}
                }
                drop(permit);
            });
        }
    });
    Ok(())
}

fn answer(metrics: &Metrics, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (code, kind, text) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.text()),
        "/healthz" | "/livez" | "/readyz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "expected /metrics or /healthz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
