//! The API server is late by seconds: agents ask each other, over mutual TLS with certificates of the cluster's authority.

use crate::world::{DEADLINE, World, add};
use futures::future::{BoxFuture, FutureExt as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_agent::resolver::{Resolver, is_answer};
use weft_k8s::endpoint::Propagation;
use weft_lab_apiserver::pki::Pki;
use weft_peer::tls::{Credentials, Files};
use weft_peer::{Ask, Client, Pod, serve};
use weft_sim::node::Node;
use weft_sim::recorder::Recorder;
use weft_sim::tracker::Tracker;

const LATE: Duration = Duration::from_secs(5);

/// Certificates as the embedded cluster gives them to a node.
fn credentials(dir: &Path, node: &str) -> Arc<Credentials> {
    let pki = Pki::create_or_load(&dir.join("pki"), &[]).expect("an authority");
    let own = dir.join("peer").join(node);
    pki.write_agent(&own, node).expect("a certificate");
    let files = Files { certificate: own.join("agent.crt"), key: own.join("agent.key"), authority: own.join("ca.crt") };
    Arc::new(Credentials::read(files).expect("certificates"))
}

/// The node's agent answers, at this port of this machine.
async fn answering(node: &Node, credentials: Arc<Credentials>, stop: &CancellationToken) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let control = node.control.clone();
    let find = move |addresses: &[IpAddr]| control.snapshot().own_pods(addresses);
    tokio::spawn(serve(listener, credentials, find, stop.clone()));
    port
}

/// UIDs of pods that the agent knows from other agents' answers.
async fn answered(node: &Node) -> Vec<String> {
    node.control.call(|writer| writer.known_from(is_answer)).await.expect("it runs")
}

/// All nodes are on this machine.
struct Here(Client);

impl Ask for Here {
    fn ask<'a>(&'a self, node: &'a str, _: IpAddr, addresses: &'a [IpAddr]) -> BoxFuture<'a, anyhow::Result<Vec<Pod>>> {
        async move { self.0.ask(node, Ipv4Addr::LOCALHOST.into(), addresses).await }.boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_asks_the_node_whose_the_address_is_and_slices_take_over() {
    let world = World::start(2).await;
    let tracker = Arc::new(Tracker::default());
    let recorders = [Recorder::new(tracker.clone(), true), Recorder::new(tracker.clone(), true)];
    let late_ms = Arc::new(AtomicU64::new(0));
    let owner = world.node(0, Propagation::CesNode, &recorders[0]).await;
    let asking = world.late_node(1, Propagation::CesNode, &recorders[1], late_ms.clone()).await;
    let port = answering(&owner, credentials(world.dir.path(), "node-0"), &world.stop).await;
    let client = Client::new(credentials(world.dir.path(), "node-1"), port);
    let (resolver, unknown) = Resolver::new(asking.control.clone(), Here(client));
    tokio::spawn(resolver.run(world.stop.clone()));

    late_ms.store(LATE.as_millis() as u64, Ordering::Relaxed);
    let begun = Instant::now();
    let addresses = add(&world, &owner, 0, 0).await;
    assert_eq!(addresses.len(), 2);
    addresses.iter().for_each(|address| assert!(tracker.lives(*address)));
    let known = |address: &IpAddr| recorders[1].addresses().get(address).copied();
    assert!(addresses.iter().all(|address| known(address).is_none()), "the API server is late");
    // One packet to a pod that is there, one to an address of the node's prefix that nobody has, one to nobody's.
    let asked = Instant::now();
    unknown.send(addresses[0]);
    unknown.send("10.0.0.250".parse().expect("an address"));
    unknown.send("192.0.2.1".parse().expect("an address"));
    while !addresses.iter().all(|address| known(address).is_some()) {
        assert!(asked.elapsed() < DEADLINE, "nobody answers");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = asked.elapsed();
    assert!(begun.elapsed() < LATE, "before the API server told of it: {took:?}");
    println!("known {took:?} after the question, the API server being {LATE:?} late");
    for address in &addresses {
        let (own, told) = (recorders[0].addresses()[address], known(address).expect("known"));
        assert_eq!(own.identity, told.identity);
    }
    assert_eq!(known(&"10.0.0.250".parse().expect("an address")), None);

    // The slice comes, and the answer goes: nothing changes for the address.
    let uids = answered(&asking).await;
    assert_eq!(uids.len(), 1);
    while !answered(&asking).await.is_empty() {
        assert!(begun.elapsed() < DEADLINE, "the answer stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() >= LATE, "not before a slice said the same");
    assert!(addresses.iter().all(|address| known(address).is_some()));
    assert_eq!(tracker.holes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_agent_gets_no_answer_and_is_believed_nothing() {
    let world = World::start(2).await;
    let tracker = Arc::new(Tracker::default());
    let owner = world.node(0, Propagation::CesNode, &Recorder::new(tracker.clone(), true)).await;
    let addresses = add(&world, &owner, 0, 0).await;
    let dir = world.dir.path();
    let port = answering(&owner, credentials(dir, "node-0"), &world.stop).await;
    let ask = async |credentials: Arc<Credentials>, node: &str| {
        Client::new(credentials, port).ask(node, Ipv4Addr::LOCALHOST.into(), &addresses).await
    };
    assert_eq!(ask(credentials(dir, "node-1"), "node-0").await.expect("an answer").len(), 1);
    // Another node's certificate than the one that was asked.
    assert!(ask(credentials(dir, "node-1"), "node-1").await.is_err());
    // An agent of another cluster.
    let elsewhere = tempfile::tempdir().expect("directory");
    assert!(ask(credentials(elsewhere.path(), "node-1"), "node-0").await.is_err());
    // A user of this cluster, whose certificate the same authority signed.
    let pki = Pki::create_or_load(&dir.join("pki"), &[]).expect("the authority");
    let user = pki.client("admin", "system:masters").expect("a certificate");
    let own = dir.join("peer").join("user");
    std::fs::create_dir_all(&own).expect("directory");
    std::fs::write(own.join("agent.crt"), user.certificate).expect("written");
    std::fs::write(own.join("agent.key"), user.key).expect("written");
    let files = Files {
        certificate: own.join("agent.crt"),
        key: own.join("agent.key"),
        authority: dir.join("peer/node-0/ca.crt"),
    };
    assert!(ask(Arc::new(Credentials::read(files).expect("certificates")), "node-0").await.is_err());
}
