//! Columns of the built-in kinds.

use super::{AGE, Heading, age};
use crate::object::{at, is_terminating, is_true, items, number, text};
use crate::selector::LabelSelector;
use serde_json::Value;

/// The columns behind the name, and what stands in them.
pub(super) struct Kind {
    /// Whether the name comes first.
    pub named: bool,
    pub columns: &'static [Heading],
    pub cells: fn(&Value) -> Vec<Value>,
}

const fn plain(name: &'static str) -> Heading {
    (name, "string", "", 0)
}

const fn wide(name: &'static str) -> Heading {
    (name, "string", "", 1)
}

pub(super) fn kind(group_resource: &str) -> Kind {
    match group_resource {
        "pods" => Kind {
            named: true,
            columns: const {
                &[
                    plain("Ready"),
                    plain("Status"),
                    plain("Restarts"),
                    AGE,
                    wide("IP"),
                    wide("Node"),
                    wide("Nominated Node"),
                    wide("Readiness Gates"),
                ]
            },
            cells: pod,
        },
        "nodes" => Kind {
            named: true,
            columns: const {
                &[
                    plain("Status"),
                    plain("Roles"),
                    AGE,
                    plain("Version"),
                    wide("Internal-IP"),
                    wide("External-IP"),
                    wide("OS-Image"),
                    wide("Kernel-Version"),
                    wide("Container-Runtime"),
                ]
            },
            cells: node,
        },
        "services" => Kind {
            named: true,
            columns: const {
                &[plain("Type"), plain("Cluster-IP"), plain("External-IP"), plain("Port(s)"), AGE, wide("Selector")]
            },
            cells: service,
        },
        "namespaces" => Kind {
            named: true,
            columns: const { &[plain("Status"), AGE] },
            cells: |o| vec![text(o, &["status", "phase"]).into(), created(o)],
        },
        "configmaps" => Kind {
            named: true,
            columns: const { &[plain("Data"), AGE] },
            cells: |o| vec![count(o, &["data", "binaryData"]), created(o)],
        },
        "secrets" => Kind {
            named: true,
            columns: const { &[plain("Type"), plain("Data"), AGE] },
            cells: |o| vec![text(o, &["type"]).into(), count(o, &["data"]), created(o)],
        },
        "serviceaccounts" => Kind {
            named: true,
            columns: const { &[plain("Secrets"), AGE] },
            cells: |o| vec![items(o, &["secrets"]).len().to_string().into(), created(o)],
        },
        "events" => Kind {
            named: false,
            columns: const {
                &[
                    plain("Last Seen"),
                    plain("Type"),
                    plain("Reason"),
                    plain("Object"),
                    wide("Source"),
                    plain("Message"),
                    wide("First Seen"),
                    wide("Count"),
                ]
            },
            cells: event,
        },
        "leases.coordination.k8s.io" => Kind {
            named: true,
            columns: const { &[plain("Holder"), AGE] },
            cells: |o| vec![text(o, &["spec", "holderIdentity"]).into(), created(o)],
        },
        "deployments.apps" => Kind {
            named: true,
            columns: const {
                &[
                    plain("Ready"),
                    plain("Up-to-date"),
                    plain("Available"),
                    AGE,
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            },
            cells: deployment,
        },
        "replicasets.apps" => Kind {
            named: true,
            columns: const {
                &[
                    plain("Desired"),
                    plain("Current"),
                    plain("Ready"),
                    AGE,
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            },
            cells: replica_set,
        },
        "networkpolicies.networking.k8s.io" => Kind {
            named: true,
            columns: const { &[plain("Pod-Selector"), AGE] },
            cells: |o| vec![selector(&o["spec"]["podSelector"]), created(o)],
        },
        "endpointslices.discovery.k8s.io" => Kind {
            named: true,
            columns: const { &[plain("AddressType"), plain("Ports"), plain("Endpoints"), AGE] },
            cells: endpoint_slice,
        },
        "customresourcedefinitions.apiextensions.k8s.io" => Kind {
            named: true,
            columns: const { &[plain("Created At")] },
            cells: |o| vec![text(o, &["metadata", "creationTimestamp"]).into()],
        },
        _ => Kind { named: true, columns: const { &[AGE] }, cells: |o| vec![created(o)] },
    }
}

fn created(object: &Value) -> Value {
    age(object, &["metadata", "creationTimestamp"])
}

fn count(object: &Value, fields: &[&str]) -> Value {
    let sizes = fields.iter().filter_map(|f| object.get(f)?.as_object()).map(serde_json::Map::len);
    sizes.sum::<usize>().to_string().into()
}

fn whole(object: &Value, path: &[&str]) -> i64 {
    number(object, path).unwrap_or(0)
}

fn or_none(text: String) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

fn selector(selector: &Value) -> Value {
    or_none(LabelSelector::from_object(selector).to_string())
}

/// The values of a field of the elements of a list, joined.
fn joined(object: &Value, path: &[&str], field: &str) -> Value {
    let parts: Vec<&str> = items(object, path).iter().map(|i| text(i, &[field])).collect();
    or_none(parts.join(","))
}

fn pod(object: &Value) -> Vec<Value> {
    let statuses = items(object, &["status", "containerStatuses"]);
    let all = items(object, &["spec", "containers"]).len();
    let ready = statuses.iter().filter(|s| s["ready"] == Value::Bool(true)).count();
    let restarts: i64 = statuses.iter().map(|s| whole(s, &["restartCount"])).sum();
    let last = statuses
        .iter()
        .map(|s| age(s, &["lastState", "terminated", "finishedAt"]))
        .find(|a| a != "<unknown>" && restarts > 0);
    let restarts = match last.as_ref().and_then(Value::as_str) {
        Some(last) => format!("{restarts} ({last} ago)"),
        None => restarts.to_string(),
    };
    vec![
        format!("{ready}/{all}").into(),
        pod_status(object).into(),
        restarts.into(),
        created(object),
        joined(object, &["status", "podIPs"], "ip"),
        or_none(text(object, &["spec", "nodeName"]).to_owned()),
        or_none(text(object, &["status", "nominatedNodeName"]).to_owned()),
        "<none>".into(),
    ]
}

/// One word for the state of a pod, from its phase and those of its containers.
fn pod_status(object: &Value) -> String {
    let mut status = match text(object, &["status", "reason"]) {
        "" => text(object, &["status", "phase"]).to_owned(),
        reason => reason.to_owned(),
    };
    let init = items(object, &["status", "initContainerStatuses"]);
    let waiting_for = init.iter().position(|s| at(s, &["state", "terminated", "exitCode"]) != Some(&Value::from(0)));
    if let Some(index) = waiting_for {
        let reason = match (
            text(&init[index], &["state", "waiting", "reason"]),
            text(&init[index], &["state", "terminated", "reason"]),
        ) {
            ("" | "PodInitializing", "") => format!("{index}/{}", items(object, &["spec", "initContainers"]).len()),
            ("", reason) | (reason, _) => reason.to_owned(),
        };
        status = format!("Init:{reason}");
    } else {
        let mut running = false;
        for container in items(object, &["status", "containerStatuses"]).iter().rev() {
            let state = &container["state"];
            match (text(state, &["waiting", "reason"]), text(state, &["terminated", "reason"])) {
                (reason, _) if !reason.is_empty() => reason.clone_into(&mut status),
                (_, reason) if !reason.is_empty() => reason.clone_into(&mut status),
                _ if state.get("terminated").is_some() => {
                    status = format!("ExitCode:{}", whole(state, &["terminated", "exitCode"]));
                }
                _ => running |= container["ready"] == Value::Bool(true) && state.get("running").is_some(),
            }
        }
        if status == "Completed" && running {
            "Running".clone_into(&mut status);
        }
    }
    if is_terminating(object) {
        return if text(object, &["status", "reason"]) == "NodeLost" { "Unknown" } else { "Terminating" }.to_owned();
    }
    status
}

fn node(object: &Value) -> Vec<Value> {
    let mut status = if is_true(object, "Ready") {
        "Ready"
    } else if crate::object::condition(object, "Ready").is_some() {
        "NotReady"
    } else {
        "Unknown"
    }
    .to_owned();
    if object["spec"]["unschedulable"] == Value::Bool(true) {
        status.push_str(",SchedulingDisabled");
    }
    let roles: Vec<&str> = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    let addresses = |kind: &str| {
        let all = items(object, &["status", "addresses"]).iter();
        let found: Vec<&str> = all.filter(|a| text(a, &["type"]) == kind).map(|a| text(a, &["address"])).collect();
        or_none(found.join(","))
    };
    let info = |field: &str| match text(object, &["status", "nodeInfo", field]) {
        "" => "<unknown>".into(),
        found => Value::from(found),
    };
    vec![
        status.into(),
        or_none(roles.join(",")),
        created(object),
        text(object, &["status", "nodeInfo", "kubeletVersion"]).into(),
        addresses("InternalIP"),
        addresses("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn service(object: &Value) -> Vec<Value> {
    let kind = text(object, &["spec", "type"]);
    let external = match kind {
        "LoadBalancer" => match joined(object, &["status", "loadBalancer", "ingress"], "ip") {
            none if none == "<none>" => "<pending>".into(),
            found => found,
        },
        "ExternalName" => or_none(text(object, &["spec", "externalName"]).to_owned()),
        _ => {
            let given: Vec<&str> = items(object, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect();
            or_none(given.join(","))
        }
    };
    let ports: Vec<String> = items(object, &["spec", "ports"])
        .iter()
        .map(|p| match whole(p, &["nodePort"]) {
            0 => format!("{}/{}", whole(p, &["port"]), text(p, &["protocol"])),
            node => format!("{}:{node}/{}", whole(p, &["port"]), text(p, &["protocol"])),
        })
        .collect();
    vec![
        kind.into(),
        or_none(text(object, &["spec", "clusterIP"]).to_owned()),
        external,
        or_none(ports.join(",")),
        created(object),
        or_none(LabelSelector::from_map(&object["spec"]["selector"]).to_string()),
    ]
}

fn event(object: &Value) -> Vec<Value> {
    let seen = ["lastTimestamp", "eventTime"].into_iter().map(|f| age(object, &[f])).find(|a| a != "<unknown>");
    let first = ["firstTimestamp", "eventTime"].into_iter().map(|f| age(object, &[f])).find(|a| a != "<unknown>");
    let about = &object["involvedObject"];
    let source = match text(object, &["source", "component"]) {
        "" => text(object, &["reportingComponent"]),
        component => component,
    };
    vec![
        seen.unwrap_or_else(|| created(object)),
        text(object, &["type"]).into(),
        text(object, &["reason"]).into(),
        format!("{}/{}", text(about, &["kind"]).to_lowercase(), text(about, &["name"])).into(),
        source.into(),
        text(object, &["message"]).trim().into(),
        first.unwrap_or_else(|| created(object)),
        whole(object, &["count"]).max(1).to_string().into(),
    ]
}

fn template(object: &Value) -> [Value; 3] {
    let containers = ["spec", "template", "spec", "containers"];
    [joined(object, &containers, "name"), joined(object, &containers, "image"), selector(&object["spec"]["selector"])]
}

fn deployment(object: &Value) -> Vec<Value> {
    let status = |field: &str| whole(object, &["status", field]);
    let mut cells = vec![
        format!("{}/{}", status("readyReplicas"), whole(object, &["spec", "replicas"])).into(),
        status("updatedReplicas").to_string().into(),
        status("availableReplicas").to_string().into(),
        created(object),
    ];
    cells.extend(template(object));
    cells
}

fn replica_set(object: &Value) -> Vec<Value> {
    let mut cells = vec![
        whole(object, &["spec", "replicas"]).to_string().into(),
        whole(object, &["status", "replicas"]).to_string().into(),
        whole(object, &["status", "readyReplicas"]).to_string().into(),
        created(object),
    ];
    cells.extend(template(object));
    cells
}

fn endpoint_slice(object: &Value) -> Vec<Value> {
    let ports: Vec<String> = items(object, &["ports"]).iter().map(|p| whole(p, &["port"]).to_string()).collect();
    let addresses: Vec<&str> =
        items(object, &["endpoints"]).iter().flat_map(|e| items(e, &["addresses"])).filter_map(Value::as_str).collect();
    let shown = match addresses.len() {
        0 => "<unset>".to_owned(),
        n if n > 3 => format!("{} + {} more...", addresses[..3].join(","), n - 3),
        _ => addresses.join(","),
    };
    let ports = if ports.is_empty() { "<unset>".to_owned() } else { ports.join(",") };
    vec![text(object, &["addressType"]).into(), ports.into(), shown.into(), created(object)]
}
