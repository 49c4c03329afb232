//! What readers see of Services: whose an address and port are, how many are in force, and what is not. Shares everything
//! with the table: a view costs nothing and never changes.

use super::gone::Gone;
use rpds::RedBlackTreeMapSync;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use weft_control::service::{Engine, Event, Object, Reason};
use weft_model::desired::{Frontend, ServicePatch};
use weft_model::intent::Protocol;

type Owners = RedBlackTreeMapSync<(IpAddr, u16, Protocol), Arc<Object>>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct View {
    frontends: Owners,
    backends: Owners,
    count: usize,
    problems: Arc<[(Object, Reason, String)]>,
    /// Tables were taken over: what they hold is to be read once they are compared with what is wanted.
    is_stale: bool,
}

/// Frontends and backends that a patch names.
pub(super) struct Named {
    frontends: Vec<Frontend>,
    backends: Vec<(IpAddr, u16, Protocol)>,
}

impl Named {
    pub(super) fn by(patch: &ServicePatch) -> Self {
        Self {
            frontends: patch.put_frontends.keys().chain(&patch.del_frontends).copied().collect(),
            backends: patch.put_backends.values().map(|entry| (entry.address, entry.port, entry.protocol)).collect(),
        }
    }
}

impl View {
    /// The object of which an address and port are a frontend, or a backend: of several the first. `is_own`: it is an
    /// address of this node, which has the ports of the node.
    #[must_use]
    pub fn object_at(&self, address: IpAddr, port: u16, protocol: Protocol, is_own: bool) -> Option<&Object> {
        let key = (address, port, protocol);
        let of_node = || {
            let any = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            is_own.then(|| self.frontends.get(&(any, port, protocol))).flatten()
        };
        let object = self.frontends.get(&key).or_else(|| self.backends.get(&key)).or_else(of_node);
        object.map(|object| &**object)
    }

    /// How many Services have something in force.
    #[must_use]
    pub fn in_force(&self) -> usize {
        self.count
    }

    /// Services, pods with hostPorts and local redirects of which something is not in force, and why.
    #[must_use]
    pub fn problems(&self) -> &[(Object, Reason, String)] {
        &self.problems
    }

    pub(super) fn count(&mut self, event: Event) {
        match event {
            Event::Add => self.count += 1,
            Event::Update => {}
            Event::Delete => self.count = self.count.saturating_sub(1),
        }
    }

    /// The compiler took over tables.
    pub(super) fn rebuild(&mut self) {
        self.is_stale = true;
    }

    /// A patch is in force.
    pub(super) fn update(&mut self, named: Named, gone: &Gone, engine: &Engine) {
        for frontend in named.frontends {
            self.set_frontend(&frontend, engine);
        }
        let gone = gone.iter().map(|(_, entry)| (entry.address, entry.port, entry.protocol));
        for place in named.backends.into_iter().chain(gone) {
            self.set_backend(place, engine);
        }
    }

    /// A pass has ended.
    pub(super) fn finish(&mut self, engine: &Engine) {
        if std::mem::take(&mut self.is_stale) {
            (self.frontends, self.backends) = (Owners::default(), Owners::default());
            let tables = engine.tables();
            tables.frontends.keys().for_each(|frontend| self.set_frontend(frontend, engine));
            let places = tables.backends.values().map(|entry| (entry.address, entry.port, entry.protocol));
            places.for_each(|place| self.set_backend(place, engine));
            self.count = engine.count();
        }
        let problems = engine.problems().into_iter().flat_map(|(object, problems)| {
            problems.into_iter().map(move |problem| (object.clone(), problem.reason, problem.text))
        });
        let problems: Vec<_> = problems.collect();
        if *self.problems != *problems {
            self.problems = problems.into();
        }
    }

    fn set_frontend(&mut self, frontend: &Frontend, engine: &Engine) {
        let key = (frontend.address, frontend.port, frontend.protocol);
        match engine.object_at(frontend) {
            Some(object) => self.frontends.insert_mut(key, object.clone()),
            None => drop(self.frontends.remove_mut(&key)),
        }
    }

    fn set_backend(&mut self, place: (IpAddr, u16, Protocol), engine: &Engine) {
        let (address, port, protocol) = place;
        match engine.object_behind(address, port, protocol) {
            Some(object) => self.backends.insert_mut(place, object.clone()),
            None => drop(self.backends.remove_mut(&place)),
        }
    }
}
