//! Pauses between attempts that grow, with a random part, so that a thousand agents do not come back at once.

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);

/// Each pause is between once and twice of a time that doubles.
pub(crate) struct Backoff {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// No pause is longer than `max`.
    pub(crate) fn up_to(max: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(FIRST)
            .with_max_delay(max / 2)
            .with_jitter()
            .without_max_times();
        Self { builder, pauses: builder.build(), max }
    }

    pub(crate) fn reset(&mut self) {
        self.pauses = self.builder.build();
    }

    pub(crate) fn next(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.max).min(self.max)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(Duration::from_secs(20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_maximum_and_begin_anew_after_a_reset() {
        let mut backoff = Backoff::up_to(Duration::from_secs(20));
        let first = backoff.next();
        assert!((FIRST..=FIRST * 2).contains(&first), "{first:?}");
        let pauses: Vec<Duration> = (0..100).map(|_| backoff.next()).collect();
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(20)), "{pauses:?}");
        assert!(pauses[20..].iter().all(|pause| *pause >= Duration::from_secs(10)), "{pauses:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST * 2);
    }
}
