//! Policies of one kind.

use crate::convert::{self, Settings};
use crate::watch::kind::{Absence, AgentKind, Seen, named, parse};
use crate::wire::{WirePolicy, path};
use weft_model::intent::{Change, ObjectName, PolicyKind, PolicyName, Source};

pub(super) struct Policies {
    pub(super) kind: PolicyKind,
    pub(super) settings: Settings,
}

impl AgentKind for Policies {
    type Key = ObjectName;
    const PAGE: u32 = 250;

    fn source(&self) -> Source {
        Source::Policies(self.kind)
    }

    fn path(&self) -> &'static str {
        path::policies(self.kind)
    }

    fn absence(&self) -> Absence {
        if self.kind == PolicyKind::NetworkPolicy { Absence::Never } else { Absence::Confirmed }
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: WirePolicy = parse(json)?;
        named(&object.metadata)?;
        let name = convert::policy_name(self.kind, &object);
        let change = match convert::policy(self.kind, &object, self.settings) {
            Ok(policy) => Change::Policy(policy),
            Err(problems) => Change::PolicyInvalid {
                name: name.clone(),
                resource_version: object.metadata.resource_version.clone(),
                problem: problems.to_string(),
            },
        };
        let (uid, version) = (object.metadata.uid, object.metadata.resource_version);
        Ok(Seen { key: name.object, uid, version, event: Some(change) })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::PolicyGone(PolicyName { kind: self.kind, object: key.clone() })
    }
}
