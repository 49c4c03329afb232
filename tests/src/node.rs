//! What a node of a cluster has: taken before and after, the two show what was left.

use crate::cluster::Cluster;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Links, addresses, routes, permanent neighbours, entries of maps, endpoints, files and mounts.
///
/// # Errors
/// The node cannot be looked at.
pub fn state(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    let netns = format!("weft-{}-{node}", cluster.name());
    for what in [
        ["-br", "link"].as_slice(),
        &["-br", "addr"],
        &["route"],
        &["-6", "route"],
        &["neigh", "show", "nud", "permanent"],
    ] {
        let output = Command::new("ip").args(["-n", &netns]).args(what).output()?;
        all.extend(String::from_utf8_lossy(&output.stdout).lines().map(|line| format!("{what:?}: {line}")));
    }
    for map in cluster.weft_json(&["map", "list", "--node", node])?.as_array().context("maps")? {
        const ENTRIES: [&str; 8] =
            ["ENDPOINTS", "IPCACHE", "PEERS", "POLICY_CLASSES", "POLICY_ENTRIES", "POLICY_INFO", "PREFIXES", "ROUTES"];
        if ENTRIES.iter().any(|name| map["name"] == *name) {
            all.insert(format!("map {}: {} entries", map["name"], map["entries"]));
        }
    }
    for endpoint in cluster.weft_json(&["endpoint", "list", "--node", node])?.as_array().context("endpoints")? {
        all.insert(format!("endpoint {endpoint}"));
    }
    files(&cluster.run_dir(), &mut all)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    all.extend(places.filter(|place| Path::new(place).starts_with(cluster.run_dir())).map(|p| format!("mount {p}")));
    Ok(all)
}

fn files(dir: &Path, all: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            files(&path, all)?
        } else {
            all.insert(format!("file {}", path.display()));
        }
    }
    Ok(())
}
