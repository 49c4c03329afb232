//! The project's own tasks: `cargo xtask build-ebpf | build | docs | test | tidy`.

mod build;
mod build_ebpf;
mod stages;
mod stamp;
mod test;
mod tidy;

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
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
        "docs" => docs(root),
        "test" => test::run(root, rest),
        "tidy" => tidy::run(root, rest.iter().any(|word| word == "--write")),
        other => bail!("unknown task {other}: expected build-ebpf, build, docs, test or tidy"),
    }
}

/// Writes the tables of settings into the documentation: the tests that compare them write them instead.
fn docs(root: &Path) -> Result<()> {
    let packages = ["weft-agent", "weft-operator", "weft-lab-config"].into_iter().flat_map(|name| ["--package", name]);
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["test", "--lib", "the_documentation_is_current"])
        .args(packages)
        .env("WEFT_WRITE_DOCS", "1")
        .status()
        .context("start cargo test")?;
    if status.success() { Ok(()) } else { bail!("the tables could not be written") }
}
