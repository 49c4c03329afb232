//! `weft endpoint|identity|policy|service|ipcache|ct|map list`: the same rows as a table or as JSON, each with its node.

use crate::agents;
use crate::args::{ListOptions, Output};
use crate::table::Table;
use anyhow::{Result, bail};
use serde::Serialize;
use std::io::Write as _;
use std::process::ExitCode;
use weft_api::agent::{Connection, Endpoint, Identity, IpcacheEntry, Map, Policy, Request, Response};
use weft_api::flow::PolicyRef;

/// A row and the node that it is from.
#[derive(Debug, Serialize)]
pub struct OfNode<T> {
    pub node: String,
    #[serde(flatten)]
    pub row: T,
}

/// Asks every agent. An agent that does not answer is a failure, told after what the others said.
pub fn gather<T>(
    options: &ListOptions,
    request: &Request,
    rows: fn(Response) -> Option<Vec<T>>,
) -> Result<Gathered<T>> {
    let agents = agents::of(&options.target)?;
    let mut gathered = Gathered { rows: Vec::new(), failed: Vec::new() };
    for (agent, answer) in agents.iter().zip(agents::ask_all(&agents, request)) {
        match answer {
            Ok(answer) => match rows(answer) {
                Some(rows) => {
                    gathered.rows.extend(rows.into_iter().map(|row| OfNode { node: agent.node.clone(), row }));
                }
                None => bail!("the agent of {} answers something else than was asked", agent.node),
            },
            Err(error) => gathered.failed.push(error),
        }
    }
    Ok(gathered)
}

pub struct Gathered<T> {
    pub rows: Vec<OfNode<T>>,
    failed: Vec<anyhow::Error>,
}

impl<T: Serialize> Gathered<T> {
    fn print<const N: usize>(
        self,
        options: &ListOptions,
        headings: [&str; N],
        cells: fn(&OfNode<T>) -> [String; N],
    ) -> Result<ExitCode> {
        self.print_lines(options, headings, |rows| rows.iter().map(cells).collect())
    }

    /// The same where a row is not a line.
    pub fn print_lines<const N: usize>(
        self,
        options: &ListOptions,
        headings: [&str; N],
        lines: impl FnOnce(&[OfNode<T>]) -> Vec<[String; N]>,
    ) -> Result<ExitCode> {
        let mut out = std::io::stdout().lock();
        match options.output.output {
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&self.rows)?)?,
            Output::Table => {
                let mut table = Table::new(headings);
                lines(&self.rows).into_iter().for_each(|line| table.row(line));
                table.write(&mut out)?;
            }
        }
        for error in &self.failed {
            eprintln!("weft: {error:#}");
        }
        Ok(if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

pub fn endpoints(options: &ListOptions) -> Result<ExitCode> {
    let mut gathered = gather(options, &Request::Endpoints, |answer| match answer {
        Response::Endpoints(rows) => Some(rows),
        _ => None,
    })?;
    let key = |row: &OfNode<Endpoint>| (row.node.clone(), row.row.namespace.clone(), row.row.pod.clone());
    gathered.rows.sort_by_key(key);
    gathered.print(
        options,
        ["NODE", "ID", "POD", "ADDRESSES", "IDENTITY", "INGRESS", "EGRESS", "STATE", "DEVICE"],
        |OfNode { node, row }| {
            let audit = if row.audit { " (audit)" } else { "" };
            let state =
                row.problem.as_ref().map_or_else(|| row.state.clone(), |why| format!("{}: {why}", row.state)) + audit;
            [
                node.clone(),
                row.id.to_string(),
                format!("{}/{}", row.namespace, row.pod),
                join(&row.addresses, " "),
                row.identity.to_string(),
                isolation(row.ingress.as_deref()),
                isolation(row.egress.as_deref()),
                state,
                row.device.clone(),
            ]
        },
    )
}

/// `open`, or the policies that isolate.
fn isolation(policies: Option<&[PolicyRef]>) -> String {
    match policies {
        None => "open".to_owned(),
        Some(policies) => policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>().join(","),
    }
}

pub fn identities(options: &ListOptions) -> Result<ExitCode> {
    let mut gathered = gather(options, &Request::Identities, |answer| match answer {
        Response::Identities(rows) => Some(rows),
        _ => None,
    })?;
    gathered.rows.sort_by_key(|row: &OfNode<Identity>| (row.node.clone(), row.row.identity));
    gathered.print(options, ["NODE", "IDENTITY", "ENDPOINTS", "LABELS"], |OfNode { node, row }| {
        [node.clone(), row.identity.to_string(), row.endpoints.to_string(), row.labels.join(",")]
    })
}

pub fn policies(options: &ListOptions) -> Result<ExitCode> {
    let mut gathered = gather(options, &Request::Policies, |answer| match answer {
        Response::Policies(rows) => Some(rows),
        _ => None,
    })?;
    gathered.rows.sort_by_key(|row: &OfNode<Policy>| (row.node.clone(), row.row.policy.clone()));
    gathered.print(options, ["NODE", "KIND", "POLICY", "IN FORCE", "ENDPOINTS", "PROBLEM"], |OfNode { node, row }| {
        [
            node.clone(),
            row.policy.kind.clone(),
            if row.policy.namespace.is_empty() {
                row.policy.name.clone()
            } else {
                format!("{}/{}", row.policy.namespace, row.policy.name)
            },
            row.resource_version.clone(),
            row.endpoints.len().to_string(),
            row.problem.clone().unwrap_or_default(),
        ]
    })
}

pub fn ipcache(options: &ListOptions) -> Result<ExitCode> {
    let mut gathered = gather(options, &Request::Ipcache, |answer| match answer {
        Response::Ipcache(rows) => Some(rows),
        _ => None,
    })?;
    gathered.rows.sort_by_key(|row: &OfNode<IpcacheEntry>| (row.node.clone(), row.row.prefix.clone()));
    gathered.print(options, ["NODE", "PREFIX", "IDENTITY", "ON NODE", "KIND"], |OfNode { node, row }| {
        let on = row.node.map(|on| on.to_string()).unwrap_or_default();
        [node.clone(), row.prefix.clone(), row.identity.to_string(), on, row.kind.clone()]
    })
}

pub fn connections(options: &ListOptions) -> Result<ExitCode> {
    let gathered = gather(options, &Request::Connections, |answer| match answer {
        Response::Connections(rows) => Some(rows),
        _ => None,
    })?;
    gathered.print(
        options,
        ["NODE", "PROTOCOL", "FROM", "TO", "STATE", "IDLE", "PACKETS", "BYTES", "OUTSIDE"],
        |OfNode { node, row }| {
            let row: &Connection = row;
            [
                node.clone(),
                row.protocol.clone(),
                std::net::SocketAddr::new(row.source, row.source_port).to_string(),
                std::net::SocketAddr::new(row.destination, row.destination_port).to_string(),
                row.state.clone(),
                format!("{}s", row.idle_s),
                format!("{}/{}", row.packets.0, row.packets.1),
                format!("{}/{}", row.bytes.0, row.bytes.1),
                row.masquerade.map(|(ip, port)| std::net::SocketAddr::new(ip, port).to_string()).unwrap_or_default(),
            ]
        },
    )
}

pub fn maps(options: &ListOptions) -> Result<ExitCode> {
    let mut gathered = gather(options, &Request::Maps, |answer| match answer {
        Response::Maps(rows) => Some(rows),
        _ => None,
    })?;
    gathered.rows.sort_by_key(|row: &OfNode<Map>| (row.node.clone(), row.row.name.clone()));
    gathered.print(options, ["NODE", "MAP", "ENTRIES", "ROOM FOR", "MEMORY"], |OfNode { node, row }| {
        let memory = format!("{} KiB", row.memory_bytes.div_ceil(1024));
        [node.clone(), row.name.clone(), row.entries.to_string(), row.entries_max.to_string(), memory]
    })
}

fn join<T: ToString>(items: &[T], with: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(with)
}
