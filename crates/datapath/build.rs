//! Embeds the kernel programs' object. An object that is missing or older than its sources is an error.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../../xtask/src/stamp.rs"]
#[allow(dead_code, reason = "shared with xtask, which uses all of it")]
mod stamp;

/// Builds with an object that is not up to date, with a warning: while the kernel programs themselves are being edited.
const ALLOW_STALE: &str = "WEFT_ALLOW_STALE_BPF";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest.ancestors().nth(2).expect("the crate lies in crates/ of the workspace");
    println!("cargo:rerun-if-env-changed={ALLOW_STALE}");
    println!("cargo:rerun-if-changed=build.rs");
    for path in [stamp::OBJECT, stamp::STAMP].iter().chain(&stamp::SOURCES) {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    if let Err(problem) = check(root) {
        assert!(
            env::var_os(ALLOW_STALE).is_some() && root.join(stamp::OBJECT).exists(),
            "{problem}: run `cargo xtask build-ebpf`"
        );
        println!("cargo:warning={problem}; embedding it all the same, since {ALLOW_STALE} is set");
    }
    println!("cargo:rustc-env=WEFT_BPF_OBJECT={}", root.join(stamp::OBJECT).display());
}

fn check(root: &Path) -> Result<(), String> {
    let object = root.join(stamp::OBJECT);
    if !object.exists() {
        return Err(format!("the kernel programs are not built ({} is missing)", object.display()));
    }
    let built_from =
        fs::read_to_string(root.join(stamp::STAMP)).map_err(|error| format!("{}: {error}", stamp::STAMP))?;
    let sources = stamp::fingerprint(root).map_err(|error| format!("the sources of the kernel programs: {error}"))?;
    if built_from.trim() != sources {
        return Err(format!("the kernel programs in {} are older than their sources", object.display()));
    }
    Ok(())
}
