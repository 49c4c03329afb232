use super::*;
use crate::types::builtin;
use serde_json::json;

fn strategic(kind: &str, mut object: Value, patch: Value) -> Value {
    let types = builtin();
    Patch::Strategic(patch).apply(&mut object, types, types.schema(kind)).unwrap();
    object
}

#[test]
fn containers_merge_by_name() {
    let pod = json!({"spec": {"containers": [
        {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}], "args": ["x"]}, {"name": "b", "image": "1"}]}});
    let patched = strategic(
        "Pod",
        pod,
        json!({"spec": {"containers": [
        {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}], "args": ["y"]},
        {"name": "b", "$patch": "delete"}, {"name": "c", "image": "3"}]}}),
    );
    assert_eq!(
        patched,
        json!({"spec": {"containers": [
        {"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}], "args": ["y"]},
        {"name": "c", "image": "3"}]}})
    );
}

#[test]
fn order_and_retained_keys_are_honoured() {
    let deployment = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patched = strategic(
        "Deployment",
        deployment,
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
    );
    assert_eq!(patched, json!({"spec": {"strategy": {"type": "Recreate"}}}));
    let node = json!({"status": {"conditions": [{"type": "A"}, {"type": "B"}]}});
    let patched = strategic(
        "Node",
        node,
        json!({"status": {
        "$setElementOrder/conditions": [{"type": "B"}, {"type": "A"}],
        "conditions": [{"type": "B", "status": "True"}]}}),
    );
    assert_eq!(patched, json!({"status": {"conditions": [{"type": "B", "status": "True"}, {"type": "A"}]}}));
}

#[test]
fn sets_and_nulls_and_replacement() {
    let object = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}});
    let patched = strategic(
        "Pod",
        object,
        json!({"metadata": {
        "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": {"x": null}}}),
    );
    let mut finalizers: Vec<&str> =
        patched["metadata"]["finalizers"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    finalizers.sort_unstable();
    assert_eq!(finalizers, ["b", "c"]);
    assert_eq!(patched["metadata"]["labels"], json!({"y": "2"}));
    let policy = json!({"spec": {"podSelector": {"matchLabels": {"a": "b"}}, "ingress": [{"from": []}]}});
    let patched = strategic(
        "NetworkPolicy",
        policy,
        json!({"spec": {"podSelector": {"$patch": "replace", "matchLabels": {"c": "d"}}, "ingress": []}}),
    );
    assert_eq!(patched, json!({"spec": {"podSelector": {"matchLabels": {"c": "d"}}, "ingress": []}}));
}

#[test]
fn what_is_no_patch_is_refused() {
    assert_eq!(Patch::read(APPLY[0], b"{}").unwrap_err().code, 415);
    assert_eq!(Patch::read("text/plain", b"{}").unwrap_err().code, 415);
    assert_eq!(Patch::read(MERGE, b"[]").unwrap_err().code, 400);
    assert_eq!(Patch::read(JSON, b"{}").unwrap_err().code, 400);
    let types = builtin();
    let mut pod = json!({"spec": {"containers": []}});
    let patch = Patch::Strategic(json!({"spec": {"containers": [{"image": "no name"}]}}));
    assert_eq!(patch.apply(&mut pod, types, types.schema("Pod")).unwrap_err().code, 400);
}
