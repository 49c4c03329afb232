//! The kinds that an agent watches. A new one is a file below this folder and a line in [`each`]; watches, sources and
//! the check of `deploy/rbac.yaml` and `deploy/crds` follow from that.

use super::kind::{Absence, EndpointsWatch, Kind, Seen};
use crate::convert::Settings;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{Change, PolicyKind, SourceProblem};

mod backends;
mod cidr_groups;
mod endpoints;
mod identities;
mod local_redirects;
mod namespaces;
mod nodes;
mod pods;
mod policies;
mod services;
mod slices;

pub use crate::watch::kind::AgentKind;
pub(super) use endpoints::Endpoints;

/// Takes every kind, with the token that ends its watch.
pub(super) trait Visitor {
    fn visit(&mut self, kind: impl Kind<Event = Change> + AgentKind, stop: &CancellationToken);
}

/// Every kind that the agent of `node` watches.
pub(super) fn each(
    node: &str,
    settings: Settings,
    endpoints: EndpointsWatch<'_>,
    stop: &CancellationToken,
    visitor: &mut impl Visitor,
) {
    visitor.visit(pods::Pods { node: node.to_owned() }, stop);
    visitor.visit(namespaces::Namespaces, stop);
    for kind in PolicyKind::ALL {
        visitor.visit(policies::Policies { kind, settings }, stop);
    }
    visitor.visit(cidr_groups::CidrGroups, stop);
    visitor.visit(services::Services, stop);
    visitor.visit(backends::Backends, stop);
    visitor.visit(local_redirects::LocalRedirects, stop);
    visitor.visit(identities::Identities, stop);
    visitor.visit(slices::Slices, stop);
    visitor.visit(nodes::Nodes, stop);
    visitor.visit(endpoints::Endpoints { required: endpoints.required }, endpoints.until);
}

impl<K: AgentKind> Kind for K {
    type Key = <K as AgentKind>::Key;
    type Event = Change;
    const PAGE: u32 = <K as AgentKind>::PAGE;

    fn path(&self) -> &'static str {
        AgentKind::path(self)
    }

    fn field_selector(&self) -> Option<String> {
        AgentKind::field_selector(self)
    }

    fn absence(&self) -> Absence {
        AgentKind::absence(self)
    }

    fn read(&self, json: &str) -> Result<Seen<<K as AgentKind>::Key, Change>, String> {
        AgentKind::read(self, json)
    }

    fn gone(&self, key: &<K as AgentKind>::Key, uid: &str) -> Change {
        AgentKind::gone(self, key, uid)
    }

    fn synced(&self) -> Change {
        Change::Synced(self.source())
    }

    fn problem(&self, problem: Option<SourceProblem>) -> Option<Change> {
        Some(Change::SourceProblem(self.source(), problem))
    }
}
