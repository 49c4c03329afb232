//! The agents' local interface: which ones there are, and one question with its answers.

use crate::args::Target;
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use weft_api::agent::{Request, Response};
use weft_api::cluster::{Cluster, ClusterError, agent_socket};

/// The agent of a node that is not part of an embedded cluster.
pub const SOCKET: &str = "/run/weft/agent.sock";
/// Longest answer that is read: the list of 100,000 connections is about 30 MB.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// An agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agent {
    /// Its node; the socket's path where the name is not known.
    pub node: String,
    /// Where it listens.
    pub socket: PathBuf,
}

/// The agents that a command is about, at least one.
pub fn of(target: &Target) -> Result<Vec<Agent>> {
    if let Some(socket) = &target.socket {
        return Ok(vec![Agent { node: socket.display().to_string(), socket: socket.clone() }]);
    }
    let nodes = match Cluster::read(&target.name) {
        Ok(cluster) => cluster.node_names(),
        Err(ClusterError::Absent(_)) if target.node.is_none() && Path::new(SOCKET).exists() => {
            return Ok(vec![Agent { node: SOCKET.to_owned(), socket: SOCKET.into() }]);
        }
        Err(error) => return Err(error.into()),
    };
    let wanted: Vec<Agent> = nodes
        .iter()
        .filter(|node| target.node.as_ref().is_none_or(|wanted| wanted == *node))
        .map(|node| Agent { node: node.clone(), socket: agent_socket(&target.name, node) })
        .collect();
    match &target.node {
        Some(node) if wanted.is_empty() => bail!("--node {node}: expected one of {}", nodes.join(", ")),
        _ => Ok(wanted),
    }
}

/// The answers to one question, as they come.
pub struct Answers {
    node: String,
    reader: BufReader<UnixStream>,
    line: String,
}

impl Agent {
    /// Asks.
    pub fn ask(&self, request: &Request) -> Result<Answers> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => ": it does not run",
                ErrorKind::PermissionDenied => ": try sudo",
                _ => "",
            };
            anyhow::Error::new(error).context(format!("agent of {} ({}){hint}", self.node, self.socket.display()))
        })?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).with_context(|| format!("ask the agent of {}", self.node))?;
        Ok(Answers { node: self.node.clone(), reader: BufReader::new(stream), line: String::new() })
    }

    /// Asks what has one answer.
    pub fn ask_one(&self, request: &Request) -> Result<Response> {
        match self.ask(request)?.next_answer()? {
            Some(answer) => Ok(answer),
            None => bail!("the agent of {} hung up without an answer", self.node),
        }
    }
}

impl Answers {
    /// The next answer; none once the agent hung up. What the agent refuses is an error.
    pub fn next_answer(&mut self) -> Result<Option<Response>> {
        self.line.clear();
        let read = (&mut self.reader).take(ANSWER_BYTES_MAX).read_line(&mut self.line);
        if read.with_context(|| format!("read from the agent of {}", self.node))? == 0 {
            return Ok(None);
        }
        let answer = serde_json::from_str(&self.line)
            .with_context(|| format!("the agent of {} answers what this program does not understand", self.node))?;
        match answer {
            Response::Error(error) => Err(anyhow::Error::new(error).context(format!("agent of {}", self.node))),
            answer => Ok(Some(answer)),
        }
    }
}

/// Asks all of them at the same time, in their order.
pub fn ask_all(agents: &[Agent], request: &Request) -> Vec<Result<Response>> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = agents.iter().map(|agent| scope.spawn(|| agent.ask_one(request))).collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap_or_else(|_| Err(anyhow::anyhow!("asking the agent failed"))))
            .collect()
    })
}
