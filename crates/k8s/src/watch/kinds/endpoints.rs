//! CiliumEndpoints, each as a slice of one endpoint ([`convert::endpoint_slice_name`]).

use crate::convert;
use crate::watch::kind::{Absence, AgentKind, Seen, named, object_name, parse};
use crate::wire::{CiliumEndpoint, path};
use weft_model::intent::{Change, ObjectName, Source};

pub(in crate::watch) struct Endpoints {
    /// A server that does not know the kind has no answer, rather than no objects.
    pub(in crate::watch) required: bool,
}

impl AgentKind for Endpoints {
    type Key = ObjectName;
    const PAGE: u32 = 500;

    fn source(&self) -> Source {
        Source::Endpoints
    }

    fn path(&self) -> &'static str {
        path::ENDPOINTS
    }

    fn absence(&self) -> Absence {
        if self.required { Absence::Never } else { Absence::Confirmed }
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: CiliumEndpoint = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object_name(&object.metadata), object.metadata.resource_version.clone());
        let uid = object.metadata.uid.clone();
        let event = match convert::endpoint(object) {
            Ok(slice) => Some(Change::Slice(slice)),
            Err(problem) => {
                tracing::warn!(endpoint = %key, %problem, "CiliumEndpoint not usable, what it held before stays");
                None
            }
        };
        Ok(Seen { key, uid, version, event })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::SliceGone(convert::endpoint_slice_name(key))
    }
}
