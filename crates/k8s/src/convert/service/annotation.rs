//! What annotations ask for a Service. One that would narrow who is served must not be ignored.

use super::super::field::Read;
use crate::convert::problem::{Problem, Problems};
use std::collections::BTreeMap;
use weft_model::intent::{Algorithm, Forwarding, Topology};

const ALGORITHM: &str = "service.cilium.io/lb-algorithm";
const FORWARDING: &str = "service.cilium.io/forwarding-mode";
const TOPOLOGY: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_BEFORE: &str = "service.kubernetes.io/topology-aware-hints";

/// Annotations that would narrow who is served, and the only value of each that changes nothing.
const NOT_HONOURED: [(&str, Option<&str>); 5] = [
    ("service.cilium.io/src-ranges-policy", Some("allow")),
    ("service.cilium.io/proxy-delegation", Some("none")),
    ("service.cilium.io/type", None),
    ("service.cilium.io/node", None),
    ("service.cilium.io/node-selector", None),
];

/// How a backend is chosen, how packets from outside reach it, and whether hints count.
pub(super) type Asked = (Algorithm, Option<Forwarding>, bool);

pub(super) fn read(annotations: &BTreeMap<String, String>) -> Read<Asked> {
    let mut wrong = Vec::new();
    let mut asked = |key: &str, words: &[(&str, usize)]| {
        let text = annotations.get(key).filter(|text| !text.is_empty())?;
        let found = words.iter().find(|(word, _)| word == text);
        if found.is_none() {
            wrong.push(unknown(key, text, &words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ")));
        }
        found.map(|(_, n)| *n)
    };
    let algorithm = match asked(ALGORITHM, &[("random", 0), ("maglev", 1)]) {
        Some(1) => Algorithm::Maglev,
        _ => Algorithm::Random,
    };
    let forwarding =
        asked(FORWARDING, &[("snat", 0), ("dsr", 1)]).map(|n| if n == 0 { Forwarding::Snat } else { Forwarding::Dsr });
    let mode = annotations.get(TOPOLOGY).or_else(|| annotations.get(TOPOLOGY_BEFORE)).map_or("", String::as_str);
    let hints = match mode {
        "" | "Disabled" | "disabled" => false,
        "Auto" | "auto" => true,
        // Somebody's own way to give hints.
        other if other.contains('/') => true,
        other => {
            wrong.push(unknown(TOPOLOGY, other, "Auto or Disabled"));
            false
        }
    };
    for (key, only) in NOT_HONOURED {
        if let Some(text) = annotations.get(key).filter(|text| !text.is_empty() && Some(text.as_str()) != only) {
            wrong.push(unknown(key, text, only.unwrap_or("none: it is not supported")));
        }
    }
    Problems::new(wrong).map_or(Ok((algorithm, forwarding, hints)), Err)
}

fn unknown(key: &str, text: &str, expected: &str) -> Problem {
    Problem::new(format!("metadata.annotations[{key}]"), format!("{text:?}, expected {expected}"))
}

/// Whose backends are preferred. A preference that is not known is none.
pub(super) fn topology(distribution: &str, hints: bool) -> Topology {
    match distribution {
        "PreferSameNode" => Topology::SameNode,
        "PreferClose" | "PreferSameZone" => Topology::Hints,
        _ if hints => Topology::Hints,
        _ => Topology::None,
    }
}
