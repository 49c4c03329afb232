//! Which crates may depend on which.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Who may depend on whom, all of it.
const EDGES: &[(&str, &[&str])] = &[
    ("weft-abi", &[]),
    ("weft-model", &[]),
    ("weft-api", &[]),
    ("weft-control", &["weft-model"]),
    ("weft-ipam", &["weft-model"]),
    ("weft-k8s", &["weft-model"]),
    ("weft-lint", &["weft-k8s", "weft-model"]),
    ("weft-cloud", &[]),
    ("weft-daemon", &[]),
    ("weft-settings", &[]),
    ("weft-oracle", &["weft-model"]),
    ("weft-trial", &["weft-model", "weft-control", "weft-oracle"]),
    ("weft-health", &["weft-abi", "weft-daemon", "weft-model"]),
    ("weft-sys", &[]),
    ("weft-peer", &["weft-api", "weft-daemon", "weft-model", "weft-sys"]),
    ("weft-lab-client", &[]),
    ("weft-lab-config", &["weft-api", "weft-settings"]),
    ("weft-lab-apiserver", &["weft-lab-config", "weft-sys"]),
    ("weft-lab-toolbox", &["weft-lab-client", "weft-lab-config"]),
    ("weft-lab-node", &["weft-lab-client", "weft-lab-config", "weft-lab-toolbox", "weft-sys"]),
    (
        "weft-lab-cluster",
        &[
            "weft-cloud",
            "weft-lab-apiserver",
            "weft-lab-client",
            "weft-lab-config",
            "weft-lab-node",
            "weft-lab-toolbox",
            "weft-sys",
        ],
    ),
    ("weft-datapath", &["weft-model", "weft-abi", "weft-sys"]),
    ("weft-observe", &["weft-model", "weft-abi", "weft-api"]),
    (
        "weft-operator",
        &["weft-model", "weft-control", "weft-daemon", "weft-ipam", "weft-k8s", "weft-cloud", "weft-settings"],
    ),
    ("weft-cni", &["weft-api", "weft-sys"]),
    ("weft-cli", &["weft-model", "weft-api", "weft-k8s", "weft-lint", "weft-observe"]),
    (
        "weft-agent",
        &[
            "weft-model",
            "weft-abi",
            "weft-api",
            "weft-control",
            "weft-daemon",
            "weft-health",
            "weft-ipam",
            "weft-k8s",
            "weft-datapath",
            "weft-observe",
            "weft-peer",
            "weft-settings",
            "weft-sys",
        ],
    ),
    (
        "weft-bench",
        &[
            "weft-abi",
            "weft-agent",
            "weft-api",
            "weft-control",
            "weft-datapath",
            "weft-health",
            "weft-k8s",
            "weft-model",
            "weft-observe",
        ],
    ),
    (
        "weft-sim",
        &[
            "weft-agent",
            "weft-api",
            "weft-daemon",
            "weft-datapath",
            "weft-health",
            "weft-k8s",
            "weft-lab-apiserver",
            "weft-model",
            "weft-operator",
            "weft-peer",
            "weft-settings",
        ],
    ),
    ("weft-ebpf", &["weft-abi"]),
    ("xtask", &[]),
];
/// May depend on anything.
const TESTS: &str = "weft-tests";

/// The packages of the workspace, as `cargo metadata` describes them.
pub fn packages(root: &Path) -> Result<Vec<Value>> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .context("start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    Ok(metadata["packages"].as_array().context("cargo metadata names no packages")?.clone())
}

/// Dependencies between the crates of the workspace that are not in [`EDGES`], and entries of it that are of no use.
pub fn check(packages: &[Value]) -> Vec<String> {
    against(packages, EDGES)
}

fn against(packages: &[Value], edges: &[(&str, &[&str])]) -> Vec<String> {
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if name == TESTS {
            continue;
        }
        let Some((_, allowed)) = edges.iter().find(|(from, _)| *from == name) else {
            findings.push(format!("{name}: a crate that tidy's list of edges does not have (xtask/src/tidy/edges.rs)"));
            continue;
        };
        // Tests of a crate may use more; what is shipped may not.
        let shipped = package["dependencies"].as_array().into_iter().flatten().filter(|to| to["kind"] != "dev");
        let uses: BTreeSet<&str> =
            shipped.filter_map(|to| to["name"].as_str()).filter(|to| ours.contains(to)).collect();
        for to in uses.iter().filter(|to| !allowed.contains(to)) {
            findings.push(format!("{name}: must not depend on {to}"));
        }
        for to in allowed.iter().filter(|to| !uses.contains(*to)) {
            findings.push(format!("{name}: does not depend on {to} any more: take the edge off the list"));
        }
    }
    for (name, _) in edges.iter().filter(|(name, _)| !ours.contains(name)) {
        findings.push(format!("{name}: is in the list of edges, but no crate any more"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::against;
    use serde_json::json;

    #[test]
    fn finds_edges_that_must_not_be_and_entries_of_no_use() {
        let packages = [
            json!({"name": "a", "dependencies": [{"name": "b", "kind": null}, {"name": "c", "kind": "dev"}]}),
            json!({"name": "b", "dependencies": []}),
            json!({"name": "c", "dependencies": []}),
        ];
        assert_eq!(against(&packages, &[("a", &["b"]), ("b", &[]), ("c", &[])]), [""; 0]);
        assert_eq!(against(&packages, &[("a", &[]), ("b", &[]), ("c", &[])]), ["a: must not depend on b"]);
        let stale = against(&packages, &[("a", &["b", "c"]), ("b", &[]), ("c", &[]), ("d", &[])]);
        assert!(stale.len() == 2 && stale[0].contains("c any more") && stale[1].starts_with("d:"), "{stale:?}");
        assert_eq!(against(&packages, &[("a", &["b"]), ("b", &[])]).len(), 1);
    }
}
