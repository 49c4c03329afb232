//! Kernel parameters. Those under `net/` are the ones of the calling thread's network namespace.

use std::io;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// Reads a parameter, for example `net/ipv4/ip_forward`.
///
/// # Errors
/// There is none, or the name leaves `/proc/sys`.
pub fn read(name: &str) -> io::Result<String> {
    check(name)?;
    let text = std::fs::read_to_string(path(name)).map_err(|error| named(name, &error))?;
    Ok(text.trim().to_owned())
}

/// Writes a parameter unless it has that value.
///
/// # Errors
/// There is none, it cannot be written, or the name leaves `/proc/sys`.
pub fn write(name: &str, value: &str) -> io::Result<()> {
    if read(name)? == value {
        return Ok(());
    }
    std::fs::write(path(name), value).map_err(|error| named(name, &error))
}

/// A device's name is part of a path.
fn check(name: &str) -> io::Result<()> {
    if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("kernel parameter {name:?}")));
    }
    Ok(())
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("kernel parameter {name}: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_stay_below_the_directory() {
        for name in ["net/../../etc/passwd", "/etc/passwd", "net//x", "."] {
            assert_eq!(super::read(name).unwrap_err().kind(), std::io::ErrorKind::InvalidInput, "{name}");
        }
        assert!(super::read("kernel/ostype").is_ok());
    }
}
