//! Nothing of the embedded cluster is in the programs that go to production, however it would get there.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// What goes to production.
const PRODUCTION: &[&str] = &["weft-cli", "weft-agent", "weft-operator", "weft-cni"];
/// How the packages of the embedded cluster begin.
const LAB: &str = "weft-lab-";
/// What only its API server brings along.
const LAB_ONLY: &[&str] = &["jsonschema", "rcgen", "redb"];

/// Packages of the embedded cluster among all that programs for production are built from.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for package in PRODUCTION {
        let args =
            ["tree", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p}", "-p", package];
        let output = Command::new(env!("CARGO")).current_dir(root).args(args).output().context("start cargo tree")?;
        if !output.status.success() {
            bail!("cargo tree -p {package}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        findings.extend(strangers(package, &String::from_utf8_lossy(&output.stdout)));
    }
    Ok(findings)
}

/// What of a list of packages, one a line with its version behind it, a production package must not have.
fn strangers(package: &str, tree: &str) -> Vec<String> {
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let found = names.into_iter().filter(|name| name.starts_with(LAB) || LAB_ONLY.contains(name));
    found.map(|name| format!("{package}: goes to production and must not depend on {name}, part of the lab")).collect()
}

#[cfg(test)]
mod tests {
    use super::strangers;

    #[test]
    fn finds_the_lab_in_production() {
        let tree = "weft-cli v0.1.0 (/x)\nredb v4.0.0\nweft-lab-config v0.1.0 (/x)\nserde v1.0.0\nredb v4.0.0 (*)\n";
        let found = strangers("weft-cli", tree);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("redb") && found[1].contains("weft-lab-config"), "{found:?}");
    }
}
