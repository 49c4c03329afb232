//! The call as the runtime states it in environment variables (CNI spec, section 2, "Parameters").

use crate::error::{CniError, code};
use std::ffi::OsString;
use weft_api::cni::Attachment;

/// Looks up one environment variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it as ADD left it?
    Check,
    /// Remove everything but what is listed.
    Gc,
    /// Could ADD work now?
    Status,
    /// Which versions are spoken?
    Version,
}

/// The pod, from `CNI_ARGS`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PodArgs {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: Option<String>,
    /// `K8S_POD_NAME`.
    pub name: Option<String>,
    /// `K8S_POD_UID`.
    pub uid: Option<String>,
}

/// Reads `CNI_COMMAND`.
///
/// # Errors
/// It is missing or unknown.
pub fn command(env: Lookup<'_>) -> Result<Command, CniError> {
    const EXPECTED: &str = "expected ADD, DEL, CHECK, GC, STATUS or VERSION";
    match text(env, "CNI_COMMAND")?.as_deref() {
        Some("ADD") => Ok(Command::Add),
        Some("DEL") => Ok(Command::Del),
        Some("CHECK") => Ok(Command::Check),
        Some("GC") => Ok(Command::Gc),
        Some("STATUS") => Ok(Command::Status),
        Some("VERSION") => Ok(Command::Version),
        Some(other) => Err(invalid("CNI_COMMAND", &format!("{EXPECTED}, found {other:?}"))),
        None => Err(invalid(
            "CNI_COMMAND",
            &format!("{EXPECTED}; it is not set (this program is run by a container runtime)"),
        )),
    }
}

/// Reads `CNI_CONTAINERID` and `CNI_IFNAME`.
///
/// # Errors
/// One of them is missing or malformed.
pub fn attachment(env: Lookup<'_>) -> Result<Attachment, CniError> {
    let container_id = required(env, "CNI_CONTAINERID")?;
    let starts_well = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
    let goes_on_well = container_id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if !starts_well || !goes_on_well {
        let expected = "expected letters, digits, '_', '.' and '-', starting with a letter or digit";
        return Err(invalid("CNI_CONTAINERID", &format!("{expected}, found {container_id:?}")));
    }
    if container_id.len() > 255 {
        return Err(invalid("CNI_CONTAINERID", "expected at most 255 characters"));
    }
    let ifname = required(env, "CNI_IFNAME")?;
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if ifname.len() > 15 || ifname == "." || ifname == ".." || ifname.contains(bad) {
        let expected = "expected an interface name of at most 15 bytes without '/', ':' and spaces";
        return Err(invalid("CNI_IFNAME", &format!("{expected}, found {ifname:?}")));
    }
    Ok(Attachment { container_id, ifname })
}

/// Reads `CNI_NETNS`, if set.
///
/// # Errors
/// It is not an absolute path.
pub fn netns(env: Lookup<'_>) -> Result<Option<String>, CniError> {
    match text(env, "CNI_NETNS")? {
        Some(path) if !path.starts_with('/') => {
            Err(invalid("CNI_NETNS", &format!("expected an absolute path, found {path:?}")))
        }
        found => Ok(found),
    }
}

/// Reads `CNI_NETNS`.
///
/// # Errors
/// It is missing or not an absolute path.
pub fn netns_required(env: Lookup<'_>) -> Result<String, CniError> {
    netns(env)?.ok_or_else(|| invalid("CNI_NETNS", "expected an absolute path; it is not set"))
}

/// Reads `CNI_ARGS`: `K=V;K=V`.
///
/// # Errors
/// A part without `=`, or an empty pod name.
pub fn pod_args(env: Lookup<'_>) -> Result<PodArgs, CniError> {
    let mut pod = PodArgs::default();
    for part in text(env, "CNI_ARGS")?.unwrap_or_default().split(';').filter(|part| !part.is_empty()) {
        let Some((key, value)) = part.split_once('=') else {
            return Err(invalid("CNI_ARGS", &format!("expected KEY=VALUE pairs separated by ';', found {part:?}")));
        };
        let slot = match key {
            "K8S_POD_NAMESPACE" => &mut pod.namespace,
            "K8S_POD_NAME" => &mut pod.name,
            "K8S_POD_UID" => &mut pod.uid,
            _ => continue,
        };
        let name_like = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if value.len() > 253 || !value.chars().all(name_like) {
            return Err(invalid(&format!("CNI_ARGS: {key}"), &format!("expected a Kubernetes name, found {value:?}")));
        }
        *slot = (!value.is_empty()).then(|| value.to_owned());
    }
    Ok(pod)
}

/// An error about an environment variable.
#[must_use]
pub fn invalid(name: &str, problem: &str) -> CniError {
    CniError {
        code: code::INVALID_ENVIRONMENT,
        msg: "invalid environment".into(),
        details: format!("{name}: {problem}"),
    }
}

fn required(env: Lookup<'_>, name: &str) -> Result<String, CniError> {
    text(env, name)?.ok_or_else(|| invalid(name, "expected a value; it is not set"))
}

/// An empty variable counts as absent, as runtimes pass them.
fn text(env: Lookup<'_>, name: &str) -> Result<Option<String>, CniError> {
    match env(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok((!text.is_empty()).then_some(text)),
        Some(Err(_)) => Err(invalid(name, "expected UTF-8")),
    }
}
