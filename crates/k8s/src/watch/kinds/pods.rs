//! Pods of one node.

use crate::convert;
use crate::watch::kind::{AgentKind, Seen, named, parse};
use crate::wire::{WirePod, path};
use weft_model::intent::{Change, ObjectName, Source};

pub(super) struct Pods {
    pub(super) node: String,
}

impl AgentKind for Pods {
    type Key = ObjectName;
    const PAGE: u32 = 100;

    fn source(&self) -> Source {
        Source::Pods
    }

    fn path(&self) -> &'static str {
        path::PODS
    }

    fn field_selector(&self) -> Option<String> {
        Some(format!("spec.nodeName={}", self.node))
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: WirePod = parse(json)?;
        named(&object.metadata)?;
        let version = object.metadata.resource_version.clone();
        let pod = convert::pod(object);
        Ok(Seen { key: pod.name.clone(), uid: pod.uid.clone(), version, event: Some(Change::Pod(pod)) })
    }

    fn gone(&self, key: &ObjectName, uid: &str) -> Change {
        Change::PodGone(key.clone(), uid.to_owned())
    }
}
