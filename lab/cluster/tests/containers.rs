//! Containers as the pod runner starts them: file system, logs, exit codes, signals, commands inside. Needs root.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};
use weft_lab_node::pod::{ContainerDir, ContainerSpec, Exit, Image};
use weft_sys::cgroup::Cgroup;
use weft_sys::netns;

/// Our own executable, as the example of this crate.
fn weft() -> PathBuf {
    let own = std::env::current_exe().expect("has a place");
    own.ancestors().nth(2).expect("is in deps").join("examples/local")
}

/// Namespace, group and directory of a test, removed with it.
struct Pod {
    name: String,
    dir: PathBuf,
    cgroup: Cgroup,
}

impl Pod {
    fn new(test: &str) -> Self {
        let name = format!("weft-test-{test}-{}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir).expect("temporary directory");
        netns::create(&name).expect("namespace");
        let cgroup = Cgroup::at(&name).expect("cgroup version 2 is mounted");
        cgroup.create().expect("control group");
        Self { name, dir, cgroup }
    }

    fn container(&self, name: &str, image: Image, command: &[&str]) -> ContainerDir {
        let files = ContainerDir(self.dir.join(name));
        fs::create_dir_all(&files.0).expect("directory");
        let path = ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned());
        let spec = ContainerSpec {
            image,
            command: command.iter().map(ToString::to_string).collect(),
            env: vec![path, ("GREETING".into(), "hello".into())],
            working_dir: "/".into(),
            user: None,
            hostname: "the-pod".into(),
            netns: netns::path(&self.name),
            cgroup: self.cgroup.path().to_owned(),
            log: files.0.join("log"),
            resolv_conf: "nameserver 192.0.2.1\n".into(),
            hosts: "127.0.0.1 localhost\n".into(),
            mounts: Vec::new(),
            stdin: false,
        };
        fs::write(files.spec(), serde_json::to_vec(&spec).expect("is plain data")).expect("writes");
        files
    }

    fn toolbox(&self, name: &str, command: &[&str]) -> ContainerDir {
        self.container(name, Image::Toolbox { weft: weft() }, command)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.cgroup.kill();
        until("its processes end", || !self.cgroup.populated());
        until("its group goes", || self.cgroup.remove().is_ok());
        netns::remove(&self.name).expect("the namespace can be removed");
        fs::remove_dir_all(&self.dir).expect("the directory can be removed");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("is readable");
        assert!(!mounts.contains(&self.name), "a mount is left");
    }
}

fn until(what: &str, fact: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fact() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::yield_now();
    }
}

fn start(files: &ContainerDir) -> Child {
    Command::new(weft()).args(["internal", "container"]).arg(&files.0).spawn().expect("starts")
}

fn run(files: &ContainerDir) -> Exit {
    assert!(start(files).wait().expect("ends").success());
    files.read_exit().expect("says how it ended")
}

fn exec(files: &ContainerDir, command: &[&str]) -> Output {
    Command::new(weft()).args(["internal", "exec"]).arg(&files.0).arg("--").args(command).output().expect("runs")
}

fn lines(place: &Path, stream: &str) -> Vec<String> {
    let marker = format!(" {stream} F ");
    let text = fs::read_to_string(place).unwrap_or_default();
    text.lines().filter_map(|l| l.split_once(&marker).map(|(_, line)| line.to_owned())).collect()
}

#[test]
fn a_container_has_its_own_name_files_and_processes() {
    let pod = Pod::new("own");
    let script = "hostname; echo $GREETING; cat /etc/resolv.conf; echo $$; ls /work /var/lib 2>/dev/null | wc -l; \
                  echo oops >&2; exit 7";
    let files = pod.toolbox("a", &["sh", "-c", script]);
    let exit = run(&files);
    assert_eq!((exit.code, exit.error), (7, None));
    let out = lines(&files.0.join("log"), "stdout");
    assert_eq!(out, ["the-pod", "hello", "nameserver 192.0.2.1", "2", "0"]);
    assert_eq!(lines(&files.0.join("log"), "stderr"), ["oops"]);
}

#[test]
fn a_command_that_is_not_there_is_told_apart_from_one_that_fails() {
    let pod = Pod::new("none");
    let exit = run(&pod.toolbox("a", &["/no/such/program"]));
    assert_eq!(exit.code, 127);
    assert!(exit.error.is_some_and(|e| e.contains("/no/such/program")));
    let missing = Image::Directory(pod.dir.join("missing"));
    let exit = run(&pod.container("b", missing, &["true"]));
    assert!(exit.error.is_some_and(|e| e.contains("missing")), "names the directory");
}

#[test]
fn a_directory_as_image_is_never_changed() {
    let pod = Pod::new("dir");
    let image = pod.dir.join("image");
    for name in ["usr", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(image.join(name)).expect("makes");
    }
    fs::write(image.join("etc/hosts"), "from the image\n").expect("writes");
    fs::copy(weft(), image.join("program")).expect("copies");
    // Our own program needs the machine's libraries.
    let files = pod.container("a", Image::Directory(image.clone()), &["/program", "toolbox", "serve"]);
    let mut spec = files.read_spec().expect("reads");
    for place in ["/usr", "/lib", "/lib64"] {
        let source = fs::canonicalize(place).expect("exists");
        spec.mounts.push(weft_lab_node::pod::Mount { source, target: place.into(), read_only: true });
    }
    fs::write(files.spec(), serde_json::to_vec(&spec).expect("is plain data")).expect("writes");
    let mut child = start(&files);
    until("it serves", || !lines(&files.0.join("log"), "stdout").is_empty() || files.read_exit().is_some());
    assert_eq!(files.read_exit(), None);
    files.first_process().expect("runs").signal(Signal::SIGKILL);
    assert!(child.wait().expect("ends").success());
    assert_eq!(files.read_exit().map(|e| e.code), Some(137));
    assert_eq!(fs::read_to_string(image.join("etc/hosts")).expect("reads"), "from the image\n");
    assert!(!image.join("etc/resolv.conf").exists());
}

/// Mounts a tmpfs below `/usr` where only the calling thread and what it starts see it.
fn mount_below_usr() -> &'static str {
    const PLACE: &str = "/usr/share";
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace; is this root?");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make all private");
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount");
    fs::write(Path::new(PLACE).join("marker"), "below").expect("writes");
    PLACE
}

#[test]
fn what_the_machine_mounts_below_usr_cannot_be_written() {
    let pod = Pod::new("usr");
    let script = "cat marker; echo; touch marker new || echo refused; touch /usr/new || echo refused";
    let files = pod.toolbox("a", &["sh", "-c", script]);
    // The thread's mounts end with it, and the container that it starts has copies.
    let thread = std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            let place = mount_below_usr();
            let mut spec = files.read_spec().expect("reads");
            spec.working_dir = place.into();
            fs::write(files.spec(), serde_json::to_vec(&spec).expect("is plain data")).expect("writes");
            run(&files)
        });
        started.join()
    });
    assert_eq!(thread.expect("the test").code, 0);
    assert_eq!(lines(&files.0.join("log"), "stdout"), ["below", "refused", "refused"]);
    let errors = lines(&files.0.join("log"), "stderr");
    assert!(errors.len() == 3 && errors.iter().all(|line| line.contains("Read-only file system")), "{errors:?}");
}

#[test]
fn commands_run_inside_and_signals_end_it() {
    let pod = Pod::new("exec");
    netns::within(&netns::path(&pod.name), || weft_sys::netlink::Netlink::open()?.set_up("lo")).expect("lo");
    let files = pod.toolbox("a", &["/weft", "toolbox", "serve"]);
    let mut child = start(&files);
    until("it serves", || !lines(&files.0.join("log"), "stdout").is_empty());
    for (option, address) in [("--tcp", "127.0.0.1"), ("--udp", "::1"), ("--http", "::1"), ("--sctp", "127.0.0.1")] {
        let output = exec(&files, &["/weft", "toolbox", "connect", option, address]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.starts_with("ok "), "{option} {address}: {text}");
        assert!(text.contains("toolbox") || text.contains("the-pod"), "names the pod: {text}");
    }
    assert_eq!(exec(&files, &["/weft", "toolbox", "connect", "::1", "81"]).status.code(), Some(2));
    assert_eq!(exec(&files, &["sh", "-c", "exit 9"]).status.code(), Some(9));
    assert_eq!(exec(&files, &["nonesuch"]).status.code(), Some(127));
    files.first_process().expect("runs").signal(Signal::SIGTERM);
    assert!(child.wait().expect("ends").success());
    assert_eq!(files.read_exit().map(|e| e.code), Some(0), "it ends in order");
    assert!(files.first_process().is_none());
}
