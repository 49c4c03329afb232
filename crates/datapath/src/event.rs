//! What the programs report, out of the ring buffer.

use aya::maps::{Map, MapData, MapError, RingBuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use weft_abi::Event;

/// Reads records in the order in which they were sent. Readable (`AsFd`, so also through tokio's `AsyncFd`) while there
/// are records; a record that is not read when the ring is full is lost, and counted by the programs.
pub struct EventReader {
    ring: RingBuf<MapData>,
    malformed: u64,
}

impl EventReader {
    pub(crate) fn open(map: &OwnedFd) -> io::Result<Self> {
        let data = MapData::from_fd(map.as_fd().try_clone_to_owned()?).map_err(other)?;
        let ring = RingBuf::try_from(Map::from_map_data(data).map_err(other)?).map_err(other)?;
        Ok(Self { ring, malformed: 0 })
    }

    /// Appends at most `max` records, without waiting. Returns how many.
    pub fn read(&mut self, into: &mut Vec<Event>, max: usize) -> usize {
        let before = into.len();
        while into.len() - before < max {
            let Some(item) = self.ring.next() else { break };
            match parse(&item) {
                Some(event) => into.push(event),
                None => self.malformed += 1,
            }
        }
        into.len() - before
    }

    /// Waits until there is something to read; `false`: there was nothing in that time.
    ///
    /// # Errors
    /// The system call failed.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Records that were too short to be one.
    #[must_use]
    pub const fn malformed(&self) -> u64 {
        self.malformed
    }
}

impl AsFd for EventReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl std::os::fd::AsRawFd for EventReader {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.ring.as_fd())
    }
}

/// A record; longer ones, of a later version, are read as far as they are known.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: there are enough bytes, the read needs no alignment, and any bits are a valid `Event`.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

fn other(error: MapError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_records_are_refused_and_long_ones_read() {
        let bytes = [0x11_u8; 200];
        for length in 0..size_of::<Event>() {
            assert_eq!(parse(&bytes[..length]), None, "{length}");
        }
        for length in size_of::<Event>()..=bytes.len() {
            let event = parse(&bytes[..length]).expect("long enough");
            assert_eq!(event.ifindex, 0x1111_1111);
        }
        // Not aligned.
        assert!(parse(&bytes[1..]).is_some());
    }
}
