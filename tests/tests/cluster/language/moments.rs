//! Nodes as subjects, audit mode, preview, established connections, and what is refused.

use super::{Stage, Tcp, node_addresses, on_client, on_server};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use weft_tests::cluster::eventually;

pub(super) fn nodes(stage: &Stage) -> Result<()> {
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

pub(super) fn audit(stage: &Stage) -> Result<()> {
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
pub(super) fn preview(stage: &Stage) -> Result<()> {
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
pub(super) fn live(stage: &Stage) -> Result<()> {
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
pub(super) fn refused(stage: &Stage) -> Result<()> {
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
