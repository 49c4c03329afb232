//! What the planned patch means for each object, for metrics.

use super::engine::Engine;
use super::interface::Object;
use std::collections::BTreeMap;
use weft_model::desired::ServiceId;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Event {
    /// It gets its first frontends.
    Add,
    /// Its frontends or their backends change.
    Update,
    /// It loses all of them.
    Delete,
}

impl Event {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

impl Engine {
    /// The events of the planned patch. Call it between [`Engine::plan`] and [`Engine::done`].
    #[must_use]
    pub fn planned_events(&self) -> BTreeMap<Object, Event> {
        let Some(patch) = self.planned_patch() else { return BTreeMap::new() };
        let owner = |service: ServiceId| self.owners.get(&service).map(|(object, _)| &**object);
        let mut changes: BTreeMap<&Object, (usize, usize)> = BTreeMap::new();
        for object in patch.put_frontends.values().filter_map(|entry| owner(entry.service)) {
            changes.entry(object).or_default().0 += 1;
        }
        let gone = patch.del_frontends.iter().filter_map(|frontend| owner(self.held.frontend(frontend)?.service));
        for object in gone {
            changes.entry(object).or_default().1 += 1;
        }
        let event = |(object, (put, del)): (&Object, (usize, usize))| {
            let ports = self.objects.get(object).into_iter().flat_map(|own| own.ports.values());
            let had: usize = ports.filter_map(|id| self.held.of_service(*id)).map(|rows| rows.frontends.len()).sum();
            let event = match (had, put) {
                (0, _) => Event::Add,
                (_, 0) if del == had => Event::Delete,
                _ => Event::Update,
            };
            (object.clone(), event)
        };
        changes.into_iter().map(event).collect()
    }
}
