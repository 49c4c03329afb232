//! Packet counters.

use crate::map::TypedMap;
use crate::sys;
use crate::sys::map::RawMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use weft_abi::{DropReason, MetricKey, MetricValue};

/// Packets and bytes of one reason and direction, all CPUs together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counter {
    /// Number of a [`weft_abi::DropReason`]; 0: forwarded.
    pub reason: u8,
    /// Direction, as the pod sees it: out of it.
    pub egress: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Reads the counters. Cheap to clone, usable by any thread.
#[derive(Clone, Debug)]
pub struct Metrics {
    fd: Arc<OwnedFd>,
    cpus: usize,
}

impl Metrics {
    /// `_checked` is proof that the map has the sizes of its types.
    pub(crate) fn new(_checked: TypedMap<u32, MetricValue>, fd: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self { fd, cpus: sys::possible_cpus()? })
    }

    /// Counters of packets that are not zero: those of all that programs count, since every entry is a system call.
    ///
    /// # Errors
    /// A system call failed.
    pub fn read(&self) -> io::Result<Vec<Counter>> {
        let mut counters = Vec::new();
        let passed = [0, MetricKey::AUDITED, MetricKey::ACCELERATED];
        for reason in passed.into_iter().chain(DropReason::ALL.iter().map(|reason| *reason as u8)) {
            for egress in [false, true] {
                let (packets, bytes) = self.sum(MetricKey::index(reason, egress))?;
                if packets > 0 {
                    counters.push(Counter { reason, egress, packets, bytes });
                }
            }
        }
        Ok(counters)
    }

    /// Events that the programs did not report, for the rate limit or a full ring buffer.
    ///
    /// # Errors
    /// A system call failed.
    pub fn suppressed(&self) -> io::Result<u64> {
        Ok(self.sum(MetricKey::index(MetricKey::SUPPRESSED, false))?.0)
    }

    /// Packets and bytes of one entry.
    fn sum(&self, index: u32) -> io::Result<(u64, u64)> {
        const VALUE: usize = size_of::<MetricValue>();
        const _: () = assert!(VALUE == 16);
        let map = RawMap::new(self.fd.as_fd(), size_of::<u32>(), VALUE * self.cpus);
        let values = map.get(&index.to_ne_bytes())?.unwrap_or_default();
        let (mut packets, mut bytes) = (0_u64, 0_u64);
        for value in values.chunks_exact(VALUE) {
            packets += word(&value[..8]);
            bytes += word(&value[8..]);
        }
        Ok((packets, bytes))
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}
