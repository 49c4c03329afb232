//! Asking other name servers.

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one server has.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends a question on as it came, and returns the answer as it is. `None`: no server answers.
pub(super) async fn pass(servers: &[SocketAddr], query: &[u8], tcp: bool) -> Option<Vec<u8>> {
    for server in servers {
        let asked = async { if tcp { by_tcp(*server, query).await } else { by_udp(*server, query).await } };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "a name server"),
            Err(_) => tracing::debug!(%server, "a name server does not answer"),
        }
    }
    None
}

/// Asks a question of our own.
pub(super) async fn ask(servers: &[SocketAddr], name: &Name, kind: RecordType, tcp: bool) -> Option<Message> {
    let mut query = Message::new(uuid::Uuid::new_v4().as_u128() as u16, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    let answer = pass(servers, &query.to_vec().ok()?, tcp).await?;
    Message::from_vec(&answer).ok()
}

async fn by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if belongs(query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&super::server::framed(query)?).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if belongs(query, &answer) { Ok(answer) } else { Err(io::Error::other("answers another question")) }
}

/// An answer to this very question: number, direction and question are its own.
fn belongs(query: &[u8], answer: &[u8]) -> bool {
    let (Ok(query), Ok(answer)) = (Message::from_vec(query), Message::from_vec(answer)) else { return false };
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == query.metadata.id
        && answer.queries == query.queries
}
