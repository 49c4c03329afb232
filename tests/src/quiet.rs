//! Tests that count lost connections, or how soon something is refused, go one at a time: beside other tests they hold,
//! beside each other two whole clusters under load would only measure the machine.

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;

/// While this is held no other such test runs on this machine, in whatever process.
#[derive(Debug)]
pub struct Quiet(#[expect(dead_code, reason = "held, and let go with the value")] Flock<File>);

/// Waits for those that run.
///
/// # Errors
/// There is no place for the lock's file.
pub fn alone() -> Result<Quiet> {
    let path = std::env::temp_dir().join("weft-tests-quiet.lock");
    let file = File::options().create(true).append(true).open(&path).with_context(|| format!("open {path:?}"))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error);
    Ok(Quiet(lock.with_context(|| format!("lock {path:?}"))?))
}
