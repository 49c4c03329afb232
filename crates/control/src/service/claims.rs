//! Which object has which frontend. Who has one keeps it while it wants it; of those that wait the least is next.

use super::Object;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use weft_model::desired::Frontend;

/// Who has a frontend, and who would like to.
#[derive(Default)]
struct Claim {
    /// `None` only between [`Claims::release`] and [`Claims::decide`].
    owner: Option<Arc<Object>>,
    waiting: BTreeSet<Arc<Object>>,
}

/// All frontends that somebody wants.
#[derive(Default)]
pub(super) struct Claims {
    claims: HashMap<Frontend, Claim>,
    /// Those that somebody waits for.
    contested: BTreeSet<Frontend>,
}

impl Claims {
    /// Who has a frontend.
    pub(super) fn owner(&self, frontend: &Frontend) -> Option<&Arc<Object>> {
        self.claims.get(frontend)?.owner.as_ref()
    }

    pub(super) fn is_contested(&self, frontend: &Frontend) -> bool {
        self.contested.contains(frontend)
    }

    /// Frontends that somebody waits for: who has it, and who waits.
    pub(super) fn contested(&self) -> impl Iterator<Item = (&Frontend, &Arc<Object>, &BTreeSet<Arc<Object>>)> {
        self.contested.iter().filter_map(|frontend| {
            let claim = self.claims.get(frontend)?;
            Some((frontend, claim.owner.as_ref()?, &claim.waiting))
        })
    }

    /// An object wants a frontend, from the next [`Claims::decide`] on.
    pub(super) fn claim(&mut self, frontend: Frontend, object: &Arc<Object>) {
        let claim = self.claims.entry(frontend).or_default();
        if claim.owner.as_ref() != Some(object) {
            claim.waiting.insert(object.clone());
        }
    }

    /// An object does not want a frontend any more.
    pub(super) fn release(&mut self, frontend: &Frontend, object: &Arc<Object>) {
        let Some(claim) = self.claims.get_mut(frontend) else { return };
        claim.owner.take_if(|owner| owner == object);
        claim.waiting.remove(object);
    }

    /// After all that changed was said: who has a frontend now, if it is somebody else than before.
    pub(super) fn decide(&mut self, frontend: &Frontend) -> Option<Arc<Object>> {
        let claim = self.claims.get_mut(frontend)?;
        let new = if claim.owner.is_none() { claim.waiting.pop_first() } else { None };
        claim.owner = claim.owner.take().or_else(|| new.clone());
        if claim.waiting.is_empty() {
            self.contested.remove(frontend);
        } else {
            self.contested.insert(*frontend);
        }
        if claim.owner.is_none() {
            self.claims.remove(frontend);
        }
        new
    }

    /// One that waits had the frontend before everybody came: it has it again.
    pub(super) fn restore(&mut self, frontend: &Frontend, object: &Arc<Object>) {
        let Some(claim) = self.claims.get_mut(frontend) else { return };
        if claim.waiting.remove(object) {
            claim.waiting.extend(claim.owner.replace(object.clone()));
        }
    }
}
