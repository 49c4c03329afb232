//! `weft explain`: both sides' agents are asked; it passes only if both sides let it. Who asks for a Service is told where
//! it leads, and whether each of its backends would be reached.

use crate::agents::{self, Agent};
use crate::args::{ExplainOptions, Output};
use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use std::io::Write as _;
use std::process::ExitCode;
use weft_api::agent::{Decision, ExplainPeer, ExplainRequest, Explanation, Request, Response};

/// Exit code of a connection that does not pass, or not to every backend.
const DENIED: u8 = 3;
/// Backends that are asked about; they are told apart by labels in the end, so more would say the same.
const BACKENDS_MAX: usize = 32;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Service>,
}

/// The Service that was asked for. `allowed` is then: whichever backend it leads to.
#[derive(Debug, Serialize)]
struct Service {
    node: String,
    kind: String,
    namespace: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// How many backends a new connection may go to.
    backends_total: usize,
    backends: Vec<Answer>,
}

#[derive(Debug, Serialize)]
struct Side {
    node: String,
    #[serde(flatten)]
    decision: Decision,
}

pub fn run(options: &ExplainOptions) -> Result<ExitCode> {
    let (port, protocol) = options.port.clone();
    let (from, to) = (options.from.clone(), options.to.clone());
    let request = ExplainRequest { from, to, port, protocol, as_it_stands: false };
    let agents = agents::of(&options.target)?;
    let ask = |request: &ExplainRequest| agents::ask_all(&agents, &Request::Explain(request.clone()));
    let answer = explain(request, &agents, &ask)?;
    let mut out = std::io::stdout().lock();
    match options.output.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
        Output::Table => answer.print(&mut out)?,
    }
    Ok(if answer.allowed { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
}

/// The answer, with everything that has to be asked for it.
fn explain(
    request: ExplainRequest,
    agents: &[Agent],
    ask: &dyn Fn(&ExplainRequest) -> Vec<Result<Response>>,
) -> Result<Answer> {
    let answers = ask(&request);
    let service = agents.iter().zip(&answers).find_map(|(agent, answer)| match answer {
        Ok(Response::Explanation(Explanation { service: Some(service), .. })) => Some((agent, service.clone())),
        _ => None,
    });
    let Some((agent, service)) = service else { return merge(request, agents, answers) };
    let total = service.backends.len();
    let mut backends = Vec::new();
    for backend in service.backends.iter().take(BACKENDS_MAX) {
        let behind = ExplainRequest {
            from: backend.seen_as.map_or_else(|| request.from.clone(), ExplainPeer::Ip),
            to: ExplainPeer::Ip(backend.address),
            port: backend.port,
            as_it_stands: true,
            ..request.clone()
        };
        let answers = ask(&behind);
        let failed = first_error(&answers);
        let answer = sides(behind, agents, answers)?;
        // Silence of the backend's node lets nobody in.
        if let (None, Some(error)) = (&answer.ingress, failed) {
            return Err(error.context(format!("whether {} lets it in is unknown", answer.to)));
        }
        backends.push(answer);
    }
    let refused = service.refused.or_else(|| (total == 0).then(|| "it has no backend for this client".to_owned()));
    Ok(Answer {
        allowed: refused.is_none() && backends.iter().all(|backend| backend.allowed),
        from: name(&request.from),
        to: name(&request.to),
        port: request.port,
        protocol: request.protocol,
        egress: None,
        ingress: None,
        service: Some(Service {
            node: agent.node.clone(),
            kind: service.kind,
            namespace: service.namespace,
            name: service.name,
            refused,
            backends_total: total,
            backends,
        }),
    })
}

fn merge(request: ExplainRequest, agents: &[Agent], answers: Vec<Result<Response>>) -> Result<Answer> {
    let failed = first_error(&answers);
    let answer = sides(request, agents, answers)?;
    if answer.egress.is_none() && answer.ingress.is_none() {
        return Err(failed.unwrap_or_else(|| anyhow!("neither end is a pod of the nodes that were asked")));
    }
    Ok(answer)
}

fn first_error(answers: &[Result<Response>]) -> Option<anyhow::Error> {
    answers.iter().find_map(|answer| answer.as_ref().err().map(|error| anyhow!("{error:#}")))
}

/// What both sides say; neither needs to be a pod's.
fn sides(request: ExplainRequest, agents: &[Agent], answers: Vec<Result<Response>>) -> Result<Answer> {
    let (mut egress, mut ingress, mut failed) = (None, None, None);
    for (agent, answer) in agents.iter().zip(answers) {
        match answer {
            Ok(Response::Explanation(Explanation { egress: out, ingress: into, .. })) => {
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
    let allowed = [&egress, &ingress].into_iter().flatten().all(|side| side.decision.allowed);
    Ok(Answer {
        allowed,
        from: name(&request.from),
        to: name(&request.to),
        port: request.port,
        protocol: request.protocol,
        egress,
        ingress,
        service: None,
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
        let verdict = if self.allowed {
            "ALLOWED"
        } else if self.service.as_ref().is_some_and(|service| service.backends.iter().any(|backend| backend.allowed)) {
            "DEPENDS"
        } else {
            "DENIED"
        };
        let port = if self.port == 0 { String::new() } else { format!("{}/", self.port) };
        writeln!(out, "{verdict}  {} -> {} {port}{}", self.from, self.to, self.protocol.to_lowercase())?;
        if let Some(service) = &self.service {
            let Service { node, kind, namespace, name, .. } = service;
            writeln!(out, "  by {kind} {namespace}/{name} (on {node}), which policies know nothing of")?;
            if let Some(why) = &service.refused {
                writeln!(out, "    refused: {why}")?;
            }
            for backend in &service.backends {
                let mut lines = Vec::new();
                backend.print(&mut lines)?;
                String::from_utf8_lossy(&lines).lines().try_for_each(|line| writeln!(out, "    {line}"))?;
            }
            match service.backends_total - service.backends.len() {
                0 => {}
                more => writeln!(out, "    and {more} more backends")?,
            }
        }
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
