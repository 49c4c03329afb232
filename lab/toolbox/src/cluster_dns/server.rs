//! The sockets: UDP and TCP on one port.

use super::forward;
use super::message::{Outcome, Response, respond};
use super::zone::Zone;
use hickory_proto::op::Message;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Questions that wait for other name servers at once.
const FORWARDED_MAX: usize = 512;
/// Connections at once.
const CONNECTIONS_MAX: usize = 512;
/// A connection that asks nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// What answers questions.
#[derive(Debug)]
pub(super) struct Server {
    pub zone: Arc<RwLock<Zone>>,
    /// Whom to ask about what is not ours; nobody: such questions are refused.
    pub upstreams: Vec<SocketAddr>,
    forwarded: Semaphore,
}

impl Server {
    pub(super) fn new(zone: Arc<RwLock<Zone>>, upstreams: Vec<SocketAddr>) -> Self {
        Self { zone, upstreams, forwarded: Semaphore::new(FORWARDED_MAX) }
    }

    fn first(&self, query: &[u8], tcp: bool) -> Outcome {
        respond(&self.zone.read().unwrap_or_else(PoisonError::into_inner), query, tcp)
    }

    /// Answers what takes asking others.
    async fn finish(&self, query: &[u8], tcp: bool, outcome: Outcome) -> Option<Vec<u8>> {
        match outcome {
            Outcome::Silence => None,
            Outcome::Answer(response) => response.bytes(),
            Outcome::Forward(response) => {
                if self.upstreams.is_empty() {
                    return response.refused().bytes();
                }
                let Ok(_permit) = self.forwarded.try_acquire() else { return response.failed().bytes() };
                match forward::pass(&self.upstreams, query, tcp).await {
                    Some(answer) => Some(answer),
                    None => response.failed().bytes(),
                }
            }
            Outcome::Chase(response, name, kind) => {
                // The name alone is an answer, too: who asks may follow it himself.
                let Ok(_permit) = self.forwarded.try_acquire() else { return response.bytes() };
                let asked = forward::ask(&self.upstreams, &name, kind, tcp).await;
                asked.map_or_else(|| (*response).clone(), |answer: Message| with(&response, &answer)).bytes()
            }
        }
    }
}

fn with(response: &Response, answer: &Message) -> Response {
    response.clone().with_elsewhere(answer)
}

/// Serves until a socket fails.
pub(super) async fn serve(server: Arc<Server>, udp: UdpSocket, tcp: TcpListener) -> io::Result<()> {
    tokio::select! {
        ended = serve_udp(Arc::clone(&server), udp) => ended,
        ended = serve_tcp(server, tcp) => ended,
    }
}

async fn serve_udp(server: Arc<Server>, socket: UdpSocket) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error of a datagram that was sent earlier is reported here; it concerns nobody else.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let query = &buffer[..length];
        match server.first(query, false) {
            Outcome::Silence => {}
            Outcome::Answer(response) => {
                if let Some(answer) = response.bytes() {
                    let _ = socket.send_to(&answer, peer).await;
                }
            }
            outcome => {
                let (server, socket, query) = (Arc::clone(&server), Arc::clone(&socket), query.to_vec());
                tokio::spawn(async move {
                    if let Some(answer) = server.finish(&query, false, outcome).await {
                        let _ = socket.send_to(&answer, peer).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(server: Arc<Server>, listener: TcpListener) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let _ = connection(&server, stream).await;
            drop(permit);
        });
    }
}

async fn connection(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let query = tokio::time::timeout(IDLE, async {
            let length = stream.read_u16().await?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.map(|_| query)
        });
        let query = query.await.map_err(|_| io::ErrorKind::TimedOut)??;
        let outcome = server.first(&query, true);
        let Some(answer) = server.finish(&query, true, outcome).await else { return Ok(()) };
        tokio::time::timeout(IDLE, stream.write_all(&framed(&answer)?))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
    }
}

/// A message as TCP carries it.
pub(super) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    Ok(framed)
}
