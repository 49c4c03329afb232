//! A pod's network namespace, its attachment, and its control group.

use super::Node;
use super::cni::{Target, addresses};
use super::record::{Attachment, PodDir, Record};
use serde_json::Value;
use std::io;
use weft_sys::cgroup::Cgroup;

/// The pod's control group.
pub(super) fn cgroup(node: &Node, record: &Record) -> io::Result<Cgroup> {
    let id = super::record::short_id(&record.uid);
    Ok(Cgroup::at(node.config.paths().cgroup())?.child(&node.name).child("pods").child(id))
}

/// Makes the pod's surroundings, once: a second call finds them and does nothing.
///
/// # Errors
/// Which step failed, in words; everything that was made stays recorded and is removed with the pod.
pub(super) async fn create(node: &Node, dir: &PodDir, record: &mut Record, pod: &Value) -> Result<(), String> {
    let words = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| format!("{what}: {e}")
    };
    if record.sandbox.is_empty() {
        record.sandbox = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let id = super::record::short_id(&record.uid);
        let paths = node.config.paths();
        let netns = if record.host_network { paths.node_netns(&node.name) } else { paths.pod_netns(&id) };
        record.netns = weft_sys::netns::path(&netns);
        // Recorded before it is made: whoever comes next removes it.
        dir.save(record).map_err(words("keep the pod's record"))?;
    }
    let group = cgroup(node, record).map_err(words("control group"))?;
    group.create().map_err(words("control group"))?;
    limits(&group, pod);
    if record.host_network {
        record.addresses = node.config.node_addresses(node.number);
        return Ok(());
    }
    if record.attachment.as_ref().is_some_and(|a| !a.result.is_null()) && netns_exists(record) {
        return Ok(());
    }
    if let Some(name) = record.netns.file_name() {
        weft_sys::netns::create(&name.to_string_lossy()).map_err(words("network namespace"))?;
    }
    let network = node.network();
    let config = network.config()?;
    record.attachment = Some(Attachment { config: config.clone(), result: Value::Null });
    dir.save(record).map_err(words("keep the pod's record"))?;
    let result = match network.add(&config, &target(record)).await {
        Ok(result) => result,
        Err(why) => {
            // As runtimes do after a failed ADD; the next attempt begins anew.
            let _ = network.delete(&config, &Value::Null, &target(record)).await;
            return Err(why);
        }
    };
    record.addresses = addresses(&result);
    record.attachment = Some(Attachment { config, result });
    dir.save(record).map_err(words("keep the pod's record"))
}

fn netns_exists(record: &Record) -> bool {
    record.netns.file_name().is_some_and(|name| weft_sys::netns::exists(&name.to_string_lossy()))
}

fn target(record: &Record) -> Target<'_> {
    Target {
        container_id: &record.sandbox,
        netns: &record.netns,
        namespace: &record.namespace,
        name: &record.name,
        uid: &record.uid,
    }
}

/// Detaches and removes the namespace and the group; what is gone already is fine.
///
/// # Errors
/// Which step failed: the caller tries again.
pub(super) async fn remove(node: &Node, dir: &PodDir, record: &mut Record) -> Result<(), String> {
    if let Some(attachment) = &record.attachment {
        let network = node.network();
        network.delete(&attachment.config, &attachment.result, &target(record)).await?;
        record.attachment = None;
        dir.save(record).map_err(|e| e.to_string())?;
    }
    if !record.host_network
        && let Some(name) = record.netns.file_name()
    {
        weft_sys::netns::remove(&name.to_string_lossy()).map_err(|e| format!("network namespace: {e}"))?;
    }
    let group = cgroup(node, record).map_err(|e| e.to_string())?;
    group.kill();
    group.remove().map_err(|e| format!("control group: {e}"))
}

/// The sum of the containers' memory limits, where the machine can limit; and a bound on processes.
fn limits(group: &Cgroup, pod: &Value) {
    const PROCESSES_MAX: u64 = 4096;
    group.limit("pids.max", PROCESSES_MAX);
    let containers = pod["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let limits: Option<Vec<u64>> =
        containers.iter().map(|c| bytes(c["resources"]["limits"]["memory"].as_str()?)).collect();
    if let Some(total) = limits.filter(|l| !l.is_empty()).map(|l| l.iter().sum::<u64>()) {
        group.limit("memory.max", total);
    }
}

/// A quantity of memory in bytes: `128Mi`, `1G`, `5000000`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn quantities() {
        assert_eq!(bytes("128Mi"), Some(128 << 20));
        assert_eq!(bytes("5"), Some(5));
        assert_eq!(bytes("1.5Gi"), None);
        assert_eq!(bytes("99999999999999999999"), None);
    }
}
