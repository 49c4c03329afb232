//! The pod runner: what the kubelet and the container runtime are on a real node.

pub mod record;

/// `weft internal node CLUSTER NODE`
pub(crate) fn main(_args: &[std::ffi::OsString]) -> std::process::ExitCode {
    eprintln!("weft internal node: not there yet");
    std::process::ExitCode::FAILURE
}
