//! CiliumCIDRGroups.

use crate::convert;
use crate::watch::kind::{Absence, AgentKind, Seen, named, parse};
use crate::wire::{WireCidrGroup, path};
use weft_model::intent::{Change, Source};

pub(super) struct CidrGroups;

impl AgentKind for CidrGroups {
    type Key = String;
    const PAGE: u32 = 250;

    fn source(&self) -> Source {
        Source::CidrGroups
    }

    fn path(&self) -> &'static str {
        path::CIDR_GROUPS
    }

    fn absence(&self) -> Absence {
        // While the groups are not known, deny rules that name one apply to all addresses, and allow rules to none.
        Absence::Tolerated
    }

    fn read(&self, json: &str) -> Result<Seen<String, Change>, String> {
        let object: WireCidrGroup = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object.metadata.name.clone(), object.metadata.resource_version.clone());
        let event = match convert::cidr_group(object) {
            Ok(group) => Some(Change::CidrGroup(group)),
            Err(problems) => {
                tracing::warn!(group = key, %problems, "CIDR group not usable, what it held before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version, event })
    }

    fn gone(&self, key: &String, _uid: &str) -> Change {
        Change::CidrGroupGone(key.clone())
    }
}
