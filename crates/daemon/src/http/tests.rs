//! Over real sockets of this machine's loopback, both families.

use super::{Limits, Response, StatusCode, TEXT, response, serve};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(30);

struct Server {
    at: SocketAddr,
    stop: CancellationToken,
    _task: JoinSet<()>,
}

fn answer(path: &str) -> Option<Response<String>> {
    (path == "/a").then(|| response(StatusCode::OK, TEXT, "body".to_owned()))
}

async fn server(address: &str, limits: Limits) -> Server {
    let address: IpAddr = address.parse().expect("an address");
    let listener = TcpListener::bind((address, 0)).await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(serve(listener, limits, answer, stop.clone()));
    Server { at, stop, _task: task }
}

async fn exchange(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.expect("connect");
    stream.write_all(request.as_bytes()).await.expect("send");
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A server that closes before it has read everything resets the connection: what came before counts.
    let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.expect("ends in time");
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn requests_are_answered_and_nonsense_is_refused() {
    for address in ["127.0.0.1", "::1"] {
        let server = server(address, Limits::default()).await;
        let long = format!("GET /a HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9 << 10));
        let table = [
            ("GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"),
            ("GET /a?x=y HTTP/1.0\r\n\r\n", "200 OK"),
            ("GET /b HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"),
            ("GET /a HTTP/1.1 x\r\n\r\n", "400 Bad Request"),
            ("\u{0}\r\n\r\n", "400 Bad Request"),
            (&long, "431 Request Header Fields Too Large"),
        ];
        for (request, expected) in table {
            let text = exchange(server.at, request).await;
            let status = text.split("\r\n").next().and_then(|line| line.split_once(' ')).map(|(_, status)| status);
            assert_eq!(status, Some(expected), "{address} {request:?}: {text}");
        }
        let whole = exchange(server.at, "HEAD /a HTTP/1.1\r\n\r\n").await;
        assert!(whole.contains("\r\nContent-Length: 4\r\n") && whole.ends_with("\r\n\r\n"), "{whole}");
        assert!(whole.contains("\r\nConnection: close\r\n"), "{whole}");
        assert!(whole.contains("\r\nX-Content-Type-Options: nosniff\r\n"), "{whole}");
        server.stop.cancel();
    }
}

#[tokio::test]
async fn silent_clients_keep_nobody_out() {
    for address in ["127.0.0.1", "::1"] {
        let limits = Limits { connections_max: 16, per_source_max: 8, head_timeout: DEADLINE, ..Limits::default() };
        let server = server(address, limits).await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(server.at).await.expect("connect"));
            let text = exchange(server.at, "GET /a HTTP/1.1\r\n\r\n").await;
            assert!(text.starts_with("HTTP/1.1 200"), "{address}: {text}");
        }
    }
}

#[tokio::test]
async fn the_source_with_most_connections_makes_room() {
    let limits = Limits { connections_max: 8, per_source_max: 8, head_timeout: DEADLINE, ..Limits::default() };
    let server = server("127.0.0.1", limits).await;
    // One client is slow, and came first; another one floods.
    let mut slow = TcpStream::connect(server.at).await.expect("connect");
    slow.write_all(b"GET /a HTTP/1.1\r\n").await.expect("send");
    let mut flood = Vec::new();
    for _ in 0..50 {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).expect("another address of loopback");
        flood.push(socket.connect(server.at).await.expect("connect"));
    }
    // The first of the flood is closed: the limit was reached.
    let first = flood.first_mut().expect("many");
    assert_eq!(rest(first).await, "");
    slow.write_all(b"\r\n").await.expect("send");
    let text = rest(&mut slow).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn a_client_without_a_request_is_closed_in_time() {
    let limits = Limits { head_timeout: Duration::from_millis(50), ..Limits::default() };
    let server = server("::1", limits).await;
    let mut silent = TcpStream::connect(server.at).await.expect("connect");
    let text = rest(&mut silent).await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");
}

#[test]
fn a_source_is_an_ipv4_address_or_a_prefix_of_ipv6() {
    let source = |text: &str| super::Source::of(text.parse().expect("an address"));
    assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
    assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:0:0:2"));
    assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
}
