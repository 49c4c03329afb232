//! Readiness, liveness and startup probes, and what is done before a container ends, from the node as the kubelet does
//! it.

use crate::pod::ContainerDir;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a probe decides about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Purpose {
    Startup,
    Readiness,
    Liveness,
}

impl Purpose {
    pub(super) const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// Field of the container.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Startup => "startupProbe",
            Self::Readiness => "readinessProbe",
            Self::Liveness => "livenessProbe",
        }
    }
}

/// A probe of one running container.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    action: Action,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u64,
    failures: u64,
    /// Between attempts at the beginning, until one succeeds.
    first_period: Duration,
}

/// A pod that gets ready is wanted soon: for a while after its start it is asked so often.
const READINESS_MIN: Duration = Duration::from_millis(200);
const BEGINNING: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) enum Action {
    Tcp(SocketAddr),
    Http {
        target: SocketAddr,
        path: String,
        host: String,
    },
    Exec {
        weft: PathBuf,
        files: ContainerDir,
        command: Vec<String>,
    },
    /// What we cannot do fails, and says so.
    Unsupported(String),
}

impl Probe {
    /// Of a container's field, if it has it.
    pub(super) fn new(
        container: &Value,
        purpose: Purpose,
        address: Option<IpAddr>,
        weft: PathBuf,
        files: ContainerDir,
    ) -> Option<Self> {
        let probe = &container[purpose.field()];
        if !probe.is_object() {
            return None;
        }
        let number = |field: &str, default: u64| probe[field].as_u64().unwrap_or(default);
        let period = Duration::from_secs(number("periodSeconds", 10).max(1));
        Some(Self {
            action: action(container, probe, address, weft, files),
            initial_delay: Duration::from_secs(number("initialDelaySeconds", 0)),
            period,
            first_period: if purpose == Purpose::Readiness { period.min(READINESS_MIN) } else { period },
            timeout: Duration::from_secs(number("timeoutSeconds", 1).max(1)),
            successes: number("successThreshold", 1).max(1),
            failures: number("failureThreshold", 3).max(1),
        })
    }

    /// Tries for ever and tells each change of mind: first argument the verdict, second the reason for a no.
    pub(super) async fn run(self, mut tell: impl FnMut(bool, String)) {
        tokio::time::sleep(self.initial_delay).await;
        let (mut verdict, mut good, mut bad) = (None, 0, 0);
        let beginning = tokio::time::Instant::now() + BEGINNING;
        loop {
            let result = match tokio::time::timeout(self.timeout, self.action.once()).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer in {:?}", self.timeout)),
            };
            match &result {
                Ok(()) => (good, bad) = (good + 1, 0),
                Err(_) => (good, bad) = (0, bad + 1),
            }
            if good >= self.successes && verdict != Some(true) {
                verdict = Some(true);
                tell(true, String::new());
            }
            if bad >= self.failures {
                // Each further failure counts: a liveness probe has ended the container by then.
                verdict = Some(false);
                tell(false, result.err().unwrap_or_default());
            }
            let soon = verdict != Some(true) && good == 0 && tokio::time::Instant::now() < beginning;
            let pause = if soon { self.first_period } else { self.period };
            tokio::time::sleep(pause).await;
        }
    }
}

/// What is done before a container is told to end (`lifecycle.preStop`).
#[derive(Clone, Debug)]
pub(super) enum Hook {
    /// Like a probe.
    Act(Action),
    /// Nothing, for so long.
    Sleep(Duration),
}

impl Hook {
    /// Of a container, if it has one.
    pub(super) fn pre_stop(
        container: &Value,
        address: Option<IpAddr>,
        weft: PathBuf,
        files: ContainerDir,
    ) -> Option<Self> {
        let handler = &container["lifecycle"]["preStop"];
        if !handler.is_object() {
            return None;
        }
        if let Some(seconds) = handler["sleep"]["seconds"].as_u64() {
            return Some(Self::Sleep(Duration::from_secs(seconds)));
        }
        Some(Self::Act(action(container, handler, address, weft, files)))
    }

    /// Does it.
    pub(super) async fn run(&self) -> Result<(), String> {
        match self {
            Self::Act(action) => action.once().await,
            Self::Sleep(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
        }
    }
}

fn action(container: &Value, probe: &Value, address: Option<IpAddr>, weft: PathBuf, files: ContainerDir) -> Action {
    let target = |source: &Value| -> Result<SocketAddr, String> {
        let ip = match source["host"].as_str().filter(|h| !h.is_empty()) {
            Some(host) => host.parse().map_err(|_| format!("host {host:?}: expected an address"))?,
            None => address.ok_or("the pod has no address")?,
        };
        Ok(SocketAddr::new(ip, port(container, &source["port"])?))
    };
    if probe["tcpSocket"].is_object() {
        return target(&probe["tcpSocket"]).map_or_else(Action::Unsupported, Action::Tcp);
    }
    let http = &probe["httpGet"];
    if http.is_object() {
        if http["scheme"].as_str().is_some_and(|s| s != "HTTP") {
            return Action::Unsupported("httpGet.scheme: expected HTTP".into());
        }
        return match target(http) {
            Err(why) => Action::Unsupported(why),
            Ok(target) => Action::Http {
                target,
                path: http["path"].as_str().filter(|p| p.starts_with('/')).unwrap_or("/").to_owned(),
                host: target.to_string(),
            },
        };
    }
    let command = probe["exec"]["command"].as_array();
    if let Some(command) = command {
        let command = command.iter().filter_map(|c| c.as_str().map(str::to_owned)).collect();
        return Action::Exec { weft, files, command };
    }
    Action::Unsupported("expected tcpSocket, httpGet or exec".into())
}

/// A port by number or by the name that the container gives it.
fn port(container: &Value, port: &Value) -> Result<u16, String> {
    let named = |name: &str| {
        let ports = container["ports"].as_array().map_or(&[][..], Vec::as_slice);
        ports.iter().find(|p| p["name"] == name).and_then(|p| p["containerPort"].as_u64())
    };
    port.as_u64()
        .or_else(|| port.as_str().and_then(|text| text.parse().ok().or_else(|| named(text))))
        .and_then(|n| u16::try_from(n).ok())
        .ok_or_else(|| format!("port {port}: expected a number or the name of a container port"))
}

impl Action {
    async fn once(&self) -> Result<(), String> {
        match self {
            Self::Unsupported(why) => Err(why.clone()),
            Self::Tcp(target) => TcpStream::connect(target).await.map(drop).map_err(|e| format!("{target}: {e}")),
            Self::Http { target, path, host } => {
                http(*target, path, host).await.map_err(|e| format!("{target}{path}: {e}"))
            }
            Self::Exec { weft, files, command } => {
                let status = tokio::process::Command::new(weft)
                    .args(["internal", "exec"])
                    .arg(&files.0)
                    .arg("--")
                    .args(command)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .status()
                    .await
                    .map_err(|e| e.to_string())?;
                if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
            }
        }
    }
}

async fn http(target: SocketAddr, path: &str, host: &str) -> Result<(), String> {
    let words = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect(target).await.map_err(words)?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe/1.32\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(words)?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).await.map_err(words)?;
    let text = String::from_utf8_lossy(&answer);
    match text.split(' ').nth(1).and_then(|code| code.get(..3)).and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP status {code}")),
        None => Err("no HTTP answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::port;
    use serde_json::json;

    #[test]
    fn ports_by_number_and_name() {
        let container = json!({"ports": [{"name": "web", "containerPort": 80}]});
        assert_eq!(port(&container, &json!(8080)), Ok(8080));
        assert_eq!(port(&container, &json!("web")), Ok(80));
        assert_eq!(port(&container, &json!("90")), Ok(90));
        assert!(port(&container, &json!("db")).is_err());
        assert!(port(&container, &json!(70_000)).is_err());
    }
}
