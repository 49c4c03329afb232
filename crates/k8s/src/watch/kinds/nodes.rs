//! Nodes.

use crate::convert;
use crate::watch::kind::{AgentKind, Seen, named, parse};
use crate::wire::{WireNode, path};
use weft_model::intent::{Change, Source};

pub(super) struct Nodes;

impl AgentKind for Nodes {
    type Key = String;
    const PAGE: u32 = 100;

    fn source(&self) -> Source {
        Source::Nodes
    }

    fn path(&self) -> &'static str {
        path::NODES
    }

    fn read(&self, json: &str) -> Result<Seen<String, Change>, String> {
        let object: WireNode = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object.metadata.name.clone(), object.metadata.resource_version.clone());
        let event = match convert::node(&object) {
            Ok(node) => Some(Change::Node(node)),
            Err(problem) => {
                tracing::warn!(node = key, %problem, "node not usable, what was known before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version, event })
    }

    fn gone(&self, key: &String, _uid: &str) -> Change {
        Change::NodeGone(key.clone())
    }
}
