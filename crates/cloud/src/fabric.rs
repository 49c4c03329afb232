//! The network of a cluster on one machine, asked over a unix socket: a line of JSON there, a line of JSON back.

use crate::{Answer, Cloud, CloudError, NodeRef, Wanted};
use futures::FutureExt as _;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// An answer must have come by then.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer, or question, that is read.
pub const LINE_MAX: u64 = 4 << 20;

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Question {
    /// [`Cloud::assigned`]
    Assigned {
        /// The node.
        node: NodeRef,
    },
    /// [`Cloud::assign`]
    Assign {
        /// The node.
        node: NodeRef,
        /// What.
        wanted: Vec<Wanted>,
    },
    /// [`Cloud::restore`]
    Restore {
        /// The node.
        node: NodeRef,
        /// What.
        blocks: Vec<IpNet>,
    },
    /// [`Cloud::unassign`]
    Unassign {
        /// The node.
        node: NodeRef,
        /// What.
        blocks: Vec<IpNet>,
    },
    /// [`Cloud::retain`]
    Retain {
        /// Names of nodes.
        nodes: Vec<String>,
    },
}

/// The answer: what the node that was asked about has then.
pub type Reply = Result<BTreeSet<IpNet>, CloudError>;

/// See the module.
#[derive(Clone, Debug)]
pub struct Fabric {
    socket: PathBuf,
}

impl Fabric {
    /// Behind a socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    async fn ask(&self, question: Question) -> Reply {
        let asked = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            let mut line = serde_json::to_vec(&question)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            let mut answer = Vec::new();
            BufReader::new(stream.take(LINE_MAX)).read_until(b'\n', &mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(TIMEOUT, asked).await;
        let answer =
            answer.map_err(|_| CloudError::unavailable(format!("no answer within {} s", TIMEOUT.as_secs())))?;
        let answer = answer.map_err(|error| CloudError::unavailable(format!("{}: {error}", self.socket.display())))?;
        serde_json::from_slice::<Reply>(&answer).map_err(|error| CloudError::invalid(error.to_string()))?
    }
}

impl Cloud for Fabric {
    fn assigned<'a>(&'a self, node: &'a NodeRef) -> Answer<'a, BTreeSet<IpNet>> {
        self.ask(Question::Assigned { node: node.clone() }).boxed()
    }

    fn assign<'a>(&'a self, node: &'a NodeRef, wanted: &'a [Wanted]) -> Answer<'a, BTreeSet<IpNet>> {
        self.ask(Question::Assign { node: node.clone(), wanted: wanted.to_vec() }).boxed()
    }

    fn restore<'a>(&'a self, node: &'a NodeRef, blocks: &'a [IpNet]) -> Answer<'a, ()> {
        self.ask(Question::Restore { node: node.clone(), blocks: blocks.to_vec() }).map(|reply| reply.map(drop)).boxed()
    }

    fn unassign<'a>(&'a self, node: &'a NodeRef, blocks: &'a [IpNet]) -> Answer<'a, ()> {
        self.ask(Question::Unassign { node: node.clone(), blocks: blocks.to_vec() })
            .map(|reply| reply.map(drop))
            .boxed()
    }

    fn retain<'a>(&'a self, nodes: &'a [String]) -> Answer<'a, ()> {
        self.ask(Question::Retain { nodes: nodes.to_vec() }).map(|reply| reply.map(drop)).boxed()
    }
}
