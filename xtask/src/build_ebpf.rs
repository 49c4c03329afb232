//! Builds the kernel programs: `ebpf/` -> `target/bpf/weft.o`.
//!
//! They need the `bpfel-unknown-none` target, whose `core` is built from source, so a compiler that has the library's
//! source is wanted: a rustup nightly with `rust-src`, or a distribution's rustc with its source package.

use crate::stamp;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest compiler that the workspace builds with.
const MSRV: &str = env!("CARGO_PKG_RUST_VERSION");
const TARGET: &str = "bpfel-unknown-none";
const FLAGS: &str = "-C linker=bpf-linker -C link-arg=--btf -C link-arg=--disable-expand-memcpy-in-order -C debuginfo=2 -C target-cpu=v3";

/// Builds unless the object is up to date.
pub fn run(root: &Path) -> Result<()> {
    let fingerprint = stamp::fingerprint(root).context("read the sources of the kernel programs")?;
    let (object, mark) = (root.join(stamp::OBJECT), root.join(stamp::STAMP));
    if object.exists() && std::fs::read_to_string(&mark).is_ok_and(|old| old == fingerprint) {
        return Ok(());
    }
    if Command::new("bpf-linker").arg("--version").output().is_err() {
        bail!("bpf-linker is missing: `make setup` installs it (or: cargo install bpf-linker --version 0.13.0)");
    }
    let (cargo, rustc) = toolchain()?;
    let dir = root.join("target/bpf");
    let status = Command::new(&cargo)
        .current_dir(root)
        .args(["build", "--quiet", "--release", "--package", "weft-ebpf", "--bin", "weft", "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", &rustc)
        .env("RUSTFLAGS", FLAGS)
        // bpf-linker links whole programs by itself.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .with_context(|| format!("start {}", cargo.display()))?;
    if !status.success() {
        bail!("the kernel programs did not build");
    }
    std::fs::copy(dir.join(TARGET).join("release/weft"), &object).context("take the object")?;
    std::fs::write(&mark, fingerprint).context("write the object's fingerprint")?;
    println!("kernel programs: {}", object.display());
    Ok(())
}

/// A cargo and a rustc that have the library's source and are not older than the workspace asks for.
fn toolchain() -> Result<(PathBuf, PathBuf)> {
    let rustup = |toolchain: &[&str], program: &str| {
        let output = Command::new("rustup").arg("which").args(toolchain).arg(program).output().ok()?;
        output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    };
    let nightly = ["--toolchain", "nightly"];
    let candidates = [
        rustup(&nightly, "cargo").zip(rustup(&nightly, "rustc")),
        Some(("/usr/bin/cargo".into(), "/usr/bin/rustc".into())),
        rustup(&[], "cargo").zip(rustup(&[], "rustc")),
    ];
    let least = version(MSRV).context("the version of Rust in the workspace's Cargo.toml")?;
    for (cargo, rustc) in candidates.into_iter().flatten() {
        let said = |argument: &[&str]| {
            let output = Command::new(&rustc).args(argument).output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let (Some(sysroot), Some(itself)) = (said(&["--print", "sysroot"]), said(&["--version"])) else { continue };
        let is_recent = itself.split(' ').nth(1).and_then(version).is_some_and(|found| found >= least);
        let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml");
        if cargo.exists() && is_recent && source.exists() {
            return Ok((cargo, rustc));
        }
    }
    bail!(
        "no Rust compiler of version {MSRV} or later with the library's source: `make setup` installs one \
         (or: rustup toolchain install nightly --component rust-src)"
    )
}

/// Major and minor of `1.95`, `1.95.0` and `1.97.0-nightly`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}
