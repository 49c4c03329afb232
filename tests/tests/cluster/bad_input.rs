//! What is wrong gets one clear error that names the field or the cause, and what was in force stays in force.

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use weft_tests::cluster::{Cluster, PORT, Pod, bin_dir, eventually};

/// What an agent would not start with is told before anything is made.
#[test]
fn settings_of_agents_are_checked_first() -> Result<()> {
    let name = format!("bs{}", std::process::id());
    for (given, expected) in [
        ("node-port-bind-protection=sometimes", "node-port-bind-protection: expected `services`, `range` or `none`"),
        ("policy-audit-mode=maybe", "policy-audit-mode: expected"),
        ("no-such-setting=1", "no-such-setting=1"),
        ("policy-audit=true", "--policy-audit-mode"),
        ("routing=vxlan", "--agent routing=vxlan: expected a setting other than"),
        ("bpf-sock-rev-map-max=7", "bpf-sock-rev-map-max: expected 1024 to 16777216, found 7"),
    ] {
        let output = std::process::Command::new(bin_dir()?.join("weft"))
            .args(["up", "--name", &name, "--agent", given])
            .output()?;
        let answer = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && answer.contains(expected), "{given}: {answer}");
        for place in ["/run/weft", "/var/lib/weft"] {
            ensure!(!Path::new(place).join(&name).exists(), "{given}: left something in {place}");
        }
    }
    Ok(())
}

#[test]
fn what_was_in_force_stays() -> Result<()> {
    let cluster = Cluster::up("bi", &["--nodes", "2"])?;
    let server = cluster.pod("server", "node-1", "role: server")?;
    let near = cluster.pod("near", "node-1", "role: client")?;
    let far = cluster.pod("far", "node-2", "role: client")?;
    cluster.policy(
        "guard",
        "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: far}}}]}]}",
    )?;
    let in_force = || -> Result<()> {
        cluster.reaches(&far, "--tcp", &server, PORT)?;
        cluster.times_out(&near, "--tcp", &server, PORT)
    };
    in_force()?;
    full_map(&cluster, &server, &far).context("a policy that the maps do not hold")?;
    in_force().context("after a policy that the maps do not hold")?;
    foreign_map(&cluster, &in_force).context("a pinned map of another layout")?;
    unknown_flags(&cluster)?;
    in_force()?;
    cluster.down()
}

/// More ports than one policy may have entries: refused whole, by name; the version before stays.
fn full_map(cluster: &Cluster, server: &Pod, far: &Pod) -> Result<()> {
    let before = "{podSelector: {matchLabels: {app: server}}, \
                  ingress: [{from: [{podSelector: {matchLabels: {app: far}}}], ports: [{port: 8080}]}]}";
    cluster.policy("guard", before)?;
    let mut ports = String::new();
    for n in 0..2400 {
        // Neither end of any of these ranges is aligned: each takes eight entries.
        let (first, protocol) = (1 + n % 1200 * 32, if n < 1200 { "UDP" } else { "SCTP" });
        write!(ports, "{{port: {first}, endPort: {}, protocol: {protocol}}}, ", first + 29)?;
    }
    let object = |name: &str, ports: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}}}, spec: {{podSelector: \
             {{matchLabels: {{app: server}}}}, ingress: [{{from: [{{podSelector: {{}}}}], ports: [{ports}]}}]}}}}"
        )
    };
    cluster.apply(&object("guard", &ports))?;
    eventually("the refusal", || {
        let problems = cluster.weft(&["policy", "list"])?;
        ensure!(problems.contains("entries in one resolved policy"), "{problems}");
        let events = cluster.kubectl(&["get", "events"])?;
        ensure!(events.contains("PolicyRefused") && events.contains("guard"), "{events}");
        Ok(())
    })?;
    let waited = cluster.try_weft(&["policy", "wait", "default/guard", "--timeout", "5"])?;
    let answer = String::from_utf8_lossy(&waited.stderr).into_owned();
    ensure!(
        !waited.status.success() && answer.contains("entries in one resolved policy"),
        "weft policy wait: {answer}"
    );
    cluster.reaches(far, "--tcp", server, PORT)?;
    cluster.times_out(far, "--udp", server, 33)?;
    cluster.policy(
        "guard",
        "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: far}}}]}]}",
    )
}

fn find(dir: &Path, name: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), name, found)?;
        } else if entry.file_name() == name {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// An agent that finds something else under a map's name touches nothing and says what it found.
fn foreign_map(cluster: &Cluster, in_force: &dyn Fn() -> Result<()>) -> Result<()> {
    let mut pins = Vec::new();
    find(&cluster.run_dir().join("bpf").join("node-1"), "POLICY_ENTRIES", &mut pins)?;
    let [pin] = &pins[..] else { anyhow::bail!("pins of POLICY_ENTRIES: {pins:?}") };
    let real = MapData::from_pin(pin)?;
    let other = MapData::from_pin(pin.with_file_name("POLICY_INFO"))?;
    std::fs::remove_file(pin)?;
    other.pin(pin)?;
    cluster.kill("agent-node-1")?;
    let outcome = (|| {
        eventually("the agent's complaint", || {
            let logs = Path::new("/var/lib/weft").join(cluster.name()).join("logs");
            let log = std::fs::read_to_string(logs.join("agent-node-1.log"))?;
            ensure!(log.lines().any(|line| line.contains("POLICY_ENTRIES") && line.contains("expected")), "{log}");
            Ok(())
        })?;
        in_force().context("while the agent cannot run")
    })();
    // Whatever came of it, the map goes back to its place.
    std::fs::remove_file(pin)?;
    real.pin(pin)?;
    outcome?;
    eventually("the agent", || {
        cluster.pod("after", "node-1", "role: client").map(drop)?;
        Ok(())
    })?;
    in_force()
}

fn unknown_flags(cluster: &Cluster) -> Result<()> {
    for program in ["weft", "weft-agent", "weft-operator"] {
        let output = std::process::Command::new(cluster.bin_dir().join(program)).arg("--no-such-flag").output()?;
        let answer = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && answer.contains("--no-such-flag"), "{program}: {answer}");
    }
    let agent = cluster.bin_dir().join("weft-agent");
    let output = std::process::Command::new(agent).args(["--node-name", "n", "--routing", "bgp"]).output()?;
    let answer = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && answer.contains("routing: expected `native` or `vxlan`"),
        "weft-agent: {answer}"
    );
    cni_of_a_wrong_type(cluster)
}

/// The runtime is told which field of its configuration makes no sense.
fn cni_of_a_wrong_type(cluster: &Cluster) -> Result<()> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut plugin = Command::new(cluster.bin_dir().join("weft-cni"))
        .env_clear()
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/proc/self/ns/net")])
        .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/opt/cni/bin")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = plugin.stdin.take().context("stdin")?;
    stdin.write_all(br#"{"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": 7}"#)?;
    drop(stdin);
    let output = plugin.wait_with_output()?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let text = answer.to_string();
    ensure!(!output.status.success() && answer["code"] == 7 && text.contains("socket"), "weft-cni: {answer}");
    Ok(())
}
