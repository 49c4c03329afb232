//! `weft up`, `down`, `status`, `kubeconfig`.

use crate::agents;
use crate::args::{ClusterName, DownOptions, Output, StatusOptions};
use anyhow::{Result, bail};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use weft_api::agent::{Request, Response, Status};
use weft_lab_cluster as cluster;
use weft_lab_config::{ConfigError, UpOptions};

/// Says what happens while something takes its time.
fn progress(text: &str) {
    eprintln!("  {text}");
}

pub fn up(options: &UpOptions) -> Result<ExitCode> {
    let report = cluster::up(options, &mut progress)?;
    let kubeconfig = report.kubeconfig.display();
    let name = if options.name == "weft" { String::new() } else { format!(" --name {}", options.name) };
    let mut out = std::io::stdout().lock();
    let state = if report.already { "was up already" } else { "is up" };
    let (nodes, seconds) = (report.nodes.len(), report.took.as_secs_f64());
    writeln!(out, "Cluster {} {state}: {nodes} nodes Ready, pods reach each other ({seconds:.1} s).", options.name)?;
    writeln!(
        out,
        "\nTry next:
  export KUBECONFIG={kubeconfig}
  kubectl get nodes -o wide
  kubectl create deployment web --image=weft/toolbox --replicas=6
  kubectl get pods -o wide
  weft observe{name} --follow
  weft status{name}
  weft down{name}"
    )?;
    if std::io::stdout().is_terminal() && which("kubectl").is_none() {
        writeln!(out, "\nkubectl is not installed here; on Debian and Ubuntu: apt-get install kubernetes-client")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn which(program: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

pub fn down(options: &DownOptions) -> Result<ExitCode> {
    let name = &options.cluster.name;
    let was_there = cluster::down(name, options.keep_state, &mut progress)?;
    println!("{}", if was_there { format!("Cluster {name} is gone.") } else { format!("There is no cluster {name}.") });
    Ok(ExitCode::SUCCESS)
}

pub fn kubeconfig(options: &ClusterName) -> Result<ExitCode> {
    weft_lab_config::load(&options.name)?;
    println!("{}", weft_lab_config::paths::Paths::new(&options.name).kubeconfig().display());
    Ok(ExitCode::SUCCESS)
}

/// Exit code 1: something is wrong.
pub fn status(options: &StatusOptions) -> Result<ExitCode> {
    if options.target.socket.is_none() && options.target.node.is_none() {
        match cluster::status(&options.target.name) {
            Ok(status) => {
                match options.output.output {
                    Output::Table => print!("{status}"),
                    Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
                }
                return Ok(if status.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Err(cluster::Error::Config(ConfigError::Absent(_))) if std::path::Path::new(agents::SOCKET).exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut well = true;
    for agent in agents::of(&options.target)? {
        let Response::Status(status) = agent.ask_one(&Request::Status)? else {
            bail!("the agent of {} answers something else than its status", agent.node);
        };
        well &= status.ready && status.problems.is_empty();
        match options.output.output {
            Output::Table => print(&status)?,
            Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        }
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(status: &Status) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let state = if status.ready { "ready" } else { "not ready" };
    writeln!(out, "agent of {}: {state}, version {}, {} routing", status.node, status.version, status.routing)?;
    let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
    writeln!(out, "addresses: {}; pods' prefixes: {}", addresses.join(" "), status.pod_cidrs.join(" "))?;
    for (prefix, used, all) in &status.ipam {
        writeln!(out, "addresses of {prefix}: {used} of {all} in use")?;
    }
    writeln!(out, "endpoints: {}, services: {}", status.endpoints, status.services)?;
    writeln!(out, "revision: {}, in force: {}", status.revision, status.revision_in_force)?;
    for (reason, direction, packets, bytes) in &status.drops {
        writeln!(out, "dropped, {reason} ({direction}): {packets} packets, {bytes} bytes")?;
    }
    if status.accelerated != 0 {
        writeln!(out, "passed at the device (XDP): {} packets", status.accelerated)?;
    }
    if status.events_suppressed != 0 {
        writeln!(out, "events not reported for the rate limit: {}", status.events_suppressed)?;
    }
    for waiting in &status.waiting_for {
        writeln!(out, "waits for: {waiting}")?;
    }
    for problem in &status.problems {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(())
}
