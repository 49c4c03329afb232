//! One node: the agent as `weft-agent` puts it together, but for the kernel, the machine and the local socket.

use crate::recorder::Recorder;
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use tokio_util::sync::CancellationToken;
use weft_agent::attach::Attachments;
use weft_agent::cluster::{self, ApiServer};
use weft_agent::ports::{Cluster, Links};
use weft_agent::state::StateDir;
use weft_agent::writer::thread::{self, Handle};
use weft_agent::writer::{Settings, Writer};
use weft_agent::{announce, ingest, restart};
use weft_health::Health;
use weft_k8s::Client;
use weft_k8s::endpoint::Propagation;
use weft_k8s::endpoint::style::WriteStyle;

/// An agent that runs.
pub struct Node {
    /// CNI.
    pub attachments: Attachments,
    /// Its tables.
    pub control: Handle,
    stop: CancellationToken,
}

/// Name of a node.
#[must_use]
pub fn name(index: usize) -> String {
    format!("node-{index}")
}

/// Its addresses.
#[must_use]
pub fn addresses(index: usize) -> [IpAddr; 2] {
    let [high, low] = u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes();
    let v6 = Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 1, u16::from_be_bytes([high, low]));
    [Ipv4Addr::new(172, 16, high, low).into(), v6.into()]
}

/// Its pod prefixes, as text.
#[must_use]
pub fn pod_cidrs(index: usize) -> [String; 2] {
    let [high, low] = u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes();
    [format!("10.{high}.{low}.0/24"), format!("fd44:0:0:{index:x}::/64")]
}

impl Node {
    /// Starts the agent of node `index`; `style`: how it writes CiliumEndpoints, in the modes that have any.
    ///
    /// # Errors
    /// It cannot begin.
    pub async fn start(
        index: usize,
        (mode, style): (Propagation, WriteStyle),
        client: Client,
        recorder: Recorder,
        dir: &Path,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let stop = stop.child_token();
        let state = StateDir::open(dir).context("state")?;
        let links: Arc<dyn Links> = Arc::new(recorder.clone());
        let mut writer = Writer::new(settings(index), state, Box::new(recorder));
        restart::take_over(&mut writer, &*links)?;
        writer.set_node_ready(None);
        let progress = writer.progress();
        let (control, _) = thread::spawn(writer).context("thread")?;
        let api: Arc<dyn Cluster> = Arc::new(ApiServer::new(client.clone()));
        let writers = announce::Writers::start(&client, &name(index), style, &stop);
        let (foreign, found) = tokio::sync::watch::channel(announce::ForeignSlices::new());
        let conversion = weft_k8s::convert::Settings::EVERYTHING;
        let own = (name(index), mode);
        let watched = (control.clone(), client.clone(), {
            let ready = progress.clone();
            Health::new(&name(index), move || ready.borrow().ready)
        });
        tokio::spawn(ingest::run(watched, own.clone(), conversion, writers.clone(), foreign, stop.clone()));
        tokio::spawn(announce::run(control.clone(), mode, writers, found, stop.clone()));
        tokio::spawn(cluster::report_policies(control.clone(), client.clone(), progress.clone(), stop.clone()));
        tokio::spawn(cluster::obtain_identities(control.clone(), api.clone(), stop.clone()));
        tokio::spawn(cluster::announce_node(control.clone(), client, own, progress.clone(), stop.clone()));
        let mtu = Arc::new(AtomicU32::new(1500));
        let attachments = Attachments::new(control.clone(), links, api, progress.clone(), mtu);
        Ok(Self { attachments, control, stop })
    }

    /// Waits until pods may come.
    ///
    /// # Errors
    /// The agent has ended.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let mut progress = self.control.call(|control| control.progress()).await?;
        progress.wait_for(|progress| progress.ready).await?;
        Ok(())
    }

    /// As if the machine were switched off.
    pub fn lose(&self) {
        self.stop.cancel();
    }
}

fn settings(index: usize) -> Settings {
    Settings {
        node_name: name(index),
        cluster_name: "default".to_owned(),
        ipv4: true,
        ipv6: true,
        tunnel: false,
        no_masquerade: Vec::new(),
        host_firewall: true,
        audit: false,
        api_server: BTreeSet::new(),
        node_ports: 30000..=32767,
        forwarding: weft_model::intent::Forwarding::Snat,
        maglev_table_size: 16_381,
        external_ips_allowed: Vec::new(),
        host_ports_reserved: Vec::new(),
        ipam: weft_agent::writer::ipam::Ipam::default(),
        pod_ranges: Vec::new(),
    }
}
