//! With an API server from elsewhere: the fabric has a door to it, and the nodes' kubeconfig leads there.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use weft_lab_client::kubeconfig::Access;
use weft_lab_config::options::Config;
use weft_sys::files::{PRIVATE, write_atomically};

/// Writes the kubeconfig for kubectl (as it was given) and the one for inside the fabric.
pub(super) fn write_kubeconfigs(config: &Config, access: &Access, door: SocketAddr) -> anyhow::Result<()> {
    let paths = config.paths();
    let own = SocketAddr::new(access.host.parse().unwrap_or(door.ip()), access.port);
    if access.host.parse::<std::net::IpAddr>().is_ok() {
        write_atomically(&paths.kubeconfig(), access.kubeconfig_via(own).as_bytes(), PRIVATE)?;
    } else if let Some(file) = &config.kubeconfig {
        std::fs::copy(file, paths.kubeconfig())?;
    }
    write_atomically(&paths.node_kubeconfig(), access.kubeconfig_via(door).as_bytes(), PRIVATE)?;
    Ok(())
}

/// Forwards connections from the fabric to the API server, for ever.
pub(super) async fn serve(netns: String, listen: SocketAddr, server: (String, u16)) {
    loop {
        if let Err(error) = accept(&netns, listen, &server).await {
            tracing::error!(%error, "relay to the API server");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn accept(netns: &str, listen: SocketAddr, server: &(String, u16)) -> io::Result<()> {
    let socket = weft_sys::netns::within(&weft_sys::netns::path(netns), || std::net::TcpListener::bind(listen))?;
    socket.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(socket)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await?;
        let server = server.clone();
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let mut far = TcpStream::connect((server.0.as_str(), server.1)).await?;
            far.set_nodelay(true)?;
            near.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
        });
    }
}
