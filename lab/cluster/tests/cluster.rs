//! A whole cluster with stand-ins for agent, operator and CNI: up, pods, logs, restarts, down. Needs root, and the example
//! `local` of this crate, which `cargo test` builds unless it is told `--test`.

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_lab_client::Client;
use weft_lab_client::kubeconfig::Access;
use weft_lab_cluster as cluster;
use weft_lab_config::UpOptions;
use weft_lab_config::paths::Paths;
use weft_sys::cgroup::Cgroup;
use weft_sys::netns;
use weft_sys::process::Process;

/// A cluster that goes when the test does.
struct Cluster {
    options: UpOptions,
    programs: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    fn new(test: &str, change: impl FnOnce(&mut UpOptions)) -> Self {
        let own = std::env::current_exe().expect("has a place");
        let example = own.ancestors().nth(2).expect("is in deps").join("examples/local");
        let name = format!("{test}{}", std::process::id());
        let programs = std::env::temp_dir().join(format!("weft-programs-{name}"));
        fs::create_dir_all(&programs).expect("temporary directory");
        for program in ["weft-lab", "weft-agent", "weft-operator", "weft-cni"] {
            std::os::unix::fs::symlink(&example, programs.join(program)).expect("links");
        }
        let mut options = UpOptions { name, bin_dir: Some(programs.clone()), ..UpOptions::default() };
        change(&mut options);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { options, programs, runtime }
    }

    fn up(&self) -> cluster::UpReport {
        cluster::up(&self.options, &mut |_| {}).unwrap_or_else(|e| panic!("up: {e}\n{}", self.logs()))
    }

    fn logs(&self) -> String {
        let dir = self.paths().logs();
        let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_file());
        files.map(|p| format!("--- {}\n{}\n", p.display(), fs::read_to_string(&p).unwrap_or_default())).collect()
    }

    fn paths(&self) -> Paths {
        Paths::new(&self.options.name)
    }

    fn client(&self) -> Client {
        Client::new(Access::read(&self.paths().kubeconfig()).expect("a kubeconfig")).expect("credentials")
    }

    fn get(&self, path: &str) -> Value {
        // A connection belongs to the moment of its use: the runtime stands still between two calls.
        self.runtime.block_on(async { self.client().get(path).await }).unwrap_or(Value::Null)
    }

    fn pod(&self, name: &str, spec: Value) {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
        let made = self.runtime.block_on(async { self.client().create("/api/v1/namespaces/default/pods", &pod).await });
        made.expect("the pod can be made");
    }

    fn status(&self, name: &str) -> Value {
        self.get(&format!("/api/v1/namespaces/default/pods/{name}"))["status"].take()
    }

    fn wait(&self, what: &str, fact: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !fact() {
            assert!(Instant::now() < deadline, "{what}: not in time\n{}", self.logs());
            std::thread::yield_now();
        }
    }

    fn process(&self, name: &str) -> Option<Process> {
        Process::read(&self.paths().processes().join(format!("{name}.json"))).filter(|p| p.alive())
    }

    fn check_gone(&self) {
        let paths = self.paths();
        assert!(!paths.run().exists() && !paths.lib().exists(), "files are left");
        assert!(!netns::list().iter().any(|n| paths.owns_netns(n)), "a namespace is left");
        assert!(!Cgroup::at(paths.cgroup()).expect("cgroup version 2").path().exists(), "a control group is left");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("is readable");
        assert!(!mounts.contains(&format!("/{}/", self.options.name)), "a mount is left");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        cluster::down(&self.options.name, false, &mut |_| {}).expect("down");
        let _ = fs::remove_dir_all(&self.programs);
        self.check_gone();
    }
}

#[test]
fn up_pods_crash_and_down() {
    let cluster = Cluster::new("c", |o| o.nodes = Some(2));
    let report = cluster.up();
    assert!(!report.already);
    assert_eq!(report.nodes, ["node-1", "node-2"]);
    assert!(cluster.up().already, "the second time it is up already");

    let toolbox = |extra: Value| {
        let mut container = json!({"name": "main", "image": "weft/toolbox"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        container
    };
    let ready = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    cluster.pod("server", json!({"containers": [toolbox(json!({"readinessProbe": ready}))]}));
    cluster.pod(
        "once",
        json!({"restartPolicy": "Never", "containers": [toolbox(json!({"args": ["sh", "-c", "exit 3"]}))]}),
    );
    cluster.pod("wrong", json!({"containers": [{"name": "main", "image": "nginx"}]}));
    cluster.wait("server is ready", || {
        let status = cluster.status("server");
        status["phase"] == "Running" && status["containerStatuses"][0]["ready"] == true
    });
    assert_eq!(cluster.status("server")["podIPs"].as_array().map(Vec::len), Some(2));
    cluster.wait("once has failed", || {
        let status = cluster.status("once");
        status["phase"] == "Failed" && status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    });
    cluster.wait("wrong says why", || {
        let waiting = cluster.status("wrong")["containerStatuses"][0]["state"]["waiting"].clone();
        waiting["reason"] == "ErrImagePull" && waiting["message"].as_str().is_some_and(|m| m.contains("nginx"))
    });
    let log = cluster.get("/api/v1/namespaces/default/pods/server/log");
    assert!(log.as_str().is_some_and(|l| l.contains("serves TCP")), "{log}");

    // Whoever dies comes again, and takes no pod with it.
    let before = cluster.status("server")["containerStatuses"][0]["containerID"].clone();
    for name in ["runner-node-1", "runner-node-2", "apiserver", "supervisor"] {
        let process = cluster.process(name).unwrap_or_else(|| panic!("{name} runs"));
        process.signal(nix::sys::signal::SIGKILL);
        cluster.wait("it is dead", || !process.alive());
        if name == "supervisor" {
            assert!(cluster.up().nodes.len() == 2);
        }
        cluster.wait("it runs again", || cluster.process(name).is_some());
    }
    cluster.pod("later", json!({"containers": [toolbox(json!({}))]}));
    cluster.wait("a new pod runs", || cluster.status("later")["phase"] == "Running");
    assert_eq!(cluster.status("server")["containerStatuses"][0]["containerID"], before);

    let path = "/api/v1/namespaces/default/pods/server";
    cluster.runtime.block_on(async { cluster.client().delete(path, None).await }).expect("delete");
    cluster.wait("server is gone", || cluster.get(path).is_null());

    // Everything dies at once: down cleans up all the same (see Drop).
    Cgroup::at(cluster.paths().cgroup()).expect("cgroup version 2").kill();
}

#[test]
fn one_family_alone() {
    for family in ["ipv4", "ipv6"] {
        let cluster = Cluster::new(&family.replace("ipv", "f"), |o| {
            o.nodes = Some(1);
            o.ip_families = Some(family.into());
        });
        assert_eq!(cluster.up().nodes.len(), 1);
        let status = cluster::status(&cluster.options.name).expect("is there");
        assert_eq!(status.nodes[0].addresses.len(), 1);
        assert!(status.api_server && status.nodes[0].ready);
    }
}

#[test]
fn a_cluster_that_exists_is_not_changed_by_other_options() {
    let cluster = Cluster::new("o", |o| o.nodes = Some(1));
    cluster.up();
    let other = UpOptions { nodes: Some(2), ..cluster.options.clone() };
    let error = cluster::up(&other, &mut |_| {}).expect_err("is refused").to_string();
    assert!(error.starts_with("--nodes 2: cluster "), "{error}");
}

/// A Deployment of two toolbox pods that take a while to end, and two Services of it.
fn shop(cluster: &Cluster) {
    let labels = json!({"app": "web"});
    let container = json!({
        "name": "main", "image": "weft/toolbox", "ports": [{"name": "main", "containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": "main"}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
    });
    let spec = json!({"containers": [container], "terminationGracePeriodSeconds": 20});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec}},
    });
    let service = |name: &str, address: Value| {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": labels, "ipFamilyPolicy": "RequireDualStack", "trafficDistribution": "PreferClose",
                "ports": [{"name": "main", "port": 80, "targetPort": "main"}]},
        });
        if address.is_string() {
            service["spec"]["clusterIP"] = address;
        }
        service
    };
    cluster.runtime.block_on(async {
        let client = cluster.client();
        client.create("/apis/apps/v1/namespaces/default/deployments", &deployment).await.expect("a deployment");
        for (name, address) in [("web", Value::Null), ("all", json!("None"))] {
            client.create("/api/v1/namespaces/default/services", &service(name, address)).await.expect("a service");
        }
    });
}

impl Cluster {
    /// Endpoints of a service's slices of one family.
    fn endpoints(&self, service: &str, family: &str) -> Vec<Value> {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        let list = self.get(&format!("{path}?labelSelector=kubernetes.io%2Fservice-name%3D{service}"));
        let slices = list["items"].as_array().cloned().unwrap_or_default();
        let own = slices.iter().filter(|s| s["addressType"] == family);
        own.flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default()).collect()
    }

    /// What a program prints that runs on a node.
    fn on_node(&self, node: &str, command: &[&str]) -> String {
        let weft = self.programs.join("weft-lab");
        let output = std::process::Command::new(&weft)
            .args(["internal", "run", &self.options.name, node, "--"])
            .args(command)
            .output()
            .expect("runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

#[test]
fn services_follow_their_pods_and_have_names() {
    let cluster = Cluster::new("s", |o| {
        o.nodes = Some(2);
        o.zones = vec!["a,b".into()];
    });
    cluster.up();
    shop(&cluster);
    let conditions = |e: &Value| ["ready", "serving", "terminating"].map(|c| e["conditions"][c] == true);
    for family in ["IPv4", "IPv6"] {
        cluster.wait("both pods are ready", || {
            let endpoints = cluster.endpoints("web", family);
            endpoints.len() == 2 && endpoints.iter().all(|e| conditions(e) == [true, true, false])
        });
    }
    for endpoint in cluster.endpoints("web", "IPv4") {
        let zone = if endpoint["nodeName"] == "node-1" { "a" } else { "b" };
        assert_eq!((&endpoint["zone"], &endpoint["hints"]["forZones"][0]["name"]), (&json!(zone), &json!(zone)));
    }

    // Names, asked of the server's pod: there is nobody here who would translate its Service's address.
    let pods = cluster.get("/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns");
    let server = pods["items"][0]["status"]["podIP"].as_str().expect("cluster DNS runs").to_owned();
    let weft = cluster.programs.join("weft-lab");
    let ask = |name: &str, kind: &str| {
        let weft = weft.to_string_lossy();
        cluster.on_node("node-2", &[&weft, "toolbox", "dns", name, "--type", kind, "--server", &server])
    };
    let spec = cluster.get("/api/v1/namespaces/default/services/web")["spec"].take();
    for (number, kind) in [(0, "A"), (1, "AAAA")] {
        let expected = format!(
            "ok NOERROR web.default.svc.cluster.local. {kind} {}\n",
            spec["clusterIPs"][number].as_str().expect("one")
        );
        cluster.wait("the service has its name", || ask("web.default.svc.cluster.local", kind) == expected);
    }
    let all: Vec<Value> = cluster.endpoints("all", "IPv4");
    let answer = ask("all.default.svc.cluster.local", "A");
    assert!(all.iter().all(|e| answer.contains(e["addresses"][0].as_str().expect("one"))), "{answer}: {all:?}");
    assert!(ask("_main._tcp.web.default.svc.cluster.local", "SRV").contains(" SRV 0 100 80 web.default.svc"));
    assert!(ask("kubernetes.default.svc.cluster.local", "A").contains(" A 10.96.0.1"));
    cluster.pod("names", {
        let args = json!(["sh", "-c", "cat /etc/resolv.conf; sleep 100"]);
        json!({"containers": [{"name": "main", "image": "weft/toolbox", "args": args}]})
    });
    cluster.wait("pods ask cluster DNS", || {
        let log = cluster.get("/api/v1/namespaces/default/pods/names/log");
        let expected = "nameserver 10.96.0.10\nnameserver fd96::a\nsearch default.svc.cluster.local svc.cluster.local";
        log.as_str().is_some_and(|l| l.starts_with(expected) && l.contains("options ndots:5"))
    });

    // A pod that ends still serves, takes no new clients, and then is gone; another one took its place.
    let ending = cluster.endpoints("web", "IPv4")[0].clone();
    let address = ending["addresses"][0].as_str().expect("one").to_owned();
    let name = ending["targetRef"]["name"].as_str().expect("a pod").to_owned();
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    cluster.runtime.block_on(async { cluster.client().delete(&path, None).await }).expect("delete");
    let own = |family: &str| {
        let endpoints = cluster.endpoints("web", family);
        endpoints.into_iter().find(|e| e["targetRef"]["name"] == name.as_str())
    };
    cluster.wait("it is said to end", || own("IPv4").is_some_and(|e| conditions(&e) == [false, true, true]));
    let weft_text = weft.to_string_lossy();
    let answer = cluster.on_node("node-1", &[&weft_text, "toolbox", "connect", &address]);
    assert!(answer.starts_with(&format!("ok pod={name} protocol=tcp local={address}:8080 peer=")), "{answer}");
    cluster.wait("it is gone", || cluster.get(&path).is_null() && own("IPv4").is_none() && own("IPv6").is_none());
    cluster.wait("another one is ready", || {
        let endpoints = cluster.endpoints("web", "IPv6");
        endpoints.len() == 2 && endpoints.iter().all(|e| conditions(e) == [true, true, false])
    });
}
