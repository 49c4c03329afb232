//! Installs the CNI executable and configuration for the container runtime, and removes them. The runtime takes the
//! configuration for a network that is ready, so it is written last.

use crate::config::Config;
use serde_json::json;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use weft_sys::files::write_atomically;

/// Name of the executable.
pub const PLUGIN: &str = "weft-cni";
/// Name of the configuration. Runtimes take the first by name.
pub const CONFLIST: &str = "05-weft.conflist";

/// Something could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}")]
pub struct InstallError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError { what, path, source }
}

/// Copies the executable from beside the agent's, if a directory is configured.
///
/// # Errors
/// It is not there, or cannot be written.
pub fn executable(config: &Config) -> Result<(), InstallError> {
    let Some(dir) = &config.cni_bin_dir else { return Ok(()) };
    let own = std::env::var_os("WEFT_BIN_DIR").map(PathBuf::from);
    let source = match own {
        Some(dir) => dir.join(PLUGIN),
        None => {
            let own =
                std::env::current_exe().map_err(failed("cannot tell the path of", Path::new("/proc/self/exe")))?;
            own.with_file_name(PLUGIN)
        }
    };
    let content = fs::read(&source).map_err(failed("cannot read", &source))?;
    fs::create_dir_all(dir).map_err(failed("cannot make", dir))?;
    let target = dir.join(PLUGIN);
    if fs::read(&target).is_ok_and(|present| present == content) {
        return Ok(());
    }
    write_atomically(&target, &content, 0o755).map_err(failed("cannot write", &target))
}

/// Writes the configuration, if a directory is configured.
///
/// # Errors
/// It cannot be written.
pub fn configuration(config: &Config) -> Result<(), InstallError> {
    let Some(dir) = &config.cni_conf_dir else { return Ok(()) };
    fs::create_dir_all(dir).map_err(failed("cannot make", dir))?;
    let mut plugin = json!({
        "type": PLUGIN,
        "socket": config.socket,
        "queue-dir": config.state_dir.join("delete-queue"),
    });
    if let Some(ipam) = &config.ipam_plugin {
        plugin["ipam"] = ipam.clone();
    }
    let list = json!({
        // For runtimes that do not support `cniVersions` (libcni before 1.2: containerd 1.x): they refuse
        // results of 1.1.0. The others take the newest of the list.
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "weft",
        "plugins": [plugin],
    });
    let target = dir.join(CONFLIST);
    write_atomically(&target, format!("{list:#}\n").as_bytes(), 0o644).map_err(failed("cannot write", &target))
}

/// Removes both. What is not there is fine.
///
/// # Errors
/// A file cannot be removed.
pub fn remove(config: &Config) -> Result<Vec<PathBuf>, InstallError> {
    let mut removed = Vec::new();
    let files = [
        config.cni_conf_dir.as_ref().map(|dir| dir.join(CONFLIST)),
        config.cni_bin_dir.as_ref().map(|dir| dir.join(PLUGIN)),
    ];
    for path in files.into_iter().flatten() {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("cannot remove", &path)(error)),
        }
    }
    Ok(removed)
}
