//! A container's file system, built in a mount namespace of its own and then made the root.

use super::{ContainerSpec, Image, Mount};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::pivot_root;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Directories of the machine that the toolbox shows, read-only.
const MACHINE_DIRS: [&str; 8] = ["usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32", "opt"];
/// Files and directories of /etc without which programs do not run.
const MACHINE_ETC: [&str; 5] = ["alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

fn at<T>(what: &str, place: &Path, result: Result<T, impl Into<io::Error>>) -> io::Result<T> {
    result.map_err(|e| {
        let e: io::Error = e.into();
        io::Error::new(e.kind(), format!("{what} {}: {e}", place.display()))
    })
}

/// Builds it below `dir` and moves the calling process into it.
pub(super) fn build(dir: &Path, spec: &ContainerSpec) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    at("make private", Path::new("/"), mount(none(), "/", none(), MsFlags::MS_REC | MsFlags::MS_PRIVATE, none()))?;
    let root = dir.join("root");
    at("make", &root, fs::create_dir_all(&root))?;
    match &spec.image {
        Image::Toolbox { weft } => toolbox(&root, weft)?,
        Image::Directory(source) => directory(dir, &root, source)?,
    }
    etc(&root, spec)?;
    system(&root)?;
    for extra in &spec.mounts {
        bind_extra(&root, extra)?;
    }
    at("change the root to", &root, pivot_root(&root, &root))?;
    // The old root lies on top of the new one now; without it nothing of the machine is left in sight.
    umount2("/", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

fn none() -> Option<&'static str> {
    None
}

fn tmpfs(place: &Path, options: &str) -> io::Result<()> {
    at("make", place, fs::create_dir_all(place))?;
    at("mount tmpfs on", place, mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::MS_NOSUID, Some(options)))
}

fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    if source.is_dir() {
        at("make", target, fs::create_dir_all(target))?;
    } else if !target.exists() {
        at("make", target, fs::write(target, b""))?;
    }
    at("bind", source, mount(Some(source), target, none(), MsFlags::MS_BIND | MsFlags::MS_REC, none()))?;
    if read_only {
        // With what is mounted below it: a disk under /usr is as much the machine's as /usr itself.
        at("make read-only", target, weft_sys::mount::make_read_only(target))?;
    }
    Ok(())
}

fn toolbox(root: &Path, weft: &Path) -> io::Result<()> {
    tmpfs(root, "mode=0755,size=256m")?;
    for name in MACHINE_DIRS {
        let (source, target) = (Path::new("/").join(name), root.join(name));
        if let Ok(link) = fs::read_link(&source) {
            at("link", &target, symlink(link, &target))?;
        } else if source.is_dir() {
            bind(&source, &target, true)?;
        }
    }
    for name in ["root", "run", "home", "srv", "var/tmp", "var/log", "etc", "mnt"] {
        at("make", root, fs::create_dir_all(root.join(name)))?;
    }
    for name in MACHINE_ETC {
        let source = Path::new("/etc").join(name);
        if source.exists() {
            bind(&source, &root.join("etc").join(name), true)?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    bind(weft, &root.join("weft"), true)
}

/// The directory below, what the container writes above; without overlayfs the directory cannot be written.
fn directory(dir: &Path, root: &Path, source: &Path) -> io::Result<()> {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    at("make", &upper, fs::create_dir_all(&upper))?;
    at("make", &work, fs::create_dir_all(&work))?;
    let options = format!("lowerdir={},upperdir={},workdir={}", source.display(), upper.display(), work.display());
    let mounted = mount(Some("overlay"), root, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    if mounted.is_err() {
        bind(source, root, true)?;
    }
    Ok(())
}

fn etc(root: &Path, spec: &ContainerSpec) -> io::Result<()> {
    let dir = root.join("etc");
    // An image without /etc on a read-only root goes without these files.
    let _ = fs::create_dir_all(&dir);
    let files = [
        ("resolv.conf", spec.resolv_conf.clone()),
        ("hosts", spec.hosts.clone()),
        ("hostname", spec.hostname.clone() + "\n"),
    ];
    for (name, text) in files {
        let place = dir.join(name);
        if place.is_symlink() {
            let _ = fs::remove_file(&place);
        }
        let written = fs::write(&place, text);
        if matches!(spec.image, Image::Toolbox { .. }) {
            at("write", &place, written)?;
        }
    }
    Ok(())
}

fn system(root: &Path) -> io::Result<()> {
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let place = root.join("proc");
    let _ = fs::create_dir_all(&place);
    at("mount proc on", &place, mount(Some("proc"), &place, Some("proc"), hardened, none()))?;
    let place = root.join("sys");
    let _ = fs::create_dir_all(&place);
    at("mount sysfs on", &place, mount(Some("sysfs"), &place, Some("sysfs"), hardened | MsFlags::MS_RDONLY, none()))?;
    let dev = root.join("dev");
    tmpfs(&dev, "mode=0755,size=64k")?;
    for name in DEVICES {
        bind(&Path::new("/dev").join(name), &dev.join(name), false)?;
    }
    tmpfs(&dev.join("shm"), "mode=1777,size=64m")?;
    let pts = dev.join("pts");
    fs::create_dir_all(&pts)?;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    at("mount devpts on", &pts, mount(Some("devpts"), &pts, Some("devpts"), MsFlags::MS_NOSUID, options))?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        at("link", &dev, symlink(target, dev.join(name)))?;
    }
    let tmp = root.join("tmp");
    let _ = fs::create_dir_all(&tmp);
    let _ = fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777));
    Ok(())
}

fn bind_extra(root: &Path, extra: &Mount) -> io::Result<()> {
    let inside: PathBuf = extra.target.components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect();
    let target = root.join(inside);
    if let Some(parent) = target.parent() {
        at("make", parent, fs::create_dir_all(parent))?;
    }
    bind(&extra.source, &target, extra.read_only)
}
