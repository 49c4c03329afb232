//! CiliumIdentities.

use crate::convert;
use crate::watch::kind::{AgentKind, Seen, parse};
use crate::wire::{CiliumIdentity, path};
use weft_model::id::Identity;
use weft_model::intent::{Change, Source};

pub(super) struct Identities;

impl AgentKind for Identities {
    type Key = u32;
    const PAGE: u32 = 500;

    fn source(&self) -> Source {
        Source::Identities
    }

    fn path(&self) -> &'static str {
        path::IDENTITIES
    }

    fn read(&self, json: &str) -> Result<Seen<u32, Change>, String> {
        let object: CiliumIdentity = parse(json)?;
        let version = object.metadata.resource_version.clone();
        let name = object.metadata.name.clone();
        let row = convert::identity(object).map_err(|problem| format!("CiliumIdentity {name}: {problem}"))?;
        Ok(Seen { key: row.identity.raw(), uid: String::new(), version, event: Some(Change::Identity(row)) })
    }

    fn gone(&self, key: &u32, _uid: &str) -> Change {
        Change::IdentityGone(Identity::from_raw(*key))
    }
}
