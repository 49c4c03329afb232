//! Programs: loading, running them on demand.

use super::{attr, bpf, owned, raw};
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_prog_type};
use aya_obj::{Function, ProgramSection};
use std::ffi::CStr;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Size of the verifier's log, and how much of its end goes into the error.
const LOG_BYTES: usize = 4 << 20;
const LOG_LINES: usize = 40;

/// Loads type information.
pub fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = attr();
    attr.__bindgen_anon_7.btf = bytes.as_ptr() as u64;
    attr.__bindgen_anon_7.btf_size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: `btf_size` bytes lie behind the pointer.
    owned(unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr) }?)
}

/// What a program is for, as the kernel sorts them.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    program: bpf_prog_type,
    attach: Option<bpf_attach_type>,
}

impl Kind {
    /// By the ELF section that a program is in; `None`: of no kind that we use.
    #[must_use]
    pub fn of(section: &ProgramSection) -> Option<Self> {
        let (program, attach) = match section {
            ProgramSection::SchedClassifier => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None),
            ProgramSection::Xdp { .. } => (bpf_prog_type::BPF_PROG_TYPE_XDP, Some(bpf_attach_type::BPF_XDP)),
            ProgramSection::CgroupSockAddr { attach_type } => {
                (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, Some((*attach_type).into()))
            }
            ProgramSection::CgroupSock { attach_type } => {
                (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK, Some((*attach_type).into()))
            }
            _ => return None,
        };
        Some(Self { program, attach })
    }
}

/// Loads a program. On failure the error is the kernel's, with the end of the verifier's log.
pub fn load(
    name: &str,
    kind: Kind,
    license: &CStr,
    function: &Function,
    btf: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, String> {
    let error = match load_once(name, kind, license, function, btf, &mut []) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut log = vec![0; LOG_BYTES];
    match load_once(name, kind, license, function, btf, &mut log) {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(&log[..end]);
            let lines: Vec<&str> = text.lines().collect();
            Err(format!("{error}\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")))
        }
    }
}

fn load_once(
    name: &str,
    kind: Kind,
    license: &CStr,
    function: &Function,
    btf: Option<BorrowedFd<'_>>,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    let count = |n: usize| u32::try_from(n).map_err(io::Error::other);
    let mut attr = attr();
    // SAFETY: writing plain integers into one of the union's members.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = kind.program as u32;
    load.expected_attach_type = kind.attach.map_or(0, |attach| attach as u32);
    load.insns = function.instructions.as_ptr() as u64;
    load.insn_cnt = count(function.instructions.len())?;
    load.license = license.as_ptr() as u64;
    for (to, from) in load.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    if let Some(btf) = btf {
        load.prog_btf_fd = raw(btf);
        if function.line_info_rec_size > 0 {
            load.line_info = lines.as_ptr() as u64;
            load.line_info_cnt = count(function.line_info.len())?;
            load.line_info_rec_size = count(function.line_info_rec_size)?;
        }
        if function.func_info_rec_size > 0 {
            load.func_info = functions.as_ptr() as u64;
            load.func_info_cnt = count(function.func_info.len())?;
            load.func_info_rec_size = count(function.func_info_rec_size)?;
        }
    }
    if !log.is_empty() {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = count(log.len())?;
    }
    // SAFETY: every pointer is to a buffer of the given count that outlives the call.
    owned(unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) }?)
}

/// Runs a tc program once over an empty packet whose mark is `mark`; returns the program's return value.
pub fn test_run(program: BorrowedFd<'_>, mark: u32) -> io::Result<u32> {
    /// `struct __sk_buff`, of which only `mark` (the third word) is given.
    const CONTEXT_WORDS: usize = 48;
    let mut context = [0_u32; CONTEXT_WORDS];
    context[2] = mark;
    let packet = [0_u8; 64];
    let mut attr = attr();
    attr.test.prog_fd = raw(program);
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_size_in = 64;
    attr.test.ctx_in = context.as_ptr() as u64;
    attr.test.ctx_size_in = u32::try_from(size_of_val(&context)).map_err(io::Error::other)?;
    attr.test.repeat = 1;
    // SAFETY: the input pointers are valid for the given sizes; no output was asked for.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    // SAFETY: the kernel wrote `retval`.
    Ok(unsafe { attr.test.retval })
}
