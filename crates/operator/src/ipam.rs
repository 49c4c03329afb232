//! Pod CIDRs: every node gets one of each family, once. What a node has is never changed.

use crate::config::Config;
use crate::nodes::{Event, Row};
use anyhow::Context;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use weft_ipam::ClusterPool;
use weft_k8s::event::{About, warn};
use weft_k8s::{Client, Error, node};

/// Component in events.
pub(crate) const COMPONENT: &str = "weft-operator";
/// How often a node without CIDRs is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The pools of the configuration, all free.
///
/// # Errors
/// When they make no sense.
pub fn pool(config: &Config) -> anyhow::Result<ClusterPool> {
    ClusterPool::new(&config.pod_cidr, config.node_mask_v4, config.node_mask_v6).context("pod-cidr")
}

struct Ipam<'a> {
    client: &'a Client,
    pool: ClusterPool,
    families: usize,
    /// Nodes that need CIDRs, and the last problem that was told about each.
    waiting: BTreeMap<String, (Row, Option<String>)>,
}

/// Assigns CIDRs to nodes as they come, until the events end.
pub(crate) async fn run(config: &Config, client: &Client, mut events: mpsc::Receiver<Vec<Event>>) {
    let pool = match pool(config) {
        Ok(pool) => pool,
        Err(error) => return tracing::error!(error = format!("{error:#}"), "no pod CIDRs are given"),
    };
    let families = [true, false].iter().filter(|v4| config.pod_cidr.iter().any(|net| net.addr().is_ipv4() == **v4));
    let mut ipam = Ipam { client, pool, families: families.count(), waiting: BTreeMap::new() };
    let mut synced = false;
    loop {
        // Nothing is given before all that was given is known.
        let idle = !synced || ipam.waiting.is_empty();
        let batch = if idle {
            events.recv().await
        } else {
            tokio::time::timeout(RETRY, events.recv()).await.unwrap_or_else(|_| Some(Vec::new()))
        };
        let Some(batch) = batch else { return };
        for event in batch {
            match event {
                Event::Applied(row) => ipam.here(row).await,
                Event::Deleted(name) => {
                    ipam.pool.release(&name);
                    ipam.waiting.remove(&name);
                }
                Event::Synced => synced = true,
            }
        }
        if synced {
            ipam.serve().await;
        }
    }
}

impl Ipam<'_> {
    /// Notes what a node has.
    async fn here(&mut self, row: Row) {
        if row.pod_cidrs.is_empty() {
            let told = self.waiting.remove(&row.name).and_then(|(_, told)| told);
            self.waiting.insert(row.name.clone(), (row, told));
            return;
        }
        self.waiting.remove(&row.name);
        let mut problems = Vec::new();
        for text in &row.pod_cidrs {
            match text.parse::<IpNet>() {
                Ok(cidr) => problems.extend(self.pool.restore(&row.name, cidr).err().map(|error| error.to_string())),
                Err(_) => problems.push(format!("spec.podCIDRs: {text:?} is no prefix")),
            }
        }
        if row.pod_cidrs.len() < self.families {
            problems.push(format!(
                "spec.podCIDRs: {} only, which cannot be changed any more: delete the Node and let it register again, with one of each family",
                row.pod_cidrs.join(", ")
            ));
        }
        for problem in problems {
            self.tell(&row, "PodCIDRProblem", &problem).await;
        }
    }

    /// Tries all that wait.
    async fn serve(&mut self) {
        for name in self.waiting.keys().cloned().collect::<Vec<_>>() {
            let Some((row, told)) = self.waiting.remove(&name) else { continue };
            let (reason, problem) = match self.pool.assign(&name) {
                Err(error) => ("PodCIDRsExhausted", error.to_string()),
                Ok(cidrs) => match self.give(&row, &cidrs).await {
                    Ok(()) => continue,
                    Err(error) => ("PodCIDRNotWritten", error.to_string()),
                },
            };
            if told.as_ref() != Some(&problem) {
                self.tell(&row, reason, &problem).await;
            }
            self.waiting.insert(name, (row, Some(problem)));
        }
    }

    /// Writes CIDRs into a Node that has none; if somebody else was faster, theirs count.
    async fn give(&mut self, row: &Row, cidrs: &[IpNet]) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            let Some(now) = node::read(self.client, &row.name).await? else {
                self.pool.release(&row.name);
                return Ok(());
            };
            if now.uid != row.uid {
                // A successor of the same name: its own events are on their way.
                return Ok(());
            }
            if !now.pod_cidrs.is_empty() {
                self.pool.release(&row.name);
                for cidr in now.pod_cidrs.iter().filter_map(|text| text.parse().ok()) {
                    if let Err(error) = self.pool.restore(&row.name, cidr) {
                        self.tell(row, "PodCIDRProblem", &error.to_string()).await;
                    }
                }
                return Ok(());
            }
            match node::assign_pod_cidrs(self.client, &row.name, &now.resource_version, cidrs).await {
                Ok(()) => {
                    tracing::info!(node = row.name, ?cidrs, "pod CIDRs given");
                    return Ok(());
                }
                Err(error) if error.is_conflict() && tries < 8 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn tell(&self, row: &Row, reason: &str, problem: &str) {
        tracing::warn!(node = row.name, problem, "{reason}");
        let about = About {
            kind: "Node",
            api_version: "v1",
            namespace: String::new(),
            name: row.name.clone(),
            uid: row.uid.clone(),
        };
        if let Err(error) = warn(self.client, &about, reason, problem, COMPONENT).await {
            tracing::warn!(%error, "cannot write an event");
        }
    }
}
