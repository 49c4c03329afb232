//! CiliumEndpointSlices.

use crate::convert;
use crate::watch::kind::{AgentKind, Seen, named, parse};
use crate::wire::{CiliumEndpointSlice, path};
use weft_model::intent::{Change, Source};

pub(super) struct Slices;

impl AgentKind for Slices {
    type Key = String;
    const PAGE: u32 = 100;

    fn source(&self) -> Source {
        Source::Slices
    }

    fn path(&self) -> &'static str {
        path::SLICES
    }

    fn read(&self, json: &str) -> Result<Seen<String, Change>, String> {
        let object: CiliumEndpointSlice = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object.metadata.name.clone(), object.metadata.resource_version.clone());
        let event = match convert::slice(object) {
            Ok(slice) => Some(Change::Slice(slice)),
            Err(problem) => {
                tracing::warn!(slice = key, %problem, "slice not usable, what it held before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version, event })
    }

    fn gone(&self, key: &String, _uid: &str) -> Change {
        Change::SliceGone(key.clone())
    }
}
