//! Addresses from another CNI plugin (`ipam` of the network configuration): it is run as a runtime would run it, with
//! the same environment and the same configuration.

use crate::config::{self, Config};
use crate::env::{Lookup, invalid};
use crate::error::{CniError, code};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Variables that the plugin gets.
const PASSED: [&str; 5] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
/// The version that brought GC and STATUS.
const NEWEST: &str = "1.1.0";
/// The one before it.
const OLDER: &str = "1.0.0";
/// Time for one call of the plugin.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a result, at most.
const RESULT_BYTES_MAX: u64 = 1 << 20;
/// How often its exit is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Runs the plugin for ADD; its addresses, at most one of each family.
///
/// # Errors
/// The plugin is missing, fails, or prints no result. What it may have allocated is released.
pub fn add(env: Lookup<'_>, kind: &str, config: &Config) -> Result<Vec<IpAddr>, CniError> {
    let answer = run(env, kind, "ADD", config)?;
    addresses(kind, &answer).inspect_err(|_| drop(del(env, kind, config)))
}

/// Releases what ADD allocated; nothing to release is fine.
///
/// # Errors
/// The plugin is missing, or fails.
pub fn del(env: Lookup<'_>, kind: &str, config: &Config) -> Result<(), CniError> {
    run(env, kind, "DEL", config).map(drop)
}

/// Whether the plugin still holds the allocation.
///
/// # Errors
/// Its error.
pub fn check(env: Lookup<'_>, kind: &str, config: &Config) -> Result<(), CniError> {
    run(env, kind, "CHECK", config).map(drop)
}

/// Whether ADD can work: the plugin exists and, if its version supports STATUS, reports that it is ready.
///
/// # Errors
/// [`code::NOT_AVAILABLE`]
pub fn status(env: Lookup<'_>, kind: &str, config: &Config) -> Result<(), CniError> {
    let unavailable =
        |error: CniError| CniError { code: code::NOT_AVAILABLE, details: error.details.clone(), msg: error.msg };
    if_known(env, kind, "STATUS", config).map_err(unavailable)
}

/// Releases allocations that are not among the valid attachments, if the plugin's version supports GC.
///
/// # Errors
/// The plugin is missing, or fails.
pub fn gc(env: Lookup<'_>, kind: &str, config: &Config) -> Result<(), CniError> {
    if_known(env, kind, "GC", config)
}

/// A command of the newest version.
fn if_known(env: Lookup<'_>, kind: &str, command: &str, config: &Config) -> Result<(), CniError> {
    let spoken = run(env, kind, "VERSION", config)?;
    let spoken: Value = serde_json::from_slice(&spoken).unwrap_or_default();
    let knows = spoken["supportedVersions"].as_array().into_iter().flatten().any(|version| version == NEWEST);
    if knows { run(env, kind, command, config).map(drop) } else { Ok(()) }
}

/// What the plugin reads. Most know nothing newer than 1.0.0, and what came after it changes nothing in what they are
/// asked here.
fn input(command: &str, config: &Config) -> Vec<u8> {
    let spoken = matches!(command, "ADD" | "DEL" | "CHECK") && config.version.as_str() == NEWEST;
    let parsed = spoken.then(|| serde_json::from_slice::<Value>(&config.stdin).ok()).flatten();
    let Some(mut parsed) = parsed else { return config.stdin.clone() };
    parsed["cniVersion"] = OLDER.into();
    if parsed["prevResult"].is_object() {
        parsed["prevResult"]["cniVersion"] = OLDER.into();
    }
    parsed.to_string().into_bytes()
}

fn find(env: Lookup<'_>, kind: &str) -> Result<PathBuf, CniError> {
    let path = env("CNI_PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(kind)).find(|file| file.is_file());
    found.ok_or_else(|| invalid("CNI_PATH", &format!("expected a directory with the plugin {kind:?}, found {path:?}")))
}

fn run(env: Lookup<'_>, kind: &str, command: &str, config: &Config) -> Result<Vec<u8>, CniError> {
    let program = find(env, kind)?;
    let failed = |what: &str, details: String| CniError {
        code: code::TRY_AGAIN_LATER,
        msg: format!("the plugin {kind} {what}"),
        details,
    };
    let io = |error: std::io::Error| failed("cannot be run", format!("{}: {error}", program.display()));
    let mut child = Command::new(&program);
    child.env_clear().env("CNI_COMMAND", command).envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    child.envs(PASSED.iter().filter_map(|name| Some((*name, env(name)?))));
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(io)?;
    let reader = child.stdout.take().map(|stdout| {
        std::thread::spawn(move || {
            let mut answer = Vec::new();
            stdout.take(RESULT_BYTES_MAX).read_to_end(&mut answer).map(|_| answer)
        })
    });
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its configuration fails by its own exit code.
        let _ = stdin.write_all(&input(command, config));
    }
    let Some(success) = wait(&mut child, TIMEOUT).map_err(io)? else {
        return Err(failed("did not answer", format!("{command}: ended after {} s", TIMEOUT.as_secs())));
    };
    let answer = reader.and_then(|reader| reader.join().ok()).transpose().map_err(io)?.unwrap_or_default();
    if success { Ok(answer) } else { Err(refusal(kind, command, &program, &answer)) }
}

fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<bool>> {
    let until = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The plugin's own words, with its name.
fn refusal(kind: &str, command: &str, program: &Path, answer: &[u8]) -> CniError {
    let said: Value = serde_json::from_slice(answer).unwrap_or_default();
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    let number = said["code"].as_u64().and_then(|number| u32::try_from(number).ok());
    match number {
        Some(number) => {
            CniError { code: number, msg: format!("{kind} {command}: {}", text("msg")), details: text("details") }
        }
        None => CniError {
            code: code::TRY_AGAIN_LATER,
            msg: format!("{kind} {command} failed without a word"),
            details: program.display().to_string(),
        },
    }
}

fn addresses(kind: &str, answer: &[u8]) -> Result<Vec<IpAddr>, CniError> {
    let nonsense = |details: String| CniError {
        code: code::DECODING_FAILURE,
        msg: format!("the answer of the plugin {kind} makes no sense"),
        details,
    };
    let result: Value = serde_json::from_slice(answer).map_err(|error| nonsense(error.to_string()))?;
    let addresses = config::addresses(&result, "").map_err(|error| nonsense(error.details))?;
    if addresses.is_empty() {
        return Err(nonsense("ips: expected at least one address".to_owned()));
    }
    for (n, address) in addresses.iter().enumerate() {
        if addresses[..n].iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(nonsense(format!("ips[{n}].address: {address} is a second one of its family")));
        }
    }
    Ok(addresses)
}
