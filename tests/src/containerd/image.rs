//! A small OCI image of the toolbox: our executable, the libraries that it is linked with, and nothing else.
//!
//! Without arguments it does nothing, as a pod's first container ("pause") shall; with them it is the toolbox.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its name. A name with a host is one that runtimes take as it is.
pub(super) const NAME: &str = "localhost/weft-toolbox:test";

/// Writes the image as a tar archive of an OCI layout, `image.tar` in `dir`.
pub(super) fn build(weft: &Path, dir: &Path) -> Result<PathBuf> {
    let (root, layout) = (dir.join("image-root"), dir.join("image-layout"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::create_dir_all(root.join("tmp"))?;
    fs::copy(weft, root.join("weft"))?;
    for library in libraries(weft)? {
        let target = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(target.parent().context("a file is in a directory")?)?;
        fs::copy(&library, &target).with_context(|| library.display().to_string())?;
    }
    let layer = dir.join("layer.tar");
    tar(&root, &layer)?;
    fs::remove_dir_all(&root)?;
    let (layer_digest, layer_size) = blob(&blobs, &fs::read(&layer)?)?;
    fs::remove_file(&layer)?;

    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/weft", "toolbox"], "Cmd": ["pause"], "Env": ["PATH=/"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    });
    let (config_digest, config_size) = blob(&blobs, config.to_string().as_bytes())?;
    let descriptor = |kind: &str, digest: &str, size: usize| -> Value {
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size})
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config_digest, config_size),
        "layers": [descriptor("layer.v1.tar", &layer_digest, layer_size)],
    });
    let (manifest_digest, manifest_size) = blob(&blobs, manifest.to_string().as_bytes())?;
    let mut named = descriptor("manifest.v1+json", &manifest_digest, manifest_size);
    named["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = json!({"schemaVersion": 2, "manifests": [named]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    let archive = dir.join("image.tar");
    tar(&layout, &archive)?;
    fs::remove_dir_all(&layout)?;
    Ok(archive)
}

const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn tar(dir: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    let status = tar.arg("-C").arg(dir).args(["--owner=0", "--group=0", "-cf"]).arg(archive).arg(".").status()?;
    ensure!(status.success(), "tar of {}: {status}", dir.display());
    Ok(())
}

/// Stores a blob under its digest.
fn blob(blobs: &Path, content: &[u8]) -> Result<(String, usize)> {
    let digest = hex(&Sha256::digest(content));
    fs::write(blobs.join(&digest), content)?;
    Ok((format!("sha256:{digest}"), content.len()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What the dynamic linker loads for it, itself included; nothing for a static executable.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `name => /path (address)`, or `/path (address)` for the linker.
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
