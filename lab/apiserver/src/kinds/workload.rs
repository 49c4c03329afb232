//! Validation of Deployment and ReplicaSet.

use super::{meta, pod};
use crate::error::Cause;
use crate::object::{at, text};
use crate::selector::LabelSelector;
use serde_json::Value;

pub(super) fn judge(group_resource: &str, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let selector = &object["spec"]["selector"];
    meta::judge_selector(selector, "spec.selector", causes);
    meta::labels(object, "spec.template.metadata", causes);
    pod::judge_spec(&object["spec"]["template"]["spec"], "spec.template.spec", causes);
    let requirements = LabelSelector::from_object(selector);
    if requirements.0.is_empty() && selector.is_object() {
        let expected = "empty selector is invalid for deployment";
        causes.push(Cause::invalid("spec.selector", selector, expected));
    }
    let template = &object["spec"]["template"];
    if !requirements.matches(template) {
        let labels = &template["metadata"]["labels"];
        let expected = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", labels, expected));
    }
    let restart = text(template, &["spec", "restartPolicy"]);
    if !matches!(restart, "Always" | "") {
        causes.push(Cause::unsupported("spec.template.spec.restartPolicy", &restart.into(), &["Always"]));
    }
    if let Some(old) = old
        && at(old, &["spec", "selector"]) != Some(selector)
    {
        causes.push(Cause::invalid("spec.selector", selector, "field is immutable"));
    }
    if group_resource == "deployments.apps" {
        judge_strategy(&object["spec"]["strategy"], causes);
    }
}

fn judge_strategy(strategy: &Value, causes: &mut Vec<Cause>) {
    let Some(rolling) = strategy.get("rollingUpdate") else { return };
    if text(strategy, &["type"]) == "Recreate" {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        causes.push(Cause::forbidden("spec.strategy.rollingUpdate", why));
        return;
    }
    let mut zero = 0;
    for field in ["maxUnavailable", "maxSurge"] {
        let value = &rolling[field];
        let fits = match value {
            Value::Number(n) => n.as_i64().is_some_and(|n| n >= 0),
            Value::String(s) => s.strip_suffix('%').is_some_and(|p| p.parse::<u32>().is_ok()),
            _ => true,
        };
        if !fits {
            let expected = "must be a whole number, not negative, or a percentage such as 25%";
            causes.push(Cause::invalid(format!("spec.strategy.rollingUpdate.{field}"), value, expected));
        }
        zero += usize::from(*value == 0 || *value == "0%");
    }
    if zero == 2 {
        let expected = "may not be 0 when `maxSurge` is 0";
        causes.push(Cause::invalid("spec.strategy.rollingUpdate.maxUnavailable", &rolling["maxUnavailable"], expected));
    }
}
