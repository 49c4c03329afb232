//! `weft policy preview`: every node's agent tells what would change for its own pods.

use super::files;
use crate::agents;
use crate::args::{Output, PreviewOptions};
use anyhow::{Context as _, Result, bail};
use std::io::Write;
use std::process::ExitCode;
use weft_api::agent::{Preview, PreviewChange, PreviewRequest, Request, Response};

/// Examples of each kind that are shown.
const EXAMPLES: usize = 10;

pub fn preview(options: &PreviewOptions) -> Result<ExitCode> {
    let mut objects = Vec::new();
    for file in &options.files {
        let found = files::objects(&files::read(file)?).with_context(|| file.display().to_string())?;
        objects.extend(found);
    }
    if objects.is_empty() {
        bail!("the files hold no object");
    }
    let agents = agents::of(&options.target)?;
    let request = Request::Preview(PreviewRequest { objects, delete: options.delete });
    let mut whole = Preview::default();
    for (agent, answer) in agents.iter().zip(agents::ask_all(&agents, &request)) {
        match answer? {
            Response::Preview(part) => add(&mut whole, part),
            _ => bail!("the agent of {} answers something else than was asked", agent.node),
        }
    }
    let mut out = std::io::stdout().lock();
    match options.output.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?,
        Output::Table => print(&whole, agents.len(), &mut out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn add(whole: &mut Preview, part: Preview) {
    whole.endpoints += part.endpoints;
    // Every node knows all peers of the cluster.
    whole.peers = whole.peers.max(part.peers);
    whole.connections += part.connections;
    for (into, from) in [
        (&mut whole.newly_denied, part.newly_denied),
        (&mut whole.newly_allowed, part.newly_allowed),
        (&mut whole.connections_cut, part.connections_cut),
        (&mut whole.drops_passing, part.drops_passing),
    ] {
        into.count += from.count;
        into.examples.extend(from.examples);
        into.examples.truncate(EXAMPLES);
    }
}

fn print(whole: &Preview, nodes: usize, out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "Looked at {} endpoints on {nodes} node(s), {} peers, {} connections and recent drops. Nothing was changed.",
        whole.endpoints, whole.peers, whole.connections
    )?;
    section(out, "newly denied (endpoint and peer)", &whole.newly_denied)?;
    section(out, "newly allowed (endpoint and peer)", &whole.newly_allowed)?;
    section(out, "connections of now that would be cut", &whole.connections_cut)?;
    section(out, "recent drops that would pass", &whole.drops_passing)
}

fn section(out: &mut impl Write, what: &str, change: &PreviewChange) -> Result<()> {
    writeln!(out, "{:>6}  {what}", change.count)?;
    for example in &change.examples {
        let arrow = if example.direction == "ingress" { "<-" } else { "->" };
        let rule = example.rule.as_ref().map_or("by default".to_owned(), |rule| format!("by {rule}"));
        writeln!(out, "          {} {arrow} {}  {}  {rule}", example.endpoint, example.peer, example.ports.join(", "))?;
    }
    let more = change.count.saturating_sub(change.examples.len() as u64);
    if more > 0 && !change.examples.is_empty() {
        writeln!(out, "          and {more} more")?;
    }
    Ok(())
}
