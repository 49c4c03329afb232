//! A pod's status, from the facts on this node.

use super::Node;
use super::containers::State;
use super::image::Problem;
use super::record::{ContainerRecord, Record};
use serde_json::{Value, json};
use std::collections::HashMap;

/// All facts about a pod.
pub(super) struct Facts<'a> {
    pub node: &'a Node,
    pub pod: &'a Value,
    pub record: &'a Record,
    /// State of every container, init containers included.
    pub states: &'a HashMap<String, State>,
    /// Why a container does not start.
    pub problems: &'a HashMap<String, Problem>,
    /// Containers whose probes say that they are ready.
    pub ready: &'a dyn Fn(&str) -> bool,
    /// Why the pod's network does not come up.
    pub sandbox_problem: Option<&'a str>,
    /// It is being stopped.
    pub ending: bool,
}

/// The containers of a list in the specification.
pub(super) fn list<'a>(pod: &'a Value, field: &str) -> &'a [Value] {
    pod["spec"][field].as_array().map_or(&[], Vec::as_slice)
}

fn name(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

/// An init container that goes on running beside the others.
pub(super) fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// `Pending`, `Running`, `Succeeded` or `Failed`.
pub(super) fn phase(pod: &Value, states: &HashMap<String, State>) -> &'static str {
    let policy = pod["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    let state = |container: &Value| states.get(name(container)).cloned().unwrap_or(State::New);
    for container in list(pod, "initContainers").iter().filter(|c| !is_sidecar(c)) {
        match state(container) {
            State::Ended(exit) if exit.code == 0 => {}
            State::Ended(_) if policy == "Never" => return "Failed",
            _ => return "Pending",
        }
    }
    let mut failed = false;
    for container in list(pod, "containers") {
        match state(container) {
            State::Ended(exit) if policy != "Always" && (policy == "Never" || exit.code == 0) => {
                failed |= exit.code != 0;
            }
            State::New => return "Pending",
            _ => return "Running",
        }
    }
    if failed { "Failed" } else { "Succeeded" }
}

/// `containerStatuses[].state.terminated`
pub(super) fn terminated(record: &ContainerRecord, exit: &crate::pod::Exit) -> Value {
    let reason = match (exit.code, &exit.error) {
        (_, Some(_)) => "StartError",
        (0, None) => "Completed",
        _ => "Error",
    };
    let mut state = json!({
        "exitCode": exit.code,
        "reason": reason,
        "startedAt": seconds(&record.started),
        "finishedAt": seconds(&exit.at),
        "containerID": format!("weft://{}", record.id),
    });
    if let Some(error) = &exit.error {
        state["message"] = json!(error);
    }
    state
}

/// The API's times have no fractions.
fn seconds(time: &str) -> String {
    time.parse::<jiff::Timestamp>().map_or_else(|_| time.to_owned(), |t| format!("{t:.0}"))
}

impl Facts<'_> {
    /// A pod that was told to end is over once nothing of it runs, whatever its restart policy is.
    fn phase(&self) -> &'static str {
        let exits: Option<Vec<i32>> = list(self.pod, "containers")
            .iter()
            .map(|c| match self.states.get(name(c)) {
                Some(State::Ended(exit)) => Some(exit.code),
                _ => None,
            })
            .collect();
        match exits {
            Some(codes) if self.ending && !codes.is_empty() => {
                if codes.iter().all(|code| *code == 0) {
                    "Succeeded"
                } else {
                    "Failed"
                }
            }
            _ => phase(self.pod, self.states),
        }
    }

    /// The whole status.
    pub(super) fn status(&self) -> Value {
        let phase = self.phase();
        let host: Vec<Value> =
            self.node.config.node_addresses(self.node.number).iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        let addresses: Vec<Value> = self.record.addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        let mut status = json!({
            "phase": phase,
            "hostIP": host.first().map(|h| h["ip"].clone()),
            "hostIPs": host,
            "startTime": seconds(&self.record.started),
            "qosClass": self.pod["status"]["qosClass"].as_str().unwrap_or("BestEffort"),
            "conditions": self.conditions(phase),
            "containerStatuses": self.container_statuses("containers"),
        });
        if let Some(first) = addresses.first() {
            status["podIP"] = first["ip"].clone();
            status["podIPs"] = Value::Array(addresses);
        }
        if !list(self.pod, "initContainers").is_empty() {
            status["initContainerStatuses"] = self.container_statuses("initContainers");
        }
        status
    }

    fn container_statuses(&self, field: &str) -> Value {
        list(self.pod, field).iter().map(|container| self.container_status(container)).collect()
    }

    fn container_status(&self, container: &Value) -> Value {
        let name = name(container);
        let none = ContainerRecord::default();
        let record = self.record.containers.get(name).unwrap_or(&none);
        let state = self.states.get(name).unwrap_or(&State::New);
        let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let shown = match (state, self.problems.get(name)) {
            (State::Running, _) => json!({"running": {"startedAt": seconds(&record.started)}}),
            (_, Some(problem)) => waiting(problem.reason, &problem.message),
            (State::New, None) => json!({"waiting": {"reason": self.why_waiting()}}),
            (State::Ended(exit), None) => json!({"terminated": terminated(record, exit)}),
        };
        let mut status = json!({
            "name": name,
            "image": container["image"],
            "imageID": "",
            "ready": *state == State::Running && (self.ready)(name),
            "started": *state == State::Running,
            "restartCount": record.restarts,
            "state": shown,
            "lastState": {},
        });
        if !record.id.is_empty() {
            status["containerID"] = json!(format!("weft://{}", record.id));
        }
        // While it waits to be started again, its last end is the one that just was.
        if let (State::Ended(exit), true) = (state, status["state"]["waiting"].is_object()) {
            status["lastState"] = json!({"terminated": terminated(record, exit)});
        } else if record.last.is_object() {
            status["lastState"] = json!({"terminated": record.last});
        }
        status
    }

    fn why_waiting(&self) -> &'static str {
        let initializing = list(self.pod, "initContainers")
            .iter()
            .any(|c| !is_sidecar(c) && !matches!(self.states.get(name(c)), Some(State::Ended(e)) if e.code == 0));
        if initializing { "PodInitializing" } else { "ContainerCreating" }
    }

    fn conditions(&self, phase: &str) -> Value {
        let finished = phase == "Succeeded" || phase == "Failed";
        let initialized = self.why_waiting() == "ContainerCreating";
        let not_ready: Vec<&str> = list(self.pod, "containers")
            .iter()
            .map(name)
            .filter(|name| self.states.get(*name) != Some(&State::Running) || !(self.ready)(name))
            .collect();
        let ready = not_ready.is_empty() && !finished;
        let reason = if finished { "PodCompleted" } else { "ContainersNotReady" };
        let message = match self.sandbox_problem {
            Some(problem) => problem.to_owned(),
            None => format!("containers with unready status: [{}]", not_ready.join(" ")),
        };
        let has_network = self.sandbox_problem.is_none() && !self.record.sandbox.is_empty();
        let mut list = Vec::new();
        for (kind, status) in [
            ("PodReadyToStartContainers", has_network && !finished),
            ("Initialized", initialized),
            ("Ready", ready),
            ("ContainersReady", ready),
            ("PodScheduled", true),
        ] {
            let mut condition = self.condition(kind, status);
            if !status && (kind == "Ready" || kind == "ContainersReady") {
                condition["reason"] = json!(reason);
                condition["message"] = json!(message);
            }
            list.push(condition);
        }
        Value::Array(list)
    }

    /// A condition that did not change keeps its time.
    fn condition(&self, kind: &str, status: bool) -> Value {
        let status = if status { "True" } else { "False" };
        let since = self.pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["type"] == kind && c["status"] == status)
            .map_or_else(|| json!(format!("{:.0}", jiff::Timestamp::now())), |c| c["lastTransitionTime"].clone());
        json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Exit;

    #[test]
    fn phases() {
        let ended = |code| State::Ended(Exit { code, error: None, at: String::new() });
        let pod =
            |policy: &str| json!({"spec": {"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}});
        let check = |policy: &str, a: State, b: State| {
            phase(&pod(policy), &HashMap::from([("a".to_owned(), a), ("b".to_owned(), b)]))
        };
        assert_eq!(check("Always", State::New, State::New), "Pending");
        assert_eq!(check("Always", ended(0), ended(1)), "Running");
        assert_eq!(check("Never", ended(0), ended(0)), "Succeeded");
        assert_eq!(check("Never", ended(0), ended(1)), "Failed");
        assert_eq!(check("OnFailure", ended(0), ended(1)), "Running");
        assert_eq!(check("OnFailure", ended(0), ended(0)), "Succeeded");
        assert_eq!(check("Never", ended(0), State::Running), "Running");
    }
}
