//! The fingerprint of everything that the kernel programs are made from. Shared (by `#[path]`) with the build script
//! that embeds the object, so that a stale object is a build error and never a surprise.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the object is, below the workspace's root.
pub const OBJECT: &str = "target/bpf/weft.o";
/// Where its fingerprint is.
pub const STAMP: &str = "target/bpf/weft.stamp";
/// What the object is made from.
pub const SOURCES: [&str; 4] = ["ebpf/src", "ebpf/Cargo.toml", "crates/abi/src", "xtask/src/build_ebpf.rs"];

/// All source files, sorted.
pub fn files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = SOURCES.iter().map(|source| root.join(source)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Names and contents of all source files as one number (FNV-1a, 64 bits), in hexadecimal.
pub fn fingerprint(root: &Path) -> io::Result<String> {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files(root)? {
        eat(file.strip_prefix(root).unwrap_or(&file).to_string_lossy().as_bytes());
        eat(&fs::read(&file)?);
    }
    Ok(format!("{hash:016x}"))
}
