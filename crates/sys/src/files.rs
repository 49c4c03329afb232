//! Files that others read while they are written, and files that are nobody else's to read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Mode of a file that only its owner may read.
pub const PRIVATE: u32 = 0o600;
/// Mode of a directory that only its owner may enter.
const PRIVATE_DIR: u32 = 0o700;
/// Mode of a file that everybody may read.
pub const PUBLIC: u32 = 0o644;

/// Writes a file so that a reader sees the old or the new content, never a part, and never with another mode. A crash of
/// the machine may lose the new content.
///
/// # Errors
/// Of the file system.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace(path, content, mode, false)
}

/// The same, and on the disk when this returns.
///
/// # Errors
/// Of the file system.
pub fn write_durably(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace(path, content, mode, true)?;
    File::open(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

/// Makes a directory that only its owner may enter, with those above it; takes the others' rights to one that exists.
///
/// # Errors
/// Of the file system.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE_DIR))
}

/// Opens a file to lock, making it if need be. Only its owner may open it: a lock can be held by any process that can read
/// the file.
///
/// # Errors
/// Of the file system.
pub fn lock_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(PRIVATE))?;
    Ok(file)
}

fn replace(path: &Path, content: &[u8], mode: u32, durably: bool) -> io::Result<()> {
    let partial = beside(path)?;
    let written = write_new(&partial, content, mode, durably).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

/// A name that no other writer has, of a file that readers of the directory pass over.
fn beside(path: &Path) -> io::Result<PathBuf> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id())))
}

fn write_new(path: &Path, content: &[u8], mode: u32, durably: bool) -> io::Result<()> {
    // What a process of the same number left would keep its mode, or be a running executable, which nobody can write.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    if durably { file.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(test: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weft-sys-files-{test}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        dir
    }

    #[test]
    fn content_and_mode_are_the_new_ones_and_nothing_is_left() {
        let dir = directory("mode");
        let file = dir.join("file");
        let mode = || fs::metadata(&file).expect("is there").permissions().mode() & 0o777;
        write_atomically(&file, b"old", PUBLIC).expect("written");
        assert_eq!(mode(), PUBLIC);
        write_durably(&file, b"new", PRIVATE).expect("written");
        assert_eq!((fs::read(&file).expect("readable"), mode()), (b"new".to_vec(), PRIVATE));
        // A directory is in the way.
        let taken = dir.join("taken");
        fs::create_dir(&taken).expect("made");
        write_atomically(&taken, b"x", PUBLIC).expect_err("cannot replace a directory");
        let mut names: Vec<_> = fs::read_dir(&dir).expect("listed").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(names, ["file", "taken"]);
        assert_eq!(
            write_atomically(Path::new("/"), b"", PUBLIC).map_err(|e| e.kind()),
            Err(io::ErrorKind::InvalidInput)
        );
    }

    #[test]
    fn many_writers_never_show_a_part() {
        let dir = directory("many");
        let file = dir.join("file");
        let content = |n: u8| vec![n; 100_000];
        write_atomically(&file, &content(0), PUBLIC).expect("written");
        std::thread::scope(|scope| {
            for n in 0..4 {
                let file = &file;
                scope
                    .spawn(move || (0..25).for_each(|_| write_atomically(file, &content(n), PUBLIC).expect("written")));
            }
            for _ in 0..100 {
                let seen = fs::read(&file).expect("is always there");
                assert!(seen.len() == 100_000 && seen.iter().all(|byte| *byte == seen[0]), "a part of {}", seen.len());
            }
        });
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn nobody_else_can_hold_a_lock() {
        let root = std::env::temp_dir().join(format!("weft-lock-{}", std::process::id()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // Also what a former version left open to all.
        fs::create_dir_all(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.join("lock"), "").unwrap();
        fs::set_permissions(root.join("lock"), fs::Permissions::from_mode(0o644)).unwrap();
        for dir in [root.clone(), root.join("a/b")] {
            private_dir(&dir).unwrap();
            lock_file(&dir.join("lock")).unwrap();
            assert_eq!((mode(&dir), mode(&dir.join("lock"))), (0o700, 0o600), "{}", dir.display());
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
