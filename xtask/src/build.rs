//! Builds the programs. What needs no kernel programs is compiled while the tools for them are installed: one of the two
//! mostly waits for the network and the disk, the other for the CPU.

use crate::build_ebpf;
use crate::stages::Stages;
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::Command;

/// The programs that embed the kernel programs, by their packages, and those that do not.
const WITH_KERNEL_PROGRAMS: &[&str] = &["weft-agent"];
const WITHOUT: &[&str] = &["weft-cli", "weft-lab-cluster", "weft-operator", "weft-cni"];

/// Installs what is missing and builds the programs in a profile: `cargo xtask build PROFILE [COMMAND...]`. The command, if
/// there is one, is the last stage.
pub fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let (profile, command) = arguments.split_first().context("expected a profile: `cargo xtask build release`")?;
    let stages = Stages::begin();
    let result = programs(root, &stages, "build", profile).and_then(|()| match command.split_first() {
        Some((program, rest)) => stages.command("cluster", Command::new(program).args(rest)),
        None => Ok(()),
    });
    stages.print();
    result
}

/// A cargo command in the workspace.
pub fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root).args(arguments);
    command
}

fn cargo_build(root: &Path, profile: &str, packages: &[&str]) -> Command {
    let mut command = cargo(root, &["build", "--quiet", "--profile", profile]);
    for package in packages {
        command.args(["--package", package]);
    }
    command
}

/// Installs the tools (`what` as `scripts/setup.sh` takes it), builds the kernel programs, and all programs that a cluster
/// needs in a profile.
pub fn programs(root: &Path, stages: &Stages, what: &str, profile: &str) -> Result<()> {
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            stages.command("tools", Command::new(root.join("scripts/setup.sh")).arg(what))?;
            stages.run("kernel programs", || build_ebpf::run(root))
        });
        let first = stages.command("programs without kernel programs", &mut cargo_build(root, profile, WITHOUT));
        kernel.join().map_err(|_| anyhow::anyhow!("the thread that builds the kernel programs panicked"))??;
        first
    })
    .context("the programs are not built")?;
    let all = [WITHOUT, WITH_KERNEL_PROGRAMS].concat();
    stages.command("all programs", &mut cargo_build(root, profile, &all))
}
