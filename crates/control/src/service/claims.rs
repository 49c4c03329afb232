//! Claims of objects on frontends. The owner keeps a frontend until it releases it; then the least of those that wait gets
//! it.

use super::interface::Object;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use weft_model::desired::Frontend;

#[derive(Default)]
struct Claim {
    /// `None` only between [`Claims::release`] and [`Claims::decide`].
    owner: Option<Arc<Object>>,
    waiting: BTreeSet<Arc<Object>>,
}

/// All claimed frontends.
#[derive(Default)]
pub(super) struct Claims {
    claims: HashMap<Frontend, Claim>,
    /// Frontends with objects that wait.
    contested: BTreeSet<Frontend>,
}

impl Claims {
    pub(super) fn owner(&self, frontend: &Frontend) -> Option<&Arc<Object>> {
        self.claims.get(frontend)?.owner.as_ref()
    }

    pub(super) fn is_contested(&self, frontend: &Frontend) -> bool {
        self.contested.contains(frontend)
    }

    /// Contested frontends: owner, and those that wait.
    pub(super) fn contested(&self) -> impl Iterator<Item = (&Frontend, &Arc<Object>, &BTreeSet<Arc<Object>>)> {
        self.contested.iter().filter_map(|frontend| {
            let claim = self.claims.get(frontend)?;
            Some((frontend, claim.owner.as_ref()?, &claim.waiting))
        })
    }

    /// Claims a frontend; takes effect with [`Claims::decide`].
    pub(super) fn claim(&mut self, frontend: Frontend, object: &Arc<Object>) {
        let claim = self.claims.entry(frontend).or_default();
        if claim.owner.as_ref() != Some(object) {
            claim.waiting.insert(object.clone());
        }
    }

    /// Withdraws a claim; takes effect with [`Claims::decide`].
    pub(super) fn release(&mut self, frontend: &Frontend, object: &Arc<Object>) {
        let Some(claim) = self.claims.get_mut(frontend) else { return };
        claim.owner.take_if(|owner| owner == object);
        claim.waiting.remove(object);
    }

    /// Decides the owner after a batch of claims and releases. Returns a new owner.
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

    /// Makes an object that waits the owner, since the adopted tables say so.
    pub(super) fn restore(&mut self, frontend: &Frontend, object: &Arc<Object>) {
        let Some(claim) = self.claims.get_mut(frontend) else { return };
        if claim.waiting.remove(object) {
            claim.waiting.extend(claim.owner.replace(object.clone()));
        }
    }
}
