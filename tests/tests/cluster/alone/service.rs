//! Services with real traffic: every kind by every protocol in both families from every client, natively and through
//! the tunnel, translated at sockets and packet by packet. Each case says which pod answers, whom it sees, and how it
//! ends where it must not.

use anyhow::{Context as _, Result, ensure};
use std::net::IpAddr;
use weft_tests::cluster::{Cluster, Pod, eventually};
use weft_tests::quiet;
use weft_tests::service::{Case, Client, Expect, OUTSIDE, addresses};

const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
/// Addresses of load balancers; the fabric carries them to node-2, where no backend is.
const POOL: [&str; 2] = ["203.0.113.0/28", "2001:db8:113::/124"];
const EXTERNAL: [&str; 2] = ["192.0.2.80", "2001:db8:80::80"];
const NODE_PORT: u16 = 30_080;
const LOCAL_PORT: u16 = 30_081;
const NONE_PORT: u16 = 30_082;
const HOST_PORT: u16 = 9080;
/// Of the service whose backend is in node-1's own network, and where that one listens.
const HOSTED_PORT: u16 = 30_083;
const HOSTED_BACKEND: u16 = 9091;
/// As whom a node speaks to itself by a service, packet by packet.
const ITSELF: [&str; 2] = ["169.254.42.1", "100::2a:1"];

#[test]
fn native_at_sockets() -> Result<()> {
    matrix("sns", "native", true)
}

#[test]
fn native_by_packet() -> Result<()> {
    matrix("snp", "native", false)
}

#[test]
fn vxlan_at_sockets() -> Result<()> {
    matrix("svs", "vxlan", true)
}

#[test]
fn vxlan_by_packet() -> Result<()> {
    matrix("svp", "vxlan", false)
}

/// A server on node-1, a client beside it and one on node-2, and what the services are reached at.
struct Stage {
    cluster: Cluster,
    native: bool,
    at_sockets: bool,
    near: Pod,
    far: Pod,
    nodes: [[IpAddr; 2]; 2],
    web: [IpAddr; 2],
    none: [IpAddr; 2],
    hosted: [IpAddr; 2],
    balancer: [IpAddr; 2],
    in_range: [IpAddr; 2],
    out_of_range: [IpAddr; 2],
}

fn ports(node_port: u16) -> String {
    let one = |protocol: &&str| {
        let upper = protocol.to_uppercase();
        format!("{{name: {protocol}, port: 80, targetPort: 8080, protocol: {upper}, nodePort: {node_port}}}")
    };
    format!("ports: [{}]", PROTOCOLS.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// The addresses that a pool gave to a service, IPv4 first.
fn balancer(cluster: &Cluster, service: &str) -> Result<[IpAddr; 2]> {
    eventually("addresses from the pool", || {
        let status = cluster.object("service", service)?["status"]["loadBalancer"]["ingress"].clone();
        let mut all = Vec::new();
        for one in status.as_array().with_context(|| format!("no address of {service} yet"))? {
            all.push(one["ip"].as_str().context("ip")?.parse()?);
        }
        all.sort();
        <[IpAddr; 2]>::try_from(all).map_err(|all| anyhow::anyhow!("{service} has {all:?}, not both families"))
    })
}

impl Stage {
    fn up(label: &str, routing: &str, at_sockets: bool) -> Result<Self> {
        let setting = format!("socket-lb={at_sockets}");
        let allowed = format!("external-ips-allowed={}/32,{}/128", EXTERNAL[0], EXTERNAL[1]);
        let settings = ["--agent", &setting, "--agent", &allowed];
        let cluster = Cluster::up(label, &[&["--nodes", "2", "--routing", routing][..], &settings].concat())?;
        let blocks = POOL.map(|block| format!("{{cidr: '{block}'}}")).join(", ");
        cluster.apply(&format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumLoadBalancerIPPool, metadata: {{name: pool}}, \
             spec: {{blocks: [{blocks}]}}}}"
        ))?;
        let selector = "selector: {app: server}";
        let externals = EXTERNAL.map(|one| format!("'{one}'")).join(", ");
        cluster.service(
            "web",
            &format!("type: LoadBalancer, {selector}, externalIPs: [{externals}], {}", ports(NODE_PORT)),
        )?;
        let local = format!("type: NodePort, {selector}, externalTrafficPolicy: Local, {}", ports(LOCAL_PORT));
        cluster.service("local", &local)?;
        cluster.service("none", &format!("type: NodePort, selector: {{app: nobody}}, {}", ports(NONE_PORT)))?;
        let ranged = |ranges: &str, port: u16| {
            format!("type: LoadBalancer, {selector}, loadBalancerSourceRanges: [{ranges}], {}", ports(port))
        };
        cluster.service("in-range", &ranged("198.51.100.0/24, '2001:db8:100::/64'", NODE_PORT + 10))?;
        cluster.service("out-of-range", &ranged("198.51.101.0/24, '2001:db8:101::/64'", NODE_PORT + 11))?;

        let ports = PROTOCOLS.map(|protocol| {
            let upper = protocol.to_uppercase();
            format!("{{containerPort: 8080, hostPort: {HOST_PORT}, protocol: {upper}}}")
        });
        cluster.pod_with("server", "node-1", "role: server", &format!("ports: [{}]", ports.join(", ")))?;
        let one = |protocol: &str| {
            let upper = protocol.to_uppercase();
            format!(
                "{{name: {protocol}, port: 80, targetPort: {HOSTED_BACKEND}, protocol: {upper}, nodePort: {HOSTED_PORT}}}"
            )
        };
        let hosted = format!("type: NodePort, selector: {{app: hosted}}, ports: [{}, {}]", one("tcp"), one("udp"));
        cluster.service("hosted", &hosted)?;
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: hosted, labels: {{app: hosted}}}}, \
             spec: {{nodeName: node-1, hostNetwork: true, terminationGracePeriodSeconds: 1, containers: \
             [{{name: toolbox, image: weft/toolbox, args: [serve, --port, '{HOSTED_BACKEND}']}}]}}}}"
        ))?;
        cluster.pods("app=hosted", 1)?;
        let near = cluster.pod("near", "node-1", "role: client")?;
        let far = cluster.pod("far", "node-2", "role: client")?;
        let nodes = [cluster.node_ips("node-1")?, cluster.node_ips("node-2")?];
        let (web, none) = (cluster.cluster_ips("web")?, cluster.cluster_ips("none")?);
        let hosted = cluster.cluster_ips("hosted")?;
        let [balancer, in_range, out_of_range] = {
            let mut all = Vec::new();
            for service in ["web", "in-range", "out-of-range"] {
                all.push(balancer(&cluster, service)?);
            }
            <[[IpAddr; 2]; 3]>::try_from(all).expect("three services")
        };
        cluster.carry(&POOL, "node-2")?;
        cluster.carry(&EXTERNAL, "node-1")?;
        // A data centre would not, but somebody on the nodes' network could.
        let cluster_ips = web.map(|address| address.to_string());
        cluster.carry(&[&cluster_ips[0], &cluster_ips[1]], "node-1")?;
        let native = routing == "native";
        Ok(Self { cluster, native, at_sockets, near, far, nodes, web, none, hosted, balancer, in_range, out_of_range })
    }

    fn clients(&self) -> Vec<Client> {
        let mut clients = vec![Client::Pod(self.near.clone()), Client::Pod(self.far.clone()), Client::Outside];
        clients.extend(["node-1", "node-2"].map(|node| Client::Node(node.to_owned())));
        clients
    }

    /// What a server on the client's way sees that talks to it without a service in between.
    fn own(&self, client: &Client, family: usize) -> Result<IpAddr> {
        Ok(match client {
            Client::Pod(pod) => *pod.addresses.get(family).context("both families")?,
            Client::Node(node) if node == "node-1" => self.nodes[0][family],
            Client::Node(_) => self.nodes[1][family],
            Client::Outside => OUTSIDE[family].parse()?,
        })
    }

    /// What the server on node-1 sees of a client that talks to a host port of this node (0 or 1), or from outside to a port
    /// of it.
    fn seen_through(&self, client: &Client, node: usize, family: usize) -> Result<IpAddr> {
        let name = ["node-1", "node-2"][node];
        if client.node() == Some(name) {
            // Translated where the client is.
            self.own(client, family)
        } else if node == 1 {
            // The backend is on another node than the one that was asked: the answer must come back through it.
            Ok(self.nodes[1][family])
        } else if let (Client::Pod(_), false) = (client, self.native) {
            // The tunnel is for pods; to a node a pod goes with its own node's address.
            Ok(self.nodes[1][family])
        } else {
            self.own(client, family)
        }
    }

    /// All kinds of services to one client.
    fn cases(&self, client: &Client) -> Result<Vec<Case>> {
        let outside = *client == Client::Outside;
        let mut cases = Vec::new();
        let is_node = matches!(client, Client::Node(_));
        for protocol in PROTOCOLS {
            for family in 0..2 {
                let mut add = |what: &str, to: IpAddr, port: u16, expect: Expect| {
                    cases.push(Case::new(what, protocol, to, port, expect));
                };
                let server = |peer: IpAddr| Expect::from("server", peer);
                let own = self.own(client, family)?;
                let or = |inside: Expect, from_outside: Expect| if outside { from_outside } else { inside };

                add("ClusterIP", self.web[family], 80, or(server(own), Expect::Timeout));
                for (number, node) in self.nodes.iter().enumerate() {
                    if is_node
                        && client.node() == Some(["node-1", "node-2"][number])
                        && (protocol == "sctp" || !self.at_sockets)
                    {
                        // What a node sends to its own addresses never leaves its stack.
                        continue;
                    }
                    let seen = self.seen_through(client, number, family)?;
                    // Translated where the client is, whichever node it asks.
                    let by_service = if outside { seen } else { own };
                    add("NodePort", node[family], NODE_PORT, server(by_service));
                    let host_port = if number == 0 { server(seen) } else { Expect::Refused };
                    add("hostPort", node[family], HOST_PORT, host_port);
                    // Only who comes from outside is bound to the backends of the node that it asks.
                    let local = if number == 0 || !outside { server(by_service) } else { Expect::Timeout };
                    add("NodePort, external traffic local", node[family], LOCAL_PORT, local);
                    add("NodePort without backend", node[family], NONE_PORT, Expect::Refused);
                }
                let through_2 = or(server(own), server(self.nodes[1][family]));
                add("LoadBalancer", self.balancer[family], 80, through_2.clone());
                add("externalIP", EXTERNAL[family].parse()?, 80, server(own));
                add("LoadBalancer, in range", self.in_range[family], 80, through_2);
                add("LoadBalancer, out of range", self.out_of_range[family], 80, or(server(own), Expect::Timeout));
                if !outside {
                    add("ClusterIP without backend", self.none[family], 80, Expect::Refused);
                }
            }
        }
        cases.extend(self.hosted(client)?);
        Ok(cases)
    }

    /// To the backend in node-1's own network.
    fn hosted(&self, client: &Client) -> Result<Vec<Case>> {
        let mut cases = Vec::new();
        for (protocol, family) in [("tcp", 0), ("tcp", 1), ("udp", 0), ("udp", 1)] {
            let own = self.own(client, family)?;
            let at_home = *client == Client::Node("node-1".to_owned());
            let tunnels = matches!(client, Client::Pod(pod) if pod.node == "node-2") && !self.native;
            // A pod goes to another node in its own node's name where it would need the tunnel.
            let seen = if tunnels { self.nodes[1][family] } else { own };
            // Such a pod has its node's name.
            let mut add = |what: &str, to: IpAddr, port: u16, peer: IpAddr| {
                cases.push(Case::new(what, protocol, to, port, Expect::from("node-1", peer)));
            };
            if *client != Client::Outside {
                let itself = if at_home && !self.at_sockets { ITSELF[family].parse()? } else { seen };
                add("ClusterIP, a process of a node", self.hosted[family], 80, itself);
            }
            if !at_home {
                add("NodePort, a process of this node", self.nodes[0][family], HOSTED_PORT, seen);
            }
            if *client == Client::Outside {
                add("NodePort, a process of another node", self.nodes[1][family], HOSTED_PORT, self.nodes[1][family]);
            }
        }
        Ok(cases)
    }
}

fn matrix(label: &str, routing: &str, at_sockets: bool) -> Result<()> {
    let _quiet = quiet::alone()?;
    let stage = Stage::up(label, routing, at_sockets)?;
    // A raw socket hears of every error about its peer, of whichever port: those who are refused by SCTP come by
    // themselves.
    let (mut all, mut refused) = (Vec::new(), Vec::new());
    for client in stage.clients() {
        let cases = stage.cases(&client)?.into_iter();
        let (apart, together): (Vec<_>, Vec<_>) =
            cases.partition(|case| case.target.starts_with("sctp:") && case.expect == Expect::Refused);
        all.push((client.clone(), together));
        if !apart.is_empty() {
            refused.push((client, apart));
        }
    }
    stage.cluster.meets(&all)?;
    stage.cluster.meets(&refused)?;
    told(&stage).context("what is told of it")?;
    stage.cluster.down()
}

/// The drops have their reasons, flows their service, and the list is complete.
fn told(stage: &Stage) -> Result<()> {
    let Stage { cluster, web, far, .. } = stage;
    for (reason, port) in [(174, 80), (177, 80), (158, LOCAL_PORT)] {
        eventually("the reason of a drop", || {
            let port = port.to_string();
            let flows = cluster.observe(&["--verdict", "dropped", "--port", &port])?;
            let of_family = |v6: bool| {
                flows.iter().any(|flow| {
                    let from = flow["source"]["ip"].as_str().unwrap_or_default();
                    flow["drop_reason"]["code"] == reason && from == OUTSIDE[usize::from(v6)]
                })
            };
            ensure!(of_family(false) && of_family(true), "no drop with reason {reason} in both families: {flows:#?}");
            Ok(())
        })?;
    }
    eventually("flows with their service", || {
        // Allowed flows are reported while somebody wants to see them.
        let _observer = cluster.observer()?;
        cluster.connect(far, "--tcp", web, 80)?;
        let flows = cluster.observe(&["--from-pod", "default/far", "--to-pod", "default/server"])?;
        let named = flows.iter().any(|flow| flow["destination"]["service"] == "default/web");
        ensure!(named, "no flow names its service: {:#?}", flows.last());
        Ok(())
    })?;
    let list = cluster.weft_json(&["service", "list", "--node", "node-2"])?;
    let rows = list.as_array().context("a list")?;
    for address in web {
        let text = address.to_string();
        let row = rows.iter().find(|row| row.to_string().contains(&text)).with_context(|| format!("{text}: {list}"))?;
        ensure!(row.to_string().contains("web"), "{row}");
    }
    let text = cluster.weft(&["service", "list"])?;
    ensure!(text.contains("default/web") && text.contains("default/none"), "{text}");
    ensure!(addresses(&cluster.object("service", "web")?["spec"]["clusterIPs"])?.len() == 2, "two families");
    Ok(())
}
