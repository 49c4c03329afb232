//! containerd as the runtime of one node of a cluster: in the node's network namespace, with the CNI executable and
//! configuration that the node's agent installed, driven through CRI as a kubelet would.
//!
//! Root, state, sockets, namespaces and images are on a tmpfs of its own in the cluster's run directory, its processes
//! and containers in the cluster's control group: `weft down` removes whatever a killed test left of it.

mod cri;
mod grpc;
mod image;

use crate::cluster::{Cluster, Pod, eventually};
use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use weft_sys::cgroup::{self, Cgroup};
use weft_sys::netns;

/// Where shims have their sockets, whatever containerd is told.
const SHIM_SOCKETS: &str = "/run/containerd/s";
/// Where distributions have the CNI project's own executable of this name.
const LOOPBACK: [&str; 3] = ["/usr/lib/cni/loopback", "/opt/cni/bin/loopback", "/usr/libexec/cni/loopback"];

/// A containerd that goes with this.
#[derive(Debug)]
pub struct Containerd<'a> {
    cluster: &'a Cluster,
    node: String,
    dir: PathBuf,
    child: Child,
    gone: bool,
}

/// A pod that containerd runs: its sandbox and one container, the toolbox's server.
#[derive(Clone, Debug)]
pub struct CriPod {
    /// Name, node and addresses, as the sandbox's status has them.
    pub pod: Pod,
    sandbox: String,
    container: String,
    /// Its shim's socket.
    shim: PathBuf,
}

impl<'a> Containerd<'a> {
    /// Starts it on a node, with the image, and waits until it says that runtime and network are ready.
    ///
    /// # Errors
    /// It does not get there.
    pub fn start(cluster: &'a Cluster, node: &str) -> Result<Self> {
        let dir = cluster.run_dir().join(format!("containerd-{node}"));
        fs::create_dir(&dir)?;
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))?;
        fs::create_dir(dir.join("logs"))?;
        let cni = cluster.run_dir().join(node).join("cni");
        executables(&cni.join("bin"), &dir.join("bin"))?;
        fs::write(dir.join("config.toml"), configuration(&dir, &cni.join("conf")))?;
        let child = spawn(cluster, node, &dir)?;
        let containerd = Self { cluster, node: node.to_owned(), dir, child, gone: false };
        containerd.ready()?;
        let archive = image::build(&cluster.bin_dir().join("weft-lab"), &containerd.dir)?;
        let mut import = Command::new("ctr");
        import.arg("-a").arg(containerd.socket()).args(["-n", "k8s.io", "images", "import"]).arg(&archive);
        let output = import.output().context("ctr")?;
        ensure!(output.status.success(), "ctr images import: {}", String::from_utf8_lossy(&output.stderr));
        fs::remove_file(&archive)?;
        eventually("the image", || {
            ensure!(cri::has_image(&containerd.socket(), image::NAME)?, "CRI has no {}", image::NAME);
            Ok(())
        })?;
        Ok(containerd)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    fn ready(&self) -> Result<()> {
        eventually("containerd", || {
            let conditions = cri::conditions(&self.socket())?;
            let ready = |kind: &str| conditions.iter().any(|one| one.kind == kind && one.status);
            ensure!(ready("RuntimeReady") && ready("NetworkReady"), "{conditions:?}");
            Ok(())
        })
    }

    /// Kills it as `kill -9` does and starts it again; its pods go on.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn kill_and_start(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(self.cluster, &self.node, &self.dir)?;
        self.ready()
    }

    /// What a kubelet does for a pod of `default` that is bound to its node: sandbox, container, start.
    ///
    /// # Errors
    /// A step fails; the sandbox's failure is containerd's, CNI's answer included.
    pub fn run_pod(&self, name: &str, labels: &str) -> Result<CriPod> {
        self.cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}, {labels}}}, \
             annotations: {{kubernetes.io/config.mirror: containerd}}}}, \
             spec: {{nodeName: {}, containers: [{{name: toolbox, image: '{}'}}]}}}}",
            self.node,
            image::NAME
        ))?;
        let uid = self.cluster.kubectl(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"])?;
        let sandbox = self.run_sandbox(name, &uid)?;
        let config = self.sandbox_config(name, &uid);
        let container = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "toolbox".into() }),
            image: Some(cri::ImageSpec { image: image::NAME.into() }),
            args: ["serve", "--name", name].map(str::to_owned).to_vec(),
            log_path: log_name(name),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::ContainerSecurity { namespace_options: Some(own_processes()) }),
            }),
        };
        let container = cri::create_container(&self.socket(), &sandbox, &config, container)?;
        cri::start_container(&self.socket(), &container)?;
        let network = cri::pod_sandbox_status(&self.socket(), &sandbox)?.network.context("no network status")?;
        let addresses = std::iter::once(&network.ip)
            .chain(network.additional_ips.iter().map(|one| &one.ip))
            .map(|text| text.parse::<IpAddr>().with_context(|| format!("{network:?}")))
            .collect::<Result<_>>()?;
        let pod = Pod { name: name.to_owned(), node: self.node.clone(), addresses };
        let shim = shim_socket(&self.tasks().join(&sandbox)).context("the shim says no address")?;
        ensure!(shim.exists(), "{} is not there", shim.display());
        Ok(CriPod { pod, sandbox, container, shim })
    }

    /// Only `RunPodSandbox`.
    ///
    /// # Errors
    /// containerd's, CNI's answer included.
    pub fn run_sandbox(&self, name: &str, uid: &str) -> Result<String> {
        // A shim makes the directory, then its socket: meanwhile nobody may take the directory away.
        let shims = self.shim_lock()?;
        shims.lock_shared()?;
        cri::run_pod_sandbox(&self.socket(), &self.sandbox_config(name, uid))
    }

    fn sandbox_config(&self, name: &str, uid: &str) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.dir.join("logs").display().to_string(),
            labels: [("io.kubernetes.pod.name".to_owned(), name.to_owned())].into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.group("cri").display()),
                security_context: Some(cri::SandboxSecurity { namespace_options: Some(own_processes()) }),
            }),
        }
    }

    /// `ExecSync` of the toolbox's client, once per address: `ok ...`, `refused`, `timeout` and so on, in their order.
    ///
    /// # Errors
    /// The command cannot be run.
    pub fn connect(&self, from: &CriPod, options: &str, to: &[IpAddr], port: u16) -> Result<Vec<String>> {
        let ask = |address: &IpAddr| -> Result<String> {
            let command = format!("/weft toolbox connect {options} {address} {port}");
            let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            let answer = cri::exec_sync(&self.socket(), &from.container, &command)?;
            let said = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
            ensure!(!said.is_empty(), "{command:?}: {} {}", answer.exit_code, String::from_utf8_lossy(&answer.stderr));
            ensure!(said.starts_with("ok") == (answer.exit_code == 0), "{said}: exit code {}", answer.exit_code);
            Ok(said)
        };
        to.iter().map(ask).collect()
    }

    /// `StopPodSandbox`, after which the sandbox is still listed, but has no address.
    ///
    /// # Errors
    /// It fails, or the sandbox is as before.
    pub fn stop_pod(&self, pod: &CriPod) -> Result<()> {
        cri::stop_pod_sandbox(&self.socket(), &pod.sandbox)?;
        let status = cri::pod_sandbox_status(&self.socket(), &pod.sandbox)?;
        ensure!(status.state == cri::SANDBOX_NOT_READY, "stopped, but {status:?}");
        ensure!(status.network.clone().is_none_or(|network| network.ip.is_empty()), "stopped, but {status:?}");
        Ok(())
    }

    /// `RemovePodSandbox`; then the log and the Pod object, which are the kubelet's to remove.
    ///
    /// # Errors
    /// It fails.
    pub fn remove_pod(&self, pod: &CriPod) -> Result<()> {
        cri::remove_pod_sandbox(&self.socket(), &pod.sandbox)?;
        eventually("the end of the shim", || {
            ensure!(!pod.shim.exists(), "{} is still there", pod.shim.display());
            Ok(())
        })?;
        fs::remove_file(self.dir.join("logs").join(log_name(&pod.pod.name)))?;
        self.cluster.kubectl(&["delete", "pod", &pod.pod.name, "--grace-period=0", "--force"]).map(drop)
    }

    /// Ids of the sandboxes that containerd has.
    ///
    /// # Errors
    /// It does not answer.
    pub fn sandboxes(&self) -> Result<Vec<String>> {
        cri::list_pod_sandboxes(&self.socket())
    }

    /// A control group of this, without a leading `/`.
    fn group(&self, what: &str) -> PathBuf {
        Path::new(&format!("weft-{}", self.cluster.name())).join(&self.node).join(what)
    }

    /// Bundles of what runs.
    fn tasks(&self) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task/k8s.io")
    }

    /// Sockets of its shims, which are in a directory that all containerds of a machine share.
    fn shim_sockets(&self) -> BTreeSet<PathBuf> {
        let bundles = fs::read_dir(self.tasks()).into_iter().flatten().flatten();
        bundles.filter_map(|bundle| shim_socket(&bundle.path())).collect()
    }

    /// Held while shims start, and alone while their directory is removed. A directory that all tests have.
    fn shim_lock(&self) -> Result<fs::File> {
        let dir = self.cluster.run_dir();
        Ok(fs::File::open(dir.parent().context("a cluster's directory is in another")?)?)
    }

    /// What runs and what is on the machine for its pods, beside what [`crate::node::state`] sees: processes, control
    /// groups, sockets of shims, sandboxes, directories.
    ///
    /// # Errors
    /// The machine cannot be looked at.
    pub fn state(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        directories(&self.dir, &mut all)?;
        all.extend(self.sandboxes()?.into_iter().map(|id| format!("sandbox {id}")));
        all.extend(self.shim_sockets().into_iter().map(|path| format!("shim socket {}", path.display())));
        for group in self.groups()? {
            all.extend(fs::read_dir(&group).into_iter().flatten().flatten().filter_map(|entry| {
                entry.path().is_dir().then(|| format!("control group {}", entry.path().display()))
            }));
        }
        for what in ["containerd", "cri"] {
            for pid in Cgroup::at(self.group(what))?.processes() {
                all.insert(format!("process {}", fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()));
            }
        }
        Ok(all)
    }

    /// The control group that holds its pods' own, in each hierarchy of the machine.
    fn groups(&self) -> Result<Vec<PathBuf>> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let cgroups = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then(|| Path::new(place).join(self.group("cri")))
        });
        Ok(cgroups.filter(|path| path.is_dir()).collect())
    }

    /// Stops it as its service would be stopped, and removes what is its own.
    ///
    /// # Errors
    /// It does not end, or something cannot be removed.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        eventually("the end of containerd", || {
            ensure!(self.child.try_wait()?.is_some(), "it still runs");
            Ok(())
        })?;
        let left = Cgroup::at(self.group("containerd"))?.processes();
        ensure!(left.is_empty(), "processes {left:?} are left");
        self.gone = true;
        self.clean()
    }

    fn clean(&self) -> Result<()> {
        for socket in self.shim_sockets() {
            let _ = fs::remove_file(socket);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut places: Vec<PathBuf> = places.filter(|place| place.starts_with(&self.dir)).collect();
        places.sort();
        for place in places.iter().rev() {
            umount2(place, MntFlags::MNT_DETACH).with_context(|| place.display().to_string())?;
        }
        fs::remove_dir(&self.dir)?;
        // In hierarchies of version 1 there is nobody else of the cluster: the group is removed up to its name.
        let unified = cgroup::root()?;
        for group in self.groups()? {
            if group.starts_with(&unified) {
                Cgroup::at(self.group("cri"))?.remove()?;
                continue;
            }
            let own = fs::read_dir(&group)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
            for path in own.chain(group.ancestors().take(3).map(Path::to_path_buf)) {
                fs::remove_dir(&path).with_context(|| path.display().to_string())?;
            }
        }
        Cgroup::at(self.group("containerd"))?.remove()?;
        let shims = self.shim_lock()?;
        shims.lock()?;
        for dir in [SHIM_SOCKETS, "/run/containerd"] {
            // Only when no other containerd uses it.
            let _ = fs::remove_dir(dir);
        }
        Ok(())
    }

    /// Ends whatever runs.
    fn end(&mut self) -> Result<()> {
        let groups = [Cgroup::at(self.group("containerd"))?, Cgroup::at(self.group("cri"))?];
        let _ = self.child.kill();
        let _ = self.child.wait();
        eventually("the end of containerd's processes", || {
            for group in &groups {
                group.kill();
                ensure!(!group.populated(), "{:?} run", group.processes());
            }
            Ok(())
        })
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("level=info")).collect();
        eprintln!("--- containerd\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        if let Err(error) = self.end().and_then(|()| self.clean()) {
            eprintln!("{error:#}");
        }
    }
}

fn shim_socket(bundle: &Path) -> Option<PathBuf> {
    let address = fs::read_to_string(bundle.join("address")).ok()?;
    address.trim().strip_prefix("unix://").map(PathBuf::from)
}

fn log_name(pod: &str) -> String {
    format!("{pod}.log")
}

/// Directories of sandboxes and containers, which are named by their ids (SHA-256), and of snapshots.
fn directories(dir: &Path, all: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir)?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id || dir.ends_with("snapshots") {
            all.insert(format!("directory {}", entry.path().display()));
        } else {
            directories(&entry.path(), all)?;
        }
    }
    Ok(())
}

fn own_processes() -> cri::NamespaceOption {
    cri::NamespaceOption { pid: cri::NAMESPACE_OF_CONTAINER }
}

/// Starts the program in the node's network namespace and in the cluster's control group.
fn spawn(cluster: &Cluster, node: &str, dir: &Path) -> Result<Child> {
    let group = Cgroup::at(Path::new(&format!("weft-{}", cluster.name())).join(node).join("containerd"))?;
    group.create()?;
    let log = fs::File::options().create(true).append(true).open(dir.join("log"))?;
    let netns = netns::path(&format!("weft-{}-{node}", cluster.name()));
    let script = "echo $$ > \"$0\" && exec containerd --config \"$1\"";
    let spawned = netns::within(&netns, || {
        Command::new("sh")
            .args(["-c", script])
            .arg(group.path().join("cgroup.procs"))
            .arg(dir.join("config.toml"))
            // runc may be where only root looks.
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
    });
    spawned.context("containerd")
}

/// The agent's, and the one that containerd sets up a pod's loopback device with.
fn executables(agents: &Path, dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    symlink(agents.join("weft-cni"), dir.join("weft-cni"))?;
    let places = LOOPBACK.iter().map(Path::new);
    let loopback = places.into_iter().find(|path| path.exists()).with_context(|| {
        format!("none of {LOOPBACK:?} is there: `scripts/setup.sh test` installs containernetworking-plugins")
    })?;
    Ok(symlink(loopback, dir.join("loopback"))?)
}

fn configuration(dir: &Path, conf_dir: &Path) -> String {
    let (dir, conf_dir) = (dir.display(), conf_dir.display());
    let image = image::NAME;
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/bin"
    conf_dir = "{conf_dir}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{dir}/runc"
"#
    )
}
