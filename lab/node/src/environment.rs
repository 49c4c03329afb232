//! A container's environment variables and volumes.

use super::Node;
use super::record::{PodDir, Record};
use crate::pod::Mount;
use base64::Engine;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The variables of a container, in the order in which later ones may use earlier ones as `$(NAME)`.
///
/// # Errors
/// Which variable has no value, and why.
pub(super) async fn variables(
    node: &Node,
    record: &Record,
    pod: &Value,
    container: &Value,
) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = vec![
        ("PATH".into(), PATH.into()),
        ("HOSTNAME".into(), hostname(node, record, pod)),
        ("HOME".into(), "/root".into()),
    ];
    // What programs look for the API server with.
    if let Some(address) = node.config.api_address() {
        env.push(("KUBERNETES_SERVICE_HOST".into(), address.to_string()));
        env.push(("KUBERNETES_SERVICE_PORT".into(), "443".into()));
    }
    for source in items(container, "envFrom") {
        for (kind, field) in [("configmaps", "configMapRef"), ("secrets", "secretRef")] {
            let reference = &source[field];
            if reference.is_object() {
                for (key, value) in data(node, record, kind, reference).await? {
                    env.push((format!("{}{key}", text(source, "prefix")), String::from_utf8_lossy(&value).into()));
                }
            }
        }
    }
    for variable in items(container, "env") {
        let name = text(variable, "name");
        let value = match variable["value"].as_str() {
            Some(value) => expand(value, &env),
            None if variable["valueFrom"].is_object() => value_from(node, record, pod, &variable["valueFrom"])
                .await
                .map_err(|e| format!("environment variable {name}: {e}"))?,
            None => String::new(),
        };
        env.retain(|(n, _)| n != name);
        env.push((name.to_owned(), value));
    }
    Ok(env)
}

/// Replaces `$(NAME)` by the variable's value; unknown names stay, and `$$` is one dollar.
pub(super) fn expand(value: &str, env: &[(String, String)]) -> String {
    let mut result = String::new();
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        if let Some(after) = behind.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = behind.strip_prefix('(').and_then(|b| b.split_once(')')) {
            match env.iter().rev().find(|(n, _)| n == name) {
                Some((_, known)) => result.push_str(known),
                None => result.push_str(&rest[at..at + name.len() + 3]),
            }
            rest = after;
        } else {
            result.push('$');
            rest = behind;
        }
    }
    result + rest
}

/// The name that a pod's processes see as their machine's.
pub(super) fn hostname(node: &Node, record: &Record, pod: &Value) -> String {
    let given = text(&pod["spec"], "hostname");
    let full = match (record.host_network, given) {
        (true, _) => &node.name,
        (false, "") => &record.name,
        (false, given) => given,
    };
    full.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

async fn value_from(node: &Node, record: &Record, pod: &Value, source: &Value) -> Result<String, String> {
    if let Some(path) = source["fieldRef"]["fieldPath"].as_str() {
        return field(node, record, pod, path);
    }
    for (kind, name) in [("configmaps", "configMapKeyRef"), ("secrets", "secretKeyRef")] {
        let reference = &source[name];
        if reference.is_object() {
            let key = text(reference, "key");
            let found = data(node, record, kind, reference).await?.into_iter().find(|(k, _)| k == key);
            return match found {
                Some((_, value)) => Ok(String::from_utf8_lossy(&value).into_owned()),
                None if reference["optional"] == true => Ok(String::new()),
                None => Err(format!("{name}: {} has no key {key:?}", text(reference, "name"))),
            };
        }
    }
    Err("valueFrom: expected fieldRef, configMapKeyRef or secretKeyRef".into())
}

fn field(node: &Node, record: &Record, pod: &Value, path: &str) -> Result<String, String> {
    let metadata = &pod["metadata"];
    let addresses: Vec<String> = record.addresses.iter().map(ToString::to_string).collect();
    let host: Vec<String> = node.config.node_addresses(node.number).iter().map(ToString::to_string).collect();
    let subscript = |map: &str| path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']");
    Ok(match path {
        "metadata.name" => record.name.clone(),
        "metadata.namespace" => record.namespace.clone(),
        "metadata.uid" => record.uid.clone(),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => text(&pod["spec"], "serviceAccountName").to_owned(),
        "status.podIP" => addresses.first().cloned().unwrap_or_default(),
        "status.podIPs" => addresses.join(","),
        "status.hostIP" => host.first().cloned().unwrap_or_default(),
        "status.hostIPs" => host.join(","),
        other => match (subscript("metadata.labels"), subscript("metadata.annotations")) {
            (Some(key), _) => text(&metadata["labels"], key).to_owned(),
            (_, Some(key)) => text(&metadata["annotations"], key).to_owned(),
            _ => return Err(format!("fieldRef.fieldPath {other:?}: expected a field of the downward API")),
        },
    })
}

/// Keys and values of a ConfigMap or Secret.
async fn data(node: &Node, record: &Record, kind: &str, reference: &Value) -> Result<Vec<(String, Vec<u8>)>, String> {
    let name = reference["name"].as_str().or_else(|| reference["secretName"].as_str()).unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/{kind}/{name}", record.namespace);
    let object = match node.client.get(&path).await {
        Err(e) if e.code() == Some(404) && reference["optional"] == true => return Ok(Vec::new()),
        other => other.map_err(|e| format!("{kind} {name}: {e}"))?,
    };
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let mut found = Vec::new();
    for (field, encoded) in [("data", kind == "secrets"), ("binaryData", true)] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            found.push((key.clone(), if encoded { decode(value) } else { value.as_bytes().to_vec() }));
        }
    }
    Ok(found)
}

/// Makes the volumes that a container mounts.
///
/// # Errors
/// Which volume cannot be had, and why.
pub(super) async fn mounts(
    node: &Node,
    dir: &PodDir,
    record: &Record,
    pod: &Value,
    container: &Value,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for wanted in items(container, "volumeMounts") {
        let name = text(wanted, "name");
        let volume = items(&pod["spec"], "volumes")
            .iter()
            .find(|v| v["name"] == name)
            .ok_or_else(|| format!("volumeMounts: no volume {name:?} in spec.volumes"))?;
        let Some(place) = volume_place(node, dir, record, volume).await.map_err(|e| format!("volume {name}: {e}"))?
        else {
            continue;
        };
        let below: PathBuf = Path::new(text(wanted, "subPath"))
            .components()
            .filter(|c| matches!(c, std::path::Component::Normal(_)))
            .collect();
        mounts.push(Mount {
            source: if below.as_os_str().is_empty() { place } else { place.join(below) },
            target: PathBuf::from(text(wanted, "mountPath")),
            read_only: wanted["readOnly"] == true,
        });
    }
    Ok(mounts)
}

async fn volume_place(node: &Node, dir: &PodDir, record: &Record, volume: &Value) -> Result<Option<PathBuf>, String> {
    let place = dir.volumes().join(text(volume, "name"));
    let io = |e: std::io::Error| e.to_string();
    if let Some(path) = volume["hostPath"]["path"].as_str() {
        return Ok(Some(PathBuf::from(path)));
    }
    if volume["emptyDir"].is_object() {
        fs::create_dir_all(&place).map_err(io)?;
        return Ok(Some(place));
    }
    for (kind, field) in [("configmaps", "configMap"), ("secrets", "secret")] {
        if volume[field].is_object() {
            fs::create_dir_all(&place).map_err(io)?;
            for (key, value) in data(node, record, kind, &volume[field]).await? {
                // Keys are file names by the API's own rules; anything else is not written.
                if !key.contains('/') && key != ".." && key != "." {
                    fs::write(place.join(key), value).map_err(io)?;
                }
            }
            return Ok(Some(place));
        }
    }
    // The token volume that a real API server adds: there is nothing to talk to it with in the toolbox.
    if volume["projected"].is_object() {
        return Ok(None);
    }
    Err("expected emptyDir, hostPath, configMap or secret".into())
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn expansion() {
        let env = [("A".to_owned(), "1".to_owned())];
        assert_eq!(expand("x$(A)y $$(A) $(B) $A $", &env), "x1y $(A) $(B) $A $");
    }
}
