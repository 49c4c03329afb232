//! CiliumLocalRedirectPolicies.

use crate::convert;
use crate::watch::kind::{Absence, AgentKind, Seen, named, object_name, parse};
use crate::wire::{WireCustom, path};
use weft_model::intent::{Change, ObjectName, Source};

pub(super) struct LocalRedirects;

impl AgentKind for LocalRedirects {
    type Key = ObjectName;
    const PAGE: u32 = 250;

    fn source(&self) -> Source {
        Source::LocalRedirects
    }

    fn path(&self) -> &'static str {
        path::LOCAL_REDIRECTS
    }

    fn absence(&self) -> Absence {
        Absence::Tolerated
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: WireCustom = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object_name(&object.metadata), object.metadata.resource_version.clone());
        let event = match convert::local_redirect(object) {
            Ok(redirect) => Some(Change::LocalRedirect(redirect)),
            Err(problems) => {
                tracing::warn!(policy = %key, %problems, "CiliumLocalRedirectPolicy not usable, what was in force stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version, event })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::LocalRedirectGone(key.clone())
    }
}
