//! NetworkPolicy through kubectl: what is denied times out, what is allowed passes, `observe` names the policy,
//! `explain` agrees, and a removed allow stops an established stream.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_tests::cluster::{Cluster, PORT, Pod, eventually};

#[test]
fn native() -> Result<()> {
    policies("pn", "native")
}

#[test]
fn vxlan() -> Result<()> {
    policies("pv", "vxlan")
}

/// A server, a client on its node and one on another.
struct Stage {
    cluster: Cluster,
    server: Pod,
    near: Pod,
    far: Pod,
}

fn policies(label: &str, routing: &str) -> Result<()> {
    let cluster = Cluster::up(label, &["--routing", routing, "--nodes", "2"])?;
    let ports = "ports: [{name: web, containerPort: 8080}, {name: dns, containerPort: 8080, protocol: UDP}]";
    let server = cluster.pod_with("server", "node-1", "role: server", ports)?;
    let near = cluster.pod("near", "node-1", "role: client")?;
    let far = cluster.pod("far", "node-2", "role: client")?;
    let stage = Stage { cluster, server, near, far };
    deny_and_allow(&stage).context("default deny and allow")?;
    labels(&stage).context("labels that change")?;
    blocks(&stage).context("ipBlock")?;
    ports_and_ranges(&stage).context("ports")?;
    egress(&stage).context("egress")?;
    for (from, options) in [(&stage.near, "--udp"), (&stage.far, "--udp"), (&stage.far, "--tcp")] {
        for family in 0..2 {
            revoked(&stage, from, options, family).with_context(|| format!("{options} from {} revoked", from.name))?;
        }
    }
    bad(&stage).context("invalid policy")?;
    stage.cluster.down()
}

const SERVER: &str = "podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]";

/// `explain` says the same as packets.
fn agree(stage: &Stage, from: &Pod, port: &str, allowed: bool) -> Result<Value> {
    let (says, answer) = stage.cluster.explain(from, &stage.server, port)?;
    ensure!(says == allowed, "explain: {answer}");
    Ok(answer)
}

fn deny_and_allow(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, near, far } = stage;
    for from in [near, far] {
        cluster.reaches(from, "--tcp", server, PORT)?;
        agree(stage, from, "8080/tcp", true)?;
    }
    cluster.policy("deny", &format!("{{{SERVER}}}"))?;
    for from in [near, far] {
        for options in ["--tcp", "--udp", "--sctp"] {
            cluster.times_out(from, options, server, PORT)?;
        }
        let answer = agree(stage, from, "8080/tcp", false)?;
        ensure!(answer["ingress"]["policies"][0]["name"] == "deny", "explain names another policy: {answer}");
        for address in &server.addresses {
            let from_pod = format!("default/{}", from.name);
            let address = address.to_string();
            let seen = cluster.observe(&["--verdict", "dropped", "--from-pod", &from_pod, "--ip", &address])?;
            ensure!(!seen.is_empty(), "no drop {from_pod} -> {address} was seen");
            for flow in seen {
                ensure!(flow["drop_reason"]["text"] == "Policy denied", "reason: {flow}");
                let policy = &flow["policies"][0];
                ensure!(policy["kind"] == "NetworkPolicy" && policy["name"] == "deny", "policy: {flow}");
                ensure!(policy["namespace"] == "default" && flow["destination"]["pod"] == "server", "names: {flow}");
            }
        }
    }
    // The pod itself and its node are always let in.
    cluster.reaches(server, "--tcp", server, PORT)?;

    cluster.policy(
        "allow",
        &format!("{{{SERVER}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: far}}}}}}]}}]}}"),
    )?;
    for options in ["--tcp", "--udp", "--sctp"] {
        cluster.reaches(far, options, server, PORT)?;
        cluster.times_out(near, options, server, PORT)?;
    }
    let answer = agree(stage, far, "8080/tcp", true)?;
    ensure!(answer["ingress"]["policies"][0]["name"] == "allow", "explain names another policy: {answer}");
    agree(stage, near, "8080/tcp", false)?;
    cluster.no_policy("allow")?;
    cluster.times_out(far, "--tcp", server, PORT)
}

fn labels(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, near, far } = stage;
    cluster.policy(
        "allow",
        &format!("{{{SERVER}, ingress: [{{from: [{{podSelector: {{matchLabels: {{door: open}}}}}}]}}]}}"),
    )?;
    cluster.times_out(far, "--tcp", server, PORT)?;
    for from in [near, far] {
        cluster.kubectl(&["label", "pod", &from.name, "door=open"])?;
        eventually("a label to count", || cluster.reaches(from, "--tcp --timeout 1", server, PORT))?;
        cluster.kubectl(&["label", "pod", &from.name, "door-"])?;
        eventually("a label to be gone", || cluster.times_out(from, "--tcp", server, PORT))?;
    }
    cluster.kubectl(&["create", "namespace", "team"])?;
    let other = cluster.pod("team/guest", "node-2", "role: guest")?;
    cluster.policy(
        "allow",
        &format!("{{{SERVER}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{trust: high}}}}}}]}}]}}"),
    )?;
    cluster.times_out(&other, "--tcp", server, PORT)?;
    cluster.kubectl(&["label", "namespace", "team", "trust=high"])?;
    eventually("a namespace's label to count", || cluster.reaches(&other, "--tcp --timeout 1", server, PORT))?;
    cluster.kubectl(&["label", "namespace", "team", "trust-"])?;
    eventually("a namespace's label to be gone", || cluster.times_out(&other, "--tcp", server, PORT))?;
    cluster.kubectl(&["delete", "namespace", "team"])?;
    cluster.no_policy("allow")
}

/// Prefixes match pods, too.
fn blocks(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, near, far } = stage;
    let mut from = Vec::new();
    for address in &far.addresses {
        let length = if address.is_ipv4() { 32 } else { 128 };
        from.push(format!("{{ipBlock: {{cidr: '{address}/{length}'}}}}"));
    }
    cluster.policy("allow", &format!("{{{SERVER}, ingress: [{{from: [{}]}}]}}", from.join(", ")))?;
    cluster.reaches(far, "--tcp", server, PORT)?;
    cluster.times_out(near, "--tcp", server, PORT)?;
    let all_but = |pod: &Pod| -> String {
        let except = |address: &std::net::IpAddr| match address {
            std::net::IpAddr::V4(v4) => format!("{{ipBlock: {{cidr: 0.0.0.0/0, except: [{v4}/32]}}}}"),
            std::net::IpAddr::V6(v6) => format!("{{ipBlock: {{cidr: '::/0', except: ['{v6}/128']}}}}"),
        };
        pod.addresses.iter().map(except).collect::<Vec<_>>().join(", ")
    };
    cluster.policy("allow", &format!("{{{SERVER}, ingress: [{{from: [{}]}}]}}", all_but(far)))?;
    cluster.reaches(near, "--udp", server, PORT)?;
    cluster.times_out(far, "--udp", server, PORT)?;
    cluster.no_policy("allow")
}

fn ports_and_ranges(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, far, .. } = stage;
    for (ports, tcp, udp) in [
        ("[{port: 8080}]", true, false),
        ("[{port: 8080, protocol: UDP}]", false, true),
        ("[{port: web}]", true, false),
        ("[{port: dns, protocol: UDP}]", false, true),
        ("[{port: 8000, endPort: 8080}]", true, false),
        ("[{port: 8081, endPort: 9000}]", false, false),
        ("[{port: 8000, endPort: 9000, protocol: UDP}, {port: 8080}]", true, true),
    ] {
        cluster.policy("allow", &format!("{{{SERVER}, ingress: [{{ports: {ports}}}]}}"))?;
        for (options, port, allowed) in [("--tcp", "8080/tcp", tcp), ("--udp", "8080/udp", udp)] {
            let outcome = if allowed {
                cluster.reaches(far, options, server, PORT)
            } else {
                cluster.times_out(far, options, server, PORT)
            };
            outcome.with_context(|| format!("ports: {ports}"))?;
            agree(stage, far, port, allowed).with_context(|| format!("ports: {ports}"))?;
        }
    }
    cluster.no_policy("allow")?;
    cluster.no_policy("deny")
}

fn egress(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, near, far } = stage;
    cluster.policy("deny", "{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress]}")?;
    cluster.times_out(near, "--tcp", server, PORT)?;
    cluster.times_out(far, "--tcp", server, PORT)?;
    // Who may not ask may still answer.
    cluster.reaches(server, "--tcp", far, PORT)?;
    cluster.policy(
        "allow",
        "{podSelector: {matchLabels: {app: far}}, policyTypes: [Egress], \
         egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: web}]}]}",
    )?;
    cluster.reaches(far, "--tcp", server, PORT)?;
    cluster.times_out(far, "--udp", server, PORT)?;
    cluster.times_out(far, "--tcp", near, PORT)?;
    cluster.no_policy("allow")?;
    cluster.no_policy("deny")
}

/// Nothing that was sent after the policy was gone comes back.
fn revoked(stage: &Stage, from: &Pod, options: &str, family: usize) -> Result<()> {
    let Stage { cluster, server, .. } = stage;
    cluster.policy("deny", &format!("{{{SERVER}}}"))?;
    cluster.policy(
        "allow",
        &format!("{{{SERVER}, ingress: [{{from: [{{podSelector: {{matchLabels: {{role: client}}}}}}]}}]}}"),
    )?;
    let rate = if options == "--tcp" { 300 } else { 2000 };
    let options = format!("{options} --rate {rate} --duration 5 --interval 0.05");
    let mut stream = cluster.stream(from, &options, server.addresses[family])?;
    eventually("the stream", || {
        let report = stream.report()?;
        ensure!(report["received"].as_u64() > Some(100), "{report}");
        Ok(())
    })?;
    cluster.no_policy("allow")?;
    // Of the reports to come, the first that was made after this moment may hold what came before it.
    let began = std::time::Instant::now();
    let mut frozen = stream.report()?;
    while began.elapsed() < std::time::Duration::from_millis(200) {
        frozen = stream.report()?;
    }
    ensure!(frozen["final"] != true, "the stream was over before the policy was gone: {frozen}");
    let last = stream.finish()?;
    ensure!(last["received"] == frozen["received"], "still received: {frozen}, then {last}");
    ensure!(last["sent"].as_u64() > last["received"].as_u64(), "nothing was stopped: {last}");
    cluster.no_policy("deny")
}

/// What is wrong is refused or reported, and what was in force stays.
fn bad(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, far, .. } = stage;
    cluster.policy("guard", &format!("{{{SERVER}, ingress: [{{ports: [{{port: 8080}}]}}]}}"))?;
    cluster.reaches(far, "--tcp", server, PORT)?;
    for (spec, field) in [
        (format!("{{{SERVER}, ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/33}}}}]}}]}}"), "cidr"),
        (format!("{{{SERVER}, ingress: [{{ports: [{{port: 9000, endPort: 8000}}]}}]}}"), "endPort"),
        (format!("{{{SERVER}, ingress: [{{ports: [{{port: 80, protocol: QUIC}}]}}]}}"), "protocol"),
    ] {
        let object = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: guard}}, spec: {spec}}}"
        );
        let output = cluster.try_apply(&object)?;
        let refusal = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            // A server that takes it: then the agents say what is wrong with it.
            eventually("the problem to be reported", || {
                let problems = cluster.weft(&["policy", "list"])?;
                ensure!(problems.contains(field), "no word of {field}: {problems}");
                Ok(())
            })?;
        } else {
            ensure!(refusal.contains(field), "the refusal does not name {field}: {refusal}");
        }
        cluster.reaches(far, "--tcp", server, PORT)?;
        cluster.times_out(far, "--udp", server, PORT)?;
    }
    Ok(())
}
