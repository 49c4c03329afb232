//! The six commands.

use crate::client::{self, RequestError, Timeouts};
use crate::config::{self, Config};
use crate::env::{self, Command, Lookup};
use crate::error::{CniError, code};
use crate::{delegate, queue, result};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::time::Duration;
use weft_api::agent::{Request, Response};
use weft_api::cni::{AddRequest, CheckRequest, DelRequest, GcRequest};

/// A container runtime gives up on a sandbox after two to four minutes; an answer must come well before.
const ADD: Timeouts = Timeouts { connect: Duration::from_secs(10), response: Duration::from_secs(60) };
/// A delete that meets no agent is queued, so it need not wait long.
const DEL: Timeouts = Timeouts { connect: Duration::from_millis(200), response: Duration::from_secs(30) };
/// Runtimes poll STATUS.
const STATUS: Timeouts = Timeouts { connect: Duration::from_secs(1), response: Duration::from_secs(5) };

/// An error with the version that the caller speaks.
#[derive(Debug)]
pub struct Failure {
    /// `cniVersion` of the answer.
    pub version: &'static str,
    /// What went wrong.
    pub error: CniError,
}

impl Failure {
    /// As it goes to standard output.
    #[must_use]
    pub fn to_json(&self) -> String {
        let CniError { code, msg, details } = &self.error;
        json!({ "cniVersion": self.version, "code": code, "msg": msg, "details": details }).to_string()
    }
}

impl From<CniError> for Failure {
    fn from(error: CniError) -> Self {
        Self { version: config::NEWEST, error }
    }
}

/// Carries out one call; what it returns goes to standard output.
///
/// # Errors
/// See [`Failure`].
pub fn run(env: impl Fn(&str) -> Option<OsString>, stdin: &[u8]) -> Result<String, Failure> {
    let command = env::command(&env)?;
    if command == Command::Version {
        let asked = config::asked_version(stdin)?;
        let version = asked.as_deref().unwrap_or(config::NEWEST);
        return Ok(json!({ "cniVersion": version, "supportedVersions": config::VERSIONS }).to_string());
    }
    let config = config::parse(stdin)?;
    let version = config.version.as_str();
    let answer = match command {
        Command::Add => add(&env, &config),
        Command::Del => del(&env, &config),
        Command::Check => check(&env, &config),
        Command::Gc => gc(&env, &config),
        Command::Status => status(&env, &config),
        Command::Version => unreachable!("answered above"),
    };
    answer.map_err(|error| Failure { version, error })
}

/// Standard input could not be read.
#[must_use]
pub fn stdin_unreadable(error: &std::io::Error) -> Failure {
    CniError { code: code::IO_FAILURE, msg: "cannot read standard input".into(), details: error.to_string() }.into()
}

fn add(env: Lookup<'_>, config: &Config) -> Result<String, CniError> {
    let attachment = env::attachment(env)?;
    let netns = env::netns_required(env)?;
    let pod = env::pod_args(env)?;
    let (Some(pod_namespace), Some(pod_name)) = (pod.namespace, pod.name) else {
        return Err(env::invalid(
            "CNI_ARGS",
            "expected K8S_POD_NAMESPACE and K8S_POD_NAME: which pod this is decides its policy",
        ));
    };
    if config.prev_result.is_some() {
        return Err(config::invalid(
            "prevResult: expected none on ADD: weft-cni makes the interface and must be the first plugin of the list",
        ));
    }
    let addresses = config.delegate.as_deref().map(|kind| delegate::add(env, kind, config)).transpose()?;
    let request = AddRequest {
        attachment: attachment.clone(),
        netns: netns.clone(),
        pod_namespace,
        pod_name,
        pod_uid: pod.uid,
        mtu: config.mtu,
        addresses,
    };
    match client::send(&config.socket, &Request::CniAdd(request), ADD) {
        Ok(Response::CniResult(added)) => Ok(result::render(config.version, &attachment, &netns, &added).to_string()),
        Ok(Response::Error(error)) => {
            // Refused: no endpoint has the addresses. In every other case one may, and DEL gives them back.
            if let Some(kind) = &config.delegate {
                let _ = delegate::del(env, kind, config);
            }
            Err(error.into())
        }
        Ok(other) => Err(unexpected(&other)),
        Err(cause) => Err(silent(config, cause)),
    }
}

/// DEL succeeds whenever the delete is certain to happen: now, or when the agent is back.
fn del(env: Lookup<'_>, config: &Config) -> Result<String, CniError> {
    let request = DelRequest { attachment: env::attachment(env)?, netns: env::netns(env)? };
    let done = detach(config, &request)?;
    // The endpoint is gone, or goes before an agent answers anybody again: now its addresses may be somebody else's.
    config.delegate.as_deref().map_or(Ok(()), |kind| delegate::del(env, kind, config))?;
    Ok(done)
}

fn detach(config: &Config, request: &DelRequest) -> Result<String, CniError> {
    match client::send(&config.socket, &Request::CniDel(request.clone()), DEL) {
        Ok(answer) => done(answer),
        Err(cause) => match queue::push(&config.queue_dir, request) {
            Ok(()) => Ok(String::new()),
            Err(error) => {
                let details = format!("{}: {error}; agent: {}", config.queue_dir.display(), describe(&cause));
                Err(CniError {
                    code: code::TRY_AGAIN_LATER,
                    msg: "the agent is down and the delete could not be queued".into(),
                    details,
                })
            }
        },
    }
}

fn check(env: Lookup<'_>, config: &Config) -> Result<String, CniError> {
    since(config, "CHECK", "0.4.0")?;
    let attachment = env::attachment(env)?;
    let netns = env::netns_required(env)?;
    let Some(previous) = &config.prev_result else {
        return Err(config::mismatch("prevResult", "the result of ADD", None));
    };
    let addresses = config::addresses(previous, &attachment.ifname)?;
    config.delegate.as_deref().map_or(Ok(()), |kind| delegate::check(env, kind, config))?;
    done(ask(config, &Request::CniCheck(CheckRequest { attachment, netns, addresses }), ADD)?)
}

fn gc(env: Lookup<'_>, config: &Config) -> Result<String, CniError> {
    since(config, "GC", "1.1.0")?;
    let Some(valid) = config.valid_attachments.clone() else {
        return Err(config::mismatch("cni.dev/valid-attachments", "a list", None));
    };
    let answer = done(ask(config, &Request::CniGc(GcRequest { valid }), ADD)?)?;
    config.delegate.as_deref().map_or(Ok(()), |kind| delegate::gc(env, kind, config))?;
    Ok(answer)
}

fn status(env: Lookup<'_>, config: &Config) -> Result<String, CniError> {
    since(config, "STATUS", "1.1.0")?;
    config.delegate.as_deref().map_or(Ok(()), |kind| delegate::status(env, kind, config))?;
    match client::send(&config.socket, &Request::CniStatus, STATUS) {
        Ok(answer) => done(answer),
        Err(cause) => Err(CniError {
            code: code::NOT_AVAILABLE,
            msg: "the agent does not answer".into(),
            details: reach(config, &cause),
        }),
    }
}

fn since(config: &Config, command: &str, version: &str) -> Result<(), CniError> {
    if config.version.at_least(version) {
        return Ok(());
    }
    let details = format!("cniVersion: expected {version} or newer for {command}, found {:?}", config.version.as_str());
    Err(CniError { code: code::INCOMPATIBLE_VERSION, msg: "incompatible CNI version".into(), details })
}

fn ask(config: &Config, request: &Request, timeouts: Timeouts) -> Result<Response, CniError> {
    client::send(&config.socket, request, timeouts).map_err(|cause| silent(config, cause))
}

fn silent(config: &Config, cause: RequestError) -> CniError {
    let details = reach(config, &cause);
    match cause {
        RequestError::Unreachable(_) | RequestError::Interrupted(_) => {
            CniError { code: code::TRY_AGAIN_LATER, msg: "the agent does not answer".into(), details }
        }
        RequestError::Malformed(_) => {
            CniError { code: code::DECODING_FAILURE, msg: "the agent's answer makes no sense".into(), details }
        }
    }
}

fn done(answer: Response) -> Result<String, CniError> {
    match answer {
        Response::Done => Ok(String::new()),
        Response::Error(failure) => Err(failure.into()),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &Response) -> CniError {
    let kind = serde_json::to_value(answer).ok();
    let kind = kind.as_ref().and_then(|value| value.get("type")).and_then(Value::as_str).unwrap_or("?");
    CniError {
        code: code::DECODING_FAILURE,
        msg: "the agent's answer makes no sense".into(),
        details: format!("unexpected kind {kind:?}"),
    }
}

fn reach(config: &Config, cause: &RequestError) -> String {
    format!("{}: {}", config.socket.display(), describe(cause))
}

fn describe(cause: &RequestError) -> String {
    match cause {
        RequestError::Unreachable(error) => format!("cannot connect: {error}"),
        RequestError::Interrupted(error) => format!("no answer: {error}"),
        RequestError::Malformed(text) => text.clone(),
    }
}

#[cfg(test)]
mod delegated;
#[cfg(test)]
mod tests;
