//! A whole cluster with stand-ins for agent, operator and CNI: up, pods, logs, restarts, down. Needs root, and the example
//! `local` of this crate, which `cargo test` builds unless it is told `--test`.

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_local::cgroup::Cgroup;
use weft_local::client::Client;
use weft_local::cluster::paths::Paths;
use weft_local::cluster::{self, UpOptions};
use weft_local::kubeconfig::Access;
use weft_local::netns;
use weft_local::process::Process;

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
        for program in ["weft", "weft-agent", "weft-operator", "weft-cni"] {
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
