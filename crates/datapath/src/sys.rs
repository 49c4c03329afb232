//! The bpf(2) system call, as far as aya does not offer it: objects by path, batches, links by device index, test
//! runs. Nothing here knows what the maps mean.

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_map_info};
use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub mod btf;
pub mod map;
pub mod program;

/// Calls bpf(2). Returns what the kernel returned.
///
/// # Safety
/// Every pointer in `attr` that `cmd` reads or writes must be valid for the length that the kernel takes it to have.
unsafe fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a whole, exclusively borrowed `bpf_attr`; the caller vouches for the pointers in it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_long, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An attribute block of zeros.
fn attr() -> bpf_attr {
    // SAFETY: a union of plain integers: zero is a valid value of every member.
    unsafe { zeroed() }
}

/// Takes a descriptor that the kernel has just returned.
fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel returned this descriptor to us a moment ago, nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor's number as the kernel wants it in attributes.
#[expect(clippy::cast_sign_loss, reason = "an open descriptor is never negative")]
fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens a pinned object.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: `pathname` is a NUL-terminated string that outlives the call.
    owned(unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?)
}

/// Pins an object.
pub fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(fd);
    // SAFETY: `pathname` is a NUL-terminated string that outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Fills `info` about the object behind `fd`.
///
/// # Safety
/// `T` is the info structure of that kind of object, and any bit pattern of it is valid.
unsafe fn object_info<T>(fd: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: the caller vouches that zeros are a valid `T`.
    let mut info: T = unsafe { zeroed() };
    let mut attr = attr();
    attr.info.bpf_fd = raw(fd);
    attr.info.info = (&raw mut info) as u64;
    attr.info.info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `info` is writable for `info_len` bytes.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Information on a map; an error if `fd` is no map.
pub fn map_info(fd: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    require_kind(fd, "bpf-map")?;
    // SAFETY: `fd` is a map, so the kernel writes a `bpf_map_info`, which consists of integers.
    unsafe { object_info(fd) }
}

/// Refuses what is no program.
pub fn require_program(fd: BorrowedFd<'_>) -> io::Result<()> {
    require_kind(fd, "bpf-prog")
}

/// What a device's link is attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcxLink {
    /// The device, 0: it is gone.
    pub ifindex: u32,
    /// The program.
    pub program: u32,
}

/// Information on a tcx link; `None` if it is a link of another kind.
pub fn tcx_info(fd: BorrowedFd<'_>) -> io::Result<Option<TcxLink>> {
    require_kind(fd, "bpf-link")?;
    // SAFETY: `fd` is a link, so the kernel writes a `bpf_link_info`, which consists of integers.
    let info: bpf_link_info = unsafe { object_info(fd) }?;
    if info.type_ != aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        return Ok(None);
    }
    // SAFETY: the type says that the kernel filled the `tcx` member.
    let ifindex = unsafe { info.__bindgen_anon_1.tcx.ifindex };
    Ok(Some(TcxLink { ifindex, program: info.prog_id }))
}

/// Information on an XDP link; `None` if it is a link of another kind.
pub fn xdp_info(fd: BorrowedFd<'_>) -> io::Result<Option<TcxLink>> {
    require_kind(fd, "bpf-link")?;
    // SAFETY: `fd` is a link, so the kernel writes a `bpf_link_info`, which consists of integers.
    let info: bpf_link_info = unsafe { object_info(fd) }?;
    if info.type_ != aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        return Ok(None);
    }
    // SAFETY: the type says that the kernel filled the `xdp` member.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(Some(TcxLink { ifindex, program: info.prog_id }))
}

/// What a control group's link is attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CgroupLink {
    /// Number of the group, the inode of its directory; 0: it is gone.
    pub cgroup: u64,
    /// The program.
    pub program: u32,
}

/// Information on a control group's link; `None` if it is a link of another kind.
pub fn cgroup_info(fd: BorrowedFd<'_>) -> io::Result<Option<CgroupLink>> {
    require_kind(fd, "bpf-link")?;
    // SAFETY: `fd` is a link, so the kernel writes a `bpf_link_info`, which consists of integers.
    let info: bpf_link_info = unsafe { object_info(fd) }?;
    if info.type_ != aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        return Ok(None);
    }
    // SAFETY: the type says that the kernel filled the `cgroup` member.
    let cgroup = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
    Ok(Some(CgroupLink { cgroup, program: info.prog_id }))
}

/// Attaches a program to a control group (of version 2) and all below it, beside those that are there.
pub fn cgroup_attach(program: BorrowedFd<'_>, group: BorrowedFd<'_>, kind: bpf_attach_type) -> io::Result<OwnedFd> {
    let mut attr = attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_fd = raw(group);
    attr.link_create.attach_type = kind as u32;
    // SAFETY: no pointers.
    owned(unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?)
}

/// The kernel's info request works on any object, so the kind is checked first.
fn require_kind(fd: BorrowedFd<'_>, kind: &str) -> io::Result<()> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    // Kernels differ in how they spell it.
    if target.to_string_lossy().replace('_', "-").contains(kind) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("expected a {kind}, found {}", target.display())))
}

/// Direction of a tcx hook.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    /// Packets that the device received.
    Ingress,
    /// Packets that leave through the device.
    Egress,
}

/// Attaches a program to a device of the calling thread's network namespace, behind those that are there.
pub fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32, side: Side) -> io::Result<OwnedFd> {
    use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};
    let kind = match side {
        Side::Ingress => BPF_TCX_INGRESS,
        Side::Egress => BPF_TCX_EGRESS,
    };
    let mut attr = attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = kind as u32;
    // SAFETY: no pointers.
    owned(unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?)
}

/// Attaches a program to the driver of a device of the calling thread's network namespace, which has none yet.
pub fn xdp_attach(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    /// `XDP_FLAGS_DRV_MODE`.
    const NATIVE: u32 = 1 << 2;
    let mut attr = attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attr.link_create.flags = NATIVE;
    // SAFETY: no pointers.
    owned(unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?)
}

/// Replaces the program of a link atomically: every packet meets the old one or the new one.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attr();
    attr.link_update.link_fd = raw(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link's program from its device, however many hold the link.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attr();
    attr.link_detach.link_fd = raw(link);
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// CPUs that the machine may ever have: per-CPU maps hold one value for each.
pub fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "list of possible CPUs"))
}

/// Gives memory that is free in the allocator back to the system.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
