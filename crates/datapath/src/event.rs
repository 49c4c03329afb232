//! What the programs report, out of the ring buffer.
//!
//! The kernel wakes the reader only by a record that finds everything before it read. Waking somebody for every event
//! would cost the packet's CPU more than the packet does, so a reader that is awake all the time anyway lets records
//! gather for [`PAUSE`]: under load it is woken some hundred times a second, whatever the number of events; the first
//! event after a quiet time is read at once; and while nothing happens, nothing runs. A ring that fills in less than
//! a pause ends the pause (`BPF_RB_FORCE_WAKEUP` in the programs).

use aya::maps::{Map, MapData, MapError, RingBuf};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_abi::Event;

/// Pause between two reads of the ring.
const PAUSE: Duration = Duration::from_millis(10);
/// What an epoll event is about.
const RECORDS: u64 = 0;
const STOP: u64 = 1;

/// Reads records in the order in which they were sent. A record for which the ring has no room is lost, and counted by
/// the programs.
pub struct EventReader {
    ring: RingBuf<MapData>,
    /// Edge-triggered: signals the kernel's wake-ups, not whether there are records.
    wakes: Epoll,
    stop: Arc<EventFd>,
    /// Since the last wake-up that was waited for, everything was read.
    emptied: bool,
    looked: Option<Instant>,
    malformed: u64,
}

/// Ends the wait of a reader, from any thread.
#[derive(Clone, Debug)]
pub struct EventStop(Arc<EventFd>);

impl EventStop {
    /// From now on [`EventReader::wait`] returns `false` at once.
    pub fn stop(&self) {
        // It fails only if the counter would overflow, and then it signals the stop already.
        let _ = self.0.write(1);
    }
}

impl EventReader {
    pub(crate) fn open(map: &OwnedFd) -> io::Result<Self> {
        let data = MapData::from_fd(map.as_fd().try_clone_to_owned()?).map_err(other)?;
        let ring = RingBuf::try_from(Map::from_map_data(data).map_err(other)?).map_err(other)?;
        let wakes = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        wakes.add(&ring, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, RECORDS))?;
        wakes.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        Ok(Self { ring, wakes, stop: Arc::new(stop), emptied: true, looked: None, malformed: 0 })
    }

    /// Ends this reader's wait.
    #[must_use]
    pub fn stop(&self) -> EventStop {
        EventStop(self.stop.clone())
    }

    /// Appends at most `max` records, without waiting. Returns how many; less than `max`: there are no more.
    pub fn read(&mut self, into: &mut Vec<Event>, max: usize) -> usize {
        let before = into.len();
        self.looked = Some(Instant::now());
        while into.len() - before < max {
            let Some(item) = self.ring.next() else {
                self.emptied = true;
                break;
            };
            match parse(&item) {
                Some(event) => into.push(event),
                None => self.malformed += 1,
            }
        }
        into.len() - before
    }

    /// Waits until there is something to read, and then until the last [`Self::read`] is [`PAUSE`] ago. `false`: there
    /// was nothing in that time, or the reader shall stop.
    ///
    /// # Errors
    /// The system call failed.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        if self.emptied {
            let timeout = timeout.map_or(Ok(EpollTimeout::NONE), EpollTimeout::try_from);
            if self.woken(timeout.unwrap_or(EpollTimeout::MAX))? != Some(RECORDS) {
                return Ok(false);
            }
            self.emptied = false;
        }
        let pause = self.looked.map_or(Duration::ZERO, |at| PAUSE.saturating_sub(at.elapsed()));
        if !pause.is_zero() {
            // The ring is not empty, so only a ring that is filling up wakes the reader.
            let pause = EpollTimeout::try_from(pause).unwrap_or(EpollTimeout::ZERO);
            return Ok(self.woken(pause)? != Some(STOP));
        }
        Ok(true)
    }

    /// What woke the reader, if anything did.
    fn woken(&self, timeout: EpollTimeout) -> io::Result<Option<u64>> {
        let mut events = [EpollEvent::empty(); 2];
        let woken = match self.wakes.wait(&mut events, timeout) {
            Ok(woken) => woken,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        Ok(events[..woken].iter().map(EpollEvent::data).max())
    }

    /// Records that were too short to be one.
    #[must_use]
    pub const fn malformed(&self) -> u64 {
        self.malformed
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
