//! What several controllers ask of pods.

use crate::object::{condition, controller_of, is_terminating, is_true, text, time, uid};
use serde_json::{Value, json};

/// Whether a pod has not ended, and is not about to.
pub(super) fn is_active(pod: &Value) -> bool {
    !is_terminating(pod) && !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
}

/// Whether a pod takes traffic.
pub(super) fn is_ready(pod: &Value) -> bool {
    is_true(pod, "Ready")
}

/// Whether a pod has been ready for so many seconds.
pub(super) fn is_available(pod: &Value, seconds: i64) -> bool {
    if !is_ready(pod) {
        return false;
    }
    let since = condition(pod, "Ready").and_then(|c| time(c, &["lastTransitionTime"]));
    seconds == 0 || since.is_some_and(|t| jiff::Timestamp::now().as_second() - t.as_second() >= seconds)
}

/// Whether `owner` manages the object.
pub(super) fn is_controlled_by(object: &Value, owner: &Value) -> bool {
    controller_of(object).is_some_and(|o| text(o, &["uid"]) == uid(owner))
}

/// The reference to an owner that manages the object.
pub(super) fn reference(owner: &Value) -> Value {
    json!([{
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    }])
}
