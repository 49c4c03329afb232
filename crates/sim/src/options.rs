//! What is simulated.

use clap::Args;
use serde::{Deserialize, Serialize};

/// One run.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[group(id = "simulation")]
pub struct Run {
    /// Nodes, each with an agent.
    #[arg(long, default_value_t = 50)]
    pub nodes: usize,
    /// Pods that run when the churn begins.
    #[arg(long, default_value_t = 1000)]
    pub pods: usize,
    /// Deployments; each has labels, and so an identity, of its own.
    #[arg(long, default_value_t = 250)]
    pub deployments: usize,
    /// Namespaces.
    #[arg(long, default_value_t = 10)]
    pub namespaces: usize,
    /// Deployments with a policy that lets another one in.
    #[arg(long, default_value_t = 100)]
    pub policies: usize,
    /// Pods that roll-outs replace in a second: one comes, then another goes.
    #[arg(long, default_value_t = 30.0)]
    pub rate: f64,
    /// Seconds of the same churn before anything is counted: what comes some time after a pod's start or end is there too.
    #[arg(long, default_value_t = 30.0)]
    pub warm_up: f64,
    /// Seconds of churn.
    #[arg(long, default_value_t = 30.0)]
    pub seconds: f64,
    /// Percent of the pods that are scaled away at once, whole deployments of them, after half the time.
    #[arg(long, default_value_t = 2.0)]
    pub scale_to_zero: f64,
    /// Nodes that are lost after three quarters of the time.
    #[arg(long, default_value_t = 1)]
    pub lost_nodes: usize,
    /// Seconds to wait for stragglers after the churn.
    #[arg(long, default_value_t = 60.0)]
    pub drain: f64,
    /// Rates that are tried afterwards, one after the other, until pods are not known to all in time.
    #[arg(long, value_delimiter = ',')]
    pub rates: Vec<f64>,
    /// Seed of all that is random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}
