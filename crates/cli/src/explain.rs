//! `weft explain`: both sides' agents are asked; it passes only if both sides let it.

use crate::agents::{self, Agent};
use crate::args::{ExplainOptions, Output};
use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use std::io::Write as _;
use std::process::ExitCode;
use weft_api::agent::{Decision, ExplainPeer, ExplainRequest, Explanation, Request, Response};

/// Exit code of a connection that does not pass.
const DENIED: u8 = 3;

/// The answer, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Answer {
    allowed: bool,
    from: String,
    to: String,
    port: u16,
    protocol: String,
    egress: Option<Side>,
    ingress: Option<Side>,
}

#[derive(Debug, Serialize)]
struct Side {
    node: String,
    #[serde(flatten)]
    decision: Decision,
}

pub fn run(options: &ExplainOptions) -> Result<ExitCode> {
    let (port, protocol) = options.port.clone();
    let request = ExplainRequest { from: options.from.clone(), to: options.to.clone(), port, protocol };
    let agents = agents::of(&options.target)?;
    let answers = agents::ask_all(&agents, &Request::Explain(request.clone()));
    let answer = merge(request, &agents, answers)?;
    let mut out = std::io::stdout().lock();
    match options.output.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
        Output::Table => answer.print(&mut out)?,
    }
    Ok(if answer.allowed { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
}

fn merge(request: ExplainRequest, agents: &[Agent], answers: Vec<Result<Response>>) -> Result<Answer> {
    let (mut egress, mut ingress, mut failed) = (None, None, None);
    for (agent, answer) in agents.iter().zip(answers) {
        match answer {
            Ok(Response::Explanation(Explanation { egress: out, ingress: into })) => {
                let side = |decision| Side { node: agent.node.clone(), decision };
                egress = egress.or(out.map(side));
                ingress = ingress.or(into.map(side));
            }
            Ok(_) => bail!("the agent of {} answers something else than was asked", agent.node),
            // A node that does not know a pod of another node is no failure as long as somebody does.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    for (side, peer, direction) in [(&egress, &request.from, "egress"), (&ingress, &request.to, "ingress")] {
        if side.is_none() && matches!(peer, ExplainPeer::Pod(_)) {
            let why = anyhow!("no agent that was asked has the pod {}: {direction} is unknown", name(peer));
            return Err(match failed {
                Some(error) => error.context(why.to_string()),
                None => why,
            });
        }
    }
    if egress.is_none() && ingress.is_none() {
        return Err(failed.unwrap_or_else(|| anyhow!("neither end is a pod of the nodes that were asked")));
    }
    let allowed = [&egress, &ingress].into_iter().flatten().all(|side| side.decision.allowed);
    Ok(Answer {
        allowed,
        from: name(&request.from),
        to: name(&request.to),
        port: request.port,
        protocol: request.protocol,
        egress,
        ingress,
    })
}

fn name(peer: &ExplainPeer) -> String {
    match peer {
        ExplainPeer::Pod(name) => name.clone(),
        ExplainPeer::Ip(ip) => ip.to_string(),
    }
}

impl Answer {
    fn print(&self, out: &mut impl std::io::Write) -> Result<()> {
        let verdict = if self.allowed { "ALLOWED" } else { "DENIED" };
        let port = if self.port == 0 { String::new() } else { format!("{}/", self.port) };
        writeln!(out, "{verdict}  {} -> {} {port}{}", self.from, self.to, self.protocol.to_lowercase())?;
        for (direction, side) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            let Some(Side { node, decision }) = side else { continue };
            let verdict = if decision.allowed { "allowed" } else { "denied" };
            writeln!(out, "  {direction:<7}  {verdict}: {} (on {node})", decision.reason)?;
            for policy in &decision.policies {
                writeln!(out, "             {policy}")?;
            }
            for (policy, why) in &decision.others {
                writeln!(out, "             {policy}: {why}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
