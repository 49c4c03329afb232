//! The kernel stamps events with monotonic time; people want the time of day.

use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// The offset is measured again when the last measurement is older than this, so that a corrected clock shows.
const MEASURE_EVERY_NS: u64 = 1_000_000_000;

/// Turns monotonic nanoseconds into RFC 3339.
#[derive(Debug)]
pub struct Clock {
    offset_ns: AtomicI64,
    measured_ns: AtomicU64,
    fixed: bool,
}

impl Default for Clock {
    fn default() -> Self {
        let clock = Self { offset_ns: AtomicI64::new(0), measured_ns: AtomicU64::new(0), fixed: false };
        clock.measure();
        clock
    }
}

impl Clock {
    /// A clock that says `monotonic + offset_ns`, for tests.
    #[must_use]
    pub const fn fixed(offset_ns: i64) -> Self {
        Self { offset_ns: AtomicI64::new(offset_ns), measured_ns: AtomicU64::new(0), fixed: true }
    }

    fn measure(&self) {
        let (Ok(real), Ok(monotonic)) =
            (clock_gettime(ClockId::CLOCK_REALTIME), clock_gettime(ClockId::CLOCK_MONOTONIC))
        else {
            return;
        };
        let ns = |t: nix::sys::time::TimeSpec| i128::from(t.tv_sec()) * 1_000_000_000 + i128::from(t.tv_nsec());
        let offset = ns(real) - ns(monotonic);
        self.offset_ns.store(i64::try_from(offset).unwrap_or(0), Ordering::Relaxed);
        self.measured_ns.store(u64::try_from(ns(monotonic)).unwrap_or(0), Ordering::Relaxed);
    }

    /// Offset of the time of day at about `monotonic_ns`.
    #[must_use]
    pub fn offset_ns(&self, monotonic_ns: u64) -> i64 {
        if !self.fixed && monotonic_ns > self.measured_ns.load(Ordering::Relaxed).saturating_add(MEASURE_EVERY_NS) {
            self.measure();
        }
        self.offset_ns.load(Ordering::Relaxed)
    }
}

/// RFC 3339 in UTC with nine digits, so that the strings sort as the times do.
#[must_use]
pub fn rfc3339(monotonic_ns: u64, offset_ns: i64) -> String {
    let ns = i128::from(monotonic_ns) + i128::from(offset_ns);
    let time = jiff::Timestamp::from_nanosecond(ns).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{time:.9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_nine_digits() {
        assert_eq!(rfc3339(1, 1_000_000_000_000_000_000), "2001-09-09T01:46:40.000000001Z");
        assert_eq!(rfc3339(500_000_000, 0), "1970-01-01T00:00:00.500000000Z");
    }

    #[test]
    fn the_clock_is_todays() {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("clock");
        let now = u64::try_from(now.tv_sec()).expect("positive") * 1_000_000_000;
        assert!(rfc3339(now, Clock::default().offset_ns(now)).as_str() > "2024");
    }
}
