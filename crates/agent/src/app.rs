//! The composition root: what is made, in which order, and who is given what.

use crate::attach::Attachments;
use crate::cluster::{self, ApiServer};
use crate::config::Config;
use crate::core::services::Gone;
use crate::core::thread;
use crate::core::{Core, Settings};
use crate::health::Health;
use crate::kernel::PodLinks;
use crate::local::{Local, Names};
use crate::metrics::Metrics;
use crate::peer::{self, Unknown};
use crate::ports::{Cluster, Links};
use crate::state::StateDir;
use crate::{install, ipam, machine, propagation, restart, server};
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_datapath::sockets::{Destroyer, Protocols};
use weft_datapath::{Collector, Datapath, EventReader, ObserveSwitch, Options};
use weft_k8s::Client;
use weft_k8s::endpoint::manner::Manner;
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
/// What keeps it from running at all.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let tasks = TaskTracker::new();

    // Alone on this node: the state directory's lock, then the maps'.
    let state =
        StateDir::open(&config.state_dir).with_context(|| format!("state-dir {}", config.state_dir.display()))?;
    let (datapath, adopted) = Datapath::open(&Options::new(&config.bpf_dir))
        .with_context(|| format!("bpf-dir {}", config.bpf_dir.display()))?;
    tracing::info!(fresh = adopted.fresh, links = adopted.links.len(), "kernel programs are loaded");
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
    let mut core = Core::new(settings(&config, api_server.into_iter().collect()), state, Box::new(datapath));
    let (tell, gone) = std::sync::mpsc::channel();
    core.tell_of_gone_backends(tell);
    restart::take_over(&mut core, &*links).context("take over from the former agent")?;
    let (progress, mtu) = (core.progress(), Arc::new(AtomicU32::new(MTU_DEFAULT)));
    let (core, control) = thread::spawn(core).context("control thread")?;

    // The cluster.
    let client = Client::connect(&options).await.context("API server")?;
    let client_again = client.clone();
    let api: Arc<dyn Cluster> = Arc::new(ApiServer::new(client.clone()));
    let writers = propagation::Writers::start(&client, &config.node_name, Manner::Sparing, &stop);
    let mode = (config.node_name.clone(), config.endpoint_propagation);
    let (elsewhere, found_elsewhere) = tokio::sync::watch::channel(propagation::Elsewhere::new());
    let conversion = weft_k8s::convert::Settings {
        cidr_covers: config.cidr_covers,
        extended_protocols: config.extended_protocols,
        host_firewall: config.host_firewall,
    };
    let health = Health::new(&config.node_name, progress.clone());
    let watched = (core.clone(), client.clone(), health.clone());
    tasks.spawn(propagation::watch(watched, mode.clone(), conversion, writers.clone(), elsewhere, stop.clone()));
    tasks.spawn(health.clone().run(stop.clone()));
    if let Some(at) = config.healthz_bind_address {
        tasks.spawn(health.run_node(at, stop.clone()));
    }
    if let Some(at) = config.metrics_address {
        let services = core.look(Core::service_metrics);
        Metrics::new(&services, Some(metrics.clone())).serve(at, stop.clone()).await?;
    }
    tasks.spawn(cluster::report_policies(core.clone(), client.clone(), progress.clone(), stop.clone()));
    tasks.spawn(cluster::report_services(core.clone(), client.clone(), progress.clone(), stop.clone()));
    tasks.spawn(machine::run(core.clone(), config.clone(), hooks, mtu.clone(), stop.clone()));
    tasks.spawn(cluster::number_labels(core.clone(), api.clone(), stop.clone()));
    tasks.spawn(propagation::announce(core.clone(), mode.1, writers, found_elsewhere, stop.clone()));
    tasks.spawn(cluster::announce_node(core.clone(), client, mode, progress.clone(), stop.clone()));

    let unknown = match &config.peer {
        Some(peer) => Some(peer::start(peer, &core, &tasks, &stop).await?),
        None => None,
    };
    tasks.spawn(ipam::run(core.clone(), client_again, config.clone(), stop.clone()));

    // What the kernel sees, and its housekeeping.
    let observer = Observer::new(config.node_name.as_str(), EVENTS_KEPT, Arc::new(Names::new(core.clone())));
    tasks.spawn({
        let (stop, reader) = (stop.clone(), events.stop());
        async move {
            stop.cancelled().await;
            reader.stop();
        }
    });
    std::thread::Builder::new().name("weft-events".into()).spawn({
        let (observer, stop) = (observer.clone(), stop.clone());
        move || read_events(events, &observer, unknown.as_ref(), &stop)
    })?;
    std::thread::Builder::new().name("weft-collect".into()).spawn({
        let stop = stop.clone();
        move || collect(collector, &stop)
    })?;
    if config.socket_lb && config.close_removed_backends != Protocols::default() {
        std::thread::Builder::new().name("weft-sockets".into()).spawn({
            let (core, protocols) = (core.clone(), config.close_removed_backends);
            move || abort_sockets(&gone, &destroyer, &core, protocols)
        })?;
    }
    tasks.spawn(follow_observers(observer.clone(), switch, stop.clone()));

    // The local API, first for those whose deletes waited.
    let attachments = Attachments::new(core.clone(), links, api, progress.clone(), mtu);
    let local = Arc::new(Local {
        core: core.clone(),
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
    tasks.spawn(server::serve(listener, local, stop.clone()));

    // Who asks the file system finds the network when it is ready, not before.
    install::executable(&config)?;
    let mut ready = progress;
    tokio::select! {
        () = stop.cancelled() => {}
        ready = ready.wait_for(|progress| progress.ready) => {
            ready.context("control thread")?;
            install::configuration(&config)?;
            tracing::info!("ready");
        }
    }
    stop.cancelled().await;
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    drop((core, control));
    Ok(())
}

fn settings(config: &Config, api_server: BTreeSet<IpAddr>) -> Settings {
    Settings {
        node_name: config.node_name.clone(),
        cluster_name: config.cluster_name.clone(),
        ipv4: config.ipv4,
        ipv6: config.ipv6,
        tunnel: config.routing == crate::config::Routing::Vxlan,
        ipam: config.ipam,
        pod_ranges: config.pod_ranges.clone(),
        no_masquerade: config.no_masquerade.clone(),
        host_firewall: config.host_firewall,
        audit: config.policy_audit_mode,
        api_server,
        node_ports: config.node_ports.clone(),
        forwarding: config.node_port_mode,
        maglev_table_size: config.maglev_table_size,
    }
}

/// The kernel reports allowed connections only while somebody wants to see them.
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
                // First who waits for the answer, then who looks.
                if let Some(unknown) = unknown {
                    unknown.hear(&batch);
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

/// Who was led to a backend learns that it is gone.
fn abort_sockets(gone: &Receiver<Gone>, destroyer: &Destroyer, core: &thread::Handle, protocols: Protocols) {
    while let Ok(mut backends) = gone.recv() {
        // What has come meanwhile is looked for at once.
        backends.extend(gone.try_iter().flatten());
        let namespaces = core.look(Core::network_namespaces);
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
