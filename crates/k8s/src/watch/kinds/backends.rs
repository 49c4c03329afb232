//! EndpointSlices of Services.

use crate::convert;
use crate::watch::kind::{AgentKind, Seen, judged, object_name};
use crate::wire::{WireEndpointSlice, path};
use weft_model::intent::{Change, ObjectName, Source};

pub(super) struct Backends;

impl AgentKind for Backends {
    type Key = ObjectName;
    const PAGE: u32 = 100;

    fn source(&self) -> Source {
        Source::Backends
    }

    fn path(&self) -> &'static str {
        path::ENDPOINT_SLICES
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let (metadata, object) = judged::<WireEndpointSlice>(json)?;
        let key = object_name(&metadata);
        let event = match object.and_then(|object| convert::backends(object).map_err(|problems| problems.to_string())) {
            Ok(Some(backends)) => Some(Change::Backends(backends)),
            // It may have been some Service's before.
            Ok(None) => Some(Change::BackendsGone(key.clone())),
            Err(problem) => {
                tracing::warn!(slice = %key, problem, "EndpointSlice not usable, what it held before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version: metadata.resource_version, event })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::BackendsGone(key.clone())
    }
}
