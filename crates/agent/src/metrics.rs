//! What the agent counts, under the names that dashboards know: read at `--metrics-address`, path `/metrics`.

use anyhow::Context as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use weft_abi::DropReason;
use weft_daemon::http::{self, Limits, OPEN_METRICS, StatusCode};
use weft_daemon::tasks::Tasks;
use weft_datapath::Metrics as Kernel;

type Labels = [(&'static str, &'static str); 1];

/// Of Services. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Services {
    /// Changes in force, by action: `add`, `update`, `delete`.
    pub events: Family<Labels, Counter>,
    /// Seconds from receiving a change until it is in force.
    pub delay: Family<Labels, Histogram, fn() -> Histogram>,
    /// Endpoints that began to terminate.
    pub terminating: Counter,
}

impl Default for Services {
    fn default() -> Self {
        let delays = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        Self {
            events: Family::default(),
            delay: Family::new_with_constructor(delays as fn() -> Histogram),
            terminating: Counter::default(),
        }
    }
}

/// The kernel's own counters, read at each scrape.
#[derive(Debug)]
struct Packets(Kernel);

impl Collector for Packets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // If they cannot be read, the other metrics are served all the same.
        let Ok(counters) = self.0.read() else { return Ok(()) };
        let direction_of = |egress: bool| if egress { "EGRESS" } else { "INGRESS" };
        let passed = |reason: u8| reason == 0;
        let dropped = |reason: u8| DropReason::from_raw(reason).is_some();
        let mut family = |name: &str, help: &str, drops: bool, bytes: bool| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            let wanted = counters.iter().filter(|one| if drops { dropped(one.reason) } else { passed(one.reason) });
            for counter in wanted {
                let value = ConstCounter::new(if bytes { counter.bytes } else { counter.packets });
                let direction = ("direction", direction_of(counter.egress));
                match DropReason::from_raw(counter.reason).filter(|_| drops) {
                    Some(reason) => value.encode(metric.encode_family(&[("reason", reason.name()), direction])?)?,
                    None => value.encode(metric.encode_family(&[direction])?)?,
                }
            }
            Ok::<(), std::fmt::Error>(())
        };
        family("drop_count", "Packets that were dropped", true, false)?;
        family("drop_bytes", "Bytes that were dropped", true, true)?;
        family("forward_count", "Packets that were forwarded", false, false)?;
        family("forward_bytes", "Bytes that were forwarded", false, true)?;
        Ok(())
    }
}

/// All of them as text.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    /// Of these parts.
    #[must_use]
    pub fn new(services: &Services, kernel: Option<Kernel>) -> Self {
        let mut registry = Registry::with_prefix("cilium");
        registry.register("services_events", "Changes of Services that are in force", services.events.clone());
        registry.register(
            "service_implementation_delay",
            "Seconds from receiving a change of a Service or its endpoints until it is in force",
            services.delay.clone(),
        );
        registry.register(
            "k8s_terminating_endpoints_events",
            "Endpoints of Services that began to terminate",
            services.terminating.clone(),
        );
        if let Some(kernel) = kernel {
            registry.register_collector(Box::new(Packets(kernel)));
        }
        Self(registry)
    }

    /// And these.
    #[must_use]
    pub fn with(mut self, collector: Box<dyn Collector>) -> Self {
        self.0.register_collector(collector);
        self
    }

    /// As it is now.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.0);
        text
    }

    /// Serves until the process stops.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn serve(self, at: SocketAddr, tasks: &Tasks) -> anyhow::Result<()> {
        let listener = TcpListener::bind(at).await.with_context(|| format!("metrics-address {at}"))?;
        let metrics = Arc::new(self);
        let answer = move |path: &str| {
            (path == "/metrics").then(|| http::response(StatusCode::OK, OPEN_METRICS, metrics.text()))
        };
        tasks.spawn("metrics", http::serve(listener, Limits::default(), answer, tasks.stop().clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Metrics, Services};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::CancellationToken;
    use weft_daemon::tasks::Tasks;

    #[tokio::test]
    async fn readers_find_them_under_the_names_that_they_know() {
        let services = Services::default();
        services.events.get_or_create(&[("action", "add")]).inc_by(3);
        services.delay.get_or_create(&[("action", "add")]).observe(0.002);
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let at: SocketAddr = free.local_addr().expect("its address");
        drop(free);
        let stop = CancellationToken::new();
        Metrics::new(&services, None).serve(at, &Tasks::new(stop.clone())).await.expect("serves");
        for (path, status) in [("/metrics", "200 OK"), ("/", "404 Not Found")] {
            let mut stream = tokio::net::TcpStream::connect(at).await.expect("connect");
            stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await.expect("ask");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("an answer");
            assert!(text.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{text}");
            if path == "/metrics" {
                for line in [
                    "cilium_services_events_total{action=\"add\"} 3",
                    "cilium_service_implementation_delay_count{action=\"add\"} 1",
                    "cilium_k8s_terminating_endpoints_events_total 0",
                    "Content-Type: application/openmetrics-text",
                ] {
                    assert!(text.contains(line), "{line}: {text}");
                }
            }
        }
        stop.cancel();
    }
}
