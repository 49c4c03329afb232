//! `weft-agent uninstall`.

use crate::config::Config;
use crate::install;
use crate::machine::TUNNEL_DEVICE;
use crate::state::StateDir;
use anyhow::Context as _;
use std::fs;
use weft_datapath::{link, route, tunnel};

/// Takes the CNI files away; with `all`, everything that the agent ever made on this machine.
///
/// # Errors
/// Something could not be removed, or an agent is running.
pub fn run(config: &Config, all: bool) -> anyhow::Result<()> {
    for path in install::remove(config)? {
        println!("removed {}", path.display());
    }
    if !all {
        return Ok(());
    }
    let lock = StateDir::open(&config.state_dir).context("stop the agent first")?;
    for link in link::list().context("pod links")? {
        link::delete(&link.name).with_context(|| format!("link {}", link.name))?;
        println!("removed {}", link.name);
    }
    tunnel::remove(TUNNEL_DEVICE).context("VXLAN device")?;
    route::set_unreachable(&[]).context("routes")?;
    for dir in [&config.bpf_dir, &config.state_dir] {
        match fs::remove_dir_all(dir) {
            Ok(()) => println!("removed {}", dir.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{}", dir.display())),
        }
    }
    drop(lock);
    Ok(())
}
