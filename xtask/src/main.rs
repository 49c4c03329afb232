//! The project's own tasks: `cargo xtask build-ebpf`, `cargo xtask tidy`.

mod build_ebpf;
mod stamp;

use anyhow::{Context, Result, bail};
use std::path::Path;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?;
    match std::env::args().nth(1).as_deref() {
        Some("build-ebpf") => build_ebpf::run(root),
        other => bail!("unknown task {}: expected build-ebpf", other.unwrap_or("(none)")),
    }
}
