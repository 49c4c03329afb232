//! Nothing stays behind: of a thousand attachments, of a killed cluster. And what is wrong is refused by name.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use weft_tests::cluster::{Cluster, DEADLINE, PORT, eventually};
use weft_tests::node;

const PAIRS: usize = 1000;
const AT_A_TIME: usize = 8;

#[test]
fn a_thousand_attachments_leave_nothing() -> Result<()> {
    let cluster = Cluster::up("cn", &["--nodes", "1"])?;
    cluster.pod("host", "node-1", "role: any")?;
    let before = node::state(&cluster, "node-1")?;
    let done: Result<Vec<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME)
            .map(|worker| {
                let cluster = &cluster;
                scope.spawn(move || pairs(cluster, worker))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    done?;
    eventually("the node to be as before", || {
        let after = node::state(&cluster, "node-1")?;
        let more: Vec<_> = after.symmetric_difference(&before).collect();
        ensure!(more.is_empty(), "differs: {more:#?}");
        Ok(())
    })?;

    let bad = cni(
        &cluster,
        &json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "mtu": "big"}),
        "ADD",
        "x",
        "/proc/self/ns/net",
    )?;
    let error: Value = serde_json::from_slice(&bad.stdout).context("an error of the specification's form")?;
    ensure!(!bad.status.success() && error.to_string().contains("mtu"), "a wrong type: {error}");
    cluster.down()
}

/// One worker's share, in a namespace of its own.
fn pairs(cluster: &Cluster, worker: usize) -> Result<()> {
    let name = format!("weft-test-{}-{worker}", std::process::id());
    let ip = |args: &[&str]| -> Result<()> {
        ensure!(Command::new("ip").args(args).status()?.success(), "ip {args:?}");
        Ok(())
    };
    ip(&["netns", "add", &name])?;
    let socket = cluster.run_dir().join("node-1/agent.sock");
    let config = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": socket});
    let work = || -> Result<()> {
        for n in 0..PAIRS / AT_A_TIME {
            for command in ["ADD", "DEL"] {
                let container = format!("test{worker}x{n}");
                let output = cni(cluster, &config, command, &container, &format!("/run/netns/{name}"))?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                ensure!(output.status.success(), "{command} {container}: {said}");
            }
        }
        Ok(())
    };
    let result = work();
    ip(&["netns", "del", &name])?;
    result
}

fn cni(cluster: &Cluster, config: &Value, command: &str, container: &str, netns: &str) -> Result<Output> {
    let mut child = Command::new(cluster.bin_dir().join("weft-cni"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", cluster.bin_dir())
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=host")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(config.to_string().as_bytes())?;
    Ok(child.wait_with_output()?)
}

/// `kubectl port-forward`, for as long as this lives.
struct Forward {
    child: Child,
    /// Held open: kubectl dies when it reports a connection and nobody can read that.
    stdout: BufReader<ChildStdout>,
    port: u16,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Forward {
    fn to(cluster: &Cluster, pod: &str, port: u16) -> Result<Self> {
        let mut child = cluster.spawn_kubectl(&["port-forward", pod, &format!(":{port}")])?;
        let stdout = BufReader::new(child.stdout.take().context("piped")?);
        let mut forward = Self { child, stdout, port: 0 };
        // `Forwarding from 127.0.0.1:40123 -> 8080`; at its end kubectl says why on the other stream.
        let mut line = String::new();
        forward.stdout.read_line(&mut line)?;
        let local = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
        match local.and_then(|port| port.parse().ok()) {
            Some(port) => forward.port = port,
            None => anyhow::bail!("kubectl port-forward: {line:?} {}", forward.errors()?),
        }
        Ok(forward)
    }

    /// What kubectl complains of, once it has ended.
    fn errors(&mut self) -> Result<String> {
        eventually("kubectl port-forward to end", || self.child.try_wait()?.context("it runs"))?;
        let mut text = String::new();
        self.child.stderr.take().context("piped")?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(stream)
    }
}

/// Real kubectl, two connections at once, and a port that nobody listens at.
fn port_forward(cluster: &Cluster) -> Result<()> {
    let forward = Forward::to(cluster, "pod/server", PORT)?;
    let mut connections = [forward.connect()?, forward.connect()?];
    for (n, stream) in connections.iter_mut().enumerate() {
        // In one segment, as HTTP clients send it.
        stream.write_all(format!("GET /{n} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").as_bytes())?;
    }
    for stream in &mut connections {
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("server"), "through the forward: {answer:?}");
    }
    let mut closed = Forward::to(cluster, "pod/server", 81)?;
    let mut answer = Vec::new();
    // kubectl closes the connection or, as it ends, resets it.
    match closed.connect()?.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => return Err(error.into()),
        _ => ensure!(answer.is_empty(), "a closed port answers {answer:?}"),
    }
    // A failed connection ends kubectl.
    let errors = closed.errors()?;
    for part in ["port 81 of pod default/server", "127.0.0.1: Connection refused", "::1: Connection refused"] {
        ensure!(errors.contains(part), "expected {part:?} in {errors:?}");
    }
    Ok(())
}

#[test]
fn a_killed_cluster_comes_back_or_goes_without_a_trace() -> Result<()> {
    let cluster = Cluster::up("kl", &["--nodes", "2"])?;
    let server = cluster.pod("server", "node-1", "role: any")?;
    let client = cluster.pod("client", "node-2", "role: any")?;
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"])?;
    cluster.kill("apiserver")?;
    eventually("the API server", || cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]))?;
    cluster.reaches(&client, "--tcp", &server, PORT)?;
    cluster.pod("later", "node-2", "role: any")?;

    port_forward(&cluster)?;

    for (args, expected) in [
        (["up", "--node", "4"].as_slice(), "--nodes"),
        (&["up", "--routing", "bgp"], "native or vxlan"),
        (&["observe", "--verdict", "lost"], "forwarded, dropped"),
    ] {
        let output = cluster.try_weft(args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(expected), "weft {args:?}: {said}");
    }

    // The supervisor first, as an operator in a hurry would.
    for _ in 0..3 {
        for (_, pid) in cluster.processes("supervisor")?.into_iter().chain(cluster.processes("")?) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    ensure!(cluster.processes("")?.is_empty(), "still there: {:?}", cluster.processes("")?);
    cluster.down()
}
