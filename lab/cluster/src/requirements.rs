//! What `weft up` needs of the machine, checked before anything is made.

use super::supervisor::agent_arguments;
use super::{Error, step};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::path::Path;
use std::process::Command;
use weft_lab_config::options::Config;
use weft_lab_config::paths::Paths;

/// The oldest kernel with tcx links.
const KERNEL_MIN: (u32, u32) = (6, 6);
const PROGRAMS: [&str; 4] = [super::PROGRAM, "weft-agent", "weft-operator", "weft-cni"];

/// Checks kernel and programs.
pub(super) fn check(config: &Config) -> Result<(), Error> {
    let release = nix::sys::utsname::uname().map_err(|e| Error::Requirement(format!("uname: {e}")))?;
    let release = release.release().to_string_lossy().into_owned();
    if kernel_version(&release).is_none_or(|version| version < KERNEL_MIN) {
        let (major, minor) = KERNEL_MIN;
        return Err(Error::Requirement(format!("kernel {release}: expected {major}.{minor} or newer (tcx links)")));
    }
    for (place, why) in [
        ("/sys/kernel/btf/vmlinux", "kernel without BTF: expected CONFIG_DEBUG_INFO_BTF"),
        ("/proc/self/ns/net", "kernel without network namespaces: expected CONFIG_NET_NS"),
        ("/proc/self/ns/pid", "kernel without process namespaces: expected CONFIG_PID_NS"),
    ] {
        if !Path::new(place).exists() {
            return Err(Error::Requirement(format!("{why} ({place} is missing)")));
        }
    }
    if config.ipv6 && !Path::new("/proc/sys/net/ipv6").exists() {
        return Err(Error::Requirement("the kernel has no IPv6: expected --ip-families ipv4".into()));
    }
    step("cgroup version 2", weft_sys::cgroup::root())?;
    for program in PROGRAMS {
        let file = config.bin_dir.join(program);
        if !file.is_file() {
            return Err(Error::Requirement(format!(
                "{} is missing: expected it beside weft-lab, or $WEFT_BIN_DIR to say where",
                file.display()
            )));
        }
    }
    check_agent(config)
}

/// Runs `weft-agent check-settings` with the command line of a node's agent, which would not start with wrong settings.
fn check_agent(config: &Config) -> Result<(), Error> {
    let node = weft_lab_config::paths::node_name(1);
    let arguments = agent_arguments(config, &node).map_err(|error| Error::Requirement(format!("{error:#}")))?;
    let mut agent = Command::new(config.bin_dir.join("weft-agent"));
    agent.env_clear().args(arguments).arg("check-settings");
    let checked = step("run weft-agent check-settings", agent.output())?;
    if checked.status.success() {
        return Ok(());
    }
    let given = config.agent.iter().map(|(key, value)| format!("--agent {key}={value}")).collect::<Vec<_>>().join(" ");
    let problem = String::from_utf8_lossy(&checked.stderr);
    let problem = problem.trim().trim_start_matches("weft-agent: ");
    let place = if given.is_empty() { "settings of the agents".to_owned() } else { given };
    Err(Error::Requirement(format!("{place}: {problem}")))
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Mounts the cluster's BPF file system, once.
pub(super) fn mount_bpf(paths: &Paths) -> Result<(), Error> {
    let place = paths.bpf();
    step(format!("make {}", place.display()), fs::create_dir_all(&place))?;
    if statfs(&place).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    let mounted = mount(Some("bpf"), &place, Some("bpf"), MsFlags::empty(), Some("mode=0700"));
    step(format!("mount the BPF file system on {}", place.display()), mounted.map_err(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases() {
        assert_eq!(kernel_version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(kernel_version("6.6"), Some((6, 6)));
        assert_eq!(kernel_version("linux"), None);
    }
}
