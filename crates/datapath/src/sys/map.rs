//! Maps by their descriptor: creation, single elements, batches, shared memory.

use super::{attr, bpf, owned, raw};
use aya::Pod;
use aya_obj::generated::bpf_cmd;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

/// How an element is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// Whether it is there or not.
    Any = 0,
    /// Only if it is not there.
    New = 1,
    /// Only if it is there.
    Replace = 2,
}

/// The shape of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that fit (bytes of a ring buffer).
    pub entries_max: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// Creates a map.
pub fn create(name: &str, layout: &Layout) -> io::Result<OwnedFd> {
    let mut attr = attr();
    // SAFETY: writing plain integers into the union's first member.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = layout.kind;
    create.key_size = layout.key_size;
    create.value_size = layout.value_size;
    create.max_entries = layout.entries_max;
    create.map_flags = layout.flags;
    for (to, from) in create.map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: no pointers.
    owned(unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) }?)
}

/// Reads an element; `None` if it is not there.
///
/// The map's key and value sizes must be those of `K` and `V` ([`crate::map::TypedMap`] checks that once).
pub fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    // SAFETY: key and value have the map's sizes.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        // SAFETY: the kernel wrote the whole value, and `Pod` takes any bits.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes an element.
pub fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, write: Write) -> io::Result<()> {
    let mut attr = attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    attr.__bindgen_anon_2.flags = write as u64;
    // SAFETY: key and value have the map's sizes.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Removes an element; `false` if it was not there.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    // SAFETY: the key has the map's size.
    match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the section of constants or variables its content.
pub fn fill_section(map: BorrowedFd<'_>, data: &[u8]) -> io::Result<()> {
    RawMap::new(map, size_of::<u32>(), data.len()).put(&0_u32.to_ne_bytes(), data, Write::Any)
}

/// Makes a map constant.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr) }.map(drop)
}

/// A map of bytes. Keys and values are checked for their length at each call.
#[derive(Clone, Copy, Debug)]
pub struct RawMap<'a> {
    fd: BorrowedFd<'a>,
    key_bytes: usize,
    value_bytes: usize,
}

impl<'a> RawMap<'a> {
    /// `value_bytes` of a per-CPU map: for all possible CPUs together.
    pub fn new(fd: BorrowedFd<'a>, key_bytes: usize, value_bytes: usize) -> Self {
        Self { fd, key_bytes, value_bytes }
    }

    /// Reads an element.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_bytes];
        let result = self.call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, Some(key), value.as_mut_ptr() as u64, Write::Any);
        Ok(found(result)?.then_some(value))
    }

    /// Writes an element.
    pub fn put(&self, key: &[u8], value: &[u8], write: Write) -> io::Result<()> {
        if value.len() != self.value_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "length of a map's value"));
        }
        self.call(bpf_cmd::BPF_MAP_UPDATE_ELEM, Some(key), value.as_ptr() as u64, write)
    }

    /// The key after `key` (`None`: the first), `None` at the end.
    pub fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_bytes];
        let result = self.call(bpf_cmd::BPF_MAP_GET_NEXT_KEY, key, next.as_mut_ptr() as u64, Write::Any);
        Ok(found(result)?.then_some(next))
    }

    fn call(&self, cmd: bpf_cmd, key: Option<&[u8]>, value: u64, write: Write) -> io::Result<()> {
        if key.is_some_and(|key| key.len() != self.key_bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "length of a map's key"));
        }
        let mut attr = attr();
        attr.__bindgen_anon_2.map_fd = raw(self.fd);
        attr.__bindgen_anon_2.key = key.map_or(0, |key| key.as_ptr() as u64);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value;
        attr.__bindgen_anon_2.flags = write as u64;
        // SAFETY: the key has the map's length, and the callers give a value (or room for a key) of the map's length.
        unsafe { bpf(cmd, &mut attr) }.map(drop)
    }
}

fn found(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes many elements with few calls. On an error the number of those that were written is returned with it.
pub fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    while done < keys.len().min(values.len()) {
        let left = keys.len().min(values.len()) - done;
        let mut attr = attr();
        attr.batch.map_fd = raw(map);
        attr.batch.keys = keys[done..].as_ptr() as u64;
        attr.batch.values = values[done..].as_ptr() as u64;
        attr.batch.count = u32::try_from(left).unwrap_or(u32::MAX);
        // SAFETY: `count` keys and values of the map's sizes lie behind the pointers.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) };
        // SAFETY: the kernel wrote how many it took.
        let taken = unsafe { attr.batch.count } as usize;
        match result {
            Ok(_) => done += taken.min(left),
            Err(error) => return Err((done + taken.min(left), error)),
        }
        if taken == 0 {
            return Err((done, io::Error::other("the kernel took nothing of a batch")));
        }
    }
    Ok(())
}

/// Removes many elements with few calls; absent ones are skipped. Returns how many were present; on an
/// error, that number is returned with it.
pub fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<usize, (usize, io::Error)> {
    let (mut at, mut removed) = (0, 0);
    while at < keys.len() {
        let left = keys.len() - at;
        let mut attr = attr();
        attr.batch.map_fd = raw(map);
        attr.batch.keys = keys[at..].as_ptr() as u64;
        attr.batch.count = u32::try_from(left).unwrap_or(u32::MAX);
        // SAFETY: `count` keys of the map's size lie behind the pointer.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_BATCH, &mut attr) };
        // SAFETY: the kernel wrote how many it took.
        let taken = (unsafe { attr.batch.count } as usize).min(left);
        (at, removed) = (at + taken, removed + taken);
        match result {
            Ok(_) if taken > 0 => {}
            Ok(_) => return Err((removed, io::Error::other("the kernel took nothing of a batch"))),
            // The one that it stopped at is not there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => at += 1,
            Err(error) => return Err((removed, error)),
        }
    }
    Ok(removed)
}

/// All elements of a hash, a prefix trie or an array, as far as they stay while they are read.
pub fn dump<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    for_each_batch::<K, V>(map, |key, value| {
        all.push((*key, *value));
        true
    })?;
    Ok(all)
}

/// Calls `each` for every element until it returns `false`.
///
/// Elements that come or go meanwhile may be seen or not; all others are seen once.
pub fn for_each_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(&K, &V) -> bool) -> io::Result<()> {
    /// A cursor is a bucket's number or, in tries and arrays, a key; none of ours is longer.
    const CURSOR: usize = 64;
    const FIRST: usize = 1024;
    const MOST: usize = 1 << 20;
    assert!(size_of::<K>() <= CURSOR, "a cursor must hold a key");
    let mut room = FIRST;
    let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
    let (mut cursor, mut next) = ([0_u8; CURSOR], [0_u8; CURSOR]);
    let mut started = false;
    loop {
        let mut attr = attr();
        attr.batch.map_fd = raw(map);
        attr.batch.in_batch = if started { cursor.as_ptr() as u64 } else { 0 };
        attr.batch.out_batch = next.as_mut_ptr() as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = u32::try_from(room).map_err(io::Error::other)?;
        // SAFETY: there is room for `count` keys and values of the map's sizes, and the cursors hold any key.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
        // SAFETY: the kernel wrote how many it gave.
        let given = (unsafe { attr.batch.count } as usize).min(room);
        let last = match result {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // A bucket holds more than there was room for. Nothing was given and the cursor stands.
                Some(libc::ENOSPC) if room < MOST => {
                    room *= 4;
                    (keys, values) = (Vec::with_capacity(room), Vec::with_capacity(room));
                    continue;
                }
                Some(libc::EINTR) => continue,
                _ => return Err(error),
            },
        };
        // SAFETY: the kernel initialised `given` elements of both, which is at most their capacity.
        unsafe {
            keys.set_len(given);
            values.set_len(given);
        }
        for (key, value) in keys.iter().zip(&values) {
            if !each(key, value) {
                return Ok(());
            }
        }
        keys.clear();
        values.clear();
        if last {
            return Ok(());
        }
        std::mem::swap(&mut cursor, &mut next);
        started = true;
    }
}

/// The memory of an array with `BPF_F_MMAPABLE`, as words that program and user space share.
pub struct SharedWords {
    start: NonNull<AtomicU32>,
    words: usize,
    bytes: usize,
}

// SAFETY: the memory is a shared mapping that is touched only through atomics, and it is unmapped by its owner.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `words` words of the array.
    pub fn map(map: &OwnedFd, words: usize) -> io::Result<Self> {
        let page = 4096_usize.max(usize::try_from(page_size()).map_err(io::Error::other)?);
        let bytes = (words * size_of::<AtomicU32>()).next_multiple_of(page);
        // SAFETY: a new shared mapping at an address of the kernel's choice; it does not touch existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<AtomicU32>()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, words, bytes })
    }
}

impl std::ops::Deref for SharedWords {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is page-aligned, at least `words` words long, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `map` made; no reference outlives `self`.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.bytes);
        }
    }
}

fn page_size() -> i64 {
    // SAFETY: has no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
}
