//! Files of policies, judged without a cluster: the same judgement as the agent's, with lines and columns, and warnings
//! about what is right but hardly meant.

mod tree;

#[cfg(test)]
mod tests;

use serde_json::Value;
use std::collections::BTreeSet;
use tree::{Document, Node};
use weft_k8s::convert::{self, Settings};
use weft_model::intent::{Change, Peer, Policy, PolicyKind, Spec};
use weft_model::label::is_carried;
use weft_model::selector::Requirement;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    Error,
    /// The object would be taken, but may not do what was meant.
    Warning,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    pub severity: Severity,
    /// Path of the field, such as `spec.ingress[0].toPorts`; empty where it is the file that cannot be read.
    pub path: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// Judges all policies and CiliumCIDRGroups in a text of YAML (or JSON) documents; objects of other kinds are passed
/// over. By line.
#[must_use]
pub fn lint(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    match tree::parse(text) {
        Ok(documents) => documents.iter().for_each(|document| object(document, "", &mut findings)),
        Err((at, message)) => findings.push(finding(at, Severity::Error, String::new(), message)),
    }
    findings.sort_by_key(|finding| (finding.line, finding.column, finding.severity));
    findings
}

fn finding(at: tree::Place, severity: Severity, path: String, message: impl Into<String>) -> Finding {
    Finding { line: at.line, column: at.column, severity, path, message: message.into() }
}

/// One object, or a List of them; `prefix` goes before its paths.
fn object(document: &Document, prefix: &str, findings: &mut Vec<Finding>) {
    let value = document.to_json();
    let text = |name: &str| value[name].as_str().unwrap_or_default();
    if let Some(items) = document.get("items").filter(|_| text("kind").ends_with("List")) {
        if let Node::List(items) = &items.node {
            for (n, item) in items.iter().enumerate() {
                object(item, &format!("{prefix}items[{n}]."), findings);
            }
        }
        return;
    }
    if !is_ours(text("apiVersion"), text("kind")) {
        return;
    }
    match convert::object(&value, &Settings::EVERYTHING) {
        Ok(change) => {
            if let Change::Policy(policy) = change {
                warnings(document, &value, &policy, prefix, findings);
            }
        }
        Err(problems) => findings.extend(problems.into_iter().map(|problem| {
            let at = document.locate(&problem.field);
            finding(at, Severity::Error, format!("{prefix}{}", problem.field), problem.problem)
        })),
    }
}

/// Whether an object is, or is meant to be, of a kind that is judged.
fn is_ours(version: &str, kind: &str) -> bool {
    let group = version.split_once('/').map_or(version, |(group, _)| group);
    let known = PolicyKind::ALL.into_iter().find(|known| known.name() == kind);
    match known {
        Some(known) => {
            let own = convert::api_version(known).split_once('/').map_or("", |(group, _)| group);
            // Others have a NetworkPolicy, too.
            group == own || group.is_empty()
        }
        // A slip in the name of a kind, or a predecessor of ClusterNetworkPolicy.
        None => {
            kind == convert::CIDR_GROUP
                || group == "policy.networking.k8s.io"
                || group == "cilium.io" && kind.contains("etworkPol")
        }
    }
}

fn warnings(document: &Document, value: &Value, policy: &Policy, prefix: &str, findings: &mut Vec<Finding>) {
    let mut warn = |at: &str, path: String, message: String| {
        findings.push(finding(document.locate(at), Severity::Warning, format!("{prefix}{path}"), message));
    };
    if !policy.name.kind.is_namespaced() && value["metadata"]["namespace"].is_string() {
        let message = format!("a {} has no namespace: this is ignored", policy.name.kind);
        warn("metadata.namespace", "metadata.namespace".to_owned(), message);
    }
    for path in without_effect(value, policy) {
        let message = "has no effect: expected at least one element ({} in it stands for no traffic)";
        warn(&path, path.clone(), message.to_owned());
    }
    if policy.name.kind == PolicyKind::NetworkPolicy {
        for (rules, isolates) in
            [("ingress", policy.specs[0].isolates_ingress), ("egress", policy.specs[0].isolates_egress)]
        {
            let there = value["spec"][rules].as_array().is_some_and(|rules| !rules.is_empty());
            if there && !isolates {
                let path = format!("spec.{rules}");
                warn(&path, path.clone(), "has no effect: policyTypes leaves this direction out".to_owned());
            }
        }
    }
    for (at, key) in peers_by_lost_labels(policy) {
        let found = document.find_key(&at, &key);
        let message = format!(
            "identities do not carry the label {key}, which differs from replica to replica or belongs to a tool: as a \
             peer it selects nobody"
        );
        findings.push(finding(found, Severity::Warning, format!("{prefix}{at}"), message));
    }
}

/// Lists of the cilium.io kinds that are there but empty, and nothing else makes them count.
fn without_effect(value: &Value, policy: &Policy) -> Vec<String> {
    if !matches!(policy.name.kind, PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy) {
        return Vec::new();
    }
    let parts = std::iter::once(("spec".to_owned(), &value["spec"]));
    let several = value["specs"].as_array().into_iter().flatten().enumerate();
    let mut found = Vec::new();
    for (path, part) in parts.chain(several.map(|(n, part)| (format!("specs[{n}]"), part))) {
        for name in ["ingress", "ingressDeny", "egress", "egressDeny"] {
            let direction = name.trim_end_matches("Deny");
            let is_empty = part[name].as_array().is_some_and(Vec::is_empty);
            if is_empty && part["enableDefaultDeny"][direction] != true {
                found.push(format!("{path}.{name}"));
            }
        }
    }
    found
}

/// Rules, by path, whose peers are selected by labels that no identity has, and the keys of these.
fn peers_by_lost_labels(policy: &Policy) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let rules = |spec: &Spec| spec.ingress.iter().chain(&spec.egress).cloned().collect::<Vec<_>>();
    for rule in policy.specs.iter().flat_map(rules) {
        let path =
            if rule.place.starts_with("specs[") { rule.place.to_string() } else { format!("spec.{}", rule.place) };
        for peer in rule.peers.iter().flatten() {
            let Peer::Endpoints(selector) = peer else { continue };
            for requirement in &selector.requirements {
                // Its absence is what every pod has.
                let (Requirement::In(key, _) | Requirement::Exists(key)) = requirement else { continue };
                if !is_carried(key) {
                    let bare = key.split_once(':').map_or(key.as_str(), |(_, bare)| bare);
                    found.insert((path.clone(), bare.to_owned()));
                }
            }
        }
    }
    found
}
