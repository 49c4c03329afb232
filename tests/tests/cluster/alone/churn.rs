//! Policies that change under load: no connection that is allowed by all of them is dropped, none that is denied by all
//! of them passes, in either family.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_oracle::effort::effort;
use weft_tests::cluster::{Cluster, PORT, Stream};

/// Changes of policies, each waited for: in the gate, and in a run of full size.
const CHANGES: [usize; 2] = [40, 100];
/// Seconds of load per family; the changes of a family must fit into it.
const LOAD_S: [u64; 2] = [25, 40];

const SERVER: &str = "endpointSelector: {matchLabels: {app: server}}";

/// Bodies that all allow the client and none allows the stranger, each in another way.
fn variant(n: usize) -> String {
    let port = 9000 + n;
    let body = match n % 8 {
        0 => "ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]".to_owned(),
        1 => format!(
            "ingress: [{{fromEndpoints: [{{matchLabels: {{role: client}}}}], \
             toPorts: [{{ports: [{{port: '8080', protocol: TCP}}, {{port: '{port}'}}]}}]}}]"
        ),
        2 => format!(
            "ingress: [{{fromEndpoints: [{{}}]}}], \
             ingressDeny: [{{fromEndpoints: [{{matchLabels: {{app: stranger}}}}]}}, \
             {{fromEntities: [world], toPorts: [{{ports: [{{port: '{port}'}}]}}]}}]"
        ),
        3 => format!(
            "ingress: [{{fromEndpoints: [{{matchExpressions: [{{key: app, operator: In, values: [client, v{n}]}}]}}], \
             toPorts: [{{ports: [{{port: '8000', endPort: {port}, protocol: TCP}}]}}]}}]"
        ),
        4 => "ingress: [{fromEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [stranger]}]}]}]".to_owned(),
        5 => "ingress: [{fromEntities: [cluster]}], ingressDeny: [{fromEndpoints: [{matchLabels: {role: stranger}}]}]".to_owned(),
        6 => "ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: web, protocol: TCP}]}]}]".to_owned(),
        _ => format!("ingress: [{{fromEndpoints: [{{matchLabels: {{app: client}}}}, {{matchLabels: {{app: v{n}}}}}]}}]"),
    };
    format!("spec: {{{SERVER}, {body}}}")
}

#[test]
fn changes_under_load_never_err() -> Result<()> {
    let cluster = Cluster::up("ch", &["--nodes", "2"])?;
    let ports = "ports: [{name: web, containerPort: 8080}]";
    let server = cluster.pod_with("server", "node-1", "role: server", ports)?;
    let client = cluster.pod("client", "node-2", "role: client")?;
    let stranger = cluster.pod("stranger", "node-2", "role: stranger")?;
    let (most, load_s) = (effort(CHANGES[0], CHANGES[1]), effort(LOAD_S[0], LOAD_S[1]));
    let mut changes = 0;
    for (family, address) in server.addresses.iter().enumerate() {
        cluster.rules("cnp", "churn", &variant(0))?;
        cluster.reaches(&client, "--tcp", &server, PORT)?;
        cluster.times_out(&stranger, "--tcp", &server, PORT)?;
        let allowed = cluster.load(&client, &format!("--hold 1000 --rate 1000 --duration {load_s}"), *address)?;
        let denied =
            cluster.load(&stranger, &format!("--hold 0 --rate 1000 --timeout 0.5 --duration {load_s}"), *address)?;
        let began = std::time::Instant::now();
        while changes < most * (family + 1) / server.addresses.len() && began.elapsed().as_secs() < load_s - 2 {
            changes += 1;
            cluster.rules("cnp", "churn", &variant(changes))?;
        }
        let (allowed, denied) = (finish(allowed)?, finish(denied)?);
        let count = |report: &Value, what: &str| report[what].as_u64().unwrap_or(u64::MAX);
        ensure!(count(&allowed, "held") == 1000 && count(&allowed, "broken") == 0, "long connections: {allowed}");
        let all = count(&allowed, "ok") == count(&allowed, "opened");
        ensure!(all && count(&allowed, "opened") > 10 * load_s, "new connections: {allowed}");
        let none = count(&denied, "timeout") == count(&denied, "opened");
        ensure!(none && count(&denied, "opened") > 10 * load_s, "denied connections: {denied}");
    }
    ensure!(changes == most, "only {changes} changes");
    cluster.down()
}

fn finish(load: Stream) -> Result<Value> {
    load.finish().context("the load")
}
