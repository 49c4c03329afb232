//! The policy language with real packets, both families: what each kind of rule means to those whom it names and to
//! those whom it does not. A connection that is let through to a port where nobody listens is refused at once; one that
//! is dropped times out.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::net::IpAddr;
use std::process::Command;
use weft_tests::cluster::{Cluster, Pod, eventually};

/// A server and a client on node-1, both again on node-2, in `default`.
struct Stage {
    cluster: Cluster,
    server: Pod,
    client: Pod,
    other: Pod,
    far_server: Pod,
    outside: Vec<IpAddr>,
    left_out: Vec<IpAddr>,
}

/// What is tried.
#[derive(Clone, Copy, Debug)]
enum Try {
    Tcp(u16),
    Udp(u16),
    /// A datagram that goes as fragments.
    Fragments(u16),
    Sctp(u16),
    Ping,
}
use Try::{Fragments, Ping, Sctp, Tcp, Udp};

impl Stage {
    fn up(label: &str, options: &[&str]) -> Result<Self> {
        let cluster = Cluster::up(label, &[&["--nodes", "2"], options].concat())?;
        let ports = |port: u16| format!("ports: [{{name: web, containerPort: {port}}}]");
        let server = cluster.pod_with("server", "node-1", "role: server", &ports(8080))?;
        let far_server = cluster.pod_with("far-server", "node-2", "role: server", &ports(9090))?;
        let client = cluster.pod("client", "node-1", "role: client")?;
        let other = cluster.pod("other", "node-2", "role: client")?;
        let parse = |texts: [&str; 2]| -> Result<Vec<IpAddr>> { Ok(vec![texts[0].parse()?, texts[1].parse()?]) };
        let outside = parse(["198.51.100.10", "2001:db8:100::10"])?;
        let left_out = parse(["198.51.100.77", "2001:db8:100::77"])?;
        let stage = Self { cluster, server, client, other, far_server, outside, left_out };
        for address in &stage.left_out {
            let host = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
            stage.in_netns("outside", &["ip", "addr", "add", &host, "dev", "eth0"])?;
            stage.in_netns("fabric", &["ip", "route", "add", &host, "dev", "outside"])?;
        }
        Ok(stage)
    }

    /// A command in a namespace of the cluster.
    fn in_netns(&self, netns: &str, command: &[&str]) -> Result<()> {
        let netns = format!("weft-{}-{netns}", self.cluster.name());
        let output = Command::new("ip").args(["netns", "exec", &netns]).args(command).output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn outcomes(&self, from: &Pod, to: &[IpAddr], what: Try) -> Result<Vec<String>> {
        let quick = "--timeout 0.8";
        match what {
            Tcp(port) => self.cluster.connect(from, &format!("--tcp {quick}"), to, port),
            Udp(port) => self.cluster.connect(from, &format!("--udp {quick}"), to, port),
            Fragments(port) => self.cluster.connect(from, &format!("--udp --size 4000 {quick}"), to, port),
            Sctp(port) => self.cluster.connect(from, &format!("--sctp {quick}"), to, port),
            Ping => {
                let mut script = String::new();
                for address in to {
                    script.push_str(&format!("/weft toolbox ping {quick} {address}; "));
                }
                script.push_str("true");
                let answers = self.cluster.kubectl(&["exec", &from.name, "--", "sh", "-c", &script])?;
                Ok(answers.lines().map(str::to_owned).collect())
            }
        }
    }

    /// Passes in both families.
    fn passes(&self, from: &Pod, to: &[IpAddr], what: Try) -> Result<()> {
        let outcomes = self.outcomes(from, to, what)?;
        let through = |outcome: &String| outcome.starts_with("ok") || outcome == "refused";
        ensure!(outcomes.len() == 2 && outcomes.iter().all(through), "{} {what:?}: {outcomes:?}, must pass", from.name);
        self.agrees(from, to, what, true)
    }

    /// Is dropped in both families.
    fn drops(&self, from: &Pod, to: &[IpAddr], what: Try) -> Result<()> {
        let outcomes = self.outcomes(from, to, what)?;
        ensure!(
            outcomes.len() == 2 && outcomes.iter().all(|outcome| outcome == "timeout"),
            "{} {what:?}: {outcomes:?}, must be dropped",
            from.name
        );
        self.agrees(from, to, what, false)
    }

    /// `weft explain` says the same as packets.
    fn agrees(&self, from: &Pod, to: &[IpAddr], what: Try, allowed: bool) -> Result<()> {
        let port = match what {
            Tcp(port) => format!("{port}/tcp"),
            Udp(port) | Fragments(port) => format!("{port}/udp"),
            Sctp(port) => format!("{port}/sctp"),
            Ping => "icmp".to_owned(),
        };
        let (namespace, name) = from.full_name();
        for address in to {
            let (from, to) = (format!("{namespace}/{name}"), address.to_string());
            let args = ["explain", "--from", &from, "--to", &to, "--port", &port, "-o", "json"];
            let output = self.cluster.try_weft(&args)?;
            let answer: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("weft explain: {}", String::from_utf8_lossy(&output.stderr)))?;
            ensure!(answer["allowed"] == allowed, "explain {from} {to} {port}: {answer}");
        }
        Ok(())
    }

    /// The reason and the rule of the newest drop of a pod's packets.
    fn last_drop(&self, from: &Pod, to: &Pod) -> Result<(u64, String)> {
        let (from, to) = (format!("default/{}", from.name), format!("default/{}", to.name));
        eventually("a drop to be seen", || {
            let args = ["--verdict", "dropped", "--from-pod", &from, "--to-pod", &to];
            let flows = self.cluster.observe(&args)?;
            let flow = flows.last().context("no drop")?;
            let policy = &flow["policies"][0];
            let rule = policy["rule"].as_str().unwrap_or_default();
            let name = policy["name"].as_str().unwrap_or_default();
            Ok((flow["drop_reason"]["code"].as_u64().context("code")?, format!("{name} {rule}")))
        })
    }

    /// Runs `check` while these policies are in force.
    fn with(&self, policies: &[(&str, &str, &str)], check: impl FnOnce() -> Result<()>) -> Result<()> {
        for (kind, name, body) in policies {
            self.cluster.rules(kind, name, body)?;
        }
        check().with_context(|| format!("{policies:#?}"))?;
        for (kind, name, _) in policies.iter().rev() {
            self.cluster.no_rules(kind, name)?;
        }
        Ok(())
    }
}

const SERVER: &str = "endpointSelector: {matchLabels: {app: server}}";
const CLIENT: &str = "endpointSelector: {matchLabels: {app: client}}";

fn on_server(rules: &str) -> String {
    format!("spec: {{{SERVER}, {rules}}}")
}

fn on_client(rules: &str) -> String {
    format!("spec: {{{CLIENT}, {rules}}}")
}

#[test]
fn native() -> Result<()> {
    language("ln", "native")
}

#[test]
fn vxlan() -> Result<()> {
    language("lv", "vxlan")
}

fn language(label: &str, routing: &str) -> Result<()> {
    let stage = Stage::up(label, &["--routing", routing])?;
    open_and_closed(&stage).context("nothing, and nobody")?;
    ports(&stage).context("ports")?;
    deny(&stage).context("deny")?;
    default_deny(&stage).context("enableDefaultDeny")?;
    names_and_entities(&stage).context("named ports, entities, labels of namespaces")?;
    cidrs(&stage).context("CIDR")?;
    services(&stage).context("toServices")?;
    icmp_sctp_fragments(&stage).context("ICMP, SCTP, fragments")?;
    tiers(&stage).context("tiers")?;
    nodes(&stage).context("nodes as subjects and peers")?;
    audit(&stage).context("audit mode")?;
    preview(&stage).context("preview and lint")?;
    live(&stage).context("established connections")?;
    refused(&stage).context("policies that cannot be honoured")?;
    stage.cluster.down()
}

/// Prefixes match the cluster's own addresses where the cluster is set up so; and nothing is dropped in audit mode.
#[test]
fn settings_of_the_cluster() -> Result<()> {
    let settings =
        ["--agent", "policy-cidr-match-mode=nodes,pods", "--agent", "policy-audit-mode=true", "--agent", "log=debug"];
    let stage = Stage::up("ls", &settings)?;
    let Stage { cluster, server, client, other, .. } = &stage;
    let prefixes = "egress: [{toCIDR: [10.244.0.0/16, 'fd44::/48']}], \
                    egressDeny: [{toCIDR: [198.51.100.0/24, '2001:db8:100::/64']}]";
    stage.with(&[("cnp", "prefixes", &on_client(prefixes))], || {
        stage.passes(client, &server.addresses, Tcp(80))?;
        stage.passes(client, &other.addresses, Tcp(80))?;
        let outcomes = stage.outcomes(client, &stage.outside, Tcp(80))?;
        ensure!(outcomes.iter().all(|outcome| outcome == "refused"), "dropped in audit mode: {outcomes:?}");
        let seen = cluster.observe(&["--verdict", "audit", "--from-pod", "default/client"])?;
        ensure!(seen.iter().any(|flow| flow["policies"][0]["rule"] == "egressDeny[0]"), "{seen:?}");
        Ok(())
    })?;
    stage.cluster.down()
}

fn open_and_closed(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    for from in [client, other] {
        for what in [Tcp(80), Udp(80), Ping] {
            stage.passes(from, s, what)?;
        }
    }
    for (kind, body) in [
        ("netpol", "spec: {podSelector: {}, ingress: []}".to_owned()),
        ("cnp", on_server("ingress: [{}]")),
        ("cnp", on_server("ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: '80'}]}]}]")),
        ("ccnp", on_server("ingress: [{fromEntities: [none]}]")),
    ] {
        stage.with(&[(kind, "closed", &body)], || {
            for from in [client, other] {
                stage.drops(from, s, Tcp(80))?;
                stage.drops(from, s, Ping)?;
            }
            ensure!(stage.last_drop(other, server)?.0 == 133, "the reason is not 133");
            // Its own node gets in, and it reaches itself.
            for address in &server.addresses {
                let answer = stage.cluster.toolbox_in("node-1", &["connect", &address.to_string(), "80"])?;
                ensure!(answer == "refused", "node-1 -> {address}: {answer}");
            }
            stage.passes(server, s, Tcp(80))
        })?;
    }
    Ok(())
}

fn ports(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let rules = on_server("ingress: [{toPorts: [{ports: [{port: '80'}]}]}]");
    stage.with(&[("cnp", "port", &rules)], || {
        for what in [Tcp(80), Udp(80)] {
            stage.passes(client, s, what)?;
            stage.passes(other, s, what)?;
        }
        stage.drops(client, s, Tcp(81))?;
        stage.drops(other, s, Ping)
    })?;
    let range = on_server(
        "ingress: [{toPorts: [{ports: [{port: '8000', endPort: 8100, protocol: TCP}]}]}], \
                 ingressDeny: [{toPorts: [{ports: [{port: '8050', protocol: TCP}]}]}]",
    );
    stage.with(&[("cnp", "range", &range)], || {
        stage.passes(other, s, Tcp(8049))?;
        stage.drops(other, s, Tcp(8050))?;
        stage.passes(client, s, Tcp(8051))?;
        stage.passes(client, s, Tcp(8100))?;
        stage.drops(client, s, Tcp(8101))
    })?;
    let all = on_server("ingress: [{toPorts: [{ports: [{port: '1', endPort: 65535, protocol: TCP}]}]}]");
    stage.with(&[("cnp", "all", &all)], || {
        stage.passes(other, s, Tcp(65_535))?;
        stage.drops(other, s, Udp(80))?;
        stage.drops(client, s, Ping)
    })
}

fn deny(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let allow = on_server("ingress: [{fromEndpoints: [{matchLabels: {role: client}}]}]");
    let deny = on_server("ingressDeny: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]");
    stage.with(&[("cnp", "allow", &allow), ("cnp", "deny", &deny)], || {
        stage.drops(client, s, Tcp(80))?;
        let (reason, rule) = stage.last_drop(client, server)?;
        ensure!((reason, rule.as_str()) == (181, "deny ingressDeny[0]"), "{reason} {rule}");
        stage.passes(client, s, Tcp(81))?;
        stage.passes(other, s, Ping)
    })?;
    let allow = on_server("ingress: [{fromEntities: [all]}]");
    let deny = on_server("ingressDeny: [{fromEndpoints: [{matchLabels: {app: client}}]}]");
    stage.with(&[("cnp", "allow", &allow), ("cnp", "deny", &deny)], || {
        for what in [Tcp(80), Tcp(81), Udp(80), Ping] {
            stage.drops(client, s, what)?;
            stage.passes(other, s, what)?;
        }
        Ok(())
    })
}

fn default_deny(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let deny = on_server(
        "enableDefaultDeny: {ingress: false}, ingressDeny: [{fromEndpoints: [{matchLabels: {app: client}}]}]",
    );
    stage.with(&[("cnp", "deny", &deny)], || {
        stage.drops(client, s, Tcp(80))?;
        stage.passes(other, s, Tcp(80))?;
        let from_nobody = "spec: {podSelector: {matchLabels: {app: server}}, \
                           ingress: [{from: [{podSelector: {matchLabels: {app: far-server}}}]}]}";
        stage.with(&[("netpol", "allow", from_nobody)], || {
            stage.passes(&stage.far_server, s, Tcp(80))?;
            stage.drops(client, s, Tcp(80))?;
            stage.drops(other, s, Tcp(80))
        })
    })
}

fn names_and_entities(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, client, other, far_server, outside, .. } = stage;
    let (s, far) = (&server.addresses, &far_server.addresses);
    let by_name = "spec: {endpointSelector: {matchLabels: {role: server}}, \
                   ingress: [{toPorts: [{ports: [{port: web, protocol: TCP}]}]}]}";
    stage.with(&[("cnp", "by-name", by_name)], || {
        stage.passes(client, s, Tcp(8080))?;
        stage.drops(client, s, Tcp(9090))?;
        stage.passes(client, far, Tcp(9090))?;
        stage.drops(other, far, Tcp(8080))
    })?;
    let to_name = on_client(
        "egress: [{toEndpoints: [{matchLabels: {role: server}}], toPorts: [{ports: [{port: web, protocol: TCP}]}]}]",
    );
    stage.with(&[("cnp", "to-name", &to_name)], || {
        stage.passes(client, s, Tcp(8080))?;
        stage.drops(client, s, Tcp(9090))?;
        stage.passes(client, far, Tcp(9090))?;
        stage.drops(client, far, Tcp(8080))
    })?;
    let world = outside;
    stage.with(&[("cnp", "world", &on_client("egress: [{toEntities: [world]}]"))], || {
        stage.passes(client, world, Tcp(80))?;
        stage.drops(client, s, Tcp(80))?;
        stage.drops(client, far, Tcp(80))?;
        stage.drops(client, &node_addresses(cluster, "node-2")?, Tcp(80))
    })?;
    stage.with(&[("cnp", "cluster", &on_client("egress: [{toEntities: [cluster]}]"))], || {
        stage.drops(client, world, Tcp(80))?;
        stage.passes(client, s, Tcp(80))?;
        stage.passes(client, far, Tcp(80))?;
        stage.passes(client, &node_addresses(cluster, "node-2")?, Tcp(80))
    })?;
    stage.with(&[("cnp", "remote", &on_client("egress: [{toEntities: [remote-node]}]"))], || {
        stage.passes(client, &node_addresses(cluster, "node-2")?, Tcp(80))?;
        stage.drops(client, &node_addresses(cluster, "node-1")?, Tcp(80))?;
        stage.drops(client, far, Tcp(80))
    })?;
    cluster.kubectl(&["create", "namespace", "team"])?;
    cluster.kubectl(&["label", "namespace", "team", "trust=high"])?;
    let guest = cluster.pod("team/guest", "node-2", "role: guest")?;
    let trusted = on_server(
        "ingress: [{fromEndpoints: [{matchExpressions: \
         [{key: io.cilium.k8s.namespace.labels.trust, operator: In, values: [high]}]}]}]",
    );
    stage.with(&[("cnp", "trusted", &trusted)], || {
        cluster.reaches(&guest, "--tcp", server, 8080)?;
        stage.drops(client, s, Tcp(80))
    })?;
    // Without a namespace in the selector it is the policy's own.
    stage.with(&[("cnp", "own", &on_server("ingress: [{fromEndpoints: [{}]}]"))], || {
        cluster.times_out(&guest, "--tcp", server, 8080)?;
        stage.passes(other, s, Tcp(80))
    })?;
    stage.with(&[("ccnp", "every", &on_server("ingress: [{fromEndpoints: [{}]}]"))], || {
        cluster.reaches(&guest, "--tcp", server, 8080)
    })?;
    cluster.kubectl(&["delete", "namespace", "team"]).map(drop)
}

fn node_addresses(cluster: &Cluster, node: &str) -> Result<Vec<IpAddr>> {
    let object: Value = serde_json::from_str(&cluster.kubectl(&["get", "node", node, "-o", "json"])?)?;
    let addresses = object["status"]["addresses"].as_array().context("addresses")?;
    let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
    internal.map(|address| Ok(address["address"].as_str().context("address")?.parse()?)).collect()
}

fn cidrs(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, client, outside, left_out, .. } = stage;
    let (world, exception) = (outside, left_out);
    let both = "egress: [{toCIDRSet: [{cidr: 198.51.100.0/24, except: [198.51.100.64/26]}]}, \
                {toCIDRSet: [{cidr: '2001:db8:100::/64', except: ['2001:db8:100::40/122']}]}]";
    stage.with(&[("cnp", "but", &on_client(both))], || {
        stage.passes(client, world, Tcp(80))?;
        stage.drops(client, exception, Tcp(80))
    })?;
    // Everything is not the cluster, unless it is said literally.
    let everything = "egress: [{toCIDR: [0.0.0.0/0, '::/0']}]";
    stage.with(&[("cnp", "everything", &on_client(everything))], || {
        stage.passes(client, world, Tcp(80))?;
        stage.drops(client, &server.addresses, Tcp(80))
    })?;
    let blocks = "spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], \
                  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]}";
    stage.with(&[("netpol", "everything", blocks)], || stage.passes(client, &server.addresses, Tcp(80)))?;
    let narrow = "egress: [{toCIDR: [198.51.100.10/32, '2001:db8:100::10/128']}], \
                  egressDeny: [{toCIDR: [198.51.100.0/24, '2001:db8:100::/64']}]";
    stage.with(&[("cnp", "narrow", &on_client(narrow))], || stage.drops(client, world, Tcp(80)))?;
    let group = |cidrs: &str| {
        cluster.apply(&format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {{name: office}}, \
             spec: {{externalCIDRs: [{cidrs}]}}}}"
        ))
    };
    group("198.51.100.10/32, '2001:db8:100::10/128'")?;
    let grouped = "egress: [{toCIDRSet: [{cidrGroupRef: office}]}]";
    stage.with(&[("cnp", "grouped", &on_client(grouped))], || {
        stage.passes(client, world, Tcp(80))?;
        stage.drops(client, exception, Tcp(80))?;
        group("198.51.100.77/32, '2001:db8:100::77/128'")?;
        eventually("the group to be followed", || stage.passes(client, exception, Tcp(80)))?;
        stage.drops(client, world, Tcp(80))
    })?;
    cluster.kubectl(&["delete", "ccg", "office"]).map(drop)
}

/// Ports are the pods', not the service's.
fn services(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, client, other, .. } = stage;
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: web}, \
         spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}}",
    )?;
    let rules = |port: u16| {
        on_client(&format!(
            "egress: [{{toServices: [{{k8sService: {{serviceName: web, namespace: default}}}}], \
             toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]}}]"
        ))
    };
    let s = &server.addresses;
    stage.with(&[("cnp", "service", &rules(80))], || stage.drops(client, s, Tcp(8080)))?;
    stage.with(&[("cnp", "service", &rules(8080))], || {
        stage.passes(client, s, Tcp(8080))?;
        stage.drops(client, &other.addresses, Tcp(8080))
    })?;
    cluster.kubectl(&["delete", "service", "web"]).map(drop)
}

fn icmp_sctp_fragments(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let pings = "ingress: [{icmps: [{fields: [{family: IPv4, type: EchoRequest}, {family: IPv6, type: 128}]}]}]";
    stage.with(&[("cnp", "pings", &on_server(pings))], || {
        stage.passes(client, s, Ping)?;
        stage.passes(other, s, Ping)?;
        stage.drops(other, s, Tcp(80))
    })?;
    let masks = "ingress: [{icmps: [{fields: [{type: 17}]}]}]";
    stage.with(&[("cnp", "masks", &on_server(masks))], || stage.drops(other, s, Ping))?;
    // The refusal of a datagram that is allowed comes back.
    let datagrams = on_server("ingress: [{toPorts: [{ports: [{port: '80', protocol: UDP}]}]}]");
    stage.with(&[("cnp", "datagrams", &datagrams)], || {
        for from in [client, other] {
            let outcomes = stage.outcomes(from, s, Udp(80))?;
            ensure!(outcomes.iter().all(|outcome| outcome == "refused"), "port unreachable is lost: {outcomes:?}");
            stage.drops(from, s, Ping)?;
        }
        Ok(())
    })?;
    let sctp = on_server("ingress: [{toPorts: [{ports: [{port: '8080', protocol: SCTP}]}]}]");
    stage.with(&[("cnp", "sctp", &sctp)], || {
        stage.passes(other, s, Sctp(8080))?;
        stage.drops(other, s, Sctp(8081))?;
        stage.drops(client, s, Tcp(8080))
    })?;
    let udp = on_server("ingress: [{toPorts: [{ports: [{port: '8080', protocol: UDP}]}]}]");
    stage.with(&[("cnp", "udp", &udp)], || {
        for from in [client, other] {
            stage.passes(from, s, Fragments(8080))?;
            stage.drops(from, s, Fragments(8081))?;
        }
        Ok(())
    })
}

fn tiers(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let kind = "clusternetworkpolicy";
    let rule = |tier: &str, priority: u16, action: &str| {
        format!(
            "spec: {{tier: {tier}, priority: {priority}, subject: {{pods: {{namespaceSelector: {{}}, \
             podSelector: {{matchLabels: {{app: server}}}}}}}}, ingress: [{{name: r, action: {action}, \
             from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: client}}}}}}}}]}}]}}"
        )
    };
    let (deny5, accept4) = (rule("Admin", 5, "Deny"), rule("Admin", 4, "Accept"));
    let (accept5, deny4) = (rule("Admin", 5, "Accept"), rule("Admin", 4, "Deny"));
    stage.with(&[(kind, "a", &deny5), (kind, "b", &accept4)], || stage.passes(client, s, Tcp(80)))?;
    stage.with(&[(kind, "a", &accept5), (kind, "b", &deny4)], || {
        stage.drops(client, s, Tcp(80))?;
        stage.passes(other, s, Tcp(80))?;
        // Left to the normal tier, which has nothing against it; and then to one that has.
        stage.with(&[(kind, "pass", &rule("Admin", 3, "Pass"))], || {
            stage.passes(client, s, Tcp(80))?;
            stage.with(&[("cnp", "closed", &on_server("ingress: [{}]"))], || stage.drops(client, s, Tcp(80)))
        })
    })?;
    stage.with(&[(kind, "base", &rule("Baseline", 0, "Deny"))], || {
        stage.drops(client, s, Tcp(80))?;
        stage.passes(other, s, Tcp(80))?;
        let normal = on_server("ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]");
        stage.with(&[("cnp", "normal", &normal)], || {
            stage.passes(client, s, Tcp(80))?;
            stage.drops(other, s, Tcp(80))
        })
    })
}

fn nodes(stage: &Stage) -> Result<()> {
    let Stage { cluster, client, other, .. } = stage;
    let node = node_addresses(cluster, "node-1")?;
    cluster.kubectl(&["label", "node", "node-1", "locked=yes"])?;
    let from_outside = |port: &str, expected: &str| -> Result<()> {
        for address in &node {
            let args = ["connect", "--timeout", "0.8", &address.to_string(), port];
            let answer = cluster.toolbox_in("outside", &args)?;
            ensure!(answer == expected, "outside -> {address} {port}: {answer}, expected {expected}");
        }
        Ok(())
    };
    from_outside("23", "refused")?;
    let lock = "spec: {nodeSelector: {matchLabels: {locked: 'yes'}}, \
                ingress: [{toPorts: [{ports: [{port: '22', protocol: TCP}]}]}]}";
    stage.with(&[("ccnp", "lock", lock)], || {
        from_outside("22", "refused")?;
        from_outside("23", "timeout")?;
        stage.drops(other, &node, Tcp(23))?;
        stage.drops(client, &node, Tcp(23))?;
        stage.passes(client, &node, Tcp(22))?;
        stage.passes(other, &client.addresses, Tcp(80))?;
        // Its own connections, and what keeps it in the cluster.
        for address in &stage.outside {
            let answer = cluster.toolbox_in("node-1", &["connect", &address.to_string(), "8080"])?;
            ensure!(answer.starts_with("ok"), "node-1 -> {address}: {answer}");
        }
        cluster.kubectl(&["exec", &client.name, "--", "true"]).context("kubectl exec on a locked node")?;
        ensure!(cluster.kubectl(&["get", "node", "node-1"])?.contains(" Ready"), "node-1 is not Ready");
        // Another node has no such label.
        stage.passes(client, &node_addresses(cluster, "node-2")?, Tcp(23))
    })?;
    let out = "spec: {nodeSelector: {matchLabels: {locked: 'yes'}}, egress: [{toEntities: [cluster]}]}";
    stage.with(&[("ccnp", "out", out)], || {
        for address in &stage.outside {
            let args = ["connect", "--timeout", "0.8", &address.to_string(), "8080"];
            let answer = cluster.toolbox_in("node-1", &args)?;
            ensure!(answer == "timeout", "node-1 -> {address}: {answer}");
        }
        // The pods on it are subjects of their own.
        stage.passes(client, &stage.outside, Tcp(80))
    })?;
    let to_node = on_client("egress: [{toNodes: [{matchLabels: {locked: 'yes'}}]}]");
    stage.with(&[("cnp", "to-node", &to_node)], || {
        stage.passes(client, &node, Tcp(23))?;
        stage.drops(client, &node_addresses(cluster, "node-2")?, Tcp(23))
    })?;
    cluster.kubectl(&["label", "node", "node-1", "locked-"]).map(drop)
}

fn audit(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, client, .. } = stage;
    stage.with(&[("cnp", "closed", &on_server("ingress: [{}]"))], || {
        stage.drops(client, &server.addresses, Tcp(80))?;
        cluster.weft(&["endpoint", "audit", "default/server", "on"])?;
        eventually("audit mode", || {
            let outcomes = stage.outcomes(client, &server.addresses, Tcp(80))?;
            ensure!(outcomes.iter().all(|outcome| outcome == "refused"), "{outcomes:?}");
            let seen = cluster.observe(&["--verdict", "audit", "--from-pod", "default/client"])?;
            let named = seen.iter().any(|flow| flow["policies"][0]["name"] == "closed");
            ensure!(named, "no audited flow names the policy: {seen:?}");
            Ok(())
        })?;
        cluster.weft(&["endpoint", "audit", "default/server", "off"])?;
        eventually("enforcement", || stage.drops(client, &server.addresses, Tcp(80)))
    })
}

/// What would change is told, and nothing changes.
fn preview(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, client, other, .. } = stage;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("policy.yaml");
    let path = file.to_str().context("a path in UTF-8")?;
    let object = |rules: &str| {
        let spec = on_server(rules);
        format!("---\n{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: new}}, {spec}}}\n")
    };
    std::fs::write(&file, object("ingress: [{fromEndpoints: [{matchLabels: {app: other}}]}]"))?;
    let lint = cluster.weft(&["policy", "lint", "-f", path])?;
    ensure!(lint.contains("no problems"), "{lint}");
    stage.passes(client, &server.addresses, Tcp(80))?;
    let told: Value = serde_json::from_str(&cluster.weft(&["policy", "preview", "-f", path, "-o", "json"])?)?;
    let peers = |change: &str| -> Vec<String> {
        let examples = told[change]["examples"].as_array().cloned().unwrap_or_default();
        let of_server = examples.iter().filter(|example| example["endpoint"] == "default/server");
        of_server.filter_map(|example| example["peer"].as_str().map(str::to_owned)).collect()
    };
    let denied = peers("newly_denied");
    ensure!(denied.contains(&"default/client".to_owned()), "{told}");
    ensure!(!denied.contains(&"default/other".to_owned()) && peers("newly_allowed").is_empty(), "{told}");
    stage.passes(client, &server.addresses, Tcp(80))?;
    std::fs::write(&file, object("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '99999'}]}]}]"))?;
    let output = cluster.try_weft(&["policy", "lint", "-f", path])?;
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!output.status.success() && answer.contains(":2:") && answer.contains("port"), "{answer}");
    let output = cluster.try_weft(&["policy", "preview", "-f", path])?;
    ensure!(!output.status.success(), "a preview of what is not valid");
    let closed = on_server("ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]");
    stage.with(&[("cnp", "new", &closed)], || {
        stage.drops(other, &server.addresses, Tcp(80))?;
        std::fs::write(&file, object("ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]"))?;
        let told = cluster.weft(&["policy", "preview", "--delete", "-f", path, "-o", "json"])?;
        let told: Value = serde_json::from_str(&told)?;
        let counts = (told["newly_allowed"]["count"].as_u64(), told["drops_passing"]["count"].as_u64());
        ensure!(counts.0 > Some(0) && counts.1 > Some(0), "{told}");
        Ok(())
    })
}

/// A connection that was let through stops when a deny comes, and when its allow goes.
fn live(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, other, .. } = stage;
    let allow = on_server("ingress: [{fromEndpoints: [{matchLabels: {role: client}}]}]");
    let deny = on_server("ingressDeny: [{fromEndpoints: [{matchLabels: {app: other}}]}]");
    for family in 0..2 {
        stage.with(&[("cnp", "allow", &allow)], || {
            let options = "--udp --rate 1000 --duration 4 --interval 0.05";
            let mut stream = cluster.stream(other, options, server.addresses[family])?;
            eventually("the stream", || {
                let report = stream.report()?;
                ensure!(report["received"].as_u64() > Some(100), "{report}");
                Ok(())
            })?;
            cluster.rules("cnp", "deny", &deny)?;
            let began = std::time::Instant::now();
            let mut frozen = stream.report()?;
            while began.elapsed() < std::time::Duration::from_millis(200) {
                frozen = stream.report()?;
            }
            let last = stream.finish()?;
            ensure!(last["received"] == frozen["received"], "still received: {frozen}, then {last}");
            ensure!(last["sent"].as_u64() > last["received"].as_u64(), "nothing was stopped: {last}");
            cluster.no_rules("cnp", "deny")
        })?;
    }
    Ok(())
}

/// Rejected whole, with the field; what was in force stays.
fn refused(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, client, other, .. } = stage;
    let s = &server.addresses;
    let good = on_server("ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]");
    stage.with(&[("cnp", "guard", &good)], || {
        let http = "ingress: [{fromEntities: [all]}, \
                    {toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET}]}}]}]";
        let names = "egress: [{toFQDNs: [{matchName: example.com}]}]";
        for (rules, field) in [(http, "rules"), (names, "toFQDNs")] {
            let object = format!(
                "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: guard}}, {}}}",
                on_server(rules)
            );
            let output = cluster.try_apply(&object)?;
            if output.status.success() {
                eventually("the condition", || {
                    let object = cluster.kubectl(&["get", "cnp", "guard", "-o", "json"])?;
                    let object: Value = serde_json::from_str(&object)?;
                    let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
                    let valid = conditions.iter().find(|one| one["type"] == "Valid").context("no condition Valid")?;
                    let message = valid["message"].as_str().unwrap_or_default();
                    ensure!(valid["status"] == "False" && message.contains(field), "{valid}");
                    Ok(())
                })?;
            } else {
                let refusal = String::from_utf8_lossy(&output.stderr).into_owned();
                if !refusal.contains(field) {
                    bail!("the refusal does not name {field}: {refusal}");
                }
            }
            stage.passes(client, s, Tcp(80))?;
            stage.drops(other, s, Tcp(80))?;
        }
        cluster.rules("cnp", "guard", &good)
    })?;
    cluster.rules("cnp", "guard", &good)?;
    eventually("the condition to be good again", || {
        let status = cluster.kubectl(&["get", "cnp", "guard", "-o", "json"])?;
        let object: Value = serde_json::from_str(&status)?;
        let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
        ensure!(conditions.iter().any(|one| one["type"] == "Valid" && one["status"] == "True"), "{conditions:?}");
        Ok(())
    })?;
    cluster.no_rules("cnp", "guard")
}
