//! `weft status`: of a cluster on this machine as a whole, which is `weft-lab`'s to tell, or of single agents.

use crate::args::{Output, StatusOptions};
use crate::{agents, lab};
use anyhow::{Result, bail};
use std::io::Write as _;
use std::process::ExitCode;
use weft_api::agent::{Request, Response, Status};
use weft_api::cluster::{Cluster, ClusterError};

/// Exit code 1: something is wrong.
pub fn run(options: &StatusOptions) -> Result<ExitCode> {
    if options.target.socket.is_none() && options.target.node.is_none() {
        match Cluster::read(&options.target.name) {
            Ok(_) => match lab::become_lab()? {},
            Err(ClusterError::Absent(_)) if std::path::Path::new(agents::SOCKET).exists() => {}
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
