//! The running kernel's description of its own types (BTF), as far as the programs need it: numbers of functions, and
//! where a structure has a field. aya's reader keeps tens of MiB for it; this one walks over it once.

/// What the kernel shows of itself.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// How deep unnamed structures may lie in each other.
const DEPTH: u8 = 8;

const INT: u32 = 1;
const POINTER: u32 = 2;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const FUNC: u32 = 12;

/// Types of a kernel.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; the first one has number 1.
    offsets: Vec<u32>,
}

/// A type, or a member of one.
struct Record<'a> {
    name: &'a [u8],
    kind: u32,
    count: u32,
    /// Bytes, or the number of the type that this one is made of.
    size_or_type: u32,
    /// Members have the size of bit fields beside their place.
    has_sizes: bool,
    members: &'a [u8],
}

/// Where a number, a bit field or a pointer lies in its structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// From the structure's start.
    pub bit: u32,
    /// Bits.
    pub size: u32,
}

impl<'a> Btf<'a> {
    /// `None`: not BTF of this machine's byte order, or with types that were not invented yet.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = usize::try_from(word(bytes, 4)?).ok()?;
        let body = bytes.get(header..)?;
        let part = |at: usize| -> Option<&'a [u8]> {
            let (from, length) = (usize::try_from(word(bytes, at)?).ok()?, usize::try_from(word(bytes, at + 4)?).ok()?);
            body.get(from..from.checked_add(length)?)
        };
        let (types, strings) = (part(8)?, part(16)?);
        let mut offsets = Vec::new();
        let mut at = 0;
        while at < types.len() {
            offsets.push(u32::try_from(at).ok()?);
            let info = word(types, at + 4)?;
            at = at.checked_add(12 + extra(kind(info), info & 0xffff)?)?;
        }
        (at == types.len()).then_some(Self { types, strings, offsets })
    }

    fn record(&self, number: u32) -> Option<Record<'a>> {
        let at = usize::try_from(*self.offsets.get(usize::try_from(number.checked_sub(1)?).ok()?)?).ok()?;
        let info = word(self.types, at + 4)?;
        let (kind, count) = (kind(info), info & 0xffff);
        let members = self.types.get(at + 12..at + 12 + extra(kind, count)?)?;
        Some(Record {
            name: self.name(word(self.types, at)?)?,
            kind,
            count,
            size_or_type: word(self.types, at + 8)?,
            has_sizes: info >> 31 == 1,
            members,
        })
    }

    fn name(&self, offset: u32) -> Option<&'a [u8]> {
        let text = self.strings.get(usize::try_from(offset).ok()?..)?;
        text.split(|byte| *byte == 0).next()
    }

    fn find(&self, wanted: u32, name: &str) -> Option<u32> {
        let count = u32::try_from(self.offsets.len()).ok()?;
        (1..=count).find(|n| self.record(*n).is_some_and(|r| r.kind == wanted && r.name == name.as_bytes()))
    }

    /// The number of a function.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u32> {
        self.find(FUNC, name)
    }

    /// Where a structure has a field, be it in a structure or union without a name in it.
    #[must_use]
    pub fn field(&self, structure: &str, field: &str) -> Option<Field> {
        self.search(self.find(STRUCT, structure)?, field, 0, DEPTH)
    }

    fn search(&self, number: u32, field: &str, base: u32, depth: u8) -> Option<Field> {
        let record = self.record(number)?;
        if !matches!(record.kind, STRUCT | UNION) {
            return None;
        }
        (0..usize::try_from(record.count).ok()?).find_map(|n| {
            let (name, place) = (self.name(word(record.members, n * 12)?)?, word(record.members, n * 12 + 8)?);
            let (bit, size) = if record.has_sizes { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            let (bit, kind) = (base.checked_add(bit)?, word(record.members, n * 12 + 4)?);
            if name == field.as_bytes() {
                return Some(Field { bit, size: if size == 0 { self.size(kind, DEPTH)? } else { size } });
            }
            if !name.is_empty() || depth == 0 {
                return None;
            }
            self.search(kind, field, bit, depth - 1)
        })
    }

    /// Bits of a number or a pointer.
    fn size(&self, number: u32, depth: u8) -> Option<u32> {
        let record = self.record(number)?;
        match record.kind {
            INT => record.size_or_type.checked_mul(8),
            POINTER => Some(usize::BITS),
            TYPEDEF if depth > 0 => self.size(record.size_or_type, depth - 1),
            _ => None,
        }
    }
}

const fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Bytes behind the fixed part of a type.
fn extra(kind: u32, count: u32) -> Option<usize> {
    let count = usize::try_from(count).ok()?;
    Some(match kind {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        POINTER | 7..=12 | 16 | 18 => 0,
        // Integers, variables, declaration tags.
        INT | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Enumerations, prototypes.
        6 | 13 => count * 8,
        // Structures, unions, sections, wide enumerations.
        STRUCT | UNION | 15 | 19 => count * 12,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_understood() {
        let bytes = std::fs::read(VMLINUX).expect("a kernel with BTF");
        let btf = Btf::parse(&bytes).expect("readable");
        let number = btf.function("bpf_cast_to_kern_ctx").expect("of 6.2 and newer");
        let record = btf.record(number).expect("is there");
        assert_eq!((record.kind, record.name), (FUNC, b"bpf_cast_to_kern_ctx".as_slice()));
        for (field, size) in [("ip_summed", 2), ("csum_start", 16), ("len", 32), ("head", usize::BITS)] {
            assert_eq!(btf.field("sk_buff", field).map(|f| f.size), Some(size), "{field}");
        }
        assert_eq!(btf.field("sk_buff", "no_such_field"), None);
        assert_eq!(btf.field("sk_buff", "cb"), None, "an array");
        assert_eq!(btf.function("no_such_function"), None);
    }

    #[test]
    fn what_is_cut_off_or_wrong_is_refused() {
        let bytes = std::fs::read(VMLINUX).expect("a kernel with BTF");
        for length in [0, 1, 2, 8, 23, 24, 100, bytes.len() / 2, bytes.len() - 1] {
            assert!(Btf::parse(&bytes[..length]).is_none(), "{length}");
        }
        let mut swapped = bytes.clone();
        swapped.swap(0, 1);
        assert!(Btf::parse(&swapped).is_none());
        let mut strange = bytes;
        // The kind of the first type.
        strange[24 + 7] = 0x1f;
        assert!(Btf::parse(&strange).is_none());
    }
}
