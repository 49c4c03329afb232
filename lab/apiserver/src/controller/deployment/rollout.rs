//! How many replicas each set of a deployment should have now.

use super::{status, wanted};
use crate::object::text;
use serde_json::Value;

/// How far a rollout may stray from the wanted number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Above it.
    pub surge: i64,
    /// Below it.
    pub unavailable: i64,
}

pub(super) fn limits(deployment: &Value) -> Limits {
    if text(deployment, &["spec", "strategy", "type"]) == "Recreate" {
        return Limits { surge: 0, unavailable: 0 };
    }
    let all = wanted(deployment);
    let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
    let number = |field: &str, up: bool| match &rolling[field] {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(25);
            (all * percent + if up { 99 } else { 0 }) / 100
        }
        value => value.as_i64().unwrap_or(0),
    };
    let (surge, unavailable) = (number("maxSurge", true), number("maxUnavailable", false).min(all));
    // Something must be allowed to move.
    if surge == 0 && unavailable == 0 { Limits { surge, unavailable: 1 } } else { Limits { surge, unavailable } }
}

/// Replicas that a new set begins with.
pub(super) fn first(deployment: &Value, old: &[&Value]) -> i64 {
    let present: i64 = old.iter().map(|s| wanted(s)).sum();
    let all = wanted(deployment);
    if text(deployment, &["spec", "strategy", "type"]) == "Recreate" {
        let running: i64 = old.iter().map(|s| status(s, "replicas").max(wanted(s))).sum();
        return if running == 0 { all } else { 0 };
    }
    (all + limits(deployment).surge - present).clamp(0, all)
}

/// The wanted number of each set.
pub(super) fn plan<'a>(deployment: &Value, new: &'a Value, old: &[&'a Value]) -> Vec<(&'a Value, i64)> {
    let all = wanted(deployment);
    let mut plan = Vec::new();
    if text(deployment, &["spec", "strategy", "type"]) == "Recreate" {
        plan.extend(old.iter().map(|s| (*s, 0)));
        plan.push((new, if first(deployment, old) == all { all } else { wanted(new).min(all) }));
        return plan;
    }
    let Limits { surge, unavailable } = limits(deployment);
    let old_total: i64 = old.iter().map(|s| wanted(s)).sum();
    let total = old_total + wanted(new);
    let room = (all + surge - total).max(0);
    plan.push((new, (wanted(new) + room).min(all)));
    // Old pods that serve nobody may go at once, others when enough are available without them.
    let needed = all - unavailable;
    let new_missing = (wanted(new) - status(new, "availableReplicas")).max(0);
    let mut budget = (total - needed - new_missing).max(0);
    let mut left: Vec<(&Value, i64)> = Vec::new();
    for set in old {
        let unhealthy = (wanted(set) - status(set, "availableReplicas")).max(0);
        let gone = unhealthy.min(budget);
        budget -= gone;
        left.push((set, wanted(set) - gone));
    }
    let available: i64 =
        status(new, "availableReplicas") + old.iter().map(|s| status(s, "availableReplicas")).sum::<i64>();
    let mut spare = (available - needed).clamp(0, budget);
    for (_, replicas) in &mut left {
        let gone = spare.min(*replicas);
        spare -= gone;
        *replicas -= gone;
    }
    plan.extend(left);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: i64, surge: Value, unavailable: Value) -> Value {
        json!({"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}})
    }

    fn set(replicas: i64, available: i64) -> Value {
        json!({"spec": {"replicas": replicas}, "status": {"replicas": replicas, "availableReplicas": available}})
    }

    #[test]
    fn a_rollout_stays_within_its_limits_and_ends() {
        let wanted_state = deployment(10, json!("25%"), json!("25%"));
        assert_eq!(limits(&wanted_state), Limits { surge: 3, unavailable: 2 });
        let (mut new, mut old) = (set(first(&wanted_state, &[&set(10, 10)]), 0), set(10, 10));
        for _ in 0..20 {
            let plan: Vec<i64> = plan(&wanted_state, &new, &[&old]).iter().map(|(_, n)| *n).collect();
            assert!(plan[0] + plan[1] <= 13, "{plan:?}");
            let available = status(&new, "availableReplicas") + status(&old, "availableReplicas").min(plan[1]);
            assert!(available >= 8, "{plan:?}: {available} available");
            // What was planned becomes available.
            (new, old) = (set(plan[0], plan[0]), set(plan[1], plan[1]));
        }
        assert_eq!((wanted(&new), wanted(&old)), (10, 0));
    }

    #[test]
    fn scaling_needs_no_rollout() {
        assert_eq!(plan(&deployment(6, json!("25%"), json!("25%")), &set(3, 3), &[])[0].1, 6);
        assert_eq!(plan(&deployment(1, json!("25%"), json!("25%")), &set(3, 3), &[])[0].1, 1);
        assert_eq!(plan(&deployment(0, json!("25%"), json!("25%")), &set(3, 3), &[])[0].1, 0);
    }
}
