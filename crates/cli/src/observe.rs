//! `weft observe`: flows of all nodes in the order of time.

use crate::agents::{self, Agent};
use crate::args::{ObserveOptions, Output};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use weft_api::agent::{Request, Response};
use weft_api::flow::{Direction, Flow, Peer, Verdict};

/// Shown of the past unless `--last` says otherwise.
const LAST: usize = 20;
/// A flow waits so long for earlier ones of other nodes.
const SETTLE: Duration = Duration::from_millis(100);
/// Pause before an agent that went away is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// Flows that wait to be printed; then the agents' sockets fill up, and the agents count what is lost.
const WAITING_MAX: usize = 4096;

/// What the thread of one agent reports.
enum Seen {
    Flow(Arc<Flow>),
    Note(String),
    /// Nothing more will come.
    End(Result<()>),
}

pub fn run(options: ObserveOptions) -> Result<ExitCode> {
    let agents = agents::of(&options.target)?;
    let last = options.last.unwrap_or(if options.follow { 0 } else { LAST });
    let request = Request::Observe { filter: options.filter(), last, follow: options.follow };
    let (sender, seen) = mpsc::sync_channel(WAITING_MAX);
    for agent in &agents {
        let (agent, mut request, sender) = (agent.clone(), request.clone(), sender.clone());
        std::thread::spawn(move || {
            let end = read(&agent, &mut request, &sender);
            // Nobody listens any more: the program ends.
            let _ = sender.send(Seen::End(end));
        });
    }
    drop(sender);
    let mut out = std::io::stdout().lock();
    if options.follow {
        follow(&seen, agents.len(), options.output.output, &mut out)
    } else {
        past(&seen, last, options.output.output, &mut out)
    }
}

/// Reads one agent's answers to the end. While following there is no end: an agent that restarts is asked again.
fn read(agent: &Agent, request: &mut Request, sender: &mpsc::SyncSender<Seen>) -> Result<()> {
    let mut connected = false;
    let mut told = false;
    loop {
        let result = read_once(agent, request, sender, &mut connected);
        let Request::Observe { follow: true, last, .. } = request else { return result };
        if !connected {
            // It was never there: that is for the user to know.
            return result;
        }
        *last = 0;
        if !told {
            told = true;
            let _ = sender.send(Seen::Note(format!("the agent of {} is gone; waiting for it", agent.node)));
        }
        std::thread::sleep(AGAIN);
        if agent.ask_one(&Request::Status).is_ok() && told {
            told = false;
            let _ = sender.send(Seen::Note(format!("the agent of {} is back", agent.node)));
        }
    }
}

fn read_once(agent: &Agent, request: &Request, sender: &mpsc::SyncSender<Seen>, connected: &mut bool) -> Result<()> {
    let mut answers = agent.ask(request)?;
    *connected = true;
    loop {
        let seen = match answers.next_answer()? {
            Some(Response::Flow(flow)) => Seen::Flow(flow),
            Some(Response::Lost(flows)) => {
                Seen::Note(format!("{}: {flows} flows are missing here, they came too fast", agent.node))
            }
            Some(Response::Done) => return Ok(()),
            Some(_) => bail!("the agent of {} answers something else than was asked", agent.node),
            None => bail!("the agent of {} hung up", agent.node),
        };
        if sender.send(seen).is_err() {
            return Ok(());
        }
    }
}

fn past(seen: &mpsc::Receiver<Seen>, last: usize, output: Output, out: &mut impl Write) -> Result<ExitCode> {
    let mut flows = Vec::new();
    let mut failed = false;
    for seen in seen {
        match seen {
            Seen::Flow(flow) => flows.push(flow),
            Seen::Note(note) => eprintln!("weft: {note}"),
            Seen::End(Ok(())) => {}
            Seen::End(Err(error)) => {
                failed = true;
                eprintln!("weft: {error:#}");
            }
        }
    }
    // Equal formats in UTC with nine digits: the order of the strings is the order of time.
    flows.sort_by(|a, b| a.time.cmp(&b.time));
    for flow in flows.iter().skip(flows.len().saturating_sub(last)) {
        print(flow, output, out)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn follow(seen: &mpsc::Receiver<Seen>, agents: usize, output: Output, out: &mut impl Write) -> Result<ExitCode> {
    let mut waiting: BTreeMap<(String, u64), (Instant, Arc<Flow>)> = BTreeMap::new();
    let mut number = 0;
    let mut ended = 0;
    while ended < agents {
        match seen.recv_timeout(if waiting.is_empty() { Duration::from_secs(3600) } else { SETTLE / 4 }) {
            Ok(Seen::Flow(flow)) => {
                number += 1;
                waiting.insert((flow.time.clone(), number), (Instant::now(), flow));
            }
            Ok(Seen::Note(note)) => eprintln!("weft: {note}"),
            Ok(Seen::End(end)) => {
                ended += 1;
                if let Err(error) = end {
                    eprintln!("weft: {error:#}");
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        let mut printed = false;
        while let Some((_, (came, _))) = waiting.first_key_value() {
            if came.elapsed() < SETTLE && waiting.len() < WAITING_MAX {
                break;
            }
            let Some((_, (_, flow))) = waiting.pop_first() else { break };
            print(&flow, output, out)?;
            printed = true;
        }
        if printed {
            out.flush()?;
        }
    }
    for (_, flow) in waiting.into_values() {
        print(&flow, output, out)?;
    }
    Ok(ExitCode::FAILURE)
}

fn print(flow: &Flow, output: Output, out: &mut impl Write) -> Result<()> {
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(flow)?)?,
        Output::Table => writeln!(out, "{}", line(flow))?,
    }
    Ok(())
}

/// `03:41:07.123456 node-1 DROPPED ingress a/b [10.244.0.5]:4711 (app=b) -> ... TCP SYN: Policy denied: ...`
fn line(flow: &Flow) -> String {
    // The time of day to the microsecond; the date and the rest are in the JSON.
    let time = flow.time.get(11..26).unwrap_or(&flow.time);
    let verdict = match flow.verdict {
        Verdict::Forwarded => "FORWARDED",
        Verdict::Dropped => "DROPPED",
        Verdict::Audit => "AUDIT",
    };
    let direction = match flow.direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let arrow = if flow.is_reply { "=>" } else { "->" };
    let mut line = format!(
        "{time} {} {verdict:<9} {direction:<7} {} {arrow} {} {}",
        flow.node,
        end(&flow.source, flow.source_port),
        end(&flow.destination, flow.destination_port),
        flow.protocol
    );
    if !flow.tcp_flags.is_empty() {
        line.push_str(&format!(" {}", flow.tcp_flags));
    }
    if let Some((kind, code)) = flow.icmp {
        line.push_str(&format!(" type {kind} code {code}"));
    }
    if let Some(reason) = &flow.drop_reason {
        line.push_str(&format!(": {}", reason.text));
    }
    if !flow.policies.is_empty() {
        let policies: Vec<String> = flow.policies.iter().map(ToString::to_string).collect();
        let by = if flow.drop_reason.is_some() { ": " } else { " by " };
        line.push_str(&format!("{by}{}", policies.join(", ")));
    }
    if flow.suppressed != 0 {
        line.push_str(&format!(" ({} more not reported before this)", flow.suppressed));
    }
    line
}

/// `ns/pod [address]:port of service ns/name (labels)`
fn end(peer: &Peer, port: Option<u16>) -> String {
    let name = match (&peer.namespace, &peer.pod, &peer.node) {
        (Some(namespace), Some(pod), _) => format!("{namespace}/{pod} "),
        (_, _, Some(node)) => format!("{node} "),
        _ => String::new(),
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let service = peer.service.as_ref().map(|service| format!(" of service {service}")).unwrap_or_default();
    let labels: Vec<&str> = peer.labels.iter().filter_map(|label| shown_label(label)).collect();
    let labels = if labels.is_empty() { String::new() } else { format!(" ({})", labels.join(",")) };
    format!("{name}[{}]{port}{service}{labels}", peer.ip)
}

/// The labels that users gave; those that say again which namespace and cluster are left out.
fn shown_label(label: &str) -> Option<&str> {
    match label.strip_prefix("k8s:") {
        Some(label) if label.starts_with("io.") => None,
        Some(label) => Some(label),
        None => Some(label),
    }
}

#[cfg(test)]
mod tests;
