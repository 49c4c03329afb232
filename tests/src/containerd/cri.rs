//! The part of Kubernetes' Container Runtime Interface (`runtime.v1`) that the tests speak: the messages with the fields
//! that are used, under their numbers in `api.proto`. What is not named here is skipped by the decoder.

use super::grpc::call;
use anyhow::Result;
use prost::Message;
use std::collections::HashMap;
use std::path::Path;

/// `NamespaceMode`: each container has its own; the default, 0, is one for the whole pod.
pub(super) const NAMESPACE_OF_CONTAINER: i32 = 1;
/// `PodSandboxState`: it is stopped.
pub(super) const SANDBOX_NOT_READY: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NamespaceOption {
    #[prost(int32, tag = "2")]
    pub pid: i32,
}

/// `LinuxSandboxSecurityContext`, and of a container, whose field has another number.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    pub namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(string, tag = "3")]
    pub log_directory: String,
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxContainerConfig {
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    #[prost(string, tag = "11")]
    pub log_path: String,
    #[prost(message, optional, tag = "15")]
    pub linux: Option<LinuxContainerConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

/// A request, or an answer, that is nothing but an id in its first field: most of them.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodIp {
    #[prost(string, tag = "1")]
    pub ip: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    pub ip: String,
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxStatus {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RuntimeCondition {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(bool, tag = "2")]
    pub status: bool,
    #[prost(string, tag = "4")]
    pub message: String,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Id>,
}

fn runtime<Q: Message, A: Message + Default>(socket: &Path, method: &str, question: &Q) -> Result<A> {
    call(socket, &format!("/runtime.v1.RuntimeService/{method}"), question)
}

fn id(id: &str) -> Id {
    Id { id: id.to_owned() }
}

pub(super) fn conditions(socket: &Path) -> Result<Vec<RuntimeCondition>> {
    let answer: StatusResponse = runtime(socket, "Status", &Nothing {})?;
    Ok(answer.status.unwrap_or_default().conditions)
}

pub(super) fn has_image(socket: &Path, image: &str) -> Result<bool> {
    let request = ImageStatusRequest { image: Some(ImageSpec { image: image.to_owned() }) };
    let answer: ImageStatusResponse = call(socket, "/runtime.v1.ImageService/ImageStatus", &request)?;
    Ok(answer.image.is_some())
}

pub(super) fn run_pod_sandbox(socket: &Path, config: &PodSandboxConfig) -> Result<String> {
    let request = RunPodSandboxRequest { config: Some(config.clone()) };
    Ok(runtime::<_, Id>(socket, "RunPodSandbox", &request)?.id)
}

pub(super) fn pod_sandbox_status(socket: &Path, sandbox: &str) -> Result<PodSandboxStatus> {
    let answer: PodSandboxStatusResponse = runtime(socket, "PodSandboxStatus", &id(sandbox))?;
    Ok(answer.status.unwrap_or_default())
}

pub(super) fn list_pod_sandboxes(socket: &Path) -> Result<Vec<String>> {
    let answer: ListPodSandboxResponse = runtime(socket, "ListPodSandbox", &Nothing {})?;
    Ok(answer.items.into_iter().map(|one| one.id).collect())
}

pub(super) fn stop_pod_sandbox(socket: &Path, sandbox: &str) -> Result<()> {
    runtime::<_, Nothing>(socket, "StopPodSandbox", &id(sandbox)).map(drop)
}

pub(super) fn remove_pod_sandbox(socket: &Path, sandbox: &str) -> Result<()> {
    runtime::<_, Nothing>(socket, "RemovePodSandbox", &id(sandbox)).map(drop)
}

pub(super) fn create_container(
    socket: &Path,
    sandbox: &str,
    sandbox_config: &PodSandboxConfig,
    config: ContainerConfig,
) -> Result<String> {
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(config),
        sandbox_config: Some(sandbox_config.clone()),
    };
    Ok(runtime::<_, Id>(socket, "CreateContainer", &request)?.id)
}

pub(super) fn start_container(socket: &Path, container: &str) -> Result<()> {
    runtime::<_, Nothing>(socket, "StartContainer", &id(container)).map(drop)
}

pub(super) fn exec_sync(socket: &Path, container: &str, cmd: &[String]) -> Result<ExecSyncResponse> {
    let request = ExecSyncRequest { container_id: container.to_owned(), cmd: cmd.to_vec(), timeout: 60 };
    runtime(socket, "ExecSync", &request)
}
