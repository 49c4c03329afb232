//! From the slices that there are to those that should be, with as few writes as possible: an endpoint stays in its
//! slice, a slice keeps its name, and a new endpoint goes where something is written anyway.

use crate::object::{items, name, text};
use serde_json::Value;
use std::collections::BTreeMap;

/// Endpoints of one slice, as Kubernetes' own controller has it.
pub(super) const ENDPOINTS_MAX: usize = 100;

/// What the slices of one family and one understanding of the ports should hold together.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Wanted {
    pub family: String,
    pub ports: Value,
    pub endpoints: Vec<Value>,
}

/// The changes.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Plan {
    pub create: Vec<Wanted>,
    /// By the slice's name.
    pub update: Vec<(String, Wanted)>,
    /// By the slice's name.
    pub delete: Vec<String>,
}

/// A slice that exists, on its way to what it should be.
struct Kept<'a> {
    slice: &'a Value,
    endpoints: Vec<Value>,
    changed: bool,
}

/// An endpoint is the same one as long as its address and its pod are.
fn identity(endpoint: &Value) -> (String, String) {
    let address = endpoint["addresses"][0].as_str().unwrap_or_default();
    (address.to_owned(), text(endpoint, &["targetRef", "uid"]).to_owned())
}

/// Plans; `labels` are those that every slice should have.
pub(super) fn plan(wanted: &[Wanted], present: &[&Value], labels: &Value) -> Plan {
    let mut plan = Plan::default();
    let fits = |slice: &Value, group: &Wanted| slice["addressType"] == group.family && slice["ports"] == group.ports;
    for group in wanted {
        let own = present.iter().copied().filter(|s| fits(s, group));
        reconcile(group, own, labels, &mut plan);
    }
    plan.delete.extend(present.iter().filter(|s| !wanted.iter().any(|g| fits(s, g))).map(|s| name(s).to_owned()));
    recycle(&mut plan, present);
    plan
}

fn reconcile<'a>(group: &Wanted, own: impl Iterator<Item = &'a Value>, labels: &Value, plan: &mut Plan) {
    let mut missing: BTreeMap<(String, String), &Value> = group.endpoints.iter().map(|e| (identity(e), e)).collect();
    let mut kept: Vec<Kept<'a>> = own
        .map(|slice| {
            let before = items(slice, &["endpoints"]);
            let endpoints: Vec<Value> = before.iter().filter_map(|e| missing.remove(&identity(e))).cloned().collect();
            Kept { slice, changed: endpoints != before || slice["metadata"]["labels"] != *labels, endpoints }
        })
        .collect();
    let mut rest: Vec<Value> = missing.into_values().cloned().collect();
    for slice in kept.iter_mut().filter(|s| s.changed) {
        fill(slice, &mut rest);
    }
    // One more write: the fullest slice that takes them all.
    if !rest.is_empty() {
        let room = |s: &Kept<'_>| ENDPOINTS_MAX.saturating_sub(s.endpoints.len());
        let best = kept.iter_mut().filter(|s| !s.changed && room(s) >= rest.len()).min_by_key(|s| room(s));
        if let Some(slice) = best {
            fill(slice, &mut rest);
        }
    }
    plan.create.extend(rest.chunks(ENDPOINTS_MAX).map(|e| Wanted { endpoints: e.to_vec(), ..group.clone() }));
    let mut some = !rest.is_empty() || kept.iter().any(|s| !s.endpoints.is_empty());
    if kept.is_empty() && !some {
        // A service without pods has a slice that says so.
        plan.create.push(group.clone());
    }
    for slice in kept {
        let own = name(slice.slice).to_owned();
        if slice.endpoints.is_empty() && some {
            plan.delete.push(own);
            continue;
        }
        some = true;
        if slice.changed {
            plan.update.push((own, Wanted { endpoints: slice.endpoints, ..group.clone() }));
        }
    }
}

fn fill(slice: &mut Kept<'_>, rest: &mut Vec<Value>) {
    let room = ENDPOINTS_MAX.saturating_sub(slice.endpoints.len()).min(rest.len());
    if room > 0 {
        slice.endpoints.extend(rest.drain(..room));
        slice.changed = true;
    }
}

/// A slice that would go and one of the same family that would come are the same one, changed: at no moment are the
/// endpoints in neither.
fn recycle(plan: &mut Plan, present: &[&Value]) {
    let mut create = Vec::new();
    for new in plan.create.drain(..) {
        let same = |own: &String| present.iter().any(|s| name(s) == own && s["addressType"] == new.family);
        match plan.delete.iter().position(same) {
            Some(at) => plan.update.push((plan.delete.remove(at), new)),
            None => create.push(new),
        }
    }
    plan.create = create;
}
