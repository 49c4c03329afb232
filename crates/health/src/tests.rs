//! Health checks over real sockets of this machine's loopback.
#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

use super::Health;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{Backend, Backends, Change, Node, ObjectName, Routing, Service};

fn name(name: &str) -> ObjectName {
    ObjectName { namespace: "n".to_owned(), name: name.to_owned() }
}

fn service(port: Option<u16>) -> Change {
    let routing = Routing { health_check_node_port: port, ..Routing::default() };
    Change::Service(Service { name: name("s"), routing: Some(routing), ..Service::default() })
}

fn slice(slice: &str, endpoints: &[(&str, &str, bool)]) -> Change {
    let endpoint = |(address, node, ready): &(&str, &str, bool)| Backend {
        node: Some((*node).to_owned()),
        ready: *ready,
        ..Backend::ready(address.parse().expect("an address"))
    };
    let endpoints = endpoints.iter().map(endpoint).collect();
    Change::Backends(Backends { slice: name(slice), service: name("s"), ports: Vec::new(), endpoints })
}

fn node(addresses: &[&str]) -> Change {
    let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
    Change::Node(Node { name: "node-1".to_owned(), addresses, pod_cidrs: Vec::new(), labels: Default::default() })
}

/// What is answered, if somebody listens.
async fn ask(at: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text)
}

async fn until(at: SocketAddr, path: &str, holds: impl Fn(&Option<String>) -> bool) -> Option<String> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask(at, path).await;
        if holds(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{at}: not so after 20 s: {answer:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A port that nobody has at either loopback address.
fn free_port() -> u16 {
    loop {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = v4.local_addr().expect("bound").port();
        if std::net::TcpListener::bind(("::1", port)).is_ok() {
            return port;
        }
    }
}

#[tokio::test]
async fn the_port_of_a_service_tells_how_many_backends_are_here() {
    let port = free_port();
    let (ready, progress) = watch::channel(true);
    let (health, stop) = (Health::new("node-1", move || *progress.borrow()), CancellationToken::new());
    let task = tokio::spawn(health.clone().run(stop.clone()));
    health.apply(&[node(&["127.0.0.1", "::1"]), service(Some(port))]);
    let ends = ["127.0.0.1", "::1"].map(|text| SocketAddr::new(text.parse::<IpAddr>().expect("an address"), port));
    let starts = |with: &'static str| {
        move |answer: &Option<String>| answer.as_ref().is_some_and(|text| text.starts_with(&format!("HTTP/1.1 {with}")))
    };
    for at in ends {
        let none = until(at, "/", starts("503")).await.expect("answered");
        assert!(
            none.ends_with(r#"{"localEndpoints":0,"service":{"name":"s","namespace":"n"},"serviceProxyHealthy":true}"#),
            "{none}"
        );
    }
    // An endpoint in two slices, one of two families, others elsewhere or not ready.
    health.apply(&[
        slice("a", &[("10.0.0.1", "node-1", true), ("10.0.0.2", "node-2", true), ("10.0.0.3", "node-1", false)]),
        slice("b", &[("10.0.0.1", "node-1", true), ("10.0.0.4", "node-1", true), ("fd00::4", "node-1", true)]),
    ]);
    for at in ends {
        let two = until(at, "/", starts("200")).await.expect("answered");
        assert!(two.contains("\r\nX-Load-Balancing-Endpoint-Weight: 2\r\n") && two.contains(r#""localEndpoints":2"#));
    }
    // An agent that enforces nothing yet is not healthy.
    ready.send_replace(false);
    let sick = until(ends[0], "/", starts("503")).await.expect("answered");
    assert!(sick.contains(r#""serviceProxyHealthy":false"#), "{sick}");
    health.apply(&[Change::BackendsGone(name("a")), Change::BackendsGone(name("b")), service(None)]);
    for at in ends {
        until(at, "/", Option::is_none).await;
    }
    stop.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn the_node_as_a_whole() {
    let at = SocketAddr::new("127.0.0.1".parse().expect("an address"), free_port());
    let (ready, progress) = watch::channel(false);
    let (health, stop) = (Health::new("node-1", move || *progress.borrow()), CancellationToken::new());
    let task = tokio::spawn(health.run_node(at, stop.clone()));
    until(at, "/healthz", |answer| answer.as_ref().is_some_and(|text| text.starts_with("HTTP/1.1 503"))).await;
    ready.send_replace(true);
    let well =
        until(at, "/healthz", |answer| answer.as_ref().is_some_and(|text| text.starts_with("HTTP/1.1 200"))).await;
    assert!(well.is_some_and(|text| text.contains("lastUpdated")));
    assert!(ask(at, "/livez").await.is_some_and(|text| text.starts_with("HTTP/1.1 200")));
    assert!(ask(at, "/other").await.is_some_and(|text| text.starts_with("HTTP/1.1 404")));
    stop.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn silent_clients_do_not_take_the_node_out_of_a_load_balancer() {
    let port = free_port();
    let (_ready, progress) = watch::channel(true);
    let (health, stop) = (Health::new("node-1", move || *progress.borrow()), CancellationToken::new());
    let task = tokio::spawn(health.clone().run(stop.clone()));
    health.apply(&[node(&["127.0.0.1", "::1"]), service(Some(port)), slice("a", &[("10.0.0.1", "node-1", true)])]);
    for text in ["127.0.0.1", "::1"] {
        let at = SocketAddr::new(text.parse().expect("an address"), port);
        let is_ok = |answer: &Option<String>| answer.as_ref().is_some_and(|text| text.starts_with("HTTP/1.1 200"));
        until(at, "/", is_ok).await;
        let mut silent = Vec::new();
        for _ in 0..400 {
            silent.push(TcpStream::connect(at).await.expect("connect"));
        }
        let probe = tokio::time::timeout(Duration::from_secs(2), ask(at, "/")).await.expect("answered in time");
        assert!(is_ok(&probe), "{at}: {probe:?}");
    }
    stop.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn a_port_outside_the_range_is_not_listened_at() {
    let health = Health::new("node-1", || true).within(30_000..=32_767);
    health.apply(&[service(Some(10_250)), node(&["127.0.0.1", "::1"])]);
    assert!(super::lock(&health.tables).ports.is_empty());
    health.apply(&[service(Some(30_000))]);
    assert_eq!(super::lock(&health.tables).ports.len(), 1);
    // A port that leaves the range is given up.
    health.apply(&[service(Some(29_999))]);
    assert!(super::lock(&health.tables).ports.is_empty());
}
