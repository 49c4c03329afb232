//! The composition root: what is created, in which order, and what each part gets.

use super::settings::Settings;
use crate::announce::{ForeignSlices, Writers};
use crate::attach::Attachments;
use crate::cluster::{self, ApiServer};
use crate::config::Config;
use crate::kernel::PodLinks;
use crate::local::{Local, Names};
use crate::metrics::Metrics;
use crate::ports::{Cluster, Links};
use crate::reconcile::services::Gone;
use crate::resolver::{self, Unknown};
use crate::state::StateDir;
use crate::writer::{Writer, thread};
use crate::{announce, ingest, install, ipam, machine, restart, server};
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_daemon::tasks::Tasks;
use weft_datapath::sockets::{Destroyer, Protocols};
use weft_datapath::{Collector, Datapath, EventReader, ObserveSwitch, Options};
use weft_health::Health;
use weft_k8s::Client;
use weft_k8s::endpoint::style::WriteStyle;
use weft_observe::Observer;

/// Events that are kept for those who look later.
const EVENTS_KEPT: usize = 4096;
/// Events that are read at once.
const EVENTS_BATCH: usize = 256;
/// MTU of pods before the device is known; nobody can be added before it is.
const MTU_DEFAULT: u32 = 1280;
/// Time for tasks to end.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the agent until `stop`.
///
/// # Errors
/// It cannot start, or one of its tasks ended too early.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let tasks = Tasks::new(stop.clone());
    let early = tokio::select! {
        started = start(config, &tasks) => {
            // Held until the end: the tables' thread ends with its last handle.
            let _control = started?;
            tokio::select! {
                () = stop.cancelled() => None,
                early = tasks.ended_early() => Some(early),
            }
        }
        early = tasks.ended_early() => Some(early),
    };
    stop.cancel();
    if let Err(error) = tasks.join(GRACE).await {
        tracing::warn!(%error, "the agent ends all the same");
    }
    early.map_or(Ok(()), |early| Err(early.into()))
}

/// Starts everything; returns once the agent is ready, or told to stop.
async fn start(config: Config, tasks: &Tasks) -> anyhow::Result<(thread::Handle, JoinHandle<()>)> {
    let config = Arc::new(config);
    let stop = tasks.stop();

    // Alone on this node: the state directory's lock, then the maps'.
    let state =
        StateDir::open(&config.state_dir).with_context(|| format!("state-dir {}", config.state_dir.display()))?;
    let options = Options { entries_max: config.maps.entries_max(), ..Options::new(&config.bpf_dir) };
    let (datapath, adopted) =
        Datapath::open(&options).with_context(|| format!("bpf-dir {}", config.bpf_dir.display()))?;
    tracing::info!(fresh = adopted.fresh, links = adopted.links.len(), "kernel programs are loaded");
    crate::config::maps::report(&adopted);
    let hooks = datapath.hooks();
    let events = datapath.events().context("ring buffer of events")?;
    let metrics = datapath.metrics().context("counters")?;
    let (collector, flows, switch) = (datapath.collector(), datapath.flows(), datapath.observe());
    let destroyer = datapath.destroyer().context("sockets of removed backends")?;
    let links: Arc<dyn Links> = Arc::new(PodLinks::new(hooks.clone()));

    let options = weft_k8s::client::Options {
        kubeconfig: config.kubeconfig.clone(),
        user_agent: format!("weft-agent/{}", env!("CARGO_PKG_VERSION")),
    };
    let api_server = Client::server_address(&options).await.context("API server")?;

    // What a former agent left, before anybody can ask for something new.
    let deletes = state.queued_deletes().context("queue of deletes")?;
    let mut writer = Writer::new(settings(&config, api_server.into_iter().collect()), state, Box::new(datapath));
    let (tell, gone) = std::sync::mpsc::channel();
    writer.send_gone_backends(tell);
    let (service_metrics, exchanges_blocks) = (writer.service_metrics(), writer.exchanges_blocks());
    restart::take_over(&mut writer, &*links).context("take over from the former agent")?;
    let (progress, mtu) = (writer.progress(), Arc::new(AtomicU32::new(MTU_DEFAULT)));
    let (control, thread) = thread::spawn(writer).context("control thread")?;

    // The cluster.
    let client = Client::connect(&options).await.context("API server")?;
    let client_again = client.clone();
    let api: Arc<dyn Cluster> = Arc::new(ApiServer::new(client.clone()));
    let writers = Writers::start(&client, &config.node_name, WriteStyle::Coalesced, stop);
    let mode = (config.node_name.clone(), config.endpoint_propagation);
    let (foreign, foreign_slices) = tokio::sync::watch::channel(ForeignSlices::new());
    let conversion = weft_k8s::convert::Settings {
        cidr_covers: config.policy_cidr_match_mode,
        extended_protocols: config.extended_protocols,
        host_firewall: config.host_firewall,
    };
    let ready = progress.clone();
    let health = Health::new(&config.node_name, move || ready.borrow().ready).within(config.node_port_range.clone());
    let watched = (control.clone(), client.clone(), health.clone());
    tasks.spawn("ingest", ingest::run(watched, mode.clone(), conversion, writers.clone(), foreign, stop.clone()));
    tasks.spawn("health", health.clone().run(stop.clone()));
    if let Some(at) = config.healthz_bind_address {
        tasks.spawn("healthz", health.run_node(at, stop.clone()));
    }
    if let Some(at) = config.metrics_address {
        let reconcilers = Box::new(crate::reconcile::metrics::Reconcilers::new(control.clone()));
        Metrics::new(&service_metrics, Some(metrics.clone())).with(reconcilers).serve(at, tasks).await?;
    }
    let (of_policies, of_services) = (progress.clone(), progress.clone());
    tasks.spawn("policy-events", cluster::report_policies(control.clone(), client.clone(), of_policies, stop.clone()));
    tasks.spawn("service-events", cluster::report_services(control.clone(), client.clone(), of_services, stop.clone()));
    tasks.spawn("machine", machine::run(control.clone(), config.clone(), hooks, mtu.clone(), stop.clone()));
    tasks.spawn("identities", cluster::obtain_identities(control.clone(), api.clone(), stop.clone()));
    tasks.spawn("announce", announce::run(control.clone(), mode.1, writers, foreign_slices, stop.clone()));
    tasks.spawn("node", cluster::announce_node(control.clone(), client, mode, progress.clone(), stop.clone()));

    let unknown = match &config.peer() {
        Some(peer) => Some(resolver::start(peer, &control, tasks).await?),
        None => None,
    };
    if exchanges_blocks {
        tasks.spawn("ipam", ipam::run(control.clone(), client_again, config.clone(), stop.clone()));
    }

    // What the kernel sees, and its housekeeping.
    let observer = Observer::new(config.node_name.as_str(), EVENTS_KEPT, Arc::new(Names::new(control.clone())));
    tasks.spawn("events-stop", {
        let (stop, reader) = (stop.clone(), events.stop());
        async move {
            stop.cancelled().await;
            reader.stop();
        }
    });
    tasks.spawn_thread("weft-events", {
        let (observer, stop) = (observer.clone(), stop.clone());
        move || read_events(events, &observer, unknown.as_ref(), &stop)
    })?;
    tasks.spawn_thread("weft-collect", {
        let stop = stop.clone();
        move || collect(collector, &stop)
    })?;
    if config.socket_lb && config.close_removed_backends != Protocols::default() {
        tasks.spawn_thread("weft-sockets", {
            let (control, protocols) = (control.clone(), config.close_removed_backends);
            move || abort_sockets(&gone, &destroyer, &control, protocols)
        })?;
    }
    tasks.spawn("observers", follow_observers(observer.clone(), switch, stop.clone()));

    // The local API, first for those whose deletes waited.
    let attachments = Attachments::new(control.clone(), links, api, progress.clone(), mtu);
    let local = Arc::new(Local {
        writer: control.clone(),
        attachments,
        progress: progress.clone(),
        metrics,
        flows,
        observer,
        conversion,
    });
    for (path, delete) in deletes {
        match local.attachments.del(delete).await {
            Ok(()) => std::fs::remove_file(&path).with_context(|| format!("queue of deletes {}", path.display()))?,
            Err(error) => tracing::warn!(path = %path.display(), %error, "a queued delete failed; it stays queued"),
        }
    }
    let listener = server::listen(&config.socket).with_context(|| format!("socket {}", config.socket.display()))?;
    tasks.spawn("local-api", server::serve(listener, local, stop.clone()));

    // The container runtime takes the configuration for a network that is ready: it comes last.
    install::executable(&config)?;
    let mut ready = progress;
    tokio::select! {
        () = stop.cancelled() => {}
        ready = ready.wait_for(|progress| progress.ready) => {
            ready.context("control thread")?;
            install::configuration(&config)?;
            tracing::info!("ready");
            if let Err(error) = weft_sys::memory::release_after_start() {
                tracing::warn!(%error, "memory that only the start needed stays in use");
            }
        }
    }
    Ok((control, thread))
}

fn settings(config: &Config, api_server: BTreeSet<IpAddr>) -> Settings {
    Settings {
        node_name: config.node_name.clone(),
        cluster_name: config.cluster_name.clone(),
        ipv4: config.ip_families.ipv4,
        ipv6: config.ip_families.ipv6,
        tunnel: config.routing == crate::config::Routing::Vxlan,
        ipam: config.ipam(),
        pod_ranges: config.pod_cidr.clone(),
        no_masquerade: config.no_masquerade.clone(),
        host_firewall: config.host_firewall,
        audit: config.policy_audit_mode,
        api_server,
        node_ports: config.node_port_range.clone(),
        forwarding: config.node_port_mode,
        maglev_table_size: config.maglev_table_size,
        external_ips_allowed: config.external_ips_allowed.clone(),
        host_ports_reserved: config.reserved_ports(),
    }
}

/// The kernel reports allowed connections only while an observer follows.
async fn follow_observers(observer: Arc<Observer>, switch: ObserveSwitch, stop: CancellationToken) {
    let mut following = observer.following();
    loop {
        let wanted = *following.borrow_and_update() != 0;
        switch.set(wanted);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = following.changed() => if changed.is_err() { return },
        }
    }
}

fn read_events(mut events: EventReader, observer: &Observer, unknown: Option<&Unknown>, stop: &CancellationToken) {
    let mut batch = Vec::with_capacity(EVENTS_BATCH);
    while !stop.is_cancelled() {
        match events.wait(None) {
            Ok(true) => loop {
                batch.clear();
                let n = events.read(&mut batch, EVENTS_BATCH);
                // Packets wait for the resolver, nothing waits for observers.
                if let Some(unknown) = unknown {
                    unknown.report(&batch);
                }
                observer.push_all(&batch);
                if n < EVENTS_BATCH {
                    break;
                }
            },
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot wait for events");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Aborts sockets that are connected to removed backends, so that their clients connect anew.
fn abort_sockets(gone: &Receiver<Gone>, destroyer: &Destroyer, control: &thread::Handle, protocols: Protocols) {
    while let Ok(mut backends) = gone.recv() {
        // One pass over all sockets for everything that was removed meanwhile.
        backends.extend(gone.try_iter().flatten());
        let namespaces = control.snapshot().network_namespaces();
        match destroyer.destroy(&backends, protocols, &namespaces) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "aborted sockets of removed backends"),
            Err(error) => tracing::warn!(%error, "cannot abort the sockets of removed backends"),
        }
    }
}

fn collect(mut collector: Collector, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = collector.run() {
            tracing::warn!(%error, "cannot collect expired connections");
        }
        std::thread::sleep(collector.pause());
    }
}
