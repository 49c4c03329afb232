//! A whole cluster for one test, through the programs that users have: `weft` and `kubectl`.
//!
//! The cluster's name carries the process id. It goes when the test ends, however it ends, and a test that succeeds
//! also proves that nothing of it was left ([`Cluster::down`]).

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a machine that does other things as well.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// Port of a toolbox pod.
pub const PORT: u16 = 8080;

/// A cluster that goes with this.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    bin_dir: PathBuf,
    kubeconfig: String,
    gone: bool,
}

/// A running pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Name, in the namespace `default` unless it has a `/`.
    pub name: String,
    /// Where it runs.
    pub node: String,
    /// One per family.
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    /// Namespace and name.
    #[must_use]
    pub fn full_name(&self) -> (&str, &str) {
        self.name.split_once('/').unwrap_or(("default", &self.name))
    }
}

/// A running `weft observe -f`.
#[derive(Debug)]
pub struct Observer(Child);

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the programs are: beside the directory that the test runs in.
///
/// # Errors
/// They were not built.
pub fn bin_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.ancestors().nth(2).context("a test runs in target/PROFILE/deps")?.to_path_buf();
    for program in ["weft", "weft-lab", "weft-agent", "weft-operator", "weft-cni"] {
        ensure!(dir.join(program).exists(), "{program} is not built: `make test` builds the programs first");
    }
    Ok(dir)
}

/// Waits until `attempt` succeeds, or says what its last problem was.
///
/// # Errors
/// The deadline passed.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("waited for {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn run(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that reads nothing may be gone already.
        let _ = stdin.write_all(input.as_bytes());
    }
    Ok(child.wait_with_output()?)
}

/// As `weft policy wait` takes it.
fn path_of(kind: &str, name: &str) -> String {
    match kind {
        "ccnp" | "clusternetworkpolicy" => format!("{kind}/{name}"),
        "cnp" => format!("{kind}/default/{name}"),
        _ => format!("default/{name}"),
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn good(what: &str, output: &Output) -> Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}\n{}{errors}", output.status, text(output));
    Ok(text(output))
}

impl Cluster {
    /// `weft up`; `label` of at most 8 letters tells clusters of one test program apart.
    ///
    /// # Errors
    /// It did not come up.
    pub fn up(label: &str, options: &[&str]) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this test needs root: it makes network namespaces");
        let name = format!("{label}{}", std::process::id());
        let mut cluster = Self { bin_dir: bin_dir()?, name, kubeconfig: String::new(), gone: false };
        cluster.weft(&[&["up"], options].concat()).context("weft up")?;
        cluster.kubeconfig = cluster.weft(&["kubeconfig"])?.trim().to_owned();
        Ok(cluster)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory of the cluster under `/run`.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run/weft").join(&self.name)
    }

    /// Directory of the programs.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("WEFT_CLUSTER", &self.name).env("KUBECONFIG", &self.kubeconfig).env_remove("WEFT_BIN_DIR");
        command
    }

    /// `weft ARGS`, whatever it answers.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_weft(&self, args: &[&str]) -> Result<Output> {
        run(self.command(&self.bin_dir.join("weft")).args(args), "")
    }

    /// `weft ARGS`, which succeeds.
    ///
    /// # Errors
    /// It does not.
    pub fn weft(&self, args: &[&str]) -> Result<String> {
        good(&format!("weft {}", args.join(" ")), &self.try_weft(args)?)
    }

    /// `weft ARGS -o json`.
    ///
    /// # Errors
    /// It fails, or prints something else.
    pub fn weft_json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.weft(&[args, &["-o", "json"]].concat())?)?)
    }

    /// The flows that match, of those that the nodes remember.
    ///
    /// # Errors
    /// `weft observe` fails.
    pub fn observe(&self, args: &[&str]) -> Result<Vec<Value>> {
        let text = self.weft(&[&["observe", "-o", "json", "--last", "1000"], args].concat())?;
        text.lines().map(|line| serde_json::from_str(line).map_err(Into::into)).collect()
    }

    /// Somebody who watches flows, for as long as this lives: what is allowed is reported only to those who look.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn observer(&self) -> Result<Observer> {
        let mut command = self.command(&self.bin_dir.join("weft"));
        let child = command.args(["observe", "-f"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Observer(child.spawn()?))
    }

    /// `kubectl ARGS`, whatever it answers.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_kubectl(&self, args: &[&str], input: &str) -> Result<Output> {
        run(self.command(Path::new("kubectl")).args(args), input)
    }

    /// `kubectl ARGS`, which goes on running; whoever asks for it ends it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_kubectl(&self, args: &[&str]) -> Result<Child> {
        let mut command = self.command(Path::new("kubectl"));
        Ok(command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// `kubectl ARGS`, which succeeds.
    ///
    /// # Errors
    /// It does not.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        good(&format!("kubectl {}", args.join(" ")), &self.try_kubectl(args, "")?)
    }

    /// `kubectl apply` of this YAML, whatever it answers.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_apply(&self, yaml: &str) -> Result<Output> {
        // Without the first line kubectl takes YAML in braces for JSON.
        self.try_kubectl(&["apply", "-f", "-"], &format!("---\n{yaml}\n"))
    }

    /// `kubectl apply` of this YAML.
    ///
    /// # Errors
    /// It is refused.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        good(&format!("kubectl apply of\n{yaml}\n"), &self.try_apply(yaml)?).map(drop)
    }

    /// Applies a NetworkPolicy in `default`, given its `spec` in one line, and waits until it is in force.
    ///
    /// # Errors
    /// It is refused, or not in force in time.
    pub fn policy(&self, name: &str, spec: &str) -> Result<()> {
        self.apply(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}}}, spec: {spec}}}"
        ))?;
        self.weft(&["policy", "wait", &format!("default/{name}")]).map(drop)
    }

    /// Deletes a NetworkPolicy of `default` and waits until it is gone from the kernel.
    ///
    /// # Errors
    /// It stays.
    pub fn no_policy(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "networkpolicy", name])?;
        self.weft(&["policy", "wait", "--gone", &format!("default/{name}")]).map(drop)
    }

    /// Applies a policy of any kind (`cnp`, `ccnp`, `netpol`, `clusternetworkpolicy`), those of a namespace in `default`,
    /// given everything behind `metadata` in one line (`spec: {...}`), and waits until it is in force.
    ///
    /// # Errors
    /// It is refused, or not in force in time.
    pub fn rules(&self, kind: &str, name: &str, body: &str) -> Result<()> {
        let (api_version, full) = match kind {
            "cnp" => ("cilium.io/v2", "CiliumNetworkPolicy"),
            "ccnp" => ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
            "clusternetworkpolicy" => ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
            _ => ("networking.k8s.io/v1", "NetworkPolicy"),
        };
        self.apply(&format!("{{apiVersion: {api_version}, kind: {full}, metadata: {{name: {name}}}, {body}}}"))?;
        self.weft(&["policy", "wait", &path_of(kind, name)]).map(drop)
    }

    /// Deletes a policy of any kind and waits until it is gone from the kernel.
    ///
    /// # Errors
    /// It stays.
    pub fn no_rules(&self, kind: &str, name: &str) -> Result<()> {
        self.kubectl(&["delete", kind, name])?;
        self.weft(&["policy", "wait", "--gone", &path_of(kind, name)]).map(drop)
    }

    /// Runs the toolbox as a process of a node, or outside: `node-1`, `outside`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn toolbox_in(&self, place: &str, args: &[&str]) -> Result<String> {
        let mut command = self.toolbox_command(place);
        let output = run(command.args(args), "")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.stdout.is_empty() || errors.is_empty(), "toolbox {args:?} in {place}: {errors}");
        Ok(text(&output).trim().to_owned())
    }

    /// `weft toolbox` as a process of a node, or outside.
    fn toolbox_command(&self, place: &str) -> Command {
        let weft = self.bin_dir.join("weft-lab");
        let mut command = Command::new(&weft);
        command.args(["internal", "run", &self.name, place, "--"]).arg(&weft).arg("toolbox");
        command
    }

    /// A toolbox that reports while it runs, as a process of a node or outside.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn background_in(&self, place: &str, args: &str) -> Result<Stream> {
        let mut command = self.toolbox_command(place);
        command.args(args.split_whitespace());
        Stream::start(command)
    }

    /// Makes a toolbox pod on a node, labelled `app=NAME` and as `labels` say (`a: b, c: d`), and waits for it.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn pod(&self, name: &str, node: &str, labels: &str) -> Result<Pod> {
        self.pod_with(name, node, labels, "")
    }

    /// The same with more fields of the container (`ports: [...]`).
    ///
    /// # Errors
    /// It does not become ready.
    pub fn pod_with(&self, name: &str, node: &str, labels: &str, container: &str) -> Result<Pod> {
        let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {short}, namespace: {namespace}, labels: {{app: {short}, {labels}}}}}, \
             spec: {{nodeName: {node}, terminationGracePeriodSeconds: 1, \
             containers: [{{name: toolbox, image: weft/toolbox, {container}}}]}}}}"
        ))?;
        self.kubectl(&["wait", "-n", namespace, "--for=condition=Ready", "--timeout=120s", &format!("pod/{short}")])?;
        let object: Value =
            serde_json::from_str(&self.kubectl(&["get", "pod", "-n", namespace, short, "-o", "json"])?)?;
        pod_of(&object).map(|pod| Pod { name: name.to_owned(), ..pod })
    }

    /// The pods of `default` that a selector names, once so many of them are Ready.
    ///
    /// # Errors
    /// They do not become Ready.
    pub fn pods(&self, selector: &str, count: usize) -> Result<Vec<Pod>> {
        eventually("pods", || {
            let list: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-l", selector, "-o", "json"])?)?;
            let items = list["items"].as_array().context("no list")?;
            ensure!(items.len() == count, "{} pods {selector}, not {count}", items.len());
            let ready = |pod: &&Value| {
                pod["status"]["conditions"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
            };
            ensure!(items.iter().all(|pod| ready(&pod)), "not all pods {selector} are Ready");
            items.iter().map(pod_of).collect()
        })
    }

    /// Runs the toolbox's client in a pod once per address: `ok ...`, `refused`, `timeout` and so on, in their order.
    ///
    /// # Errors
    /// `kubectl exec` fails.
    pub fn connect(&self, from: &Pod, options: &str, to: &[IpAddr], port: u16) -> Result<Vec<String>> {
        // All at once: those that must time out would otherwise do so one after the other.
        let mut script = "t=$(mktemp -d); ".to_owned();
        for (n, address) in to.iter().enumerate() {
            write!(script, "/weft toolbox connect {options} {address} {port} >$t/{n} & ")?;
        }
        script.push_str("wait; ");
        for n in 0..to.len() {
            write!(script, "cat $t/{n}; ")?;
        }
        script.push_str("rm -r $t");
        let (namespace, name) = from.full_name();
        let answers = self.kubectl(&["exec", "-n", namespace, name, "--", "sh", "-c", &script])?;
        let answers: Vec<String> = answers.lines().map(str::to_owned).collect();
        ensure!(answers.len() == to.len(), "{} answers of {}: {answers:?}", answers.len(), to.len());
        Ok(answers)
    }

    /// Both families answer.
    ///
    /// # Errors
    /// One does not.
    pub fn reaches(&self, from: &Pod, options: &str, to: &Pod, port: u16) -> Result<()> {
        let answers = self.connect(from, options, &to.addresses, port)?;
        let all_fine = answers.iter().all(|answer| answer.starts_with("ok"));
        ensure!(all_fine, "{} -> {} {options} {port}: {answers:?}, expected ok", from.name, to.name);
        Ok(())
    }

    /// Nothing comes back, in either family.
    ///
    /// # Errors
    /// Something does.
    pub fn times_out(&self, from: &Pod, options: &str, to: &Pod, port: u16) -> Result<()> {
        let answers = self.connect(from, &format!("{options} --timeout 0.7"), &to.addresses, port)?;
        let all = answers.iter().all(|answer| answer == "timeout");
        ensure!(all, "{} -> {} {options} {port}: {answers:?}, expected timeout", from.name, to.name);
        Ok(())
    }

    /// What `weft explain` answers: allowed or not, and all of it.
    ///
    /// # Errors
    /// It does not know.
    pub fn explain(&self, from: &Pod, to: &Pod, port: &str) -> Result<(bool, Value)> {
        let full = |pod: &Pod| format!("{}/{}", pod.full_name().0, pod.full_name().1);
        let output =
            self.try_weft(&["explain", "--from", &full(from), "--to", &full(to), "--port", port, "-o", "json"])?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("weft explain: {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((answer["allowed"].as_bool().context("allowed")?, answer))
    }

    /// The running processes of the cluster whose name begins with `prefix`.
    ///
    /// # Errors
    /// `weft status` fails.
    pub fn processes(&self, prefix: &str) -> Result<Vec<(String, i32)>> {
        let status: Value = serde_json::from_slice(&self.try_weft(&["status", "-o", "json"])?.stdout)?;
        let all = status["processes"].as_array().context("processes")?;
        Ok(all
            .iter()
            .filter_map(|one| Some((one["name"].as_str()?.to_owned(), i32::try_from(one["pid"].as_i64()?).ok()?)))
            .filter(|(name, _)| name.starts_with(prefix))
            .collect())
    }

    /// Kills a process of the cluster as `kill -9` does, and returns its number.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self, name: &str) -> Result<i32> {
        let pid = self.processes(name)?.first().with_context(|| format!("{name} does not run"))?.1;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        Ok(pid)
    }

    /// Waits until a node's agent is another process than `old` and says that it is ready.
    ///
    /// # Errors
    /// It is not.
    pub fn agent_again(&self, node: &str, old: i32) -> Result<()> {
        eventually("the agent", || {
            let now = self.processes(&format!("agent-{node}"))?;
            ensure!(now.iter().any(|(_, pid)| *pid != old), "the agent was not started again");
            let status = self.try_weft(&["status", "--node", node, "-o", "json"])?;
            let status: Value = serde_json::from_slice(&status.stdout)?;
            ensure!(status["ready"] == true, "not ready: {status}");
            Ok(())
        })
    }

    /// A stream of numbered packets from a pod, in the background.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn stream(&self, from: &Pod, options: &str, to: IpAddr) -> Result<Stream> {
        self.in_background(from, "stream run", options, SocketAddr::new(to, PORT))
    }

    /// Many TCP connections from a pod, in the background.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn load(&self, from: &Pod, options: &str, to: IpAddr) -> Result<Stream> {
        self.in_background(from, "load", options, SocketAddr::new(to, PORT))
    }

    /// Such a tool, to any port.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn in_background(&self, from: &Pod, tool: &str, options: &str, to: SocketAddr) -> Result<Stream> {
        let (namespace, name) = from.full_name();
        let mut command = self.command(Path::new("kubectl"));
        command.args(["exec", "-n", namespace, name, "--", "/weft", "toolbox"]).args(tool.split_whitespace());
        command.args(options.split_whitespace()).args([to.ip().to_string(), to.port().to_string()]);
        Stream::start(command)
    }

    /// `weft down`, and the proof that nothing is left of the cluster.
    ///
    /// # Errors
    /// What is left.
    pub fn down(mut self) -> Result<()> {
        self.gone = true;
        self.weft(&["down", "--name", &self.name])?;
        let left = leftovers(&self.name)?;
        ensure!(left.is_empty(), "weft down left:\n{}", left.join("\n"));
        Ok(())
    }

    fn tell(&self) {
        let said = |output: Result<Output>| output.map(|output| text(&output)).unwrap_or_default();
        eprintln!("--- weft status\n{}", said(self.try_weft(&["status"])));
        eprintln!("--- pods\n{}", said(self.try_kubectl(&["get", "pods", "-A", "-o", "wide"], "")));
        let logs = Path::new("/var/lib/weft").join(&self.name).join("logs");
        for entry in std::fs::read_dir(logs).into_iter().flatten().flatten() {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- {}\n{}", entry.path().display(), lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.gone {
            self.tell();
            if let Err(error) = self.weft(&["down", "--name", &self.name]) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn pod_of(object: &Value) -> Result<Pod> {
    let addresses = object["status"]["podIPs"].as_array().context("no podIPs")?;
    Ok(Pod {
        name: object["metadata"]["name"].as_str().context("no name")?.to_owned(),
        node: object["spec"]["nodeName"].as_str().context("no node")?.to_owned(),
        addresses: addresses
            .iter()
            .map(|one| Ok(one["ip"].as_str().context("no ip")?.parse()?))
            .collect::<Result<_>>()?,
    })
}

/// A tool that reports while it runs.
#[derive(Debug)]
pub struct Stream {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Stream {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, lines })
    }

    /// Its next report; `final` is true in the last one.
    ///
    /// # Errors
    /// There is none.
    pub fn report(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("the stream ended without its last report");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Its last report.
    ///
    /// # Errors
    /// There is none.
    pub fn finish(mut self) -> Result<Value> {
        loop {
            let report = self.report()?;
            if report["final"] == true {
                self.child.wait()?;
                return Ok(report);
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a machine still has of a cluster: namespaces, mounts, files, groups, processes.
///
/// # Errors
/// The machine cannot be looked at.
pub fn leftovers(cluster: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("weft-{cluster}-")) {
            left.push(format!("namespace {}", entry.path().display()));
        }
    }
    for dir in ["/run/weft", "/var/lib/weft"] {
        let path = Path::new(dir).join(cluster);
        if path.exists() {
            left.push(format!("directory {}", path.display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    left.extend(
        mounts.lines().filter(|line| line.contains(&format!("/weft/{cluster}"))).map(|line| format!("mount {line}")),
    );
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        // What has ended and waits for the machine's init to take notice of it is no process any more.
        if groups.contains(&format!("/weft-{cluster}")) && !status.contains("State:\tZ") {
            left.push(format!("process {}", entry.file_name().to_string_lossy()));
        }
    }
    let links = run(Command::new("ip").args(["-o", "link"]), "")?;
    left.extend(text(&links).lines().filter(|line| line.contains(": weft")).map(|line| format!("link {line}")));
    Ok(left)
}
