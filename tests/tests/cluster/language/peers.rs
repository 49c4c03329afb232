//! Whom rules name: ports by name, entities, prefixes, services, the world, oneself.

use super::{Stage, Tcp, node_addresses, on_client, on_server};
use anyhow::{Result, ensure};
use weft_tests::cluster::eventually;

pub(super) fn names_and_entities(stage: &Stage) -> Result<()> {
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

pub(super) fn cidrs(stage: &Stage) -> Result<()> {
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

/// What lets a port in without saying whom lets the world in, which comes by a port of the node; and a pod that lets
/// nothing in or out reaches itself through its own service.
pub(super) fn world_and_itself(stage: &Stage) -> Result<()> {
    let Stage { cluster, server, client, .. } = stage;
    cluster.service(
        "edge",
        "type: NodePort, selector: {app: server}, \
         ports: [{name: open, port: 80, targetPort: 8080, nodePort: 30060}, \
         {name: shut, port: 81, targetPort: 8081, nodePort: 30061}]",
    )?;
    let from_world = |port: u16, outcome: &str| -> Result<()> {
        for address in node_addresses(cluster, "node-1")? {
            let args = ["connect", "--timeout", "0.8", &address.to_string(), &port.to_string()];
            let answer = cluster.toolbox_in("outside", &args)?;
            ensure!(answer.starts_with(outcome), "outside -> {address} {port}: {answer}, expected {outcome}");
        }
        Ok(())
    };
    eventually("ports of the node", || {
        from_world(30_060, "ok pod=server").and_then(|()| from_world(30_061, "refused"))
    })?;
    let rules = on_server("ingress: [{toPorts: [{ports: [{port: '8080'}]}]}]");
    stage.with(&[("cnp", "port", &rules)], || {
        from_world(30_060, "ok pod=server")?;
        from_world(30_061, "timeout")
    })?;
    let own = cluster.cluster_ips("edge")?;
    let shut = on_server("ingress: [{}], egress: [{}]");
    stage.with(&[("cnp", "shut", &shut)], || {
        let outcomes = stage.outcomes(server, &own, Tcp(80))?;
        ensure!(outcomes.iter().all(|outcome| outcome.starts_with("ok pod=server")), "its own service: {outcomes:?}");
        let outcomes = stage.outcomes(client, &own, Tcp(80))?;
        ensure!(outcomes.iter().all(|outcome| outcome == "timeout"), "somebody else: {outcomes:?}");
        stage.drops(server, &client.addresses, Tcp(80))
    })?;
    cluster.kubectl(&["delete", "service", "edge"]).map(drop)
}

/// Ports are the pods', not the service's.
pub(super) fn services(stage: &Stage) -> Result<()> {
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
