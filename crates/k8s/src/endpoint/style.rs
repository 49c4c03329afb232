//! How CiliumEndpoints are written: coalesced, or as Cilium's agents write them, so that a comparison is with what
//! clusters see today.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WriteStyle {
    /// One write when the endpoint is in force, one when it is gone; what changes together is written together.
    #[default]
    Coalesced,
    /// As Cilium's agents do: each endpoint on its own and at once, with a GET whether the object exists; its status is
    /// not ready yet, and is updated at the next reconciliation, every [`ROUND`]. So a pod that lives for longer than
    /// that is three events (created, updated, deleted) for each agent. Requests are limited to [`RATE`] a second, with
    /// a burst of [`AHEAD`].
    Upstream,
}

/// Cilium's agents reconcile each endpoint this often.
pub const ROUND: Duration = Duration::from_secs(10);
/// Requests of such an agent in a second.
pub const RATE: f64 = 10.0;
/// Its burst.
pub const AHEAD: f64 = 20.0;

impl WriteStyle {
    /// How long changes gather before they are written.
    pub(super) const fn gathers(self) -> Duration {
        match self {
            Self::Coalesced => Duration::from_millis(10),
            Self::Upstream => Duration::ZERO,
        }
    }

    /// Objects that are written side by side.
    pub(super) const fn side_by_side(self) -> usize {
        match self {
            Self::Coalesced => 4,
            Self::Upstream => 256,
        }
    }

    /// What an object that was made at `made` (`None`: by a former agent) says of its endpoint's state now.
    pub(super) fn state(self, made: Option<Instant>) -> &'static str {
        match (self, made) {
            (Self::Upstream, Some(made)) if made.elapsed() < ROUND => "waiting-to-regenerate",
            _ => "ready",
        }
    }
}

/// Lets requests pass at a rate, the first ones at once.
#[derive(Debug)]
pub(super) struct Limiter(Option<Mutex<(f64, Instant)>>);

impl Limiter {
    pub(super) fn new(style: WriteStyle) -> Self {
        Self((style == WriteStyle::Upstream).then(|| Mutex::new((AHEAD, Instant::now()))))
    }

    /// Waits for a turn. Turns are given in the order in which they were asked for.
    pub(super) async fn turn(&self) {
        let Some(state) = &self.0 else { return };
        let wait = {
            let mut state = state.lock().expect("a panic ends the process");
            let now = Instant::now();
            let (left, then) = *state;
            let left = (left + now.duration_since(then).as_secs_f64() * RATE).min(AHEAD) - 1.0;
            *state = (left, now);
            if left < 0.0 { Duration::from_secs_f64(-left / RATE) } else { Duration::ZERO }
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_upstream_agent_has_twenty_requests_at_once_and_then_ten_a_second() {
        let limiter = Limiter::new(WriteStyle::Upstream);
        let began = Instant::now();
        for _ in 0..25 {
            limiter.turn().await;
        }
        assert!(began.elapsed() >= Duration::from_millis(490), "{:?}", began.elapsed());
        assert!(Limiter::new(WriteStyle::Coalesced).0.is_none());
    }

    #[tokio::test]
    async fn an_upstream_agents_object_is_ready_a_round_later() {
        let now = Some(Instant::now());
        assert_eq!(WriteStyle::Upstream.state(now), "waiting-to-regenerate");
        assert_eq!(WriteStyle::Coalesced.state(now), "ready");
        assert_eq!(WriteStyle::Upstream.state(Instant::now().checked_sub(ROUND)), "ready");
        assert_eq!(WriteStyle::Upstream.state(None), "ready");
    }
}
