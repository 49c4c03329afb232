//! Where the kernel's `sk_buff` has `ip_summed` and `csum_start`. A program that rewrites addresses reads them to update a
//! partial checksum by itself, and calls a helper otherwise. The offsets differ between kernels, so the loader reads them
//! in the kernel's BTF and writes them into the programs.

use crate::sys::btf::{Btf, VMLINUX};
use aya_obj::generated::bpf_insn;
use weft_abi::{CHECKSUM_MARK, CHECKSUM_START_MARK};

const MOVE: u8 = 0xb7;
const CALL: u8 = 0x85;
const LOAD_BYTE: u8 = 0x71;
const LOAD_SHORT: u8 = 0x69;
const LOAD_LONG: u8 = 0x79;
const SHIFT_RIGHT: u8 = 0x77;
/// The source register of a call of a kernel's function.
const KERNEL_FUNCTION: u8 = 2;

/// Where this kernel has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// Number of the function that makes the kernel's own packet of a program's context; the verifier makes a move of
    /// its call.
    function: i32,
    /// Byte of the packet's structure that has it, and the lowest bit in it.
    byte: i16,
    bit: i32,
    /// Of the same structure: where its memory begins, where from there the checksum does, and where the packet begins.
    head: i16,
    start: i16,
    data: i16,
}

impl Place {
    /// `None`: this kernel does not say; the programs ask the helper then.
    pub(super) fn find() -> Option<Self> {
        Self::of(&Btf::parse(&std::fs::read(VMLINUX).ok()?)?)
    }

    fn of(btf: &Btf<'_>) -> Option<Self> {
        let field = btf.field("sk_buff", "ip_summed")?;
        let (byte, bit) = (field.bit / 8, field.bit % 8);
        let whole = |name: &str, size: u32| {
            let field = btf.field("sk_buff", name)?;
            (field.size == size && field.bit % 8 == 0).then(|| i16::try_from(field.bit / 8).ok())?
        };
        // The program takes two bits of one byte.
        if field.size != 2 || bit > 6 || cfg!(target_endian = "big") {
            return None;
        }
        Some(Self {
            function: i32::try_from(btf.function("bpf_cast_to_kern_ctx")?).ok()?,
            byte: i16::try_from(byte).ok()?,
            bit: i32::try_from(bit).ok()?,
            head: whole("head", 64)?,
            start: whole("csum_start", 16)?,
            data: whole("data", 64)?,
        })
    }

    #[cfg(test)]
    pub(super) fn with_function(self, function: i32) -> Self {
        Self { function, ..self }
    }

    /// Makes the looks of what stands in their places; returns how many of each.
    pub(super) fn fill_in(self, instructions: &mut [bpf_insn]) -> [usize; 2] {
        let (mut at, mut owed, mut starts) = (0, 0, 0);
        while let Some(look) = instructions.get_mut(at..).and_then(<[_]>::first_chunk_mut::<4>) {
            at += 1;
            let [mark, first, second, third] = look;
            // Nothing stands in the place of what is looked for.
            let codes = [&*first, second, third].map(|after| (after.code, after.imm));
            match (mark.code, mark.imm, codes) {
                (MOVE, CHECKSUM_MARK, [(MOVE, 0), (SHIFT_RIGHT, 0), _]) => {
                    load(first, LOAD_BYTE, self.byte);
                    second.imm = self.bit;
                    owed += 1;
                }
                (MOVE, CHECKSUM_START_MARK, [(MOVE, 0), (MOVE, 0), (MOVE, 0)]) => {
                    load(first, LOAD_LONG, self.head);
                    load(second, LOAD_SHORT, self.start);
                    load(third, LOAD_LONG, self.data);
                    starts += 1;
                }
                _ => continue,
            }
            mark.code = CALL;
            mark.set_dst_reg(0);
            mark.set_src_reg(KERNEL_FUNCTION);
            mark.imm = self.function;
        }
        [owed, starts]
    }
}

/// Makes a load from the kernel's packet, which the call left in the register of results, of a move of nothing.
fn load(instruction: &mut bpf_insn, code: u8, offset: i16) {
    instruction.code = code;
    instruction.set_src_reg(0);
    instruction.off = offset;
    instruction.imm = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, imm: i32) -> bpf_insn {
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: Default::default(), off: 0, imm }
    }

    #[test]
    fn the_places_are_written_where_the_marks_are_and_nowhere_else() {
        let place = Place { function: 77, byte: 128, bit: 5, head: 200, start: 150, data: 208 };
        let owed = [(MOVE, CHECKSUM_MARK), (MOVE, 0), (SHIFT_RIGHT, 0), (0x57, 3)];
        let start = [(MOVE, CHECKSUM_START_MARK), (MOVE, 0), (MOVE, 0), (MOVE, 0)];
        let others = [(MOVE, CHECKSUM_MARK), (0x57, 3), (MOVE, CHECKSUM_START_MARK), (MOVE, 1)];
        let code = owed.iter().chain(&others).chain(&start).chain(&owed);
        let mut code: Vec<_> = code.map(|(c, imm)| instruction(*c, *imm)).collect();
        assert_eq!(place.fill_in(&mut code), [2, 1]);
        for at in [0, 8, 12] {
            assert_eq!((code[at].code, code[at].src_reg(), code[at].imm), (CALL, KERNEL_FUNCTION, 77));
        }
        for at in [0, 12] {
            assert_eq!((code[at + 1].code, code[at + 1].off, code[at + 1].imm), (LOAD_BYTE, 128, 0));
            assert_eq!((code[at + 2].code, code[at + 2].imm), (SHIFT_RIGHT, 5));
        }
        let loads: Vec<_> = code[9..12].iter().map(|load| (load.code, load.off)).collect();
        assert_eq!(loads, [(LOAD_LONG, 200), (LOAD_SHORT, 150), (LOAD_LONG, 208)]);
        for (at, (code_of, imm)) in (4..).zip(others) {
            assert_eq!((code[at].code, code[at].imm), (code_of, imm));
        }
        assert_eq!(place.fill_in(&mut code), [0, 0]);
    }

    #[test]
    fn this_kernel_and_the_programs_have_them() {
        let place = Place::find().expect("this kernel says where");
        let mut object = aya_obj::Object::parse(super::super::object::OBJECT).expect("programs");
        let filled = object.functions.values_mut().map(|function| place.fill_in(&mut function.instructions));
        let [owed, starts] = filled.fold([0, 0], |sum, filled| [sum[0] + filled[0], sum[1] + filled[1]]);
        assert!(owed >= 2 && starts == owed, "{owed} and {starts}: of source and destination");
    }
}
