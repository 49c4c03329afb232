//! Removal of expired connections. The walk is a kernel program (`weft_collect`), since only there an entry can be
//! claimed atomically against packets that refresh it; this drives it.

use crate::flows::Flows;
use crate::sys::program;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Pause while the table is nearly empty, and while it is nearly full.
const PAUSE_MAX: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Share of the table, in percent, from which on connections expire sooner.
const PRESSURE_PERCENT: u64 = 75;

/// What a run found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collected {
    /// Entries that are left.
    pub left: u64,
    /// How far lifetimes are halved for the next run.
    pub pressure: u32,
    /// How long it took.
    pub took: Duration,
}

/// Runs the walk.
pub struct Collector {
    program: Box<dyn Program>,
    flows: Flows,
    pressure: u32,
    pause: Duration,
}

/// The program, kept loaded.
trait Program: Send {
    fn run(&self, pressure: u32) -> io::Result<u32>;
}

impl<T: AsFd + Send> Program for T {
    fn run(&self, pressure: u32) -> io::Result<u32> {
        program::test_run(self.as_fd(), pressure)
    }
}

impl Collector {
    pub(crate) fn new(program: impl AsFd + Send + 'static, flows: &Flows) -> Self {
        Self { program: Box::new(program), flows: flows.clone(), pressure: 0, pause: PAUSE_MIN }
    }

    /// Walks the table once.
    ///
    /// # Errors
    /// The program did not run.
    pub fn run(&mut self) -> io::Result<Collected> {
        let start = Instant::now();
        let left = u64::from(self.program.run(self.pressure)?);
        self.flows.set_counted(left);
        let percent = left * 100 / self.flows.entries_max().max(1);
        self.pressure = pressure(percent);
        self.pause = pause(percent);
        Ok(Collected { left, pressure: self.pressure, took: start.elapsed() })
    }

    /// How long to wait before the next run.
    #[must_use]
    pub const fn pause(&self) -> Duration {
        self.pause
    }
}

/// How far lifetimes are halved when so much of the table is used.
fn pressure(percent: u64) -> u32 {
    match percent {
        0..PRESSURE_PERCENT => 0,
        PRESSURE_PERCENT..85 => 1,
        85..90 => 2,
        90..95 => 4,
        _ => 8,
    }
}

fn pause(percent: u64) -> Duration {
    match percent {
        0..25 => PAUSE_MAX,
        25..50 => PAUSE_MAX / 2,
        50..PRESSURE_PERCENT => PAUSE_MIN * 2,
        _ => PAUSE_MIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fuller_table_is_walked_sooner_and_harder() {
        let mut last = (PAUSE_MAX, 0);
        for percent in 0..=120 {
            let now = (pause(percent), pressure(percent));
            assert!(now.0 <= last.0 && now.1 >= last.1, "{percent}");
            last = now;
        }
        assert_eq!(pressure(PRESSURE_PERCENT - 1), 0);
        assert!(pressure(PRESSURE_PERCENT) > 0);
    }
}
