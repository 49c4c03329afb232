//! Where the kernel keeps whether a packet's checksum is still to be made. A program that changes addresses must know it
//! to change the checksum by itself, and leaves that to a helper otherwise. The place differs between kernels, so the loader
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

    #[cfg(test)]
    pub(super) fn with_function(self, function: i32) -> Self {
        Self { function, ..self }
    }

    /// Makes the look of what stands in its place; returns in how many places.
    pub(super) fn fill_in(self, instructions: &mut [bpf_insn]) -> usize {
        let (mut at, mut count) = (0, 0);
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
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, imm: i32) -> bpf_insn {
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: Default::default(), off: 0, imm }
    }

    #[test]
    fn the_place_is_written_where_the_mark_is_and_nowhere_else() {
        let place = Place { function: 77, byte: 128, bit: 5 };
        let look = [(MOVE, CHECKSUM_MARK), (MOVE, 0), (SHIFT_RIGHT, 0), (0x57, 3)];
        let other = [(MOVE, CHECKSUM_MARK), (0x57, 3), (MOVE, 1)];
        let mut code: Vec<_> = look.iter().chain(&other).chain(&look).map(|(c, imm)| instruction(*c, *imm)).collect();
        assert_eq!(place.fill_in(&mut code), 2);
        for at in [0, 7] {
            assert_eq!((code[at].code, code[at].src_reg(), code[at].imm), (CALL, KERNEL_FUNCTION, 77));
            assert_eq!((code[at + 1].code, code[at + 1].off, code[at + 1].imm), (LOAD_BYTE, 128, 0));
            assert_eq!((code[at + 2].code, code[at + 2].imm), (SHIFT_RIGHT, 5));
        }
        assert_eq!((code[4].code, code[4].imm), (MOVE, CHECKSUM_MARK));
        assert_eq!(place.fill_in(&mut code), 0);
    }

    #[test]
    fn this_kernel_and_the_programs_have_one() {
        let place = Place::find().expect("this kernel says where");
        let mut object = aya_obj::Object::parse(crate::open::OBJECT).expect("programs");
        let filled: usize =
            object.functions.values_mut().map(|function| place.fill_in(&mut function.instructions)).sum();
        assert!(filled >= 2, "{filled}: of source and destination");
    }
}
