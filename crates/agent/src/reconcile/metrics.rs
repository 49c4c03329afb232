//! How far each reconciler is, for those who read metrics. Read from the published snapshot when they are asked for.

use crate::writer::thread::Handle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// See the module.
pub struct Reconcilers(Handle);

impl Reconcilers {
    /// Of this writer.
    #[must_use]
    pub fn new(writer: Handle) -> Self {
        Self(writer)
    }
}

impl std::fmt::Debug for Reconcilers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reconcilers")
    }
}

/// Name, help, and what is read of a reconciler's progress.
type Gauge = (&'static str, &'static str, fn(&weft_model::reconcile::Progress) -> u64);

impl Collector for Reconcilers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let snapshot = self.0.snapshot();
        let gauges: [Gauge; 2] = [
            ("reconciler_failed_rows", "Rows whose last write failed and is to be tried again", |it| it.failed as u64),
            ("reconciler_revision_in_force", "Newest revision of the tables that is in the kernel", |it| it.in_force.0),
        ];
        for (name, help, value) in gauges {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (reconciler, progress) in &snapshot.reconcilers {
                let gauge = ConstGauge::new(i64::try_from(value(progress)).unwrap_or(i64::MAX));
                gauge.encode(metric.encode_family(&[("reconciler", *reconciler)])?)?;
            }
        }
        Ok(())
    }
}
