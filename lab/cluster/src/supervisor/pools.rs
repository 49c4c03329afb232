//! The first shared pool of a multi-pool cluster, so that pods get addresses before anybody makes another.

use serde_json::{Value, json};
use std::time::Duration;
use weft_lab_client::{Client, ClientError};
use weft_lab_config::options::Config;

const COLLECTION: &str = "/apis/cilium.io/v2alpha1/ciliumpodippools";
/// Length of what nodes get of it at once: 32 addresses.
const MASK_V4: u8 = 27;
/// As many.
const MASK_V6: u8 = 123;

/// Makes the pool `default`; one that is there stays. Tries until the server takes it.
pub(super) async fn make_default(client: &Client, config: &Config) {
    while let Err(error) = create(client, config).await {
        tracing::warn!(%error, "the default pool");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn create(client: &Client, config: &Config) -> Result<(), ClientError> {
    let family = |v4: bool| -> Vec<String> {
        config.pod_cidrs.iter().filter(|net| net.addr().is_ipv4() == v4).map(ToString::to_string).collect()
    };
    let mut spec = json!({});
    for (name, cidrs, mask) in [("ipv4", family(true), MASK_V4), ("ipv6", family(false), MASK_V6)] {
        if !cidrs.is_empty() {
            spec[name] = json!({"cidrs": cidrs, "maskSize": mask});
        }
    }
    let pool: Value = json!({
        "apiVersion": "cilium.io/v2alpha1",
        "kind": "CiliumPodIPPool",
        "metadata": {"name": "default"},
        "spec": spec,
    });
    match client.create(COLLECTION, &pool).await {
        Err(error) if error.code() == Some(409) => Ok(()),
        other => other.map(drop),
    }
}
