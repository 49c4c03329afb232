//! The project's own tasks: `cargo xtask build-ebpf | build | test | tidy`.

mod build;
mod build_ebpf;
mod stages;
mod stamp;
mod test;
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = arguments.split_first().map_or(("(none)", &[][..]), |(task, rest)| (task.as_str(), rest));
    match task {
        "build-ebpf" => build_ebpf::run(root),
        "build" => build::run(root, rest),
        "test" => test::run(root, rest),
        "tidy" => tidy::run(root, rest.iter().any(|word| word == "--write")),
        other => bail!("unknown task {other}: expected build-ebpf, build, test or tidy"),
    }
}
