//! Calling CNI executables exactly as a container runtime does (CNI specification 1.1.0).

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// The interface inside the pod.
pub(super) const IFNAME: &str = "eth0";
/// An executable that takes longer hangs.
const CALL_WITHIN: Duration = Duration::from_secs(60);
/// The versions that results are understood in, the newest last.
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// Directories of a node's CNI.
#[derive(Clone, Debug)]
pub(super) struct Network {
    /// Executables.
    pub bin_dir: PathBuf,
    /// Configurations.
    pub conf_dir: PathBuf,
}

/// The pod that is attached.
#[derive(Clone, Debug)]
pub(super) struct Target<'a> {
    pub container_id: &'a str,
    pub netns: &'a Path,
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
}

/// Where Debian has the plugins of others, and where most others have them.
const OTHER_BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

impl Network {
    /// Where plugins are looked for: the node's own come first.
    fn path(&self) -> std::ffi::OsString {
        let others = OTHER_BIN_DIRS.iter().map(PathBuf::from);
        let all = std::iter::once(self.bin_dir.clone()).chain(others);
        std::env::join_paths(all).unwrap_or_else(|_| self.bin_dir.clone().into())
    }

    /// The configuration list in force: the first file by name, as everywhere.
    pub(super) fn config(&self) -> Result<Value, String> {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.conf_dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json"))
            .collect();
        files.sort();
        let file = files.first().ok_or_else(|| {
            format!("cni plugin not initialized: no network configuration in {}", self.conf_dir.display())
        })?;
        let text = fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let config: Value = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        if config["plugins"].is_array() {
            return Ok(config);
        }
        // A single configuration is a list of one.
        let (version, versions) = (&config["cniVersion"], &config["cniVersions"]);
        Ok(json!({"cniVersion": version, "cniVersions": versions, "name": config["name"], "plugins": [config]}))
    }

    /// Attaches: every plugin of the list in order, each given the result of the one before.
    pub(super) async fn add(&self, config: &Value, target: &Target<'_>) -> Result<Value, String> {
        let mut result = Value::Null;
        for plugin in plugins(config) {
            result = self.call("ADD", config, plugin, &result, Some(target)).await?;
        }
        Ok(result)
    }

    /// Detaches: the plugins in reverse order, each given the result of ADD.
    pub(super) async fn delete(&self, config: &Value, result: &Value, target: &Target<'_>) -> Result<(), String> {
        for plugin in plugins(config).iter().rev() {
            self.call("DEL", config, plugin, result, Some(target)).await?;
        }
        Ok(())
    }

    /// Asks whether pods may come.
    pub(super) async fn status(&self) -> Result<(), String> {
        let config = self.config()?;
        for plugin in plugins(&config) {
            self.call("STATUS", &config, plugin, &Value::Null, None).await?;
        }
        Ok(())
    }

    async fn call(
        &self,
        command: &str,
        config: &Value,
        plugin: &Value,
        previous: &Value,
        target: Option<&Target<'_>>,
    ) -> Result<Value, String> {
        let kind = plugin["type"].as_str().filter(|t| !t.is_empty() && !t.contains('/'));
        let kind = kind.ok_or("plugins[].type: expected the name of an executable")?;
        let mut input = plugin.clone();
        input["cniVersion"] = version(config);
        input["name"] = config["name"].clone();
        if !previous.is_null() {
            input["prevResult"] = previous.clone();
        }
        let mut process = tokio::process::Command::new(self.bin_dir.join(kind));
        process.env("CNI_COMMAND", command).env("CNI_PATH", self.path()).env("CNI_IFNAME", IFNAME);
        if let Some(target) = target {
            process.env("CNI_CONTAINERID", target.container_id).env("CNI_NETNS", target.netns);
            process.env("CNI_ARGS", target.args());
        }
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let work = async {
            let mut child = process.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // An executable that fails early does not read; its answer says why.
                let _ = stdin.write_all(input.to_string().as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(CALL_WITHIN, work)
            .await
            .map_err(|_| format!("{kind} {command}: no answer in {CALL_WITHIN:?}"))?
            .map_err(|e| format!("{}: {e}", self.bin_dir.join(kind).display()))?;
        if output.status.success() {
            if command != "ADD" {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&output.stdout).map_err(|e| format!("{kind} ADD: result: {e}"));
        }
        Err(format!("{kind} {command}: {}", explain(&output)))
    }
}

impl Target<'_> {
    fn args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.container_id, self.uid
        )
    }
}

fn plugins(config: &Value) -> &[Value] {
    config["plugins"].as_array().map_or(&[], Vec::as_slice)
}

/// The newest version that both the configuration (`cniVersions` and `cniVersion`) and we know; if it names none, ours.
fn version(config: &Value) -> Value {
    let named = &config["cniVersion"];
    let listed = config["cniVersions"].as_array().map_or(&[][..], Vec::as_slice);
    let common = VERSIONS.iter().rev().find(|known| named == **known || listed.iter().any(|v| v == **known));
    match (common, named) {
        (Some(common), _) => json!(common),
        (None, Value::Null) => json!(VERSIONS[VERSIONS.len() - 1]),
        // The executable says what is wrong with it.
        (None, other) => other.clone(),
    }
}

/// The error object that a failed executable prints, or whatever it said.
fn explain(output: &std::process::Output) -> String {
    if let Ok(error) = serde_json::from_slice::<Value>(&output.stdout)
        && let Some(message) = error["msg"].as_str()
    {
        let details = error["details"].as_str().filter(|d| !d.is_empty());
        return details.map_or_else(|| message.to_owned(), |details| format!("{message}: {details}"));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    format!("{}: {}", output.status, said.trim())
}

/// Addresses of a result.
pub(super) fn addresses(result: &Value) -> Vec<std::net::IpAddr> {
    result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_prefix_length() {
        let result = json!({"ips": [{"address": "10.0.0.5/32"}, {"address": "fd44::5/128"}, {"address": "x"}]});
        let texts: Vec<_> = addresses(&result).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.5", "fd44::5"]);
    }

    #[test]
    fn the_newest_common_version_counts() {
        for (config, expected) in [
            (json!({}), "1.1.0"),
            (json!({"cniVersion": "0.4.0"}), "0.4.0"),
            (json!({"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"]}), "1.1.0"),
            (json!({"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "9.0.0"]}), "1.0.0"),
            (json!({"cniVersion": "9.0.0"}), "9.0.0"),
        ] {
            assert_eq!(version(&config), json!(expected), "{config}");
        }
    }

    #[test]
    fn the_first_configuration_by_name_counts() {
        let dir = std::env::temp_dir().join(format!("weft-cni-conf-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        let network = Network { bin_dir: dir.clone(), conf_dir: dir.clone() };
        assert!(network.config().is_err_and(|e| e.contains("not initialized")));
        fs::write(dir.join("10-b.conf"), r#"{"name": "b", "type": "x"}"#).expect("writes");
        fs::write(dir.join("05-a.conflist"), r#"{"name": "a", "plugins": []}"#).expect("writes");
        let first = network.config().map(|c| c["name"].clone());
        fs::remove_file(dir.join("05-a.conflist")).expect("removes");
        let second = network.config().map(|c| c["plugins"][0]["type"].clone());
        fs::remove_dir_all(&dir).expect("removes");
        assert_eq!(first, Ok(json!("a")));
        assert_eq!(second, Ok(json!("x")));
    }
}
