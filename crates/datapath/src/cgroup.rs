//! Control groups of version 2.

use std::io;
use std::path::PathBuf;

/// Where they are mounted; found by type, since distributions mount them in different places.
///
/// # Errors
/// That they are mounted nowhere.
pub fn root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let place = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(place))
    });
    place.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "cgroup version 2 is not mounted (mount -t cgroup2)"))
}
