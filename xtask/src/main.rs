//! The project's own tasks: `cargo xtask build-ebpf`, `cargo xtask tidy`.

mod build_ebpf;
mod stamp;
mod tidy;

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match task() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn task() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?;
    match std::env::args().nth(1).as_deref() {
        Some("build-ebpf") => build_ebpf::run(root),
        Some("tidy") => tidy::run(root),
        other => bail!("unknown task {}: expected build-ebpf or tidy", other.unwrap_or("(none)")),
    }
}
