//! Everything that loaded kernel programs keep: the contents of all their maps, read, and put back as they were when the
//! programs were loaded. So one loaded object serves many tests; to load and verify it takes longer than most of them.

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapInfo, MapType};
use aya::programs::Program;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

/// Commands of bpf(2).
const LOOKUP: libc::c_long = 1;
const UPDATE: libc::c_long = 2;
const DELETE: libc::c_long = 3;
const NEXT_KEY: libc::c_long = 4;

/// `union bpf_attr` as the commands on single elements take it.
#[repr(C)]
struct Element {
    fd: u32,
    pad: u32,
    key: u64,
    /// The value, or where the next key goes.
    other: u64,
    flags: u64,
}

/// Elements of a map, by their keys.
type Elements = BTreeMap<Vec<u8>, Vec<u8>>;

/// One map of the programs.
#[derive(Debug)]
struct AnyMap {
    name: String,
    fd: aya::maps::MapFd,
    kind: MapType,
    key: usize,
    /// Of a per-CPU map: of all CPUs together.
    value: usize,
    /// What it held when the programs were loaded.
    pristine: Elements,
}

/// All maps that the programs of an object use, and what they held when they were loaded.
#[derive(Debug)]
pub struct Contents(Vec<AnyMap>);

impl AnyMap {
    fn of(id: u32) -> Result<Self> {
        let info = MapInfo::from_id(id).with_context(|| format!("map {id}"))?;
        let name = info.name_as_str().unwrap_or_default().to_owned();
        let kind = info.map_type()?;
        let value = usize::try_from(info.value_size())?;
        let value = match kind {
            MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash => {
                value.next_multiple_of(8) * aya::util::nr_cpus().map_err(|(what, error)| error_of(what, error))?
            }
            _ => value,
        };
        let key = usize::try_from(info.key_size())?;
        let mut map = Self { name, fd: info.fd()?, kind, key, value, pristine: Elements::new() };
        map.pristine = map.read()?;
        Ok(map)
    }

    /// Calls bpf(2) about the element with this key.
    fn call(&self, command: libc::c_long, key: Option<&[u8]>, other: &mut [u8]) -> io::Result<()> {
        let expected = match command {
            NEXT_KEY => self.key,
            DELETE => 0,
            _ => self.value,
        };
        assert!(key.is_none_or(|key| key.len() == self.key) && other.len() == expected, "sizes of {}", self.name);
        let mut attr = Element {
            fd: self.fd.as_fd().as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            // The kernel wants nothing where a command takes no value.
            other: if other.is_empty() { 0 } else { other.as_mut_ptr() as u64 },
            flags: 0,
        };
        // SAFETY: `attr` is the kernel's layout for these commands; key and value have the map's sizes, checked above.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<Element>()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn keys(&self) -> Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0; self.key];
            match self.call(NEXT_KEY, keys.last().map(Vec::as_slice), &mut next) {
                Ok(()) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error).with_context(|| format!("keys of {}", self.name)),
            }
        }
    }

    /// All elements; a ring buffer has none.
    fn read(&self) -> Result<Elements> {
        let mut elements = Elements::new();
        match self.kind {
            MapType::RingBuf => return Ok(elements),
            MapType::Hash
            | MapType::LruHash
            | MapType::LpmTrie
            | MapType::Array
            | MapType::PerCpuArray
            | MapType::PerCpuHash
            | MapType::LruPerCpuHash => {}
            kind => bail!("map {} is of a kind that cannot be put back: {kind:?}", self.name),
        }
        for key in self.keys()? {
            let mut value = vec![0; self.value];
            self.call(LOOKUP, Some(&key), &mut value).with_context(|| format!("read {}", self.name))?;
            elements.insert(key, value);
        }
        Ok(elements)
    }

    /// Writes an element; `false` where the map is frozen: a constant, which nobody can change.
    fn write(&self, key: &[u8], value: &[u8]) -> Result<bool> {
        match self.call(UPDATE, Some(key), &mut value.to_vec()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && self.kind == MapType::Array => Ok(false),
            Err(error) => Err(error).with_context(|| format!("write {}", self.name)),
        }
    }

    fn put_back(&self) -> Result<()> {
        if matches!(self.kind, MapType::Array | MapType::PerCpuArray) {
            for (key, value) in &self.pristine {
                if !self.write(key, value)? {
                    break;
                }
            }
            return Ok(());
        }
        if self.kind == MapType::RingBuf {
            return Ok(());
        }
        for key in self.keys()? {
            match self.call(DELETE, Some(&key), &mut []) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error).with_context(|| format!("empty {}", self.name)),
            }
        }
        Ok(())
    }
}

fn error_of(what: &str, error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(what.to_owned())
}

/// Keys and values of a map.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

impl Contents {
    /// Of freshly loaded programs: the kernel says which maps they use, so none is forgotten.
    ///
    /// # Errors
    /// If the kernel does not tell, or a map is of a kind that cannot be put back, or one that should be empty is not.
    pub fn of(ebpf: &aya::Ebpf) -> Result<Self> {
        let mut ids = Vec::new();
        for (name, program) in ebpf.programs() {
            let info = match program {
                Program::SchedClassifier(program) => program.info(),
                Program::Xdp(program) => program.info(),
                _ => continue,
            };
            ids.extend(info?.map_ids()?.with_context(|| format!("the kernel does not tell the maps of {name}"))?);
        }
        ids.sort_unstable();
        ids.dedup();
        let maps = ids.into_iter().map(AnyMap::of).collect::<Result<Vec<_>>>()?;
        for map in &maps {
            let array = matches!(map.kind, MapType::Array | MapType::PerCpuArray);
            ensure!(array || map.pristine.is_empty(), "{} is not empty after it was loaded", map.name);
        }
        Ok(Self(maps))
    }

    /// Puts all maps back as they were. Events that wait in a ring buffer are its reader's to take.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn put_back(&self) -> Result<()> {
        self.0.iter().try_for_each(AnyMap::put_back)
    }

    /// What all maps hold now, by their names.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn read(&self) -> Result<BTreeMap<String, Rows>> {
        self.0.iter().map(|map| Ok((map.name.clone(), map.read()?))).collect()
    }

    /// Writes something into every map that can be written, and says which these are: for the test of
    /// [`Contents::put_back`].
    ///
    /// # Errors
    /// If a map refuses.
    pub fn scribble(&self) -> Result<Vec<&str>> {
        let mut written = Vec::new();
        for map in self.0.iter().filter(|map| map.kind != MapType::RingBuf) {
            let keys: Vec<Vec<u8>> =
                if map.pristine.is_empty() { vec![vec![0; map.key]] } else { map.pristine.keys().cloned().collect() };
            let mut any = false;
            for key in keys {
                any |= map.write(&key, &vec![0xa5; map.value])?;
            }
            if any {
                written.push(map.name.as_str());
            }
        }
        Ok(written)
    }
}
