//! What is wrong with a Service is told on the object itself, and costs the other services nothing.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_tests::cluster::{Cluster, eventually};
use weft_tests::service::{Case, Client, Expect, target};

#[test]
fn wrong_services_are_told_and_harm_nobody() -> Result<()> {
    let cluster =
        Cluster::up("sb", &["--nodes", "2", "--agent", "external-ips-allowed=192.0.2.0/24,2001:db8:90::/64"])?;
    cluster.pod("server", "node-1", "role: server")?;
    let client = Client::Pod(cluster.pod("client", "node-2", "role: client")?);
    let external = "externalIPs: [192.0.2.90, '2001:db8:90::90']";
    cluster
        .service("good", &format!("selector: {{app: server}}, {external}, ports: [{{port: 80, targetPort: 8080}}]"))?;
    let stage = Stage { cluster, client };
    stage.good()?;
    slices(&stage).context("EndpointSlices")?;
    conflict(&stage).context("two services with one frontend")?;
    frontends(&stage).context("addresses and ports of others")?;
    node_port(&stage).context("a NodePort outside of the range")?;
    pools(&stage).context("pools that overlap")?;
    annotations(&stage).context("annotations that are not understood")?;
    stage.cluster.down()
}

struct Stage {
    cluster: Cluster,
    client: Client,
}

impl Stage {
    /// The good service, at its own and its external addresses.
    fn good(&self) -> Result<()> {
        let mut cases = Vec::new();
        let external = ["192.0.2.90".parse()?, "2001:db8:90::90".parse()?];
        for to in self.cluster.cluster_ips("good")?.into_iter().chain(external) {
            cases.push(Case::new("the good service", "tcp", to, 80, Expect::from_any(&["server"])));
        }
        self.cluster.meets(&[(self.client.clone(), cases)])
    }

    /// Everything that is told about an object: its conditions and its events.
    fn told(&self, kind: &str, name: &str) -> Result<String> {
        let object = self.cluster.object(kind, name)?;
        let events = self.cluster.kubectl(&["get", "events", "-A", "-o", "json"])?;
        let events: Value = serde_json::from_str(&events)?;
        let mut told = object["status"]["conditions"].to_string();
        for event in events["items"].as_array().into_iter().flatten() {
            let about =
                if event["involvedObject"].is_object() { &event["involvedObject"] } else { &event["regarding"] };
            if about["uid"] == object["metadata"]["uid"] {
                for field in ["type", "reason", "message", "note"] {
                    told.push(' ');
                    told.push_str(event[field].as_str().unwrap_or_default());
                }
            }
        }
        Ok(told)
    }

    /// The object tells what is wrong with it, in these words; the good service stands.
    fn tells(&self, kind: &str, name: &str, words: &[&str]) -> Result<()> {
        eventually("the problem to be told", || {
            let told = self.told(kind, name)?;
            let all = words.iter().all(|word| told.contains(word));
            ensure!(all, "expected {words:?} of {kind} {name}: {told}");
            Ok(())
        })?;
        self.good()
    }

    /// Either the API server refuses the object in these words, or it is told on the object.
    fn refused_or_told(&self, kind: &str, name: &str, yaml: &str, words: &[&str]) -> Result<()> {
        let output = self.cluster.try_apply(yaml)?;
        if output.status.success() {
            return self.tells(kind, name, words);
        }
        let refusal = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(words.iter().all(|word| refusal.contains(word)), "the refusal does not say {words:?}: {refusal}");
        self.good()
    }
}

/// Of a slice with something wrong nothing counts; a good slice of the same service goes on.
fn slices(stage: &Stage) -> Result<()> {
    let Stage { cluster, client } = stage;
    let server: Value = cluster.object("pod", "server")?;
    let address = server["status"]["podIP"].as_str().context("podIP")?.to_owned();
    cluster
        .apply("{apiVersion: v1, kind: Service, metadata: {name: by-hand}, spec: {ports: [{name: web, port: 80}]}}")?;
    let slice = |name: &str, address: &str, port: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, \
             labels: {{kubernetes.io/service-name: by-hand}}}}, addressType: IPv4, \
             endpoints: [{{addresses: ['{address}'], conditions: {{ready: true}}}}], \
             ports: [{{name: web, protocol: TCP, port: {port}}}]}}"
        )
    };
    cluster.apply(&slice("fine", &address, "8080"))?;
    let to = cluster.object("service", "by-hand")?["spec"]["clusterIP"].as_str().context("clusterIP")?.parse()?;
    let works = || {
        let case = Case::new("a service by hand", "tcp", to, 80, Expect::from_any(&["server"]));
        cluster.meets(&[(client.clone(), vec![case])])
    };
    works()?;
    for (name, address, port, word) in [
        ("not-an-address", "10.0.0.256", "8080", "address"),
        ("loopback", "127.0.0.1", "8080", "127.0.0.1"),
        ("link-local", "169.254.1.1", "8080", "169.254.1.1"),
        ("no-port", &address, "0", "port"),
    ] {
        stage.refused_or_told("endpointslice", name, &slice(name, address, port), &[word]).context(name)?;
        // Backends are chosen at random: a bad one among them would show.
        let pods = cluster.answering(client, &target("tcp", to, 80), 40)?;
        ensure!(pods.len() == 1, "{name}: {pods:?}");
        cluster.kubectl(&["delete", "endpointslice", name, "--ignore-not-found"])?;
    }
    works()
}

/// The older service keeps what both want.
fn conflict(stage: &Stage) -> Result<()> {
    let Stage { cluster, client } = stage;
    cluster.pod("other", "node-2", "role: other")?;
    cluster.service(
        "late",
        "selector: {app: other}, externalIPs: [192.0.2.90, '2001:db8:90::90'], ports: [{port: 80, targetPort: 8080}]",
    )?;
    stage.tells("service", "late", &["192.0.2.90", "default/good"])?;
    // The rest of it works.
    let own = cluster.cluster_ips("late")?;
    let cases = own.map(|to| Case::new("what nobody else wants", "tcp", to, 80, Expect::from_any(&["other"]))).to_vec();
    cluster.meets(&[(client.clone(), cases)])?;
    cluster.kubectl(&["delete", "service", "late"])?;
    stage.good()
}

/// A Service and a pod get no address of the cluster's machines, and no port of the node's programs.
fn frontends(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    let node = cluster.node_ips("node-1")?;
    for (n, address) in node.iter().map(ToString::to_string).chain(["198.51.100.9".to_owned()]).enumerate() {
        let name = format!("greedy-{n}");
        cluster
            .service(&name, &format!("selector: {{app: other}}, externalIPs: ['{address}'], ports: [{{port: 80}}]"))?;
        stage.tells("service", &name, &["FrontendRefused", &address])?;
        cluster.kubectl(&["delete", "service", &name])?;
    }
    cluster.pod_with("kubelet", "node-1", "role: other", "ports: [{containerPort: 8080, hostPort: 10250}]")?;
    eventually("the hostPort to be refused in the status", || {
        // With a problem it exits with a code of its own.
        let output = cluster.try_weft(&["status", "--node", "node-1"])?;
        let status = String::from_utf8_lossy(&output.stdout);
        ensure!(status.contains("hostPort 10250") && status.contains("default/kubelet"), "{status}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pod", "kubelet", "--wait"])?;
    stage.good()
}

fn node_port(stage: &Stage) -> Result<()> {
    let yaml = "{apiVersion: v1, kind: Service, metadata: {name: low}, spec: {type: NodePort, selector: {app: server}, \
                ports: [{port: 80, targetPort: 8080, nodePort: 8443}]}}";
    stage.refused_or_told("service", "low", yaml, &["8443", "30000-32767"])?;
    // Nobody answers there.
    for to in stage.cluster.node_ips("node-1")? {
        let answers = stage.cluster.probe(&Client::Outside, &[target("tcp", to, 8443)])?;
        ensure!(answers[0].outcome == "refused", "{answers:?}");
    }
    stage.cluster.kubectl(&["delete", "service", "low", "--ignore-not-found"]).map(drop)
}

/// Of two pools that overlap, the younger is not used and says so; what the older gave stays.
fn pools(stage: &Stage) -> Result<()> {
    let Stage { cluster, .. } = stage;
    let pool = |name: &str, block: &str| {
        format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumLoadBalancerIPPool, metadata: {{name: {name}}}, \
             spec: {{blocks: [{{cidr: '{block}'}}]}}}}"
        )
    };
    cluster.apply(&pool("first", "203.0.113.0/28"))?;
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: balanced}, spec: {type: LoadBalancer, \
         selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}}",
    )?;
    let given = || -> Result<String> {
        let ingress = cluster.object("service", "balanced")?["status"]["loadBalancer"]["ingress"].clone();
        Ok(ingress[0]["ip"].as_str().context("no address yet")?.to_owned())
    };
    let before = eventually("an address from the pool", given)?;
    ensure!(before.starts_with("203.0.113."), "{before}");
    cluster.apply(&pool("second", "203.0.113.8/29"))?;
    stage.tells("ciliumloadbalancerippool", "second", &["first"])?;
    ensure!(given()? == before, "an address was taken away");
    stage.refused_or_told(
        "ciliumloadbalancerippool",
        "nonsense",
        &pool("nonsense", "203.0.113.300/28"),
        &["203.0.113.300/28"],
    )?;
    cluster.kubectl(&["delete", "ciliumloadbalancerippool", "nonsense", "--ignore-not-found"])?;
    ensure!(given()? == before, "an address was taken away");
    let to = before.parse()?;
    let case = Case::new("the balanced service", "tcp", to, 80, Expect::from_any(&["server"]));
    cluster.meets(&[(stage.client.clone(), vec![case])])
}

/// What would narrow who is served is not ignored.
fn annotations(stage: &Stage) -> Result<()> {
    let Stage { cluster, client } = stage;
    let object = |value: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: marked, annotations: \
             {{service.cilium.io/lb-algorithm: {value}}}}}, spec: {{selector: {{app: server}}, \
             ports: [{{port: 80, targetPort: 8080}}]}}}}"
        )
    };
    cluster.apply(&object("maglev"))?;
    let to = cluster.object("service", "marked")?["spec"]["clusterIP"].as_str().context("clusterIP")?.parse()?;
    let case = Case::new("a marked service", "tcp", to, 80, Expect::from_any(&["server"]));
    cluster.meets(&[(client.clone(), vec![case.clone()])])?;
    cluster.apply(&object("dice"))?;
    stage.tells("service", "marked", &["lb-algorithm", "dice"])?;
    // What was in force stays.
    cluster.meets(&[(client.clone(), vec![case])])
}
