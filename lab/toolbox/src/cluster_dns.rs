//! Cluster DNS: the names of services and pods, from the API's Services and EndpointSlices. It runs as pods, as any
//! other server does, and answers only once it has seen everything.

mod forward;
mod message;
mod server;
mod tables;
#[cfg(test)]
mod tests;
mod zone;

use clap::Parser;
use ipnet::IpNet;
use serde_json::Value;
use server::Server;
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use tables::{ObjectName, Service, Slice, Tables, object_name};
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use weft_lab_client::Client;
use weft_lab_client::follow::{Change, follow};
use weft_lab_client::kubeconfig::Access;
use zone::Zone;

/// The image that runs it.
pub const IMAGE: &str = "weft/dns";
/// How long it goes on when told to end.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(1);
/// Port of its pods.
pub const PORT: u16 = 53;

/// Names of services and pods
#[derive(Debug, Parser)]
#[command(name = "weft internal cluster-dns", no_binary_name = true)]
struct Arguments {
    /// How to reach the API server
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Domain of the cluster
    #[arg(long, default_value = weft_lab_config::options::DOMAIN)]
    domain: String,
    /// Ranges whose addresses belong to the cluster
    #[arg(long, value_delimiter = ',')]
    range: Vec<IpNet>,
    /// Whom to ask about other names; repeatable
    #[arg(long)]
    upstream: Vec<SocketAddr>,
    /// Port for UDP and TCP
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

/// Serves until SIGTERM.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let zone = Zone::new(&arguments.domain, arguments.range).map_err(anyhow::Error::msg)?;
    let client = Client::new(Access::read(&arguments.kubeconfig)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ends = signal(SignalKind::terminate())?;
        let work = async {
            let zone = Arc::new(RwLock::new(zone));
            let mut complete = watch_api(&client, &zone);
            complete.wait_for(|whole| *whole).await?;
            let server = Arc::new(Server::new(zone, arguments.upstream));
            let (udp, tcp) = bind(arguments.port).await?;
            tracing::info!(port = arguments.port, "answers");
            server::serve(server, udp, tcp).await?;
            anyhow::Ok(())
        };
        tokio::select! {
            ended = work => ended,
            // Who asked before everybody knows of the end is answered still.
            () = async {
                ends.recv().await;
                tokio::time::sleep(DRAIN).await;
            } => Ok(()),
        }
    })
}

/// On Linux a socket of `::` serves IPv4, too; where there is no IPv6 it cannot be made.
async fn bind(port: u16) -> std::io::Result<(UdpSocket, TcpListener)> {
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let udp = match UdpSocket::bind(all).await {
        Ok(socket) => socket,
        Err(_) => UdpSocket::bind(v4).await?,
    };
    let tcp = match TcpListener::bind(all).await {
        Ok(socket) => socket,
        Err(_) => TcpListener::bind(v4).await?,
    };
    Ok((udp, tcp))
}

/// Keeps the zone's tables as the API has it; the value turns true once both lists were read.
fn watch_api(client: &Client, zone: &Arc<RwLock<Zone>>) -> watch::Receiver<bool> {
    let (complete, receiver) = watch::channel(false);
    let (services_sender, mut services) = mpsc::channel(256);
    let (slices_sender, mut slices) = mpsc::channel(256);
    let slices_path = "/apis/discovery.k8s.io/v1/endpointslices";
    tokio::spawn(follow(client.clone(), "/api/v1/services".into(), String::new(), services_sender));
    tokio::spawn(follow(client.clone(), slices_path.into(), String::new(), slices_sender));
    let zone = Arc::clone(zone);
    tokio::spawn(async move {
        let mut read = (false, false);
        loop {
            tokio::select! {
                Some(change) = services.recv() => {
                    read.0 |= matches!(change, Change::All(_));
                    apply(&zone, change, Tables::service_names, |tables, name, object| {
                        tables.put_service(name, object.and_then(Service::read));
                    });
                }
                Some(change) = slices.recv() => {
                    read.1 |= matches!(change, Change::All(_));
                    apply(&zone, change, Tables::slice_names, |tables, name, object| {
                        tables.put_slice(name, object.and_then(Slice::read));
                    });
                }
                else => return,
            }
            complete.send_if_modified(|whole| !std::mem::replace(whole, read == (true, true)) && *whole);
        }
    });
    receiver
}

/// Puts a change into the tables; of a whole list, what it does not have is gone.
fn apply(
    zone: &RwLock<Zone>,
    change: Change,
    known: impl Fn(&Tables) -> Vec<ObjectName>,
    put: impl Fn(&mut Tables, ObjectName, Option<&Value>),
) {
    let mut zone = zone.write().unwrap_or_else(PoisonError::into_inner);
    let tables = &mut zone.tables;
    match change {
        Change::All(objects) => {
            let names: std::collections::BTreeSet<ObjectName> = objects.iter().map(object_name).collect();
            for gone in known(tables).into_iter().filter(|n| !names.contains(n)) {
                put(tables, gone, None);
            }
            for object in &objects {
                put(tables, object_name(object), Some(object));
            }
        }
        Change::Put(object) => put(tables, object_name(&object), Some(&object)),
        Change::Gone(object) => put(tables, object_name(&object), None),
    }
}
