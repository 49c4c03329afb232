//! Maps with the types of their keys and values.

use crate::sys::map::{self, Write};
use aya::Pod;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use weft_model::desired::DataplaneError;

/// A map whose key and value sizes were compared with `K` and `V` when it was opened. Clones share the descriptor.
#[derive(Debug)]
pub struct TypedMap<K, V> {
    fd: Arc<OwnedFd>,
    name: &'static str,
    entries_max: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for TypedMap<K, V> {
    fn clone(&self) -> Self {
        Self { fd: self.fd.clone(), name: self.name, entries_max: self.entries_max, types: PhantomData }
    }
}

impl<K: Pod, V: Pod> TypedMap<K, V> {
    /// Takes a map whose layout is right.
    ///
    /// # Errors
    /// The sizes are not those of `K` and `V`.
    pub fn new(name: &'static str, fd: Arc<OwnedFd>) -> io::Result<Self> {
        let info = crate::sys::map_info(fd.as_fd())?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "map {name}: keys of {} and values of {} bytes, expected {} and {}",
                    info.key_size,
                    info.value_size,
                    size_of::<K>(),
                    size_of::<V>()
                ),
            ));
        }
        Ok(Self { fd, name, entries_max: info.max_entries, types: PhantomData })
    }

    /// Entries that fit.
    #[must_use]
    pub const fn entries_max(&self) -> u32 {
        self.entries_max
    }

    /// Reads an element.
    ///
    /// # Errors
    /// The system call failed.
    pub fn get(&self, key: &K) -> Result<Option<V>, DataplaneError> {
        map::lookup(self.fd(), key).map_err(|source| self.failed("read", source))
    }

    /// Writes an element, new or not.
    ///
    /// # Errors
    /// The system call failed.
    pub fn put(&self, key: &K, value: &V) -> Result<(), DataplaneError> {
        map::update(self.fd(), key, value, Write::Any).map_err(|source| self.failed("write", source))
    }

    /// Replaces an element; `false` if there is none.
    ///
    /// # Errors
    /// The system call failed.
    pub fn replace(&self, key: &K, value: &V) -> Result<bool, DataplaneError> {
        match map::update(self.fd(), key, value, Write::Replace) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(source) => Err(self.failed("write", source)),
        }
    }

    /// Removes an element; `false` if there was none.
    ///
    /// # Errors
    /// The system call failed.
    pub fn remove(&self, key: &K) -> Result<bool, DataplaneError> {
        map::delete(self.fd(), key).map_err(|source| self.failed("remove from", source))
    }

    /// All elements.
    ///
    /// # Errors
    /// A system call failed.
    pub fn dump(&self) -> Result<Vec<(K, V)>, DataplaneError> {
        map::dump(self.fd()).map_err(|source| self.failed("read", source))
    }

    /// Calls `each` for all elements until it returns `false`.
    ///
    /// # Errors
    /// A system call failed.
    pub fn for_each(&self, each: impl FnMut(&K, &V) -> bool) -> Result<(), DataplaneError> {
        map::for_each_batch(self.fd(), each).map_err(|source| self.failed("read", source))
    }

    /// Writes many elements; an error comes with how many were written.
    ///
    /// # Errors
    /// A system call failed.
    pub fn put_all(&self, keys: &[K], values: &[V]) -> Result<(), (usize, DataplaneError)> {
        map::update_batch(self.fd(), keys, values).map_err(|(done, source)| (done, self.failed("write", source)))
    }

    /// Removes many elements, present or not; returns how many were present, also with an error.
    ///
    /// # Errors
    /// A system call failed.
    pub fn remove_all(&self, keys: &[K]) -> Result<usize, (usize, DataplaneError)> {
        map::delete_batch(self.fd(), keys).map_err(|(done, source)| (done, self.failed("remove from", source)))
    }

    /// A full map, with what was wanted in addition.
    #[must_use]
    pub fn full(&self, entries: u64, wanted: u64) -> DataplaneError {
        DataplaneError::MapFull { map: self.name, entries, entries_max: u64::from(self.entries_max), wanted }
    }

    /// Turns E2BIG into [`DataplaneError::MapFull`]: the kernel may find a map full a little earlier than our count.
    #[must_use]
    pub fn full_or(&self, error: DataplaneError, entries: u64, wanted: u64) -> DataplaneError {
        match &error {
            DataplaneError::System { source, .. } if source.raw_os_error() == Some(libc::E2BIG) => {
                self.full(entries, wanted)
            }
            _ => error,
        }
    }

    /// Refuses `wanted` more elements beside `entries` if they do not fit.
    ///
    /// # Errors
    /// [`DataplaneError::MapFull`]
    pub fn reserve(&self, entries: u64, wanted: u64) -> Result<(), DataplaneError> {
        if entries + wanted > u64::from(self.entries_max) { Err(self.full(entries, wanted)) } else { Ok(()) }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn failed(&self, what: &str, source: io::Error) -> DataplaneError {
        DataplaneError::System { what: format!("{what} map {}", self.name), source }
    }
}

/// Bytes of kernel memory that a map takes, from `/proc/self/fdinfo`.
pub fn memory_bytes(map: BorrowedFd<'_>) -> io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no memlock line in fdinfo"))
}
