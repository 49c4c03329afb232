//! What Services can say about themselves, with real traffic: affinity, traffic policies, ports by name, families,
//! readiness, a pod behind its own service, backends that end, health checks, local redirects, names.

use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use weft_tests::cluster::{Cluster, Pod, eventually};
use weft_tests::quiet;
use weft_tests::service::{Case, Client, Expect, addresses, target};

/// Connections that show how backends are chosen: of two backends, all the same one is 1 in 2^39 by chance.
const TIMES: usize = 40;
/// Where agents show what they count.
const METRICS_PORT: u16 = 9962;
/// Services to each of which a client connects for the first time.
const SERVICES: usize = 10;

#[test]
fn native_at_sockets() -> Result<()> {
    traits("tn", "native", true)
}

#[test]
fn vxlan_by_packet() -> Result<()> {
    traits("tv", "vxlan", false)
}

/// Two servers, `a` on node-1 and `b` on node-2, and a client on each node.
struct Stage {
    cluster: Cluster,
    a: Pod,
    b: Pod,
    near: Pod,
    far: Pod,
}

fn traits(label: &str, routing: &str, at_sockets: bool) -> Result<()> {
    let _quiet = quiet::alone()?;
    let setting = format!("socket-lb={at_sockets}");
    let metrics = format!("metrics-address=[::]:{METRICS_PORT}");
    let options = ["--nodes", "2", "--routing", routing, "--agent", &setting, "--agent", &metrics];
    let cluster = Cluster::up(label, &options)?;
    let a = cluster.pod_with("a", "node-1", "role: server", "ports: [{name: web, containerPort: 8080}]")?;
    let other_port = "args: [serve, --port, '9090'], ports: [{name: web, containerPort: 9090}]";
    let b = cluster.pod_with("b", "node-2", "role: server", other_port)?;
    let near = cluster.pod("near", "node-1", "role: client")?;
    let far = cluster.pod("far", "node-2", "role: client")?;
    let stage = Stage { cluster, a, b, near, far };
    names_of_ports(&stage).context("ports by name")?;
    affinity(&stage).context("session affinity")?;
    first_connections(&stage).context("first connections side by side")?;
    internal_local(&stage).context("internalTrafficPolicy")?;
    families(&stage).context("ipFamilyPolicy")?;
    readiness(&stage).context("readiness")?;
    hairpin(&stage).context("a pod behind its own service")?;
    ending(&stage).context("backends that end")?;
    health_check(&stage).context("health checks")?;
    redirects(&stage).context("local redirects")?;
    others(&stage).context("services of another proxy")?;
    dns(&stage).context("names")?;
    explained(&stage).context("explanations")?;
    counted(&stage).context("metrics")?;
    stage.cluster.down()
}

impl Stage {
    fn near(&self) -> Client {
        Client::Pod(self.near.clone())
    }

    fn far(&self) -> Client {
        Client::Pod(self.far.clone())
    }

    fn nodes(&self, names: &[&str]) -> Vec<Client> {
        names.iter().map(|name| Client::Node((*name).to_owned())).collect()
    }

    /// A case per protocol and family.
    fn both(&self, what: &str, protocols: &[&str], to: [IpAddr; 2], port: u16, expect: &Expect) -> Vec<Case> {
        let one = |(protocol, family): (&str, usize)| Case::new(what, protocol, to[family], port, expect.clone());
        protocols.iter().flat_map(|protocol| [(*protocol, 0), (*protocol, 1)]).map(one).collect()
    }
}

/// One name, another number in each pod; and several ports of one service lead where each should.
fn names_of_ports(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    cluster.service("named", "selector: {role: server}, ports: [{port: 80, targetPort: web}]")?;
    cluster.service(
        "several",
        "selector: {app: b}, ports: [{name: one, port: 81, targetPort: 9090}, \
         {name: two, port: 82, targetPort: 9091}, {name: three, port: 83, targetPort: 9090, protocol: UDP}]",
    )?;
    let (named, several) = (cluster.cluster_ips("named")?, cluster.cluster_ips("several")?);
    let mut cases = stage.both("one name, two numbers", &["tcp"], named, 80, &Expect::from_any(&["a", "b"]));
    cases.extend(stage.both("the first port", &["tcp"], several, 81, &Expect::from_any(&["b"])));
    cases.extend(stage.both("a port where nobody listens", &["tcp"], several, 82, &Expect::Refused));
    cases.extend(stage.both("another protocol", &["udp"], several, 83, &Expect::from_any(&["b"])));
    cluster.meets(&[(stage.near(), cases.clone()), (stage.far(), cases)])?;
    for to in named {
        let pods = cluster.answering(&stage.near(), &target("tcp", to, 80), TIMES)?;
        ensure!(pods.len() == 2, "{TIMES} connections to {to} went to {pods:?} only");
    }
    Ok(())
}

fn affinity(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    cluster.service(
        "sticky",
        "selector: {role: server}, ports: [{port: 80, targetPort: web}], \
         sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}",
    )?;
    let sticky = cluster.cluster_ips("sticky")?;
    let cases = stage.both("affinity", &["tcp"], sticky, 80, &Expect::from_any(&["a", "b"]));
    cluster.meets(&[(stage.near(), cases.clone()), (stage.far(), cases)])?;
    for client in [stage.near(), stage.far()].into_iter().chain(stage.nodes(&["node-1"])) {
        for to in sticky {
            let pods = cluster.answering(&client, &target("tcp", to, 80), TIMES)?;
            ensure!(pods.len() == 1, "{} -> {to}: {TIMES} connections of one client went to {pods:?}", client.name());
            let again = cluster.answering(&client, &target("tcp", to, 80), TIMES)?;
            ensure!(pods == again, "{} -> {to}: {pods:?}, then {again:?}", client.name());
        }
    }
    cluster.kubectl(&["delete", "service", "sticky"]).map(drop)
}

/// Of first connections side by side none goes elsewhere than the others.
fn first_connections(stage: &Stage) -> Result<()> {
    let Stage { cluster, b, .. } = stage;
    let name = |n: usize| format!("first-{n}");
    for n in 0..SERVICES {
        cluster.service(
            &name(n),
            "selector: {role: server}, ports: [{port: 80, targetPort: web}], sessionAffinity: ClientIP",
        )?;
    }
    let all: Vec<[IpAddr; 2]> = (0..SERVICES).map(|n| cluster.cluster_ips(&name(n))).collect::<Result<_>>()?;
    // Both nodes have them; who looks is none of the clients below.
    for prober in [&stage.a, b] {
        let cases = all.iter().flat_map(|to| stage.both("affinity", &["tcp"], *to, 80, &Expect::from_any(&["a", "b"])));
        cluster.meets(&[(Client::Pod(prober.clone()), cases.collect())])?;
    }
    for client in [stage.near(), stage.far()].into_iter().chain(stage.nodes(&["node-1", "node-2"])) {
        for to in all.iter().flatten() {
            let pods = cluster.answering(&client, &target("tcp", *to, 80), TIMES)?;
            ensure!(pods.len() == 1, "{} -> {to}: {TIMES} first connections went to {pods:?}", client.name());
        }
    }
    for n in 0..SERVICES {
        cluster.kubectl(&["delete", "service", &name(n), "--wait=false"])?;
    }
    Ok(())
}

/// Only the client's own node counts; where it has no backend, the client is refused at once.
fn internal_local(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    cluster
        .service("inside", "selector: {app: a}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080}]")?;
    let inside = cluster.cluster_ips("inside")?;
    let here = stage.both("internal traffic local", &["tcp"], inside, 80, &Expect::from_any(&["a"]));
    let there = stage.both("internal traffic local, no backend here", &["tcp"], inside, 80, &Expect::Refused);
    let mut all = vec![(stage.near(), here.clone()), (stage.far(), there.clone())];
    all.extend(stage.nodes(&["node-1", "node-2"]).into_iter().zip([here, there]));
    cluster.meets(&all)
}

fn families(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    for (name, policy, count) in [
        ("one-4", "SingleStack, ipFamilies: [IPv4]", 1),
        ("one-6", "SingleStack, ipFamilies: [IPv6]", 1),
        ("both", "PreferDualStack", 2),
        ("six-first", "RequireDualStack, ipFamilies: [IPv6, IPv4]", 2),
    ] {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ipFamilyPolicy: {policy}, \
             selector: {{app: a}}, ports: [{{port: 80, targetPort: 8080}}]}}}}"
        ))?;
        let has = addresses(&cluster.object("service", name)?["spec"]["clusterIPs"])?;
        ensure!(has.len() == count, "{name} has {has:?}");
        ensure!(has[0].is_ipv6() == (name == "one-6" || name == "six-first"), "{name} has {has:?}");
        let cases: Vec<Case> = has.iter().map(|to| Case::new(name, "tcp", *to, 80, Expect::from_any(&["a"]))).collect();
        cluster.meets(&[(stage.far(), cases)])?;
    }
    Ok(())
}

/// A pod that is not ready gets nothing, but from a service that wants it so.
fn readiness(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: unready, labels: {app: unready}}, \
         spec: {nodeName: node-1, terminationGracePeriodSeconds: 1, containers: [{name: toolbox, image: weft/toolbox, \
         readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1}}]}}",
    )?;
    let spec = "selector: {app: unready}, ports: [{port: 80, targetPort: 8080}]";
    cluster.service("ready-only", spec)?;
    cluster.service("all-of-them", &format!("publishNotReadyAddresses: true, {spec}"))?;
    let (strict, all) = (cluster.cluster_ips("ready-only")?, cluster.cluster_ips("all-of-them")?);
    let mut cases = stage.both("not ready", &["tcp"], strict, 80, &Expect::Refused);
    cases.extend(stage.both("published though not ready", &["tcp"], all, 80, &Expect::from_any(&["unready"])));
    cluster.meets(&[(stage.near(), cases.clone()), (stage.far(), cases)])?;
    cluster.kubectl(&["delete", "pod", "unready", "--wait=false"]).map(drop)
}

/// A pod reaches itself through its service, also where policies let nothing in and nothing out.
fn hairpin(stage: &Stage) -> Result<()> {
    let Stage { cluster, a, near, .. } = stage;
    cluster.service(
        "own",
        "selector: {app: a}, ports: [{name: t, port: 80, targetPort: 8080}, \
         {name: u, port: 80, targetPort: 8080, protocol: UDP}, {name: s, port: 80, targetPort: 8080, protocol: SCTP}]",
    )?;
    let own = cluster.cluster_ips("own")?;
    let cases = stage.both("its own service", &["tcp", "udp", "sctp"], own, 80, &Expect::from_any(&["a"]));
    let of_a = (Client::Pod(a.clone()), cases);
    cluster.meets(std::slice::from_ref(&of_a))?;
    cluster.policy("shut", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress]}")?;
    cluster.meets(&[of_a])?;
    // The policy is in force: nobody else gets in, and it gets nowhere else.
    let in_vain = stage.both("a pod that lets nobody in", &["tcp"], own, 80, &Expect::Timeout);
    cluster.meets(&[(stage.near(), in_vain)])?;
    cluster.times_out(a, "--tcp", near, 8080)?;
    cluster.no_policy("shut")
}

/// New connections go elsewhere, or to it if there is nothing else; a stream to it goes on until it ends.
fn ending(stage: &Stage) -> Result<()> {
    let Stage { cluster, near, .. } = stage;
    for (name, node) in [("first", "node-1"), ("second", "node-2")] {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: ending}}}}, \
             spec: {{nodeName: {node}, terminationGracePeriodSeconds: 25, \
             containers: [{{name: toolbox, image: weft/toolbox, args: [serve, --drain, '25']}}]}}}}"
        ))?;
    }
    cluster.pods("app=ending", 2)?;
    cluster.service("ending", "selector: {app: ending}, ports: [{port: 80, targetPort: 8080}]")?;
    let to = cluster.cluster_ips("ending")?;
    for one in to {
        eventually("both backends", || {
            let pods = cluster.answering(&stage.near(), &target("tcp", one, 80), TIMES)?;
            ensure!(pods.len() == 2, "{pods:?}");
            Ok(())
        })?;
    }
    // Of so many, some are to each.
    let mut held = Vec::new();
    for one in to {
        let options = "--hold 20 --rate 1 --duration 6 --interval 0.5";
        held.push(cluster.in_background(near, "load", options, (one, 80).into())?);
    }
    for stream in &mut held {
        let report = stream.report()?;
        ensure!(report["held"] == 20, "{report}");
    }
    cluster.kubectl(&["delete", "pod", "first", "--wait=false"])?;
    let only = |expected: &str| {
        let expected = BTreeSet::from([expected.to_owned()]);
        for one in to {
            let pods = cluster.answering(&stage.far(), &target("tcp", one, 80), TIMES)?;
            ensure!(pods == expected, "{pods:?} instead of {expected:?}");
        }
        Ok(())
    };
    eventually("new connections to the other one only", || only("second"))?;
    for stream in held {
        let report = stream.finish()?;
        ensure!(report["broken"] == 0 && report["held"] == 20 && report["ok"] == report["opened"], "{report}");
    }
    cluster.kubectl(&["delete", "pod", "second", "--wait=false"])?;
    eventually("the endpoint to be about to end", || {
        let slices =
            cluster.kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=ending", "-o", "json"])?;
        ensure!(!slices.contains("\"ready\": true"), "{slices}");
        Ok(())
    })?;
    // Nothing but pods that end: better them than nobody.
    let cases = stage.both("only backends that end", &["tcp"], to, 80, &Expect::from_any(&["first", "second"]));
    cluster.meets(&[(stage.far(), cases)])?;
    cluster.kubectl(&["delete", "pod", "first", "second", "--grace-period=0", "--force", "--ignore-not-found"])?;
    let gone = stage.both("no backend any more", &["tcp"], to, 80, &Expect::Refused);
    cluster.meets(&[(stage.far(), gone)])
}

/// A balancer asks the nodes which of them have backends.
fn health_check(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    cluster.service(
        "checked",
        "type: LoadBalancer, selector: {app: a}, externalTrafficPolicy: Local, \
         healthCheckNodePort: 30200, ports: [{port: 80, targetPort: 8080, nodePort: 30201}]",
    )?;
    eventually("answers to health checks", || {
        for (node, status, count) in [("node-1", "200", 1), ("node-2", "503", 0)] {
            for address in cluster.node_ips(node)? {
                let answer = cluster.toolbox_in("outside", &["connect", "--http", &address.to_string(), "30200"])?;
                let fits = answer.starts_with(&format!("ok {status} "));
                ensure!(
                    fits && answer.replace(' ', "").contains(&format!("\"localEndpoints\":{count}")),
                    "{node}: {answer}"
                );
            }
        }
        Ok(())
    })?;
    cluster.kubectl(&["delete", "service", "checked"])?;
    let [to, _] = cluster.node_ips("node-1")?;
    eventually("the health check to be gone", || {
        let answer = cluster.toolbox_in("outside", &["connect", "--http", &to.to_string(), "30200"])?;
        ensure!(answer == "refused", "{answer}");
        Ok(())
    })
}

/// Whoever asks whether a service would be reached is told of each backend.
fn explained(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    cluster.service("shown", "selector: {role: server}, ports: [{port: 80, targetPort: web}]")?;
    let shown = cluster.cluster_ips("shown")?;
    let explain = |from: &str, to: IpAddr, port: &str| -> Result<serde_json::Value> {
        let to = to.to_string();
        let output = cluster.try_weft(&["explain", "--from", from, "--to", &to, "--port", port, "-o", "json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("weft explain: {}", String::from_utf8_lossy(&output.stderr)))
    };
    for to in shown {
        let all = eventually("the service to be there", || {
            let answer = explain("default/near", to, "80/tcp")?;
            ensure!(answer["service"]["backends"].as_array().is_some_and(|all| all.len() == 2), "{answer}");
            Ok(answer)
        })?;
        ensure!(all["allowed"] == true && all["service"]["name"] == "shown", "{all}");
        let outside = explain("198.51.100.10", to, "80/tcp");
        ensure!(to.is_ipv6() || outside.is_ok_and(|answer| answer["allowed"] == false), "from outside to {to}");
    }
    cluster.policy("b-closed", "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress]}")?;
    for to in shown {
        let answer = explain("default/near", to, "80/tcp")?;
        ensure!(answer["allowed"] == false, "{answer}");
        let backends = answer["service"]["backends"].as_array().context("backends")?;
        for backend in backends {
            let is_b = stage.b.addresses.iter().any(|address| backend["to"] == address.to_string());
            ensure!(backend["allowed"] == !is_b, "{answer}");
            ensure!(!is_b || backend["ingress"]["policies"][0]["name"] == "b-closed", "{answer}");
        }
    }
    cluster.no_policy("b-closed")?;
    cluster.kubectl(&["delete", "service", "shown"]).map(drop)
}

/// What the agents count has the names that dashboards know.
fn counted(stage: &Stage) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let netns = std::fs::File::open(format!("/run/netns/weft-{}-{node}", stage.cluster.name()))?;
        let asked = std::thread::spawn(move || -> Result<String> {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", METRICS_PORT))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
        let text = asked.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        let value = |name: &str| -> Result<u64> {
            let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("{name}: {text}"))?;
            Ok(line.rsplit(' ').next().context("a value")?.parse()?)
        };
        for action in ["add", "update", "delete"] {
            let name = format!("cilium_services_events_total{{action=\"{action}\"}}");
            ensure!(value(&name)? > 0, "{node}: {name} is 0");
            let name = format!("cilium_service_implementation_delay_count{{action=\"{action}\"}}");
            ensure!(value(&name)? > 0, "{node}: {name} is 0");
        }
        ensure!(value("cilium_k8s_terminating_endpoints_events_total")? > 0, "{node}: nothing ended");
        ensure!(value("cilium_forward_count_total")? > 0, "{node}: nothing was forwarded");
        ensure!(text.contains("cilium_drop_count_total{reason="), "{node}: nothing was dropped: {text}");
    }
    Ok(())
}

/// An address, and a service, lead to pods of the client's own node.
fn redirects(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    let redirect = |name: &str, frontend: &str| {
        cluster.apply(&format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumLocalRedirectPolicy, metadata: {{name: {name}}}, \
             spec: {{redirectFrontend: {{{frontend}}}, redirectBackend: {{localEndpointSelector: \
             {{matchLabels: {{app: a}}}}, toPorts: [{{port: '8080', protocol: TCP}}]}}}}}}"
        ))
    };
    let places = ["169.254.20.10", "fd20::10"];
    for (name, ip) in ["meta-4", "meta-6"].iter().zip(places) {
        redirect(name, &format!("addressMatcher: {{ip: '{ip}', toPorts: [{{port: '80', protocol: TCP}}]}}"))?;
    }
    let places: [IpAddr; 2] = [places[0].parse()?, places[1].parse()?];
    let here = stage.both("an address that is redirected", &["tcp"], places, 80, &Expect::from_any(&["a"]));
    cluster.meets(&[(stage.near(), here)])?;

    cluster.service("cache", "selector: {app: b}, ports: [{port: 80, targetPort: 9090}]")?;
    let cache = cluster.cluster_ips("cache")?;
    let from_b = stage.both("a service before its redirect", &["tcp"], cache, 80, &Expect::from_any(&["b"]));
    cluster.meets(&[(stage.near(), from_b.clone()), (stage.far(), from_b.clone())])?;
    redirect("cache", "serviceMatcher: {serviceName: cache, namespace: default}")?;
    let from_a = stage.both("a service that is redirected", &["tcp"], cache, 80, &Expect::from_any(&["a"]));
    // Where there is no such pod, the service's own answer.
    cluster.meets(&[(stage.near(), from_a), (stage.far(), from_b.clone())])?;
    cluster.kubectl(&["delete", "ciliumlocalredirectpolicies", "cache"])?;
    cluster.meets(&[(stage.near(), from_b.clone()), (stage.far(), from_b)])?;
    cluster.kubectl(&["delete", "ciliumlocalredirectpolicies", "meta-4", "meta-6"]).map(drop)
}

/// Services that are marked as another proxy's are left to it.
fn others(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    cluster.service("foreign", "selector: {app: a}, ports: [{port: 80, targetPort: 8080}]")?;
    let foreign = cluster.cluster_ips("foreign")?;
    let ours = stage.both("a service of ours", &["tcp"], foreign, 80, &Expect::from_any(&["a"]));
    cluster.meets(&[(stage.near(), ours)])?;
    cluster.kubectl(&["label", "service", "foreign", "service.kubernetes.io/service-proxy-name=other"])?;
    eventually("the service to be let go", || {
        let answers = cluster.probe(&stage.near(), &foreign.map(|to| target("tcp", to, 80)))?;
        ensure!(answers.iter().all(|answer| answer.outcome != "ok"), "{answers:?}");
        let list = cluster.weft(&["service", "list"])?;
        ensure!(!list.contains("default/foreign"), "{list}");
        Ok(())
    })
}

/// Names of services and pods, inside pods.
fn dns(stage: &Stage) -> Result<()> {
    let Stage { cluster, a, near, b, .. } = stage;
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: pods}, spec: {clusterIP: None, ipFamilyPolicy: RequireDualStack, \
         selector: {role: server}, ports: [{name: web, port: 8080}]}}",
    )?;
    let own = cluster.cluster_ips("own")?;
    let ask = |name: &str, kind: &str| {
        cluster.kubectl(&["exec", &near.name, "--", "/weft", "toolbox", "dns", "--type", kind, name])
    };
    let full = "own.default.svc.cluster.local";
    let reversed = {
        let IpAddr::V4(v4) = own[0] else { anyhow::bail!("{own:?}") };
        let [one, two, three, four] = v4.octets();
        format!("{four}.{three}.{two}.{one}.in-addr.arpa")
    };
    for (name, kind, wanted) in [
        (full, "A", vec![own[0].to_string()]),
        (full, "AAAA", vec![own[1].to_string()]),
        ("pods.default.svc.cluster.local", "A", vec![a.addresses[0].to_string(), b.addresses[0].to_string()]),
        ("pods.default.svc.cluster.local", "AAAA", vec![a.addresses[1].to_string(), b.addresses[1].to_string()]),
        ("_t._tcp.own.default.svc.cluster.local", "SRV", vec!["80".to_owned(), full.to_owned()]),
        (&reversed, "PTR", vec![full.to_owned()]),
    ] {
        eventually("a name", || {
            let answer = ask(name, kind)?;
            let complete = wanted.iter().all(|part| answer.contains(part.as_str()));
            ensure!(answer.contains("NOERROR") && complete, "{kind} {name}: {answer}, expected {wanted:?}");
            Ok(())
        })?;
    }
    let none = ask("nobody.default.svc.cluster.local", "A").unwrap_or_else(|error| error.to_string());
    ensure!(none.contains("NXDOMAIN"), "{none}");
    // The short name, by the pod's own resolver.
    for name in ["own", "own.default", "own.default.svc"] {
        let answers = cluster.probe(&stage.near(), &[format!("tcp://{name}:80"), format!("udp://{name}:80")])?;
        ensure!(answers.iter().all(|answer| answer.pod() == Some("a")), "{name}: {answers:?}");
    }
    Ok(())
}
