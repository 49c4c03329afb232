//! Every way in which pods get addresses, one cluster each: pods reach each other, the world sees whom it should, and an
//! address that nobody assigned goes nowhere.

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;
use weft_tests::cluster::{Cluster, PORT, Pod, eventually};

/// Whom the world sees.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Node,
    Pod,
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn outside() -> Vec<IpAddr> {
    ["198.51.100.10", "2001:db8:100::10"].map(|text| text.parse().expect("an address")).to_vec()
}

/// The peer that the answer names.
fn peer(answer: &str) -> Result<IpAddr> {
    let text = answer.split("peer=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let text = text.with_context(|| format!("no peer in {answer:?}"))?;
    let address = text.rsplit_once(':').map_or(text, |(address, _)| address);
    Ok(address.trim_matches(['[', ']']).parse()?)
}

/// Two pods on two nodes: within the ranges, in touch, and seen as they should be.
fn pods(cluster: &Cluster, ranges: &[&str], seen: Seen) -> Result<(Pod, Pod)> {
    let one = cluster.pod("one", "node-1", "kind: tested")?;
    let two = cluster.pod("two", "node-2", "kind: tested")?;
    for pod in [&one, &two] {
        ensure!(pod.addresses.len() == ranges.len(), "{pod:?} has not an address per family");
        for (address, range) in pod.addresses.iter().zip(ranges) {
            ensure!(net(range).contains(address), "{pod:?}: {address} is not of {range}");
        }
    }
    for options in ["--tcp", "--udp"] {
        cluster.reaches(&one, options, &two, PORT)?;
        cluster.reaches(&two, options, &one, PORT)?;
    }
    let families: Vec<IpAddr> =
        outside().into_iter().filter(|out| one.addresses.iter().any(|own| own.is_ipv4() == out.is_ipv4())).collect();
    for answer in cluster.connect(&one, "--tcp", &families, PORT)? {
        ensure!(answer.starts_with("ok pod=outside"), "the world: {answer}");
        let address = peer(&answer)?;
        let is_pod = one.addresses.contains(&address);
        ensure!(is_pod == (seen == Seen::Pod), "the world saw {address} for {one:?}");
    }
    Ok((one, two))
}

/// Inside the virtual network the pod is known by its own address, to a host that is no node (the gateway) as well.
fn inside(cluster: &Cluster, pod: &Pod) -> Result<()> {
    for (own, gateway) in pod.addresses.iter().zip(["172.31.0.1", "fd31::1"]) {
        let answer = cluster.toolbox_in("fabric", &["connect", "--tcp", &own.to_string(), &PORT.to_string()])?;
        ensure!(answer.starts_with("ok"), "from {gateway} to {own}: {answer}");
        let ping = cluster.kubectl(&["exec", &pod.name, "--", "/weft", "toolbox", "ping", gateway])?;
        ensure!(ping.starts_with("ok"), "ping {gateway}: {ping}");
    }
    // Another node's own service, which says whom it sees.
    let weft = cluster.bin_dir().join("weft");
    let netns = format!("/run/netns/weft-{}-fabric", cluster.name());
    let mut server = std::process::Command::new(&weft)
        .args(["internal", "enter", "--netns", &netns, "--"])
        .arg(&weft)
        .args(["toolbox", "serve", "--name", "host"])
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let gateways: Vec<IpAddr> = ["172.31.0.1", "fd31::1"].map(|text| text.parse().expect("an address")).to_vec();
    let seen = eventually("the host in the virtual network", || {
        let answers = cluster.connect(pod, "--tcp", &gateways, PORT)?;
        ensure!(answers.iter().all(|answer| answer.starts_with("ok pod=host")), "{answers:?}");
        answers.iter().map(|answer| peer(answer)).collect::<Result<Vec<_>>>()
    });
    server.kill()?;
    server.wait()?;
    let seen = seen?;
    ensure!(seen == pod.addresses, "a host of the virtual network saw {seen:?} for {pod:?}");
    Ok(())
}

/// What is not assigned is not carried: the fabric's own kernel is asked what it does with a packet of `one`, which it
/// carries, and with the same one from and to an address that nobody assigned. Then it shows it: of two datagrams that
/// leave `one`'s node for the other node, one from the pod's address, one from nobody's, the first arrives alone.
fn nobody_elses(cluster: &Cluster, free: &str, one: &Pod, two: &Pod) -> Result<()> {
    let netns = format!("weft-{}-fabric", cluster.name());
    let carries = |from: &str, to: &str| -> Result<bool> {
        let arguments = ["-n", &netns, "route", "get", to, "from", from, "iif", "node-1"];
        let output = std::process::Command::new("ip").args(arguments).output()?;
        Ok(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(" dev node-"))
    };
    let family = usize::from(free.contains(':'));
    let (from, to) = (one.addresses[family].to_string(), two.addresses[family].to_string());
    ensure!(carries(&from, &to)?, "{from} -> {to}, both assigned, is not carried");
    ensure!(!carries(free, &to)?, "from {free}, which nobody assigned, to {to} is carried");
    ensure!(!carries(&from, free)?, "{from} to {free}, which nobody assigned, is carried");
    let node: Value = serde_json::from_str(&cluster.kubectl(&["get", "node", "node-2", "-o", "json"])?)?;
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let mut addresses = addresses.filter_map(|entry| entry["address"].as_str()?.parse::<IpAddr>().ok());
    let to = addresses.find(|address| address.is_ipv6() == free.contains(':')).context("no address of the node")?;
    let listener = in_node(cluster, "node-2", move || {
        let socket = UdpSocket::bind(SocketAddr::new(to, 9999))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    })?;
    let node = format!("weft-{}-node-1", cluster.name());
    let ip = |verb: &str, address: IpAddr| -> Result<()> {
        let net = IpNet::from(address).to_string();
        // An IPv6 address is not to be used before it was looked for elsewhere, on no link at all too.
        let now: &[&str] = if verb == "add" && address.is_ipv6() { &["nodad"] } else { &[] };
        let mut command = std::process::Command::new("ip");
        let status = command.args(["-n", &node, "addr", verb, &net, "dev", "lo"]).args(now).status()?;
        ensure!(status.success(), "ip addr {verb} {net}");
        Ok(())
    };
    for address in [free.parse()?, one.addresses[family]] {
        // The node takes it for its own as long as it sends.
        ip("add", address)?;
        let sent = in_node(cluster, "node-1", move || {
            let socket = UdpSocket::bind(SocketAddr::new(address, 9998))?;
            Ok(socket.send_to(b"?", SocketAddr::new(to, 9999))?)
        });
        ip("del", address)?;
        sent?;
    }
    let (_, first) = listener.recv_from(&mut [0; 8]).context("the datagram from the pod's address")?;
    ensure!(first.ip() == one.addresses[family], "a datagram from {first} arrived");
    listener.set_read_timeout(Some(Duration::from_millis(500)))?;
    ensure!(listener.recv_from(&mut [0; 8]).is_err(), "a datagram from {free} arrived");
    Ok(())
}

/// Does something as a process of the node itself would.
fn in_node<T: Send + 'static>(
    cluster: &Cluster,
    node: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let netns = std::fs::File::open(format!("/run/netns/weft-{}-{node}", cluster.name()))?;
    let thread = std::thread::spawn(move || {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        work()
    });
    thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?
}

fn cilium_node(cluster: &Cluster, node: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&["get", "ciliumnode", node, "-o", "json"])?)?)
}

/// Prefixes that the node's object says it has.
fn allocated(cluster: &Cluster, node: &str) -> Result<Vec<IpNet>> {
    let object = cilium_node(cluster, node)?;
    let pools = object["spec"]["ipam"]["pools"]["allocated"].as_array().cloned().unwrap_or_default();
    let cidrs = pools.iter().flat_map(|pool| pool["cidrs"].as_array().into_iter().flatten());
    Ok(cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok()).collect())
}

#[test]
fn azure_overlay() -> Result<()> {
    let cluster = Cluster::up("io", &["--nodes", "2", "--ipam", "azure-overlay"])?;
    let (one, two) = pods(&cluster, &["10.244.0.0/16", "fd44::/48"], Seen::Node)?;
    for (node, pod) in [("node-1", &one), ("node-2", &two)] {
        let has = allocated(&cluster, node)?;
        ensure!(has.iter().map(IpNet::prefix_len).eq([24, 64]), "{node} has {has:?}");
        ensure!(pod.addresses.iter().all(|address| has.iter().any(|net| net.contains(address))), "{pod:?} of {has:?}");
    }
    nobody_elses(&cluster, "10.244.77.7", &one, &two)?;
    nobody_elses(&cluster, "fd44:0:0:77::7", &one, &two)?;
    // The one who decides is killed and comes back: nothing changes for anybody.
    let before = allocated(&cluster, "node-1")?;
    cluster.kill("operator")?;
    let three = cluster.pod("three", "node-1", "kind: tested")?;
    cluster.reaches(&three, "--tcp", &two, PORT)?;
    ensure!(allocated(&cluster, "node-1")? == before, "the node's prefixes changed");
    cluster.down()
}

#[test]
fn azure_pod_subnet() -> Result<()> {
    let cluster = Cluster::up("ip", &["--nodes", "2", "--ipam", "azure-pod-subnet"])?;
    let (one, two) = pods(&cluster, &["10.241.0.0/16", "fd45::/64"], Seen::Pod)?;
    let count = |node: &str| Ok::<_, anyhow::Error>(allocated(&cluster, node)?.len());
    ensure!(count("node-1")? == 17, "node-1 holds {}, expected a batch of 16 and a block of IPv6", count("node-1")?);
    // The world reaches the pod by its own address.
    let answer =
        cluster.toolbox_in("outside", &["connect", "--tcp", &one.addresses[0].to_string(), &PORT.to_string()])?;
    ensure!(answer.starts_with("ok"), "outside -> {one:?}: {answer}");
    nobody_elses(&cluster, "10.241.200.7", &one, &two)?;
    nobody_elses(&cluster, "fd45::7:7", &one, &two)?;
    // More pods than one batch: it grows as they come, and shrinks when they go.
    cluster.kubectl(&["create", "deployment", "many", "--image=weft/toolbox", "--replicas=60"])?;
    cluster.pods("app=many", 60)?;
    let grown = count("node-1")? + count("node-2")?;
    ensure!(grown >= 62 + 16 + 2, "{grown} blocks for 62 pods on two nodes, a block of IPv6 each among them");
    let old = cluster.kill("agent-node-1")?;
    cluster.agent_again("node-1", old)?;
    cluster.reaches(&one, "--tcp", &two, PORT)?;
    cluster.kubectl(&["scale", "deployment", "many", "--replicas=0"])?;
    eventually("the addresses to go back", || {
        let (a, b) = (count("node-1")?, count("node-2")?);
        ensure!(a <= 25 && b <= 25, "the nodes hold {a} and {b}");
        Ok(())
    })?;
    cluster.reaches(&one, "--tcp", &two, PORT)?;
    cluster.down()
}

#[test]
fn azure_pod_subnet_exhausted() -> Result<()> {
    // 16 addresses, 5 of them the network's own: 11 for two nodes, and small batches, so that the cluster comes up.
    let mut options = vec!["--nodes", "2", "--ip-families", "ipv4", "--ipam", "azure-pod-subnet"];
    options.extend(["--pod-subnet", "10.241.0.0/28", "--agent", "ipam-batch=4"]);
    let cluster = Cluster::up("ie", &options)?;
    cluster.kubectl(&["create", "deployment", "many", "--image=weft/toolbox", "--replicas=14"])?;
    eventually("the subnet to be full", || {
        let events = cluster.kubectl(&["get", "events", "-A"])?;
        ensure!(events.contains("no addresses left"), "no event says so");
        let texts = [cilium_node(&cluster, "node-1")?, cilium_node(&cluster, "node-2")?];
        let full = texts.iter().any(|node| {
            let error = &node["status"]["ipam"]["operator-status"]["error"];
            error.as_str().is_some_and(|text| text.starts_with("the subnet is full"))
        });
        ensure!(full, "no CiliumNode says that the subnet is full");
        Ok(())
    })?;
    cluster.kubectl(&["scale", "deployment", "many", "--replicas=8"])?;
    cluster.pods("app=many", 8)?;
    cluster.down()
}

#[test]
fn azure_pod_subnet_block() -> Result<()> {
    let options = ["--nodes", "2", "--ipam", "azure-pod-subnet-block", "--max-pods", "31"];
    let cluster = Cluster::up("ib", &options)?;
    let (one, two) = pods(&cluster, &["10.241.0.0/16", "fd45::/64"], Seen::Pod)?;
    let has = allocated(&cluster, "node-1")?;
    let v4 = has.iter().filter(|net| net.prefix_len() == 28).count();
    ensure!(v4 == 2 && has.len() == 4, "node-1 has {has:?}, expected two blocks of each family");
    nobody_elses(&cluster, "10.241.200.7", &one, &two)?;
    nobody_elses(&cluster, "fd45::7:7", &one, &two)?;
    cluster.down()
}

#[test]
fn azure_node_subnet() -> Result<()> {
    let options = ["--nodes", "2", "--ip-families", "ipv4,ipv6", "--ipam", "azure-node-subnet"];
    let cluster = Cluster::up("in", &options)?;
    let (one, two) = pods(&cluster, &["172.31.0.0/24", "fd31::/64"], Seen::Node)?;
    inside(&cluster, &one)?;
    ensure!(allocated(&cluster, "node-1")?.len() == 60, "30 addresses of each family");
    nobody_elses(&cluster, "172.31.0.250", &one, &two)?;
    nobody_elses(&cluster, "fd31::7:7", &one, &two)?;
    cluster.down()
}

#[test]
fn multi_pool() -> Result<()> {
    for routing in ["native", "vxlan"] {
        let cluster = Cluster::up(
            &format!("m{}", &routing[..1]),
            &["--nodes", "2", "--ipam", "multi-pool", "--routing", routing],
        )?;
        let (one, _) = pods(&cluster, &["10.244.0.0/16", "fd44::/48"], Seen::Node)?;
        cluster.apply(
            "{apiVersion: cilium.io/v2alpha1, kind: CiliumPodIPPool, metadata: {name: blue}, \
             spec: {ipv4: {cidrs: [10.77.0.0/24], maskSize: 28}, ipv6: {cidrs: ['fd77::/112'], maskSize: 124}}}",
        )?;
        cluster.kubectl(&["create", "namespace", "blue"])?;
        cluster.kubectl(&["annotate", "namespace", "blue", "ipam.cilium.io/ip-pool=blue"])?;
        let blue = cluster.pod("blue/pod", "node-2", "kind: tested")?;
        for (address, range) in blue.addresses.iter().zip(["10.77.0.0/24", "fd77::/112"]) {
            ensure!(net(range).contains(address), "{blue:?} is not of the pool blue");
        }
        cluster.reaches(&one, "--tcp", &blue, PORT)?;
        cluster.reaches(&blue, "--udp", &one, PORT)?;
        cluster.kubectl(&["delete", "pod", "-n", "blue", "pod"])?;
        eventually("the prefixes of blue to go back", || {
            let has = allocated(&cluster, "node-2")?;
            ensure!(!has.iter().any(|net| net.addr().to_string().starts_with("10.77.")), "node-2 has {has:?}");
            Ok(())
        })?;
        cluster.down()?;
    }
    Ok(())
}

#[test]
fn delegated_to_host_local() -> Result<()> {
    let cluster = Cluster::up("dl", &["--nodes", "2", "--ipam", "delegated"])?;
    let (one, two) = pods(&cluster, &["10.244.0.0/16", "fd44::/48"], Seen::Node)?;
    cluster.kubectl(&["delete", "pod", "one"])?;
    let place = cluster.run_dir().join("node-1/host-local/weft");
    eventually("host-local to forget the pod", || {
        let files = std::fs::read_dir(&place).with_context(|| place.display().to_string())?;
        let names: Vec<String> =
            files.filter_map(|f| Some(f.ok()?.file_name().to_string_lossy().into_owned())).collect();
        let left =
            names.iter().filter(|name| one.addresses.iter().any(|address| **name == address.to_string())).count();
        ensure!(left == 0, "{names:?}");
        Ok(())
    })?;
    cluster.reaches(&cluster.pod("three", "node-1", "kind: tested")?, "--tcp", &two, PORT)?;
    cluster.down()
}

#[test]
fn kubernetes() -> Result<()> {
    let cluster = Cluster::up("ku", &["--nodes", "2", "--ipam", "kubernetes"])?;
    pods(&cluster, &["10.244.0.0/16", "fd44::/48"], Seen::Node)?;
    cluster.down()
}
