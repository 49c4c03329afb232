//! Namespaces.

use crate::convert;
use crate::watch::kind::{AgentKind, Seen, named, parse};
use crate::wire::{WireNamespace, path};
use weft_model::intent::{Change, Source};

pub(super) struct Namespaces;

impl AgentKind for Namespaces {
    type Key = String;
    const PAGE: u32 = 500;

    fn source(&self) -> Source {
        Source::Namespaces
    }

    fn path(&self) -> &'static str {
        path::NAMESPACES
    }

    fn read(&self, json: &str) -> Result<Seen<String, Change>, String> {
        let object: WireNamespace = parse(json)?;
        named(&object.metadata)?;
        let version = object.metadata.resource_version.clone();
        let namespace = convert::namespace(object);
        let key = namespace.name.clone();
        Ok(Seen { key, uid: String::new(), version, event: Some(Change::Namespace(namespace)) })
    }

    fn gone(&self, key: &String, _uid: &str) -> Change {
        Change::NamespaceGone(key.clone())
    }
}
