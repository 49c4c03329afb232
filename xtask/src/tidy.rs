//! Checks that no compiler makes: which crates may know each other, how long files get, and that nothing names a path
//! of somebody's own machine.

mod lists;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Who may depend on whom, all of it.
const EDGES: &[(&str, &[&str])] = &[
    ("weft-abi", &[]),
    ("weft-model", &[]),
    ("weft-api", &["weft-model"]),
    ("weft-control", &["weft-model"]),
    ("weft-k8s", &["weft-model"]),
    ("weft-cloud", &[]),
    ("weft-daemon", &[]),
    ("weft-oracle", &["weft-model"]),
    ("weft-trial", &["weft-model", "weft-control", "weft-oracle"]),
    ("weft-sys", &[]),
    ("weft-lab-client", &[]),
    ("weft-lab-config", &[]),
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
    ("weft-datapath", &["weft-model", "weft-abi"]),
    ("weft-observe", &["weft-model", "weft-abi", "weft-api"]),
    ("weft-operator", &["weft-model", "weft-control", "weft-daemon", "weft-k8s", "weft-cloud"]),
    ("weft-cni", &["weft-model", "weft-api"]),
    (
        "weft-cli",
        &[
            "weft-model",
            "weft-api",
            "weft-k8s",
            "weft-observe",
            "weft-lab-client",
            "weft-lab-cluster",
            "weft-lab-config",
        ],
    ),
    (
        "weft-agent",
        &[
            "weft-model",
            "weft-abi",
            "weft-api",
            "weft-control",
            "weft-daemon",
            "weft-k8s",
            "weft-datapath",
            "weft-observe",
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
            "weft-k8s",
            "weft-lab-apiserver",
            "weft-model",
            "weft-operator",
        ],
    ),
    ("weft-ebpf", &["weft-abi"]),
    ("xtask", &[]),
];
/// May depend on anything.
const TESTS: &str = "weft-tests";
/// Lines of a source file.
const LINES_MAX: usize = 700;
/// Directories that exist on one machine only; in pieces, so that this file does not name them.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/home", "/")];

/// Runs all checks and names every finding.
pub fn run(root: &Path) -> Result<()> {
    let mut findings = edges(root)?;
    findings.extend(lists::run(root)?);
    for name in tracked(root)? {
        // A file of the index may be gone from the tree; one that is no text is nobody's style.
        let Ok(text) = std::fs::read_to_string(root.join(&name)) else { continue };
        findings.extend(file(&name, &text));
    }
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("tidy: {} finding(s)", findings.len())
}

/// Dependencies between the crates of the workspace that are not in [`EDGES`].
fn edges(root: &Path) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .context("start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if name == TESTS {
            continue;
        }
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
            findings.push(format!("{name}: a crate that tidy's list of edges does not know"));
            continue;
        };
        // Tests of a crate may use more; what is shipped may not.
        let shipped = package["dependencies"].as_array().into_iter().flatten().filter(|to| to["kind"] != "dev");
        for to in shipped.filter_map(|to| to["name"].as_str()).filter(|to| ours.contains(to)) {
            if !allowed.contains(&to) {
                findings.push(format!("{name}: must not depend on {to}"));
            }
        }
    }
    Ok(findings)
}

/// Files that git keeps, relative to the root.
fn tracked(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git").current_dir(root).args(["ls-files", "-z"]).output().context("start git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("file names are UTF-8")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// What is wrong with one file.
fn file(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if name.ends_with(".rs") {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            findings.push(format!("{name}: {lines} lines, at most {LINES_MAX}"));
        }
        // `tests.rs` says it by its name.
        if !name.ends_with("/tests.rs") && !text.starts_with("//!") {
            findings.push(format!("{name}: begins without a `//!` that says what it is for"));
        }
        if name.ends_with("/mod.rs") {
            findings.push(format!("{name}: name it after its module"));
        }
    }
    for (n, line) in text.lines().enumerate() {
        for path in MACHINE_PATHS {
            let starts_a_path = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/}".contains(c));
            if line.match_indices(path).any(|(at, _)| starts_a_path(at)) {
                findings.push(format!("{name}:{}: names a path of one machine: {path}", n + 1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{LINES_MAX, MACHINE_PATHS, file};

    #[test]
    fn finds_long_files_missing_docs_and_machine_paths() {
        let long = format!("//! Doc.\n{}", "x\n".repeat(LINES_MAX));
        assert_eq!(file("a/b.rs", &long).len(), 1);
        assert_eq!(file("a/b.rs", "fn main() {}").len(), 1);
        assert_eq!(file("a/mod.rs", "//! Doc.").len(), 1);
        assert_eq!(file("README.md", &format!("see {}main", MACHINE_PATHS[0])).len(), 1);
        assert!(file("README.md", &format!("a frame{}s, net{0}", MACHINE_PATHS[0])).is_empty());
    }
}
