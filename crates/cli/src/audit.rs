//! `weft endpoint audit`.

use crate::agents;
use crate::args::{AuditMode, AuditOptions};
use anyhow::{Result, anyhow};
use std::process::ExitCode;
use weft_api::agent::{AuditRequest, Request};

/// Tells the agent that has the pod; which one that is, only they know.
pub fn run(options: &AuditOptions) -> Result<ExitCode> {
    let (namespace, pod) = &options.pod;
    let on = options.mode == AuditMode::On;
    let request = Request::Audit(AuditRequest { namespace: namespace.clone(), pod: pod.clone(), on });
    let agents = agents::of(&options.target)?;
    let mut failed = None;
    for (agent, answer) in agents.iter().zip(agents::ask_all(&agents, &request)) {
        match answer {
            Ok(_) => {
                let what = if on { "reported and passes" } else { "dropped" };
                println!("{namespace}/{pod} on {}: what its policies deny is {what}", agent.node);
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow!("there is no agent to ask")))
}
