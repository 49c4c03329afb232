//! Where the kernel keeps whether a packet's checksum is still to be made. A program that changes addresses must know it
//! to change the checksum by itself, and asks a helper otherwise. The place differs between kernels, so the loader
//! writes it into the programs.

use crate::sys::btf::{Btf, VMLINUX};
use aya_obj::generated::bpf_insn;
use weft_abi::CHECKSUM_MARK;

const MOVE: u8 = 0xb7;
const CALL: u8 = 0x85;
const LOAD_BYTE: u8 = 0x71;
const SHIFT_RIGHT: u8 = 0x77;
/// The source register of a call of a kernel's function.
const KERNEL_FUNCTION: u8 = 2;

/// Where this kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// Number of the function that makes the kernel's own packet of a program's context; the verifier makes a move of
    /// its call.
    function: i32,
    /// Byte of the packet's structure, and the lowest bit in it.
    byte: i16,
    bit: i32,
}

impl Place {
    /// `None`: this kernel does not say; the programs ask the helper then.
    pub(super) fn find() -> Option<Self> {
        Self::of(&Btf::parse(&std::fs::read(VMLINUX).ok()?)?)
    }

    fn of(btf: &Btf<'_>) -> Option<Self> {
        let field = btf.bit_field("sk_buff", "ip_summed")?;
        let (byte, bit) = (field.bit / 8, field.bit % 8);
        // The program takes two bits of one byte.
        if field.size != 2 || bit > 6 || cfg!(target_endian = "big") {
            return None;
        }
        Some(Self {
            function: i32::try_from(btf.function("bpf_cast_to_kern_ctx")?).ok()?,
            byte: i16::try_from(byte).ok()?,
            bit: i32::try_from(bit).ok()?,
        })
    }

    /// Makes the look of what stands in its place.
    pub(super) fn fill_in(self, instructions: &mut [bpf_insn]) {
        let mut at = 0;
        while let Some([mark, load, shift, ..]) = instructions.get_mut(at..) {
            at += 1;
            if mark.code != MOVE || mark.imm != CHECKSUM_MARK || load.code != MOVE || shift.code != SHIFT_RIGHT {
                continue;
            }
            mark.code = CALL;
            mark.set_dst_reg(0);
            mark.set_src_reg(KERNEL_FUNCTION);
            mark.imm = self.function;
            load.code = LOAD_BYTE;
            load.set_src_reg(0);
            load.off = self.byte;
            load.imm = 0;
            shift.imm = self.bit;
        }
    }
}
