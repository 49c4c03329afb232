//! The network configuration on standard input. Keys that are not ours are left alone, as the spec asks; ours are
//! checked whole before anything is done.

use crate::error::{CniError, code};
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::path::PathBuf;
use weft_api::cni::Attachment;

/// Versions of the spec that this program speaks, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version that is answered when none was asked.
pub const NEWEST: &str = "1.1.0";

/// A version of the spec that this program speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(usize);

impl Version {
    /// As written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }

    /// Checked.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        VERSIONS.iter().position(|version| *version == text).map(Self)
    }

    /// At least this version (which must be one of [`VERSIONS`]).
    #[must_use]
    pub fn at_least(self, other: &str) -> bool {
        Self::new(other).is_some_and(|other| self >= other)
    }
}

/// What this program needs of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Spec version to speak.
    pub version: Version,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Where deletes wait for an agent that is down.
    pub queue_dir: PathBuf,
    /// MTU wanted.
    pub mtu: Option<u32>,
    /// Plugin that gives addresses, in the agent's place.
    pub delegate: Option<String>,
    /// The configuration as it came: for that plugin.
    pub stdin: Vec<u8>,
    /// Result of an earlier call.
    pub prev_result: Option<Value>,
    /// `cni.dev/valid-attachments` (GC).
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// Parses and checks.
///
/// # Errors
/// Names the field, what was expected and what was found.
pub fn parse(stdin: &[u8]) -> Result<Config, CniError> {
    let object = object(stdin)?;
    let version = version(&object)?;
    name(&object)?;
    Ok(Config {
        version,
        socket: path(&object, "socket")?.unwrap_or_else(|| PathBuf::from("/run/weft/agent.sock")),
        queue_dir: path(&object, "queue-dir")?.unwrap_or_else(|| PathBuf::from("/run/weft/state/delete-queue")),
        mtu: mtu(&object)?,
        delegate: delegate(&object)?,
        stdin: stdin.to_vec(),
        prev_result: match object.get("prevResult") {
            None | Some(Value::Null) => None,
            Some(result @ Value::Object(_)) => Some(result.clone()),
            other => return Err(mismatch("prevResult", "an object", other)),
        },
        valid_attachments: valid_attachments(&object)?,
    })
}

/// The version that VERSION was asked with, whatever it is.
///
/// # Errors
/// Standard input is neither empty nor an object with a string `cniVersion`.
pub fn asked_version(stdin: &[u8]) -> Result<Option<String>, CniError> {
    if stdin.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    Ok(string(&object(stdin)?, "cniVersion")?.map(str::to_owned))
}

/// Addresses of `ifname` in the result of an ADD, of any supported version.
///
/// # Errors
/// Names the field.
pub fn addresses(result: &Value, ifname: &str) -> Result<Vec<IpAddr>, CniError> {
    let list = |key: &str| match result.get(key) {
        None | Some(Value::Null) => Ok(&[][..]),
        Some(Value::Array(list)) => Ok(list.as_slice()),
        other => Err(mismatch(&format!("prevResult.{key}"), "a list", other)),
    };
    let interfaces = list("interfaces")?;
    let mut addresses = Vec::new();
    for (n, ip) in list("ips")?.iter().enumerate() {
        let field = format!("prevResult.ips[{n}].address");
        let Some(Value::String(text)) = ip.get("address") else {
            return Err(mismatch(&field, "an address with prefix length", ip.get("address")));
        };
        let interface = ip.get("interface").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let name = interface.and_then(|n| interfaces.get(n)).and_then(|i| i.get("name")).and_then(Value::as_str);
        if name.is_some_and(|name| name != ifname) {
            continue;
        }
        let address = text.split('/').next().unwrap_or_default();
        let Ok(address) = address.parse() else {
            return Err(invalid(&format!("{field}: expected an address with prefix length, found {text:?}")));
        };
        addresses.push(address);
    }
    Ok(addresses)
}

/// An error about the configuration.
#[must_use]
pub fn invalid(details: &str) -> CniError {
    CniError { code: code::INVALID_CONFIG, msg: "invalid network configuration".into(), details: details.to_owned() }
}

/// `field: expected ..., found ...`.
#[must_use]
pub fn mismatch(field: &str, expected: &str, found: Option<&Value>) -> CniError {
    let found = match found {
        None => "nothing",
        Some(Value::Null) => "null",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::String(_)) => "a string",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "an object",
    };
    invalid(&format!("{field}: expected {expected}, found {found}"))
}

fn object(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(mismatch("network configuration", "an object", Some(&other))),
        Err(error) => Err(CniError {
            code: code::DECODING_FAILURE,
            msg: "network configuration is no JSON".into(),
            details: format!("standard input: {error}"),
        }),
    }
}

fn version(object: &Map<String, Value>) -> Result<Version, CniError> {
    let text = string(object, "cniVersion")?.unwrap_or("0.1.0");
    Version::new(text).ok_or_else(|| CniError {
        code: code::INCOMPATIBLE_VERSION,
        msg: "incompatible CNI version".into(),
        details: format!("cniVersion: expected one of {}, found {text:?}", VERSIONS.join(", ")),
    })
}

fn name(object: &Map<String, Value>) -> Result<(), CniError> {
    let Some(name) = string(object, "name")? else { return Err(mismatch("name", "a string", None)) };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')) {
        let expected = "expected letters, digits, '_', '.' and '-', starting with a letter or digit";
        return Err(invalid(&format!("name: {expected}, found {name:?}")));
    }
    Ok(())
}

fn string<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        other => Err(mismatch(key, "a string", other)),
    }
}

fn path(object: &Map<String, Value>, key: &str) -> Result<Option<PathBuf>, CniError> {
    match string(object, key)? {
        None => Ok(None),
        Some(text) if text.starts_with('/') => Ok(Some(PathBuf::from(text))),
        Some(text) => Err(invalid(&format!("{key}: expected an absolute path, found {text:?}"))),
    }
}

/// `ipam.type`: the name of a program, never a path. An empty object is none.
fn delegate(object: &Map<String, Value>) -> Result<Option<String>, CniError> {
    let ipam = match object.get("ipam") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(ipam)) if ipam.is_empty() => return Ok(None),
        Some(Value::Object(ipam)) => ipam,
        other => return Err(mismatch("ipam", "an object", other)),
    };
    let Some(Value::String(kind)) = ipam.get("type") else {
        return Err(mismatch("ipam.type", "the name of a plugin", ipam.get("type")));
    };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !kind.starts_with(|c: char| c.is_ascii_alphanumeric()) || !kind.chars().all(good) {
        return Err(invalid(&format!("ipam.type: expected the name of a plugin, found {kind:?}")));
    }
    Ok(Some(kind.clone()))
}

fn mtu(object: &Map<String, Value>) -> Result<Option<u32>, CniError> {
    match object.get("mtu") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => match number.as_u64() {
            Some(0) => Ok(None),
            // IPv6 needs 1280 (RFC 8200, 5).
            Some(mtu @ 1280..=65_535) => Ok(u32::try_from(mtu).ok()),
            _ => Err(invalid(&format!("mtu: expected 0 (the agent's choice) or 1280 to 65535, found {number}"))),
        },
        other => Err(mismatch("mtu", "a number", other)),
    }
}

fn valid_attachments(object: &Map<String, Value>) -> Result<Option<Vec<Attachment>>, CniError> {
    // The second key is what drafts of the spec called it.
    let (key, value) = match (object.get("cni.dev/valid-attachments"), object.get("cni.dev/attachments")) {
        (Some(value), _) => ("cni.dev/valid-attachments", value),
        (None, Some(value)) => ("cni.dev/attachments", value),
        (None, None) => return Ok(None),
    };
    let Value::Array(list) = value else { return Err(mismatch(key, "a list", Some(value))) };
    let mut attachments = Vec::with_capacity(list.len());
    for (n, item) in list.iter().enumerate() {
        let text = |field: &str| match item.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            other => Err(mismatch(&format!("{key}[{n}].{field}"), "a string", other)),
        };
        attachments.push(Attachment { container_id: text("containerID")?, ifname: text("ifname")? });
    }
    Ok(Some(attachments))
}
