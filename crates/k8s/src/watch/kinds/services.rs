//! Services.

use crate::convert;
use crate::watch::kind::{AgentKind, Seen, judged, object_name};
use crate::wire::{WireService, path};
use weft_model::intent::{Change, ObjectName, Source};

pub(super) struct Services;

impl AgentKind for Services {
    type Key = ObjectName;
    const PAGE: u32 = 250;

    fn source(&self) -> Source {
        Source::Services
    }

    fn path(&self) -> &'static str {
        path::SERVICES
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let (metadata, object) = judged::<WireService>(json)?;
        let key = object_name(&metadata);
        let event = match object.and_then(|object| convert::service(object).map_err(|problems| problems.to_string())) {
            Ok(service) => Some(Change::Service(service)),
            Err(problem) => {
                tracing::warn!(service = %key, problem, "Service not usable, what was in force before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version: metadata.resource_version, event })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::ServiceGone(key.clone())
    }
}
