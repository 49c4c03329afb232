//! Events: what controllers did, for `kubectl describe`.

use crate::api::{Api, DeleteOptions, WriteOptions};
use crate::error::ApiError;
use crate::object::{name, namespace, now, number, set, time};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Events older than this are forgotten, in seconds.
const LIFETIME_S: i64 = 3600;

/// Says something about an object; the same thing again only counts. Never fails: an event is only a remark.
pub(super) async fn tell(api: &Api, about: &Value, warning: bool, reason: &str, message: &str, component: &str) {
    let place = match namespace(about) {
        "" => "default",
        own => own,
    };
    let content = format!("{reason}\0{message}\0{}", about["metadata"]["uid"]);
    let hash: String = Sha256::digest(content).iter().take(8).map(|b| format!("{b:02x}")).collect();
    let own: String = name(about).chars().take(200).collect();
    let own = format!("{own}.{hash}");
    let resource = api.builtin("", "events");
    let again = api.edit(&resource, (place, &own), "", |old| {
        let mut event = old.clone();
        set(&mut event, &[], "count", number(old, &["count"]).unwrap_or(1) + 1);
        set(&mut event, &[], "lastTimestamp", now());
        Some(event)
    });
    if again.await.is_ok() {
        return;
    }
    let time = now();
    let event = json!({
        "metadata": {"name": own, "namespace": place},
        "involvedObject": {
            "apiVersion": about["apiVersion"], "kind": about["kind"], "name": name(about),
            "namespace": namespace(about), "uid": about["metadata"]["uid"],
            "resourceVersion": about["metadata"]["resourceVersion"],
        },
        "reason": reason, "message": message, "type": if warning { "Warning" } else { "Normal" },
        "source": {"component": component}, "reportingComponent": component, "reportingInstance": "",
        "count": 1, "firstTimestamp": time, "lastTimestamp": time,
    });
    if let Err(error) = api.create(&resource, "v1", place, event, WriteOptions::default()).await {
        tracing::debug!(%error, reason, "an event is lost");
    }
}

/// Forgets old events.
pub(super) async fn expire(api: &Api) -> Result<(), ApiError> {
    let resource = api.builtin("", "events");
    let limit = jiff::Timestamp::now().as_second() - LIFETIME_S;
    for event in api.store().list("events", "").objects {
        let event = &event.value;
        let last = ["lastTimestamp", "eventTime"].iter().find_map(|f| time(event, &[f]));
        let last = last.or_else(|| time(event, &["metadata", "creationTimestamp"]));
        if last.is_some_and(|t| t.as_second() < limit) {
            let key = (namespace(event), name(event));
            super::unless_lost(api.delete(&resource, key, &DeleteOptions::default()).await)?;
        }
    }
    Ok(())
}
